"""Readouts: from features to energies, charges, atomic dipoles and polarisabilities."""

from math import sqrt

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxmlip.nn.clebsch_gordan import clebsch_gordan
from jaxmlip.nn.radial import SILU_GAIN
from jaxmlip.system import System, sum_atoms


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
    """Charges [n_atoms] moved by the same amount in each structure so that they sum to its charge."""
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
