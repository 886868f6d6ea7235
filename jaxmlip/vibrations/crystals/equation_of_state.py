"""Equations of state: energy and pressure as functions of volume and (E0, B0, B', V0).

Fits are least squares on the host in float64, many sets of energies at once; slopes come from the
functions themselves at a complex argument, so an equation of one's own needs two lines and no
derivative. Å³, eV, eV/Å³.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from jaxmlip.errors import NumericalError, UsageError

TINY = 1e-30  # imaginary step: derivatives without cancellation


class EquationOfState(NamedTuple):
    """Pure functions of (volume, (E0, B0, B', V0)) that also take complex numbers."""

    energy: Callable
    pressure: Callable


def _vinet_energy(v, p):
    e0, b0, b1, v0 = p
    x, xi = (v / v0) ** (1 / 3), 1.5 * (b1 - 1)
    wave = (1 - xi * (1 - x)) * np.exp(xi * (1 - x))
    return e0 + 9 * b0 * v0 / xi**2 * (1 - wave)


def _vinet_pressure(v, p):
    _, b0, b1, v0 = p
    x, xi = (v / v0) ** (1 / 3), 1.5 * (b1 - 1)
    return 3 * b0 * (1 - x) / x**2 * np.exp(xi * (1 - x))


def _birch_energy(v, p):
    e0, b0, b1, v0 = p
    f = (v0 / v) ** (2 / 3) - 1
    return e0 + 9 / 16 * v0 * b0 * f**2 * (2 + (b1 - 4) * f)


def _birch_pressure(v, p):
    _, b0, b1, v0 = p
    f = (v0 / v) ** (2 / 3) - 1
    return 1.5 * b0 * (1 + f) ** 2.5 * f * (1 + 0.75 * (b1 - 4) * f)


# Vinet, Smith, Ferrante and Rose, 1987, 10.1103/PhysRevB.35.1945
VINET = EquationOfState(_vinet_energy, _vinet_pressure)
# Birch, 1947, 10.1103/PhysRev.71.809: third order in Eulerian strain
BIRCH_MURNAGHAN = EquationOfState(_birch_energy, _birch_pressure)


def fit(volumes, energies, equation: EquationOfState = VINET, *, steps: int = 50) -> np.ndarray:
    """(E0, B0, B', V0) [..., 4] of least squares, from volumes [n] and energies [..., n].

    Needs 5 volumes or more around the minimum (`UsageError`). NaN for energies without a minimum,
    and where the iteration does not end; `NumericalError` if that is so for all of them.
    """
    volumes, energies = np.asarray(volumes, float), np.asarray(energies, float)
    _check(volumes, energies)
    flat = energies.reshape(-1, len(volumes))
    guess = _guess(volumes, flat)
    curved = np.isfinite(guess).all(1)
    found = np.full_like(guess, np.nan)
    found[curved] = _least_squares(volumes, flat[curved], guess[curved], equation, steps)
    if np.isnan(found).all():
        raise NumericalError(
            "energies have no minimum over the volumes",
            where="equation of state",
            fix="a range of volumes that encloses the equilibrium",
        )
    return found.reshape(*energies.shape[:-1], 4)


def values(function, volumes, parameters):
    """function at volumes [..., n] for parameters [..., 4] -> [..., n]."""
    return function(volumes, tuple(np.asarray(parameters)[..., k, None] for k in range(4)))


def volume_at(pressure: float, parameters, equation: EquationOfState = VINET) -> np.ndarray:
    """Volumes [...] at a pressure (eV/Å³), by Newton's method from V0; NaN where there is none."""
    parameters = np.asarray(parameters, float)
    v = parameters[..., 3].copy()
    for _ in range(100):
        p, slope = _with_slope(equation.pressure, v, parameters)
        step = np.clip((p - pressure) / -slope, -0.1 * v, 0.1 * v)
        v = v + step
        moving = np.abs(step) > 1e-12 * v
        if not moving.any():
            break
    return np.where(moving, np.nan, v)


def bulk_modulus(volumes, parameters, equation: EquationOfState = VINET) -> np.ndarray:
    """-V dP/dV [...] at volumes [...], eV/Å³."""
    _, slope = _with_slope(equation.pressure, np.asarray(volumes, float), np.asarray(parameters))
    return -volumes * slope


def _with_slope(function, v, parameters):
    with np.errstate(invalid="ignore"):  # NaN where there was no fit
        out = values(function, (v + 1j * TINY)[..., None], parameters)[..., 0]
    return out.real, out.imag / TINY


def _check(volumes, energies):
    if volumes.ndim != 1 or energies.shape[-1:] != volumes.shape:
        raise UsageError(
            f"energies have shape {energies.shape} for volumes of shape {volumes.shape}",
            where="equation of state",
        )
    if len(np.unique(volumes)) < 5:
        raise UsageError(
            f"{len(np.unique(volumes))} different volumes cannot tell four parameters",
            where="equation of state",
            fix="5 volumes or more",
        )
    if not (np.isfinite(energies).all() and (volumes > 0).all()):
        raise UsageError("energies must be finite, volumes positive", where="equation of state")


def _guess(volumes, energies):
    """From a parabola in V^(-2/3), whose minimum and curvature are closed."""
    x = (volumes / volumes.mean()) ** (-2 / 3) - 1
    a, b, c = np.polynomial.polynomial.polyfit(x, energies.T, 2)
    a, b, c = np.where(c > 0, [a, b, c], np.nan)
    least = np.clip(-b / (2 * c), 0.5 * x.min(), 0.5 * x.max()) + 1
    v0 = least ** (-1.5) * volumes.mean()
    slope = -2 / 3 * least / v0
    return np.stack([energies.min(1), 2 * c * slope**2 * v0, np.full(len(a), 4.5), v0], axis=1)


def _least_squares(volumes, energies, parameters, equation, steps):
    """Damped Gauss-Newton (Levenberg and Marquardt) for all rows at once."""
    scale = np.stack([np.ones(len(parameters)), *parameters.T[1:]], axis=1)
    damping = np.full(len(parameters), 1e-3)
    rest, jacobian = _residual(volumes, energies, parameters, equation, scale)
    for _ in range(steps):
        normal = jacobian.swapaxes(1, 2) @ jacobian
        diagonal = normal * np.eye(4) * damping[:, None, None]
        down = (jacobian.swapaxes(1, 2) @ rest[..., None])[..., 0]
        step = -np.linalg.solve(normal + diagonal, down[..., None])[..., 0] * scale
        trial = parameters + step
        trial[:, 1:] = np.clip(trial[:, 1:], 0.5 * parameters[:, 1:], 2 * parameters[:, 1:])
        new_rest, new_jacobian = _residual(volumes, energies, trial, equation, scale)
        good = (new_rest**2).sum(1) <= (rest**2).sum(1)
        parameters = np.where(good[:, None], trial, parameters)
        rest = np.where(good[:, None], new_rest, rest)
        jacobian = np.where(good[:, None, None], new_jacobian, jacobian)
        damping = np.where(good, damping / 10, damping * 10)
        ended = (np.abs(step[:, 1:]) <= 1e-10 * np.abs(parameters[:, 1:])).all(1)
        if ended.all():
            break
    return np.where(ended[:, None], parameters, np.nan)


def _residual(volumes, energies, parameters, equation, scale):
    """(residuals [m, n], Jacobian [m, n, 4] by parameters in units of scale)."""
    columns = []
    for k in range(4):
        shifted = parameters.astype(complex)
        shifted[:, k] += 1j * TINY * scale[:, k]
        columns.append(values(equation.energy, volumes, shifted))
    rest = columns[0].real - energies
    return rest, np.stack([c.imag / TINY for c in columns], axis=-1)
