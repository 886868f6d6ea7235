"""Neighbour search on the host, for any cell and any periodicity, as `Edges` with a capacity.

The search is vesin's (every image of a small cell is found); here its pairs are sorted by
receiver and laid out, per receiver or flat, in arrays whose size comes from a geometric ladder.
"""

from dataclasses import replace

import numpy as np

from jaxmlip.errors import DataError, UsageError
from jaxmlip.system import Edges, System, ladder, pad

LARGEST_CUTOFF = 1e4  # Å, of what model files may ask for
MOST_PAIRS = 1e9  # of a crystal: minutes and tens of GB


def neighbor_pairs(positions, cell, pbc, cutoff: float):
    """All directed pairs within `cutoff` (Å): senders [n], receivers [n] (sorted), shifts [n, 3].

    positions [n_atoms, 3], cell [3, 3] (rows), pbc [3]. Images of an atom are its own neighbours.
    """
    from vesin import NeighborList

    positions = np.ascontiguousarray(positions, np.float64)
    pbc = np.broadcast_to(np.asarray(pbc, bool), (3,))
    if len(positions) == 0:
        return np.zeros(0, np.int32), np.zeros(0, np.int32), np.zeros((0, 3), np.int32)
    cutoff = float(cutoff)
    if not 0 < cutoff < np.inf:
        raise UsageError(f"the cutoff is {cutoff} Å", fix="give a length above zero")
    if not pbc.any():  # the search costs cutoff³, whatever there is to be found
        cutoff = min(cutoff, 1.001 * float(np.linalg.norm(np.ptp(positions, axis=0))) + 0.1)
    _refuse_endless(len(positions), cell, pbc, cutoff)
    search = NeighborList(cutoff=cutoff, full_list=True)
    first, second, shifts = search.compute(
        points=positions,
        box=np.ascontiguousarray(cell, np.float64),
        periodic=pbc.copy(),
        quantities="ijS",
    )
    order = np.lexsort((*shifts.T, first, second))
    as_int = lambda x: np.asarray(x)[order].astype(np.int32)
    return as_int(first), as_int(second), as_int(shifts)


def _refuse_endless(n, cell, pbc, cutoff):
    """Before a search beyond the cell: its pairs, for a uniform density along periodic axes."""
    lengths = np.maximum(np.linalg.norm(np.asarray(cell, float), axis=1)[pbc], 1e-3)
    pairs = float(n) ** 2 * np.prod(2 * cutoff / lengths) * np.pi / 6
    if len(lengths) and cutoff > lengths.min() and pairs > MOST_PAIRS:
        raise UsageError(
            f"within {cutoff:g} Å there are about {pairs:.0e} pairs, against {MOST_PAIRS:.0e}",
            fix="a shorter cutoff",
        )


def find_edges(
    positions, cell, pbc, cutoff: float, *, capacity: int | None = None, flat: bool = False
) -> Edges:
    """The `Edges` of one structure within `cutoff` (Å).

    capacity: neighbours per atom (or edges, if `flat`); by default `width` of the most neighbours
    an atom has, all other atoms in a molecule at most (edges: the next size of the ladder).
    Raises `DataError` if the structure needs more than `capacity`.
    """
    senders, receivers, shifts = neighbor_pairs(positions, cell, pbc, cutoff)
    if flat:
        return _flat(senders, receivers, shifts, len(positions), capacity)
    most = None if np.any(pbc) else max(len(positions) - 1, 1)
    return _per_receiver(senders, receivers, shifts, len(positions), capacity, most)


def edges_within(system: System, *, cutoff: float) -> System:
    """The system with new edges within `cutoff` (Å), host.

    Arrays of edges never get smaller, and by a quarter or more if they must get larger, so that a
    structure that shrinks is not compiled anew at every step.
    """
    real = int(np.asarray(system.atom_mask).sum())
    old, flat = system.edges, system.edges is not None and system.edges.receivers is not None
    positions = np.asarray(system.positions)[:real]
    edges = find_edges(
        positions, np.asarray(system.cell)[0], np.asarray(system.pbc)[0], cutoff, flat=flat
    )
    numbers, graph = (np.asarray(x)[:real] for x in (system.numbers, system.graph))
    found = replace(system, positions=positions, numbers=numbers, graph=graph, edges=edges)
    size, held = edges.senders.shape[-1], 0 if old is None else old.senders.shape[-1]
    size = held if size <= held else max(size, width(held * 5 // 4))
    return pad(found, n_atoms=system.n_atoms, **{"n_edges" if flat else "n_neighbors": size})


def width(needed: int) -> int:
    """The multiple of 4 (8 beyond 64, 16 beyond 128 ...) that holds so many neighbours of an atom.

    Finer than the ladder: what pads every atom is computed for every atom.
    """
    step = 4
    while needed > 16 * step:
        step *= 2
    return -(-max(needed, 1) // step) * step


def _size(needed: int, capacity: int | None, what: str, default: int) -> int:
    if capacity is None:
        return default
    if needed > capacity:
        raise DataError(
            f"the structure needs {needed} {what}, capacity is {capacity}",
            fix=f"give a capacity of at least {needed}, or None",
        )
    return capacity


def _flat(senders, receivers, shifts, n_atoms, capacity) -> Edges:
    size = _size(len(senders), capacity, "edges", ladder(max(len(senders), 1)))
    extra = size - len(senders)
    last = max(n_atoms - 1, 0)
    grow = lambda x, v: np.pad(x, [(0, extra)] + [(0, 0)] * (x.ndim - 1), constant_values=v)
    return Edges(
        senders=grow(senders, last),
        receivers=grow(receivers, last),
        shifts=grow(shifts, 0),
        mask=grow(np.ones(len(senders), bool), False),
    )


def _per_receiver(senders, receivers, shifts, n_atoms, capacity, most) -> Edges:
    counts = np.bincount(receivers, minlength=n_atoms)
    needed = int(counts.max(initial=0))
    default = width(needed) if most is None else min(width(needed), most)
    slots = _size(needed, capacity, "neighbours of one atom", default)
    column = np.arange(len(receivers)) - np.repeat(np.cumsum(counts) - counts, counts)
    out = Edges(
        senders=np.zeros((n_atoms, slots), np.int32),
        receivers=None,
        shifts=np.zeros((n_atoms, slots, 3), np.int32),
        mask=np.zeros((n_atoms, slots), bool),
    )
    out.senders[receivers, column] = senders
    out.shifts[receivers, column] = shifts
    out.mask[receivers, column] = True
    return out
