"""Isotopes: other masses, the same Hessian; and the ratios of equilibria and rates they make.

Bigeleisen and Mayer, J. Chem. Phys. 15 (1947) 261; Bigeleisen and Wolfsberg, 1958. Harmonic and
without tunnelling unless a correction is given.
"""

from collections.abc import Callable

import numpy as np

from jaxmlip import units
from jaxmlip.errors import DataError, NumericalError, UsageError
from jaxmlip.vibrations.modes import normal_modes
from jaxmlip.vibrations.molecules.isotope_masses import MASSES


def isotope_mass(number: int, mass_number: int) -> float:
    """Mass (amu) of the isotope of element `number` with `mass_number` nucleons."""
    known = MASSES.get(int(number), {})
    if int(mass_number) not in known:
        raise UsageError(
            f"element {number} has no isotope of mass number {mass_number} here",
            where="isotope_mass",
            fix=f"one of {sorted(known)}" if known else "give its mass yourself",
        )
    return known[int(mass_number)]


def substituted(masses, numbers, isotopes: dict[int, int]):
    """`masses` [n_atoms] (amu) with isotopes {atom: mass number} put in; a copy."""
    masses = np.array(masses, np.float64)
    for atom, mass_number in isotopes.items():
        if not 0 <= atom < len(masses):
            raise IndexError(f"there is no atom {atom}, the structure has 0 to {len(masses) - 1}")
        masses[atom] = isotope_mass(numbers[atom], mass_number)
    return masses


def isotopologues(hessian, masses, positions, **options):
    """Frequencies (cm⁻¹) of many isotopologues from one Hessian, [n_sets, n_modes].

    masses: [n_sets, n_atoms] amu. hessian, positions and options as in `normal_modes`.
    """
    masses = np.atleast_2d(np.asarray(masses, np.float64))
    modes = [normal_modes(hessian, m, positions, **options) for m in masses]
    return np.stack([m.frequencies_cm1 for m in modes])


def partition_ratio(light_cm1, heavy_cm1, temperature: float) -> float:
    """Reduced ratio (s/s')f of the partition functions of two isotopologues, heavy over light.

    The product over modes of u' e^(-u'/2) / (1 - e^-u') over the same of u, u = hc nu / kT: what
    is left of Q'/Q when masses that cancel from every ratio are left out (Teller and Redlich).
    Imaginary modes are left out of both, as in a transition state; their numbers must agree.
    """
    light, heavy = (_frequencies(f) for f in (light_cm1, heavy_cm1))
    if light.shape != heavy.shape or (light < 0).sum() != (heavy < 0).sum():
        raise DataError(
            f"{light.size} and {heavy.size} modes, {(light < 0).sum()} and {(heavy < 0).sum()} of "
            "them imaginary: these are not isotopologues of one structure",
            where="partition_ratio",
        )
    if not temperature > 0:
        raise UsageError(f"temperature is {temperature} K; it must be positive")
    logarithm = lambda f: _log_partition(f[f > 0] * units.invcm / (units.kB * temperature))
    return float(np.exp(logarithm(heavy) - logarithm(light)))


def equilibrium_ratio(reactant, product, temperature: float) -> float:
    """K of light + HEAVY' = heavy + LIGHT': how much the heavy isotope prefers the product.

    reactant, product: each (light, heavy) frequencies in cm⁻¹. Symmetry numbers are left out.
    """
    return partition_ratio(*product, temperature) / partition_ratio(*reactant, temperature)


def kinetic_isotope_effect(
    reactant, transition_state, temperature: float, *, tunnelling: Callable | None = None
) -> float:
    """k(light) / k(heavy) by transition state theory.

    reactant, transition_state: each (light, heavy) frequencies in cm⁻¹, those of the transition
    state with one imaginary mode (negative). tunnelling: (imaginary frequency, temperature) ->
    factor of the rate, e.g. `wigner`. Symmetry numbers are left out.
    """
    light, heavy = (_imaginary(f) for f in transition_state)
    ratio = partition_ratio(*reactant, temperature) / partition_ratio(
        *transition_state, temperature
    )
    through = 1.0
    if tunnelling is not None:
        through = tunnelling(light, temperature) / tunnelling(heavy, temperature)
    return light / heavy * ratio * through


def wigner(imaginary_cm1: float, temperature: float) -> float:
    """1 + u²/24 (Wigner, 1932): for u = hc|nu|/kT of about 2 or less."""
    return 1 + (imaginary_cm1 * units.invcm / (units.kB * temperature)) ** 2 / 24


def bell(imaginary_cm1: float, temperature: float) -> float:
    """(u/2) / sin(u/2), a parabolic barrier (Bell, 1959); raises above u = 2 pi."""
    half = imaginary_cm1 * units.invcm / (units.kB * temperature) / 2
    if abs(half) >= np.pi:
        raise NumericalError(
            f"{abs(imaginary_cm1):.0f} cm⁻¹ is too steep for Bell's formula at {temperature} K",
            fix="a higher temperature, or another theory of tunnelling",
        )
    return float(half / np.sin(half))


def _log_partition(u):
    return float((np.log(u) - u / 2 - np.log(-np.expm1(-u))).sum())


def _frequencies(frequencies):
    frequencies = np.asarray(frequencies, np.float64).reshape(-1)
    if not np.isfinite(frequencies).all() or (frequencies == 0).any():
        raise NumericalError("frequencies are zero or not finite", where="partition_ratio")
    return frequencies


def _imaginary(frequencies) -> float:
    """Magnitude of the one imaginary mode."""
    found = _frequencies(frequencies)
    found = found[found < 0]
    if len(found) != 1:
        raise DataError(
            f"{len(found)} imaginary modes; a transition state has one",
            where="kinetic_isotope_effect",
        )
    return float(-found[0])
