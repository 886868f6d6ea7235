"""Harmonic infrared absorption in absolute units, from Born charges and normal modes.

A mode absorbs through the dipole it makes: I = N_A / (12 eps0 c²) |dmu/dQ|², dmu/dQ = sum of Born
charges times displacements (e/sqrt(amu)). 1 e²/amu is 974.88 km/mol, 1 (D/Å)²/amu 42.256 km/mol.
"""

import numpy as np

from jaxmlip import units
from jaxmlip.errors import DataError
from jaxmlip.vibrations.modes import Modes


def dipole_derivatives(born_charges, modes: Modes):
    """dmu/dQ of each mode, [n_modes, 3], e/sqrt(amu).

    born_charges: [n_atoms, 3 (of the atom), 3 (of the field)], e.
    """
    born_charges = np.asarray(born_charges, np.float64)
    n_atoms = modes.vectors.shape[1]
    if born_charges.shape != (n_atoms, 3, 3):
        raise DataError(f"born_charges have shape {born_charges.shape}, not ({n_atoms}, 3, 3)")
    return np.einsum("kia,iab->kb", modes.displacements, born_charges)


def intensities(born_charges, modes: Modes):
    """Integrated absorption of each mode, [n_modes], km/mol (Napierian, double harmonic)."""
    return units.infrared_intensity * (dipole_derivatives(born_charges, modes) ** 2).sum(-1)


def charge_sum_error(born_charges, charge: float = 0.0) -> float:
    """max |sum over atoms of Z* - charge x 1|, e: zero since moving all atoms moves the charge."""
    total = np.asarray(born_charges, np.float64).sum(0)
    return float(np.abs(total - charge * np.eye(3)).max())


def spectrum(frequencies_cm1, intensities, grid, *, width: float = 10.0):
    """Absorption on `grid` (cm⁻¹), [n_grid], km/mol per cm⁻¹: a Lorentzian for every mode.

    width: full width at half maximum, cm⁻¹. Over all wavenumbers the integral is the sum of the
    intensities. Imaginary modes lie at negative wavenumbers. Times 43.43 for the decadic molar
    absorption coefficient in L/(mol cm).
    """
    return lines(frequencies_cm1, intensities, grid, width=width)


def lines(frequencies_cm1, strengths, grid, *, width: float):
    """Lorentzians of given areas on `grid`, [n_grid]; width: full width at half maximum, cm⁻¹."""
    if not width > 0:
        raise DataError(f"width is {width} cm⁻¹; it must be positive")
    distance = np.asarray(grid, np.float64)[:, None] - np.asarray(frequencies_cm1, np.float64)
    shapes = (width / (2 * np.pi)) / (distance**2 + (width / 2) ** 2)
    return shapes @ np.asarray(strengths, np.float64)
