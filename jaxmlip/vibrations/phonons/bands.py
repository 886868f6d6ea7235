"""Phonons of a crystal: bands, density of states, thermal properties, all from one D(q).

    D = dynamical_matrix(apply), force constants, or anything else (see `dispersion`)
    found = phonons(D, atoms, mesh=(12, 12, 12), temperatures=[300.0])
    found.bands.frequencies_THz, found.dos, found.thermal.heat_capacity

Energies are those of one mole of the cells that are given: phonopy's, where that cell is primitive.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from jaxmlip.interfaces.phonons.band_path import band_path
from jaxmlip.interfaces.phonons.phonopy import (
    QMesh,
    ThermalProperties,
    checked_temperatures,
    projected_dos,
    q_mesh,
    thermal_displacements,
    thermal_properties,
    total_dos,
)
from jaxmlip.interfaces.phonons.symmetry import symmetry
from jaxmlip.vibrations.phonons.certified import (
    Certified,
    certified_mesh,
    certified_points,
    raise_unless_certified,
    remembered,
)
from jaxmlip.vibrations.phonons.dispersion import (
    AcousticSum,
    Crystal,
    acoustic_sum,
    crystal,
    imaginary,
    modes,
    raise_if_imaginary,
)
from jaxmlip.vibrations.phonons.grids import q_grid
from jaxmlip.vibrations.phonons.interpolation import FourierSum, from_grid
from jaxmlip.vibrations.phonons.velocities import Matrices, group_velocities, slopes

FEW = 24  # points so few that it is as cheap to have all of them exact


@dataclass(frozen=True, kw_only=True)
class Path:
    """Lines of q; where two lines meet the point stands twice."""

    q: np.ndarray  # [n_q, 3] fractions of the reciprocal cell
    distance: np.ndarray  # [n_q] 1/Å with the factor 2 pi, along the path
    direction: np.ndarray  # [n_q, 3] of the line, as q; zero for a lone point
    labels: tuple  # [n_q] names of special points, "" for all others
    segments: tuple  # of (first, last + 1)


@dataclass(frozen=True, kw_only=True)
class Bands:
    """Frequencies and eigenvectors at given q, in ascending order (see `connected`)."""

    path: Path
    frequencies_THz: np.ndarray  # [n_q, 3n] imaginary ones negative
    eigenvectors: np.ndarray  # [n_q, 3n, 3n] mode last, gauge of lattice vectors
    group_velocities: np.ndarray  # [n_q, 3n, 3] km/s; zero where omega is
    interpolation: Certified | None  # None: every D(q) is exact


@dataclass(frozen=True, kw_only=True)
class Phonons:
    """Everything of one crystal; host numpy, float64."""

    crystal: Crystal
    symbols: tuple  # [n_atoms]
    acoustic: AcousticSum  # at Gamma, before any correction
    bands: Bands
    mesh: QMesh
    frequencies_THz: np.ndarray  # [n_mesh, 3n] at mesh.q
    eigenvectors: np.ndarray  # [n_mesh, 3n, 3n]
    group_velocities: np.ndarray  # [n_mesh, 3n, 3] km/s; zero where omega is
    dos_THz: np.ndarray  # [n_points]
    dos: np.ndarray  # [n_points] states per THz and cell; its integral is 3n
    projected_dos: np.ndarray  # [n_atoms, n_points]
    thermal: ThermalProperties  # per mole of cells
    displacements: np.ndarray  # [n_temperatures, n_atoms, 3, 3] Å², <u u^T>
    interpolation: Certified | None  # of the mesh; None: every D(q) is exact
    force_constants: FourierSum | None  # of the mesh, where it was interpolated
    n_exact: int  # exact D(q) in all, beside their slopes

    @property
    def imaginary(self) -> tuple[int, float, np.ndarray]:
        """(how many modes of mesh and path are imaginary, the lowest frequency, its q)."""
        frequencies = np.concatenate([self.frequencies_THz, self.bands.frequencies_THz])
        return imaginary(frequencies, np.concatenate([self.mesh.q, self.bands.path.q]))


def phonons(
    D: Callable,
    atoms,
    *,
    mesh=(12, 12, 12),
    temperatures=(300.0,),
    path: Path | None = None,
    tolerance: float | None = 0.02,
    budget: int = 400,
    nonanalytic: Callable | None = None,
    near: float | None = None,
    correct: Callable | None = None,
    on_imaginary: Callable = raise_if_imaginary,
    dos_points: int = 401,
    masses=None,
    symmetric: bool = True,
    symprec: float = 1e-5,
    report: Callable | None = None,
) -> Phonons:
    """Bands, density of states and thermal properties of `ase.Atoms` with dynamical matrices D.

    D(q [n_q, 3]) -> [n_q, 3n, 3n] eV/Å², analytic in q. nonanalytic(q, direction=None) is added to
    it, the direction [3] being that of the limit where q is zero (`nonanalytic.DipoleSum`, or
    `nonanalytic.beyond_supercell`). near: for a D that is not analytic at Gamma by itself;
    there, at the end of a line, it is then taken at a largest |q| of `near` along the line, its
    even part (the odd one is phases). path: where the bands are wanted, default `standard_path`.
    tolerance: THz to which D is interpolated (bands by `certified_points`, mesh by
    `certified_mesh`), from at most `budget` exact matrices each; None for a D that costs nothing:
    exact everywhere. Lone points and a mesh with fewer irreducible points than an interpolation
    needs are exact, too. Group velocities are exact where D has a `gradient` (`model_matrices`,
    Fourier sums).
    correct: (D, D(0)) -> D, such as `with_acoustic_sum`.
    on_imaginary: (frequencies, q) -> None, called with those of the bands and of the mesh; the
    default raises JM306. Imaginary modes are left out of thermal properties, and the share is told.
    masses: amu, default those of the atoms; the mesh is reduced by what leaves them, too, as they
    are. symmetric=False: by time reversal only. symprec: Å, to which atoms have the space group
    that decides path, mesh and interpolation. Raises JM307 where the budget ends first.
    """
    temperatures = checked_temperatures(temperatures)
    lattice = crystal(atoms, group=symmetry(atoms, tolerance=symprec), masses=masses)
    path = standard_path(atoms, symprec=symprec) if path is None else path
    how = {"symmetric": symmetric, "masses": lattice.masses, "tolerance": symprec}
    points = q_mesh(atoms, mesh, **how)
    exact, table = remembered(D)
    zero = np.zeros((1, 3))
    gamma = exact(zero)[0] + (0 if nonanalytic is None else nonanalytic(zero)[0])
    found = acoustic_sum(gamma, lattice.masses)
    exact = exact if correct is None else correct(exact, gamma)
    settings = {"tolerance": tolerance, "budget": budget, "report": report}
    D_mesh, of_mesh, known = _on_mesh(exact, lattice, points, nonanalytic=nonanalytic, **settings)
    bands = bands_along(
        exact,
        lattice,
        path,
        nonanalytic=nonanalytic,
        near=near,
        guess=D_mesh,
        first=known,
        **settings,
    )
    on_imaginary(bands.frequencies_THz, path.q)
    extra = 0 if nonanalytic is None else nonanalytic(points.q)
    frequencies, vectors = modes(D_mesh(points.q) + extra, lattice.masses)
    on_imaginary(frequencies, points.q)
    grid_of_dos, dos = total_dos(points, frequencies, n_points=dos_points)
    slope = slopes(D_mesh, points.q, lattice.cell, nonanalytic)
    return Phonons(
        crystal=lattice,
        symbols=tuple(atoms.get_chemical_symbols()),
        acoustic=found,
        bands=bands,
        mesh=points,
        frequencies_THz=frequencies,
        eigenvectors=vectors,
        group_velocities=group_velocities(slope, frequencies, vectors, lattice.masses),
        dos_THz=grid_of_dos,
        dos=dos,
        projected_dos=projected_dos(points, frequencies, vectors, points=grid_of_dos)[1],
        thermal=thermal_properties(points, frequencies, temperatures),
        displacements=thermal_displacements(
            points, frequencies, vectors, lattice.masses, temperatures
        ),
        interpolation=of_mesh,
        force_constants=D_mesh if isinstance(D_mesh, FourierSum) else None,
        n_exact=len(table),
    )


def _on_mesh(exact, lattice, points, *, tolerance, budget, nonanalytic, report):
    """(D for the mesh, its certificate or None where it is exact, the q that it rests on)."""
    if tolerance is None:
        return exact, None, None
    if len(points.q) > FEW:
        most = min(budget, len(points.q))
        found = certified_mesh(
            exact, lattice, tolerance=tolerance, budget=most, nonanalytic=nonanalytic, report=report
        )
        if found.certified or len(points.q) > budget:
            raise_unless_certified(found)
            return found.D, found, q_grid(lattice, found.shape).q
    grid = q_grid(lattice, points.divisions)
    return from_grid(lattice, grid, exact(grid.q)), None, grid.q


def bands_along(
    D: Callable,
    lattice: Crystal,
    path: Path,
    *,
    tolerance: float | None = 0.02,
    budget: int = 400,
    nonanalytic: Callable | None = None,
    near: float | None = None,
    guess: Callable | None = None,
    first=None,
    report: Callable | None = None,
) -> Bands:
    """Bands along a path; arguments as in `phonons` and `certified_points`.

    Lone points and lines of a few points are exact, not interpolated.
    """
    found, D_path, on_line = None, D, _on_line(path)
    if tolerance is not None and on_line.sum() > FEW:
        found = certified_points(
            D,
            lattice,
            path.q[on_line],
            tolerance=tolerance,
            budget=budget + (0 if first is None else len(first)),
            guess=guess,
            first=first,
            nonanalytic=nonanalytic,
            report=report,
        )
        raise_unless_certified(found)
        D_path = found.D if on_line.all() else _either(found.D, D, on_line)
    extra = 0 if nonanalytic is None else _along(nonanalytic, path)
    matrices = D_path(path.q) + extra
    if near is not None:
        at = _ends_at_gamma(path)
        along = path.direction[at] / np.abs(path.direction[at]).max(1, keepdims=True)
        matrices[at] = D(near * along).real
    frequencies, vectors = modes(matrices, lattice.masses)
    slope = slopes(D_path, path.q, lattice.cell, nonanalytic)
    return Bands(
        path=path,
        frequencies_THz=frequencies,
        eigenvectors=vectors,
        group_velocities=group_velocities(slope, frequencies, vectors, lattice.masses),
        interpolation=found,
    )


def _on_line(path):
    """[n_q] whether a point is one of many on a line."""
    out = np.zeros(len(path.q), bool)
    for first, last in path.segments:
        out[first:last] = last - first > 1
    return out


def _either(interpolated, exact, on_line):
    """What is interpolated on the lines of a path and exact at its other points."""

    def joined(line, lone):
        out = np.empty((len(on_line), *line.shape[1:]), complex)
        out[on_line], out[~on_line] = line, lone
        return out

    return Matrices(
        values=lambda q: joined(interpolated(q[on_line]), exact(q[~on_line])),
        slopes=lambda q, cell: joined(
            interpolated.gradient(q[on_line], cell), slopes(exact, q[~on_line], cell)
        ),
    )


def _along(nonanalytic, path):
    """At zero, the limit along the line."""
    out = nonanalytic(path.q)
    for i in _ends_at_gamma(path):
        out[i] = nonanalytic(path.q[i : i + 1], path.direction[i])[0]
    return out


def _ends_at_gamma(path):
    """Indices of points at Gamma to which a line leads."""
    gamma = np.abs(path.q - np.rint(path.q)).max(1) < 1e-9
    return np.flatnonzero(gamma & path.direction.any(1))


# --- paths ---------------------------------------------------------------------------------------


def standard_path(atoms, *, spacing: float = 0.05, symprec: float = 1e-5) -> Path:
    """The path of Hinuma et al. (seekpath) for this cell; spacing of points in 1/Å, with 2 pi."""
    found = band_path(atoms, spacing, tolerance=symprec)
    names = dict(found.labels)
    index = np.concatenate([np.arange(first, last) for first, last in found.segments])
    ends = np.cumsum([0] + [last - first for first, last in found.segments])
    lines = [found.q[last - 1] - found.q[first] for first, last in found.segments]
    return Path(
        q=found.q[index],
        distance=found.distance[index],
        direction=np.repeat(lines, np.diff(ends), axis=0),
        labels=tuple(names.get(i, "") for i in index),
        segments=tuple(zip(ends[:-1].tolist(), ends[1:].tolist(), strict=True)),
    )


def points_path(q, atoms) -> Path:
    """Lone points q [n_q, 3], Gamma named; distances are those from point to point."""
    q = np.asarray(q, np.float64).reshape(-1, 3)
    steps = np.diff(q, axis=0) @ (2 * np.pi * np.linalg.inv(np.array(atoms.cell)).T)
    return Path(
        q=q,
        distance=np.concatenate([[0.0], np.cumsum(np.linalg.norm(steps, axis=1))])[: len(q)],
        direction=np.zeros_like(q),
        labels=tuple("Γ" if np.allclose(p, np.rint(p), atol=1e-8) else "" for p in q),
        segments=tuple((i, i + 1) for i in range(len(q))),
    )
