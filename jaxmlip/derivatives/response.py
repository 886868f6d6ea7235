"""Responses to an electric field: derivatives of the same energy with respect to `system.field`.

They need an energy that depends on the field: see `jaxmlip.add_field`.
"""

from dataclasses import replace

import jax
import jax.numpy as jnp


def _by_field(apply):
    def energy(field, params, system):
        return apply(params, replace(system, field=field))["energy"].sum()

    return jax.grad(energy)


def dipole(apply):
    """-dE/dfield, [n_graphs, 3], e Å; about the origin of the coordinates where charged."""
    gradient = _by_field(apply)
    return lambda params, system: -gradient(jnp.asarray(system.field), params, system)


def polarizability(apply):
    """-d²E/dfield², [n_graphs, 3, 3], e² Å²/eV (times 14.3996 eV Å/e² for Å³)."""
    gradient = _by_field(apply)

    def polarizability_of(params, system):
        field = jnp.asarray(system.field)
        at = lambda f: gradient(f, params, system)
        return -_columns(at, field)

    return polarizability_of


def born_charges(apply):
    """-d²E/dr dfield, [n_atoms, 3 (of the atom), 3 (of the field)], e.

    Equals d(dipole)/dr; the sum over atoms is the total charge times the unit matrix.
    """

    def energy(positions, field, params, system):
        moved = replace(system, positions=positions, field=field)
        return apply(params, moved)["energy"].sum()

    gradient = jax.grad(energy)

    def born_charges_of(params, system):
        positions, field = jnp.asarray(system.positions), jnp.asarray(system.field)
        at = lambda f: gradient(positions, f, params, system)
        return -_columns(at, field)

    return born_charges_of


def _columns(function, field):
    """d function/d field along each axis, for all structures at once; the axis comes last.

    Structures do not see one another's field, so one tangent serves the whole batch.
    """
    _, linear = jax.linearize(function, field)
    axes = jnp.broadcast_to(jnp.eye(3, dtype=field.dtype)[:, None, :], (3, *field.shape))
    return jnp.moveaxis(jax.vmap(linear)(axes), 0, -1)
