"""Grids of q and the symmetry of dynamical matrices.

An operation {W|w} of the space group takes atom a of cell 0 to atom a' of cell T_a. Force
constants are the same after it, hence with R its cartesian matrix
D_a'b'(q') = exp(2 pi i q'.(T_b - T_a)) R D_ab(W^T q') R^T, and D(-q) is the conjugate of D(q).
"""

from dataclasses import dataclass

import numpy as np

from jaxmlip.errors import UsageError
from jaxmlip.vibrations.phonons.dispersion import Crystal

ROOM = 2**21  # complex numbers that are turned at once


@dataclass(frozen=True, kw_only=True)
class Grid:
    """Points i / shape of the reciprocal cell, each the image of one irreducible point."""

    shape: np.ndarray  # [3] points along each axis, Gamma included
    q: np.ndarray  # [n_irreducible, 3] fractions of the reciprocal cell
    weights: np.ndarray  # [n_irreducible] how many points of the grid it stands for
    source: np.ndarray  # [n_points] which irreducible point a point of the grid comes from
    operation: np.ndarray  # [n_points] by which operation
    reversed: np.ndarray  # [n_points] True where time reversal comes on top


def q_grid(crystal: Crystal, shape) -> Grid:
    """The grid with its irreducible points; the last axis runs fastest.

    Operations that do not map the grid onto itself are left out, so any shape is right; one that
    has the symmetry of the crystal is cheapest.
    """
    shape = np.asarray(shape, int).reshape(-1)
    if shape.shape != (3,) or (shape < 1).any():
        raise UsageError(f"a mesh is three numbers above zero, not {shape.tolist()}", where="mesh")
    points = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), -1).reshape(-1, 3)
    images, kept = _images(crystal, shape, points)
    n_points = len(points)
    source, chosen = np.full(n_points, -1), np.zeros(n_points, int)
    irreducible = []
    for i in range(n_points):
        if source[i] < 0:
            star = images[:, i]
            new = source[star] < 0
            where, first = np.unique(star[new], return_index=True)
            source[where] = len(irreducible)
            chosen[where] = np.flatnonzero(new)[first]
            irreducible.append(i)
    chosen[irreducible] = 0  # the identity comes first
    return Grid(
        shape=shape,
        q=_centred(points[irreducible] / shape),
        weights=np.bincount(source),
        source=source,
        operation=kept[chosen // 2],
        reversed=chosen % 2 == 1,
    )


def _images(crystal, shape, points):
    """([2 n_kept, n_points] indices of the images, each followed by its negative; operations)."""
    inverse = crystal.group.inverses.swapaxes(1, 2)  # q' = W^-T q
    on_grid = shape[:, None] * inverse / shape[None, :]
    kept = np.flatnonzero(np.abs(on_grid - np.rint(on_grid)).max((1, 2)) < 1e-6)
    whole = np.rint(on_grid[kept]).astype(int)
    identity = (crystal.group.rotations[kept] == np.eye(3, dtype=int)).all((1, 2))
    first = np.argsort(~identity, kind="stable")
    kept, whole = kept[first], whole[first]
    moved = np.einsum("oij,pj->opi", whole, points)
    both = np.stack([moved, -moved], 1).reshape(-1, len(points), 3) % shape
    return np.ravel_multi_index(np.moveaxis(both, -1, 0), shape), kept


def _centred(q):
    """The same points with every fraction in (-1/2, 1/2]."""
    return q - np.ceil(q - 0.5)


def unfolded(crystal: Crystal, grid: Grid, matrices) -> np.ndarray:
    """D on every point of the grid [n_points, 3n, 3n] from D on its irreducible points."""
    matrices = np.asarray(matrices)
    out = np.empty((len(grid.source), *matrices.shape[1:]), np.complex128)
    step = max(1, ROOM // matrices[0].size)
    for start in range(0, len(out), step):
        here = slice(start, start + step)
        source = grid.source[here]
        turned = rotated(crystal, grid.operation[here], grid.q[source], matrices[source])
        # time reversal: D(q') of a point q' = -S q is the conjugate of D(S q)
        out[here] = np.where(grid.reversed[here, None, None], turned.conj(), turned)
    return out


def rotated(crystal: Crystal, operations, q, matrices) -> np.ndarray:
    """D(W^-T q) [n, 3n, 3n] from D(q) [n, 3n, 3n]; one operation for all q or one for each [n]."""
    group, n, count = crystal.group, crystal.n_atoms, len(q)
    operations = np.broadcast_to(operations, count)
    image, turn = group.permutations[operations], group.cartesian[operations]
    after = np.einsum("ki,kij->kj", q, group.inverses[operations])  # W^-T q, as rows
    phase = np.exp(2j * np.pi * np.einsum("kj,kaj->ka", after, group.shifts[operations]))
    blocks = np.asarray(matrices).reshape(-1, n, 3, n, 3)
    blocks = np.einsum("kij,kajbl->kaibl", turn, blocks)
    blocks = np.einsum("kml,kaibl->kabim", turn, blocks)
    blocks *= (phase.conj()[:, :, None] * phase[:, None])[..., None, None]
    out = np.empty_like(blocks)
    out[np.arange(count)[:, None, None], image[:, :, None], image[:, None]] = blocks
    return out.swapaxes(2, 3).reshape(-1, 3 * n, 3 * n)


def star(crystal: Crystal, q) -> np.ndarray:
    """[n, 3] the different images of q [3] under the operations and time reversal, q first."""
    images = _images_of(crystal, np.asarray(q)[None])[0]
    return images[first_of_each(map(tuple, _whole(images).tolist()))]


def star_matrices(crystal: Crystal, q, matrix) -> tuple[np.ndarray, np.ndarray]:
    """(star of q, one of each sign [n, 3]; D at each [n, 3n, 3n]) from D(q)."""
    images = _images_of(crystal, np.asarray(q)[None])[0]
    first = first_of_each(keys(images)[0])
    start = (np.broadcast_to(x, (len(first), *np.shape(x))) for x in (q, matrix))
    turned = rotated(crystal, first // 2, *start)
    return images[first], np.where(first[:, None, None] % 2, turned.conj(), turned)


def _images_of(crystal, q):
    """[n_q, 2 n_ops, 3] images of q [n_q, 3] under each operation, followed by their negatives."""
    turned = np.einsum("qi,oij->qoj", q, crystal.group.inverses)
    return np.stack([turned, -turned], 2).reshape(len(q), 2 * crystal.group.n_ops, 3)


# --- which points are the same -------------------------------------------------------------------

UNIT = 10**8  # points are the same if their fractions, rounded to 1 / UNIT, are


def keys(q) -> tuple[list, np.ndarray]:
    """([n] names (i, j, k), one for q, -q and q plus a lattice vector; [n] if it is that of q)."""
    plus = _whole(np.reshape(q, (-1, 3)))
    minus = -plus % UNIT
    axis = (plus != minus).argmax(1)[:, None]  # the first on which they differ
    own = (np.take_along_axis(plus, axis, 1) <= np.take_along_axis(minus, axis, 1))[:, 0]
    return [tuple(k) for k in np.where(own[:, None], plus, minus).tolist()], own


def _whole(q):
    """q in whole 1 / UNIT, within the reciprocal cell; rounded twice, so that noise ties alike."""
    return np.rint(np.round(q, 9) * UNIT).astype(int) % UNIT


def first_of_each(names) -> np.ndarray:
    """Indices of the names that differ from all before them."""
    seen = {}
    for i, name in enumerate(names):
        seen.setdefault(name, i)
    return np.fromiter(seen.values(), int, len(seen))


def different(crystal: Crystal, q) -> np.ndarray:
    """The points of q [n, 3] of which none is the image of one before it."""
    q = np.reshape(q, (-1, 3))
    own, images = keys(q)[0], keys(_images_of(crystal, q))[0]
    kept, seen, many = [], set(), 2 * crystal.group.n_ops
    for i, name in enumerate(own):
        if name not in seen:
            kept.append(i)
            seen.update(images[i * many : (i + 1) * many])
    return q[kept]
