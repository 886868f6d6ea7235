"""The state of a run on disk: saved, found again, and known to belong to the same run."""

import json
import os
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path

from jaxmlip.errors import Interrupted, ResourceError, UsageError
from jaxmlip.models import checkpoint
from jaxmlip.parallel.processes import first_process
from jaxmlip.restart import save_state
from jaxmlip.train.config.read import changes

MODEL, LAST, METRICS = "model.safetensors", "last.safetensors", "metrics.jsonl"
FIRST_STAGE = "first_stage.safetensors"  # the best model of the first of two stages


@dataclass(frozen=True, kw_only=True)
class Position:
    """Where a run stands: all of its state that is not on the device."""

    epoch: int = 0
    batch: int = 0  # batches done in this epoch
    step: int = 0
    seconds: float = 0.0
    best: float | None = None  # metric of the model kept
    sums: dict | None = None  # metric sums of this epoch so far
    finished: bool = False
    stage: int = 1
    waited: int = 0  # validations since the best one
    share: float = 1.0  # of the learning rate that plateaus have left
    flat: int = 0  # validations since the best one or the last cut


def save(run, state, at: Position, *, report=None):
    """Writes the checkpoint; with `report`, one that cannot be written is a warning."""
    if not first_process():
        return
    record = {"position": asdict(at), "config": asdict(run.config), "data": run.card["data"]}
    try:
        save_state(run.config.output, state, record, step=at.step)
    except ResourceError as error:
        if report is None:
            raise
        report({"event": "warning", "message": f"{error} (the run goes on)"})


def interrupt(run, state, at: Position):
    """Saves and raises `Interrupted`."""
    save(run, state, at)
    raise Interrupted(
        f"stopped by a signal after step {at.step}; the state is saved",
        where=run.config.output,
        fix="run the same command again to resume",
    )


def keep_models(run, params, card: dict, *, best: bool, report) -> bool:
    """Writes the model of this epoch, and as the best if it is; whether the best is on disk."""
    if not first_process():
        return best
    try:
        for name in (MODEL, LAST) if best else (LAST,):
            checkpoint.save(Path(run.config.output) / name, card, params)
    except OSError as error:
        report({"event": "warning", "message": f"cannot write the model: {error}"})
        return False
    return best


def end_first_stage(run):
    """Keeps the best model of the first stage under a name of its own."""
    best = Path(run.config.output) / MODEL
    if first_process() and best.is_file():
        with checkpoint.whole_file(best.with_name(FIRST_STAGE)) as path:
            shutil.copyfile(best, path)


def write_metrics(run, line: dict, *, report):
    """Appends a line to the log of the run."""
    if not first_process():
        return
    try:
        with open(Path(run.config.output) / METRICS, "a") as f:
            f.write(json.dumps(line) + "\n")
    except OSError as error:
        report({"event": "warning", "message": f"cannot write {METRICS}: {error.strerror}"})


def check_same_run(record: dict, run):
    """Raises `UsageError` with the differences to the run that wrote a checkpoint."""
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


def forget(run):
    """Deletes what an earlier run left in the folder."""
    for pattern in ("state-*.safetensors", METRICS, MODEL, LAST, FIRST_STAGE):
        for path in Path(run.config.output).glob(pattern) if first_process() else ():
            path.unlink()


def keep_metrics(run, *, epochs: int):
    """Drops lines of epochs that will be done again."""
    path = Path(run.config.output) / METRICS
    if not first_process() or not path.is_file():
        return
    kept = path.read_text().splitlines(keepends=True)[:epochs]
    partial = path.with_name(path.name + ".partial")
    partial.write_text("".join(kept))
    os.replace(partial, path)
