"""`jaxmlip ir`: the harmonic infrared spectrum of a molecule or a crystal."""

from pathlib import Path
from typing import Annotated

import typer

from jaxmlip.cli import options
from jaxmlip.cli.options import Dtype, Method
from jaxmlip.cli.output import Output, plan, table, write, write_extxyz, write_text
from jaxmlip.errors import UsageError


def ir(
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
    width: Annotated[
        float, typer.Option(help="Full width of the lines at half maximum, cm⁻¹.")
    ] = 15.0,
    direction: Annotated[
        list[str] | None,
        typer.Option(
            metavar='"0 0 1"',
            help="Crystals: Cartesian direction of the wave (longitudinal modes) and of the light "
            "(dielectric function); repeatable. Default x, y and z.",
        ),
    ] = None,
    epsilon_infinity: Annotated[
        float | None,
        typer.Option(help="Crystals: for models without a polarizability, or in its place."),
    ] = None,
    fixed_cell: options.FixedCell = False,
    stress: options.Stress = 1e-5,
    primitive: options.Primitive = True,
    symprec: options.Symprec = 1e-3,
    compare: options.Compare = None,
    csv: options.Csv = False,
    dtype: options.Precision = Dtype.float64,
):
    """Infrared spectrum: frequencies in cm⁻¹, intensities in km/mol (crystals: per mol of cells).

    Relaxes the structure, takes its Hessian and Born charges, and writes NAME_ir.png,
    NAME_ir.json and NAME_relaxed.xyz. For crystals, modes at Γ: transverse and, along directions,
    longitudinal ones, dielectric tensors, and the infrared dielectric function.
    """
    from jaxmlip.cli import session
    from jaxmlip.cli.compare import read_curve

    suffixes = ["ir.png", "relaxed.xyz", *(["ir.csv"] if csv else [])]
    output = plan(
        file, suffixes, out=out, json_file=json, overwrite=overwrite, default_json="ir.json"
    )
    session.positive(width=width, fmax=fmax, stress=stress, symprec=symprec)
    other = None if compare is None else read_curve(compare)
    session.start(x64=True)
    opened = session.open_model(model, dtype, needs_dipole=True)
    how = {"relax": relax, "method": method, "width": width, "compare": other}
    atoms = session.read(file, opened, output, frame=frame)
    if not atoms.pbc.any():
        if direction or epsilon_infinity is not None:
            raise UsageError(
                "this structure is a molecule: it has no waves and no dielectric tensor",
                where="--direction, --epsilon-infinity",
                fix="leave them out, or give the structure a cell and pbc",
            )
        return _molecule(file, atoms, opened, output, fmax=fmax, steps=steps, **how)
    from jaxmlip.cli.crystal import ir_crystal

    ir_crystal.run(
        file,
        atoms,
        opened,
        output,
        directions=direction,
        epsilon_infinity=epsilon_infinity,
        limits={"fmax": fmax, "stress": stress, "steps": steps},
        cell={"fixed_cell": fixed_cell, "primitive": primitive, "symprec": symprec},
        **how,
    )


def run(file, model, output: Output, *, frame=-1, **how) -> None:
    """From the structure of a molecule to the files."""
    from jaxmlip.cli import session

    _molecule(file, session.read(file, model, output, frame=frame), model, output, **how)


def _molecule(
    file,
    atoms,
    model,
    output,
    *,
    relax=True,
    fmax=1e-4,
    steps=2000,
    method=Method.lbfgs,
    width=15.0,
    compare=None,
):
    from jaxmlip.cli import analysis
    from jaxmlip.vibrations import intensities
    from jaxmlip.vibrations.infrared import charge_sum_error

    analysis.check_molecule(atoms, "ir", file)
    found = analysis.vibrations(
        atoms, model, output, relax=relax, fmax=fmax, steps=steps, method=method
    )
    strengths = intensities(found.born_charges, found.modes)
    output.console.print(table_of(found, strengths))
    results = analysis.results_of(found, model, source=file, command="ir") | {
        "relaxed": relax,
        "intensities_km_mol": strengths,
        "dipole_eA": found.dipole,
        "charges_e": found.charges,
        "born_charges_e": found.born_charges,
        "born_charge_sum_error_e": charge_sum_error(
            found.born_charges, atoms.info.get("charge", 0.0)
        ),
        "width_cm1": width,
    }
    _write(found, strengths, output, model, width=width, compare=compare)
    output.finish(results)


def table_of(found, strengths):
    """Mode, cm⁻¹, km/mol, and what moves."""
    frequencies = found.modes.frequencies_cm1
    rows = [
        (str(i), f"{f:.1f}", f"{s:.1f}", moves)
        for i, (f, s, moves) in enumerate(zip(frequencies, strengths, found.moves, strict=True))
    ]
    columns = {"mode": "right", "cm⁻¹": "right", "km/mol": "right", "what moves": "left"}
    dipole = "" if found.dipole is None else f"   dipole {_length(found.dipole):.3f} e Å"
    title = f"{found.atoms.get_chemical_formula()}   E {found.energy:.4f} eV{dipole}"
    return table(columns, rows, title=title)


def _length(vector):
    return float((vector**2).sum() ** 0.5)


def _write(found, strengths, output, model, *, width, compare):
    from jaxmlip.cli import analysis, plot

    frequencies, paths = found.modes.frequencies_cm1, output.paths
    title = f"{found.atoms.get_chemical_formula()}   {model.card.get('name') or model.name}"
    write(
        paths["ir.png"],
        lambda partial: plot.infrared(
            partial, frequencies, strengths, width=width, title=title, compare=compare
        ),
    )
    write_extxyz(paths["relaxed.xyz"], analysis.with_energies(found))
    if "ir.csv" in paths:
        write_text(paths["ir.csv"], _curve(frequencies, strengths, width))


def _curve(frequencies, strengths, width) -> str:
    from jaxmlip.cli.plot import curve

    lines = [
        f"{x:.1f},{y:.6g}" for x, y in zip(*curve(frequencies, strengths, width=width), strict=True)
    ]
    return "\n".join(["wavenumber_cm1,molar_absorption_L_per_mol_cm", *lines]) + "\n"
