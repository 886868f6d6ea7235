"""`jaxmlip train`: a training run from a YAML file, watched."""

import shlex
import sys
import time
from pathlib import Path
from typing import Annotated

import typer

from jaxmlip.cli import options
from jaxmlip.cli.options import Dtype
from jaxmlip.cli.output import Output, note, table
from jaxmlip.errors import Interrupted, UsageError

EVERY = 30.0  # s between lines where there is no terminal


def train(
    config: Annotated[
        Path,
        typer.Argument(
            metavar="CONFIG", show_default=False, help="YAML; paths in it are relative to it."
        ),
    ],
    set_: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="KEY=VALUE",
            help="Instead of what the file says, such as "
            "optimizer.learning_rate=0.005; may be repeated.",
        ),
    ] = None,
    fresh: Annotated[
        bool,
        typer.Option("--fresh", help="Start anew: checkpoints in the output folder are deleted."),
    ] = False,
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", metavar="DIR", help="Output folder instead of the file's."),
    ] = None,
    json: options.Json = None,
    dtype: Annotated[Dtype | None, typer.Option(help="Instead of the file's.")] = None,
):
    """Train a model. Run the same command again to resume (losses in eV, Å and e).

    Ctrl-C or SIGTERM saves and leaves with exit status 75.
    """
    from jaxmlip.cli import session
    from jaxmlip.train.config import read_config

    overrides = _overrides(set_ or (), out, dtype)
    session.start(x64=read_config(config, overrides=overrides).dtype == "float64")
    from jaxmlip.train.loop import train as run

    try:
        with _watch() as report:
            path = run(config, overrides=overrides, resume=not fresh, progress=report)
    except Interrupted as error:
        command = shlex.join(["jaxmlip", *(a for a in sys.argv[1:] if a != "--fresh")])
        raise Interrupted(error.what, where=error.where, fix=f"resume with: {command}") from None
    except UsageError as error:
        if error.code != "JM103":
            raise
        raise UsageError(
            error.what,
            where=error.where,
            code=error.code,
            fix="undo the change, --out another folder, or --fresh to start anew",
        ) from None
    card = _summary(path)
    Output(json=json).finish({"command": "train", **session.versions(), **card})


def _overrides(pairs, out, dtype) -> dict:
    import yaml

    found = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not equals or not key:
            raise UsageError(
                f"'{pair}' is not KEY=VALUE", where="--set", fix="for example --set epochs=10"
            )
        try:
            found[key] = yaml.safe_load(value)
        except yaml.YAMLError as error:
            raise UsageError(f"the value of '{pair}' is not YAML", where="--set") from error
    given = {
        "output": None if out is None else str(out.resolve()),
        "dtype": None if dtype is None else str(dtype),
    }
    return found | {k: v for k, v in given.items() if v is not None}


def _summary(path) -> dict:
    from jaxmlip.models import checkpoint

    card, _ = checkpoint.read(path)
    return {
        "model": str(path),
        "model_sha256": card["sha256"],
        "epoch": card["epoch"],
        **{f"valid_{k}": v for k, v in card["accuracy"].items()},
    }


# --- what a person sees --------------------------------------------------------------------------


def _watch():
    return _LiveTable() if sys.stderr.isatty() else _Lines()


class _Lines:
    """One line an epoch, and one every half minute within it."""

    def __enter__(self):
        self.last = time.monotonic()
        return self.report

    def __exit__(self, *error):
        pass

    def report(self, event):
        from jaxmlip.train.loop import to_stderr

        if event["event"] != "step":
            to_stderr(event)
        elif time.monotonic() - self.last > EVERY:
            self.last = time.monotonic()
            note(_step_line(event))


class _LiveTable:
    """The last epochs as a table, and under it the step that is being done."""

    def __enter__(self):
        from rich.console import Console
        from rich.live import Live

        self.epochs, self.line, self.begun = [], "", None
        self.live = Live(console=Console(stderr=True), refresh_per_second=4)
        self.live.__enter__()
        return self.report

    def __exit__(self, *error):
        self.live.update(self._shown())
        self.live.__exit__(*error)

    def report(self, event):
        kind = event["event"]
        if kind in ("start", "warning", "done"):
            self.live.console.print(_say(event), markup=False, highlight=False)
        elif kind == "epoch":
            self.epochs.append(event)
        else:
            self.begun = self.begun or (time.monotonic(), event["step"])
            self.line = _step_line(event, self._left(event))
        self.live.update(self._shown())

    def _left(self, event):
        """Minutes to go by the pace of this session; None until there is a pace."""
        begun, first = self.begun
        done = event["step"] - first
        if done < 3:
            return None
        return (time.monotonic() - begun) / done * (event["steps"] - event["step"]) / 60

    def _shown(self):
        from rich.console import Group
        from rich.text import Text

        return Group(_epoch_table(self.epochs[-12:]), Text(self.line))


def _say(event):
    if event["event"] == "warning":
        return f"warning: {event['message']}"
    if event["event"] == "done":
        return f"done: {event['model']}"
    return (
        f"{event['n_train']} training and {event['n_valid']} validation structures, "
        f"{event['n_parameters']} parameters, {event['steps']} steps; the first step compiles"
    )


def _step_line(event, minutes=None):
    left = "" if minutes is None else f", at most {minutes:.0f} min to go"
    return (
        f"epoch {event['epoch']}  step {event['step']}/{event['steps']}  loss "
        f"{event['loss']:.4g}  lr {event['learning_rate']:.2e}  {event['seconds']:.0f} s{left}"
    )


def _epoch_table(epochs):
    names = [k for k in (epochs[-1]["valid"] if epochs else {}) if "_mae_" in k]
    columns = {"epoch": "right", "train loss": "right", "valid loss": "right"}
    columns |= {k.replace("_mae_", " ").replace("_per_", "/"): "right" for k in names}
    rows = [
        (
            str(e["epoch"]),
            _number(e["train_loss"]),
            _number(e["valid_loss"]) + ("*" if e["best"] else " "),
            *(_number(e["valid"].get(k)) for k in names),
            f"{e['seconds']:.0f}",
        )
        for e in epochs
    ]
    return table(columns | {"s": "right"}, rows)


def _number(x):
    return "-" if x is None else f"{x:.4g}"
