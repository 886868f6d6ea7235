"""Neighbour search on the device, for use inside compiled loops: cell lists in O(N).

Atoms are put into bins of fractional coordinates; the neighbours of an atom lie in its own bin and
in those around it, reached over the boundary with a whole lattice vector, as often as a cell
smaller than the cutoff asks for. So triclinic, tiny, left-handed, slab, wire and open structures
are one case, and a batch is one list of bins. Sizes are static (`ListPlan`, from the host); what
does not fit is told (`Search.complete`), never a lost pair.
"""

from dataclasses import dataclass, replace
from functools import partial
from math import ceil
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxmlip.bitmaps import WORD, nth_bits, packed
from jaxmlip.system import Array, Edges, System, edge_vectors

BLOCK = {"cpu": 2**17}  # candidate pairs looked at together: what a cache holds
DEVICE = 2**27  # the same for a device with memory of its own
MOST_BINS = 64  # along an axis
_product = partial(jnp.einsum, "...i,...ij->...j", precision=jax.lax.Precision.HIGHEST)


@dataclass(frozen=True, kw_only=True)
class ListPlan:
    """Static sizes of a search; hashable, so that it may be a static argument of `jit`."""

    cutoff: float  # Å, with the skin
    bins: tuple[tuple[int, int, int], ...]  # of each structure, along its cell vectors
    reach: tuple[tuple[int, int, int], ...]  # bins to look at on either side
    per_bin: int = 1  # most atoms of a bin
    width: int = 4  # most neighbours of an atom


class Search(NamedTuple):
    """Edges of the per-receiver layout, and what decides whether they are all."""

    edges: Edges
    most_in_bin: Array  # to be compared with `per_bin`
    most_neighbors: Array  # to be compared with `width`
    covered: Array  # whether the bins reach the cutoff (a cell may have shrunk)

    def complete(self, plan: ListPlan) -> Array:
        """True if every pair within the cutoff is listed."""
        fits = (self.most_in_bin <= plan.per_bin) & (self.most_neighbors <= plan.width)
        return fits & self.covered


# --- sizes, on the host --------------------------------------------------------------------------


def plan_list(
    system: System,
    cutoff: float,
    *,
    room: float = 1.0,
    shrink: float = 0.0,
    also: ListPlan | None = None,
) -> ListPlan:
    """Sizes for the batch as it is (host).

    cutoff: Å, with the skin. room: factor on the counts found, > 1 for what may come. shrink: the
    part by which heights of cells may fall before `Search.covered` says no. also: an earlier plan
    whose cells and extents are to be covered, too.
    """
    system = jax.tree.map(np.asarray, replace(system, edges=None))
    sizes = [_sizes(system, i, cutoff, shrink) for i in range(system.n_graphs)]
    bins, reach = (tuple(s[k] for s in sizes) for k in (0, 1))
    if also is not None:  # wider bins and as many of them cover what either plan did
        bins = np.minimum(bins, also.bins)
        reach = np.maximum(reach, also.reach)
        reach = np.where(system.pbc, reach, np.minimum(reach, bins - 1))
        bins, reach = (tuple(map(tuple, x.tolist())) for x in (bins, reach))
    plan = ListPlan(cutoff=float(cutoff), bins=bins, reach=reach)
    most = int(_fullest_bin(plan, system))
    plan = replace(plan, per_bin=max(ceil(most * room), 1))
    most = int(_most_neighbors(plan, system))
    return replace(plan, width=-(-max(ceil(most * room), 1) // 4) * 4)


@partial(jax.jit, static_argnums=0)
def _fullest_bin(plan, system):
    return _most_in_bin(plan, _bin_of(plan, system)[0])


@partial(jax.jit, static_argnums=0)
def _most_neighbors(plan, system):
    return search(plan, system).most_neighbors


def _sizes(system, i, cutoff, shrink):
    """(bins, reach) of structure i."""
    cell, pbc = system.cell[i].astype(float), system.pbc[i]
    positions = system.positions[(system.graph == i) & system.atom_mask].astype(float)
    inverse = np.linalg.inv(cell)
    heights = 1 / np.linalg.norm(inverse, axis=0)  # between opposite faces
    extent = np.ptp(positions @ inverse, axis=0) if len(positions) else np.zeros(3)
    length = np.where(pbc, heights * (1 - shrink), np.maximum(extent, 1e-3) * heights)
    bins = np.clip((length / cutoff).astype(int), 1, MOST_BINS)
    reach = np.ceil(cutoff / (length / bins) - 1e-9).astype(int)
    reach = np.where(pbc, reach, np.minimum(reach, bins - 1))
    return tuple(map(int, bins)), tuple(map(int, reach))


def _numbers_of_bins(plan):
    return np.array([int(np.prod(b)) for b in plan.bins])


def _stencil(plan):
    """Of every bin: its structure, the bins around it [n_bins, A], the lattice vectors crossed on
    the way [n_bins, A, 3], and which of them are there at all and are the bin itself [n_bins, A].
    """
    first = np.concatenate([[0], np.cumsum(_numbers_of_bins(plan))])
    parts = [_around(b, r) for b, r in zip(plan.bins, plan.reach, strict=True)]
    most = max(index.shape[1] for index, _ in parts)
    fill = lambda x: np.pad(x, [(0, 0), (0, most - x.shape[1])] + [(0, 0)] * (x.ndim - 2))
    around = np.concatenate([fill(index + f) for (index, _), f in zip(parts, first, strict=False)])
    crossed = np.concatenate([fill(c) for _, c in parts])
    there = np.concatenate([fill(np.ones(index.shape, bool)) for index, _ in parts])
    graph = np.repeat(np.arange(len(parts)), _numbers_of_bins(plan))
    itself = there & (around == np.arange(first[-1])[:, None]) & (crossed == 0).all(-1)
    return graph, around, crossed, there, itself


def _around(bins, reach):
    """Bins around every bin of one structure [n_bins, A] and lattice vectors crossed."""
    grid = lambda axes: np.stack(np.meshgrid(*axes, indexing="ij"), -1).reshape(-1, 3)
    steps = grid([np.arange(-m, m + 1) for m in reach])
    crossed, place = np.divmod(grid([np.arange(n) for n in bins])[:, None] + steps, bins)
    index = (place[..., 0] * bins[1] + place[..., 1]) * bins[2] + place[..., 2]
    return index.astype(np.int32), crossed.astype(np.int32)


# --- the search, on the device -------------------------------------------------------------------


def search(plan: ListPlan, system: System) -> Search:
    """All pairs within `plan.cutoff`, per receiver; to be compiled with a static plan."""
    system = jax.tree.map(jnp.asarray, replace(system, edges=None))
    # else what each pair gathers is computed anew for it
    index, wraps, wrapped = jax.lax.optimization_barrier(_bin_of(plan, system))
    table = _table(plan, index)
    chosen, most = _near(plan, system, table, wrapped)
    edges = _edges(plan, system, table, chosen, wraps)
    return Search(edges, _most_in_bin(plan, index), most, _covered(plan, system))


def _bin_of(plan, system):
    """Bin of each atom (one more for padding), lattice vectors taken off, and what is left."""
    graph, cell, pbc = system.graph, system.cell, system.pbc[system.graph]
    inside = _product(system.positions, jnp.linalg.inv(cell)[graph])
    wraps = jnp.where(pbc, jnp.floor(inside), 0)
    low, high = _open_range(system, inside)
    share = jnp.where(pbc, inside - wraps, ((inside - low[graph]) / (high - low)[graph]))
    bins = jnp.asarray(plan.bins)[graph]
    place = jnp.clip((share * bins).astype(jnp.int32), 0, bins - 1)
    index = (place[:, 0] * bins[:, 1] + place[:, 1]) * bins[:, 2] + place[:, 2]
    number = _numbers_of_bins(plan)
    index = index + jnp.asarray(np.cumsum(number) - number)[graph]
    index = jnp.where(system.atom_mask, index, number.sum()).astype(jnp.int32)
    return index, wraps.astype(jnp.int32), system.positions - _product(wraps, cell[graph])


def _open_range(system, inside):
    """Where the bins of open axes begin and end, in fractions of cell vectors, [n_graphs, 3]."""
    real, n = system.atom_mask[:, None], system.n_graphs
    ends = partial(jax.ops.segment_max, num_segments=n, indices_are_sorted=True)
    low = -ends(jnp.where(real, -inside, -jnp.inf), system.graph)
    high = ends(jnp.where(real, inside, -jnp.inf), system.graph)
    empty = ~jnp.isfinite(low)
    low = jnp.where(empty, 0, low)
    return low, jnp.maximum(jnp.where(empty, 0, high), low + 1e-3)


def _covered(plan, system):
    """Whether `reach` bins are at least as wide as the cutoff, along every axis."""
    inverse, graph = jnp.linalg.inv(system.cell), system.graph
    low, high = _open_range(system, _product(system.positions, inverse[graph]))
    length = jnp.where(system.pbc, 1, high - low) / jnp.linalg.norm(inverse, axis=1)
    bins, reach = jnp.asarray(plan.bins), jnp.asarray(plan.reach)
    everything = ~system.pbc & (reach >= bins - 1)
    return jnp.all(everything | (length / bins * reach >= plan.cutoff * (1 - 1e-6)))


def _most_in_bin(plan, index):
    n = int(_numbers_of_bins(plan).sum())
    return jnp.zeros(n + 1, jnp.int32).at[index].add(1)[:n].max()


def _table(plan, index):
    """Atoms of each bin [n_bins, per_bin], n_atoms where empty."""
    n_bins, n_atoms = int(_numbers_of_bins(plan).sum()), len(index)
    order = jnp.argsort(index, stable=True).astype(jnp.int32)
    sorted_index = index[order]
    first = jnp.searchsorted(sorted_index, jnp.arange(n_bins + 1, dtype=jnp.int32))
    rank = jnp.arange(n_atoms) - first[sorted_index]
    fits = (rank < plan.per_bin) & (sorted_index < n_bins)
    slot = jnp.where(fits, sorted_index * plan.per_bin + rank, n_bins * plan.per_bin)
    empty = jnp.full(n_bins * plan.per_bin, n_atoms, jnp.int32)
    return empty.at[slot].set(order, mode="drop").reshape(n_bins, plan.per_bin)


def _near(plan, system, table, wrapped):
    """Places of the neighbours among the candidates of their bin, [n_bins x per_bin, width], -1
    for none; and the most that an atom has.
    """
    n, around = _stencil(plan)[1].shape
    block = max(1, min(n, _at_once() // (plan.per_bin**2 * around)))
    bins = jnp.asarray(np.minimum(np.arange(-(-n // block) * block), n - 1).reshape(-1, block))
    # three loops: in one, what is gathered and found is so anew for every use
    places = jax.lax.map(partial(_candidates, plan, system, table, wrapped), bins)
    words = jax.lax.map(partial(_near_words, plan), (bins, *places))
    chosen, counts = jax.lax.map(partial(_listed, plan), words)
    return chosen.reshape(-1, plan.width)[: table.size], counts.max()


def _at_once():
    return BLOCK.get(jax.default_backend(), DEVICE)


def _candidates(plan, system, table, wrapped, bins):
    """Of some bins, for each axis (Å): atoms [B, per_bin], and those that may be near in groups of
    a word, [B, n_words, 32]; NaN where there is none.
    """
    graph, around, crossed, there, _ = (jnp.asarray(x)[bins] for x in _stencil(plan))
    allowed = there & jnp.all(system.pbc[graph][:, None] | (crossed == 0), axis=-1)
    here, far = [], []
    for axis in range(3):
        x = jnp.append(wrapped[:, axis], jnp.nan)
        cell = system.cell[graph, None, :, axis]
        moved = sum(crossed[..., i].astype(x.dtype) * cell[..., i] for i in range(3))
        moved = jnp.where(allowed, moved, jnp.nan)
        here.append(x[table[bins]])
        far.append(_whole_words(x[table[around]] + moved[..., None]))
    return here, far


def _whole_words(x):
    """[B, A, per_bin] -> [B, n_words, 32], filled up with NaN."""
    x = x.reshape(len(x), -1)
    x = jnp.pad(x, [(0, 0), (0, -x.shape[1] % WORD)], constant_values=jnp.nan)
    return x.reshape(len(x), -1, WORD)


def _near_words(plan, places):
    """Words [n_words, B x per_bin]: a bit for each candidate that is within the cutoff."""
    bins, here, far = places
    apart = [a[:, None, None] - x[..., None] for a, x in zip(here, far, strict=True)]
    near = sum(x**2 for x in apart) < plan.cutoff**2  # [B, n_words, 32, per_bin]; False for NaN
    words, itself = packed(near), jnp.asarray(_stencil(plan)[4])[bins]
    me = jnp.argmax(itself, axis=1)[:, None] * plan.per_bin + np.arange(plan.per_bin)
    bit = jnp.left_shift(jnp.uint32(1), (me % WORD).astype(jnp.uint32))[:, None]
    of_me = me[:, None] // WORD == np.arange(words.shape[1])[:, None]
    words = words & ~jnp.where(of_me, bit, jnp.uint32(0))
    return words.transpose(1, 0, 2).reshape(words.shape[1], -1)


def _listed(plan, words):
    chosen, counts = nth_bits(words, plan.width)
    return chosen.T, counts.max()


def _edges(plan, system, table, chosen, wraps):
    """The edges of all atoms, some atoms after the others: their indices then stay in a cache."""
    n = system.n_atoms
    place = jnp.zeros(n + 1, jnp.int32)
    place = place.at[table.reshape(-1)].set(jnp.arange(table.size, dtype=jnp.int32))
    rows = max(1, min(n, _at_once() // (8 * plan.width)))
    atoms = np.minimum(np.arange(-(-n // rows) * rows), n - 1).reshape(-1, rows)
    of_some = partial(_edges_of, plan, system.atom_mask, table, chosen, wraps, place)
    edges = jax.lax.map(of_some, jnp.asarray(atoms))
    return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:])[:n], edges)


def _edges_of(plan, real, table, chosen, wraps, place, atoms):
    place = place[atoms]
    chosen = chosen[place]  # [atoms, width]
    mask = (chosen >= 0) & real[atoms, None]
    which, row = jnp.divmod(jnp.maximum(chosen, 0), plan.per_bin)
    _, around, crossed, _, _ = map(jnp.asarray, _stencil(plan))
    here = (place // plan.per_bin)[:, None]
    senders = jnp.where(mask, table[around[here, which], row], 0)
    shifts = wraps[senders] - wraps[atoms, None] - crossed[here, which]
    shifts = jnp.where(mask[..., None], shifts, 0)
    return Edges(senders=senders, receivers=None, shifts=shifts, mask=mask)


def narrowed(system: System, cutoff: float, width: int) -> tuple[System, Array]:
    """The system with only those of its edges (per receiver) that are within `cutoff` (Å), in
    `width` slots; and the most that an atom has, to be compared with `width`.
    """
    edges = system.edges
    lengths2 = (edge_vectors(system) ** 2).sum(-1)
    near = (lengths2 < cutoff**2) & edges.mask
    near = jnp.pad(near.T, [(0, -near.shape[1] % WORD), (0, 0)]).reshape(-1, WORD, len(near))
    chosen, counts = nth_bits(packed(near), width)
    mask, index = chosen.T >= 0, jnp.maximum(chosen.T, 0)
    take = lambda x: jnp.take_along_axis(x, index, axis=1)
    shifts = jnp.stack([take(edges.shifts[..., i]) for i in range(3)], -1)
    edges = replace(edges, senders=take(edges.senders), shifts=shifts, mask=mask)
    return replace(system, edges=edges), counts.max()
