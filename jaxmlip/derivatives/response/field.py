"""Dipole, polarisability and Raman tensors: derivatives of one energy E(R, field).

They need an energy that depends on the field (see `jaxmlip.add_field`) and refuse one that does
not, where every response would be zero without a word.

In a periodic structure the field is the macroscopic one and the dipole that of the cell. It is
defined modulo e times the lattice vectors, and its changes are not (King-Smith and Vanderbilt,
1993, 10.1103/PhysRevB.47.1651): use `born_charges`, `current`, or `same_branch` of two of them.
"""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
from jax.interpreters.partial_eval import dce_jaxpr

from jaxmlip.errors import UsageError


def depends_on_field(apply, params, system) -> bool:
    """Whether the energy of `apply` is a function of `system.field` at all, from its program."""
    energy = lambda field: apply(params, replace(system, field=field))["energy"].sum()
    jaxpr = jax.make_jaxpr(energy)(jnp.asarray(system.field)).jaxpr
    return dce_jaxpr(jaxpr, [True])[1][0]


def by_field(apply):
    """dE/dfield [n_graphs, 3] as a function of (field, positions, params, system)."""

    def energy(field, positions, params, system):
        moved = replace(system, positions=positions, field=field)
        return apply(params, moved)["energy"].sum()

    def gradient(field, positions, params, system):
        if not depends_on_field(apply, params, system):
            raise UsageError(
                "the energy does not depend on the electric field, so it has no response to it",
                where="jaxmlip.derivatives.response",
                fix="wrap the potential: jaxmlip.add_field(potential)",
            )
        with jax.default_matmul_precision("highest"):
            return jax.grad(energy)(field, positions, params, system)

    return gradient


def dipole(apply):
    """-dE/dfield, [n_graphs, 3], e Å; about the origin of the coordinates where charged.

    Of a periodic structure: of the cell, modulo e times lattice vectors (see above); divided by the
    volume it is the polarisation.
    """
    gradient = by_field(apply)

    def dipole_of(params, system):
        field, positions = jnp.asarray(system.field), jnp.asarray(system.positions)
        return -gradient(field, positions, params, system)

    return dipole_of


def same_branch(dipole, reference, system):
    """`dipole` [n_graphs, 3] moved by e times lattice vectors to where it is next to `reference`.

    Nearest in fractions of the cell, along periodic axes alone.
    """
    cell = jnp.asarray(system.cell)
    apart = jnp.einsum("ga,gab->gb", dipole - reference, jnp.linalg.inv(cell))
    whole = jnp.where(system.pbc, jnp.round(apart), 0)
    return dipole - jnp.einsum("ga,gab->gb", whole, cell)


def polarizability(apply):
    """-d²E/dfield², [n_graphs, 3, 3], e² Å²/eV (times 14.3996 eV Å/e² for Å³)."""
    gradient = by_field(apply)

    def polarizability_of(params, system):
        return -_columns(gradient, jnp.asarray(system.positions), params, system)

    return polarizability_of


def raman_tensors(apply):
    """d(polarizability)/dr = -d³E/dr dfield², [n_atoms, 3 (of the atom), 3, 3], e² Å/eV.

    Symmetric in the last two, those of the field. One backward pass for each of the six elements.
    """
    gradient = by_field(apply)
    first, second = np.triu_indices(3)

    def raman_tensors_of(params, system):
        positions = jnp.asarray(system.positions)
        alpha = lambda r: -_columns(gradient, r, params, system)
        value, back = jax.vjp(alpha, positions)
        pairs = np.zeros((6, 3, 3))
        pairs[np.arange(6), first, second] += 0.5
        pairs[np.arange(6), second, first] += 0.5
        pairs = jnp.asarray(pairs, value.dtype)[:, None]
        rows = jax.vmap(lambda p: back(jnp.broadcast_to(p, value.shape))[0])(pairs)
        place = np.zeros((3, 3), int)
        place[first, second] = place[second, first] = np.arange(6)
        return jnp.moveaxis(rows[place], (0, 1), (-2, -1))

    return raman_tensors_of


def _columns(gradient, positions, params, system):
    """d²E/dfield² at positions, the axis of the derivative last.

    Structures do not see one another's field, so one tangent serves the whole batch.
    """
    field = jnp.asarray(system.field)
    _, linear = jax.linearize(lambda f: gradient(f, positions, params, system), field)
    axes = jnp.broadcast_to(jnp.eye(3, dtype=field.dtype)[:, None, :], (3, *field.shape))
    return jnp.moveaxis(jax.vmap(linear)(axes), 0, -1)
