"""`jaxmlip qha`: thermal expansion, bulk modulus, Cp and Gibbs energy of a crystal."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from jaxmlip import units
from jaxmlip.cli import options
from jaxmlip.cli.crystal import grids, waves
from jaxmlip.cli.options import Dtype, Method
from jaxmlip.cli.output import plan, table, task
from jaxmlip.errors import JaxmlipError, NumericalError, UsageError


class Equation(StrEnum):
    vinet = "vinet"
    birch_murnaghan = "birch_murnaghan"


def qha(
    file: options.File,
    model: options.Model = "organic",
    json: options.Json = None,
    out: options.Out = Path("."),
    overwrite: options.Overwrite = False,
    frame: options.Frame = -1,
    volumes: Annotated[int, typer.Option(min=5, help="How many volumes.")] = 9,
    span: Annotated[
        tuple[float, float],
        typer.Option(help="Smallest and largest volume, as parts of the static minimum."),
    ] = (0.95, 1.10),
    mesh: Annotated[
        tuple[int, int, int], typer.Option(help="q-points along each axis; all of them exact.")
    ] = (8, 8, 8),
    temperatures: Annotated[
        tuple[float, float, float], typer.Option(help="First, last and step, K.")
    ] = (0.0, 1000.0, 10.0),
    pressure: Annotated[float, typer.Option(help="GPa.")] = 0.0,
    equation: Annotated[
        Equation, typer.Option(help="Equation of state at every temperature.")
    ] = Equation.vinet,
    axes: Annotated[
        bool,
        typer.Option(
            "--axes", help="The expansion of each axis, too: from mode Grüneisen tensors."
        ),
    ] = False,
    primitive: options.Primitive = True,
    symprec: options.Symprec = 1e-3,
    fmax: options.Fmax = 1e-5,
    stress: Annotated[
        float, typer.Option(min=0, help="Relax to stresses below this, eV/Å³.")
    ] = 1e-6,
    steps: options.Steps = 2000,
    method: options.Minimizer = Method.lbfgs,
    dtype: options.Precision = Dtype.float64,
):
    """Quasi-harmonic approximation, per cell; writes NAME_qha.json (K, Å³, GPa, eV, J/K/mol).

    Relaxes the crystal, then cell shape and atoms at every volume, with the space group kept; takes
    exact dynamical matrices of the primitive cell on a mesh. Imaginary modes are an error, and so
    are temperatures none of which has its volume in --span; the JSON is written all the same.
    """
    from jaxmlip.cli import session
    from jaxmlip.cli.crystal import crystals
    from jaxmlip.cli.crystal.crystals import crystal_of
    from jaxmlip.cli.crystal.qha_span import check_pressure, check_real

    grid = grids.temperatures(temperatures, at_least=3)
    grids.check_divisions(mesh=mesh)
    _check_span(span)
    _check_pressure(pressure, axes)
    output = plan(file, [], out=out, json_file=json, overwrite=overwrite, default_json="qha.json")
    session.positive(fmax=fmax, stress=stress, symprec=symprec)
    session.start(x64=True)
    opened = session.open_model(model, dtype)
    atoms = session.read(file, opened, output, frame=frame)
    atoms = crystal_of(
        atoms, "thermal expansions", file, output, primitive=primitive, symprec=symprec
    )
    waves.check_matrices(opened)
    opened = crystals.for_elements(opened, atoms.numbers, in_waves=True)
    opened = session.bound(opened, atoms)
    session.announce("qha", opened, len(atoms))
    if session.predicts(opened.card, "polarizability") and not opened.card.get("electrostatics"):
        output.warn(
            "free energies are without the splitting of LO and TO that `jaxmlip phonons` adds from "
            "the model's own Born charges"
        )
    how = {"fmax": fmax, "stress": stress, "steps": steps, "method": method}
    how |= {"symmetry": crystals.operations_of(atoms, symprec)}
    pressure = pressure * units.GPa
    cells, energies, still, opened = _cells(atoms, opened, span, volumes, how)
    check_pressure(list(map(_volume, cells)), energies, pressure, _equation(equation))
    found = _harmonic(cells, crystals.to_atoms(atoms, cells[len(cells) // 2]), opened, mesh, grid)
    results = {
        "command": "qha",
        "structure": file,
        "formula": atoms.get_chemical_formula(),
        "n_atoms_of_cell": len(atoms),
        **opened.summary,
        **session.versions(),
        "mesh": mesh,
        "equation_of_state": equation.value,
        **_of_volumes(found, pressure),
    }
    failed = None
    try:
        check_real(found, _volume(still))
        result = _quasiharmonic(found, pressure, _equation(equation))
    except NumericalError as error:  # what was computed is worth having all the same
        failed = error
    else:
        results |= _of_temperatures(result)
        failed = _told_outside(result, found, pressure, output)
        _show(result, atoms, output)
    if axes and failed is None:
        try:
            results |= _axes(still, atoms, opened, mesh, grid)
        except JaxmlipError as error:  # that of the volume is worth having all the same
            failed = error
    output.finish(results)
    if failed is not None:
        raise failed


def _extremes(atoms, span):
    """The crystal at the smallest and the largest volume."""
    for factor in span:
        copy = atoms.copy()
        copy.set_cell(factor ** (1 / 3) * copy.cell[:], scale_atoms=True)
        yield copy


def _cells(atoms, model, span, count, how):
    """(crystals relaxed at equally spaced volumes, their energies, at the minimum; the model)."""
    import numpy as np

    from jaxmlip.cli import session
    from jaxmlip.cli.crystal import crystals
    from jaxmlip.md import fixed_volume
    from jaxmlip.vibrations.crystals.volumes import scaled

    system, info = crystals.relaxed_cell(crystals.to_system(atoms, model), model, **how)
    crystals.check_converged(info)
    model = session.bound(model, *_extremes(crystals.to_atoms(atoms, system), span))
    cells, energies, at, still = [], [], 1.0, system
    for factor in np.linspace(*span, count):  # from the smallest, whose edges fit all others
        moved = scaled(system, factor / at)
        system, info = crystals.relaxed_cell(moved, model, free=fixed_volume, **how)
        crystals.check_converged(info)
        cells.append(system)
        energies.append(info.energy)
        at = factor
    return cells, energies, still, model


def _volume(system) -> float:
    import numpy as np

    return float(abs(np.linalg.det(np.asarray(system.cell, float)[0])))


def _harmonic(cells, atoms, model, mesh, temperatures):
    from jaxmlip.vibrations.crystals.volumes import harmonic_volumes

    with task(f"dynamical matrices of {len(cells)} volumes"):
        return harmonic_volumes(
            model.potential.apply, model.params, cells, atoms, mesh=mesh, temperatures=temperatures
        )


def _axes(still, atoms, model, mesh, temperatures) -> dict:
    """The expansion tensor at the static minimum, without its zero-point expansion."""
    from jaxmlip.cli.crystal import crystals
    from jaxmlip.vibrations.crystals.axial_expansion import axial_expansion

    atoms = crystals.to_atoms(atoms, still)
    with task("mode Grüneisen tensors"):
        found = axial_expansion(
            model.potential.apply,
            model.params,
            still,
            atoms,
            mesh=mesh,
            temperatures=temperatures,
        )
    return {"expansion_tensor_of_static_minimum_per_K": found}


def _quasiharmonic(found, pressure, equation):
    from jaxmlip.vibrations.crystals.quasiharmonic import quasiharmonic

    return quasiharmonic(
        found.volumes,
        found.energies,
        found.temperatures,
        *found.tables,
        pressure=pressure,
        equation=equation,
    )


def _equation(equation):
    from jaxmlip.vibrations.crystals import equation_of_state

    return getattr(equation_of_state, equation.value.upper())


def _told_outside(result, found, pressure, output):
    """A warning of temperatures without a volume, or the error that all of them are."""
    import numpy as np

    from jaxmlip.cli.crystal.qha_span import wider

    at = np.flatnonzero(result.outside)
    if not len(at):
        return None
    fix = wider(found, pressure, at[0])
    if result.outside.all():
        return NumericalError(
            "no temperature has its volume among those computed", where="qha", fix=fix
        )
    first, last = result.temperatures[at[[0, -1]]]
    output.warn(f"{first:g} to {last:g} K: the volume is outside of those computed: {fix}")
    return None


def _check_span(span):
    if not 0.5 < span[0] < 1 < span[1] < 2:
        raise UsageError(
            f"--span {span[0]:g} {span[1]:g}: below and above 1, the static minimum", where="--span"
        )


def _check_pressure(pressure, axes):
    if not abs(pressure) < float("inf"):
        raise UsageError(f"--pressure is {pressure:g} GPa", where="--pressure")
    if axes and pressure:
        raise UsageError(
            "the expansion of axes is that of the crystal without pressure",
            where="--axes, --pressure",
            fix="leave out one of them",
        )


def _of_volumes(found, pressure) -> dict:
    return {
        "pressure_GPa": pressure / units.GPa,
        "volumes_A3": found.volumes,
        "static_energies_eV": found.energies,
        "lowest_frequencies_THz": found.frequencies_THz.min((1, 2)),
        "temperatures_K": found.temperatures,
        "helmholtz_free_energies_eV": found.energies[:, None] + found.free_energies,
    }


def _of_temperatures(result) -> dict:
    molar = 1000 / units.kJ_mol  # J/mol of 1 eV
    e0, b0, b1, v0 = result.static
    return {
        "static_volume_A3": v0,
        "static_energy_eV": e0,
        "static_bulk_modulus_GPa": b0 / units.GPa,
        "static_bulk_modulus_derivative": b1,
        "volume_A3": result.volume,
        "thermal_expansion_per_K": result.expansion,
        "bulk_modulus_GPa": result.bulk_modulus / units.GPa,
        "bulk_modulus_adiabatic_GPa": result.adiabatic_bulk_modulus / units.GPa,
        "gibbs_energy_eV": result.gibbs,
        "entropy_J_per_K_mol": result.entropy * molar,
        "cv_J_per_K_mol": result.cv * molar,
        "cp_J_per_K_mol": result.cp * molar,
        "cp_from_gibbs_J_per_K_mol": result.cp_from_gibbs * molar,
        "gruneisen_parameter": result.gruneisen,
        "fit_misfit_eV": result.misfit,
    }


def _show(result, atoms, output):
    import numpy as np

    molar = 1000 / units.kJ_mol
    rows = []
    for i in np.unique(np.linspace(0, len(result.temperatures) - 1, 11).astype(int)):
        numbers = (
            f"{result.temperatures[i]:.1f}",
            f"{result.volume[i]:.4f}",
            f"{result.expansion[i] * 1e6:.3f}",
            f"{result.bulk_modulus[i] / units.GPa:.3f}",
            f"{result.cp[i] * molar:.3f}",
            f"{result.gibbs[i]:.6f}",
        )
        rows.append(numbers)
    names = ("T (K)", "V (Å³)", "alpha (1e-6/K)", "B (GPa)", "Cp (J/K/mol)", "G (eV)")
    columns = dict.fromkeys(names, "right")
    output.console.print(table(columns, rows, title=f"{atoms.get_chemical_formula()}, per cell"))
