"""`jaxmlip screen`: one property of many structures, over worker processes, resumable."""

import csv
import io
import signal
import sys
from contextlib import contextmanager
from dataclasses import replace
from enum import StrEnum
from math import isfinite
from pathlib import Path
from typing import Annotated

import typer

from jaxmlip.cli import options
from jaxmlip.cli.options import Dtype
from jaxmlip.cli.output import note, plan, table, to_json, write_text
from jaxmlip.errors import DataError, Interrupted, JaxmlipError, UsageError


class Property(StrEnum):
    heat_capacity = "heat-capacity"


class Imaginary(StrEnum):
    left_out = "left-out"
    as_real = "as-real"
    refused = "refused"


def screen(
    sources: Annotated[
        list[Path],
        typer.Argument(
            metavar="FOLDER|FILE...", show_default=False, help="Crystals, or folders of them."
        ),
    ],
    model: options.Model = "organic",
    property: Annotated[Property, typer.Option(help="What to compute.")] = Property.heat_capacity,
    out: Annotated[
        Path, typer.Option("--out", "-o", metavar="DIR", help="Folder of results, kept to resume.")
    ] = Path("screening"),
    pattern: Annotated[str, typer.Option(help="Which files of a folder.")] = "*.cif",
    workers: Annotated[int, typer.Option(min=1, help="Processes; they share the cores.")] = 1,
    retries: Annotated[
        int, typer.Option(min=0, help="More attempts after a failure that may not come again.")
    ] = 1,
    temperature: Annotated[
        list[float] | None, typer.Option(metavar="K", help="K; may be repeated. [default: 300]")
    ] = None,
    relax: options.Relax = True,
    cell: Annotated[
        bool, typer.Option("--cell", help="Relax the cell too, to zero stress.")
    ] = False,
    fmax: options.Fmax = 1e-3,
    steps: options.Steps = 2000,
    qpoints: Annotated[
        str | None,
        typer.Option(
            metavar='"X Y Z, ..."',
            help="Wavevectors, in fractions of the reciprocal cell, with equal weights; "
            "the point Γ by default.",
        ),
    ] = None,
    probes: Annotated[
        int,
        typer.Option(
            min=0,
            help="Random vectors of Lanczos quadrature at Γ instead of the whole Hessian, for "
            "large cells; with an error bar.",
        ),
    ] = 0,
    imaginary: Annotated[
        Imaginary, typer.Option(help="What imaginary modes count for.")
    ] = Imaginary.left_out,
    memory: Annotated[
        float | None,
        typer.Option(min=0.01, metavar="GB", help="For second derivatives, all workers together."),
    ] = None,
    overwrite: Annotated[
        bool,
        typer.Option("--overwrite", help="Replace results of other settings, model or structure."),
    ] = False,
    json: options.Json = None,
    dtype: options.Precision = Dtype.float64,
):
    """Heat capacities of many crystals (J/K/mol of cells and J/K/g), beside their imaginary modes.

    Each structure is relaxed and kept as DIR/records/NAME.json; the table is DIR/screen.csv. Run
    the same command again to resume: what is there and unchanged is not computed again, and other
    temperatures or another --imaginary are summed from the modes that are kept. Exit status 1 if
    structures failed (they are listed), 75 on Ctrl-C.
    """
    from jaxmlip.cli import session
    from jaxmlip.workflows import heat_capacity as work
    from jaxmlip.workflows import map_resumable, processes

    temperatures = tuple(temperature or (300.0,))
    session.positive(fmax=fmax, temperature=min(temperatures))
    if probes and qpoints:
        raise UsageError("--probes is for the point Γ, without --qpoints", where="--probes")
    settings = work.Settings(
        temperatures=temperatures,
        relax=relax,
        cell=cell,
        fmax=fmax,
        steps=steps,
        dtype=str(dtype),
        imaginary=str(imaginary),
        qpoints=parsed_qpoints(qpoints),
        probes=probes,
    )
    files = _files(sources, pattern)
    output = plan(str(out), [], json_file=json, overwrite=True)  # a run that goes on replaces it
    session.start(x64=True)
    items = work.items(files, model, settings, memory=memory and memory * 1e9, workers=workers)
    with _interruptible(), _progress(len(items)) as report:
        try:
            outcome = map_resumable(
                work.heat_capacity,
                items,
                executor=processes(workers, begin=begin),
                folder=out / "records",
                key=work.key,
                overwrite=overwrite,
                retries=retries,
                in_flight=workers,
                report=report,
            )
        except Interrupted as stop:
            _write_csv(_summed(stop.outcome, settings), out)
            raise
    _write(_summed(outcome, settings), output, out, len(items))


def begin():
    """A worker sets JAX up as a command does; results do not depend on which worker made them."""
    from jaxmlip.cli import session

    session.start(x64=True)


def parsed_qpoints(text: str | None) -> tuple:
    """((x, y, z), ...) of 'x y z, x y z'."""
    if text is None:
        return ()
    try:
        points = tuple(tuple(map(float, part.split())) for part in text.split(","))
    except ValueError:
        points = ((),)
    if any(len(p) != 3 or not all(map(isfinite, p)) for p in points):
        raise UsageError(
            f"'{text}' is not a list of wavevectors",
            where="--qpoints",
            fix='three numbers each, such as "0.25 0.25 0.25, 0.5 0 0"',
        )
    return points


def _files(sources, pattern) -> list[Path]:
    found = []
    for source in sources:
        if not source.exists():
            raise DataError("no such file or folder", where=str(source), code="JM212")
        inside = sorted(p for p in source.glob(pattern) if p.is_file()) if source.is_dir() else []
        if source.is_dir() and not inside:
            raise DataError(
                f"no file is named {pattern}",
                where=str(source),
                code="JM202",
                fix="--pattern tells which files of a folder are structures",
            )
        found += inside or [source]
    return found


@contextmanager
def _interruptible():
    """SIGTERM ends a screening as Ctrl-C does, with no worker left behind."""
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextmanager
def _progress(total: int):
    """Yields `report` for `map_resumable`: a bar on a terminal, lines elsewhere."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    if not sys.stderr.isatty():
        yield lambda outcome, name: note(_line(outcome, name, total))
        return
    from rich.console import Console

    with Progress(*columns, TimeElapsedColumn(), console=Console(stderr=True)) as bar:
        task = bar.add_task("screening", total=total)

        def report(outcome, name):
            done, failed = len(outcome.results), len(outcome.failures)
            text = f"screening ({failed} failed)" if failed else "screening"
            bar.update(task, completed=done + failed, description=text)
            if name in outcome.failures:
                bar.console.print(_line(outcome, name, total), markup=False, highlight=False)

        yield report


def _line(outcome, name, total) -> str:
    done = len(outcome.results) + len(outcome.failures)
    if name in outcome.failures:
        return f"{done}/{total} {name}: failed: {outcome.failures[name].reason}"
    return f"{done}/{total} {name}"


# --- results -------------------------------------------------------------------------------------


def _summed(outcome, settings):
    """Results that were there before at the temperatures asked for now."""
    from jaxmlip.workflows import heat_capacity as work
    from jaxmlip.workflows.resumable import Failure

    results, failures = {}, dict(outcome.failures)
    for name, result in outcome.results.items():
        try:
            results[name] = work.summed(result, settings)
        except JaxmlipError as error:  # imaginary modes are refused now
            failures[name] = Failure(reason=str(error), attempts=0)
    return replace(outcome, results=results, failures=failures)


def _write_csv(outcome, out) -> list:
    rows = [_row(name, result) for name, result in outcome.results.items()]
    if rows:
        write_text(out / "screen.csv", _csv(rows))
    return rows


def _write(outcome, output, out, total):
    """Table, CSV and JSON; then, if anything failed, the error that sets the exit status."""
    rows = _write_csv(outcome, out)
    failures = {
        name: {"reason": f.reason, "attempts": f.attempts, "traceback": f.traceback}
        for name, f in outcome.failures.items()
    }
    if rows:
        output.console.print(_shown(outcome.results))
    if outcome.n_reused:
        note(f"{outcome.n_reused} of {total} were there already and have not changed")
    results = {"command": "screen", "n_reused": outcome.n_reused, "results": rows}
    results |= {"failures": failures}
    write_text(out / "screen.json", to_json(results) + "\n")
    output.finish(results)
    if failures:
        listed = "\n".join(f"  {name}: {f['reason']}" for name, f in failures.items())
        raise JaxmlipError(
            f"{len(failures)} of {total} structures failed\n{listed}",
            where=str(out),
            code="JM001",
            fix="mend or remove them and run the same command again; the others are kept",
        )


LONG = ("cell_A", "positions_A", "numbers", "frequencies_cm1", "mode_weights")
PER_TEMPERATURE = (
    "cv_J_per_K_mol",
    "cv_J_per_K_g",
    "cv_error_J_per_K_g",
    "cv_soft_classical_J_per_K_g",
    "entropy_J_per_K_mol",
    "free_energy_kJ_mol",
)


def _row(name, result) -> dict:
    """One line of the CSV: what depends on temperature has a column for each."""
    row = {"name": name}
    for column, value in result.items():
        if column in PER_TEMPERATURE:
            each = zip(result["temperatures_K"], value, strict=True)
            row |= {f"{column}_{t:g}K": v for t, v in each}
        elif column not in (*LONG, "temperatures_K"):
            row[column] = value
    return row


def _csv(rows) -> str:
    stream = io.StringIO()
    columns = list(dict.fromkeys(column for row in rows for column in row))
    writer = csv.DictWriter(stream, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return stream.getvalue()


def _shown(results):
    lines = [
        (
            name,
            r["formula"],
            f"{r['temperatures_K'][i]:g}",
            f"{r['cv_J_per_K_mol'][i]:.2f}",
            f"{r['cv_J_per_K_g'][i]:.4f}",
            f"{r['cv_soft_classical_J_per_K_g'][i]:.4f}",
            f"{r['n_imaginary']:g}",
            f"{r['lowest_cm1']:.1f}",
        )
        for name, r in results.items()
        for i in range(len(r["temperatures_K"]))
    ]
    names = ("structure", "formula", "K", "Cv J/K/mol", "Cv J/K/g", "with soft modes", "imaginary")
    sides = {name: "left" if name in ("structure", "formula") else "right" for name in names}
    return table(sides | {"lowest cm⁻¹": "right"}, lines)
