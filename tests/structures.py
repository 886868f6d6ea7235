"""Structures and small potentials that tests share: each breaks at least one code of the field."""

import jax
import jax.numpy as jnp
import numpy as np
from ase import Atoms
from ase.build import bulk, fcc111, molecule

from jaxmlip.potential import Potential
from jaxmlip.system import edge_vectors, sum_atoms, sum_edges, sum_energies, to_edges

RNG = 7


def rattled(atoms, size=0.08):
    atoms.rattle(size, seed=RNG)
    return atoms


def ethanol():
    return rattled(molecule("CH3CH2OH"))


def triclinic():
    """Two species in a skewed cell."""
    cell = [[3.9, 0.2, 0.1], [0.7, 4.2, -0.3], [-0.5, 0.6, 4.6]]
    scaled = [[0.02, 0.01, 0.03], [0.48, 0.07, 0.52], [0.03, 0.55, 0.44], [0.51, 0.46, 0.02]]
    return Atoms("OCOC", scaled_positions=scaled, cell=cell, pbc=True)


def left_handed():
    atoms = triclinic()
    return Atoms(atoms.symbols, atoms.positions, cell=np.asarray(atoms.cell)[[1, 0, 2]], pbc=True)


def slab():
    atoms = fcc111("Al", (1, 2, 2), a=4.05, vacuum=6.0, orthogonal=False)
    atoms.numbers[:] = [6, 8, 6, 8]
    return rattled(atoms)


def small_cell():
    """Shorter than the cutoff along every axis: an atom meets many images of itself."""
    return Atoms("C", cell=[[2.3, 0.1, 0.0], [0.2, 2.5, 0.0], [0.1, 0.3, 2.4]], pbc=True)


def single_atom():
    return bulk("C", "fcc", a=3.9)


STRUCTURES = {
    f.__name__: f for f in (ethanol, triclinic, left_handed, slab, small_cell, single_atom)
}


def toy(cutoff=4.0):
    """A smooth many-body potential with charges and a dipole, small enough to compile at once."""

    def apply(params, system):
        vectors = edge_vectors(system)
        square = (vectors**2).sum(-1)
        smooth = jnp.where(square < cutoff**2, (1 - jnp.minimum(square / cutoff**2, 1)) ** 4, 0)
        weight = system.numbers.astype(vectors.dtype) / 8
        density = sum_edges(system, smooth * to_edges(system, weight))
        vector = sum_edges(system, smooth[..., None, None], vectors[..., None, :])[..., 0]
        energies = jnp.where(
            system.atom_mask, jnp.tanh(density) * weight + 0.1 * (vector**2).sum(-1), 0
        )
        charges = jnp.where(system.atom_mask, jnp.tanh(density) - 0.5, 0)
        mean = sum_atoms(system, charges) / jnp.maximum(
            sum_atoms(system, jnp.ones_like(charges)), 1
        )
        charges = jnp.where(system.atom_mask, charges - mean[system.graph], 0)
        dipole = sum_atoms(system, charges[:, None] * system.positions + 0.05 * vector)
        alpha = sum_atoms(system, density[:, None, None] * jnp.eye(3, dtype=vectors.dtype))
        return {
            "energy": sum_energies(system, energies),
            "energies": energies,
            "charges": charges,
            "dipole": dipole,
            "polarizability": alpha,
        }

    return Potential(lambda key, system: {}, apply, cutoff)


KEY = jax.random.key(0)


# Morse curves between O and H: a molecule with a minimum, at no cost
SPRINGS = {
    "elements": [1, 8],
    "cutoff": 4.0,
    "depth": [[2.0, 4.0], [4.0, 3.0]],
    "a": 2.0,
    "r0": [[1.5, 0.97], [0.97, 1.4]],
}


def card(architecture, fields):
    """The model card of a test."""
    return {
        "architecture": architecture,
        "fields": fields,
        "elements": fields["elements"],
        "cutoff": fields["cutoff"],
        "level_of_theory": "none",
        "name": "test",
    }
