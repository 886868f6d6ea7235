"""Bonds of molecules at the start of a run, which are to last; networks and metals have none here.

In a melt of silicon or silica neighbours change for good, and nothing is wrong. Atoms of a molecule
part only in a reaction, or where a potential fails.
"""

import numpy as np

BEYOND = 0.3  # Å over the sum of covalent radii (Cordero et al., 2008, 10.1039/b801115j)
COVALENT = (1, 5, 6, 7, 8, 9, 14, 15, 16, 17, 32, 33, 34, 35, 52, 53)  # elements


def found(atoms, copies: int, *, together: bool = False):
    """`guards.Bonds` of a batch of copies; together: they are counted as one, beads of a ring."""
    from jaxmlip.md.guards import Bonds

    pairs, shifts, lengths = of_molecules(atoms)
    of, n = np.repeat(np.arange(copies), len(pairs)), len(atoms)
    return Bonds(
        pairs=np.tile(pairs, (copies, 1)) + n * of[:, None],
        shifts=np.tile(shifts, (copies, 1)),
        lengths=np.tile(lengths, copies),
        group=0 * of if together else of,
    )


def of_molecules(atoms):
    """(pairs [n, 2], shifts [n, 3], lengths [n] Å) of covalent bonds in molecules that end."""
    from ase.data import covalent_radii
    from ase.neighborlist import neighbor_list

    known = np.flatnonzero(np.isin(atoms.numbers, COVALENT))
    chosen = atoms[known]
    reach = covalent_radii[chosen.numbers] + BEYOND / 2
    i, j, shifts, lengths = neighbor_list("ijSd", chosen, reach)
    endless = np.isin(i, list(_endless(len(known), i, j, shifts)))
    kept = (i < j) & ~endless
    return known[np.stack([i, j], 1)[kept]], shifts[kept], lengths[kept]


def _endless(n, i, j, shifts) -> set:
    """Atoms of chains, layers and networks: from which bonds lead to an image of the same atom."""
    bonds = [[] for _ in range(n)]
    for a, b, shift in zip(i.tolist(), j.tolist(), map(tuple, shifts.tolist()), strict=True):
        bonds[a].append((b, shift))
    found, cell = set(), {}
    for first in range(n):
        if first in cell:
            continue
        cell[first], whole, ends = (0, 0, 0), [first], True
        for a in whole:
            for b, shift in bonds[a]:
                there = tuple(x + y for x, y in zip(cell[a], shift, strict=True))
                if b not in cell:
                    cell[b] = there
                    whole.append(b)
                ends &= cell[b] == there
        found |= set() if ends else set(whole)
    return found
