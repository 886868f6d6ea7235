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

from jaxmlip.system import Array, Edges, System, edge_vectors

WORD = 32  # bits that say which atoms of a bin are near
BLOCK = 2**16  # candidate pairs looked at together: what a cache holds
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
    plan = replace(plan, per_bin=whole_words(ceil(most * room)))
    most = int(_most_neighbors(plan, system))
    return replace(plan, width=-(-max(ceil(most * room), 1) // 4) * 4)


@partial(jax.jit, static_argnums=0)
def _fullest_bin(plan, system):
    return _most_in_bin(plan, _bin_of(plan, system)[0])


@partial(jax.jit, static_argnums=0)
def _most_neighbors(plan, system):
    return search(plan, system).most_neighbors


def whole_words(per_bin: int) -> int:
    """The next number of atoms of a bin that fills words of equal length."""
    words = -(-max(per_bin, 1) // WORD)
    return words * -(-max(per_bin, 1) // words)


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
    index, wraps, wrapped = _bin_of(plan, system)
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
    nothing = jnp.full((1, 3), jnp.nan, wrapped.dtype)  # for empty places: near to no atom
    points = jnp.concatenate([wrapped, nothing])
    stencil = _stencil(plan)
    n, around = stencil[1].shape
    block = max(1, min(n, BLOCK // (plan.per_bin**2 * around)))
    bins = np.minimum(np.arange(-(-n // block) * block), n - 1).reshape(-1, block)

    def of_block(bins):
        words = _near_words(
            plan, system, table, points, bins, [jnp.asarray(x)[bins] for x in stencil]
        )
        return nth_bits(words, plan.per_bin // _words(plan), plan.width)

    chosen, counts = jax.lax.map(of_block, jnp.asarray(bins))
    return chosen.reshape(-1, plan.width)[: table.size], counts.max()


def _words(plan):
    return -(-plan.per_bin // WORD)


def _near_words(plan, system, table, points, bins, stencil):
    """Words [B x per_bin, A x words of a bin]: a bit for each atom that is within the cutoff."""
    graph, around, crossed, there, itself = stencil
    own, others, cap = table[bins], table[around], plan.per_bin
    cell = system.cell[graph]
    distance2 = 0.0
    for axis in range(3):
        x = points[:, axis]
        moved = sum(crossed[..., i].astype(x.dtype) * cell[:, None, i, axis] for i in range(3))
        far = x[others] + moved[..., None]
        distance2 += (x[own][:, :, None, None] - far[:, None]) ** 2
    near = distance2 < plan.cutoff**2  # False for NaN, an empty place
    allowed = there & jnp.all(system.pbc[graph][:, None] | (crossed == 0), axis=-1)
    same = itself[:, None, :, None] & np.eye(cap, dtype=bool)[:, None, :]
    near = near & allowed[:, None, :, None] & ~same
    return as_words(near.reshape(len(bins) * cap, -1, cap // _words(plan)))


def as_words(near):
    """Booleans [rows, words, bits] packed, [rows, words]."""
    bits = np.left_shift(np.uint32(1), np.arange(near.shape[-1], dtype=np.uint32))
    return jnp.where(near, bits, jnp.uint32(0)).sum(-1, dtype=jnp.uint32)


def nth_bits(words, n_bits: int, width: int):
    """Where the first `width` set bits of each row are, and how many there are in all.

    words [rows, words] of `n_bits` bits each -> [rows, width] index of the bit in its row, -1
    where there are no more; [rows]. By counting: no scatter, no sort.
    """
    counts = jax.lax.population_count(words).astype(jnp.int32)
    first = jnp.cumsum(counts, axis=1) - counts
    total = first[:, -1] + counts[:, -1]
    slot = jnp.arange(width)
    which = (first[:, None, :] <= slot[:, None]).sum(-1) - 1  # the word, [rows, width]
    rank = slot - jnp.take_along_axis(first, which, axis=1)
    masks = np.array([(2 << b) - 1 for b in range(n_bits)], np.uint64).astype(np.uint32)
    word = jnp.take_along_axis(words, which, axis=1)[..., None]
    up_to = jax.lax.population_count(word & masks).astype(jnp.int32)
    bit = (up_to <= rank[..., None]).sum(-1)
    return jnp.where(slot < total[:, None], which * n_bits + bit, -1).astype(jnp.int32), total


def _edges(plan, system, table, chosen, wraps):
    n_atoms = system.n_atoms
    place = jnp.zeros(n_atoms + 1, jnp.int32)
    place = place.at[table.reshape(-1)].set(jnp.arange(table.size, dtype=jnp.int32))[:n_atoms]
    chosen = chosen[place]  # [n_atoms, width]
    mask = (chosen >= 0) & system.atom_mask[:, None]
    which, row = jnp.divmod(jnp.maximum(chosen, 0), plan.per_bin)
    _, around, crossed, _, _ = map(jnp.asarray, _stencil(plan))
    here = (place // plan.per_bin)[:, None]
    senders = jnp.where(mask, table[around[here, which], row], 0)
    shifts = wraps[senders] - wraps[:, None] - crossed[here, which]
    return Edges(
        senders=senders, receivers=None, shifts=jnp.where(mask[..., None], shifts, 0), mask=mask
    )


def narrowed(system: System, cutoff: float, width: int) -> tuple[System, Array]:
    """The system with only those of its edges (per receiver) that are within `cutoff` (Å), in
    `width` slots; and the most that an atom has, to be compared with `width`.
    """
    edges = system.edges
    lengths2 = (edge_vectors(system) ** 2).sum(-1)
    near = (lengths2 < cutoff**2) & edges.mask
    fill = -near.shape[1] % WORD
    words = as_words(jnp.pad(near, [(0, 0), (0, fill)]).reshape(len(near), -1, WORD))
    chosen, counts = nth_bits(words, WORD, width)
    mask, index = chosen >= 0, jnp.maximum(chosen, 0)
    take = lambda x: jnp.take_along_axis(x, index, axis=1)
    shifts = jnp.stack([take(edges.shifts[..., i]) for i in range(3)], -1)
    edges = replace(edges, senders=take(edges.senders), shifts=shifts, mask=mask)
    return replace(system, edges=edges), counts.max()
