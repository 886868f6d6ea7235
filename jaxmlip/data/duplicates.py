"""Frames that are the same structure, whatever the order of their atoms and wherever they stand.

The fingerprint of a structure is |sum_j Z_j exp(i k . r_j)| at a few waves k, over the root of
sum_j Z_j²: moving all atoms, listing them in another order or taking other images leaves it as it
is. Not squared: in a supercell these sums vanish, and displacements must count in first order.
Waves of crystals are those of the cell, of molecules fixed ones, so a turned molecule counts as
another. Which atom of a supercell was displaced they cannot tell: its forces do (`data.card`).
"""

import hashlib

import numpy as np

WAVES = np.array([[1, 0, 0], [0, 1, 0], [0, 0, 1], [1, 1, 0], [0, 1, -1], [1, -1, 1]], float)
SIZE = len(WAVES) + 6  # numbers of a fingerprint
SAME = 1e-4  # two fingerprints nearer than this are one structure: about 1e-4 Å of all atoms
MOST = 200  # frames next to each other in the first wave that are compared


def fingerprint(system) -> np.ndarray:
    """[SIZE] of one structure: the waves and, of a crystal, products of its cell vectors, Å²."""
    positions = np.asarray(system.positions, np.float64)
    numbers = np.asarray(system.numbers, np.float64)
    periodic = bool(np.asarray(system.pbc[0]).any())
    cell = np.asarray(system.cell[0], np.float64)
    scaled = positions @ np.linalg.inv(cell) if periodic else positions / 4.0
    waves = np.exp(2j * np.pi * (scaled @ WAVES.T))
    sums = np.abs(numbers @ waves) / np.sqrt((numbers**2).sum())
    products = (cell @ cell.T)[np.triu_indices(3)] if periodic else np.zeros(6)
    return np.append(sums, products)


def same_structures(kinds, fingerprints) -> list[list[int]]:
    """Groups (of two or more) of indices whose structures are the same.

    kinds [n]: what must be equal, such as an index of the composition; fingerprints [n, m], NaN
    where unknown: equal to all. The first column is always known.
    """
    kinds, prints = np.asarray(kinds), np.asarray(fingerprints, np.float64)
    if len(kinds) < 2:
        return []
    order = np.lexsort((prints[:, 0], kinds))
    groups: dict[int, list[int]] = {}
    for i, root in enumerate(_roots(len(order), _same_pairs(kinds[order], prints[order]))):
        groups.setdefault(root, []).append(int(order[i]))
    return sorted(sorted(g) for g in groups.values() if len(g) > 1)


def _same_pairs(kinds, prints):
    """Pairs (a < b) of rows that are equal; rows are sorted by kind and first column."""
    first, rows = np.arange(len(kinds)), []
    for ahead in range(1, MOST):
        first = first[first + ahead < len(kinds)]
        near = kinds[first] == kinds[first + ahead]
        first = first[near & (prints[first + ahead, 0] - prints[first, 0] < SAME)]
        if not len(first):
            break
        a, b = prints[first], prints[first + ahead]
        other = np.abs(a - b) >= SAME * np.maximum(1, np.abs(a))  # NaN: not other
        rows += [(i, i + ahead) for i in first[~other.any(axis=1)].tolist()]
    return rows


def _roots(n, pairs) -> list[int]:
    """One number for each of n that all have which pairs connect."""
    roots = list(range(n))

    def root(i):
        while roots[i] != i:
            roots[i] = i = roots[roots[i]]
        return i

    for a, b in pairs:
        roots[root(b)] = root(a)
    return [root(i) for i in range(n)]


def content_hash(system, labels) -> str:
    """16 hex digits that change with any atom, cell or label of a frame, in float32."""
    digest = hashlib.sha256()
    for value in (system.numbers, system.positions, system.cell, system.pbc, system.charge):
        digest.update(np.ascontiguousarray(value, np.float32).tobytes())
    for name in sorted(labels):
        digest.update(name.encode() + np.ascontiguousarray(labels[name], np.float32).tobytes())
    return digest.hexdigest()[:16]
