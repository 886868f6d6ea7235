"""Whether two structures are one crystal, and the cell of one in vectors of the other.

Neither the choice of cell nor its orientation nor its origin matters; the distances do.
"""

import numpy as np
from ase import Atoms

from jaxmlip.interfaces.phonons.symmetry import primitive


def cell_in(cell, other, *, size: int) -> np.ndarray:
    """[3, 3] rows of `cell` in vectors of `other`: multiples of 1/size, rounded to such.

    q in fractions of the reciprocal vectors of `other` are q @ cell_in.T in those of `cell`.
    """
    return np.rint(np.asarray(cell) @ np.linalg.inv(np.asarray(other)) * size) / size


def common_cell(ours, theirs, *, tolerance: float = 0.05) -> np.ndarray | None:
    """The cell of `theirs` in vectors of the cell of `ours` [3, 3] if both are one crystal.

    `ase.Atoms`, any cells of it; masses do not matter. None if no rotation (or reflection) and no
    translation brings every atom within `tolerance` Å of one of its element. The rotation taken is
    that closest to none.
    """
    plain = [Atoms(a.numbers, a.positions, cell=a.cell, pbc=True) for a in (ours, theirs)]
    small, other = (primitive(a, tolerance=tolerance) for a in plain)
    if sorted(small.numbers) != sorted(other.numbers):
        return None
    in_ours = cell_in(small.cell, ours.cell, size=len(ours) // len(small))
    of_theirs = cell_in(theirs.cell, other.cell, size=1)
    for basis in _bases(np.array(small.cell), np.array(other.cell), tolerance):
        if _same_atoms(small, other, basis, tolerance):
            return of_theirs @ basis @ in_ours
    return None


def _bases(cell, other, tolerance):
    """Integer rows M such that M @ cell is `other` but for a rotation, that least rotated first."""
    lengths = np.linalg.norm(other, axis=1)
    reach = (lengths.max() + tolerance) * np.linalg.norm(np.linalg.inv(cell), axis=0)
    axes = [np.arange(-m, m + 1) for m in np.ceil(reach).astype(int)]
    lattice = np.stack(np.meshgrid(*axes, indexing="ij"), -1).reshape(-1, 3)
    vectors = lattice @ cell
    size = np.linalg.norm(vectors, axis=1)
    a, b, c = (np.flatnonzero(np.abs(size - length) < tolerance) for length in lengths)
    triples = np.stack(np.meshgrid(a, b, c, indexing="ij"), -1).reshape(-1, 3)
    product = lambda i, j: np.einsum("nx,nx->n", vectors[triples[:, i]], vectors[triples[:, j]])
    for i, j in ((0, 1), (0, 2), (1, 2)):
        loose = tolerance * (lengths[i] + lengths[j])
        triples = triples[np.abs(product(i, j) - other[i] @ other[j]) < loose]
    moved = np.linalg.norm(vectors[triples] - other, axis=(1, 2))
    found = lattice[triples[np.argsort(moved, kind="stable")]]
    return found[np.abs(np.abs(np.linalg.det(found)) - 1) < 0.5]


def _same_atoms(ours, theirs, basis, tolerance):
    """Whether a translation brings ours, told in the basis, onto theirs."""
    cell = np.array(theirs.cell)
    x = ours.positions @ np.linalg.inv(basis @ np.array(ours.cell))
    y = theirs.positions @ np.linalg.inv(cell)
    different = np.where(ours.numbers[:, None] == theirs.numbers, 0, np.inf)
    kinds, many = np.unique(ours.numbers, return_counts=True)
    rare = kinds[many.argmin()]
    first = np.flatnonzero(ours.numbers == rare)[0]
    for target in np.flatnonzero(theirs.numbers == rare):
        apart = (x - x[first] + y[target])[:, None] - y
        apart -= np.rint(apart)
        distance = np.linalg.norm(apart @ cell, axis=-1) + different
        nearest = distance.argmin(1)
        if len(set(nearest)) == len(x):
            rest = apart[np.arange(len(x)), nearest] @ cell
            if np.linalg.norm(rest - rest.mean(0), axis=1).max() < tolerance:
                return True
    return False
