"""`jaxmlip md`: molecular dynamics that can be stopped at any moment and goes on exactly."""

import shlex
import sys
from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from jaxmlip.cli import options
from jaxmlip.cli.dynamics.ensembles import HELP, Ensemble
from jaxmlip.cli.options import Dtype, Method
from jaxmlip.cli.output import plan
from jaxmlip.errors import Interrupted, NumericalError, UsageError


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
    timestep: Annotated[float, dynamics("Time step, fs.")] = 0.5,
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
            'Replica exchange: one copy a temperature (K) in place of --temp, as "300 340 385".',
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
        bool, beginning("New ones even if FILE has velocities.", "--new-velocities")
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
        bool, stop("Go on, however hot it becomes.", "--allow-unstable")
    ] = False,
    max_uncertainty: Annotated[
        float | None,
        stop("Stop where an ensemble is less sure of forces, eV/Å.", min=0, show_default=False),
    ] = None,
):
    """Molecular dynamics; writes NAME_md.xyz (or .h5), NAME_md_stats.csv, NAME_md_final.xyz.

    Ctrl-C, SIGTERM, --hours or a file STOP in the output folder save and leave with exit status
    75; the same command with --resume goes on, to the bit on a CPU. So it does after a crash.
    Status 4 if the run blows up; the last good structure is then in NAME_md_last_good.xyz.
    """
    given = dict(locals())
    from jaxmlip.cli import session
    from jaxmlip.cli.dynamics import ending, ensembles, job, ladders, start

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
    settings = _settings(o, atoms, opened)
    atoms = _minimized(atoms, opened, o, output) if minimize else atoms
    session.announce("md", opened, len(atoms) * replicas)
    run, motion, work = job.prepared(atoms, opened, o, output, settings, source)
    outcome = _run(run, motion, work, atoms, o, output)
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
    from jaxmlip.cli.dynamics.job import tags

    names = [f"md{t}_stats.csv" for t in ([""] if o["beads"] > 1 else tags(o))]
    names += [f"md{t}_final.xyz" for t in tags(o)]
    if o["traj_every"] and o["format"] != Format.h5md:
        names += [f"md{t}.xyz" for t in tags(o)]
    if o["format"] != Format.extxyz:
        names += [f"md{t}.h5" for t in tags(o)]
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
    plain = {n: str(o[n]) if isinstance(o[n], StrEnum) else o[n] for n in names}
    younger = {"heat_flux_every": 0, "beads": 1, "settle": 1000}  # than some restarts
    younger |= {"temperatures": None, "exchange_every": 100}
    plain |= {n: o[n] for n, usual in younger.items() if o[n] != usual}
    return plain | {"structure": fingerprint(atoms), "model_sha256": opened.card["sha256"]}


def _minimized(atoms, opened, o, output):
    """The structure relaxed, its velocities kept."""
    import numpy as np

    from jaxmlip.cli import analysis, selection
    from jaxmlip.interfaces.ase import from_ase

    system = from_ase(atoms, opened.potential.cutoff + analysis.SKIN, dtype=opened.dtype)
    fixed = selection.held(atoms, "--minimize")
    system, info = analysis.relaxed(
        system, opened, fmax=o["fmax"], steps=2000, method=Method.lbfgs, fixed=fixed
    )
    if not info.converged:
        output.warn(f"--minimize: {info.reason}")
    moved = atoms.copy()
    moved.set_positions(np.asarray(system.positions, float), apply_constraint=False)
    return moved


# --- the run --------------------------------------------------------------------------------------


def _run(run, motion, work, atoms, o, output):
    """The run, watched; what stops it is told with what to do next."""
    from jaxmlip.cli.dynamics import ending, rings
    from jaxmlip.cli.dynamics.screen import watch
    from jaxmlip.md.simulate import simulate
    from jaxmlip.restart import saved_states

    states = saved_states(work.restarts)
    ending.check_folder(work, o, states, output)
    output.paths["md_restart"] = work.restarts
    if not states or not o["resume"]:
        run, motion = _settled(run, motion, o)
    try:
        with watch() as report:
            return simulate(
                run,
                motion,
                work,
                resume=o["resume"],
                report=lambda progress: report(rings.shown(progress, o["beads"])),
                warn=lambda error: output.warn(str(error)),
            )
    except Interrupted as error:
        command = shlex.join(["jaxmlip", *(a for a in sys.argv[1:] if a != "--resume"), "--resume"])
        raise Interrupted(error.what, where=error.where, fix=f"go on with: {command}") from None
    except NumericalError as error:
        path = ending.save_last_good(work, atoms, o)
        fix = error.fix + (f"; the last good structure is {path}" if path else "")
        raise NumericalError(error.what, where=error.where, code=error.code, fix=fix) from error


def _settled(run, motion, o):
    """(run, motion) as rings begin that have no bath of their own, or as they are."""
    from jaxmlip.cli.dynamics import ensembles, rings

    if not ensembles.RECIPES[o["ensemble"]].settles:
        return run, motion
    bath = ensembles.integrator_of(Ensemble.pimd, o)
    return rings.settled(run, motion, bath, steps=o["settle"], n_beads=o["beads"])
