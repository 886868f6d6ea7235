"""`jaxmlip modes`: normal modes and the thermochemistry of an ideal gas of molecules."""

from pathlib import Path
from typing import Annotated

import typer

from jaxmlip.cli import options
from jaxmlip.cli.options import Dtype, Method
from jaxmlip.cli.output import note, plan, table, write_extxyz
from jaxmlip.errors import NumericalError, UsageError


def modes(
    file: options.File,
    model: options.Model = "organic",
    json: options.Json = None,
    out: options.Out = Path("."),
    overwrite: options.Overwrite = False,
    frame: options.Frame = -1,
    relax: options.Relax = True,
    fmax: options.Fmax = 1e-4,
    steps: options.Steps = 2000,
    method: options.Minimizer = Method.lbfgs,
    temperature: Annotated[float, typer.Option(help="K.")] = 298.15,
    pressure: Annotated[float, typer.Option(help="bar.")] = 1.0,
    symmetry_number: Annotated[
        int,
        typer.Option(
            min=1,
            help="Rotations that leave the molecule as it is: 2 for H2O, 12 for CH4. Not "
            "found from the structure.",
        ),
    ] = 1,
    spin: Annotated[
        int | None,
        typer.Option(min=1, help="Multiplicity 2S+1; default that of the structure, else 1."),
    ] = None,
    ignore_imaginary_below: Annotated[
        float,
        typer.Option(
            min=0, help="Leave imaginary modes below this, cm⁻¹, out of the thermochemistry."
        ),
    ] = 0.0,
    damped_rotor: Annotated[
        bool,
        typer.Option(
            "--damped-rotor", help="Entropy of soft modes as of damped rotors (Grimme 2012)."
        ),
    ] = False,
    animate: Annotated[
        list[int] | None,
        typer.Option(metavar="N", help="Write mode N as a movie, NAME_modeN.xyz; may be repeated."),
    ] = None,
    dtype: options.Precision = Dtype.float64,
):
    """Normal modes (cm⁻¹; imaginary ones negative) and thermochemistry (eV, J/mol/K)."""
    from jaxmlip import units
    from jaxmlip.cli import analysis, session

    movies = {n: f"mode{n}.xyz" for n in animate or ()}
    output = plan(
        file,
        movies.values(),
        out=out,
        json_file=json,
        overwrite=overwrite,
        default_json="modes.json",
    )
    session.positive(temperature=temperature, pressure=pressure, fmax=fmax)
    session.start(x64=True)
    opened = session.open_model(model, dtype)
    atoms = session.read(file, opened, output, frame=frame)
    found = analysis.vibrations(
        atoms, opened, output, relax=relax, fmax=fmax, steps=steps, method=method
    )
    _check_movies(movies, found)
    output.console.print(_table(found))
    gas = {
        "temperature": temperature,
        "pressure": pressure * units.bar,
        "symmetry_number": symmetry_number,
        "spin": spin or int(atoms.info.get("spin", 1)),
        "ignore_imaginary_below_cm1": ignore_imaginary_below,
    }
    results = analysis.results_of(found, opened, source=file, command="modes")
    thermo, refused = _thermochemistry(found, gas, damped_rotor)
    if thermo is not None:
        output.console.print(_thermo_table(thermo))
        results |= _thermo_json(thermo)
    for n, suffix in movies.items():
        write_extxyz(output.paths[suffix], _movie(found, n))
    output.finish(results)
    if refused is not None:
        raise refused


def _check_movies(movies, found):
    n_modes = len(found.modes.frequencies_cm1)
    for n in movies:
        if not 0 <= n < n_modes:
            raise UsageError(
                f"there is no mode {n}",
                where="--animate",
                fix=f"0 to {n_modes - 1}" if n_modes else "an atom has no modes",
            )


def _table(found):
    modes = found.modes
    rows = [
        (str(i), f"{f:.1f}", f"{m:.3f}", f"{k:.3f}", moves)
        for i, (f, m, k, moves) in enumerate(
            zip(
                modes.frequencies_cm1,
                modes.reduced_masses,
                modes.force_constants,
                found.moves,
                strict=True,
            )
        )
    ]
    columns = {
        "mode": "right",
        "cm⁻¹": "right",
        "amu": "right",
        "eV/Å²": "right",
        "what moves": "left",
    }
    return table(
        columns,
        rows,
        title=f"{found.atoms.get_chemical_formula()}   "
        f"E {found.energy:.4f} eV   fmax {found.fmax:.1e} eV/Å",
    )


def _thermochemistry(found, gas, damped):
    """(Thermochemistry or None, the error that stands in its way or None)."""
    from jaxmlip.vibrations import damped_rotor, harmonic, ideal_gas

    if found.atoms.pbc.any():
        note("no thermochemistry: the structure is periodic, not a gas of molecules")
        return None, None
    try:
        return ideal_gas(
            found.modes.frequencies_cm1,
            found.atoms.get_masses(),
            found.atoms.positions,
            potential_energy=found.energy,
            vibration=damped_rotor() if damped else harmonic,
            **gas,
        ), None
    except NumericalError as error:  # the modes are worth having all the same
        return None, NumericalError(
            error.what,
            where="thermochemistry",
            code="JM305",
            fix="relax to a minimum (see the imaginary modes), or "
            "--ignore-imaginary-below for a transition state",
        )


def _thermo_table(thermo):
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
    bar = thermo.pressure / units.bar
    return table(
        {"ideal gas": "left", "": "right"},
        rows,
        title=f"{thermo.temperature:g} K, "
        f"{bar:g} bar, symmetry number {thermo.symmetry_number}, spin {thermo.spin}",
    )


def _thermo_json(thermo) -> dict:
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


def _movie(found, n):
    """One period of a mode as frames."""
    from jaxmlip.vibrations import animation

    frames = []
    for positions in animation(found.atoms.positions, found.modes.displacements[n]):
        frame = found.atoms.copy()
        frame.positions = positions
        frame.info["frequency_cm1"] = float(found.modes.frequencies_cm1[n])
        frames.append(frame)
    return frames
