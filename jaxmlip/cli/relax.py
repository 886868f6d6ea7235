"""`jaxmlip relax`: positions, and the cell if asked, moved to a minimum of the energy."""

from pathlib import Path
from typing import Annotated

import typer

from jaxmlip import units
from jaxmlip.cli import options
from jaxmlip.cli.options import Dtype, Method
from jaxmlip.cli.output import plan, table, write_extxyz
from jaxmlip.errors import NumericalError, UsageError


def relax(
    file: options.File,
    model: options.Model = "organic",
    json: options.Json = None,
    out: options.Out = Path("."),
    overwrite: options.Overwrite = False,
    frame: options.Frame = -1,
    cell: Annotated[bool, typer.Option("--cell", help="Relax the cell too.")] = False,
    pressure: Annotated[
        float | None,
        typer.Option(help="Target pressure with --cell, GPa; default 0.", show_default=False),
    ] = None,
    stress: Annotated[
        float,
        typer.Option(min=0, help="With --cell: largest stress + pressure that is left, eV/Å³."),
    ] = 1e-6,
    symmetry: Annotated[
        bool,
        typer.Option(
            "--symmetry/--no-symmetry",
            help="Crystals: keep the space group of the start exactly.",
        ),
    ] = False,
    fmax: options.Fmax = 1e-4,
    steps: options.Steps = 2000,
    method: options.Minimizer = Method.lbfgs,
    dtype: options.Precision = Dtype.float64,
):
    """Relax a structure, and with --cell its cell; writes NAME_relaxed.xyz (eV, Å, eV/Å, GPa).

    Atoms held by FixAtoms keep their positions, with --cell their fractional coordinates. Exit
    status 4 if it does not converge; the best structure is written all the same.
    """
    from jaxmlip.cli import analysis, selection, session
    from jaxmlip.cli.crystal import crystals
    from jaxmlip.interfaces.ase import from_ase
    from jaxmlip.md import fixed_cell

    output = plan(file, ["relaxed.xyz"], out=out, json_file=json, overwrite=overwrite)
    session.positive(fmax=fmax, stress=stress)
    if not cell and pressure is not None:
        raise UsageError("--pressure is for relaxations of the cell", where="relax", fix="--cell")
    session.start(x64=True)
    opened = session.open_model(model, dtype)
    atoms = session.read(file, opened, output, frame=frame)
    opened = session.bound(opened, atoms)
    fixed = selection.held(atoms, file)
    system = from_ase(atoms, opened.potential.cutoff, dtype=opened.dtype)
    session.announce("relax", opened, len(atoms))
    how = {"fmax": fmax, "steps": steps, "method": method, "fixed": fixed}
    if symmetry:
        _check_crystal(atoms, file)
        how |= {"symmetry": crystals.operations_of(atoms, 1e-3)}
    if cell:
        how |= {"pressure": (pressure or 0.0) * units.GPa, "stress": stress}
        system, info = crystals.relaxed_cell(system, opened, **how)
    elif symmetry:
        system, info = crystals.relaxed_cell(system, opened, free=fixed_cell, **how)
    else:
        system, info = analysis.relaxed(system, opened, **how)
    atoms = _moved(atoms, system, opened)
    rows = [
        ("energy", f"{atoms.get_potential_energy():.6f} eV"),
        ("fmax", f"{info.fmax:.2e} eV/Å"),
        *([("stress + pressure", f"{info.stress / units.GPa:.2e} GPa")] if cell else []),
        *([("volume", f"{atoms.get_volume():.4f} Å³")] if cell and atoms.cell.rank == 3 else []),
        ("evaluations", str(info.n_steps)),
        ("converged", "yes" if info.converged else "no"),
    ]
    output.console.print(
        table({"relaxation": "left", "": "right"}, rows, title=atoms.get_chemical_formula())
    )
    write_extxyz(output.paths["relaxed.xyz"], atoms)
    output.finish(
        {
            "command": "relax",
            "structure": file,
            "formula": atoms.get_chemical_formula(),
            **opened.summary,
            **session.versions(),
            **analysis.geometry(atoms),
            "energy_eV": atoms.get_potential_energy(),
            **(_cell_results(atoms, info, pressure or 0.0) if cell else {}),
            "fmax_eV_per_A": info.fmax,
            "n_steps": info.n_steps,
            "converged": info.converged,
            "reason": info.reason,
            "forces_eV_per_A": atoms.calc.results["forces"],
        }
    )
    if not info.converged:
        raise NumericalError(
            f"not relaxed: {info.reason}",
            where=file,
            code="JM304",
            fix="more --steps, a larger --fmax, or --method fire",
        )


def _check_crystal(atoms, file):
    if not atoms.pbc.all():
        raise UsageError(
            f"a space group needs three periodic axes; this structure has {int(atoms.pbc.sum())}",
            where=file,
            fix="no --symmetry: forces keep the symmetry of the start to rounding",
        )


def _cell_results(atoms, info, pressure) -> dict:
    return {
        "pressure_GPa": pressure,
        "enthalpy_eV": info.energy,
        "stress_left_eV_per_A3": info.stress,
        "volume_A3": atoms.get_volume() if atoms.cell.rank == 3 else None,
    }


def _moved(atoms, system, model):
    """The relaxed atoms with their energy and forces (of free and held atoms alike)."""
    import jax
    import numpy as np

    from jaxmlip.cli.analysis import with_results
    from jaxmlip.cli.crystal.crystals import to_atoms
    from jaxmlip.derivatives.first import total_energy

    slope = jax.jit(jax.value_and_grad(total_energy(model.potential.apply)))
    energy, gradient = slope(system.positions, model.params, system)
    return with_results(
        to_atoms(atoms, system), energy=float(energy), forces=-np.asarray(gradient, np.float64)
    )
