"""Thermochemistry of an ideal gas of molecules: rigid rotor, harmonic oscillators.

Formulas as in Ochterski, "Thermochemistry in Gaussian" (2000). Inside eV and eV/K; divide by
`units.kJ_mol` for kJ/mol. Imaginary modes are an error unless a limit is given below which they are
left out, and their number is always returned: a silently dropped mode changes S by tens of J/mol/K.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from jaxmlip import units
from jaxmlip.errors import DataError, NumericalError, UsageError
from jaxmlip.vibrations.rigid import checked_masses, principal_rotations


class Contribution(NamedTuple):
    """One kind of motion, at constant volume."""

    energy: float  # eV, zero-point energy included
    entropy: float  # eV/K
    heat_capacity: float  # eV/K


@dataclass(frozen=True, kw_only=True)
class Thermochemistry:
    """One molecule of an ideal gas. Energies eV, entropy and heat capacities eV/K."""

    temperature: float  # K
    pressure: float  # eV/Å³; 0 for atoms held in place
    symmetry_number: int  # of rotations; as given
    spin: int  # multiplicity 2S+1
    zero_point_energy: float
    internal_energy: float  # U: potential energy given + thermal + zero point
    enthalpy: float  # H = U + kT
    entropy: float
    gibbs_energy: float  # G = H - TS
    heat_capacity_v: float
    heat_capacity_p: float
    n_imaginary: int  # modes left out
    parts: dict[str, Contribution]  # translation, rotation, vibration, electronic


def harmonic(frequencies_cm1, temperature: float) -> Contribution:
    """Harmonic oscillators of positive frequency; Cv is the sum of Einstein functions."""
    each = oscillators(_quanta(frequencies_cm1, temperature), temperature)
    return Contribution(*(float(np.sum(value)) for value in each))


def oscillators(quanta, temperature: float) -> Contribution:
    """Of each oscillator, arrays like `quanta` (eV)."""
    x = quanta / (units.kB * temperature)
    filled = np.exp(-x) / -np.expm1(-x)  # not 1/expm1(x), which overflows for a stiff cold mode
    entropy = x * filled - np.log(-np.expm1(-x))
    capacity = x**2 * filled * (filled + 1)
    return Contribution(quanta * (filled + 0.5), units.kB * entropy, units.kB * capacity)


def damped_rotor(
    *, crossover: float = 100.0, inertia: float = 602.2, energies: bool = False
) -> Callable:
    """Quasi-RRHO: below `crossover` (cm⁻¹) entropy goes over to that of a free rotor.

    A `vibration` for `ideal_gas`. inertia: amu Å², the average moment that limits the rotor
    (1e-44 kg m²). Method: Grimme, 2012, 10.1002/chem.201200497. Energies and heat capacities stay
    harmonic there; with `energies` they go over to kT/2 and k/2 with the same weights (Li, Gomes,
    Mallikarjun Sharada, Bell and Head-Gordon, 2015, 10.1021/jp509921r), so that dU = T dS holds.
    """

    def vibration(frequencies_cm1, temperature):
        quantum = _quanta(frequencies_cm1, temperature)
        moment = units.hbar**2 / (2 * quantum)
        moment = moment * inertia / (moment + inertia)
        kT = units.kB * temperature
        rotor = units.kB * (0.5 + 0.5 * np.log(2 * np.pi * moment * kT / units.hbar**2))
        weight = 1 / (1 + (crossover * units.invcm / quantum) ** 4)
        whole, each = harmonic(frequencies_cm1, temperature), oscillators(quantum, temperature)
        mixed = lambda bound, free: float((weight * bound + (1 - weight) * free).sum())
        whole = whole._replace(entropy=mixed(each.entropy, rotor))
        if energies:
            whole = whole._replace(
                energy=mixed(each.energy, kT / 2),
                heat_capacity=mixed(each.heat_capacity, units.kB / 2),
            )
        return whole

    return vibration


def raised(*, floor: float = 100.0) -> Callable:
    """Quasi-harmonic: frequencies below `floor` (cm⁻¹) count as `floor`. A `vibration`.

    Ribeiro, Marenich, Cramer and Truhlar, 2011, 10.1021/jp205508z. The zero-point energy is that
    of the frequencies as they are.
    """

    def vibration(frequencies_cm1, temperature):
        _quanta(frequencies_cm1, temperature)
        higher = np.maximum(frequencies_cm1, floor)
        lifted = zero_point_energy(higher) - zero_point_energy(frequencies_cm1)
        found = harmonic(higher, temperature)
        return found._replace(energy=found.energy - lifted)

    return vibration


def standard_pressure(concentration: float, temperature: float) -> float:
    """Pressure (eV/Å³) of an ideal gas of `concentration` mol/L: the standard state 1 M is 1."""
    if not (np.isfinite(concentration) and concentration > 0 and temperature > 0):
        raise UsageError(
            f"concentration is {concentration} mol/L at {temperature} K; both must be positive"
        )
    return concentration * 1e-27 * units._NA * units.kB * temperature


def held_in_place(
    frequencies_cm1,
    *,
    temperature: float = 298.15,
    spin: int = 1,
    potential_energy: float = 0.0,
    ignore_imaginary_below_cm1: float = 0.0,
    vibration: Callable = harmonic,
) -> Thermochemistry:
    """Thermochemistry of atoms that only vibrate: part of a molecule, an adsorbate, a crystal.

    No translation, no rotation, no pressure: H is U and G is the Helmholtz energy U - TS (pV is
    left out), heat capacities are equal. Of a partial Hessian only differences between structures
    with the same atoms held mean something. Imaginary modes as in `ideal_gas`.
    """
    _check(temperature, 1.0, 1, spin)
    real, n_imaginary = _real(frequencies_cm1, ignore_imaginary_below_cm1)
    parts = {
        "vibration": vibration(real, temperature),
        "electronic": Contribution(0.0, float(units.kB * np.log(spin)), 0.0),
    }
    return _summed(
        parts,
        potential_energy=potential_energy,
        work=0.0,
        temperature=temperature,
        pressure=0.0,
        symmetry_number=1,
        spin=spin,
        zero_point_energy=zero_point_energy(real),
        n_imaginary=n_imaginary,
    )


def ideal_gas(
    frequencies_cm1,
    masses,
    positions,
    *,
    temperature: float = 298.15,
    pressure: float = units.bar,
    symmetry_number: int = 1,
    spin: int = 1,
    potential_energy: float = 0.0,
    ignore_imaginary_below_cm1: float = 0.0,
    vibration: Callable = harmonic,
) -> Thermochemistry:
    """Thermochemistry of a molecule from its 3N-6 (3N-5, 0) frequencies, masses and positions.

    temperature K, pressure eV/Å³ (`units.bar`), potential_energy eV (moves U, H and G).
    symmetry_number is **not** found here (see `point_group.symmetry_number`): 1 is wrong for H2O
    (2), NH3 (3), CH4 (12), and costs k T ln(sigma) in G. Imaginary modes raise `NumericalError`,
    except those of magnitude below `ignore_imaginary_below_cm1`, which are left out and counted:
    for a transition state give a limit above its one. vibration: `harmonic`, `damped_rotor()`, ...
    """
    _check(temperature, pressure, symmetry_number, spin)
    masses = checked_masses(masses, len(positions))
    moments, _ = principal_rotations(positions, masses)
    real, n_imaginary = _real(frequencies_cm1, ignore_imaginary_below_cm1)
    _count(len(real) + n_imaginary, len(masses), len(moments))
    parts = {
        "translation": _translation(masses.sum(), temperature, pressure),
        "rotation": _rotation(moments, temperature, symmetry_number),
        "vibration": vibration(real, temperature),
        "electronic": Contribution(0.0, float(units.kB * np.log(spin)), 0.0),
    }
    return _summed(
        parts,
        potential_energy=potential_energy,
        work=units.kB * temperature,
        temperature=temperature,
        pressure=pressure,
        symmetry_number=symmetry_number,
        spin=spin,
        zero_point_energy=zero_point_energy(real),
        n_imaginary=n_imaginary,
    )


def _summed(parts, *, potential_energy, work, temperature, **more) -> Thermochemistry:
    """The sum of the parts; work: pV of one molecule, eV."""
    thermal, entropy, cv = (float(sum(values)) for values in zip(*parts.values(), strict=True))
    energy = potential_energy + thermal
    enthalpy = energy + work
    return Thermochemistry(
        temperature=temperature,
        internal_energy=energy,
        enthalpy=enthalpy,
        entropy=entropy,
        gibbs_energy=enthalpy - temperature * entropy,
        heat_capacity_v=cv,
        heat_capacity_p=cv + work / temperature,
        parts=parts,
        **more,
    )


def zero_point_energy(frequencies_cm1) -> float:
    """Half a quantum of each mode, eV."""
    return float(0.5 * units.invcm * np.sum(frequencies_cm1))


def _translation(mass, temperature, pressure):
    kT = units.kB * temperature
    states = (mass * kT / (2 * np.pi * units.hbar**2)) ** 1.5 * kT / pressure  # per molecule
    return Contribution(1.5 * kT, units.kB * (np.log(states) + 2.5), 1.5 * units.kB)


def _rotation(moments, temperature, symmetry_number):
    """Classical rotor: wrong below a few K, and for H2 below room temperature."""
    if len(moments) == 0:
        return Contribution(0.0, 0.0, 0.0)
    kT = units.kB * temperature
    each = np.sqrt(2 * moments * kT) / units.hbar
    states = each.prod() * (np.sqrt(np.pi) if len(moments) == 3 else 1) / symmetry_number
    half = len(moments) / 2
    return Contribution(half * kT, units.kB * (np.log(states) + half), half * units.kB)


def _quanta(frequencies_cm1, temperature):
    """Energies of one quantum, eV; raises unless all frequencies are positive."""
    frequencies = np.asarray(frequencies_cm1, np.float64)
    if not (np.isfinite(frequencies) & (frequencies > 0)).all():
        raise NumericalError(
            f"{int((~(frequencies > 0)).sum())} of {frequencies.size} modes "
            "do not have a positive frequency"
        )
    if not temperature > 0:
        raise UsageError(f"temperature is {temperature} K; it must be positive")
    return frequencies * units.invcm


def _real(frequencies_cm1, limit):
    """Positive frequencies and the number of those left out because they are below `limit`."""
    frequencies = np.asarray(frequencies_cm1, np.float64)
    if not np.isfinite(frequencies).all():
        raise NumericalError("frequencies are not finite")
    real = frequencies > 0
    refused = frequencies[~real & ~(-frequencies < limit)]
    if len(refused):
        raise NumericalError(
            f"{len(refused)} modes are imaginary or zero, lowest {refused.min():.1f} cm⁻¹: "
            "the structure is not at a minimum",
            where="thermochemistry",
            fix="relax to a smaller fmax, or leave them out with ignore_imaginary_below_cm1",
        )
    return frequencies[real], int((~real).sum())


def _count(n_modes, n_atoms, n_rotations):
    expected = 3 * n_atoms - 3 - n_rotations
    if n_modes != expected:
        raise DataError(
            f"got {n_modes} frequencies; {n_atoms} atoms with {n_rotations} rotations "
            f"have {expected}",
            fix="give the vibrations only, as from normal_modes",
        )


def _check(temperature, pressure, symmetry_number, spin):
    values = {
        "temperature": temperature,
        "pressure": pressure,
        "symmetry_number": symmetry_number,
        "spin": spin,
    }
    for name, value in values.items():
        if not (np.isfinite(value) and value > 0):
            raise UsageError(f"{name} is {value}; it must be positive")
