"""Charged systems of the benchmarks, by name; needs nothing but numpy.

`salt1000`, `salt8000` ...: rock salt, 0.25 Å off its sites (8 times a cube of ions).
`mixed1000` ...: the same in random order.
`water1029` ...: rigid three-site molecules, turned at random (3 times a cube of atoms).
`random512` ...: as many charges of either sign, 2 Å apart at least.
"""

import re

import numpy as np

CUTOFFS = {"mesh": (5.0, 6.0, 7.5, 9.0), "ewald": (9.0,)}  # Å, that every code may choose from


def cutoffs_of(method):
    return CUTOFFS["ewald" if method == "ewald" else "mesh"]


def charged(name):
    """(positions [n, 3] Å, charges [n] e, cell [3, 3] Å, atomic numbers [n])."""
    match = re.fullmatch(r"(salt|mixed|water|random)([1-9]\d*)", name)
    if match is None:
        raise ValueError(f"unknown system {name!r}: salt1000, water1029, random512 ...")
    kind, n = match[1], int(match[2])
    return {"salt": salt, "mixed": mixed, "water": water, "random": random}[kind](n)


def cube_root(n, per_cell, kind):
    cells = round((n / per_cell) ** (1 / 3))
    if per_cell * cells**3 != n:
        raise ValueError(f"{kind}{n}: {per_cell} times a cube is needed")
    return cells


def sites(n):
    return np.stack(np.meshgrid(*[np.arange(n)] * 3, indexing="ij"), -1).reshape(-1, 3)


def salt(n, lattice=5.64, noise=0.25):
    cells = cube_root(n, 8, "salt")
    basis = np.array([[0, 0, 0], [0, 0.5, 0.5], [0.5, 0, 0.5], [0.5, 0.5, 0]])
    sodium = (sites(cells)[:, None] + basis).reshape(-1, 3)
    positions = np.concatenate([sodium, sodium + [0.5, 0, 0]]) * lattice
    positions += np.random.default_rng(0).normal(0, noise, positions.shape)
    half = n // 2
    charges = np.repeat([1.0, -1.0], half)
    return positions, charges, np.eye(3) * cells * lattice, np.repeat([11, 17], half)


def mixed(n):
    positions, charges, cell, numbers = salt(n)
    order = np.random.default_rng(1).permutation(n)
    return positions[order], charges[order], cell, numbers[order]


def water(n, density=0.0334):
    """density: molecules a Å³."""
    cells, rng = cube_root(n, 3, "water"), np.random.default_rng(0)
    length = density ** (-1 / 3)
    oxygen = sites(cells) * length + rng.normal(0, 0.15, (n // 3, 3))
    half_angle = np.deg2rad(104.52) / 2
    arms = 0.9572 * np.array([[np.sin(half_angle), 0, np.cos(half_angle)]] * 2)
    arms[1, 0] *= -1
    turns = np.linalg.qr(rng.normal(size=(n // 3, 3, 3)))[0]
    hydrogen = oxygen[:, None] + np.einsum("mij,hj->mhi", turns, arms)
    positions = np.concatenate([oxygen[:, None], hydrogen], 1).reshape(-1, 3)
    charges = np.tile([-0.834, 0.417, 0.417], n // 3)
    return positions, charges, np.eye(3) * cells * length, np.tile([8, 1, 1], n // 3)


def random(n, apart=2.0, density=0.04):
    """density: charges a Å³."""
    rng, length = np.random.default_rng(0), (n / density) ** (1 / 3)
    kept = np.zeros((0, 3))
    while len(kept) < n:
        new = rng.random(3) * length
        offset = kept - new
        offset -= length * np.round(offset / length)
        if (np.linalg.norm(offset, axis=1) > apart).all():
            kept = np.concatenate([kept, new[None]])
    charges = np.where(np.arange(n) % 2, 1.0, -1.0)
    return kept, charges, np.eye(3) * length, np.where(np.arange(n) % 2, 11, 17)


# alpha times cutoff with a real-space force error of half the target, calibrated on rock salt
WIDTHS = {1e-3: 2.9, 1e-4: 3.3, 1e-5: 3.6, 1e-6: 3.9}


def scanned(method, tolerance, cell, cutoffs):
    """Settings of a peer without a planner, coarse to fine, one list for each cutoff.

    grid: spacing of a mesh that both peers round up to a power of two, or wavelength of Ewald's
    box of wavevectors, which reaches to pi / grid.
    """
    lists, length, width = [], float(np.max(np.linalg.norm(cell, axis=1))), WIDTHS[tolerance]
    for cutoff in cutoffs:
        if method == "ewald":
            grids = [np.pi * cutoff / (x * width) for x in (4.6, 5.2, 5.8, 6.4, 7.0, 7.8, 8.8)]
        else:
            sizes = [n for n in (8, 16, 32, 64, 128, 256) if n * cutoff > 2.2 * length]
            grids = [length / (n / 2 - 1.5) for n in sizes]
        smearing = float(cutoff / width / np.sqrt(2))
        lists.append([{"cutoff": cutoff, "smearing": smearing, "grid": float(g)} for g in grids])
    return lists
