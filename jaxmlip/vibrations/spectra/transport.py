"""Diffusion, viscosity and thermal conductivity from equilibrium trajectories, with error bars.

Green and Kubo: a coefficient is the integral over time of the correlation of a flow. The integral
rises to a plateau and then wanders, since the noise of correlations does not fall with the lag: the
running integral is returned, and the value is what it is at the lag that is asked for. Error bars
come from blocks of the trajectory. Host numpy, float64.
"""

from dataclasses import dataclass

import numpy as np

from jaxmlip import units
from jaxmlip.errors import DataError, UsageError
from jaxmlip.vibrations.spectra.correlation import (
    blocks,
    correlation,
    square_displacements,
    standard_error,
)
from jaxmlip.vibrations.spectra.lines import kT_of

CM2_PER_S = 0.1  # of 1 Å²/fs
PASCAL_SECOND = 1e-15 / (units.GPa * 1e-9)  # of 1 eV fs/Å³
WATT_PER_METRE_KELVIN = units._e * 1e10 * units.second  # of 1 eV/(Å K) per internal time
EWALD_CUBE = 2.837297  # 4 pi x the constant of a Wigner lattice of unit cubes, per charge²


@dataclass(frozen=True, kw_only=True)
class Coefficient:
    """A transport coefficient, its standard error, and the curve that it was read from."""

    value: float
    error: float  # NaN for fewer than two blocks
    times: np.ndarray  # [n_lags] fs
    curve: np.ndarray  # [n_lags] running integral, or square displacement (Å²)
    curves: np.ndarray  # [n_blocks, n_lags] the same of the blocks


def diffusion_from_displacements(
    positions, *, dt: float, between: tuple[float, float], n_blocks: int = 5
) -> Coefficient:
    """Self-diffusion by Einstein, cm²/s: slope of <|r(t) - r(0)|²> / 6 between two lags.

    positions: [n_frames, n_atoms, 3] Å, not wrapped, without the drift of the centre of mass; dt
    and between: fs. A straight line is fitted, so that motion at short times does not count.
    """
    first, last = _fit_lags(between, dt, len(positions) // max(n_blocks, 1))
    times = dt * np.arange(last + 1)
    msd = lambda r: square_displacements(r, n_lags=last + 1)
    slope = lambda y: np.polyfit(times[first:], y[first:], 1)[0] / 6 * CM2_PER_S
    curves = np.stack([msd(part) for part in blocks(positions, n_blocks)])
    curve = msd(positions)
    error = float(standard_error(np.array([slope(y) for y in curves])))
    return Coefficient(value=slope(curve), error=error, times=times, curve=curve, curves=curves)


def diffusion_from_velocities(
    velocities, *, dt: float, upto: float, n_blocks: int = 5
) -> Coefficient:
    """Self-diffusion by Green and Kubo, cm²/s: the integral of <v(0).v(t)> / 3 up to a lag.

    velocities: [n_frames, n_atoms, 3] in internal units; dt and upto: fs.
    """
    v = np.asarray(velocities)
    factor = units.fs**2 * CM2_PER_S / (3 * v.shape[1])
    return green_kubo(v, dt=dt, upto=upto, n_blocks=n_blocks, factor=factor)


def infinite_cell_diffusion(
    diffusion: float, *, temperature: float, viscosity: float, volume: float
) -> float:
    """D of a liquid without its periodic images, cm²/s, from that in a cubic cell.

    D + 2.837297 kT/(6 pi eta L) (Yeh and Hummer, 2004, 10.1021/jp0477147). viscosity: Pa s;
    volume: Å³.
    """
    if not (viscosity > 0 and volume > 0):
        raise DataError(f"viscosity {viscosity} Pa s and volume {volume} Å³ must be above zero")
    joule, metre = kT_of(temperature) * units._e, 1e-10 * volume ** (1 / 3)
    return diffusion + 1e4 * EWALD_CUBE * joule / (6 * np.pi * viscosity * metre)


def viscosity(
    stresses, *, dt: float, temperature: float, volume: float, upto: float, n_blocks: int = 5
) -> Coefficient:
    """Shear viscosity of an isotropic fluid, Pa s, from its whole stress [n_frames, 3, 3], eV/Å³.

    V/(10 kT) times the integral of <S(0):S(t)>, S the symmetric part of the stress without its
    trace: all five independent elements (Daivis and Evans, 1994, 10.1063/1.466970). The stress
    with its kinetic part, -sum of m v v / V.
    """
    s = np.asarray(stresses, np.float64)
    if s.shape[1:] != (3, 3):
        raise DataError(f"stresses have shape {s.shape}, not [n_frames, 3, 3]")
    s = (s + s.swapaxes(1, 2)) / 2
    s = s - np.trace(s, axis1=1, axis2=2)[:, None, None] / 3 * np.eye(3)
    factor = volume / (10 * kT_of(temperature)) * PASCAL_SECOND
    return green_kubo(s, dt=dt, upto=upto, n_blocks=n_blocks, factor=factor)


def thermal_conductivity(
    fluxes, *, dt: float, temperature: float, volume: float, upto: float, n_blocks: int = 5
) -> Coefficient:
    """Thermal conductivity, W/(m K), from heat fluxes [n_frames, 3] of a cell of `volume` Å³.

    1/(3 V kB T²) times the integral of <J(0).J(t)>, J as `derivatives.heat_flux` gives it, eV Å
    per internal unit of time. Mean of the three axes.
    """
    factor = WATT_PER_METRE_KELVIN / (3 * volume * kT_of(temperature) * temperature)
    j = np.asarray(fluxes, np.float64)
    return green_kubo(j, dt=dt, upto=upto, n_blocks=n_blocks, factor=factor * units.fs)


def green_kubo(flow, *, dt: float, upto: float, n_blocks: int, factor: float) -> Coefficient:
    """factor times the integral of <flow(0).flow(t)>, summed over columns, from 0 to `upto` fs."""
    n_lags = _whole(upto, dt, len(flow) // max(n_blocks, 1)) + 1

    def running(x):
        c = correlation(x, n_lags=n_lags)
        steps = np.concatenate([[0.0], np.cumsum((c[1:] + c[:-1]) / 2)])
        return factor * dt * steps

    curve = running(flow)
    curves = np.stack([running(part) for part in blocks(flow, n_blocks)])
    return Coefficient(
        value=float(curve[-1]),
        error=float(standard_error(curves[:, -1])),
        times=dt * np.arange(n_lags),
        curve=curve,
        curves=curves,
    )


def without_drift(vectors, masses) -> np.ndarray:
    """Positions or velocities [n_frames, n_atoms, 3] relative to the centre of mass."""
    vectors, masses = np.asarray(vectors), np.asarray(masses, np.float64)
    return vectors - (np.einsum("i,tia->ta", masses, vectors) / masses.sum())[:, None]


def unwrapped(positions, cells, pbc) -> np.ndarray:
    """Positions [n_frames, n_atoms, 3] without jumps of lattice vectors from frame to frame.

    cells: [n_frames, 3, 3] or [3, 3]. Right while no atom moves by half a cell between frames;
    unchanged where nothing was wrapped.
    """
    r = np.array(positions, np.float64)
    cells = np.broadcast_to(np.asarray(cells, np.float64), (len(r), 3, 3))
    fractions = np.einsum("tia,tab->tib", r, np.linalg.inv(cells))
    jumps = np.round(np.diff(fractions, axis=0)) * np.asarray(pbc, bool)
    whole = np.cumsum(jumps, axis=0)
    r[1:] -= np.einsum("tia,tab->tib", whole, cells[1:])
    return r


def in_mean_cell(positions, cells) -> np.ndarray:
    """Unwrapped positions [n_frames, n_atoms, 3] as they would be in the mean of the cells.

    At constant pressure atoms are carried along as cells [n_frames, 3, 3] breathe, the farther the
    larger the box; that is no diffusion. For cells that are periodic along all axes.
    """
    r, cells = np.asarray(positions, np.float64), np.asarray(cells, np.float64)
    back = np.linalg.solve(cells, np.broadcast_to(cells.mean(0), cells.shape))
    return np.einsum("tia,tab->tib", r, back)


def _fit_lags(between, dt, longest):
    first, last = (_whole(t, dt, longest) for t in between)
    if not 0 <= first < last:
        raise UsageError(f"lags between {between[0]} and {between[1]} fs hold no line to fit")
    return first, last


def _whole(time, dt, n_frames) -> int:
    """The lag of a time, in frames of dt; refuses one longer than a block."""
    if not (0 < dt < np.inf and 0 <= time < np.inf):
        raise UsageError(f"dt = {dt} fs and a lag of {time} fs; expected numbers above zero")
    lag = round(time / dt)
    if lag >= n_frames:
        raise DataError(
            f"a lag of {time:g} fs is longer than a block, which spans {(n_frames - 1) * dt:g} fs",
            code="JM240",
            fix="a longer trajectory, fewer blocks, or a shorter lag",
        )
    return lag
