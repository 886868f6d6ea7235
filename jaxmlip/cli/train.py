"""`jaxmlip train`: a training run from a YAML file, watched."""

import shlex
import sys
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from jaxmlip.cli import options
from jaxmlip.cli.options import Dtype
from jaxmlip.cli.output import Output, note
from jaxmlip.cli.watch import watching
from jaxmlip.errors import Interrupted, UsageError


def train(
    config: Annotated[
        Path | None,
        typer.Argument(
            metavar="[CONFIG]", show_default=False, help="YAML; paths in it are relative to it."
        ),
    ] = None,
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
    force: Annotated[
        bool,
        typer.Option("--force", help="Use the output folder although another run holds it."),
    ] = False,
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", metavar="DIR", help="Output folder instead of the file's."),
    ] = None,
    from_run: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="Repeat the run in this folder, from its own configuration and the same data, "
            "in DIR_repeated or --out.",
        ),
    ] = None,
    pictures: Annotated[
        bool, typer.Option(help="Learning curves and parity pictures in the output folder.")
    ] = True,
    tensorboard: Annotated[
        bool, typer.Option("--tensorboard", help="Also for TensorBoard, in the output folder.")
    ] = False,
    wandb: Annotated[
        str | None,
        typer.Option(metavar="PROJECT", help="Also for Weights & Biases."),
    ] = None,
    json: options.Json = None,
    dtype: Annotated[Dtype | None, typer.Option(help="Instead of the file's.")] = None,
):
    """Train a model. Run the same command again to resume (losses in eV, Å and e).

    Ctrl-C or SIGTERM saves and leaves with exit status 75.
    """
    from dataclasses import asdict

    from jaxmlip import pretrained
    from jaxmlip.cli import session
    from jaxmlip.parallel.processes import first_process
    from jaxmlip.train.config.read import read_config
    from jaxmlip.train.loop import train as run

    _join(config, from_run, _overrides(set_ or (), out, dtype))
    config, out = _source(config, from_run, out)
    overrides = _overrides(set_ or (), out, dtype)
    settings = read_config(config, overrides=overrides)
    session.start(x64=settings.dtype == "float64")
    watch = nullcontext()  # of other processes, which have nothing to tell
    if settings.devices == 1 or first_process():
        shown = {"tensorboard": tensorboard, "wandb": wandb, "config": asdict(settings)}
        watch = watching(settings.output, **shown)
    try:
        with watch as report:
            path = run(
                config,
                overrides=overrides,
                resume=not fresh,
                force=force,
                progress=report,
                load=partial(pretrained.load, needs_energy=True),
                find=pretrained.path_of,
            )
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
    if settings.devices != 1 and not first_process():
        return
    card = _summary(path)
    if pictures and settings.property is None:
        card["pictures"] = _pictures(settings)
    Output(json=json).finish({"command": "train", **session.versions(), **card})


def _join(config, from_run, overrides):
    """Finds the other processes of a run on several devices, before anything looks at them."""
    from jaxmlip.parallel.processes import connect
    from jaxmlip.train.config.read import read_config
    from jaxmlip.train.record import CONFIG

    path = config or (from_run and from_run / CONFIG)
    if path and path.is_file() and read_config(path, overrides=overrides).devices != 1:
        connect()


def _source(config, from_run, out) -> tuple[Path, Path | None]:
    """The configuration to use and the output folder that was asked for."""
    if (config is None) == (from_run is None):
        raise UsageError(
            "a configuration or --from-run, one of them",
            where="jaxmlip train",
            fix="jaxmlip train CONFIG, or jaxmlip train --from-run DIR",
        )
    if from_run is None:
        return config, out
    from jaxmlip import pretrained
    from jaxmlip.train.record import config_to_repeat

    path, changed = config_to_repeat(from_run, find=pretrained.path_of)
    for change in changed:
        note(f"warning: not as it was: {change}")
    folder = from_run.resolve()
    return path, out or folder.with_name(f"{folder.name}_repeated")


def _pictures(settings) -> list[str]:
    """Paths of the pictures of a finished run."""
    from jaxmlip.cli import learning

    folder = Path(settings.output)
    learning.curves(folder / "learning_curve.png", folder / "metrics.jsonl")
    learning.parity(folder / "parity.png", settings)
    return [str(folder / name) for name in ("learning_curve.png", "parity.png")]


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
