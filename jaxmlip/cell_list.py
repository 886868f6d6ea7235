"""Neighbour search on the device, for use inside compiled loops: cell lists in O(N).

Atoms are put into bins of fractional coordinates; the neighbours of an atom lie in its own bin and
in those around it, reached over the boundary with a whole lattice vector, as often as a cell
smaller than the cutoff asks for. So triclinic, tiny, left-handed, slab, wire and open structures
are one case, and a batch is one list of bins. Sizes are static (`ListPlan`, from the host); what
does not fit is told (`Search.complete`), never a lost pair.
"""

from dataclasses import replace
from functools import partial
from math import ceil
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxmlip.bins import ListPlan, bins_of, grid_of, numbers_of_bins
from jaxmlip.bitmaps import WORD, nth_bits, packed
from jaxmlip.images import Images, edges_of
from jaxmlip.system import Array, Edges, System

BLOCK = {"cpu": 2**17}  # candidate pairs looked at together: what a cache holds
DEVICE = 2**27  # the same for a device with memory of its own
_product = partial(jnp.einsum, "...i,...ij->...j", precision=jax.lax.Precision.HIGHEST)


class Search(NamedTuple):
    """The pairs, per receiver, and what decides whether they are all."""

    images: Images
    most_in_bin: Array  # to be compared with `per_bin`
    most_neighbors: Array  # to be compared with `width`
    covered: Array  # whether the bins reach the cutoff (a cell may have shrunk)

    @property
    def edges(self) -> Edges:
        """The pairs as edges."""
        return edges_of(self.images)

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
    sizes = [bins_of(system, i, cutoff, shrink) for i in range(system.n_graphs)]
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


# --- the search, on the device -------------------------------------------------------------------


def search(plan: ListPlan, system: System) -> Search:
    """All pairs within `plan.cutoff`, per receiver; to be compiled with a static plan."""
    system = jax.tree.map(jnp.asarray, replace(system, edges=None))
    # else what each pair gathers is computed anew for it
    index, wraps, wrapped = jax.lax.optimization_barrier(_bin_of(plan, system))
    table, shifts, places = _images(plan, system, _table(plan, index), wraps, wrapped)
    place = _place_of(plan, system, table)
    chosen, most = _near(plan, places, place)
    images = _listed(plan, system, table, shifts, place, chosen, wraps)
    return Search(images, _most_in_bin(plan, index), most, _covered(plan, system))


def with_edges(system: System, cutoff: float) -> System:
    """A batch with all edges within the cutoff, Å (host)."""
    found = jax.jit(search, static_argnums=0)(plan_list(system, cutoff), system)
    return replace(system, edges=replace(found.edges, images=None))


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
    number = numbers_of_bins(plan)
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
    n = int(numbers_of_bins(plan).sum())
    return jnp.zeros(n + 1, jnp.int32).at[index].add(1)[:n].max()


def _table(plan, index):
    """Atoms of each bin [n_bins, per_bin], n_atoms where empty."""
    n_bins, n_atoms = int(numbers_of_bins(plan).sum()), len(index)
    order = jnp.argsort(index, stable=True).astype(jnp.int32)
    sorted_index = index[order]
    first = jnp.searchsorted(sorted_index, jnp.arange(n_bins + 1, dtype=jnp.int32))
    rank = jnp.arange(n_atoms) - first[sorted_index]
    fits = (rank < plan.per_bin) & (sorted_index < n_bins)
    slot = jnp.where(fits, sorted_index * plan.per_bin + rank, n_bins * plan.per_bin)
    empty = jnp.full(n_bins * plan.per_bin, n_atoms, jnp.int32)
    return empty.at[slot].set(order, mode="drop").reshape(n_bins, plan.per_bin)


def _images(plan, system, table, wraps, wrapped):
    """Of the places of bins and their images: atom [n_images, per_bin] (n_atoms where there is
    none), lattice vectors added [n_images, per_bin, 3], and x, y, z in Å (NaN where none).
    """
    grid = jax.tree.map(jnp.asarray, grid_of(plan))
    allowed = jnp.all(system.pbc[grid.graph] | (grid.crossed == 0), axis=-1)
    table = jnp.where(allowed[:, None], table[grid.bin], system.n_atoms)
    moved = _product(grid.crossed.astype(wrapped.dtype), system.cell[grid.graph])
    filled = lambda x, axis: jnp.append(x[:, axis], jnp.zeros((), x.dtype))[table]
    shifts = [grid.crossed[:, None, i] - filled(wraps, i) for i in range(3)]
    none = jnp.where(table < system.n_atoms, 0, jnp.asarray(jnp.nan, wrapped.dtype))
    places = [filled(wrapped, i) + moved[:, None, i] + none for i in range(3)]
    return table, jnp.stack(shifts, -1), jax.lax.optimization_barrier(places)


def _place_of(plan, system, table):
    """Place of each atom among those of all bins; 0 for one that is in none."""
    filled = table[jnp.asarray(grid_of(plan).home)].reshape(-1)
    places = jnp.arange(len(filled), dtype=jnp.int32)
    return jnp.zeros(system.n_atoms + 1, jnp.int32).at[filled].set(places)[:-1]


def _near(plan, places, place):
    """Which candidates of its bin are neighbours of an atom, [n_atoms, width], -1 for none; and the
    most that there are.
    """
    n, around = len(grid_of(plan).home), grid_of(plan).steps.shape[1]
    bins = _blocks(np.arange(n), plan.per_bin**2 * around)
    # some loops: in one, what is gathered and found is so anew for every use
    found = jax.lax.map(partial(_candidates, plan, places), bins)
    words = jax.lax.map(partial(_near_words, plan), found)
    words = words.reshape(-1, words.shape[-1])
    words = jax.lax.map(lambda rows: words[rows].T, _blocks(place, 8 * plan.width))
    chosen, counts = jax.lax.map(partial(_chosen, plan), words)
    return chosen.reshape(-1, plan.width)[: len(place)], counts.max()


def _blocks(x, cost):
    """[n] -> [blocks, m], the last one repeated, so that m of them cost what is done at once."""
    m = max(1, min(len(x), _at_once() // cost))
    which = np.minimum(np.arange(-(-len(x) // m) * m), len(x) - 1)
    return jnp.asarray(x)[which].reshape(-1, m)


def _at_once():
    return BLOCK.get(jax.default_backend(), DEVICE)


def _steps(plan, bins):
    """From the images of bins to those around, [B, A], and whether they are there."""
    grid = grid_of(plan)
    if len(grid.steps) == 1:
        return jnp.asarray(grid.steps), jnp.asarray(grid.there)
    graph = jnp.asarray(grid.graph[grid.home])[bins]
    return jnp.asarray(grid.steps)[graph], jnp.asarray(grid.there)[graph]


def _candidates(plan, places, bins):
    """Of some bins, for each axis (Å): atoms [B, per_bin], and those that may be near in groups of
    a word, [B, n_words, 32]; NaN where there is none.
    """
    home = jnp.asarray(grid_of(plan).home)[bins]
    steps, there = _steps(plan, bins)
    around = jnp.where(there, home[:, None] + steps, 0)
    far = [jnp.where(there[..., None], x[around], jnp.nan) for x in places]
    return [x[home] for x in places], list(map(_whole_words, far)), bins


def _whole_words(x):
    """[B, A, per_bin] -> [B, n_words, 32], filled up with NaN."""
    x = x.reshape(len(x), -1)
    x = jnp.pad(x, [(0, 0), (0, -x.shape[1] % WORD)], constant_values=jnp.nan)
    return x.reshape(len(x), -1, WORD)


def _near_words(plan, candidates):
    """Words [B x per_bin, n_words]: a bit for each candidate that is within the cutoff."""
    here, far, bins = candidates
    apart = [a[:, None, None] - x[..., None] for a, x in zip(here, far, strict=True)]
    near = sum(x**2 for x in apart) < plan.cutoff**2  # [B, n_words, 32, per_bin]; False for NaN
    words, (steps, there) = packed(near), _steps(plan, bins)
    me = jnp.argmax(there & (steps == 0), axis=1)[:, None] * plan.per_bin
    me = me + np.arange(plan.per_bin)
    bit = jnp.left_shift(jnp.uint32(1), (me % WORD).astype(jnp.uint32))[:, None]
    of_me = me[:, None] // WORD == np.arange(words.shape[1])[:, None]
    words = words & ~jnp.where(of_me, bit, jnp.uint32(0))
    return words.swapaxes(1, 2).reshape(-1, words.shape[1])


def _chosen(plan, words):
    chosen, counts = nth_bits(words, plan.width)
    return chosen.T, counts.max()


def _listed(plan, system, table, shifts, place, chosen, wraps):
    """The neighbours of atoms, and the table of images with its row of none."""
    fill = lambda x: jnp.pad(x, [(1, max(plan.rows - len(x) - 1, 0))] + [(0, 0)] * (x.ndim - 1))
    there = (table < system.n_atoms).reshape(-1)
    return Images(
        index=jnp.where(system.atom_mask[:, None], _rows(plan, place, chosen), 0),
        atoms=fill(jnp.where(there, table.reshape(-1), 0)),
        shifts=fill(jnp.where(there[:, None], shifts.reshape(-1, 3), 0)),
        home=-wraps,
    )


def _rows(plan, place, chosen):
    """Rows of the table of images, 0 for none, of the candidates chosen for a place."""
    bins = place // plan.per_bin
    which, rank = jnp.divmod(jnp.maximum(chosen, 0), plan.per_bin)
    steps, home = _steps(plan, bins)[0], jnp.asarray(grid_of(plan).home)[bins]
    one = len(steps) == 1
    step = steps[0][which] if one else jnp.take_along_axis(steps, which, axis=1)
    rows = (home[:, None] + step) * plan.per_bin + rank + 1
    return jnp.where(chosen >= 0, rows, 0).astype(jnp.int32)
