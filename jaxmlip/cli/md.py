"""`jaxmlip md`: molecular dynamics that can be stopped at any moment and goes on exactly."""

from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from jaxmlip.cli import options
from jaxmlip.cli.dynamics.ensembles import HELP, Ensemble
from jaxmlip.cli.options import Dtype
from jaxmlip.cli.output import plan
from jaxmlip.errors import UsageError


class Format(StrEnum):
    extxyz = "extxyz"
    h5md = "h5md"
    both = "both"


def _option(panel: str, text: str, *names, **more):
    return typer.Option(*names, help=text, rich_help_panel=panel, **more)


dynamics = partial(_option, "Dynamics")
files = partial(_option, "What is recorded")
beginning = partial(_option, "Start")
stop = partial(_option, "Interruptions")


def md(
    file: Annotated[
        str | None,
        typer.Argument(
            metavar="FILE",
            show_default=False,
            help="A structure (xyz, extxyz, cif, POSCAR ...; Å) or a molecule by name, as H2O.",
        ),
    ] = None,
    struct: Annotated[
        str | None, typer.Option("--struct", metavar="FILE", help="The same as FILE.")
    ] = None,
    model: options.Model = "organic",
    json: options.Json = None,
    out: options.Out = Path("."),
    overwrite: options.Overwrite = False,
    frame: options.Frame = -1,
    dtype: options.Precision = Dtype.float32,
    ensemble: Annotated[Ensemble, dynamics(HELP + ".")] = Ensemble.nvt,
    steps: Annotated[int, dynamics("Steps, all told.", min=1)] = 1000,
    timestep: Annotated[
        float, options.Time(help="Time step, fs.", rich_help_panel="Dynamics")
    ] = 0.5,
    temp: Annotated[float, dynamics("Temperature of the bath and of new velocities, K.")] = 300.0,
    friction: Annotated[float, dynamics("Friction of nvt, 1/fs.")] = 0.01,
    thermostat_time: Annotated[float, dynamics("Time of the other heat baths, fs.")] = 100.0,
    pressure: Annotated[float, dynamics("Pressure of npt, GPa.")] = 0.0,
    barostat_time: Annotated[float, dynamics("Time in which volumes relax, fs.")] = 1000.0,
    bulk_modulus: Annotated[
        float, dynamics("About that of the crystal or liquid, GPa: scales --barostat-time.")
    ] = 2.2,
    beads: Annotated[int, dynamics("Of a ring, for pimd, trpmd and rpmd.", min=2)] = 32,
    settle: Annotated[
        int, beginning("Steps of pimd before those of trpmd and rpmd, not recorded.", min=1)
    ] = 1000,
    temperatures: Annotated[
        str | None,
        dynamics(
            'Replica exchange: one copy a temperature (K), as "300 340 385"; --temp is not used.',
            show_default=False,
        ),
    ] = None,
    exchange_every: Annotated[
        int, dynamics("Steps between the exchanges of --temperatures.", min=1)
    ] = 100,
    seed: Annotated[int, beginning("Of velocities and noise.")] = 0,
    replicas: Annotated[
        int, beginning("Copies with other velocities and noise, in one program.", min=1)
    ] = 1,
    new_velocities: Annotated[
        bool,
        beginning(
            "New ones even if FILE has velocities; replicas, rings and ladders always have them.",
            "--new-velocities",
        ),
    ] = False,
    minimize: Annotated[bool, beginning("Relax the atoms first, to --fmax.", "--minimize")] = False,
    fmax: Annotated[float, beginning("For --minimize, eV/Å.", min=0)] = 0.05,
    remove_rot: Annotated[
        bool, beginning("Molecules: begin without rotation.", "--remove-rot")
    ] = False,
    stats_every: Annotated[int, files("Steps between rows of the table.", min=1)] = 10,
    traj_every: Annotated[int, files("Steps between frames; 0 for none.", min=0)] = 100,
    response_every: Annotated[
        int,
        files(
            "Steps between currents (e Å/fs) and, if the model has them, polarisabilities, for "
            "spectra; 0 for none. They go to H5MD.",
            min=0,
        ),
    ] = 0,
    heat_flux_every: Annotated[
        int,
        files(
            "Steps between heat fluxes (eV Å/fs), for thermal conductivity; 0 for none. To H5MD.",
            min=0,
        ),
    ] = 0,
    format: Annotated[Format, files("Of the trajectory.", "--format")] = Format.extxyz,
    stress: Annotated[
        bool, files("Crystals and liquids: stress and pressure.", "--stress/--no-stress")
    ] = True,
    rdf: Annotated[
        bool, files("Crystals and liquids: g(r) up to the model's cutoff.", "--rdf")
    ] = False,
    plot: Annotated[bool, files("Draw NAME_md.png.", "--plot/--no-plot")] = True,
    resume: Annotated[
        bool,
        stop(
            "Go on from the last restart point, or begin if there is none; with more --steps a "
            "finished run goes on, too.",
            "--resume",
        ),
    ] = False,
    hours: Annotated[
        float | None,
        stop("Save and leave with status 75 after so many.", min=0, show_default=False),
    ] = None,
    restart_minutes: Annotated[float, stop("Between restart points.", min=0)] = 1.0,
    block: Annotated[
        int | None,
        stop("Steps between two looks at signals; default by size.", min=1, show_default=False),
    ] = None,
    allow_unstable: Annotated[
        bool,
        stop(
            "Go on, however hot it becomes, whatever bonds break and atoms leave.",
            "--allow-unstable",
        ),
    ] = False,
    max_uncertainty: Annotated[
        float | None,
        stop("Stop where an ensemble is less sure of forces, eV/Å.", min=0, show_default=False),
    ] = None,
):
    """Molecular dynamics; writes NAME_md.xyz (or .h5), NAME_md_stats.csv, NAME_md_final.xyz.

    Replicas, beads and temperatures have files of their own, NAME_md_0 ...; rings of beads one
    of their centroid, too, NAME_md_centroid, of which `jaxmlip spectra` makes those of nuclei.

    Ctrl-C, SIGTERM, --hours or a file STOP in the output folder save and leave with exit status
    75; the same command with --resume goes on, to the bit on a CPU. So it does after a crash.
    Status 4 if the run blows up or molecules fall apart; the last good structure is then in
    NAME_md_last_good.xyz.
    """
    given = dict(locals())
    from jaxmlip.cli import session
    from jaxmlip.cli.dynamics import ending, ensembles, going, job, ladders, minimum, start

    o, source = ensembles.with_beads(ladders.with_ladder(given)), _source(file, struct)
    replicas = o["replicas"]
    start.check_numbers(o)
    output = plan(source, _names(o), out=out, json_file=json, overwrite=overwrite or resume)
    session.start(x64=True)
    opened = session.open_model(model, dtype, needs_dipole=response_every > 0)
    atoms = session.read(source, opened, output, frame=frame)
    start.check_structure(atoms, o, source)
    ensembles.check_cell(ensemble, atoms, source)
    start.check_heat_flux(opened, atoms, o, source)
    for text in start.warnings_of(atoms, o):
        output.warn(text)
    opened = session.bound(opened, atoms)
    job.check(atoms, opened, o, source)
    settings, folder = _settings(o, atoms, opened), job.restart_folder(output, source)
    going.check_folder(folder, o, output)
    if minimize:
        atoms = minimum.minimized(atoms, opened, o, output, folder=folder, settings=settings)
    session.announce("md", opened, len(atoms) * replicas)
    run, motion, work = job.prepared(atoms, opened, o, output, settings, source)
    outcome = going.carried_out(run, motion, work, atoms, o, output)
    ending.finish(outcome, atoms, opened, o, output, work, source)


def _source(file, struct) -> str:
    if (file is None) == (struct is None):
        raise UsageError(
            "no structure" if file is None else "FILE and --struct are the same thing",
            where="md",
            fix="jaxmlip md FILE",
        )
    return file or struct


def _names(o) -> list[str]:
    """Suffixes of the files that are written."""
    from jaxmlip.cli.dynamics.job import table_tags, tags, trajectory_tags

    names = [f"md{t}_stats.csv" for t in table_tags(o)]
    names += [f"md{t}_final.xyz" for t in tags(o)]
    if o["traj_every"] and o["format"] != Format.h5md:
        names += [f"md{t}.xyz" for t in trajectory_tags(o)]
    if o["format"] != Format.extxyz:
        names += [f"md{t}.h5" for t in trajectory_tags(o)]
    for option in ("response", "heat-flux") if o["format"] == Format.extxyz else ():
        if o[option.replace("-", "_") + "_every"]:
            option = f"--{option}-every"
            raise UsageError(f"{option} writes to H5MD", where=option, fix="--format h5md or both")
    names += ["md_rdf.csv"] if o["rdf"] else []
    return names + (["md.png"] if o["plot"] else [])


def _settings(o, atoms, opened) -> dict:
    """What a restart must agree with."""
    from jaxmlip.cli.dynamics.start import fingerprint

    names = (
        "ensemble timestep temp friction thermostat_time pressure barostat_time bulk_modulus seed "
        "replicas stats_every traj_every response_every format rdf stress minimize fmax remove_rot "
        "new_velocities block dtype"
    ).split()
    if o["ladder"] is not None:
        names.remove("temp")  # it is not used
    plain = {n: str(o[n]) if isinstance(o[n], StrEnum) else o[n] for n in names}
    younger = {"heat_flux_every": 0, "beads": 1, "settle": 1000}  # than some restarts
    younger |= {"temperatures": None, "exchange_every": 100}
    plain |= {n: o[n] for n, usual in younger.items() if o[n] != usual}
    return plain | {"structure": fingerprint(atoms), "model_sha256": opened.card["sha256"]}
