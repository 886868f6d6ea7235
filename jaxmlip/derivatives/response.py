"""Responses to an electric field: derivatives of the same energy with respect to `system.field`.

They need an energy that depends on the field (see `jaxmlip.add_field`) and refuse one that does
not, where every response would be zero without a word.
"""

from dataclasses import replace

import jax
import jax.numpy as jnp
from jax.interpreters.partial_eval import dce_jaxpr

from jaxmlip.errors import UsageError


def depends_on_field(apply, params, system) -> bool:
    """Whether the energy of `apply` is a function of `system.field` at all, from its program."""
    energy = lambda field: apply(params, replace(system, field=field))["energy"].sum()
    jaxpr = jax.make_jaxpr(energy)(jnp.asarray(system.field)).jaxpr
    return dce_jaxpr(jaxpr, [True])[1][0]


def _by_field(apply):
    """dE/dfield as a function of (field, positions, params, system)."""

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
    """-dE/dfield, [n_graphs, 3], e Å; about the origin of the coordinates where charged."""
    gradient = _by_field(apply)

    def dipole_of(params, system):
        field, positions = jnp.asarray(system.field), jnp.asarray(system.positions)
        return -gradient(field, positions, params, system)

    return dipole_of


def polarizability(apply):
    """-d²E/dfield², [n_graphs, 3, 3], e² Å²/eV (times 14.3996 eV Å/e² for Å³)."""
    gradient = _by_field(apply)

    def polarizability_of(params, system):
        positions = jnp.asarray(system.positions)
        at = lambda field: gradient(field, positions, params, system)
        return -_columns(at, jnp.asarray(system.field))

    return polarizability_of


def born_charges(apply):
    """-d²E/dr dfield, [n_atoms, 3 (of the atom), 3 (of the field)], e.

    Equals d(dipole)/dr; the sum over atoms is the total charge times the unit matrix. For dipoles
    of point charges in a periodic cell it depends on the images chosen: molecules only.
    """
    gradient = _by_field(apply)

    def born_charges_of(params, system):
        positions = jnp.asarray(system.positions)
        along = lambda r: gradient(jnp.asarray(system.field), r, params, system)
        _, back = jax.vjp(along, positions)
        axes = jnp.broadcast_to(
            jnp.eye(3, dtype=positions.dtype)[:, None, :], (3, system.n_graphs, 3)
        )
        rows = jax.vmap(lambda axis: back(axis)[0])(axes)  # [field, n_atoms, 3]
        return -jnp.moveaxis(rows, 0, -1)

    return born_charges_of


def _columns(function, field):
    """d function/d field along each axis, for all structures at once; the axis comes last.

    Structures do not see one another's field, so one tangent serves the whole batch.
    """
    _, linear = jax.linearize(function, field)
    axes = jnp.broadcast_to(jnp.eye(3, dtype=field.dtype)[:, None, :], (3, *field.shape))
    return jnp.moveaxis(jax.vmap(linear)(axes), 0, -1)
