"""`jaxmlip elastic`: elastic constants of a crystal and what follows from them."""

from typing import Annotated

import typer

from jaxmlip import units
from jaxmlip.cli import options
from jaxmlip.cli.options import Dtype, Method
from jaxmlip.cli.output import plan, table, task
from jaxmlip.errors import NumericalError, UsageError

VOIGT = ("xx", "yy", "zz", "yz", "xz", "xy")


def elastic(
    file: options.File,
    model: options.Model = "organic",
    json: options.Json = None,
    overwrite: options.Overwrite = False,
    frame: options.Frame = -1,
    relax: Annotated[
        bool, typer.Option("--relax/--no-relax", help="Relax cell and atoms first.")
    ] = True,
    pressure: Annotated[float, typer.Option(help="Pressure of that relaxation, GPa.")] = 0.0,
    primitive: options.Primitive = True,
    symprec: options.Symprec = 1e-3,
    fmax: options.Fmax = 1e-5,
    stress: Annotated[
        float, typer.Option(min=0, help="Relax to a stress + pressure below this, eV/Å³.")
    ] = 1e-6,
    steps: options.Steps = 2000,
    method: options.Minimizer = Method.lbfgs,
    dtype: options.Precision = Dtype.float64,
):
    """Elastic constants (GPa, Cartesian axes of FILE), stability, averages, sound, Debye's K.

    Exact second derivatives by strain and positions of the primitive cell, atoms relaxed with the
    strain and, beside it, clamped. Under a pressure they are stress-strain coefficients. Exit
    status 4 if it is not relaxed; an unstable crystal is told.
    """
    from jaxmlip.cli import session
    from jaxmlip.cli.crystal import crystals

    output = plan(file, [], json_file=json, overwrite=overwrite)
    session.positive(fmax=fmax, stress=stress, symprec=symprec)
    if pressure and not relax:
        raise UsageError(
            f"--pressure {pressure:g} with --no-relax: a cell that is kept has the stress it has",
            where="--pressure",
            fix="leave out one of them; the stress found is part of the results",
        )
    session.start(x64=True)
    opened = session.open_model(model, dtype)
    atoms = session.read(file, opened, output, frame=frame)
    atoms = crystals.crystal_of(
        atoms, "elastic constants", file, output, primitive=primitive, symprec=symprec
    )
    opened = session.bound(opened, atoms)
    session.announce("elastic", opened, len(atoms))
    system = crystals.to_system(atoms, opened)
    if relax:
        system, info = crystals.relaxed_cell(
            system,
            opened,
            method=method,
            symmetry=crystals.operations_of(atoms, symprec),
            pressure=pressure * units.GPa,
            fmax=fmax,
            stress=stress,
            steps=steps,
        )
        crystals.check_converged(info)
    found = _constants(system, opened)
    results = _results(found, atoms, output)
    _show(results, output, atoms)
    output.finish(
        {
            "command": "elastic",
            "structure": file,
            "formula": atoms.get_chemical_formula(),
            **opened.summary,
            **session.versions(),
            "relaxed": relax,
            "cell_A": system.cell[0],
            **results,
        }
    )


def _constants(system, model):
    import jax

    from jaxmlip.derivatives.elastic import elastic_constants
    from jaxmlip.vibrations.crystals.elasticity import check_relaxed

    with task("second derivatives by strain and positions"):
        found = jax.jit(elastic_constants(model.potential.apply))(model.params, system)
        found = jax.device_get(found)
    check_relaxed(found)
    return found


def _results(found, atoms, output) -> dict:
    import numpy as np

    from jaxmlip.derivatives.elastic import voigt_matrix
    from jaxmlip.vibrations.crystals import elasticity as e

    density = e.density_of(atoms.get_masses(), float(found.volume))
    known = e.elasticity(found.relaxed, density=density)
    try:
        debye = e.debye_temperature(found.relaxed, density, atoms.get_masses(), stress=found.stress)
    except NumericalError:
        debye = None
    if not known.stable:
        output.warn(
            f"unstable: the lowest eigenvalue of the elastic constants is "
            f"{known.eigenvalues[0] / units.GPa:.3g} GPa"
        )
    moduli = {
        f"{name}_modulus_{kind}_GPa": value / units.GPa
        for name, values in (("bulk", known.bulk), ("shear", known.shear))
        for kind, value in values.items()
    }
    stress = np.asarray(found.stress)
    return {
        "n_atoms_of_cell": len(atoms),
        "elastic_constants_GPa": known.constants / units.GPa,
        "elastic_constants_clamped_GPa": voigt_matrix(found.clamped) / units.GPa,
        "voigt_order": VOIGT,
        "stress_GPa": stress / units.GPa,
        "eigenvalues_GPa": known.eigenvalues / units.GPa,
        "stable": known.stable,
        **moduli,
        "young_modulus_GPa": known.young / units.GPa,
        "poisson_ratio": known.poisson,
        "pugh_ratio": known.pugh,
        "universal_anisotropy": known.universal_anisotropy,
        "density_g_per_cm3": density * units._amu * 1e27,
        **{f"sound_velocity_{k}_m_per_s": v for k, v in e.hill_velocities(known).items()},
        "debye_temperature_K": debye,
    }


def _show(results, output, atoms):
    rows = [
        (name, *(f"{x:.2f}" for x in row))
        for name, row in zip(VOIGT, results["elastic_constants_GPa"], strict=True)
    ]
    columns = {"C (GPa)": "left"} | dict.fromkeys(VOIGT, "right")
    output.console.print(table(columns, rows, title=atoms.get_chemical_formula()))
    kinds = ("voigt", "reuss", "hill")
    both = [
        (
            f"{name} modulus, {', '.join(kinds)}",
            "  ".join(f"{results[f'{name}_modulus_{k}_GPa']:.2f}" for k in kinds) + " GPa",
        )
        for name in ("bulk", "shear")
    ]
    debye = results["debye_temperature_K"]
    rows = [
        *both,
        ("Young's modulus", f"{results['young_modulus_GPa']:.2f} GPa"),
        ("Poisson's ratio", f"{results['poisson_ratio']:.4f}"),
        ("universal anisotropy", f"{results['universal_anisotropy']:.4f}"),
        ("Debye temperature", "none" if debye is None else f"{debye:.2f} K"),
        ("stable", "yes" if results["stable"] else "no"),
    ]
    output.console.print(table({"elasticity": "left", "": "right"}, rows))
