"""The training loop: epochs, validation, checkpoints, signals. Host work only.

Whatever stops it, the same call goes on where it stopped: on one machine and without an `hours`
limit the result is the same, bit for bit, as if it had never been interrupted.
"""

import json
import os
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import jax
import numpy as np

from jaxmlip.data.batching import batch, batches, plan
from jaxmlip.errors import (
    Interrupted,
    NumericalError,
    ResourceError,
    UsageError,
    check_dtype,
)
from jaxmlip.models import checkpoint
from jaxmlip.restart import newest_state, restore_state, save_state, stop_signals
from jaxmlip.train.accuracy import add_up
from jaxmlip.train.config import Config, changes, read_config
from jaxmlip.train.losses import add_sums, mean_loss, summary
from jaxmlip.train.setup import Run, prepare
from jaxmlip.train.step import averaged, learning_rate

BAD_STEPS = 10  # in a row, before giving up
MODEL, LAST, METRICS = "model.safetensors", "last.safetensors", "metrics.jsonl"


@dataclass(frozen=True, kw_only=True)
class Position:
    """Where a run stands: all of its state that is not on the device."""

    epoch: int = 0
    batch: int = 0  # batches done in this epoch
    step: int = 0
    seconds: float = 0.0
    best: float | None = None  # validation loss of the model kept
    sums: dict | None = None  # metric sums of this epoch so far
    finished: bool = False


def train(
    config_path,
    *,
    overrides: dict | None = None,
    resume: bool = True,
    progress: Callable[[dict], None] | None = None,
) -> Path:
    """Trains the model of a configuration file; returns the path of the best one.

    progress is called with events {"event": "start" | "step" | "epoch" | "warning" | "done", ...}.
    A signal (INT, TERM, USR1) saves and raises `Interrupted`; the same call then resumes.
    """
    config = read_config(config_path, overrides=overrides)
    check_dtype(config.dtype)
    report = to_stderr if progress is None else progress
    output = Path(config.output)
    try:
        output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ResourceError(
            f"cannot make the output folder: {error.strerror}",
            where=str(output),
            fix="another `output`, in a folder that can be written",
        ) from error
    for half_written in output.glob("*.partial"):
        half_written.unlink()
    run = prepare(config)
    state, at = start(run, resume=resume, report=report)
    report(_introduction(run, state, at))
    with stop_signals() as stop:
        while not at.finished:
            state, at = run_epoch(run, state, at, stop=stop, report=report)
            at = finish_epoch(run, state, at, report=report)
            _save(run, state, at)
    report({"event": "done", "model": str(output / MODEL), "best": at.best})
    return output / MODEL


def start(run: Run, *, resume: bool, report):
    """(state, position) of the newest whole checkpoint, or of the beginning."""
    system, _ = next(batches(run.train, run.buckets, seed=run.config.seed))
    state = run.init(jax.random.key(run.config.seed), system)
    if not resume:
        _forget(run)
        return state, Position()
    warn = lambda error: report({"event": "warning", "message": str(error)})
    saved = newest_state(run.config.output, warn=warn)
    if saved is None:
        _keep_metrics(run, epochs=0)
        return state, Position()
    arrays, record = saved
    _check_same_run(record, run)
    at = Position(**record["position"])
    _keep_metrics(run, epochs=at.epoch)
    if at.finished and not _over(run, at):
        at = replace(at, finished=False)
    return restore_state(state, arrays), at


def run_epoch(run: Run, state, at: Position, *, stop, report):
    """The rest of this epoch, or of the planned hours."""
    atoms = [s.n_atoms for s, _ in run.train]
    todo = iter(plan(run.buckets, atoms, seed=run.config.seed, epoch=at.epoch)[at.batch :])
    ready, clock, saved = _next(run, todo), time.monotonic(), time.monotonic()
    while ready is not None and not _out_of_time(run.config, at):
        rate = rate_at(run, at)
        state, metrics = run.step(state, *ready, np.asarray(rate, run.config.dtype))
        ready = _next(run, todo)  # made while the device works
        metrics = jax.device_get(metrics)
        _check_finite(metrics, at)
        now = time.monotonic()
        at = replace(
            at,
            batch=at.batch + 1,
            step=at.step + 1,
            seconds=at.seconds + now - clock,
            sums=_plain(add_sums(at.sums, metrics["sums"])),
        )
        clock = now
        report(
            {
                "event": "step",
                "step": at.step,
                "steps": run.steps,
                "epoch": at.epoch + 1,
                "loss": float(metrics["loss"]),
                "learning_rate": rate,
                "seconds": at.seconds,
            }
        )
        if stop.is_set():
            _interrupt(run, state, at)
        if now - saved > 60 * run.config.checkpoint_minutes:
            _save(run, state, at)
            saved = now
    return state, at


def finish_epoch(run: Run, state, at: Position, *, report) -> Position:
    """Validates the averaged parameters, keeps them if they are the best, writes the log."""
    begun = time.monotonic()
    params = averaged(state, ema=run.config.optimizer.ema)
    sums = add_up(run.sums, params, run.valid, run.valid_buckets)
    value, accuracy = mean_loss(sums, run.terms), summary(sums)
    best = np.isfinite(value) and (at.best is None or value < at.best)
    event = {
        "event": "epoch",
        "epoch": at.epoch + 1,
        "step": at.step,
        "learning_rate": rate_at(run, at),
        "train_loss": mean_loss(at.sums, run.terms) if at.sums else None,
        "valid_loss": value,
        "train": summary(at.sums or {}),
        "valid": accuracy,
        "best": bool(best),
    }
    card = run.card | {"accuracy": accuracy, "epoch": at.epoch + 1}
    for name in (MODEL, LAST) if best else (LAST,):
        checkpoint.save(Path(run.config.output) / name, card, params)
    at = replace(
        at,
        epoch=at.epoch + 1,
        batch=0,
        sums=None,
        best=value if best else at.best,
        seconds=at.seconds + time.monotonic() - begun,
    )
    at = replace(at, finished=_over(run, at))
    event["seconds"] = round(at.seconds, 3)
    with open(Path(run.config.output) / METRICS, "a") as f:
        f.write(json.dumps({k: v for k, v in event.items() if k != "event"}) + "\n")
    report(event)
    return at


def rate_at(run: Run, at: Position) -> float:
    """The learning rate of the next step: by the planned steps or hours, whichever is nearer."""
    o, hours = run.config.optimizer, run.config.hours
    fraction = max(at.step / run.steps, at.seconds / (3600 * hours) if hours else 0.0)
    return learning_rate(
        at.step, fraction, peak=o.learning_rate, warmup=o.warmup_steps, floor=o.floor
    )


def _over(run, at):
    return at.epoch >= run.config.epochs or _out_of_time(run.config, at)


def _out_of_time(config: Config, at):
    return config.hours is not None and at.seconds >= 3600 * config.hours


def _next(run, todo):
    b, members = next(todo, (None, None))
    return None if members is None else batch(run.train, run.buckets[b], members)


def _plain(sums):
    return {k: [float(x) for x in v] for k, v in sums.items()}


def _check_finite(metrics, at):
    if metrics["bad"] >= BAD_STEPS:
        raise NumericalError(
            f"the loss or its gradient was not finite in {BAD_STEPS} steps in a row (last loss "
            f"{float(metrics['loss'])}, gradient norm {float(metrics['gradient'])})",
            where=f"step {at.step + 1}",
            code="JM302",
            fix="lower optimizer.learning_rate, or look for outliers in the data",
        )


# --- checkpoints ---------------------------------------------------------------------------------


def _save(run, state, at):
    record = {"position": asdict(at), "config": asdict(run.config), "data": run.card["data"]}
    save_state(run.config.output, state, record, step=at.step)


def _interrupt(run, state, at):
    _save(run, state, at)
    raise Interrupted(
        f"stopped by a signal after step {at.step}; the state is saved",
        where=run.config.output,
        fix="run the same command again to resume",
    )


def _check_same_run(record, run):
    saved = record["config"] | {"data_hashes": record["data"]}
    asked = asdict(run.config) | {"data_hashes": run.card["data"]}
    difference = changes(saved, json.loads(json.dumps(asked)))
    if difference:
        raise UsageError(
            "the checkpoint belongs to another configuration: " + "; ".join(difference),
            where=run.config.output,
            code="JM103",
            fix="undo the change, use another output, or start afresh (resume off)",
        )


def _forget(run):
    for pattern in ("state-*.safetensors", METRICS, MODEL, LAST):
        for path in Path(run.config.output).glob(pattern):
            path.unlink()


def _keep_metrics(run, *, epochs):
    """Drops lines of epochs that will be done again."""
    path = Path(run.config.output) / METRICS
    if not path.is_file():
        return
    kept = path.read_text().splitlines(keepends=True)[:epochs]
    partial = path.with_name(path.name + ".partial")
    partial.write_text("".join(kept))
    os.replace(partial, path)


# --- what a person sees --------------------------------------------------------------------------


def _introduction(run, state, at):
    size = sum(x.size for x in jax.tree.leaves(state.params))
    shapes = [[b.n_atoms, b.n_graphs, b.n_neighbors] for b in run.buckets]
    return {
        "event": "start",
        "n_train": len(run.train),
        "n_valid": len(run.valid),
        "n_parameters": size,
        "steps": run.steps,
        "step": at.step,
        "epoch": at.epoch,
        "buckets": shapes,
        "padding": run.padding,
        "fields": run.card["fields"],
        "reference_energies": run.card["reference_energies"],
    }


def to_stderr(event: dict) -> None:
    """One line an epoch."""
    kind = event["event"]
    if kind == "start":
        line = (
            f"{event['n_train']} training and {event['n_valid']} validation structures, "
            f"{event['n_parameters']} parameters, {event['steps']} steps, "
            f"{100 * event['padding']:.0f} % padding; compiling {len(event['buckets'])} "
            f"shape(s), the first step can take a minute"
        )
    elif kind == "epoch":
        errors = "  ".join(
            f"{k.replace('_mae_', ' ')} {v:.4g}" for k, v in event["valid"].items() if "_mae_" in k
        )
        line = (
            f"epoch {event['epoch']}  loss {event['train_loss'] or np.nan:.4g}  "
            f"valid {event['valid_loss']:.4g}{'*' if event['best'] else ' '}  {errors}  "
            f"lr {event['learning_rate']:.2e}  {event['seconds']:.0f} s"
        )
    elif kind in ("warning", "done"):
        line = event.get("message") or f"done: {event['model']}"
    else:
        return
    print(line, file=sys.stderr, flush=True)
