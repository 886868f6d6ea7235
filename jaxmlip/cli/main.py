"""`jaxmlip`: one entry, one place where an error becomes a message and an exit status.

0 ok, 1 check failed or a bug, 2 usage, 3 data, 4 numerical, 5 resources, 6 model refused,
75 interrupted but resumable, 130 Ctrl-C.
"""

import contextlib
import errno
import os
import sys
import traceback
from typing import Annotated

import typer

from jaxmlip.cli import (
    check_data,
    check_model,
    demo,
    doctor,
    evaluate,
    ir,
    md,
    models,
    modes,
    raman,
    relax,
    serve,
    singlepoint,
    spectra,
    train,
    ts,
)
from jaxmlip.cli.crystal import conductivity, elastic, phonons, qha, screen
from jaxmlip.errors import JaxmlipError

NOT_WRITABLE = (
    errno.ENOSPC,
    errno.EDQUOT,
    errno.EACCES,
    errno.EPERM,
    errno.EROFS,
    errno.ENOTDIR,
    errno.ENOENT,
    errno.EISDIR,
)

app = typer.Typer(
    name="jaxmlip",
    no_args_is_help=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="--debug, anywhere on the line, shows where an error came from.",
)
COMMANDS = (
    *(
        ir,
        raman,
        spectra,
        modes,
        ts,
        phonons,
        elastic,
        qha,
        conductivity,
        screen,
        singlepoint,
        relax,
        md,
    ),
    *(serve, check_data, train, evaluate, check_model, doctor, demo),
)
for room in COMMANDS:
    app.command()(getattr(room, room.__name__.rpartition(".")[2]))
app.add_typer(models.app, name="models")


@app.callback(invoke_without_command=True)
def entry(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
):
    """Differentiable atomistic modelling: spectra, modes and relaxations of your structures."""
    if version:
        from jaxmlip import __version__

        print(f"jaxmlip {__version__}")
    elif context.invoked_subcommand is None:
        print(context.get_help())


def main(arguments: list[str] | None = None) -> int:
    """Runs a command line; returns its exit status."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in arguments
    arguments = [a for a in arguments if a != "--debug"]
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(AttributeError, ValueError):
            stream.reconfigure(errors="replace")  # a terminal without Å must not end a run
    try:
        status = app(args=arguments, prog_name="jaxmlip", standalone_mode=False)
    except (KeyboardInterrupt, typer.Abort):
        return _failed("interrupted", 130)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # `| head` is no failure
        return 0
    except Exception as error:
        if debug:
            traceback.print_exc()
        return _failed(*_explained(error, arguments))
    return _failed("interrupted", 130) if status == 130 else status or 0


def _failed(message: str, status: int) -> int:
    print(f"error: {message}", file=sys.stderr, flush=True)
    return status


def _explained(error: Exception, arguments) -> tuple[str, int]:
    """(message, exit status) of anything a command may raise."""
    if isinstance(error, JaxmlipError):
        return str(error), error.exit_code
    if hasattr(error, "format_message"):  # a usage error of typer's
        context = getattr(error, "ctx", None)
        place = context.command_path if context is not None else "jaxmlip"
        return f"JM101 {error.format_message()}\n  fix: see `{place} --help`", 2
    out_of_memory = isinstance(error, MemoryError) or "RESOURCE_EXHAUSTED" in str(error)
    if out_of_memory or getattr(error, "errno", None) in NOT_WRITABLE:
        what = "out of memory" if out_of_memory else f"the system refused a file: {error}"
        fix = "a smaller structure" if out_of_memory else "another folder, or more room"
        return f"JM401 {what}\n  fix: {fix}", 5
    first = (str(error).splitlines() or [""])[0]
    return (
        f"unexpected {type(error).__name__}: {first}\n  fix: this is a bug; please report it "
        f"with the output of `jaxmlip {' '.join(arguments)} --debug` and `jaxmlip doctor`"
    ), 1
