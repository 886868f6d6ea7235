"""Spectral densities of time series, with a resolution in cm⁻¹ and error bars from blocks.

The density G of a series x is that of its power over positive wavenumbers: the integral of G is
<x·x>, whatever the window. It is the Fourier transform of the correlation function times a window,
a function of lag / longest lag from 1 at 0; the window is the shape of a line, and the longest lag
is chosen so that a sharp line is `width` cm⁻¹ wide at half its height.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np

from jaxmlip import units
from jaxmlip.errors import DataError
from jaxmlip.vibrations.spectra.correlation import (
    blocks,
    columns,
    correlation,
    fast_length,
    standard_error,
)

LIGHT = 2.99792458e-5  # cm/fs
MOST_BLOCKS = 10


def gaussian(u):
    """Four standard deviations long: Gaussian lines, ripples below 1e-3 of their height."""
    return np.exp(-8 * np.asarray(u) ** 2)


def hann(u):
    """Needs the shortest trajectory for a width; ripples of 3 %."""
    return 0.5 + 0.5 * np.cos(np.pi * np.asarray(u))


def blackman(u):
    """Between the two: ripples of 0.1 %."""
    u = np.pi * np.asarray(u)
    return 0.42 + 0.5 * np.cos(u) + 0.08 * np.cos(2 * u)


@dataclass(frozen=True, kw_only=True)
class Spectrum:
    """A spectrum of a trajectory, and the same from parts of it."""

    wavenumbers_cm1: np.ndarray  # [n_grid] from zero
    values: np.ndarray  # [n_grid]
    blocks: np.ndarray  # [n_blocks, n_grid] of parts of the trajectory
    width_cm1: float  # full width at half maximum of a sharp line

    @property
    def errors(self) -> np.ndarray:
        """Standard error of the values, [n_grid]; NaN for fewer than two blocks."""
        return standard_error(self.blocks)


def spectral_density(
    x,
    *,
    dt: float,
    width: float = 10.0,
    window: Callable = gaussian,
    weights=None,
    n_blocks: int | None = None,
) -> Spectrum:
    """Power of a series [n_frames, ...] per cm⁻¹, its columns summed with `weights`.

    dt: fs between frames. width: cm⁻¹. n_blocks: parts for the error bars, by default as many as
    are twice as long as the longest lag, ten at most. The mean of the series is part of it: a line
    at zero. Sums over the grid by the trapezoidal rule are exact. `DataError` where the trajectory
    is too short for the width.
    """
    x = columns(x)
    n_lags = lags(len(x), dt=dt, width=width, window=window)
    shape = window(np.arange(n_lags) / n_lags)
    size = fast_length(6 * n_lags)
    size += size % 2

    def density(x):
        c = correlation(x, n_lags=n_lags, weights=weights) * shape
        return 4 * LIGHT * dt * (np.fft.rfft(c, size).real - c[0] / 2)

    if n_blocks is None:
        n_blocks = max(min(MOST_BLOCKS, len(x) // (2 * n_lags)), 1)
    parts = blocks(x, n_blocks)
    if len(parts[0]) < n_lags:
        raise DataError(
            f"{n_blocks} blocks of {len(parts[0]) * dt / 1000:.2f} ps are shorter than the longest "
            f"lag of {n_lags * dt / 1000:.2f} ps",
            where="spectral_density",
            fix="fewer blocks, or a larger width",
        )
    return Spectrum(
        wavenumbers_cm1=np.fft.rfftfreq(size, dt * LIGHT),
        values=density(x),
        blocks=np.stack([density(part) for part in parts]),
        width_cm1=float(width),
    )


def density_of_rate(x, *, dt: float, **options) -> Spectrum:
    """The density of dx/dt, from x [n_frames, ...] every dt fs, in internal units of time.

    Of the differences between frames, which have no line at zero that could leak into the others,
    and whose response (2/dt) sin(ω dt/2) is known and taken out.
    """
    x = columns(x).astype(np.float64)
    if len(x) < 3:
        raise DataError(f"{len(x)} frames are too few for a rate")
    found = spectral_density(np.diff(x, axis=0) / (dt * units.fs), dt=dt, **options)
    return scaled(found, 1 / np.sinc(found.wavenumbers_cm1 * LIGHT * dt) ** 2)


def lags(n_frames: int, *, dt: float, width: float, window: Callable = gaussian) -> int:
    """Lags that make lines `width` cm⁻¹ wide; `DataError` for a series without so many."""
    for name, value in (("dt", dt), ("width", width)):
        if not 0 < value < np.inf:
            raise DataError(f"{name} is {value}; it must be above zero", where="spectrum")
    longest = half_width(window) / (np.pi * LIGHT * width)  # fs
    n_lags = max(int(np.ceil(longest / dt)), 2)
    if n_lags > n_frames:
        best = half_width(window) / (np.pi * LIGHT * dt * n_frames)
        raise DataError(
            f"lines of {width:g} cm⁻¹ need {longest / 1000:.2f} ps, and ten times that to be "
            f"smooth; the trajectory has {n_frames * dt / 1000:.2f} ps",
            where="spectrum",
            code="JM240",
            fix=f"a longer trajectory, or a width above {np.ceil(best):.0f} cm⁻¹",
        )
    return n_lags


@lru_cache
def half_width(window: Callable) -> float:
    """Where the transform of a window, as a function of ω x longest lag, has half its height."""
    u = np.linspace(0, 1, 4001)
    transform = lambda s: np.trapezoid(window(u) * np.cos(s * u), u)
    low, high, half = 0.0, 1.0, transform(0.0) / 2
    while transform(high) > half:
        high *= 2
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if transform(middle) > half else (low, middle)
    return high


# --- what is done with spectra -------------------------------------------------------------------


def scaled(spectrum: Spectrum, factor) -> Spectrum:
    """Times a number or a function on the grid [n_grid]."""
    return replace(spectrum, values=spectrum.values * factor, blocks=spectrum.blocks * factor)


def added(*spectra: Spectrum) -> Spectrum:
    """The sum of spectra of one trajectory on one grid."""
    total = lambda name: sum(getattr(s, name) for s in spectra)
    return replace(spectra[0], values=total("values"), blocks=total("blocks"))


def averaged(*spectra: Spectrum) -> Spectrum:
    """The mean of spectra of independent trajectories; the error bars come from their scatter."""
    values = np.stack([s.values for s in spectra])
    return replace(spectra[0], values=values.mean(0), blocks=values)


def integral(spectrum: Spectrum, low: float = 0.0, high: float = np.inf) -> tuple[float, float]:
    """(integral between two wavenumbers, its standard error): the strength of a band."""
    grid = spectrum.wavenumbers_cm1
    inside = (grid >= low) & (grid <= high)
    area = lambda y: np.trapezoid(y[..., inside], grid[inside], axis=-1)
    return float(area(spectrum.values)), float(standard_error(area(spectrum.blocks)))


def without_verlet_shift(spectrum: Spectrum, dt: float) -> Spectrum:
    """At the wavenumbers of exact dynamics, for a trajectory by Verlet with time steps of dt fs.

    An oscillator ω moves at ω' with sin(ω' dt/2) = ω dt/2: 20 cm⁻¹ too fast at 3700 cm⁻¹ and 0.5
    fs. Areas are kept; the grid is no longer even. (Velocities of Verlet are central differences,
    sin(ω' dt)/(ω' dt) of the true ones: where a bath gives them kT, positions and dipoles swing
    more, by 4 % in their spectra there.)
    """
    angle = np.pi * LIGHT * dt * spectrum.wavenumbers_cm1
    keep = angle < 0.49 * np.pi
    stretch = np.cos(angle[keep])
    return replace(
        spectrum,
        wavenumbers_cm1=np.sin(angle[keep]) / (np.pi * LIGHT * dt),
        values=spectrum.values[keep] / stretch,
        blocks=spectrum.blocks[:, keep] / stretch,
    )
