"""Readouts: from features to energies, charges, atomic dipoles and polarisabilities."""

from math import sqrt

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxmlip.nn.clebsch_gordan import clebsch_gordan
from jaxmlip.nn.radial import SILU_GAIN
from jaxmlip.system import System, sum_atoms, sum_energies


class ScalarReadout(nn.Module):
    """Scalars [n, c] -> [n]; linear, or with one hidden layer if `width` is not 0."""

    width: int = 0

    @nn.compact
    def __call__(self, x):
        if self.width:
            x = jax.nn.silu(self._linear("hidden", x, self.width)) * SILU_GAIN
        return self._linear("out", x, 1)[..., 0]

    def _linear(self, name, x, n_out):
        w = self.param(name, nn.initializers.normal(1.0), (x.shape[-1], n_out))
        return x @ (w.astype(x.dtype) / sqrt(x.shape[-1]))


class TensorReadout(nn.Module):
    """Features of one degree [n, 2l+1, c] -> [n, 2l+1], linear in the channels (so equivariant)."""

    @nn.compact
    def __call__(self, x):
        w = self.param("out", nn.initializers.normal(1.0), (x.shape[-1],))
        return x @ (w.astype(x.dtype) / sqrt(x.shape[-1]))


def conserve_charge(system: System, charges):
    """Charges [n_atoms] moved by one amount in each structure so that they sum to its charge."""
    count = sum_atoms(system, jnp.ones_like(charges))
    excess = (sum_atoms(system, charges) - system.charge) / jnp.maximum(count, 1)
    return jnp.where(system.atom_mask, charges - excess[system.graph], 0)


def total_dipole(system: System, charges, atomic_dipoles):
    """sum of q r + atomic dipoles, [n_graphs, 3], e Å, about the origin of the coordinates."""
    return sum_atoms(system, charges[:, None] * system.positions + atomic_dipoles)


def cartesian_tensor(scalar, traceless):
    """Symmetric 3x3 tensors from l = 0 [n] and l = 2 [n, 5] parts: scalar x 1 + traceless part."""
    table = jnp.asarray(clebsch_gordan(1, 1, 2), scalar.dtype)
    identity = jnp.eye(3, dtype=scalar.dtype)
    return scalar[:, None, None] * identity + jnp.einsum("abm,nm->nab", table, traceless)


def read_scalar(name: str, layers, width: int):
    """Readouts of the scalars of all layers, summed, [n_atoms]; the last has a hidden layer.

    To be called inside a compact method, whose module then owns the weights `name`_0, `name`_1 ...
    """
    total = 0.0
    for i, features in enumerate(layers):
        hidden = width if i == len(layers) - 1 else 0
        total += ScalarReadout(hidden, name=f"{name}_{i}")(features[0, 1][:, 0])
    return total


def read_tensor(name: str, layers, l: int):
    """Linear readouts of degree l, natural parity, of all layers that have it, [n_atoms, 2l+1]."""
    key = (l, (-1) ** l)
    return sum(TensorReadout(name=f"{name}_{i}")(f[key]) for i, f in enumerate(layers) if key in f)


def energy_prediction(system: System, energies, known) -> dict:
    """`energy` and `energies`; an atom of an element that the model does not know gives NaN."""
    energies = jnp.where(system.atom_mask, jnp.where(known, energies, jnp.nan), 0)
    return {"energy": sum_energies(system, energies), "energies": energies}


def response_predictions(system: System, layers, width: int, *, dipole, polarizability) -> dict:
    """Charges and dipole, polarisability (each if asked for), read from the same features."""
    out = {}
    if dipole:
        charges = conserve_charge(system, read_scalar("charge", layers, width))
        atomic = read_tensor("dipole", layers, 1)
        out |= {"charges": charges, "dipole": total_dipole(system, charges, atomic)}
    if polarizability:
        scalar = read_scalar("isotropic", layers, width)
        tensor = cartesian_tensor(scalar, read_tensor("anisotropic", layers, 2))
        out["polarizability"] = sum_atoms(system, tensor)
    return out
