"""The symmetry number of a molecule: how many rotations bring it onto itself.

Every rotation is fixed by where it takes two atoms that are not in line with the centre. All
places they could go to are tried, and the rotation is kept if it takes each atom to one like it.
"""

import numpy as np

from jaxmlip.errors import DataError
from jaxmlip.vibrations.rigid import centred


def symmetry_number(positions, labels, *, tolerance: float = 0.05) -> int:
    """The number of proper rotations that map a molecule to itself; of a linear one 1 or 2.

    positions: [n_atoms, 3] Å. labels: [n_atoms], equal for atoms that may be exchanged: atomic
    numbers, or masses where isotopes are told apart. tolerance: Å, how far an atom may end from
    its like. An atom has 1. Where the rotations found are no group (a structure that is nearly
    symmetric), the tolerance is made smaller until they are.
    """
    positions, labels = np.asarray(positions, np.float64), np.asarray(labels)
    if labels.shape != (len(positions),):
        raise DataError(f"labels have shape {labels.shape}, the structure has {len(positions)}")
    r = centred(positions, np.ones(len(positions)))
    if np.linalg.norm(r, axis=1).max(initial=0) < tolerance:
        return 1
    line = np.linalg.svd(r)[2][0]
    if np.linalg.norm(np.cross(line, r), axis=1).max() < tolerance:
        return 2 if _permutation(r, -r, labels, tolerance) is not None else 1
    while True:
        found = _rotations(r, labels, tolerance)
        if _closed(found):
            return len(found)
        tolerance /= 2


def _rotations(r, labels, tolerance):
    """The permutations of atoms that rotations make, as a set of tuples."""
    first, second = _reference(r, labels, tolerance)
    lengths = np.linalg.norm(r, axis=1)
    like = lambda i: np.flatnonzero(
        (labels == labels[i]) & (np.abs(lengths - lengths[i]) < tolerance)
    )
    apart = np.linalg.norm(r[first] - r[second])
    frame, found = _frame(r[first], r[second]), set()
    for a in like(first):
        for b in like(second):
            if a != b and abs(np.linalg.norm(r[a] - r[b]) - apart) < 2 * tolerance:
                turned = r @ frame @ _frame(r[a], r[b]).T
                permutation = _fitted(r, turned, labels, tolerance)
                found.add(permutation)
    return found - {None}


def _reference(r, labels, tolerance):
    """Two atoms, not in line with the centre, of which there are few: they fix a rotation."""
    lengths = np.linalg.norm(r, axis=1)
    same = (labels[:, None] == labels) & (np.abs(lengths[:, None] - lengths) < tolerance)
    best = None
    for i in np.flatnonzero(lengths > tolerance):
        sines = np.linalg.norm(np.cross(r[i], r), axis=1) / lengths[i]  # distance from the line
        for j in np.flatnonzero(sines > 0.3 * sines.max()):
            cost = (same[i].sum() * same[j].sum(), -sines[j])
            if best is None or cost < best[0]:
                best = cost, i, j
    return best[1:]


def _frame(a, b):
    """Orthonormal columns: along a, in the plane of a and b, across it."""
    x = a / np.linalg.norm(a)
    z = np.cross(a, b)
    norm = np.linalg.norm(z)
    z = z / norm if norm > 1e-9 else np.zeros(3)
    return np.stack([x, np.cross(z, x), z], axis=1)


def _fitted(r, turned, labels, tolerance):
    """The permutation of a rotation, refined over all atoms, or None."""
    loose = _permutation(r, turned, labels, 4 * tolerance)
    if loose is None:
        return None
    u, _, v = np.linalg.svd(r.T @ r[list(loose)])
    best = u @ np.diag([1, 1, np.linalg.det(u @ v)]) @ v
    return _permutation(r, r @ best, labels, tolerance)


def _permutation(r, turned, labels, tolerance):
    """For each turned atom the one like it whose place it takes, or None."""
    gap = np.linalg.norm(turned[:, None] - r, axis=-1)
    gap = np.where(labels[:, None] == labels, gap, np.inf)
    nearest = gap.argmin(1)
    if gap.min(1).max() > tolerance or len(set(nearest)) < len(r):
        return None
    return tuple(map(int, nearest))


def _closed(found):
    return all(tuple(p[i] for i in q) in found for p in found for q in found)
