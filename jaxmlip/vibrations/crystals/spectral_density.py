"""Thermodynamics and density of states of large cells, from a `SpectralDensity`, with error bars.

No Hessian is built: sums over modes are taken with the nodes and weights of stochastic Lanczos
quadrature (`jaxmlip.derivatives.second.lanczos`). Quantities are those of the whole cell.
"""

from typing import NamedTuple

import numpy as np

from jaxmlip.derivatives.second.lanczos import (
    Estimate,
    SpectralDensity,
    nodes_and_weights,
    sum_over_modes,
)
from jaxmlip.errors import NumericalError, UsageError
from jaxmlip.vibrations.modes import frequencies_cm1
from jaxmlip.vibrations.thermodynamics import harmonic


class Thermal(NamedTuple):
    """Harmonic vibrations of a cell at one temperature."""

    free_energy: Estimate  # eV, zero-point energy included
    energy: Estimate  # eV
    entropy: Estimate  # eV/K
    heat_capacity: Estimate  # eV/K, at constant volume
    n_imaginary: float  # modes left out, estimated


def thermal(
    density: SpectralDensity, temperature: float, *, ignore_imaginary_below_cm1: float = 0.0
) -> Thermal:
    """Free energy, energy, entropy and heat capacity of the cell, each with its error.

    Imaginary modes raise `NumericalError`, except those of magnitude below
    `ignore_imaginary_below_cm1`, which are left out and counted: as in `ideal_gas`.
    """
    if not temperature > 0:
        raise UsageError(f"temperature is {temperature} K; it must be positive")
    n_imaginary = _imaginary(density, ignore_imaginary_below_cm1)
    sums = sum_over_modes(density, lambda values: _oscillators(values, temperature))
    return Thermal(*(Estimate(*(x[k] for x in sums)) for k in range(4)), n_imaginary)


def density_of_states(density: SpectralDensity, grid, *, width: float) -> Estimate:
    """Modes per cm⁻¹ on `grid` (cm⁻¹), [n_grid], broadened by a Gaussian; integrates to n_modes.

    width: standard deviation, cm⁻¹. n Lanczos steps resolve about the range of frequencies / n; a
    `truncation` as large as the value says that the width is below that. Imaginary modes lie at
    negative wavenumbers.
    """
    if not width > 0:
        raise UsageError(f"width is {width} cm⁻¹; it must be positive")
    grid = np.asarray(grid, np.float64)

    def lines(values):
        distance = (grid - frequencies_cm1(values)[:, None]) / width
        return np.exp(-0.5 * distance**2) / (width * np.sqrt(2 * np.pi))

    return sum_over_modes(density, lines)


def _oscillators(values, temperature):
    """[k, 4] free energy, energy, entropy and heat capacity of each; zero for imaginary modes."""
    out = np.zeros((len(values), 4))
    for row, frequency in zip(out, frequencies_cm1(values), strict=True):
        if frequency > 0:
            energy, entropy, capacity = harmonic([frequency], temperature)
            row[:] = energy - temperature * entropy, energy, entropy, capacity
    return out


def _imaginary(density, limit):
    """Estimated number of modes that are not positive; raises if one is lower than -limit."""
    nodes, weights = nodes_and_weights(density)
    nodes, weights = nodes[weights > 1e-24], weights[weights > 1e-24]
    frequencies = frequencies_cm1(nodes)
    wrong = frequencies <= 0
    number = float(density.n_modes * weights[wrong].sum() / density.n_probes)
    if (wrong & ~(-frequencies < limit)).any():
        raise NumericalError(
            f"about {number:.2g} modes are imaginary or zero, down to "
            f"{frequencies.min():.1f} cm⁻¹: the structure is not at a minimum",
            where="spectral density",
            fix="relax to a smaller fmax, or leave them out with ignore_imaginary_below_cm1",
        )
    return number
