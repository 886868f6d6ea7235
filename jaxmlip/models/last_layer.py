"""Uncertainty of a single model from its last layer: how unusual a structure is to the readout.

The energy is linear in the weights w of the last layer, E = w . phi, phi = dE/dw. With C the sum
of phi phi^T over the training set, the variance of a prediction is

    alpha² phi^T (C + sigma²)^-1 phi

(Bigi, Chong, Ceriotti and Grasselli, 2024, 10.1088/2632-2153/ad805f). The model file holds a matrix
A with A^T A = alpha² (C + sigma²)^-1 beside the weights, so that the uncertainty is |A phi|; it is
found by `train.evaluation.uncertainty`.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import replace

import jax
import jax.numpy as jnp
from flax.traverse_util import flatten_dict, unflatten_dict

from jaxmlip.errors import ModelError
from jaxmlip.potential import Potential, _made

ROOM = "uncertainty"  # of the matrix A among the params
READOUT = re.compile(r"params/(\w+/)?energy(_\d+|_out)?/(out|kernel)")


def last_layer(params) -> tuple[str, ...]:
    """Names of the weights in which the energies of the house's models are linear.

    Raises `ModelError` where there is none of that name: then name them, as 'params/.../kernel'.
    """
    names = tuple(name for name in sorted(flatten_dict(params, sep="/")) if READOUT.fullmatch(name))
    if not names:
        raise ModelError(
            "no weights of a last layer are found: none is called energy/out, energy_<i>/out ...",
            where="last_layer",
            code="JM511",
            fix=f"name some of {', '.join(sorted(flatten_dict(params, sep='/')))}",
        )
    return names


def features(apply: Callable, leaves: Sequence[str]) -> Callable:
    """`out, phi = f(params, system)`: the prediction of `apply`, and dE/dw, [n_graphs, n_features].

    leaves: names of the weights w. E counts in eV, w as it is stored. The forward pass is that of
    the prediction; the backward pass goes through the readouts alone.
    """

    def features_of(params, system):
        flat = flatten_dict(params, sep="/")

        def energy(chosen):
            out = apply(unflatten_dict({**flat, **chosen}, sep="/"), system)
            return out["energy"], out

        value, pull, out = jax.vjp(energy, {name: flat[name] for name in leaves}, has_aux=True)
        (rows,) = jax.vmap(pull)(jnp.eye(len(value), dtype=value.dtype))
        phi = [rows[name].reshape(len(value), -1) for name in leaves]
        return out, jnp.concatenate(phi, axis=-1)

    return features_of


def add_uncertainty(potential, leaves: Sequence[str]) -> Potential:
    """Adds `energy_uncertainty` [n_graphs], eV: |A phi|, with A of `params['uncertainty']`.

    Its gradient is zero: it is watched. `init` gives an A of NaN, for nothing is known of errors
    before `train.evaluation.uncertainty.fit_uncertainty`.
    """

    def init(key, system):
        params = potential.init(key, system)
        flat = flatten_dict(params, sep="/")
        n = sum(flat[name].size for name in leaves)
        return {**params, ROOM: {"factor": jnp.full((n, n), jnp.nan)}}

    def apply(params, system):
        model, factor = split(params)
        out, phi = features(potential.apply, leaves)(model, system)
        spread = jnp.linalg.norm(phi @ factor.astype(phi.dtype).T, axis=-1)
        return {**out, "energy_uncertainty": jax.lax.stop_gradient(spread)}

    make = lambda p: add_uncertainty(p, leaves)
    return _made(make, [potential], init, apply, potential.cutoff)


def forces_uncertainty(potential, leaves: Sequence[str], *, probes: int | None = None) -> Callable:
    """`f(params, system)` -> [n_atoms], eV/Å: standard deviation of a component of the forces.

    potential: without `add_uncertainty`. Root mean square over the three components of the norm of
    A dphi/dr, one backward pass for each of the n_features rows of A. probes: as many backward
    passes over random signs of the rows instead; the result is then off by about
    1 / sqrt(6 probes) of itself, not biased in its square.
    """

    def of(params, system):
        model, factor = split(params)

        def along(row):
            def scalar(positions):
                moved = replace(system, positions=positions)
                _, phi = features(potential.apply, leaves)(model, moved)
                return (phi @ row.astype(phi.dtype)).sum()

            return jax.grad(scalar)(jnp.asarray(system.positions))

        rows = factor if probes is None else _signs(probes, len(factor), factor.dtype) @ factor
        squares = jax.lax.map(lambda row: along(row) ** 2, rows)
        total = squares.sum(0) if probes is None else squares.mean(0)
        return jnp.sqrt(total.mean(-1))

    return of


def _signs(probes, n, dtype):
    return jax.random.rademacher(jax.random.key(0), (probes, n), dtype)


def split(params):
    """(params of the model, the matrix A) of params with an uncertainty."""
    if ROOM not in params:
        raise ModelError(
            "the params have no uncertainty",
            code="JM511",
            fix="train.evaluation.uncertainty.fit_uncertainty",
        )
    return {k: v for k, v in params.items() if k != ROOM}, params[ROOM]["factor"]
