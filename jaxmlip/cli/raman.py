"""`jaxmlip raman`: the harmonic Raman spectrum of a molecule or a crystal."""

from pathlib import Path
from typing import Annotated

import typer

from jaxmlip.cli import options
from jaxmlip.cli.options import Dtype, Method
from jaxmlip.cli.output import Output, plan, table, write, write_extxyz, write_text
from jaxmlip.errors import UsageError


def raman(
    file: options.File,
    model: Annotated[
        str,
        typer.Option(
            "--model",
            "-m",
            metavar="NAME|PATH",
            show_default=False,
            help="A potential that predicts polarizabilities (`jaxmlip models list`).",
        ),
    ],
    json: options.Json = None,
    out: options.Out = Path("."),
    overwrite: options.Overwrite = False,
    frame: options.Frame = -1,
    relax: options.Relax = True,
    fmax: options.Fmax = 1e-4,
    steps: options.Steps = 2000,
    method: options.Minimizer = Method.lbfgs,
    laser: Annotated[float, typer.Option(help="Wavelength of the laser, nm.")] = 532.0,
    temperature: Annotated[float, typer.Option(help="K.")] = 298.15,
    width: Annotated[
        float, typer.Option(help="Full width of the lines at half maximum, cm⁻¹.")
    ] = 10.0,
    fixed_cell: options.FixedCell = False,
    stress: options.Stress = 1e-5,
    primitive: options.Primitive = True,
    symprec: options.Symprec = 1e-3,
    compare: options.Compare = None,
    csv: options.Csv = False,
    dtype: options.Precision = Dtype.float64,
):
    """Raman spectrum: shifts in cm⁻¹, activities in Å⁴/amu (crystals: of one cell, as a powder).

    Relaxes the structure, takes its Hessian and the derivatives of its polarizability, and writes
    NAME_raman.png, NAME_raman.json and NAME_relaxed.xyz. The picture shows Stokes cross-sections
    at the laser's wavelength and the temperature. Crystals: modes at Γ, transverse.
    """
    from jaxmlip.cli import session
    from jaxmlip.cli.compare import read_curve

    suffixes = ["raman.png", "relaxed.xyz", *(["raman.csv"] if csv else [])]
    output = plan(
        file, suffixes, out=out, json_file=json, overwrite=overwrite, default_json="raman.json"
    )
    session.positive(width=width, fmax=fmax, laser=laser, stress=stress, symprec=symprec)
    if not 0 <= temperature < float("inf"):
        raise UsageError(f"--temperature is {temperature} K", where="--temperature")
    other = None if compare is None else read_curve(compare)
    session.start(x64=True)
    opened = session.open_model(model, dtype, needs_polarizability=True)
    atoms = session.read(file, opened, output, frame=frame)
    extra = {}
    if atoms.pbc.any():
        found, opened, extra = _crystal(
            file,
            atoms,
            opened,
            output,
            relax=relax,
            method=method,
            limits={"fmax": fmax, "stress": stress, "steps": steps},
            fixed_cell=fixed_cell,
            primitive=primitive,
            symprec=symprec,
        )
    else:
        from jaxmlip.cli import analysis

        found = analysis.vibrations(
            atoms, opened, output, relax=relax, fmax=fmax, steps=steps, method=method, raman=True
        )
    light = {"laser": 1e7 / laser, "temperature": temperature}
    _finish(found, opened, output, light, width, other, {"relaxed": relax, **extra}, source=file)


def _crystal(file, read, model, output, **how):
    """(modes, model, what is told of the crystal)."""
    from jaxmlip.cli.crystal import polar

    atoms, model, steps = polar.crystal_at_rest(file, read, model, output, **how)
    crystal = polar.polar_crystal(atoms, model, output, relax_steps=steps, raman=True)
    told = {
        "space_group": crystal.symmetry,
        "stress_eV_per_A3": crystal.stress,
        "volume_A3": crystal.volume,
        "epsilon_infinity": crystal.dielectric,
    }
    return crystal.found, model, told


def _finish(found, model, output: Output, light, width, compare, extra, *, source):
    import numpy as np

    from jaxmlip import units
    from jaxmlip.cli import analysis
    from jaxmlip.vibrations import raman as scattering

    tensors = scattering.polarizability_derivatives(found.raman_tensors, found.modes)
    strengths = scattering.activities(found.raman_tensors, found.modes)
    ratios = scattering.depolarization(found.raman_tensors, found.modes)
    sections = scattering.cross_sections(found.modes.frequencies_cm1, strengths, **light)
    output.console.print(_table(found, strengths, ratios, sections))
    results = analysis.results_of(found, model, source=source, command="raman") | {
        **extra,
        "activities_A4_per_amu": strengths,
        "depolarization_ratios": ratios,
        "cross_sections_cm2_per_sr": 1e-30 * sections,
        "laser_nm": 1e7 / light["laser"],
        "temperature_K": light["temperature"],
        "width_cm1": width,
        "polarizability_A3": units.coulomb_constant * np.asarray(found.polarizability),
        "mode_tensors_A2_per_sqrt_amu": tensors,
        "raman_tensors_A2": units.coulomb_constant * found.raman_tensors,
    }
    _write(found, strengths, sections, output, model, light, width, compare)
    output.finish(results)


def _table(found, strengths, ratios, sections):
    """Mode, cm⁻¹, Å⁴/amu, depolarisation, cross-section, and what moves."""
    columns = dict.fromkeys(("mode", "cm⁻¹", "Å⁴/amu", "ρ", "1e-30 cm²/sr"), "right")
    parts = (found.modes.frequencies_cm1, strengths, ratios, sections, found.moves)
    rows = [
        (str(i), f"{f:.1f}", f"{s:.2f}", f"{r:.3f}", f"{c:.3f}", moves)
        for i, (f, s, r, c, moves) in enumerate(zip(*parts, strict=True))
    ]
    title = f"{found.atoms.get_chemical_formula()}   E {found.energy:.4f} eV"
    return table(columns | {"what moves": "left"}, rows, title=title)


def _write(found, strengths, sections, output, model, light, width, compare):
    import numpy as np

    from jaxmlip.cli import analysis, plot
    from jaxmlip.vibrations.raman import spectrum

    frequencies = found.modes.frequencies_cm1
    top = 100 * np.ceil((max(np.max(frequencies, initial=0), 100) + 20 * width) / 100)
    x = np.arange(0.0, top + 0.5, min(1.0, width / 8))
    y = spectrum(frequencies, strengths, x, width=width, **light)
    title = f"{found.atoms.get_chemical_formula()}   {model.card.get('name') or model.name}"
    small = (
        f"harmonic, {1e7 / light['laser']:g} nm, {light['temperature']:g} K, FWHM {width:g} cm⁻¹"
    )
    write(
        output.paths["raman.png"],
        lambda partial: plot.raman(
            partial,
            frequencies,
            strengths,
            sections,
            x,
            y,
            title=title,
            small=small,
            compare=compare,
        ),
    )
    write_extxyz(output.paths["relaxed.xyz"], analysis.with_energies(found))
    if "raman.csv" in output.paths:
        rows = "\n".join(f"{a:.1f},{b:.6g}" for a, b in zip(x, y, strict=True))
        head = "raman_shift_cm1,cross_section_1e30_cm2_per_sr_cm1"
        write_text(output.paths["raman.csv"], f"{head}\n{rows}\n")
