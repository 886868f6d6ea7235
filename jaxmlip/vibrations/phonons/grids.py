"""Grids of q and the symmetry of dynamical matrices.

An operation {W|w} of the space group takes atom a of cell 0 to atom a' of cell T_a. Force
constants are the same after it, hence with R its cartesian matrix
D_a'b'(q') = exp(2 pi i q'.(T_b - T_a)) R D_ab(W^T q') R^T, and D(-q) is the conjugate of D(q).
"""

from dataclasses import dataclass

import numpy as np

from jaxmlip.errors import UsageError
from jaxmlip.vibrations.phonons.dispersion import Crystal


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
    inverse = np.linalg.inv(crystal.group.rotations).swapaxes(1, 2)  # q' = W^-T q
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
    points = np.stack(np.meshgrid(*map(np.arange, grid.shape), indexing="ij"), -1).reshape(-1, 3)
    out = np.empty((len(points), *np.shape(matrices)[1:]), np.complex128)
    # time reversal: D(q') of a point q' = -S q is the conjugate of D(S q)
    for operation in np.unique(grid.operation):
        for reverse in (False, True):
            here = np.flatnonzero((grid.operation == operation) & (grid.reversed == reverse))
            if len(here):
                start = grid.q[grid.source[here]]
                turned = rotated(crystal, operation, start, matrices[grid.source[here]])
                out[here] = turned.conj() if reverse else turned
    return out


def rotated(crystal: Crystal, operation: int, q, matrices) -> np.ndarray:
    """D(W^-T q) [n, 3n, 3n] from D(q) [n, 3n, 3n]."""
    group, n = crystal.group, crystal.n_atoms
    image, turn = group.permutations[operation], group.cartesian[operation]
    after = q @ np.linalg.inv(group.rotations[operation])  # W^-T q, as rows
    phase = np.exp(2j * np.pi * (after @ group.shifts[operation].T))  # [n, atoms]
    blocks = np.asarray(matrices).reshape(-1, n, 3, n, 3)
    blocks = np.einsum("ij,qajbk,lk->qaibl", turn, blocks, turn, optimize=True)
    blocks *= phase.conj()[:, :, None, None, None] * phase[:, None, None, :, None]
    out = np.empty_like(blocks)
    out[:, image[:, None], :, image[None, :]] = blocks.transpose(1, 3, 0, 2, 4)
    return out.reshape(-1, 3 * n, 3 * n)


def star(crystal: Crystal, q) -> np.ndarray:
    """[n, 3] the different images of q [3] under the operations and time reversal, q first."""
    images = np.asarray(q) @ np.linalg.inv(crystal.group.rotations)
    images = np.stack([images, -images], 1).reshape(-1, 3)
    keys = np.rint(_centred(np.round(images, 9)) * 1e8).astype(int)
    _, first = np.unique(keys, axis=0, return_index=True)
    return images[np.sort(first)]


def star_matrices(crystal: Crystal, q, matrix) -> tuple[np.ndarray, np.ndarray]:
    """(star of q [n, 3], D at each [n, 3n, 3n]) from D(q)."""
    images = np.asarray(q) @ np.linalg.inv(crystal.group.rotations)
    both = np.stack([images, -images], 1).reshape(-1, 3)
    keys = np.rint(_centred(np.round(both, 9)) * 1e8).astype(int)
    first = np.sort(np.unique(keys, axis=0, return_index=True)[1])
    out = []
    for i in first:
        turned = rotated(crystal, i // 2, np.asarray(q)[None], matrix[None])[0]
        out.append(turned.conj() if i % 2 else turned)
    return both[first], np.stack(out)


# --- which points are the same -------------------------------------------------------------------


def key(q) -> tuple[tuple, bool]:
    """((i, j, k), whether they are of q): the same for q, -q and q plus a reciprocal vector."""
    unit = 10**8
    plus = tuple(np.rint(q * unit).astype(int) % unit)
    minus = tuple(-np.rint(q * unit).astype(int) % unit)
    return min(plus, minus), plus <= minus


def different(crystal: Crystal, q) -> np.ndarray:
    """The points of q [n, 3] of which none is the image of one before it."""
    kept, seen = [], set()
    for point in q:
        if key(point)[0] not in seen:
            kept.append(point)
            seen |= {key(image)[0] for image in star(crystal, point)}
    return np.reshape(kept, (-1, 3))
