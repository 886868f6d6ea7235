"""Does a field that acts while atoms move have forces at all? Asked on the host, before a run."""

from collections.abc import Callable

import jax.numpy as jnp
import numpy as np

from jaxmlip.cell_list import with_edges
from jaxmlip.derivatives.response.images import along_cell, check_field

TIMES = np.append(0.0, np.geomspace(1e-2, 1e6, 60))  # fs, when a changing field is looked at


def check_forces(
    potential, params, system, *, field: Callable | None = None, strained: bool, where: str
) -> None:
    """`derivatives.check_field` of a batch without edges, in its field or one that changes.

    field: time in fs -> [3] or [n_graphs, 3] V/Å. strained: the stress is asked for, too.
    """
    fields = np.asarray(system.field)[None]
    if field is not None:
        at = lambda t: np.broadcast_to(np.asarray(field(jnp.asarray(t))), system.field.shape)
        fields = np.stack([at(t) for t in TIMES])
    if not along_cell(system, fields).any():
        return
    system = with_edges(system, potential.cutoff)
    check_field(potential.apply, params, system, fields, strained=strained, where=where)
