"""`jaxmlip phonons`: bands, density of states and thermal properties of a crystal."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from jaxmlip.cli import options
from jaxmlip.cli.crystal import grids
from jaxmlip.cli.options import Dtype, Method
from jaxmlip.cli.output import note, plan, table, write
from jaxmlip.errors import UsageError

OF_MODELS = (  # what force constants that are there leave nothing to decide
    *("fixed_cell", "fmax", "stress", "steps", "method", "primitive", "symprec"),
    *("tolerance", "budget", "dtype", "nac"),
)


class Imaginary(StrEnum):
    error = "error"
    warn = "warn"
    ignore = "ignore"


class AcousticRule(StrEnum):
    report = "report"
    correct = "correct"


def phonons(
    context: typer.Context,
    file: options.File,
    model: Annotated[
        str | None,
        typer.Option("--model", "-m", metavar="NAME|PATH", help="A potential; see --help of `ir`."),
    ] = None,
    json: options.Json = None,
    out: options.Out = Path("."),
    overwrite: options.Overwrite = False,
    frame: options.Frame = -1,
    force_constants: Annotated[
        Path | None,
        typer.Option(
            metavar="PHONOPY.YAML",
            help="Force constants of a phonopy file (or FORCE_SETS beside it) in place of a model.",
        ),
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
    fixed_cell: Annotated[bool, typer.Option("--fixed-cell", help="Relax atoms only.")] = False,
    fmax: Annotated[float, typer.Option(min=0, help="Relax to forces below this, eV/Å.")] = 1e-5,
    stress: Annotated[float, typer.Option(min=0, help="... and stress, eV/Å³.")] = 1e-6,
    steps: options.Steps = 2000,
    method: options.Minimizer = Method.lbfgs,
    primitive: Annotated[
        bool,
        typer.Option(
            "--primitive/--as-given",
            help="Reduce the structure to its primitive cell, or take the cell of FILE.",
        ),
    ] = True,
    symprec: options.Symprec = 1e-3,
    qpoints: Annotated[
        str | None,
        typer.Option(
            metavar='"0 0 0, 0.5 0 0"',
            help="Exact frequencies at these q in place of a band path; fractions of the "
            "reciprocal vectors of the cell in FILE (of its primitive cell where FILE is a "
            "phonopy.yaml), whatever cell is computed.",
        ),
    ] = None,
    mesh: Annotated[
        tuple[int, int, int], typer.Option(help="Points of the mesh for density and sums.")
    ] = (12, 12, 12),
    temperatures: Annotated[
        tuple[float, float, float], typer.Option(help="First, last and step, K.")
    ] = (0.0, 1000.0, 10.0),
    tolerance: Annotated[
        float, typer.Option(help="Measured error of interpolated frequencies, THz.")
    ] = 0.02,
    budget: Annotated[
        int, typer.Option(min=24, help="Most exact dynamical matrices for mesh and for bands.")
    ] = 400,
    asr: Annotated[
        AcousticRule,
        typer.Option(help="Acoustic sum rule: told, or corrected after it has been told."),
    ] = AcousticRule.report,
    imaginary: Annotated[
        Imaginary,
        typer.Option(help="Imaginary modes: exit status 4 (files are written), a warning, or no."),
    ] = Imaginary.error,
    dtype: options.Precision = Dtype.float64,
):
    """Phonons of a crystal: frequencies in THz (imaginary ones negative), per mol of unit cells.

    The unit cell is the primitive one, or that of FILE with --as-given; results name its formula.

    Relaxes cell and atoms, takes exact dynamical matrices of the primitive cell at few q and
    interpolates between them to a measured error. Writes NAME_phonons.png, NAME_phonons.json and
    NAME_phonopy.yaml, from which phonopy goes on. With --force-constants no model is needed.
    """
    from jaxmlip.cli import session
    from jaxmlip.cli.crystal import phonon_sources

    q, steps_T = _points(qpoints), grids.temperatures(temperatures)
    grids.check_divisions(mesh=mesh)
    if (model is None) == (force_constants is None):
        raise UsageError(
            "phonons need a potential or force constants, and not both",
            where="--model, --force-constants",
            fix="--model NAME|PATH, or --force-constants phonopy.yaml",
        )
    if force_constants is not None:
        _refuse_of_models(context, relax)
    if born is not None and not born.is_file():
        raise UsageError(f"there is no file {born}", where="--born")
    output = plan(
        file,
        ["phonons.png", "phonopy.yaml"],
        out=out,
        json_file=json,
        overwrite=overwrite,
        default_json="phonons.json",
    )
    session.positive(fmax=fmax, stress=stress, symprec=symprec, tolerance=tolerance)
    session.start(x64=True)
    if force_constants is not None:
        source = phonon_sources.from_file(file, force_constants, output, born=born, frame=frame)
    else:
        source = phonon_sources.from_model(
            file,
            session.open_model(model, dtype),
            output,
            born=born,
            frame=frame,
            primitive=primitive,
            symprec=symprec,
            relax=relax,
            fixed_cell=fixed_cell,
            limits={"fmax": fmax, "stress": stress, "steps": steps},
            method=method,
            nac=nac,
        )
    found = _computed(
        source,
        q,
        mesh=mesh,
        temperatures=steps_T,
        budget=budget,
        tolerance=None if source.cheap else tolerance,
        correct=asr == AcousticRule.correct,
    )
    _report(found, source, output, imaginary, tolerance=None if source.cheap else tolerance)


def _refuse_of_models(context, relax):
    """Options that were given and would do nothing beside force constants."""
    given = lambda name: context.get_parameter_source(name).name == "COMMANDLINE"
    names = [name for name in OF_MODELS if given(name)] + ["relax"] * (given("relax") and relax)
    if names:
        flags = {"primitive": "--primitive/--as-given", "nac": "--nac/--no-nac"}
        told = ", ".join(flags.get(n, "--" + n.replace("_", "-")) for n in names)
        raise UsageError(
            "force constants are used as they are, for the cell they were made for",
            where=told,
            fix=f"leave out {told}, or --model in place of --force-constants",
        )


def _points(text):
    """[n_q, 3] of "0 0 0, 0.5 0 0", or None."""
    if text is None:
        return None
    import numpy as np

    try:
        q = np.array([[float(x) for x in part.split()] for part in text.split(",")])
    except ValueError:
        q = np.zeros(0)
    if q.ndim != 2 or q.shape[1] != 3 or not np.isfinite(q).all():
        raise UsageError(
            f"cannot read points of three numbers from '{text}'",
            where="--qpoints",
            fix='numbers by spaces, points by commas: "0 0 0, 0.5 0 0"',
        )
    return q


def _computed(source, q, *, mesh, temperatures, tolerance, budget, correct):
    from jaxmlip.cli.output import task
    from jaxmlip.vibrations.phonons.bands import phonons, points_path
    from jaxmlip.vibrations.phonons.dispersion import with_acoustic_sum

    with task("dynamical matrices") as tell:
        return phonons(
            source.D if source.cheap else _told(source.D, tell),
            source.atoms,
            mesh=mesh,
            temperatures=temperatures,
            path=None if q is None else points_path(q @ source.in_file.T, source.atoms),
            tolerance=tolerance,
            budget=budget,
            nonanalytic=source.nonanalytic,
            correct=with_acoustic_sum if correct else None,
            near=source.near,
            symprec=source.symprec,
            on_imaginary=lambda frequencies, q: None,
            report=lambda n, error, shape: tell(f"{n} exact q, error {error:.2g} THz"),
        )


def _told(D, tell):
    """D with news of every single q: that of a large cell may take minutes."""
    from itertools import count

    import numpy as np

    from jaxmlip.vibrations.phonons.velocities import Matrices

    number = count(1)

    def one(q):
        tell(f"exact q number {next(number)}")
        return D(q[None])[0]

    return Matrices(values=lambda q: np.stack([one(p) for p in q]), slopes=D.gradient)


def _report(found, source, output, policy, *, tolerance):
    """Table, picture, files; then the error that imaginary modes are."""
    from jaxmlip.cli.crystal import phonon_results, plot_phonons
    from jaxmlip.errors import NumericalError

    count, lowest, where = found.imaginary
    place = phonon_results.place(where, source)
    if count and policy == Imaginary.warn:
        output.warn(f"{count} modes are imaginary, lowest {lowest:.3f} THz at {place}")
    note(phonon_results.summary(found))
    output.console.print(phonon_results.table_of(found, source, table))
    title = phonon_results.title(source)
    write(output.paths["phonons.png"], lambda p: plot_phonons.draw(p, found, title=title))
    phonon_results.write_constants(found, source, output)
    output.finish(phonon_results.results(found, source, tolerance=tolerance))
    if count and policy == Imaginary.error:
        raise NumericalError(
            f"{count} modes are imaginary, lowest {lowest:.3f} THz at {place}: this crystal is not "
            "stable as it is",
            where="phonons",
            code="JM306",
            fix="relax (tighter, or in a cell that holds this q), or --imaginary warn",
        )
