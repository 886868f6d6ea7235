"""`jaxmlip spectra`: infrared, Raman, states, diffusion and viscosity from a trajectory."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from jaxmlip.cli import options
from jaxmlip.cli.options import Dtype
from jaxmlip.cli.output import Output, plan, table, task, write, write_text
from jaxmlip.errors import DataError, UsageError


class Kind(StrEnum):
    ir = "ir"
    raman = "raman"
    vdos = "vdos"
    diffusion = "diffusion"
    viscosity = "viscosity"
    conductivity = "conductivity"


class Window(StrEnum):
    gaussian = "gaussian"
    hann = "hann"
    blackman = "blackman"


class Quantum(StrEnum):
    harmonic = "harmonic"
    standard = "standard"
    schofield = "schofield"
    mixed = "mixed"


def spectra(
    file: Annotated[
        str,
        typer.Argument(
            metavar="TRAJ",
            show_default=False,
            help="A trajectory: H5MD, extended XYZ or ASE's .traj (Å; velocities Å/fs or momenta).",
        ),
    ],
    kind: Annotated[
        list[Kind] | None,
        typer.Option(
            "--kind",
            "-k",
            show_default=False,
            help="What to compute; repeatable. Default: each spectrum that the file has data for.",
        ),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(
            "--model",
            "-m",
            metavar="NAME|PATH",
            help="Computes dipoles, currents or polarizabilities that TRAJ lacks, on its frames.",
        ),
    ] = None,
    json: options.Json = None,
    out: options.Out = Path("."),
    overwrite: options.Overwrite = False,
    timestep: Annotated[
        float | None, options.Time(help="Between frames, fs, if TRAJ has no times.")
    ] = None,
    skip: Annotated[float, typer.Option(min=0, help="Leave out the beginning, fs.")] = 0.0,
    temperature: Annotated[
        float | None,
        typer.Option(metavar="K", help="Default: the mean of TRAJ, told or from its velocities."),
    ] = None,
    width: Annotated[
        float, typer.Option(help="Full width of a sharp line at half maximum, cm⁻¹.")
    ] = 15.0,
    window: Annotated[Window, typer.Option(help="Shape of the lines.")] = Window.gaussian,
    quantum: Annotated[
        Quantum, typer.Option(help="Quantum correction of ir and raman.")
    ] = Quantum.harmonic,
    highest: Annotated[
        float | None,
        typer.Option(
            metavar="CM1", help="Highest frequency in TRAJ. Default: by its elements (H: 4000)."
        ),
    ] = None,
    md_step: Annotated[
        float | None,
        typer.Option(metavar="FS", help="Time step of Verlet dynamics: takes its blue shift back."),
    ] = None,
    laser: Annotated[float, typer.Option(help="Wavelength of the laser, nm.")] = 532.0,
    upto: Annotated[
        float, typer.Option(metavar="FS", help="viscosity, conductivity: longest lag.")
    ] = 5000.0,
    between: Annotated[
        str, typer.Option(metavar='"FS FS"', help="diffusion: lags of the straight line.")
    ] = "1000 5000",
    blocks: Annotated[
        int | None, typer.Option(min=2, help="Parts of TRAJ for error bars; default up to 10.")
    ] = None,
    compare: options.Compare = None,
    csv: options.Csv = False,
    dtype: options.Precision = Dtype.float64,
):
    """Spectra and transport from a trajectory, with error bars.

    ir: km/mol per cm⁻¹ of an open structure from its dipole, n(ω)α(ω) in 1/cm of a periodic one
    from its current. raman: Å⁴/amu per cm⁻¹ and cross-sections. vdos: states per cm⁻¹, by
    element. diffusion: cm²/s, by element. viscosity: mPa s. conductivity: W/(m K).
    Of `jaxmlip md --ensemble trpmd` and rpmd take NAME_md_centroid. Writes NAME_spectra.png and
    .json.
    """
    from jaxmlip.cli import session
    from jaxmlip.cli.compare import read_curve

    suffixes = ["spectra.png", *(["spectra.csv"] if csv else [])]
    output = plan(
        file, suffixes, out=out, json_file=json, overwrite=overwrite, default_json="spectra.json"
    )
    given = {"timestep": timestep, "temperature": temperature, "highest": highest}
    given = {k: v for k, v in {**given, "md_step": md_step}.items() if v is not None}
    session.positive(width=width, laser=laser, upto=upto, **given)
    lags = _lags(between)
    other = None if compare is None else read_curve(compare)
    session.start(x64=str(dtype) == "float64")
    opened = None if model is None else session.open_model(model, dtype, needs_energy=False)
    from jaxmlip.cli.series import kinds
    from jaxmlip.cli.series.dynamics import check_quantum
    from jaxmlip.cli.series.source import How
    from jaxmlip.cli.series.source import opened as opened_file

    source = opened_file(file, opened, timestep=timestep, skip=skip)
    check_quantum(source.data.role, str(quantum))
    asked = tuple(dict.fromkeys(kind)) if kind else kinds.possible(source)
    how = How(
        width=width,
        window=str(window),
        quantum=str(quantum),
        temperature=temperature,
        highest=highest,
        md_step=md_step,
        laser=1e7 / laser,
        upto=upto,
        between=lags,
        blocks=blocks,
    )
    found = []
    for name in asked:
        with task(str(name)):
            found += kinds.COMPUTE[str(name)](source, how, output)
    _finish(found, source, how, opened, output, compare=other)


def _lags(text):
    try:
        first, last = (float(x) for x in text.replace(",", " ").split())
    except ValueError:
        raise UsageError(f"'{text}' is not two numbers", where="--between") from None
    if not 0 <= first < last < float("inf"):
        raise UsageError(f"'{text}' are not two lags, the shorter first", where="--between")
    return first, last


def _finish(found, source, how, model, output: Output, *, compare):
    from jaxmlip.cli import session
    from jaxmlip.cli.series import plot
    from jaxmlip.cli.series.coefficients import without_images
    from jaxmlip.cli.series.results import Curve

    curves = [f for f in found if isinstance(f, Curve)]
    for result in found:
        output.console.print(table(*result.rows(), title=result.title))
    results = {
        "command": "spectra",
        "source": source.name,
        "formula": source.formula,
        "temperature_K": source.temperature(how),
        "width_cm1": how.width,
        "window": how.window,
        "quantum_correction": how.quantum,
        **({"ensemble": source.data.role["ensemble"]} if source.ring else {}),
        **({} if model is None else model.summary),
        **session.versions(),
    }
    for result in found:
        results |= result.json()
    results |= without_images(found, source, how)
    write(
        output.paths["spectra.png"],
        lambda partial: plot.draw(
            partial,
            found,
            title=f"{source.formula}   {source.name}",
            quantum=how.quantum,
            compare=compare,
        ),
    )
    if "spectra.csv" in output.paths:
        if not curves:
            raise DataError("there is no spectrum to write as a table", where="--csv")
        write_text(output.paths["spectra.csv"], "".join(curve.csv() for curve in curves))
    output.finish(results)
