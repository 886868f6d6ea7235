"""The door to phonopy: integrals over the Brillouin zone of frequencies that are computed here.

    mesh = q_mesh(atoms, (20, 20, 20))                   # mesh.q: where frequencies are needed
    points, dos = total_dos(mesh, frequencies)           # frequencies [n_q, n_modes] THz at mesh.q
    points, dos = projected_dos(mesh, frequencies, eigenvectors)        # [n_atoms, n_points]
    thermal = thermal_properties(mesh, frequencies, temperatures)       # kJ/mol, J/K/mol
    u = thermal_displacements(mesh, frequencies, eigenvectors, masses, temperatures)     # Å²

`atoms` is the cell whose dynamical matrices D(q) were diagonalised, with q in fractions of its own
reciprocal vectors and `eigenvectors` [n_q, 3 n_atoms, n_modes] in columns, as `eigh` returns them.
Files are in `phonopy_files`.
"""

from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import numpy as np

from jaxmlip import units
from jaxmlip.errors import DataError, UsageError
from jaxmlip.interfaces.phonons.phonopy_files import ForceConstants, Polar, to_phonopy
from jaxmlip.interfaces.phonons.symmetry import Symmetry, operations, symmetry


@dataclass(frozen=True, kw_only=True)
class QMesh:
    """The irreducible points of a regular mesh over the Brillouin zone."""

    q: np.ndarray  # [n_q, 3] fractions of the reciprocal cell
    weights: np.ndarray  # [n_q] int, how many points of the whole mesh each stands for
    divisions: np.ndarray  # [3]
    gamma: int | None  # which point is the centre of the zone, if any
    group: Symmetry  # of the crystal and its masses; averages over the star of q need it
    grid: Any  # phonopy's BZGrid, and its maps, for the tetrahedra
    points: np.ndarray  # [n_q] indices of q in the grid
    maps_to: np.ndarray  # [n_grid] the irreducible point of every point


@dataclass(frozen=True, kw_only=True)
class ThermalProperties:
    """Harmonic vibrations of one mole of cells; imaginary modes are left out and counted."""

    temperatures: np.ndarray  # [n] K
    free_energy: np.ndarray  # [n] kJ/mol, with the zero-point energy
    entropy: np.ndarray  # [n] J/K/mol
    heat_capacity: np.ndarray  # [n] J/K/mol, at constant volume
    zero_point_energy: float  # kJ/mol
    left_out: float  # share of all modes that were below the cutoff


def q_mesh(
    atoms,
    divisions,
    *,
    symmetric: bool = True,
    shift=(0, 0, 0),
    masses=None,
    tolerance: float = 1e-5,
) -> QMesh:
    """A mesh of divisions[0] x [1] x [2] points, centred at Γ, reduced by point group and time.

    shift: 1 along the axes where the mesh is moved by half a step. Operations that do not map the
    mesh onto itself (unequal divisions in a cubic primitive cell) are not used, nor those that
    take an atom to one of another mass (masses [n_atoms], default those of atoms). Open axes need
    1 division. symmetric=False: reduced by time reversal only.
    """
    divisions = np.asarray(divisions, int)
    if divisions.shape != (3,) or (divisions < 1).any() or (divisions[~atoms.pbc] > 1).any():
        raise UsageError(
            f"divisions are {divisions.tolist()}: three numbers >= 1, and 1 along open axes "
            f"(pbc {atoms.pbc.tolist()})",
            where="q_mesh",
        )
    from phonopy.phonon.grid import get_ir_grid_points

    group = symmetry(atoms, tolerance=tolerance)
    masses = atoms.get_masses() if masses is None else np.asarray(masses)
    group = operations(group, (masses[group.permutations] == masses).all(1))
    identity = (group.rotations == np.eye(3, dtype=int)).all((1, 2))
    group = group if symmetric else operations(group, np.flatnonzero(identity)[:1])
    grid, group = _grid(atoms, divisions, shift, group)
    points, weights, maps_to = get_ir_grid_points(grid)
    addresses = grid.addresses[grid.grg2bzg][points]
    q = (addresses + np.asarray(grid.PS) / 2) @ grid.QDinv.T
    centre = np.flatnonzero(np.abs(q - np.rint(q)).max(1) < 1e-10)
    return QMesh(
        q=q,
        weights=np.asarray(weights),
        divisions=divisions,
        gamma=int(centre[0]) if len(centre) else None,
        group=group,
        grid=grid,
        points=points,
        maps_to=maps_to,
    )


def total_dos(mesh: QMesh, frequencies, *, points=None, n_points: int = 401):
    """Density of states per cell by linear tetrahedra: frequencies [n] THz, density [n] 1/THz.

    frequencies: [n_q, n_modes] THz at mesh.q, negative = imaginary. points: where the density is
    wanted, THz; by default n_points over the whole range. Its integral is the number of modes.
    """
    points, density = _tetrahedra(mesh, frequencies, None, points, n_points)
    return points, density[:, 0]


def projected_dos(mesh: QMesh, frequencies, eigenvectors, *, points=None, n_points: int = 401):
    """The share of each atom in the density of states, [n_atoms, n], 1/THz; they add up to it.

    Equivalent atoms get the mean of their shares: over the irreducible points alone each stands
    for the others.
    """
    vectors = np.asarray(eigenvectors)
    n_q, size, n_modes = vectors.shape
    if size != 3 * len(mesh.group.equivalent) or (n_q, n_modes) != np.shape(frequencies):
        raise DataError(
            f"eigenvectors have shape {vectors.shape} for frequencies {np.shape(frequencies)} and "
            f"{len(mesh.group.equivalent)} atoms; expected [n_q, 3 n_atoms, n_modes]",
            where="projected_dos",
        )
    shares = (np.abs(vectors.reshape(n_q, -1, 3, n_modes)) ** 2).sum(2)
    shares = shares[:, mesh.group.permutations].mean(1)  # over the images of each atom
    shares = np.ascontiguousarray(shares.transpose(0, 2, 1))
    points, density = _tetrahedra(mesh, frequencies, shares[None], points, n_points)
    return points, density.T


def thermal_properties(
    mesh: QMesh, frequencies, temperatures, *, cutoff: float = 0.0
) -> ThermalProperties:
    """Free energy, entropy and heat capacity of harmonic vibrations, per mole of cells.

    Modes at or below `cutoff` THz (imaginary ones are negative) are left out; so are the three
    modes of smallest |frequency| at Γ, which are translations.
    """
    from phonopy.phonon.thermal_properties import ThermalProperties as Sums

    temperatures = checked_temperatures(temperatures)
    frequencies = _checked(mesh, frequencies).copy()
    counted = frequencies > cutoff
    if mesh.gamma is not None:
        translations = np.argsort(np.abs(frequencies[mesh.gamma]))[:3]
        frequencies[mesh.gamma, translations] = -1e-12
        counted[mesh.gamma, translations] = True
    cell = SimpleNamespace(primitive=SimpleNamespace(Z=1))
    view = SimpleNamespace(
        frequencies=frequencies, weights=mesh.weights, gamma_index=None, dynamical_matrix=cell
    )
    sums = Sums(view, cutoff_frequency=cutoff)
    sums.temperatures = temperatures
    sums.run()
    temperatures, free_energy, entropy, heat_capacity = sums.thermal_properties
    whole = mesh.weights.sum() * frequencies.shape[1]
    return ThermalProperties(
        temperatures=temperatures,
        free_energy=free_energy,
        entropy=entropy,
        heat_capacity=heat_capacity,
        zero_point_energy=float(sums.zero_point_energy),
        left_out=float((mesh.weights @ ~counted).sum() / whole),
    )


def thermal_displacements(
    mesh: QMesh, frequencies, eigenvectors, masses, temperatures, *, cutoff: float = 0.1
) -> np.ndarray:
    """Mean square displacements <u u^T> of each atom, [n_temperatures, n_atoms, 3, 3], Å².

    U_a = 1/N sum over modes of hbar/(2 m_a omega) coth(hbar omega / 2 kT) e e^*, averaged over the
    group because mesh.q is irreducible. Modes at or below `cutoff` THz and the translations at Γ
    are left out: their 1/omega² has no sum.
    """
    temperatures, masses = checked_temperatures(temperatures), np.asarray(masses, float)
    frequencies = _checked(mesh, frequencies)
    if (masses[mesh.group.permutations] != masses).any():
        raise UsageError(
            "the mesh was reduced by operations that exchange atoms of different mass",
            where="thermal_displacements",
            fix="q_mesh(..., masses=masses)",
        )
    vectors = np.asarray(eigenvectors).reshape(*frequencies.shape[:1], -1, 3, frequencies.shape[1])
    counted = (frequencies > cutoff) & ~_translations(mesh, frequencies)
    energy = np.where(counted, frequencies, 1.0) * units.THz
    with np.errstate(divide="ignore", over="ignore"):
        x = energy / (2 * units.kB * temperatures[:, None, None])
        size = np.where(counted, units.hbar**2 / (2 * energy) / np.tanh(x), 0)
    size = size * mesh.weights[:, None] / mesh.weights.sum()
    one = np.einsum("tqm,qaim,qajm->taij", size, vectors, vectors.conj(), optimize=True).real
    out = np.zeros_like(one)
    for rotation, permutation in zip(mesh.group.cartesian, mesh.group.permutations, strict=True):
        out[:, permutation] += rotation @ one @ rotation.T / mesh.group.n_ops
    return out / masses[:, None, None]


def share_not_displaced(mesh: QMesh, frequencies, *, cutoff: float = 0.1) -> float:
    """Share of all modes that `thermal_displacements` leaves out beside the translations at Γ."""
    frequencies = _checked(mesh, frequencies)
    missing = (frequencies <= cutoff) & ~_translations(mesh, frequencies)
    return float((mesh.weights @ missing).sum() / (mesh.weights.sum() * frequencies.shape[1]))


def _translations(mesh, frequencies):
    """[n_q, n_modes] True for the three modes at Γ that are nearest to zero."""
    out = np.zeros(np.shape(frequencies), bool)
    if mesh.gamma is not None:
        out[mesh.gamma, np.argsort(np.abs(frequencies[mesh.gamma]))[:3]] = True
    return out


def checked_temperatures(temperatures) -> np.ndarray:
    """[n] K, at least one and none below zero, or `UsageError`."""
    temperatures = np.atleast_1d(np.asarray(temperatures, np.float64))
    good = np.isfinite(temperatures) & (temperatures >= 0)
    if temperatures.ndim != 1 or not len(temperatures) or not good.all():
        raise UsageError(
            f"temperatures are {temperatures[~good].tolist() or 'none'}: they must be finite and "
            "not below 0 K",
            where="temperatures",
        )
    return temperatures


def dynamical_matrices(
    constants: ForceConstants, polar: Polar | None, q, *, direction=None, wang: bool = False
) -> np.ndarray:
    """phonopy's own D(q) [n_q, 3n, 3n], eV/Å² without masses, in the gauge of lattice vectors.

    wang: with its other interpolation (Wang et al., 10.1088/0953-8984/22/20/202201).
    direction: fractions of the reciprocal cell, from where q = 0 is approached.
    """
    phonon = to_phonopy(constants, polar)
    if wang and polar is not None:
        phonon.nac_params = {**phonon.nac_params, "method": "wang"}
    q = np.asarray(q, float).reshape(-1, 3)
    phonon.run_qpoints(q, with_dynamical_matrices=True, nac_q_direction=direction)
    matrices = phonon.qpoints.dynamical_matrices
    root = np.repeat(np.sqrt(constants.masses), 3)
    phase = np.exp(2j * np.pi * q @ (constants.positions @ np.linalg.inv(constants.cell)).T)
    phase = np.repeat(phase, 3, axis=1)
    return matrices * np.outer(root, root) * phase[:, :, None] * phase[:, None].conj()


def _tetrahedra(mesh, frequencies, shares, points, n_points):
    from phonopy.phonon.spectrum import TetrahedronDOSAccumulator

    frequencies = _checked(mesh, frequencies)
    if points is None:
        low, high = frequencies.min(), frequencies.max()
        margin = 0.02 * (high - low) + 1e-6
        points = np.linspace(low - margin, high + margin, n_points)
    found = TetrahedronDOSAccumulator(
        frequencies,
        mesh.grid,
        mode_property=shares,
        ir_grid_points=mesh.points,
        ir_grid_weights=mesh.weights,
        ir_grid_map=mesh.maps_to,
        sampling_points=np.asarray(points, float),
    ).result
    return np.asarray(points, float), found.density[0]


def _checked(mesh, frequencies):
    frequencies = np.ascontiguousarray(frequencies, np.float64)
    if frequencies.ndim != 2 or len(frequencies) != len(mesh.q):
        raise DataError(
            f"frequencies have shape {frequencies.shape}, the mesh has {len(mesh.q)} points",
            where="q_mesh",
        )
    if not np.isfinite(frequencies).all():
        bad = int(np.flatnonzero(~np.isfinite(frequencies).all(1))[0])
        raise DataError(f"frequencies at q = {mesh.q[bad]} are not finite", where="q_mesh")
    return frequencies


def _grid(atoms, divisions, shift, group):
    """phonopy's grid, reduced by the operations that map this very mesh onto itself."""
    from phonopy.phonon.grid import BZGrid

    shift = np.asarray(shift, int)
    turned = np.linalg.inv(group.rotations).transpose(0, 2, 1)  # of columns of q
    turned = divisions[:, None] * turned / divisions
    moved = (turned @ shift - shift) / 2
    whole = lambda x: np.abs(x - np.rint(x)) < 1e-8
    keep = whole(turned).all((1, 2)) & whole(moved).all(1)
    group = operations(group, keep)
    cell = np.array(atoms.cell.complete())
    dataset = SimpleNamespace(
        rotations=group.rotations,
        translations=group.translations,
        transformation_matrix=np.eye(3),
        std_lattice=cell,
        std_types=atoms.numbers,
        hall_number=1,
    )
    return BZGrid(divisions, lattice=cell, symmetry_dataset=dataset, is_shift=shift), group
