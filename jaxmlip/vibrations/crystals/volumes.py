"""Energies and phonons of one crystal at many volumes, from one compiled program.

cells = [relax(scaled(system, s)) for s in scales]             # at fixed volume each
found = harmonic_volumes(apply, params, cells, atoms, mesh=(8, 8, 8), temperatures=T)
quasiharmonic(found.volumes, found.energies, T, *found.tables)
"""

from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp
import numpy as np

from jaxmlip import units
from jaxmlip.derivatives.bloch.matrix import dynamical_matrix, dynamical_matrix_strains
from jaxmlip.errors import UsageError
from jaxmlip.interfaces.phonons.phonopy import (
    QMesh,
    checked_temperatures,
    q_mesh,
    thermal_properties,
)
from jaxmlip.system import pad
from jaxmlip.vibrations.phonons.dispersion import frequencies_THz
from jaxmlip.vibrations.phonons.gruneisen import mode_gruneisen


@dataclass(frozen=True, kw_only=True)
class HarmonicVolumes:
    """Per cell; host numpy, float64."""

    volumes: np.ndarray  # [v] Å³
    energies: np.ndarray  # [v] eV, without vibrations
    frequencies_THz: np.ndarray  # [v, n_q, 3n] imaginary ones negative
    mesh: QMesh
    temperatures: np.ndarray  # [T] K
    free_energies: np.ndarray  # [v, T] eV
    entropies: np.ndarray  # [v, T] eV/K
    heat_capacities: np.ndarray  # [v, T] eV/K, at constant volume
    left_out: np.ndarray  # [v] share of modes that were imaginary and are not counted

    @property
    def tables(self):
        """What `quasiharmonic` takes after the temperatures."""
        return self.free_energies, self.entropies, self.heat_capacities


def scaled(system, factor: float):
    """The structure with its volume times `factor`, at the same fractional coordinates (host)."""
    length = np.cbrt(factor)
    return replace(
        system,
        positions=np.asarray(system.positions) * length,
        cell=np.asarray(system.cell) * length,
    )


def harmonic_volumes(
    apply, params, systems, atoms, *, mesh=(8, 8, 8), temperatures, memory: float | None = None
) -> HarmonicVolumes:
    """Exact D(q) on the irreducible points of a mesh, at every volume.

    systems: one crystal at several volumes, relaxed at each, with its edges. atoms: the same as
    `ase.Atoms` (symmetry, masses). mesh: divisions of the reciprocal cell. One compilation, volume
    after volume. Modes below zero and the three translations at Gamma are left out of the sums.
    """
    temperatures = checked_temperatures(temperatures)
    systems = _of_one_shape(systems)
    points, masses = q_mesh(atoms, mesh), atoms.get_masses()
    energy, matrix = jax.jit(apply), dynamical_matrix(apply, memory=memory)
    q = jnp.asarray(points.q, systems[0].positions.dtype)
    found = [np.asarray(matrix(params, s, q)) for s in systems]
    frequencies = np.stack([frequencies_THz(_real(d, len(masses)), masses) for d in found])
    thermal = [thermal_properties(points, f, temperatures) for f in frequencies]
    table = lambda name, unit: np.stack([getattr(t, name) for t in thermal]) * unit
    return HarmonicVolumes(
        volumes=np.array([abs(np.linalg.det(s.cell[0])) for s in systems], float),
        energies=np.array([float(energy(params, s)["energy"].sum()) for s in systems]),
        frequencies_THz=frequencies,
        mesh=points,
        temperatures=temperatures,
        free_energies=table("free_energy", units.kJ_mol),
        entropies=table("entropy", units.kJ_mol / 1000),
        heat_capacities=table("heat_capacity", units.kJ_mol / 1000),
        left_out=np.array([t.left_out for t in thermal]),
    )


def volume_gruneisen(apply, params, system, atoms, q, *, internal=None, tolerance: float = 1e-4):
    """-dln w/dln V of every mode at q [n_q, 3]: (parameters, frequencies_THz), each [n_q, 3n].

    Exact, from one volume: the strain derivative of D(q) under a uniform expansion. internal
    [n_atoms, 3, 3, 3] Å: how atoms follow (`elastic_constants`), for crystals where they do.
    Modes closer than `tolerance` THz are turned within their space. NaN below 1e-3 THz.
    """
    q = jnp.asarray(q, jnp.asarray(system.positions).dtype)
    slope = dynamical_matrix_strains(apply, internal=internal)
    d, by_strain = jax.device_get(slope(params, system, q))
    masses = atoms.get_masses()
    d, by_strain = _real(d, len(masses)), _real(by_strain, len(masses))
    by_volume = np.einsum("qaaij->qij", by_strain) / 3  # a third of dlnV along each axis
    zero = np.zeros_like(by_volume)
    return mode_gruneisen(d, by_volume, zero, masses, (1.0, 1.0, 0.0), tolerance=tolerance)


def _real(matrices, n_atoms):
    """Without the rows of padding."""
    return np.asarray(matrices)[..., : 3 * n_atoms, : 3 * n_atoms]


def _of_one_shape(systems):
    """The systems with edges as wide as the widest."""
    if len(systems) == 0 or any(s.edges is None for s in systems):
        raise UsageError("systems with their edges are needed", where="harmonic_volumes")
    if len({s.n_atoms for s in systems}) > 1:
        raise UsageError("the volumes have different numbers of atoms", where="harmonic_volumes")
    flat = systems[0].edges.receivers is not None
    size = max(s.edges.senders.shape[-1] for s in systems)
    return [pad(s, **{"n_edges" if flat else "n_neighbors": size}) for s in systems]
