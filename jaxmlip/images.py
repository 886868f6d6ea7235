"""Neighbours as rows of a table of atoms and their periodic images.

A list of pairs then is one integer a pair, a quarter of what `Edges` hold: what a loop keeps and a
pair potential reads over and over. The table is as long as two to three times the atoms of a large
cell, and its rows are near one another in memory where the images are so in space.
"""

from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp

from jaxmlip.bitmaps import WORD, nth_bits, packed
from jaxmlip.system import Array, Edges, System


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class Images:
    """Directed pairs per receiver. Row 0 of the table is no neighbour; other rows may be unused."""

    index: Array  # [n_atoms, k] row of each neighbour of an atom, 0 for padding
    atoms: Array  # [n_rows] which atom a row is an image of
    shifts: Array  # [n_rows, 3] whole lattice vectors added to that atom
    home: Array  # [n_atoms, 3] those added to an atom whose neighbours are listed


def edges_of(images: Images) -> Edges:
    """The same pairs as edges per receiver; they know their images where these are fewer by far
    (in a cell that is mostly empty there are more places for images than pairs).
    """
    index = images.index
    few = len(images.atoms) <= index.size // 2
    mask = index > 0
    shifts = [images.home[:, None, i] - images.shifts[:, i][index] for i in range(3)]
    shifts = jnp.where(mask[..., None], jnp.stack(shifts, -1), 0)
    senders = images.atoms[index]
    known = images if few else None
    return Edges(senders=senders, receivers=None, shifts=shifts, mask=mask, images=known)


def placed(images: Images, positions: Array, cells: Array):
    """Where the atoms are beside the images, [n_atoms, 3], and the images, three times [n_rows], Å.

    positions [n_atoms, 3] Å; cells Å: [n_atoms, 3, 3] of each atom, or [1, 3, 3] of all.
    """
    own = [x + _along(images.home, cells, i) for i, x in enumerate(positions.T)]
    moved = cells if len(cells) == 1 else cells[images.atoms]
    there = [x[images.atoms] + _along(images.shifts, moved, i) for i, x in enumerate(positions.T)]
    return jnp.stack(own, -1), there


def _along(shifts, cells, axis):
    return sum(shifts[:, i].astype(cells.dtype) * cells[:, i, axis] for i in range(3))


def narrowed(system: System, images: Images, cutoff: float, width: int) -> tuple[Edges, Array]:
    """Edges of only those pairs that are within `cutoff` (Å) in the system, in `width` slots; and
    the most that an atom has, to be compared with `width`.
    """
    own, there = placed(images, system.positions, system.cell[system.graph])
    apart = [own[:, None, i] - x[images.index] for i, x in enumerate(there)]
    near = (sum(x**2 for x in apart) < cutoff**2) & (images.index > 0)
    near = jnp.pad(near.T, [(0, -near.shape[1] % WORD), (0, 0)]).reshape(-1, WORD, len(near))
    chosen, counts = nth_bits(packed(near), width)
    chosen = chosen.T
    index = jnp.take_along_axis(images.index, jnp.maximum(chosen, 0), axis=1)
    index = jnp.where(chosen >= 0, index, 0)
    return edges_of(replace(images, index=index)), counts.max()
