"""Argon as crystals of known lattice constant."""

import numpy as np

from jaxmlip import units
from jaxmlip.interfaces.ase import from_ase
from jaxmlip.models import checkpoint
from jaxmlip.models.pair import LennardJones

EPSILON, SIGMA = 119.8 * units.kB, 3.405  # eV, Å


def argon(reach, onset=1.0, **fields):
    """Lennard-Jones argon with a cutoff of `reach` sigma."""
    return LennardJones(epsilon=EPSILON, sigma=SIGMA, cutoff=reach * SIGMA, onset=onset, **fields)


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
