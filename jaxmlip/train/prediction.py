"""Predictions with the derivatives that labels ask for, each a backward pass over one forward."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from jaxmlip.derivatives.first import predict, with_forces
from jaxmlip.system import System


def labelled_prediction(apply: Callable, terms) -> Callable:
    """`prediction = f(params, system, directions=None)`: that of `apply` with what `terms` need.

    directions [n_graphs, 3]: born_charges are then [n_atoms, 3], those to a field along them.
    """
    first = predict if "stress" in terms else with_forces
    prediction = apply if {"forces", "stress"}.isdisjoint(terms) else first(apply)

    def f(params, system, directions=None):
        out = dict(prediction(params, system))
        if "born_charges" in terms:
            out["born_charges"] = _born_charges(first, apply, params, system, directions)
        return out

    return f


def _born_charges(first, apply, params, system, directions):
    """d(dipole)/dr as the forces of the energy -dipole.field; XLA merges the forward passes."""

    def rows(field):
        def energy(params, system):
            return {"energy": -(apply(params, system)["dipole"] * field).sum(-1)}

        return first(energy)(params, system)["forces"]

    if directions is not None:
        return rows(directions)
    axes = jnp.broadcast_to(
        jnp.eye(3, dtype=system.positions.dtype)[:, None], (3, system.n_graphs, 3)
    )
    return jnp.moveaxis(jax.vmap(rows)(axes), 0, -1)


def random_directions(step, system: System):
    """Unit vectors [n_graphs, 3] with <v v> = 1/3, which the number of the step decides."""
    key = jax.random.fold_in(jax.random.key(0), step)
    signs = jax.random.rademacher(key, (system.n_graphs, 3), system.positions.dtype)
    return signs / jnp.sqrt(jnp.asarray(3, signs.dtype))


def along(labels: dict, directions, system: System) -> dict:
    """The labels with Born charges [n_atoms, 3, 3] to a field along the directions, [n_atoms, 3].

    Per element their squares then are, on average over directions, those of the matrices.
    """
    if "born_charges" not in labels:
        return labels
    born = jnp.einsum("nab,nb->na", labels["born_charges"], directions[system.graph])
    return labels | {"born_charges": born}
