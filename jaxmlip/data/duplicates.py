"""Frames that are the same structure, whatever the order of their atoms and wherever they stand.

The fingerprint of a structure is |sum_j Z_j exp(i k . r_j)|² at a few waves k, over sum_j Z_j²:
moving all atoms, listing them in another order or taking other images leaves it as it is. Waves of
crystals are those of the cell, of molecules fixed ones, so a turned molecule counts as another.
"""

import hashlib

import numpy as np

WAVES = np.array([[1, 0, 0], [0, 1, 0], [0, 0, 1], [1, 1, 0], [0, 1, -1], [1, -1, 1]], float)
SIZE = len(WAVES) + 6  # numbers of a fingerprint
SAME = 1e-4  # two fingerprints nearer than this are one structure: about 1e-4 Å of all atoms
MOST = 200  # frames of one first wave that are compared with each other


def fingerprint(system) -> np.ndarray:
    """[SIZE] of one structure: the waves and, of a crystal, products of its cell vectors, Å²."""
    positions = np.asarray(system.positions, np.float64)
    numbers = np.asarray(system.numbers, np.float64)
    periodic = bool(np.asarray(system.pbc[0]).any())
    cell = np.asarray(system.cell[0], np.float64)
    scaled = positions @ np.linalg.inv(cell) if periodic else positions / 4.0
    waves = np.exp(2j * np.pi * (scaled @ WAVES.T))
    power = np.abs(numbers @ waves) ** 2 / (numbers**2).sum()
    products = (cell @ cell.T)[np.triu_indices(3)] if periodic else np.zeros(6)
    return np.append(power, products)


def same_structures(kinds, fingerprints) -> list[list[int]]:
    """Groups (of two or more) of indices whose structures are the same.

    kinds [n]: what must be equal, such as an index of the composition; fingerprints [n, m].
    """
    kinds, prints = np.asarray(kinds), np.asarray(fingerprints, np.float64)
    if len(kinds) < 2:
        return []
    order = np.lexsort((*prints.T[::-1], kinds))
    kinds, prints = kinds[order], prints[order]
    near = lambda a, b: kinds[a] == kinds[b] and np.abs(prints[a, 0] - prints[b, 0]) < SAME
    parent = np.arange(len(kinds))
    for a in range(len(kinds)):
        b = a + 1
        while b < len(kinds) and near(a, b) and b < a + MOST:
            if _equal(prints[a], prints[b]):
                parent[b] = parent[a]
            b += 1
    groups: dict[int, list[int]] = {}
    for i, root in enumerate(parent.tolist()):
        groups.setdefault(root, []).append(int(order[i]))
    return sorted(sorted(g) for g in groups.values() if len(g) > 1)


def _equal(a, b):
    return bool(np.all(np.abs(a - b) < SAME * np.maximum(1, np.abs(a))))


def content_hash(system, labels) -> str:
    """16 hex digits that change with any atom, cell or label of a frame, in float32."""
    digest = hashlib.sha256()
    for value in (system.numbers, system.positions, system.cell, system.pbc, system.charge):
        digest.update(np.ascontiguousarray(value, np.float32).tobytes())
    for name in sorted(labels):
        digest.update(name.encode() + np.ascontiguousarray(labels[name], np.float32).tobytes())
    return digest.hexdigest()[:16]
