"""A run and what goes before it, in one safety net: its folder, rings that settle, the run."""

import shlex
import shutil
import sys
from dataclasses import replace

from jaxmlip.cli.dynamics import ending, ensembles, rings
from jaxmlip.cli.dynamics.screen import watch
from jaxmlip.cli.output import note
from jaxmlip.errors import Interrupted, NumericalError, UsageError


def check_folder(folder, o, output) -> None:
    """Raises `UsageError` where a run would be replaced that nobody said should be."""
    begun = _begun(folder)
    if begun and not (o["resume"] or o["overwrite"]):
        raise UsageError(
            "there is a run in this folder already",
            where=str(folder),
            code="JM104",
            fix="--resume to go on, --overwrite to begin anew, or another --out",
        )
    strangers = [] if begun or folder.exists() else [p for p in output.paths.values() if p.exists()]
    if strangers and not o["overwrite"]:
        raise UsageError(
            "this file is there, without a restart point to go on from",
            where=str(strangers[0]),
            code="JM104",
            fix="--overwrite to begin anew, or another --out",
        )
    if o["resume"]:
        note("resuming" if begun else "nothing to resume: beginning")


def carried_out(run, motion, work, atoms, o, output):
    """The outcome of a run, after rings have settled where they must."""
    from jaxmlip.restart import saved_states

    early = _settling(work.restarts)
    settles = ensembles.RECIPES[o["ensemble"]].settles
    if settles and not (o["resume"] and saved_states(work.restarts)):
        note(f"rings settle: {o['settle']} steps under the bath of pimd, not recorded")
        bath = ensembles.integrator_of(ensembles.Ensemble.pimd, o)
        warm, before = rings.settling(run, work, bath, steps=o["settle"], folder=early)
        done = _watched(warm, motion, before, atoms, o, output)
        run, motion = rings.settled(run, done)
        left = None if work.hours is None else max(work.hours - done.seconds / 3600, 0.0)
        work = replace(work, hours=left)
    output.paths["md_restart"] = work.restarts
    outcome = _watched(run, motion, work, atoms, o, output)
    shutil.rmtree(early, ignore_errors=True)
    return outcome


def _watched(run, motion, work, atoms, o, output):
    """The outcome of a run; what stops it is told with what to do next."""
    from jaxmlip.md.simulate import simulate

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


def _settling(folder):
    """The folder of the restart points of rings that settle."""
    return folder.with_name(folder.name.replace("_restart", "_settling_restart"))


def _begun(folder) -> bool:
    from jaxmlip.restart import saved_states

    return bool(saved_states(folder) or saved_states(_settling(folder)))
