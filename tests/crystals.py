"""Argon as crystals of known lattice constant."""

import numpy as np
from numpy.polynomial import Polynomial

from jaxmlip import units
from jaxmlip.interfaces.ase import from_ase
from jaxmlip.models import checkpoint
from jaxmlip.models.pair import LennardJones
from jaxmlip.vibrations.phonons.interpolation import FourierSum

EPSILON, SIGMA = 119.8 * units.kB, 3.405  # eV, Å


def argon(reach, onset=1.0, **fields):
    """Lennard-Jones argon with a cutoff of `reach` sigma."""
    return LennardJones(epsilon=EPSILON, sigma=SIGMA, cutoff=reach * SIGMA, onset=onset, **fields)


def lennard_jones_slopes(r):
    """V, V' and V'' of argon at distances r, Å; without a cutoff."""
    value = 4 * EPSILON * (SIGMA**12 / r**12 - SIGMA**6 / r**6)
    steep = 4 * EPSILON * (-12 * SIGMA**12 / r**13 + 6 * SIGMA**6 / r**7)
    curved = 4 * EPSILON * (156 * SIGMA**12 / r**14 - 42 * SIGMA**6 / r**8)
    return value, steep, curved


def switched_slopes(r, cutoff, onset):
    """The same times 1 - 10 x³ + 15 x⁴ - 6 x⁵, x from 0 at the onset to 1 at the cutoff."""
    start = onset * cutoff
    x = np.clip((r - start) / (cutoff - start), 0, 1)
    switch = Polynomial([1, 0, 0, -10, 15, -6])
    (v, v1, v2), (s, s1, s2) = lennard_jones_slopes(r), (switch.deriv(m)(x) for m in range(3))
    s1, s2 = s1 / (cutoff - start), s2 / (cutoff - start) ** 2
    return v * s, v1 * s + v * s1, v2 * s + 2 * v1 * s1 + v * s2


def pair_sum(atoms, cutoff=4 * SIGMA, slopes=lennard_jones_slopes):
    """D(q) of pairs as a lattice sum of its own, in numpy: any q in microseconds.

    slopes: r -> (V, V', V''); Lennard-Jones atoms by default.
    """
    cell, n = np.array(atoms.cell), len(atoms)
    most = np.ceil(cutoff * np.linalg.norm(np.linalg.inv(cell), axis=0)).astype(int) + 1
    axes = [np.arange(-m, m + 1) for m in most]
    lattice = np.stack(np.meshgrid(*axes, indexing="ij"), -1).reshape(-1, 3)
    blocks = np.zeros((len(lattice), n, 3, n, 3))
    home = np.flatnonzero((lattice == 0).all(1))[0]
    for a in range(n):
        for b in range(n):
            vectors = lattice @ cell + atoms.positions[b] - atoms.positions[a]
            r = np.linalg.norm(vectors, axis=1)
            near = (r > 1e-6) & (r < cutoff)
            unit, r = vectors[near] / r[near, None], r[near, None, None]
            along, (_, steep, curved) = unit[:, :, None] * unit[:, None], slopes(r)
            spring = curved * along + steep / r * (np.eye(3) - along)
            blocks[near, a, :, b] -= spring
            blocks[home, a, :, a] += spring.sum(0)
    return FourierSum(lattice=lattice, blocks=blocks.reshape(-1, 3 * n, 3 * n))


def save_argon(path, **fields):
    """A model file of argon, cut at 2.5 sigma."""
    fields = {"epsilon": EPSILON, "sigma": SIGMA, "cutoff": 2.5 * SIGMA, "onset": 1.0} | fields
    card = {
        "architecture": "LennardJones",
        "fields": fields | {"elements": [18]},
        "elements": [18],
        "cutoff": fields["cutoff"],
        "level_of_theory": "none",
        "name": "argon",
    }
    checkpoint.save(path, card, {"params": {}})
    return str(path)


def skewed(atoms, size, seed=0):
    """The crystal under a random strain, rotation included, with its atoms shaken."""
    rng = np.random.default_rng(seed)
    atoms = atoms.copy()
    atoms.set_cell(atoms.cell.array @ (np.eye(3) + rng.uniform(-size, size, (3, 3))), True)
    atoms.positions += rng.normal(0, size, atoms.positions.shape)
    return atoms


def system_of(atoms, model, capacity=200):
    """With one width of edges for all small crystals: one compilation for each number of atoms."""
    return from_ase(atoms, model.cutoff, capacity=capacity if model.cutoff < 10 else None)
