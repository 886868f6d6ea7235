"""Predictions with the derivatives that labels ask for, each a backward pass over one forward."""

from collections.abc import Callable
from dataclasses import replace

import jax
import jax.numpy as jnp

from jaxmlip.derivatives.first import predict, with_forces
from jaxmlip.system import System


def labelled_prediction(apply: Callable, terms, *, remat: Callable | None = None) -> Callable:
    """`prediction = f(params, system, fields=None, moves=None)`: of `apply` what `terms` need.

    fields [n_graphs, 3]: born_charges are then [n_atoms, 3], those to a field along them.
    moves [n_atoms, k, 3]: the prediction then has `hessian`, the products of the Hessian with them
    (eV/Å² times the unit of moves), [n_atoms, k, 3].
    remat: a policy of `jax.checkpoint_policies`, under which the energy is computed again in
    backward passes where it is not saved: less memory, more work. None: all is saved.
    """
    if remat is not None:
        apply = jax.checkpoint(apply, policy=remat)
    first = predict if "stress" in terms else with_forces
    prediction = apply if {"forces", "stress", "hessian"}.isdisjoint(terms) else first(apply)

    def f(params, system, fields=None, moves=None):
        if moves is None:
            out = dict(prediction(params, system))
        else:
            out = with_products(prediction, params, system, moves)
        if "born_charges" in terms:
            out["born_charges"] = _born_charges(first, apply, params, system, fields)
        return out

    return f


def with_products(prediction: Callable, params, system: System, moves) -> dict:
    """A prediction with forces, and `hessian`: the Hessian times `moves`, both [n_atoms, k, 3].

    One linearised pass gives the forces as its value and -H v as their change along v; the energy
    is differentiated three times in all when the result is differentiated by the parameters. In
    full matrix precision: TF32 ruins curvature.
    """
    positions = jnp.asarray(system.positions)
    moves = jnp.asarray(moves, positions.dtype)

    def at(positions):
        with jax.default_matmul_precision("highest"):
            return prediction(params, replace(system, positions=positions))

    def along(move):
        out, change = jax.jvp(at, (positions,), (move,))
        return out, -change["forces"]

    if moves.shape[1] == 1:
        out, products = along(moves[:, 0])
        return {**out, "hessian": products[:, None]}
    out, products = jax.vmap(along, in_axes=1, out_axes=(None, 1))(moves)
    return {**out, "hessian": products}


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
