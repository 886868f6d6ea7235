"""The thermochemistry of a structure as tables, JSON and warnings."""

from jaxmlip.cli.output import note, table
from jaxmlip.errors import NumericalError, UsageError


def vibration(damped, energies, floor):
    """How soft modes are counted: one way at most."""
    from jaxmlip.vibrations import thermodynamics

    if (damped or energies) and floor:
        raise UsageError(
            "soft modes are damped rotors or raised, not both",
            where="--raise-below",
            fix="leave out --raise-below or --damped-rotor / --damped-energy",
        )
    if damped or energies:
        return thermodynamics.damped_rotor(energies=energies)
    return thermodynamics.raised(floor=floor) if floor else thermodynamics.harmonic


def standard(pressure, concentration, temperature):
    from jaxmlip import units
    from jaxmlip.vibrations.thermodynamics import standard_pressure

    if concentration is None:
        return pressure * units.bar
    return standard_pressure(concentration, temperature)


def of_structure(found, gas):
    """(Thermochemistry or None, the error that stands in its way or None)."""
    from jaxmlip.vibrations.molecules.point_group import symmetry_number
    from jaxmlip.vibrations.thermodynamics import held_in_place, ideal_gas

    held, atoms = found.fixed is not None, found.atoms
    if atoms.pbc.any() and not held:
        note("no thermochemistry: the structure is periodic, not a gas of molecules")
        return None, None
    frequencies, energy = found.modes.frequencies_cm1, found.energy
    try:
        if held:
            del gas["pressure"], gas["symmetry_number"]
            return held_in_place(frequencies, potential_energy=energy, **gas), None
        gas["symmetry_number"] = gas["symmetry_number"] or symmetry_number(
            atoms.positions, atoms.get_masses()
        )
        structure = atoms.get_masses(), atoms.positions
        return ideal_gas(frequencies, *structure, potential_energy=energy, **gas), None
    except NumericalError as error:  # the modes are worth having all the same
        return None, NumericalError(
            error.what,
            where="thermochemistry",
            code="JM305",
            fix="relax to a minimum (see the imaginary modes), or "
            "--ignore-imaginary-below for a transition state",
        )


def as_table(thermo):
    from jaxmlip import units

    per_mol = units.kJ_mol / 1000
    energies = {
        "zero-point energy": thermo.zero_point_energy,
        "internal energy U": thermo.internal_energy,
        "enthalpy H": thermo.enthalpy,
        "Gibbs energy G": thermo.gibbs_energy,
    }
    entropies = {
        "entropy S": thermo.entropy,
        "heat capacity Cv": thermo.heat_capacity_v,
        "heat capacity Cp": thermo.heat_capacity_p,
    }
    rows = [(name, f"{value:.5f} eV") for name, value in energies.items()]
    rows += [(name, f"{value / per_mol:.3f} J/(mol K)") for name, value in entropies.items()]
    if "translation" not in thermo.parts:
        what = "vibrations of the free atoms only: no translation, rotation or pressure"
        title = f"{thermo.temperature:g} K, {what}, spin {thermo.spin}"
        return table({"held in place": "left", "": "right"}, rows, title=title)
    title = (
        f"{thermo.temperature:g} K, {thermo.pressure / units.bar:g} bar, "
        f"symmetry number {thermo.symmetry_number}, spin {thermo.spin}"
    )
    return table({"ideal gas": "left", "": "right"}, rows, title=title)


def rotations(found, temperature, output) -> dict:
    """Warns of modes that are internal rotations; they as JSON."""
    from jaxmlip.cli.analysis import bonds_of
    from jaxmlip.vibrations.molecules.internal_rotation import internal_rotations, warning

    atoms = found.atoms
    if found.fixed is not None:
        return {}
    rotations = internal_rotations(
        found.modes,
        atoms.get_masses(),
        atoms.positions,
        atoms.numbers,
        bonds_of(atoms),
        temperature=temperature,
    )
    for rotation in rotations:
        output.warn(warning(rotation, atoms.get_chemical_symbols()))
    return {"internal_rotations": [_rotation_json(r) for r in rotations]}


def _rotation_json(rotation) -> dict:
    hindered = rotation.hindered
    return {
        "mode": rotation.mode,
        "bond": rotation.bond,
        "overlap": rotation.overlap,
        "fold": rotation.fold,
        "moment_amu_A2": rotation.moment,
        "barrier_eV": rotation.barrier,
        "harmonic_entropy_eV_per_K": rotation.harmonic.entropy,
        "hindered_entropy_eV_per_K": None if hindered is None else hindered.entropy,
    }


def as_json(thermo) -> dict:
    from jaxmlip import units

    out = {
        "temperature_K": thermo.temperature,
        "pressure_bar": thermo.pressure / units.bar,
        "symmetry_number": thermo.symmetry_number,
        "thermo_spin_multiplicity": thermo.spin,
        "internal_energy_eV": thermo.internal_energy,
        "enthalpy_eV": thermo.enthalpy,
        "gibbs_energy_eV": thermo.gibbs_energy,
        "entropy_eV_per_K": thermo.entropy,
        "heat_capacity_v_eV_per_K": thermo.heat_capacity_v,
        "heat_capacity_p_eV_per_K": thermo.heat_capacity_p,
        "n_imaginary_ignored": thermo.n_imaginary,
    }
    for name, part in thermo.parts.items():
        out |= {
            f"{name}_energy_eV": part.energy,
            f"{name}_entropy_eV_per_K": part.entropy,
            f"{name}_heat_capacity_eV_per_K": part.heat_capacity,
        }
    return out
