"""A model that is trained in a second, and data for it: waters whose bonds are springs."""

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from ase import Atoms

from jaxmlip.interfaces.ase import from_ase
from jaxmlip.nn.readout import ScalarReadout
from jaxmlip.system import edge_vectors, sum_edges, sum_energies, to_edges

CUTOFF = 3.0


class ToyModel(nn.Module):
    """Energies of atoms from pair features and two readouts, named as those of the house."""

    elements: tuple[int, ...] = (1, 8)
    cutoff: float = CUTOFF
    width: int = 6

    @nn.compact
    def __call__(self, system):
        r = jnp.linalg.norm(edge_vectors(system), axis=-1)
        inside = jnp.where(r < self.cutoff, (1 - jnp.minimum(r / self.cutoff, 1) ** 2) ** 3, 0)
        centres = jnp.linspace(0.5, self.cutoff, self.width)
        pair = jnp.exp(-4 * (r[..., None] - centres) ** 2) * inside[..., None]
        atom = sum_edges(system, pair * to_edges(system, system.numbers)[..., None] / 8)
        linear = ScalarReadout(name="energy_0")(atom)
        curved = ScalarReadout(4, name="energy_1")(nn.Dense(self.width)(atom))
        energies = jnp.where(system.atom_mask, linear + curved, 0)
        return {"energy": sum_energies(system, energies), "energies": energies}


def springs(n, *, seed=0, stretch=0.1):
    """(Atoms, bonds, energy eV, forces eV/Å) of n waters and hydroxyls whose bonds are springs."""
    rng = np.random.default_rng(seed)
    for i in range(n):
        size = 3 if i % 3 else 2
        positions = np.array([[0, 0, 0], [0.8, 0, 0.5], [-0.8, 0, 0.5]])[:size]
        positions = positions + stretch * rng.normal(size=positions.shape)
        bonds = positions[1:] - positions[0]
        r = np.linalg.norm(bonds, axis=1, keepdims=True)
        pull = 6.0 * (r - 0.95) * bonds / r
        forces = np.concatenate([pull.sum(0, keepdims=True), -pull])
        yield Atoms("OHH"[:size], positions), bonds, 3 * ((r - 0.95) ** 2).sum(), forces


def frames(n, *, seed=0, stretch=0.1, dtype=float):
    """[(System, labels)] of `springs`."""
    return [
        (
            from_ase(atoms, CUTOFF, dtype=dtype),
            {"energy": np.array([energy], dtype), "forces": forces.astype(dtype)},
        )
        for atoms, _, energy, forces in springs(n, seed=seed, stretch=stretch)
    ]
