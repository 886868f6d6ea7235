"""`jaxmlip modes`: normal modes and the thermochemistry of an ideal gas of molecules."""

from pathlib import Path
from typing import Annotated

import typer

from jaxmlip.cli import options
from jaxmlip.cli.options import Dtype, Method
from jaxmlip.cli.output import plan, table, write_extxyz
from jaxmlip.errors import UsageError


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
    concentration: Annotated[
        float | None,
        typer.Option(help="mol/L, instead of a pressure: 1 is the standard state 1 M."),
    ] = None,
    symmetry_number: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Rotations that leave the molecule as it is: 2 for H2O, 12 for CH4. Default: "
            "found from the relaxed structure.",
        ),
    ] = None,
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
    damped_energy: Annotated[
        bool,
        typer.Option(
            "--damped-energy", help="As --damped-rotor, for energies too (Head-Gordon 2015)."
        ),
    ] = False,
    raise_below: Annotated[
        float,
        typer.Option(min=0, help="Count frequencies below this, cm⁻¹, as this (Truhlar: 100)."),
    ] = 0.0,
    atoms: Annotated[
        str | None,
        typer.Option(
            metavar='"0 2 5-8"',
            help="Modes of these atoms, the others held (as FixAtoms in FILE does).",
        ),
    ] = None,
    isotope: Annotated[
        list[str] | None,
        typer.Option(metavar="H=2|3=2", help="Isotope of an element or an atom; repeatable."),
    ] = None,
    animate: Annotated[
        list[int] | None,
        typer.Option(metavar="N", help="Write mode N as a movie, NAME_modeN.xyz; may be repeated."),
    ] = None,
    dtype: options.Precision = Dtype.float64,
):
    """Normal modes (cm⁻¹; imaginary ones negative) and thermochemistry (eV, J/mol/K)."""
    from jaxmlip.cli import analysis, selection, session, thermochemistry

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
    if concentration is not None:
        session.positive(concentration=concentration)
    how = thermochemistry.vibration(damped_rotor, damped_energy, raise_below)
    session.start(x64=True)
    opened = session.open_model(model, dtype)
    structure = session.read(file, opened, output, frame=frame)
    fixed = selection.held_atoms(structure, atoms, file)
    structure = selection.with_isotopes(structure, isotope)
    found = analysis.vibrations(
        structure, opened, output, relax=relax, fmax=fmax, steps=steps, method=method, fixed=fixed
    )
    _check_movies(movies, found)
    output.console.print(_table(found))
    gas = {
        "temperature": temperature,
        "pressure": thermochemistry.standard(pressure, concentration, temperature),
        "symmetry_number": symmetry_number,
        "spin": spin or int(structure.info.get("spin", 1)),
        "ignore_imaginary_below_cm1": ignore_imaginary_below,
        "vibration": how,
    }
    results = analysis.results_of(found, opened, source=file, command="modes")
    thermo, refused = thermochemistry.of_structure(found, gas)
    if thermo is not None:
        output.console.print(thermochemistry.as_table(thermo))
        results |= thermochemistry.as_json(thermo) | thermochemistry.rotations(
            found, temperature, output
        )
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
