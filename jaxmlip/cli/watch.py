"""What a person sees of a training run: lines, a live table, and the trackers of other people."""

import sys
import time
from contextlib import ExitStack, contextmanager

from jaxmlip.cli.output import note, table
from jaxmlip.errors import UsageError

EVERY = 30.0  # s between lines where there is no terminal


@contextmanager
def watching(folder, *, tensorboard: bool = False, wandb: str | None = None, config=None):
    """`report`, the function that gets the events of a run, for as long as the run goes.

    folder: where TensorBoard files go. wandb: a project of Weights & Biases.
    """
    trackers = []
    with ExitStack() as stack:
        if tensorboard:
            trackers.append(stack.enter_context(_tensorboard(folder)))
        if wandb is not None:
            trackers.append(stack.enter_context(_wandb(wandb, folder, config)))
        shown = stack.enter_context(_LiveTable() if sys.stderr.isatty() else _Lines())

        def report(event):
            shown(event)
            if event["event"] == "epoch":
                for log in trackers:
                    log(scalars(event), event["step"])

        yield report


def scalars(event) -> dict[str, float]:
    """{'valid/forces_mae_meV_per_A': ...}: the numbers of an epoch, flat."""
    out = {k: event[k] for k in ("train_loss", "valid_loss", "learning_rate", "epoch")}
    for part in ("train", "valid"):
        out |= {f"{part}/{k}": v for k, v in event[part].items()}
    return {k: float(v) for k, v in out.items() if v is not None}


@contextmanager
def _tensorboard(folder):
    try:
        from tensorboardX import SummaryWriter
    except ImportError as error:
        raise _missing("tensorboard", "tensorboardX", "--tensorboard") from error
    with SummaryWriter(str(folder)) as writer:

        def log(values, step):
            for name, value in values.items():
                writer.add_scalar(name, value, step)
            writer.flush()

        yield log


@contextmanager
def _wandb(project, folder, config):
    try:
        import wandb
    except ImportError as error:
        raise _missing("wandb", "wandb", "--wandb") from error
    run = wandb.init(project=project, dir=str(folder), config=config)
    try:
        yield lambda values, step: run.log(values, step=step)
    finally:
        run.finish()


def _missing(extra, package, option):
    return UsageError(
        f"{option} needs the package {package}",
        where=option,
        fix=f"pip install 'jaxmlip[{extra}]'",
    )


class _Lines:
    """One line an epoch, and one every half minute within it."""

    def __enter__(self):
        self.last = time.monotonic()
        return self.report

    def __exit__(self, *error):
        pass

    def report(self, event):
        from jaxmlip.train.events import to_stderr

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
        if kind not in ("step", "epoch"):
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
    if "message" in event:
        return event["message"]
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
