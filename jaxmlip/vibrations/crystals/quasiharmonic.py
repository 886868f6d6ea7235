"""Quasi-harmonic approximation: free energies over volumes -> expansion, bulk modulus, Cp, Gibbs.

Only arrays go in, so energies and phonons may come from anywhere: from `volumes.harmonic_volumes`
for a potential, or from files. At every temperature F(V, T) = E(V) + F_vib(V, T) is fitted by an
equation of state. Host numpy, float64; eV, Å, K, per cell.
"""

from dataclasses import dataclass

import numpy as np

from jaxmlip import units
from jaxmlip.errors import NumericalError, UsageError
from jaxmlip.vibrations.crystals.equation_of_state import (
    VINET,
    EquationOfState,
    bulk_modulus,
    fit,
    values,
    volume_at,
)


@dataclass(frozen=True, kw_only=True)
class Quasiharmonic:
    """A crystal under one pressure; NaN where there is no minimum among the volumes computed."""

    temperatures: np.ndarray  # [n] K
    pressure: float  # eV/Å³
    volume: np.ndarray  # [n] Å³
    expansion: np.ndarray  # [n] 1/K, of the volume
    bulk_modulus: np.ndarray  # [n] eV/Å³, isothermal
    gibbs: np.ndarray  # [n] eV, F + pV
    entropy: np.ndarray  # [n] eV/K
    cv: np.ndarray  # [n] eV/K
    cp: np.ndarray  # [n] eV/K
    gruneisen: np.ndarray  # [n] alpha B V / Cv
    static: np.ndarray  # [4] E0, B0, B', V0 of the energies without vibrations
    misfit: float  # eV, largest difference between free energies and their fit
    outside: np.ndarray  # [n] bool, temperatures without a minimum among the volumes

    @property
    def linear_expansion(self) -> np.ndarray:
        """[n] 1/K, the mean over directions."""
        return self.expansion / 3

    @property
    def adiabatic_bulk_modulus(self) -> np.ndarray:
        """[n] eV/Å³, what sound feels: B Cp / Cv."""
        with np.errstate(divide="ignore", invalid="ignore"):
            return self.bulk_modulus * np.where(self.cv > 0, self.cp / self.cv, 1.0)

    @property
    def cp_from_gibbs(self) -> np.ndarray:
        """[n] eV/K, -T d²G/dT² by second differences of `gibbs`: a check of `cp`; NaN at the ends.

        What phonopy calls heat_capacity_P_numerical. Second differences magnify what a fit leaves
        open: on temperatures 2 K apart 1e-10 eV in G are 1e-8 eV/K here, 1e-3 of R.
        """
        return -self.temperatures * _second_difference(self.gibbs, self.temperatures)


def quasiharmonic(
    volumes,
    energies,
    temperatures,
    free_energies,
    entropies,
    heat_capacities,
    *,
    pressure: float = 0.0,
    equation: EquationOfState = VINET,
    order: int = 4,
) -> Quasiharmonic:
    """Properties at `pressure` (eV/Å³) from volumes [v], energies [v] and vibrations [v, T].

    energies: eV, without vibrations. free_energies eV, entropies and heat_capacities (at constant
    volume) eV/K. temperatures [T] K, ascending, 3 or more: the expansion is the slope of V(T) by
    central differences, good to (spacing)². Cp = Cv + T V alpha² B; entropies and Cv are brought
    to the volume by polynomials of `order` (phonopy's other Cp takes dS/dV there for alpha B, its
    heat_capacity_P_polyfit). equation: `VINET` or `BIRCH_MURNAGHAN`.
    """
    volumes, energies = np.asarray(volumes, float), np.asarray(energies, float)
    temperatures = np.asarray(temperatures, float)
    tables = [np.asarray(x, float) for x in (free_energies, entropies, heat_capacities)]
    _check(volumes, energies, temperatures, tables)
    totals = (energies[:, None] + tables[0]).T
    parameters = fit(volumes, totals, equation)
    volume = volume_at(pressure, parameters, equation)
    alpha = np.gradient(volume, temperatures, edge_order=2) / volume
    b = bulk_modulus(volume, parameters, equation)
    helmholtz = values(equation.energy, volume[:, None], parameters)[:, 0]
    entropy, cv = (_followed(volumes, table, volume, order) for table in tables[1:])
    outside = ~((volume >= volumes.min()) & (volume <= volumes.max()))  # True for NaN
    known = lambda x: np.where(outside, np.nan, x)
    with np.errstate(divide="ignore", invalid="ignore"):
        gamma = np.where(cv > 1e-6 * units.kB, alpha * b * volume / cv, np.nan)
    return Quasiharmonic(
        temperatures=temperatures,
        pressure=float(pressure),
        volume=known(volume),
        expansion=known(alpha),
        bulk_modulus=known(b),
        gibbs=known(helmholtz + pressure * volume),
        entropy=known(entropy),
        cv=known(cv),
        cp=known(cv + temperatures * volume * alpha**2 * b),
        gruneisen=known(gamma),
        static=fit(volumes, energies, equation),
        misfit=float(np.nanmax(np.abs(values(equation.energy, volumes, parameters) - totals))),
        outside=outside,
    )


def expansion_from_gruneisen(
    temperatures, frequencies_THz, parameters, weights, *, volume: float, bulk_modulus: float
) -> np.ndarray:
    """Volume expansion [T], 1/K, from one volume: sum of gamma c / (B V), the cheap check.

    frequencies_THz, parameters (mode Grüneisen, -dln w/dln V) [n_q, m]; weights [n_q]; per cell:
    volume Å³, bulk_modulus eV/Å³. Modes that are not positive, or have NaN for a parameter
    (translations at Gamma), count for nothing. Right to first order in the expansion: at the volume
    and bulk modulus of that temperature.
    """
    share = np.asarray(weights, float) / np.sum(weights)
    frequencies = np.asarray(frequencies_THz, float)
    if np.shape(parameters) != frequencies.shape or frequencies.shape[:1] != share.shape:
        raise UsageError(
            f"frequencies {frequencies.shape}, parameters {np.shape(parameters)} and weights "
            f"{share.shape} do not fit together",
            where="expansion_from_gruneisen",
        )
    real = (frequencies > 0) & np.isfinite(parameters)
    gamma = np.where(real, parameters, 0) * share[:, None]
    out = []
    for temperature in np.asarray(temperatures, float):
        capacity = oscillator_capacity(np.where(real, frequencies, 1.0), temperature)
        out.append((gamma * capacity).sum() / (bulk_modulus * volume))
    return np.array(out)


def _second_difference(values, x):
    """[n] on points [n] of any spacing, NaN at the ends."""
    left, right = np.diff(x)[:-1], np.diff(x)[1:]
    slopes = np.diff(values) / np.diff(x)
    return np.pad(2 * np.diff(slopes) / (left + right), 1, constant_values=np.nan)


def oscillator_capacity(frequencies, temperature) -> np.ndarray:
    """Heat capacity of each oscillator (THz), eV/K."""
    if temperature <= 0:
        return np.zeros_like(frequencies)
    x = frequencies * units.THz / (units.kB * temperature)
    return units.kB * (x / 2 / np.sinh(np.minimum(x / 2, 300))) ** 2


def _followed(volumes, table, at, order):
    """Values [T] of table [v, T] at volumes [T], by polynomials."""
    middle, width = volumes.mean(), np.ptp(volumes) / 2
    order = min(order, len(volumes) - 1)
    fitted = np.polynomial.polynomial.polyfit((volumes - middle) / width, table, order)
    x = (at - middle) / width
    return (fitted * x ** np.arange(order + 1)[:, None]).sum(0)


def _check(volumes, energies, temperatures, tables):
    shape = (len(volumes), len(temperatures))
    if energies.shape != volumes.shape or any(t.shape != shape for t in tables):
        raise UsageError(
            f"{shape[0]} volumes and {shape[1]} temperatures, but energies {energies.shape} and "
            f"tables {[t.shape for t in tables]}",
            where="quasiharmonic",
            fix="energies [n_volumes], tables [n_volumes, n_temperatures]",
        )
    if len(temperatures) < 3 or (np.diff(temperatures) <= 0).any() or temperatures[0] < 0:
        raise UsageError("three or more temperatures are needed, ascending", where="quasiharmonic")
    if not all(np.isfinite(t).all() for t in tables):
        raise NumericalError(
            "vibrational free energies, entropies or heat capacities are not finite",
            where="quasiharmonic",
            fix="look for imaginary modes at the largest volumes",
        )
