"""Normal modes from a Hessian, with translations and rotations projected out.

The projection is exact (Eckart frame; Ochterski, "Vibrational Analysis in Gaussian", 1999): the
Hessian is diagonalised in the complement of the rigid motions, so a molecule has 3N-6 modes, a
linear one 3N-5, an atom none. Dropping the six lowest instead would drop soft or imaginary modes.
What the projection hides (rigid motions that do cost energy, an asymmetric Hessian) is returned
beside the modes as figures of quality.
"""

from dataclasses import dataclass

import numpy as np

from jaxmlip import units
from jaxmlip.errors import DataError, NumericalError
from jaxmlip.vibrations.rigid import checked_masses, rigid_motions


@dataclass(frozen=True, kw_only=True)
class Modes:
    """Normal modes in order of frequency; host numpy, float64."""

    frequencies_cm1: np.ndarray  # [n_modes] negative = imaginary
    vectors: np.ndarray  # [n_modes, n_atoms, 3] mass-weighted, orthonormal
    displacements: np.ndarray  # [n_modes, n_atoms, 3] vectors / sqrt(mass) = dr/dQ, amu^-1/2
    reduced_masses: np.ndarray  # [n_modes] amu, of cartesian displacements normed to one
    force_constants: np.ndarray  # [n_modes] eV/Å², of the same displacements
    rigid_frequencies_cm1: np.ndarray  # [n_rigid] of what was projected out: zero if all is well
    asymmetry: float  # max |H - H^T|, eV/Å²
    acoustic_sum: float  # max |sum over atoms of H|, eV/Å²: zero by translation

    @property
    def n_imaginary(self) -> int:
        return int((self.frequencies_cm1 < 0).sum())


def normal_modes(
    hessian,
    masses,
    positions,
    *,
    pbc=False,
    project: bool = True,
    linear_tolerance: float = 0.02,
    symmetry_tolerance: float = 1e-3,
) -> Modes:
    """Normal modes of `hessian` [n_atoms, 3, n_atoms, 3] (eV/Å²) for `masses` [n_atoms] (amu).

    positions: [n_atoms, 3] Å. pbc: one or three booleans; with any periodic axis only
    translations are projected. project=False keeps all 3N (atoms held by a frame).
    linear_tolerance: Å from the axis within which a molecule is linear.
    symmetry_tolerance: largest |H - H^T| allowed, as a share of max |H|; beyond it, or for values
    that are not finite, `NumericalError`. Masses, not numbers: isotopes are other masses.
    """
    n = len(positions)
    hessian = np.asarray(hessian, np.float64)
    if hessian.shape != (n, 3, n, 3) or np.shape(positions) != (n, 3):
        raise DataError(
            f"hessian has shape {hessian.shape} and positions {np.shape(positions)}, "
            f"not ({n}, 3, {n}, 3) and ({n}, 3)"
        )
    masses = checked_masses(masses, n)
    asymmetry = _check(hessian, positions, symmetry_tolerance)
    matrix = mass_weighted(hessian, masses)
    rotations = not np.any(pbc)
    rigid = rigid_motions(positions, masses, rotations=rotations, tolerance=linear_tolerance)
    rigid = rigid.reshape(-1, 3 * n)[: None if project else 0].T
    rest = np.linalg.qr(rigid, mode="complete")[0][:, rigid.shape[1] :]
    values, vectors = np.linalg.eigh(rest.T @ matrix @ rest)
    vectors = (rest @ vectors).T.reshape(-1, n, 3)
    displacements = vectors / np.sqrt(masses)[:, None]
    reduced = 1 / (displacements**2).sum((1, 2))
    return Modes(
        frequencies_cm1=frequencies_cm1(values),
        vectors=vectors,
        displacements=displacements,
        reduced_masses=reduced,
        force_constants=values * reduced,
        rigid_frequencies_cm1=frequencies_cm1(np.linalg.eigvalsh(rigid.T @ matrix @ rigid)),
        asymmetry=asymmetry,
        acoustic_sum=float(np.abs(hessian.sum(2)).max(initial=0)),
    )


def mass_weighted(hessian, masses):
    """Symmetric part of H_ij / sqrt(m_i m_j), [3 n_atoms, 3 n_atoms], eV/(Å² amu)."""
    size = 3 * len(masses)
    root = np.repeat(np.sqrt(masses), 3)
    matrix = np.asarray(hessian, np.float64).reshape(size, size) / np.outer(root, root)
    return (matrix + matrix.T) / 2


def frequencies_cm1(eigenvalues):
    """Wavenumbers (cm⁻¹) of squared angular frequencies (eV/(Å² amu)); negative = imaginary."""
    return np.sign(eigenvalues) * np.sqrt(np.abs(eigenvalues)) * units.hbar / units.invcm


def _check(hessian, positions, tolerance: float) -> float:
    bad = np.flatnonzero(~np.isfinite(hessian).all((1, 2, 3)))
    if len(bad):
        raise NumericalError(
            f"the Hessian is not finite in the rows of {len(bad)} atoms, first atom {bad[0]}",
            fix="look at the energy and forces of this geometry",
        )
    if not np.isfinite(positions).all():
        raise NumericalError("positions are not finite")
    asymmetry = float(np.abs(hessian - hessian.transpose(2, 3, 0, 1)).max(initial=0))
    largest = float(np.abs(hessian).max(initial=0))
    if asymmetry > tolerance * largest:
        raise NumericalError(
            f"the Hessian is not symmetric: max |H - H^T| = {asymmetry:.3g} eV/Å², limit "
            f"{tolerance:g} of max |H| = {largest:.3g} eV/Å²",
            fix="use float64 (TF32 ruins curvature), or check that forces are minus the gradient",
        )
    return asymmetry
