"""The bins of a neighbour search: how many a structure has, which lie around each, on the host.

Bins divide the cell; those around a bin are reached over the boundary with whole lattice vectors,
as often as a cell smaller than the cutoff asks for. They lie in a block of bins and their images,
in which all bins have the same steps to those around.
"""

from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import jax
import numpy as np

MOST_BINS = 64  # along an axis
SLOTS = 32  # in bins, for each atom (of a few thousand at least): else fewer bins may cost less
FEW = 2048


@dataclass(frozen=True, kw_only=True)
class ListPlan:
    """Static sizes of a search; hashable, so that it may be a static argument of `jit`."""

    cutoff: float  # Å, with the skin
    bins: tuple[tuple[int, int, int], ...]  # of each structure, along its cell vectors
    reach: tuple[tuple[int, int, int], ...]  # bins to look at on either side
    per_bin: int = 1  # most atoms of a bin
    width: int = 4  # most neighbours of an atom
    rows: int = 0  # of the table of images, if more than these bins have


def bins_of(system, i, cutoff, shrink):
    """(bins, reach) of structure i."""
    cell, pbc = system.cell[i].astype(float), system.pbc[i]
    positions = system.positions[(system.graph == i) & system.atom_mask].astype(float)
    inverse = np.linalg.inv(cell)
    heights = 1 / np.linalg.norm(inverse, axis=0)  # between opposite faces
    inside = positions @ inverse
    extent = np.ptp(inside, axis=0) if len(positions) else np.zeros(3)
    length = np.where(pbc, 1, np.maximum(extent, 1e-3)) * heights * (1 - shrink)
    bins = np.clip((length / cutoff).astype(int), 1, MOST_BINS)
    bins = _afforded(bins, np.where(pbc, inside % 1, _shares(inside)))
    reach = np.ceil(cutoff / (length / bins) - 1e-9).astype(int)
    reach = np.where(pbc, reach, np.minimum(reach, bins - 1))
    return tuple(map(int, bins)), tuple(map(int, reach))


def _shares(inside):
    """Where atoms are between the first and the last, [n, 3] in 0 .. 1."""
    low = inside.min(0, initial=np.inf)
    return (inside - low) / np.maximum(inside.max(0, initial=-np.inf) - low, 1e-9)


def _afforded(bins, shares):
    """Fewer bins, where all of them would have room for far more atoms than there are: those of
    which the least pairs are looked at. Dense matter in a large box keeps its fine ones, an atom
    far away from the others does not make bins that are empty but one.
    """
    most = _most_in_a_bin(bins, shares)
    if bins.prod() * most <= SLOTS * max(len(shares), FEW):
        return bins
    tried = [(bins.prod() * most**2, bins)]
    while bins.prod() > 1:
        bins = np.where(np.arange(3) == bins.argmax(), (bins + 1) // 2, bins)
        tried.append((bins.prod() * _most_in_a_bin(bins, shares) ** 2, bins))
    return min(tried, key=lambda t: t[0])[1]


def _most_in_a_bin(bins, shares):
    place = np.clip((shares * bins).astype(int), 0, bins - 1)
    return int(np.bincount(np.ravel_multi_index(place.T, bins), minlength=1).max())


def numbers_of_bins(plan):
    return np.array([int(np.prod(b)) for b in plan.bins])


class Grid(NamedTuple):
    """The bins and their images around them, as far as `reach` goes; those of a structure after
    the others, each a block of (bins + 2 reach). Numpy.
    """

    graph: np.ndarray  # [n_images] structure
    bin: np.ndarray  # [n_images] of which bin each is an image
    crossed: np.ndarray  # [n_images, 3] lattice vectors added to it
    home: np.ndarray  # [n_bins] the image of each bin that is itself
    steps: np.ndarray  # [n_graphs, A] from an image to those around it
    there: np.ndarray  # [n_graphs, A] False where another structure has more of them


@lru_cache(maxsize=8)
def grid_of(plan):
    parts = [_around(b, r) for b, r in zip(plan.bins, plan.reach, strict=True)]
    first = np.cumsum([0] + [len(index) for index, *_ in parts])
    number = np.cumsum([0] + [len(home) for _, _, home, _ in parts])
    most = max(len(steps) for *_, steps in parts)
    fill = lambda x: np.pad(x, (0, most - len(x)))
    grid = Grid(
        graph=np.repeat(np.arange(len(parts)), np.diff(first)),
        bin=np.concatenate([p[0] + n for p, n in zip(parts, number, strict=False)]),
        crossed=np.concatenate([crossed for _, crossed, _, _ in parts]),
        home=np.concatenate([p[2] + f for p, f in zip(parts, first, strict=False)]),
        steps=np.stack([fill(steps) for *_, steps in parts]),
        there=np.stack([fill(np.ones(len(steps), bool)) for *_, steps in parts]),
    )
    return jax.tree.map(lambda x: x if x.dtype == bool else x.astype(np.int32), grid)


def _around(bins, reach):
    """Of one structure: bin and lattice vectors of each image, the image of each bin that is
    itself, and the steps to those around.
    """
    grid = lambda axes: np.stack(np.meshgrid(*axes, indexing="ij"), -1).reshape(-1, 3)
    axes = [np.arange(-r, n + r) for n, r in zip(bins, reach, strict=True)]
    crossed, place = np.divmod(grid(axes), bins)
    flat = lambda where, size: (where[..., 0] * size[1] + where[..., 1]) * size[2] + where[..., 2]
    size = [len(axis) for axis in axes]
    home = flat(grid([np.arange(n) for n in bins]) + reach, size)
    steps = flat(grid([np.arange(-r, r + 1) for r in reach]), size)
    return flat(place, bins), crossed, home, steps


def table_rows(plan: ListPlan) -> int:
    """Rows of the table of images that a search makes."""
    return max(plan.rows, len(grid_of(plan).bin) * plan.per_bin + 1)
