"""Mode Grüneisen parameters from dynamical matrices at three volumes.

For force constants that come from elsewhere; a potential's own D(q) has exact derivatives with
respect to strain (`derivatives`), without a choice of volumes.
"""

import numpy as np

from jaxmlip import units
from jaxmlip.vibrations.phonons.dispersion import mass_weighted, modes
from jaxmlip.vibrations.phonons.velocities import SLOWEST, mode_slopes


def mode_gruneisen(matrices, larger, smaller, masses, volumes, *, tolerance: float = 1e-4):
    """-dln ω/dln V of every mode: (parameters [n_q, 3n], frequencies [n_q, 3n] THz).

    matrices, larger, smaller: D [n_q, 3n, 3n] at the middle, a larger and a smaller volume, at the
    same q in fractions of each reciprocal cell; volumes: those three, in this order. With the
    eigenvectors of the middle volume: -V/(2 ω²) e^* dD/dV e, first order in V. Modes closer than
    `tolerance` THz are turned within their space, so that they do not depend on the eigensolver.
    NaN below `SLOWEST` THz, where translations at Gamma have rounding for a frequency.
    """
    slope = mass_weighted(np.asarray(larger) - np.asarray(smaller), masses)
    slope *= volumes[0] / (volumes[1] - volumes[2])
    frequencies, vectors = modes(matrices, masses)
    first = mode_slopes(slope[:, None], frequencies, vectors, along=[1], tolerance=tolerance)[
        ..., 0
    ]
    square = np.sign(frequencies) * (frequencies * units.THz / units.hbar) ** 2
    usable = np.abs(frequencies) > SLOWEST
    return np.where(usable, -first / (2 * np.where(usable, square, 1)), np.nan), frequencies


def mean_gruneisen(parameters, frequencies, weights, temperature: float, *, cutoff: float = 1e-2):
    """Mean over modes weighted by their heat capacities at `temperature` (K).

    parameters, frequencies: [n_q, 3n]; weights: [n_q]. Modes at or below `cutoff` THz are left out.
    """
    x = np.where(frequencies > cutoff, frequencies, 1.0) * units.THz / (units.kB * temperature)
    capacity = (x / 2 / np.sinh(np.minimum(x / 2, 300))) ** 2
    share = np.where(frequencies > cutoff, capacity * np.asarray(weights)[:, None], 0)
    return float((share * np.where(share > 0, parameters, 0)).sum() / share.sum())
