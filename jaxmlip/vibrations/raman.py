"""Harmonic Raman scattering in absolute units, from Raman tensors and normal modes.

Placzek's theory, far from resonance: a mode scatters through the polarisability that it makes,
alpha' = d alpha/dQ. Averaged over orientations (gases, liquids, powders) two invariants are left,
the mean a and the anisotropy gamma, and the activity is S = 45 a² + 7 gamma² (Long, "The Raman
Effect", 2002, ch. 5; Neugebauer et al., 2002, 10.1002/jcc.10089).
"""

import numpy as np

from jaxmlip import units
from jaxmlip.errors import DataError
from jaxmlip.vibrations.infrared import lines
from jaxmlip.vibrations.modes import Modes

LASER = 1e7 / 532.0  # cm⁻¹, of the green line of Nd:YAG
SECOND = 2.99792458e10  # cm/s
CM = 1e-8  # of one Å
ERG_SECOND = 6.626070040e-27  # Planck's constant; CODATA 2014, as `units`
GRAM = units._amu * 1e3  # of one amu
COLD = 1e-9  # of a photon's energy over kT, below which its lines have no finite strength


def polarizability_derivatives(raman_tensors, modes: Modes) -> np.ndarray:
    """d alpha/dQ of each mode, [n_modes, 3, 3], Å²/sqrt(amu) (alpha as a volume, Å³).

    raman_tensors: d alpha/dr [n_atoms, 3 (of the atom), 3, 3], e² Å/eV.
    """
    raman_tensors = np.asarray(raman_tensors, np.float64)
    n_atoms = modes.vectors.shape[1]
    if raman_tensors.shape != (n_atoms, 3, 3, 3):
        raise DataError(f"raman_tensors have shape {raman_tensors.shape}, not ({n_atoms}, 3, 3, 3)")
    found = np.einsum("kia,iabc->kbc", modes.displacements, raman_tensors)
    return units.coulomb_constant * found


def invariants(derivatives) -> tuple[np.ndarray, np.ndarray]:
    """(mean a [n], squared anisotropy gamma² [n]) of symmetric tensors [n, 3, 3]."""
    t = np.asarray(derivatives, np.float64)
    mean = np.trace(t, axis1=-2, axis2=-1) / 3
    traceless = t - mean[..., None, None] * np.eye(3)
    return mean, 1.5 * (traceless**2).sum((-2, -1))


def activities(raman_tensors, modes: Modes) -> np.ndarray:
    """Raman activity 45 a² + 7 gamma² of each mode, [n_modes], Å⁴/amu."""
    mean, anisotropy = invariants(polarizability_derivatives(raman_tensors, modes))
    return 45 * mean**2 + 7 * anisotropy


def depolarization(raman_tensors, modes: Modes) -> np.ndarray:
    """Depolarisation ratio of each mode for linearly polarised light, [n_modes]: 0 to 3/4.

    3 gamma² / (45 a² + 4 gamma²), at a right angle; NaN for modes that do not scatter (an activity
    below 1e-12 of the largest). For unpolarised light: 2 rho / (1 + rho).
    """
    mean, anisotropy = invariants(polarizability_derivatives(raman_tensors, modes))
    parallel = 45 * mean**2 + 4 * anisotropy
    dark = parallel <= 1e-12 * np.max(parallel, initial=0)
    return np.where(dark, np.nan, 3 * anisotropy / np.where(dark, 1, parallel))


def cross_sections(
    frequencies_cm1, activities, *, laser: float = LASER, temperature: float = 298.15
) -> np.ndarray:
    """Differential Stokes cross-section of each mode, [n_modes], 1e-30 cm²/sr.

    Linearly polarised light scattered at a right angle, both polarisations seen:
    (2 pi)⁴ (nu0 - nu)⁴ h / (8 pi² c nu (1 - exp(-h c nu/kT))) S / 45. laser: nu0, cm⁻¹ (1e7 divided
    by nm). temperature: K, zero allowed. Zero for modes that are imaginary or lie above the laser.
    """
    f = np.asarray(frequencies_cm1, np.float64)
    if not (laser > 0 and temperature >= 0):
        raise DataError(f"laser {laser} cm⁻¹ and temperature {temperature} K must be positive")
    real = (f > 0) & (f < laser)
    nu = np.where(real, f, 1.0)
    strength = np.asarray(activities, np.float64) * CM**4 / GRAM  # cm⁴/g
    zero_point = ERG_SECOND / (8 * np.pi**2 * SECOND * nu)  # g cm²: <Q²> of the ground state
    out = (2 * np.pi * (laser - nu)) ** 4 * zero_point * strength / 45
    return 1e30 * np.where(real, out / _ground_share(nu, temperature), 0)


def spectrum(
    frequencies_cm1,
    activities,
    grid,
    *,
    width: float = 10.0,
    laser: float = LASER,
    temperature: float = 298.15,
) -> np.ndarray:
    """Scattering on `grid` (shift, cm⁻¹), [n_grid], 1e-30 cm²/sr per cm⁻¹: a Lorentzian a mode.

    width: full width at half maximum, cm⁻¹.
    """
    strengths = cross_sections(frequencies_cm1, activities, laser=laser, temperature=temperature)
    return lines(frequencies_cm1, strengths, grid, width=width)


def _ground_share(nu, temperature):
    """1 - exp(-h c nu / kT)."""
    if temperature == 0:
        return np.ones_like(nu)
    return np.maximum(-np.expm1(-nu * units.invcm / (units.kB * temperature)), COLD)
