"""Readouts: from features to energies, charges, atomic dipoles and polarisabilities."""

from math import sqrt

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxmlip.nn.clebsch_gordan import clebsch_gordan
from jaxmlip.nn.radial import SILU_GAIN, TANH_GAIN
from jaxmlip.system import System, sum_atoms, sum_energies

SIGMOID_GAIN, ABS_GAIN = 1.8467055342154763, 1.001110600838467  # as SILU_GAIN: see nn.radial
ACTIVATIONS = {  # name: function, gain
    "silu": (jax.nn.silu, SILU_GAIN),
    "tanh": (jnp.tanh, TANH_GAIN),
    "sigmoid": (jax.nn.sigmoid, SIGMOID_GAIN),
    "abs": (jnp.abs, ABS_GAIN),
    "none": (lambda x: x, 1.0),
}


def activate(name: str, x):
    """An activation by its name, scaled so that a unit normal keeps its mean square."""
    function, gain = ACTIVATIONS[name]
    return function(x) * gain


class ScalarReadout(nn.Module):
    """Scalars [n, c] -> [n]; linear, or with one hidden layer if `width` is not 0.

    With `bias` there is a second hidden layer, and it and the last one have biases.
    """

    width: int = 0
    gate: str = "silu"
    bias: bool = False

    @nn.compact
    def __call__(self, x):
        if self.width:
            x = activate(self.gate, self._linear("hidden", x, self.width))
        if not (self.width and self.bias):
            return self._linear("out", x, 1)[..., 0]
        x = activate(self.gate, self._linear("middle", x, self.width) + self._bias("middle", x))
        return self._linear("out", x, 1)[..., 0] + self._bias("out", x[..., :1])[0]

    def _linear(self, name, x, n_out):
        w = self.param(name, nn.initializers.normal(1.0), (x.shape[-1], n_out))
        return (x @ w.astype(x.dtype)) * (1 / sqrt(x.shape[-1]))

    def _bias(self, name, x):
        b = self.param(f"{name}_bias", nn.initializers.zeros, (x.shape[-1],))
        return b.astype(x.dtype)


class TensorReadout(nn.Module):
    """Features of one degree [n, 2l+1, c] -> [n, 2l+1], linear in the channels (so equivariant).

    With `width`, over as many hidden tensors, each times a gate made from the scalars [n, c].
    """

    width: int = 0
    gate: str = "silu"

    @nn.compact
    def __call__(self, x, scalars=None):
        if self.width:
            gates = scalars @ self._weight("gates", scalars, (self.width,))
            hidden = x @ self._weight("hidden", x, (self.width,))
            x = hidden * activate(self.gate, gates)[:, None, :]
        return x @ self._weight("out", x)

    def _weight(self, name, x, n_out=()):
        w = self.param(name, nn.initializers.normal(1.0), (x.shape[-1], *n_out))
        return w.astype(x.dtype) / sqrt(x.shape[-1])


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


def read_scalar(name: str, layers, width: int, **options):
    """Readouts of the scalars of all layers, summed, [n_atoms]; the last has a hidden layer.

    To be called inside a compact method, whose module then owns the weights `name`_0, `name`_1 ...
    """
    total = 0.0
    for i, features in enumerate(layers):
        hidden = width if i == len(layers) - 1 else 0
        total += ScalarReadout(hidden, **options, name=f"{name}_{i}")(features[0, 1][:, 0])
    return total


def read_tensor(name: str, layers, l: int, width: int = 0, gate: str = "silu"):
    """Readouts of degree l, natural parity, of all layers that have it, summed, [n_atoms, 2l+1].

    Linear; the last has `width` hidden tensors with gates if that is not 0.
    """
    total, key = 0.0, (l, (-1) ** l)
    for i, features in enumerate(layers):
        if key in features:
            hidden = width if i == len(layers) - 1 else 0
            readout = TensorReadout(hidden, gate, name=f"{name}_{i}")
            total += readout(features[key], features[0, 1][:, 0])
    return total


def one_or_nan(system: System, known):
    """1, or NaN for every atom of a structure in which an atom is not known [n_atoms].

    To be multiplied with: what is selected has a zero gradient, so that only the energy would be
    NaN, and forces would be finite and wrong.
    """
    broken = sum_atoms(system, (~known).astype(system.positions.dtype)) > 0
    return jnp.where(broken, jnp.nan, 1.0).astype(system.positions.dtype)[system.graph]


def energy_prediction(system: System, energies, known) -> dict:
    """`energy` and `energies`; an atom that is not known has NaN, and so has its structure."""
    total = sum_energies(system, energies * one_or_nan(system, known))
    energies = jnp.where(system.atom_mask, jnp.where(known, energies, jnp.nan), 0)
    return {"energy": total, "energies": energies}


def response_predictions(
    system: System,
    layers,
    width: int,
    known,
    *,
    dipole,
    polarizability,
    charges=True,
    atomic_dipoles=True,
    tensor_widths=(0, 0),
    gate="silu",
    read_charges=None,
) -> dict:
    """Charges and dipole, polarisability (each if asked for), read from the same features.

    NaN in structures with an atom that is not `known`.

    Without `charges` the dipole is the sum of atomic dipoles alone, without `atomic_dipoles` that
    of the charges. tensor_widths: hidden vectors and hidden tensors of degree 2 of the last
    readouts, 0 if those are linear. read_charges: layers -> charges and their dipole, if not a
    readout of scalars (see `nn.charges`).
    """
    out = {}
    if dipole or polarizability:
        sound = one_or_nan(system, known)[:, None, None]
        layers = [{key: x * sound for key, x in features.items()} for features in layers]
    if dipole and atomic_dipoles:
        atomic = read_tensor("dipole", layers, 1, tensor_widths[0], gate)
        out["atomic_dipoles"] = jnp.where(system.atom_mask[:, None], atomic, 0)
        out["dipole"] = sum_atoms(system, atomic)
    if dipole and charges and read_charges is not None:
        out["charges"], moment = read_charges(layers)
        out["dipole"] = out.get("dipole", 0) + moment
    elif dipole and charges:
        charge = conserve_charge(system, read_scalar("charge", layers, width, gate=gate))
        atomic = out.get("atomic_dipoles", jnp.zeros_like(system.positions))
        out |= {"charges": charge, "dipole": total_dipole(system, charge, atomic)}
    if polarizability:
        scalar = read_scalar("isotropic", layers, width, gate=gate)
        traceless = read_tensor("anisotropic", layers, 2, tensor_widths[1], gate)
        tensor = cartesian_tensor(scalar, traceless)
        out["polarizability"] = sum_atoms(system, tensor)
    return out
