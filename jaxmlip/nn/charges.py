"""Charges read from features, so that each structure keeps its total charge.

Three ways, from the crudest to the one that crystals need:

* a readout moved by one amount in every atom (`nn.readout.conserve_charge`), or by learned weights:
  what is wrong with the sum is spread over the whole structure, however far apart its parts are;
* transfers along edges (`Transfers`): an edge takes from its sender what it gives its receiver, so
  fragments keep what is theirs and charges are as local as the features;
* equilibration: the model gives electronegativities and hardnesses (`PositiveBySpecies`), the
  charges come from `jaxmlip.electrostatics.equilibration`.

What a model owes whose Born charges in crystals are to be right: a `dipole` whose derivative with
respect to positions does not ask which image of an atom is meant. The dipole of transfers does
that: sum of base charges x positions (constants, so their derivative is exact; the value counts
modulo a lattice vector) plus, for each pair, transfer x edge vector, plus atomic dipoles, which are
periodic themselves. `add_field` turns it into an energy that is conservative in a crystal, with
dE/dr dfield = -Z*, and the sum of Z* over the atoms is the sum of base charges, the total charge,
times the unit matrix. The sum of q r with charges that depend on positions is not such a dipole:
it is right for molecules alone. Positions must not be wrapped between two evaluations.
"""

from math import expm1, log, sqrt

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxmlip.nn.radial import bessel, envelope
from jaxmlip.nn.readout import conserve_charge, read_scalar
from jaxmlip.system import (
    System,
    at_receivers,
    edge_vectors,
    sum_atoms,
    sum_edges,
    to_edges,
)

SAFE = 1e-3  # of a weight, so that no structure is without any


def read_charges(
    system: System,
    layers,
    width: int,
    *,
    gate: str = "silu",
    base=None,
    weighted: bool = False,
    transfers=None,
):
    """(charges [n_atoms], their dipole [n_graphs, 3] e Å), to be called inside a compact method.

    base [n_atoms]: charges to begin with, else a readout of the scalars (none with `transfers`).
    What they miss of the charge of the structure is shared out, evenly or by learned weights; then
    `transfers` (a `Transfers`) moves charge along the edges.
    """
    if base is not None:
        q = base
    elif transfers is not None:
        q = jnp.zeros_like(system.positions[:, 0])
    else:
        q = read_scalar("charge", layers, width, gate=gate)
    if weighted:
        weights = positive_weights(read_scalar("charge_weight", layers, width, gate=gate))
        q = share_charge(system, q, weights)
    else:
        q = conserve_charge(system, q)
    if transfers is None:
        return q, sum_atoms(system, q[:, None] * system.positions)
    scalars = jnp.concatenate([features[0, 1][:, 0] for features in layers], -1)
    return flow(system, q, transfers(system, scalars))


class Transfers(nn.Module):
    """Charge that flows along each edge from its sender to its receiver, e; antisymmetric.

    Scalars [n_atoms, c] -> [edge]. t = sum_k R_k(r) (a_k(sender) b_k(receiver) - b_k(sender)
    a_k(receiver)), with a and b linear in the scalars and R smooth and zero at the cutoff.
    """

    channels: int
    cutoff: float  # Å
    n_radial: int = 8

    @nn.compact
    def __call__(self, system: System, scalars):
        vectors = edge_vectors(system)
        r = jnp.linalg.norm(vectors, axis=-1)
        basis = bessel(r, self.cutoff, self.n_radial) * envelope(r, self.cutoff)[..., None]
        radial = basis @ self._weight("radial", self.n_radial, basis)
        both = scalars @ self._weight("ends", scalars.shape[-1], scalars, 2 * self.channels)
        sent, received = to_edges(system, both), at_receivers(system, both)
        (a, b), (c, d) = (jnp.split(x, 2, axis=-1) for x in (sent, received))
        return (radial * (a * d - b * c)).sum(-1) / sqrt(2 * self.channels)

    def _weight(self, name, n_in, like, n_out=None):
        shape = (n_in, n_out or self.channels)
        w = self.param(name, nn.initializers.normal(1.0), shape)
        return w.astype(like.dtype) / sqrt(n_in)


class PositiveBySpecies(nn.Module):
    """A positive number for each species, read for each atom, [n_atoms]."""

    n_species: int
    start: float

    @nn.compact
    def __call__(self, species, dtype):
        # the inverse of softplus at `start`
        begin = nn.initializers.constant(self.start + log(-expm1(-self.start)))
        table = jax.nn.softplus(self.param("table", begin, (self.n_species,)))
        onehot = jax.nn.one_hot(species, self.n_species, dtype=dtype)
        return onehot @ table.astype(dtype)


def positive_weights(x):
    """Any numbers [n_atoms] -> positive ones, by which charge is shared out."""
    return jax.nn.softplus(x) + SAFE


def share_charge(system: System, charges, weights):
    """Charges [n_atoms] moved in proportion to `weights` > 0 so that structures keep their charge.

    q_i + (Q - sum q) w_i / sum w, over the atoms of each structure.
    """
    missing = system.charge - sum_atoms(system, charges)
    total = sum_atoms(system, weights)
    share = missing / jnp.where(total > 0, total, 1)
    return jnp.where(system.atom_mask, charges + weights * share[system.graph], 0)


def flow(system: System, base, transfers):
    """(charges [n_atoms], their dipole [n_graphs, 3] e Å) of base charges and transfers [edge].

    The dipole is sum of base x r + 1/2 sum over edges of transfer x edge vector: in a molecule
    the sum of q r, in a crystal what the sum of q r cannot be (see the head of this file).
    """
    charges = base + sum_edges(system, transfers)
    vectors = edge_vectors(system)
    moments = base[:, None] * system.positions + sum_edges(
        system, 0.5 * transfers[..., None] * vectors
    )
    return jnp.where(system.atom_mask, charges, 0), sum_atoms(system, moments)
