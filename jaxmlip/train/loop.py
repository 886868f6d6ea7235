"""The training loop: epochs, validation, checkpoints, signals. Host work only.

Whatever stops it, the same call goes on where it stopped: on one machine and without an `hours`
limit the result is the same, bit for bit, as if it had never been interrupted.
"""

import time
from collections.abc import Callable
from contextlib import closing, nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path

import jax
import numpy as np

from jaxmlip.data.batching import batches
from jaxmlip.data.prefetch import prefetch
from jaxmlip.data.splits import load_split
from jaxmlip.errors import NumericalError, ResourceError, UsageError, check_dtype, did_you_mean
from jaxmlip.parallel.processes import agreed, anywhere, connect, first_process
from jaxmlip.restart import newest_state, only_run, restore_state, stop_signals
from jaxmlip.train.config.read import read_config
from jaxmlip.train.config.settings import stage_weights
from jaxmlip.train.ending import add_uncertainty, solved
from jaxmlip.train.evaluation.accuracy import add_up
from jaxmlip.train.events import introduction, step_event, to_stderr
from jaxmlip.train.frames.reading import SPLIT
from jaxmlip.train.objective.losses import add_sums, mean_loss, summary
from jaxmlip.train.objective.terms import weights_at
from jaxmlip.train.record import write_record
from jaxmlip.train.saving import (
    MODEL,
    Position,
    check_same_run,
    end_first_stage,
    forget,
    interrupt,
    keep_metrics,
    keep_models,
    save,
    write_metrics,
)
from jaxmlip.train.setup import Run, prepare
from jaxmlip.train.steps.feed import batches_from, made, made_valid, placed
from jaxmlip.train.steps.schedules import fraction, out_of_time, over, rate_at, validated, waited
from jaxmlip.train.steps.step import averaged

BAD_STEPS = 10  # in a row, before giving up


def train(
    config_path,
    *,
    overrides: dict | None = None,
    resume: bool = True,
    force: bool = False,
    load: Callable | None = None,
    find: Callable | None = None,
    progress: Callable[[dict], None] | None = None,
) -> Path:
    """Trains the model of a configuration file; returns the path of the best one.

    progress is called with events {"event": "start" | "step" | "epoch" | "warning" | "done", ...}.
    A signal (INT, TERM, USR1) saves and raises `Interrupted`; the same call then resumes.
    force: take an output folder that another run holds. load: (potential, params) of the name of a
    teacher (`pretrained.load`), find: the path of the name of a model to start from
    (`pretrained.path_of`); None: these are paths of our own format.
    """
    config = read_config(config_path, overrides=overrides)
    check_dtype(config.dtype)
    if config.devices != 1:
        connect()
    first = first_process()
    report = (to_stderr if progress is None else progress) if first else lambda event: None
    output = Path(config.output)
    try:
        output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ResourceError(
            f"cannot make the output folder: {error.strerror}",
            where=str(output),
            fix="another `output`, in a folder that can be written",
        ) from error
    warn = lambda message: report({"event": "warning", "message": str(message)})
    with only_run(output, force=force, warn=warn) if first else nullcontext():
        for half_written in output.glob("*.partial") if first else ():
            half_written.unlink()
        run = prepare(config, load=load, find=find, tell=warn)
        _check_metric(run)
        begun = _file_of_start(run, find)
        if run.config.property is not None and not run.config.property.widths:
            _may_replace(run, resume=resume)
            write_record(run, start=begun)
            return solved(run, report=report)
        state, at = start(run, resume=resume, report=report)
        write_record(run, start=begun)  # not earlier: a run that is refused leaves no word
        report(introduction(run, state, at))
        with stop_signals() as stop:
            while not at.finished:
                state, at = run_epoch(run, state, at, stop=stop, report=report)
                at = finish_epoch(run, state, at, report=report)
                save(run, state, at, report=None if at.finished else report)
    if config.uncertainty and first:
        add_uncertainty(run, output / MODEL, report=report)
    report({"event": "done", "model": str(output / MODEL), "best": at.best})
    return output / MODEL


def _file_of_start(run, find):
    """The file of the model to start from, or None; `UsageError` for the one the run will write."""
    name = None if run.config.start is None else run.config.start.model
    path = None if name is None else Path((find or Path)(name))
    own = Path(run.config.output) / MODEL
    if path is not None and path.resolve() == own.resolve():
        raise UsageError(
            "the run would replace the model that it starts from",
            where=str(own),
            fix="another output",
        )
    return path


def _may_replace(run, *, resume):
    """Raises `UsageError` for a folder of another run, which a solved one must not overwrite."""
    if not resume:
        return forget(run)
    saved = newest_state(run.config.output, warn=lambda error: None)
    if saved is not None:
        check_same_run(saved[1], run)


def start(run: Run, *, resume: bool, report):
    """(state, position) of the newest whole checkpoint, or of the beginning, on all devices.

    Raises `ResourceError` where processes have found different ones.
    """
    state, at = _start(run, resume=resume, report=report)
    if agreed(at.step) != (at.step,):
        raise ResourceError(
            f"process {jax.process_index()} goes on from step {at.step}, the first one does not",
            where=run.config.output,
            fix="one output folder that all processes see",
        )
    return placed(run, state), at


def _start(run, *, resume, report):
    system, _ = next(batches(run.train, run.buckets, seed=run.config.seed))
    state = run.init(jax.random.key(run.config.seed), system)
    if not resume:
        forget(run)
        return state, Position()
    warn = lambda error: report({"event": "warning", "message": str(error)})
    saved = newest_state(run.config.output, warn=warn)
    if saved is None:
        keep_metrics(run, epochs=0)
        return state, Position()
    arrays, record = saved
    check_same_run(record, run)
    at = Position(**record["position"])
    keep_metrics(run, epochs=at.epoch)
    if at.finished and not over(run, at):
        at = replace(at, finished=False)
    return restore_state(state, arrays), at


def run_epoch(run: Run, state, at: Position, *, stop, report):
    """The rest of this epoch, or of the planned hours."""
    weights = weights_at(run.config, at.stage, run.terms)
    clock = saved = time.monotonic()
    with closing(prefetch(batches_from(run, at))) as made:  # made while the device works
        for which, system, labels in made:
            if out_of_time(run.config, at):
                break
            rate = rate_at(run, at)
            given = np.asarray(rate, run.config.dtype)
            state, metrics = run.step(state, system, labels, given, weights)
            metrics = jax.device_get(metrics)
            if metrics["bad"] > 0:
                _not_finite(run, state, at, metrics, which, report)
            now = time.monotonic()
            (seconds,) = agreed(now - clock)
            at = _after(at, metrics, seconds)
            clock = now
            report(step_event(run, at, metrics, rate))
            if anywhere(stop.is_set()):
                interrupt(run, state, at)
            if now - saved > 60 * run.config.checkpoint_minutes:
                save(run, state, at, report=report)
                saved = now
    return state, at


def _after(at, metrics, seconds):
    return replace(
        at,
        batch=at.batch + 1,
        step=at.step + 1,
        seconds=at.seconds + seconds,
        sums=_plain(add_sums(at.sums, metrics["sums"])),
    )


def finish_epoch(run: Run, state, at: Position, *, report) -> Position:
    """Validates the averaged parameters, keeps them if they are the best, writes the log."""
    begun = time.monotonic()
    params = averaged(state, ema=run.config.optimizer.ema)
    make = partial(made_valid, run)
    sums = add_up(run.sums, params, run.valid, run.valid_buckets, make=make)
    weights = stage_weights(run.config, at.stage)
    value, accuracy = mean_loss(sums, run.terms, weights), summary(sums)
    metric = value if run.config.metric == "loss" else accuracy[run.config.metric]
    o = run.config.optimizer
    factor = o.factor if o.schedule == "plateau" else 1.0
    judged, best = validated(at, metric, factor=factor, patience=o.plateau, floor=o.floor)
    card = run.card | {"accuracy": accuracy, "epoch": at.epoch + 1}
    model = run.merge(params)
    kept = keep_models(run, model, card, best=best, report=report)
    kept, seconds = agreed(kept, time.monotonic() - begun)
    if best and not kept:
        judged, best = at, False  # the next one as good takes its place
    event = {
        "event": "epoch",
        "epoch": at.epoch + 1,
        "step": at.step,
        "learning_rate": rate_at(run, at),
        "train_loss": mean_loss(at.sums, run.terms, weights) if at.sums else None,
        "valid_loss": value,
        "train": summary(at.sums or {}),
        "valid": accuracy,
        "best": bool(best),
    }
    if run.config.second_stage is not None:
        event["stage"] = at.stage
    at = replace(
        judged,
        epoch=at.epoch + 1,
        batch=0,
        sums=None,
        seconds=at.seconds + seconds,
    )
    at = replace(_next_stage(run, at), finished=over(run, at))
    event["seconds"] = round(at.seconds, 3)
    write_metrics(run, {k: v for k, v in event.items() if k != "event"}, report=report)
    report(event)
    return at


def _next_stage(run: Run, at: Position) -> Position:
    """Stage 2 from its share of the plan on, or when the first has waited long enough."""
    second = run.config.second_stage
    if second is None or at.stage == 2:
        return at
    if fraction(run, at) < second.start and not waited(run, at):
        return at
    end_first_stage(run)
    return replace(at, stage=2, best=None, waited=0, flat=0)


def _plain(sums):
    return {k: [float(x) for x in v] for k, v in sums.items()}


def _not_finite(run, state, at, metrics, which, report):
    """Warns of a step that changed nothing; raises after BAD_STEPS, with the frames at fault."""
    b, members = which
    what = f"loss {float(metrics['loss'])}, gradient norm {float(metrics['gradient'])}"
    if metrics["bad"] < BAD_STEPS:
        message = f"step {at.step + 1} was skipped: {what}; {_frames(run, members)}"
        return report({"event": "warning", "message": message})
    alone = lambda i: run.sums(state.params, *made(run, b, [i]))
    finite = lambda i: all(np.isfinite(x).all() for x in jax.tree.leaves(alone(i)))
    faulty = [i for i in members if not finite(i)] or members
    raise NumericalError(
        f"the loss or its gradient was not finite in {BAD_STEPS} steps in a row (last {what}; "
        f"{_frames(run, faulty)}); no such step changed the model",
        where=f"step {at.step + 1}",
        code="JM302",
        fix="lower optimizer.learning_rate, or look for outliers in the data",
    )


def _frames(run, members):
    """Frames in words: by their numbers in the file where a split of it is known."""
    path, place = Path(run.config.output) / SPLIT, "those trained on"
    if run.config.data.valid is None and path.is_file():
        order, place = load_split(path)["train"], "the file"
        members = [order[i] for i in members if i < len(order)] or members
    return f"frames {', '.join(map(str, members))} of {place}, counted from 0"


def _check_metric(run):
    known = ["loss", *summary({name: np.zeros(4) for name in run.terms})]
    if run.config.metric not in known:
        raise UsageError(
            f"'metric' is '{run.config.metric}'.{did_you_mean(run.config.metric, known)}",
            where=run.config.output,
            fix=f"one of {', '.join(known)}",
        )
