"""A long run on the host: blocks, files and restart points; stops at any moment, goes on exactly.

A block's records go to the disk in a thread while the next block runs. A restart point is saved
after the files that belong to it, with their lengths: what was written beyond it is cut off when
the run goes on, and computed again, to the bit (on a CPU). So a killed run ends as one that was
never disturbed, with no frame lost or twice.
"""

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from jaxmlip import units
from jaxmlip.errors import Interrupted, NumericalError
from jaxmlip.md.files.sets import append, remove
from jaxmlip.md.guards import LOST, TOO_STEEP, Bonds, check_block, vitals
from jaxmlip.md.motion import Motion
from jaxmlip.md.restart_points import restored, save_point
from jaxmlip.md.run import Run, started, trajectory
from jaxmlip.restart import newest_state, only_run, stop_signals


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What a run is to do; host."""

    steps: int
    every: tuple[int, ...]  # intervals of `run.observe`
    block: int  # steps
    files: tuple  # `files.Files`, one a structure
    restarts: Path  # folder
    settings: dict  # what a restart must agree with; plain JSON
    frames: bool = True  # whether the first of `run.observe` gives frames, the others tables
    summed: tuple[int, ...] = ()  # which of `run.observe` are added up instead of written
    minutes: float = 1.0  # between restart points
    hours: float | None = None  # after which it stops, to be resumed
    hottest: float = float("inf")  # K, of one structure
    steepest: float = TOO_STEEP  # eV/Å, of one atom
    unsure: float = float("inf")  # eV/Å, `forces_uncertainty` of one atom, where the run keeps it
    bonds: Bonds | None = None  # of which a quarter may not break
    lost: float = LOST  # Å, of one atom from the middle of its structure


class Progress(NamedTuple):
    """What `report` is told after every block."""

    step: int
    steps: int
    time: float  # fs
    temperature: float  # K, mean of the structures
    conserved: float  # eV per atom
    ns_per_day: float  # of this session, without the first block
    seconds_left: float
    widened: tuple[str, ...]  # neighbour lists that were too small
    searches: int


class Outcome(NamedTuple):
    """Where a run ended."""

    motion: Motion
    run: Run
    sums: dict  # {name: sum over the records} of the observables that are added up
    seconds: float  # of this session


def simulate(
    run: Run,
    motion: Motion,
    plan: Plan,
    *,
    resume: bool = False,
    report: Callable[[Progress], None] = lambda progress: None,
    warn: Callable[[Exception], None] = lambda error: None,
) -> Outcome:
    """Runs to `plan.steps`, all told; with `resume` from the newest restart point, if there is one.

    The folder of the restart points is its own meanwhile: `ResourceError` where another process
    works in it. A signal (INT, TERM, USR1), a file STOP beside the restart folder, or `plan.hours`
    saves and raises `Interrupted`. Raises `NumericalError` where energies, forces or anything
    recorded is not finite, a structure is too hot or steep or torn apart, an atom of it lost, or
    the potential unsure of it: the restart point then is the last good block.
    """
    plan.restarts.mkdir(parents=True, exist_ok=True)
    with only_run(plan.restarts, warn=lambda text: warn(UserWarning(text))):
        run, motion, sums = _begun(run, motion, plan, resume, warn)
        return _carried_on(run, motion, plan, sums, report)


def _carried_on(run, motion, plan, sums, report):
    begun, pace = time.monotonic(), _Pace(plan)
    left = plan.steps - max(int(motion.step), 0)
    with stop_signals() as stop, _writer(plan) as write:
        for block in _stable(run, motion, plan, left, write):
            sums = _added(sums, block.records, plan)
            run, motion = block.run, block.motion
            reason = _reason_to_stop(stop, plan, begun) if int(motion.step) < plan.steps else ""
            done = reason or int(motion.step) >= plan.steps
            write(block, sums, save=bool(done))
            report(pace.after(block, run))
            if reason:
                write.wait()
                raise Interrupted(
                    f"stopped {reason} after step {int(motion.step)} of {plan.steps}; the state "
                    "is saved",
                    where=str(plan.restarts),
                    fix="resume from there",
                )
    return Outcome(motion, run, sums, time.monotonic() - begun)


# --- beginning -----------------------------------------------------------------------------------


def _begun(run, motion, plan, resume, warn):
    """(run, motion, sums) of the newest restart point, or of the start."""
    motion = started(run, motion)
    sums = {}
    saved = newest_state(plan.restarts, warn=warn) if resume else None
    if saved is None:
        for path in plan.restarts.glob("state-*.safetensors"):
            path.unlink()
        remove(plan.files)
        return run, motion, sums
    return restored(run, motion, plan, saved, warn=warn)


# --- while it runs -------------------------------------------------------------------------------


def _stable(run, motion, plan, steps, write):
    """Blocks that are fit to be kept; an error tells where the last good one is."""
    blocks = trajectory(
        run, motion, steps=steps, block=plan.block, record=plan.every, origin=0, first=True
    )
    last = motion
    try:
        for block in blocks:
            check_block(block, plan)
            last = block.motion
            yield block
    except NumericalError as error:
        write.save()
        good = f"the last good state, of step {int(last.step)}, is saved"
        raise NumericalError(
            f"{error.what}; {good if last.step >= 0 else 'it is the first block'}",
            where=str(plan.restarts),
            code=error.code,
            fix=error.fix,
        ) from error


def _added(sums, records, plan):
    """Sums over the records, in their order."""
    sums = dict(sums)
    for i in plan.summed:
        for name, value in records[i].items():
            if name != "step":
                sums[name] = sums.get(name, 0.0) + value.astype(np.float64).sum(0)
        sums["count"] = sums.get("count", np.zeros(())) + float(len(records[i]["step"]))
    return {k: np.asarray(v, np.float64) for k, v in sums.items()}


def _reason_to_stop(stop, plan, begun):
    if stop.is_set():
        return "by a signal"
    file = plan.restarts.parent / "STOP"
    if file.exists():
        file.unlink()  # it has been heard
        return "by the file STOP"
    if plan.hours is not None and time.monotonic() - begun > 3600 * plan.hours:
        return f"by the time limit of {plan.hours:g} hours"
    return ""


class _Pace:
    """How fast a session is; the first block compiles and does not count."""

    def __init__(self, plan):
        self.plan, self.last, self.seconds, self.steps = plan, None, 0.0, 0

    def after(self, block, run) -> Progress:
        now, step = time.monotonic(), int(block.motion.step)
        if self.last is not None:
            self.seconds += now - self.last[0]
            self.steps += step - self.last[1]
        self.last = now, step
        motion, dt = block.motion, run.integrator.dt / units.fs
        per_step = self.seconds / self.steps if self.steps else float("nan")
        temperature, energy, _ = vitals(run, motion)
        return Progress(
            step=step,
            steps=self.plan.steps,
            time=step * dt,
            temperature=float(temperature.mean()),
            conserved=float(energy.sum()) / int(np.asarray(run.system.atom_mask).sum()),
            ns_per_day=86400 / per_step * dt * 1e-6,
            seconds_left=per_step * (self.plan.steps - step),
            widened=block.widened,
            searches=block.searches,
        )


# --- writing -------------------------------------------------------------------------------------


@contextmanager
def _writer(plan):
    """A thread that writes blocks in their order; its errors are raised at the next block."""
    with ThreadPoolExecutor(1) as pool:
        writer = _Writer(pool, plan)
        try:
            yield writer
        finally:
            if writer.pending is not None:
                writer.pending.exception()  # waits; what was running is written
        writer.wait()


class _Writer:
    def __init__(self, pool, plan):
        self.pool, self.plan, self.pending = pool, plan, None
        self.saved, self.latest = time.monotonic(), None

    def __call__(self, block, sums, *, save: bool):
        self.wait()
        now = time.monotonic()
        save = save or now - self.saved > 60 * self.plan.minutes
        self.saved = now if save else self.saved
        self.latest = None if save else (block, sums)
        self.pending = self.pool.submit(_written, self.plan, block, sums, save)

    def save(self):
        """A restart point after the last block, if there is none."""
        self.wait()
        if self.latest is not None:
            save_point(self.plan, *self.latest)
            self.latest = None

    def wait(self):
        if self.pending is not None:
            pending, self.pending = self.pending, None
            pending.result()


def _written(plan, block, sums, save):
    records = [r for i, r in enumerate(block.records) if i not in plan.summed]
    append(plan.files, records if plan.frames else [None, *records])
    if save:
        save_point(plan, block, sums)
