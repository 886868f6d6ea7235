"""Frequencies of a crystal from its dynamical matrices D(q), wherever those come from.

Everywhere in this room a dynamical matrix is a function, `D(q [n_q, 3]) -> [n_q, 3n, 3n]` complex,
in eV/Å² and without masses, of q in fractions of the reciprocal cell, in the gauge of lattice
vectors: D_ab(q) = sum over R of H(a 0, b R) exp(2 pi i q.R). It may be a potential's own
(`derivatives.dynamical_matrix`), a Fourier sum of force constants, or an interpolation of either.
Matrices are diagonalised on the host in float64.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from jaxmlip import units
from jaxmlip.errors import DataError, NumericalError
from jaxmlip.interfaces.phonons.symmetry import Symmetry, symmetry
from jaxmlip.vibrations.phonons.velocities import Matrices, slopes
from jaxmlip.vibrations.rigid import checked_masses

HERMITIAN = 1e-6  # share of max |D| by which D may differ from its adjoint (float32: 1e-7 a sum)
ROUNDING = 1e-12  # eV/Å², where all of D is nothing


@dataclass(frozen=True, kw_only=True)
class Crystal:
    """What turns D(q) into phonons; host numpy, float64."""

    cell: np.ndarray  # [3, 3] Å, rows are lattice vectors
    scaled_positions: np.ndarray  # [n_atoms, 3] fractions of the cell
    masses: np.ndarray  # [n_atoms] amu
    group: Symmetry  # operations that map the crystal onto itself

    @property
    def n_atoms(self) -> int:
        return len(self.masses)

    @property
    def reciprocal(self) -> np.ndarray:
        """[3, 3] rows are reciprocal vectors, 1/Å without 2 pi."""
        return np.linalg.inv(self.cell).T


def crystal(atoms, *, group: Symmetry | None = None, masses=None) -> Crystal:
    """Of `ase.Atoms`; group: default that found by spglib, masses: amu, default those of atoms."""
    masses = atoms.get_masses() if masses is None else masses
    if not atoms.pbc.all():
        raise DataError(f"phonons need a crystal, got pbc {atoms.pbc.tolist()}", where="crystal")
    cell = np.array(atoms.cell)
    return Crystal(
        cell=cell,
        scaled_positions=atoms.positions @ np.linalg.inv(cell),
        masses=checked_masses(masses, len(atoms)),
        group=symmetry(atoms) if group is None else group,
    )


def frequencies_THz(matrices, masses) -> np.ndarray:
    """[n_q, 3n] THz in ascending order, imaginary ones negative, of D(q) [n_q, 3n, 3n] eV/Å²."""
    return _terahertz(np.linalg.eigvalsh(mass_weighted(matrices, masses)))


def modes(matrices, masses) -> tuple[np.ndarray, np.ndarray]:
    """(frequencies [n_q, 3n] THz, eigenvectors [n_q, 3n, 3n], mode last).

    Eigenvectors are orthonormal, of the mass-weighted matrix in the gauge of lattice vectors; for
    that of atomic positions (phonopy) multiply the rows of atom a by exp(-2 pi i q.x_a).
    """
    values, vectors = np.linalg.eigh(mass_weighted(matrices, masses))
    return _terahertz(values), vectors


def mass_weighted(matrices, masses) -> np.ndarray:
    """Hermitian part of D / sqrt(m_a m_b), eV/(Å² amu); `NumericalError` if there is much else."""
    matrices = np.asarray(matrices, np.complex128)
    size = 3 * len(masses)
    if matrices.ndim != 3 or matrices.shape[1:] != (size, size):
        raise DataError(f"D(q) has shape {matrices.shape}, not (n_q, {size}, {size})")
    if not np.isfinite(matrices).all():
        first = int(np.flatnonzero(~np.isfinite(matrices).all((1, 2)))[0])
        raise NumericalError(f"D(q) is not finite, first at q number {first}")
    adjoint = matrices.conj().swapaxes(1, 2)
    wrong, largest = np.abs(matrices - adjoint).max(initial=0), np.abs(matrices).max(initial=0)
    if wrong > HERMITIAN * largest + ROUNDING:
        raise NumericalError(
            f"D(q) is not Hermitian: max |D - D^+| = {wrong:.3g} eV/Å², limit {HERMITIAN:g} of "
            f"max |D| = {largest:.3g} eV/Å²",
            fix="use float64; forces must be minus the gradient of the energy",
        )
    root = np.repeat(np.sqrt(np.asarray(masses, np.float64)), 3)
    return (matrices + adjoint) / 2 / np.outer(root, root)


def _terahertz(eigenvalues):
    return np.sign(eigenvalues) * np.sqrt(np.abs(eigenvalues)) * units.hbar / units.THz


# --- acoustic sum rule ---------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class AcousticSum:
    """How well translations of the whole crystal cost nothing, before any correction."""

    violation: float  # max |sum over b of D_ab(0)|, eV/Å²
    frequencies_THz: np.ndarray  # [3] of the modes at Gamma that are closest to translations


def acoustic_sum(gamma, masses) -> AcousticSum:
    """Of D(0) [3n, 3n], eV/Å²."""
    gamma, n = np.asarray(gamma), len(masses)
    blocks = gamma.reshape(n, 3, n, 3)
    frequencies, vectors = modes(gamma[None], masses)
    rigid = np.sqrt(np.asarray(masses) / np.sum(masses))[:, None, None] * np.eye(3)
    share = (np.abs(rigid.reshape(-1, 3).T @ vectors[0]) ** 2).sum(0)
    nearest = np.sort(np.argsort(-share)[:3])
    return AcousticSum(
        violation=float(np.abs(blocks.sum(2)).max()), frequencies_THz=frequencies[0, nearest]
    )


def with_acoustic_sum(D: Callable, gamma) -> Callable:
    """D with translations made free: the sums of D(0) are taken from the blocks of one atom.

    The same matrix is added at every q, so acoustic branches start at zero everywhere.
    """
    n = len(gamma) // 3
    change = np.zeros((n, 3, n, 3))
    sums = np.real(np.asarray(gamma)).reshape(n, 3, n, 3).sum(2)  # D(0) of a crystal is real
    change[range(n), :, range(n)] = -(sums + sums.swapaxes(1, 2)) / 2
    change = change.reshape(3 * n, 3 * n)
    return Matrices(values=lambda q: D(q) + change, slopes=lambda q, cell: slopes(D, q, cell))


# --- bands ---------------------------------------------------------------------------------------


def connected(frequencies, vectors) -> np.ndarray:
    """[n_q, 3n] order of modes that follows each branch through its crossings.

    frequencies [n_q, 3n] and vectors [n_q, 3n, 3n] along one segment; `np.take_along_axis` with
    the result gives branches. Neighbours are matched by the largest overlap of eigenvectors, so
    the points must lie close together.
    """
    n_q, size = np.shape(frequencies)
    order = np.empty((n_q, size), int)
    order[:1] = np.arange(size)
    for i in range(1, n_q):
        overlap = np.abs(vectors[i - 1][:, order[i - 1]].conj().T @ vectors[i])
        order[i] = _matched(overlap)
    return order


def _matched(overlap):
    """One column for each row, the largest overlaps first."""
    overlap, out = overlap.copy(), np.empty(len(overlap), int)
    for _ in range(len(overlap)):
        row, column = np.unravel_index(np.argmax(overlap), overlap.shape)
        out[row] = column
        overlap[row], overlap[:, column] = -1, -1
    return out


def raise_if_imaginary(frequencies, q, *, limit: float = 0.05) -> None:
    """`NumericalError` JM306 if a mode is imaginary by more than `limit` (THz)."""
    count, lowest, where = imaginary(frequencies, q, limit=limit)
    if count:
        raise NumericalError(
            f"{count} of {np.size(frequencies)} modes are imaginary by more than {limit:g} THz, "
            f"lowest {lowest:.3f} THz at q = {np.round(where, 4).tolist()}",
            where="phonons",
            code="JM306",
            fix="the crystal is unstable as it is: relax it (tighter, in a larger cell along that "
            "q), or ask that imaginary modes be told of and left out",
        )


def imaginary(frequencies, q, *, limit: float = 0.05) -> tuple[int, float, np.ndarray]:
    """(how many modes are imaginary by more than `limit` THz, the lowest frequency, its q)."""
    frequencies = np.asarray(frequencies)
    at = np.unravel_index(np.argmin(frequencies), frequencies.shape)
    return int((frequencies < -limit).sum()), float(frequencies[at]), np.asarray(q)[at[0]]
