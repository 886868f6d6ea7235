"""From classical to quantum spectra: factors Q(x) on classical correlation spectra, x = ħω/kT.

A classical correlation is even in frequency; a quantum one obeys detailed balance, and so does each
of these: Q(x) = exp(x) Q(-x). Which is best is not known in general. `harmonic` is exact for
oscillators whose property is linear in their coordinate, and is the only one that leaves integrated
infrared intensities as they are (Ramirez, Lopez-Ciudad, Kumar and Marx, 2004, 10.1063/1.1774986).
"""

import numpy as np

from jaxmlip import units
from jaxmlip.errors import DataError


def harmonic(x):
    """x / (1 - exp(-x))."""
    x = np.asarray(x, np.float64)
    small = np.abs(x) < 1e-6
    return np.where(small, 1 + x / 2, x / -np.expm1(-np.where(small, 1.0, x)))


def standard(x):
    """2 / (1 + exp(-x)): the symmetrised quantum correlation taken for the classical one."""
    return 2 / (1 + np.exp(-np.asarray(x, np.float64)))


def schofield(x):
    """exp(x / 2): time shifted by iħ/2kT (Schofield, 1960, 10.1103/PhysRevLett.4.239)."""
    return np.exp(np.asarray(x, np.float64) / 2)


def mixed(x):
    """sqrt(harmonic x schofield) (Skinner and Park, 2001, 10.1021/jp010602k)."""
    return np.sqrt(harmonic(x) * schofield(x))


def reduced(wavenumbers_cm1, temperature: float) -> np.ndarray:
    """x = ħω/kT of wavenumbers; temperature in K, above zero."""
    if not 0 < temperature < np.inf:
        raise DataError(f"the temperature is {temperature} K; it must be above zero")
    return np.asarray(wavenumbers_cm1, np.float64) * (units.invcm / (units.kB * temperature))


def beyond_harmonic(quantum, wavenumbers_cm1, temperature: float) -> np.ndarray:
    """Q / Q_harmonic: what another factor does to a spectrum that has the harmonic one."""
    if quantum is harmonic:
        return np.ones(np.shape(wavenumbers_cm1))
    x = reduced(wavenumbers_cm1, temperature)
    return quantum(x) / harmonic(x)
