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
    fixed=None,
    linear_tolerance: float = 0.02,
    symmetry_tolerance: float = 1e-3,
) -> Modes:
    """Normal modes of `hessian` [n_atoms, 3, n_atoms, 3] (eV/Å²) for `masses` [n_atoms] (amu).

    positions: [n_atoms, 3] Å. pbc: one or three booleans; with any periodic axis only
    translations are projected. project=False keeps all 3N (an external potential).
    fixed: [n_atoms] True for atoms that are held: modes of the block of the free atoms (Li and
    Jensen, 2002, 10.1007/s00214-001-0317-7), with zeros for the others; then `hessian` may hold
    only the rows of the free atoms, [n_free, 3, n_atoms, 3]. Held atoms take away translations,
    and rotations but those about one held atom or about the line of the held atoms.
    linear_tolerance: Å from the axis within which a molecule is linear.
    symmetry_tolerance: largest |H - H^T| allowed, as a share of max |H|; beyond it, or for values
    that are not finite, `NumericalError`. Masses, not numbers: isotopes are other masses.
    """
    n = len(positions)
    free = _free(fixed, n)
    rows = _rows(hessian, positions, free)
    masses = checked_masses(masses, n)
    block = rows[:, :, free]
    asymmetry = _check(block, rows, positions, free, symmetry_tolerance)
    matrix = mass_weighted(block, masses[free])
    rigid = rigid_motions(
        positions,
        masses,
        rotations=not np.any(pbc),
        tolerance=linear_tolerance,
        fixed=None if fixed is None else np.asarray(fixed, bool),
    )
    rigid = rigid[:, free].reshape(len(rigid), 3 * len(free))[: None if project else 0].T
    rest = np.linalg.qr(rigid, mode="complete")[0][:, rigid.shape[1] :]
    values, found = np.linalg.eigh(rest.T @ matrix @ rest)
    vectors = np.zeros((len(values), n, 3))
    vectors[:, free] = (rest @ found).T.reshape(-1, len(free), 3)
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
        acoustic_sum=float(np.abs(rows.sum(2)).max(initial=0)),
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


def _free(fixed, n):
    """Indices of the atoms that are not held; raises `DataError` where none is left."""
    if fixed is None:
        return np.arange(n)
    fixed = np.asarray(fixed, bool)
    if fixed.shape != (n,):
        raise DataError(f"fixed has shape {fixed.shape}, the structure has {n} atoms")
    if fixed.all():
        raise DataError("all atoms are held: there is nothing to vibrate", fix="leave some free")
    return np.flatnonzero(~fixed)


def _rows(hessian, positions, free):
    """The rows of the free atoms, [n_free, 3, n_atoms, 3]."""
    n, hessian = len(positions), np.asarray(hessian, np.float64)
    whole, part = (n, 3, n, 3), (len(free), 3, n, 3)
    if hessian.shape not in (whole, part) or np.shape(positions) != (n, 3):
        raise DataError(
            f"hessian has shape {hessian.shape} and positions {np.shape(positions)}, not {whole}"
            + (f" or {part}" if part != whole else "")
            + f" and ({n}, 3)"
        )
    return hessian[free] if hessian.shape == whole else hessian


def _check(block, rows, positions, free, tolerance: float) -> float:
    bad = free[~np.isfinite(rows).all((1, 2, 3))]
    if len(bad):
        raise NumericalError(
            f"the Hessian is not finite in the rows of {len(bad)} atoms, first atom {bad[0]}",
            fix="look at the energy and forces of this geometry",
        )
    if not np.isfinite(positions).all():
        raise NumericalError("positions are not finite")
    asymmetry = float(np.abs(block - block.transpose(2, 3, 0, 1)).max(initial=0))
    largest = float(np.abs(block).max(initial=0))
    if asymmetry > tolerance * largest:
        raise NumericalError(
            f"the Hessian is not symmetric: max |H - H^T| = {asymmetry:.3g} eV/Å², limit "
            f"{tolerance:g} of max |H| = {largest:.3g} eV/Å²",
            fix="use float64 (TF32 ruins curvature), or check that forces are minus the gradient",
        )
    return asymmetry
