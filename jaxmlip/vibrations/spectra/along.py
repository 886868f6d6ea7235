"""What a potential says of the frames of a trajectory: in equal batches, by one program."""

from dataclasses import replace

import jax
import numpy as np

from jaxmlip.errors import DataError
from jaxmlip.neighbors import find_edges
from jaxmlip.system import Edges, System

AT_ONCE = 512  # atoms evaluated together


def along(function, params, system: System, positions, *, cutoff: float, cells=None, moving=None):
    """function(params, frames) of every frame, [n_frames, ...]; host arrays.

    function: gives one value a structure, such as `derivatives.dipole(apply)`,
    `derivatives.polarizability(apply)`; with moving [n_frames, n_atoms, 3] it is called with these
    as a third argument, as `derivatives.response.current(apply)` is with velocities. system: one
    structure, whose charge, field, and cell (unless there are cells [n_frames, 3, 3]) all frames
    share. positions: [n_frames, n_atoms, 3] Å. cutoff: Å, of the potential.
    """
    r = np.asarray(positions)
    if system.n_graphs != 1 or r.shape[1:] != (system.n_atoms, 3):
        raise DataError(f"positions of shape {r.shape} for a structure of {system.n_atoms} atoms")
    cells = np.broadcast_to(np.asarray(system.cell[0] if cells is None else cells), (len(r), 3, 3))
    pbc = np.asarray(system.pbc[0])
    size = min(max(AT_ONCE // system.n_atoms, 1), len(r))
    compiled, out, width = jax.jit(function), [], 0
    for start in range(0, len(r), size):
        chosen = np.minimum(np.arange(start, start + size), len(r) - 1)
        edges = [find_edges(r[i], cells[i], pbc, cutoff) for i in chosen]
        most = max(e.senders.shape[1] for e in edges)
        width = width if most <= width else most if start == 0 else most * 5 // 4
        frames = _together(system, r[chosen], cells[chosen], edges, width)
        more = () if moving is None else (np.asarray(moving)[chosen].reshape(-1, 3),)
        found = compiled(params, frames, *more)
        out.append(jax.tree.map(np.asarray, found))
    return jax.tree.map(lambda *parts: np.concatenate(parts)[: len(r)], *out)


def _together(system, positions, cells, edges, width) -> System:
    """A batch of frames of one structure, with `width` slots for neighbours."""
    m, n, _ = positions.shape
    dtype = np.asarray(system.positions).dtype
    many = lambda name: np.repeat(np.asarray(getattr(system, name)), m, axis=0)
    return replace(
        system,
        positions=positions.reshape(-1, 3).astype(dtype),
        numbers=np.tile(system.numbers, m),
        graph=np.repeat(np.arange(m, dtype=np.int32), n),
        cell=cells.astype(dtype),
        edges=_joined([_widened(e, width) for e in edges], n),
        **{name: many(name) for name in ("pbc", "charge", "spin", "field")},
    )


def _joined(edges, n_atoms) -> Edges:
    all_of = lambda name: np.concatenate([getattr(e, name) for e in edges])
    first = np.repeat(n_atoms * np.arange(len(edges), dtype=np.int32), n_atoms)[:, None]
    senders = (all_of("senders") + first).astype(np.int32)
    return Edges(senders=senders, receivers=None, shifts=all_of("shifts"), mask=all_of("mask"))


def _widened(edges, width):
    """More slots for neighbours, so that all batches have one shape."""
    extra = width - edges.senders.shape[1]
    fill = lambda x: np.pad(x, [(0, 0), (0, extra)] + [(0, 0)] * (x.ndim - 2))
    return jax.tree.map(fill, edges)
