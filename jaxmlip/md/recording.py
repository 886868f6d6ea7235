"""Rows of records inside the compiled loop: written where they are due, at no length known before.

What is recorded is a function of one instant. A plain function sees the state alone; a `Measured`
one calls the potential, with the neighbours of that instant.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp


class Measured(NamedTuple):
    """A record for which the potential is called: (params, motion, bodies, system, integrator) ->
    {name: array}, the system placed where the motion is, with its edges.
    """

    of: Callable


def rows_for(look, size: int) -> dict:
    """Room for `size` records of what `look()` gives."""
    shapes = jax.eval_shape(look)
    return {name: jnp.zeros((size, *x.shape), x.dtype) for name, x in shapes.items()}


def written(rows: dict, index, due, look) -> dict:
    """The rows with what `look()` sees now at `index`, if it is due."""
    empty = lambda: {name: jnp.zeros(x.shape[1:], x.dtype) for name, x in rows.items()}
    seen = jax.lax.cond(due, look, empty)
    out = {}
    for name, x in rows.items():
        old = jax.lax.dynamic_index_in_dim(x, index, keepdims=False)
        new = jnp.where(due, seen[name], old)
        out[name] = jax.lax.dynamic_update_index_in_dim(x, new, index, 0)
    return out
