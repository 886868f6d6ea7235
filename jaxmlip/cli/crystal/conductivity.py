"""`jaxmlip conductivity`: heat that phonons conduct, from exact cubic force constants."""

from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from jaxmlip.cli import options
from jaxmlip.cli.crystal import grids, waves
from jaxmlip.cli.options import Dtype, Method
from jaxmlip.cli.output import note, plan, table, task, write
from jaxmlip.errors import UsageError

FILES = ("phono3py.yaml", "fc2.hdf5", "fc3.hdf5")
NARROW = 10.0  # Å between images of an atom, below which cubic constants are seldom converged


def conductivity(
    file: options.File,
    model: options.Model = "organic",
    json: options.Json = None,
    out: options.Out = Path("."),
    overwrite: options.Overwrite = False,
    frame: options.Frame = -1,
    supercell: Annotated[
        tuple[int, int, int],
        typer.Option(help="Repeats of the cell of FILE for cubic force constants."),
    ] = (2, 2, 2),
    harmonic: Annotated[
        tuple[int, int, int] | None,
        typer.Option(help="The same for quadratic ones, which reach farther. [default: the same]"),
    ] = None,
    mesh: Annotated[
        tuple[int, int, int],
        typer.Option(help="Divisions of the reciprocal cell of the primitive cell."),
    ] = (11, 11, 11),
    temperatures: Annotated[
        tuple[float, float, float], typer.Option(help="First, last and step, K.")
    ] = (100.0, 800.0, 100.0),
    direct: Annotated[
        bool,
        typer.Option("--direct", help="Solve the Boltzmann equation, beside relaxation times."),
    ] = False,
    isotopes: Annotated[
        bool, typer.Option("--isotopes", help="Scattering by natural isotopes, too.")
    ] = False,
    boundary: Annotated[
        float | None, typer.Option(metavar="UM", help="Longest free path, micrometres.")
    ] = None,
    born: Annotated[
        Path | None, typer.Option(metavar="BORN", help="Born charges and dielectric tensor.")
    ] = None,
    nac: Annotated[
        bool,
        typer.Option(
            "--nac/--no-nac",
            help="Split LO and TO by the model's own Born charges and dielectric tensor, if it "
            "has them and there is no --born.",
        ),
    ] = True,
    relax: Annotated[
        bool, typer.Option("--relax/--no-relax", help="Relax cell and atoms first.")
    ] = True,
    symprec: options.Symprec = 1e-3,
    fmax: options.Fmax = 1e-5,
    stress: Annotated[
        float, typer.Option(min=0, help="Relax to stresses below this, eV/Å³.")
    ] = 1e-6,
    steps: options.Steps = 2000,
    method: options.Minimizer = Method.lbfgs,
    dtype: options.Precision = Dtype.float64,
):
    """Lattice thermal conductivity (W/(m K), Cartesian axes of FILE) by three-phonon scattering.

    Cubic and quadratic force constants of supercells are exact derivatives, without displacements;
    phono3py (the extra `conductivity`) has the symmetry of triplets and the Boltzmann equation.
    Writes NAME_conductivity.json, .png and the folder NAME_phono3py, from which phono3py goes on.
    Exit status 4 if relaxing fails, a mode of the mesh is imaginary or nothing scatters; forces
    above 1e-3 eV/Å under --no-relax are a warning.
    """
    from jaxmlip.cli import session
    from jaxmlip.cli.crystal import crystals, phonon_sources
    from jaxmlip.interfaces.phonons import phono3py as door
    from jaxmlip.interfaces.phonons.conductivity import thermal_conductivity

    kelvin = grids.temperatures(temperatures, above_zero=True)
    harmonic = harmonic or supercell
    grids.check_divisions(supercell=supercell, harmonic=harmonic, mesh=mesh)
    if born is not None and not born.is_file():
        raise UsageError(f"there is no file {born}", where="--born")
    session.positive(fmax=fmax, stress=stress, symprec=symprec)
    if boundary is not None:
        session.positive(boundary=boundary)
    output = plan(
        file,
        ["conductivity.png", *(f"phono3py/{name}" for name in FILES)],
        out=out,
        json_file=json,
        overwrite=overwrite,
        default_json="conductivity.json",
    )
    door.library()  # before minutes of force constants
    session.start(x64=True)
    opened = session.open_model(model, dtype)
    read = session.read(file, opened, output, frame=frame)
    atoms = crystals.crystal_of(
        read, "thermal conductivities", file, output, primitive=False, symprec=symprec
    )
    few = crystals.for_elements(opened, atoms.numbers, in_waves=True)
    opened = session.bound(few, atoms)
    build = partial(door.phono3py_crystal, supercell=supercell, harmonic=harmonic, born=born)
    door.check_room(build(atoms, tolerance=symprec))  # refuses before minutes of relaxing
    _warn(opened, born, atoms, supercell, output)
    session.announce("conductivity", opened, len(atoms))
    if relax:
        atoms = _relaxed(atoms, opened, symprec, method, fmax=fmax, stress=stress, steps=steps)
    system = crystals.to_system(atoms, opened)
    state = phonon_sources.state(system, opened, output, where="conductivity")
    crystal = build(atoms, tolerance=1e-5 if relax else symprec)
    split = _split(crystal, system, atoms, opened, door) if born is None and nac else None
    _force_constants(crystal, opened, door)
    door.write_force_constants(crystal, output.paths["phono3py/phono3py.yaml"].parent)
    with task("Boltzmann equation"):
        found = thermal_conductivity(
            crystal,
            mesh=mesh,
            temperatures=kelvin,
            direct=direct,
            is_isotope=isotopes,
            boundary_mfp=boundary,
        )
    output.console.print(_table(found, atoms))
    write(output.paths["conductivity.png"], lambda path: _draw(path, found, atoms, opened))
    output.finish(
        {
            "command": "conductivity",
            "structure": file,
            "formula": atoms.get_chemical_formula(),
            **opened.summary,
            **session.versions(),
            "relaxed": relax,
            **state,
            "cell_A": atoms.cell.array,
            "supercell": supercell,
            "harmonic_supercell": harmonic,
            "isotopes": isotopes,
            "boundary_um": boundary,
            "nonanalytic": split if born is None else str(born),
            **_results(found, crystal, door),
        }
    )


def _warn(model, born, atoms, supercell, output):
    """Of what makes conductivities wrong without any sign."""
    import numpy as np

    if waves.reaches_far(model.card) and born is None:
        output.warn(
            "the model has electrostatics of its own: without --born its longitudinal modes near "
            "Gamma are those of the supercell of the harmonic constants"
        )
    if (smooth := _smoothness(model.card)) < 3:
        output.warn(
            f"no more than {smooth} derivatives of the model are continuous at its cutoff: cubic "
            "constants jump where a shell of atoms is there (train with smoothness 3 or more)"
        )
    cell = np.array(supercell)[:, None] * atoms.cell.array
    width = float((1 / np.linalg.norm(np.linalg.inv(cell), axis=0)).min())
    if width < NARROW:
        output.warn(
            f"the supercell of the cubic constants is {width:.1f} Å wide; converge --supercell"
        )


def _smoothness(card) -> int:
    """How many derivatives of the energy are continuous where a pair crosses a cutoff."""
    from jaxmlip.models.checkpoint import build

    model = build(card)
    if getattr(model, "onset", 0) >= 1:
        return 0  # cut: the energy alone
    if getattr(model, "coulomb_width", 0):
        return 1  # So3krates, as published
    parts = [getattr(model, name) for name in ("short", "long") if hasattr(model, name)]
    ends = [part.get("smoothness", 2) for part in parts]  # 2: of `nn.radial.envelope`
    return min(ends, default=getattr(model, "smoothness", 2))


def _relaxed(atoms, model, symprec, method, **limits):
    from jaxmlip.cli.crystal import crystals

    system, info = crystals.relaxed_cell(
        crystals.to_system(atoms, model),
        model,
        method=method,
        symmetry=crystals.operations_of(atoms, symprec),
        **limits,
    )
    crystals.check_converged(info)
    return crystals.to_atoms(atoms, system)


def _split(crystal, system, atoms, model, door) -> str | None:
    """Where the splitting of LO and TO is; the `Phono3py` gets it of a model that lacks it."""
    from jaxmlip.cli.crystal import own_field

    if not (own_field.predicted(model) and waves.follows(model.card)):
        return None
    charges, eps = own_field.own_response(system, model, where="conductivity")
    if own_field.in_matrices(system, model, atoms, charges=charges, eps=eps):
        return own_field.IN_MODEL
    own_field.split_by_model()
    door.with_response(crystal, charges, eps)
    return "model"


def _force_constants(crystal, model, door):
    n = len(crystal.supercell)
    note(f"{n} atoms: {27 * 8 * len(crystal.primitive) * n**2 / 1e6:.3g} MB of cubic constants")
    with task("force constants") as tell:
        door.with_force_constants(
            crystal,
            model.potential,
            model.params,
            dtype=model.dtype,
            report=lambda done, total: tell(f"{done} of {total} slopes of the Hessian"),
        )


def _results(found, crystal, door) -> dict:
    frequencies, kappa = crystal.get_phonon_data()[0], found.kappa
    return {
        "mesh": found.mesh,
        "temperatures_K": found.temperatures,
        "conductivity_W_per_m_K": found.mean,
        "conductivity_relaxation_times_W_per_m_K": kappa,
        "conductivity_direct_W_per_m_K": found.direct,
        "lowest_frequency_THz": float(frequencies.min()),
        "n_atoms_of_supercell": len(crystal.supercell),
        "n_atoms_of_harmonic_supercell": len(crystal.phonon_supercell),
        "n_hessian_slopes": door.n_slopes(crystal),
        **door.sum_rules(crystal),
    }


def _table(found, atoms):
    import numpy as np

    tensors = found.kappa if found.direct is None else found.direct
    heads = {"K": "right", "mean": "right", "xx": "right", "yy": "right", "zz": "right"}
    rows = [
        (f"{t:g}", f"{mean:.4g}", *(f"{x:.4g}" for x in np.diagonal(tensor)))
        for t, mean, tensor in zip(found.temperatures, found.mean, tensors, strict=True)
    ]
    how = "relaxation times" if found.direct is None else "direct solution"
    title = f"{atoms.get_chemical_formula()}, thermal conductivity, W/(m K), {how}"
    if found.direct is not None:
        heads["relaxation times, mean"] = "right"
        times = np.trace(found.kappa, axis1=1, axis2=2) / 3
        rows = [(*row, f"{x:.4g}") for row, x in zip(rows, times, strict=True)]
    return table(heads, rows, title=title)


def _draw(path, found, atoms, model):
    from jaxmlip.cli.crystal import plot_conductivity

    title = f"{atoms.get_chemical_formula()}   {Path(model.name).name}"
    plot_conductivity.draw(path, found, title=title)
