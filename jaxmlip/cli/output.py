"""What a person sees and what is left on disk.

Tables are for persons: standard output, or standard error where JSON has taken its place. Progress
and warnings always go to standard error. A file is whole or not there, and a result that is
already there is refused before anything is computed, not after.
"""

import json
import math
import os
import sys
import time
from collections.abc import Callable
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from rich.console import Console, Group
from rich.table import Table
from rich.text import Text

from jaxmlip.errors import ResourceError, UsageError


@dataclass(frozen=True, kw_only=True)
class Output:
    """Where the results of one command go."""

    json: str | None  # a path, - for standard output, or None
    paths: dict[str, Path] = field(default_factory=dict)  # {suffix: file}
    warnings: list[str] = field(default_factory=list)

    @property
    def console(self) -> Console:
        """For tables."""
        return _console(sys.stderr if self.json == "-" else sys.stdout)

    def warn(self, text: str) -> None:
        """A warning: on standard error now, and in the JSON."""
        self.warnings.append(text)
        note(f"warning: {text}")

    def finish(self, results: dict) -> None:
        """Writes the JSON and tells which files there are."""
        results = results | {"warnings": self.warnings}
        if self.paths:
            results["files"] = [str(p) for p in self.paths.values() if p.exists()]
        if self.json == "-":
            print(to_json(results))
        elif self.json is not None:
            write_text(Path(self.json), to_json(results) + "\n")
        written = [p for p in [*self.paths.values(), Path(self.json or "-")] if p.is_file()]
        if written:
            note("written: " + ", ".join(map(str, written)))


def plan(
    source: str,
    suffixes,
    *,
    out: Path = Path("."),
    json_file: str | None,
    overwrite: bool,
    default_json: str | None = None,
) -> Output:
    """Names the files `<source>_<suffix>` and sees now that they can be written.

    default_json: the suffix of the JSON where the user has named none. Raises `UsageError` for a
    file that is there, `ResourceError` for a folder without access.
    """
    if json_file is None and default_json is not None:
        json_file = str(out / f"{stem(source)}_{default_json}")
    paths = {suffix: out / f"{stem(source)}_{suffix}" for suffix in suffixes}
    asked = [*paths.values(), *([Path(json_file)] if json_file not in (None, "-") else [])]
    for path in asked:
        if path.exists() and path.resolve() == Path(source).resolve():
            raise UsageError(
                "this is the input; it is never replaced",
                where=str(path),
                fix="another --out or --json",
            )
        if path.is_dir():
            raise UsageError("this is a folder", where=str(path), fix="name a file")
        if path.exists() and not overwrite:
            raise UsageError(
                "the file is already there",
                where=str(path),
                code="JM104",
                fix="--overwrite to replace it, or another --out",
            )
    for folder in {path.parent for path in asked}:
        _check_writable(folder)
    return Output(json=json_file, paths=paths)


def stem(source: str) -> str:
    """`ethanol` of `some/where/ethanol.xyz.gz`."""
    name = Path(source).name
    for suffix in (".gz", ".xz", ".bz2"):
        name = name.removesuffix(suffix)
    return name.rpartition(".")[0] or name


def _check_writable(folder: Path):
    """A trial in the folder, or in the one where it will be made."""
    there = next(p for p in (folder, *folder.absolute().parents) if p.exists())
    trial = there / f".jaxmlip-{os.getpid()}.partial"
    try:
        trial.touch()
        trial.unlink()
    except OSError as error:
        raise ResourceError(
            f"cannot write here: {error.strerror}",
            where=str(folder),
            fix="--out names another folder",
        ) from error


# --- files ---------------------------------------------------------------------------------------


def write(path: Path, writer: Callable[[Path], None]) -> None:
    """`writer(partial)`, then one move: the file is whole or not there."""
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        writer(partial)
        os.replace(partial, path)
    except OSError as error:
        raise ResourceError(
            f"cannot write: {error.strerror or error}",
            where=str(path),
            fix="choose a writable folder with free space",
        ) from error
    finally:
        with suppress(OSError):
            partial.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    write(path, lambda partial: partial.write_text(text, encoding="utf-8"))


def write_extxyz(path: Path, frames) -> None:
    """Structures (with the results of their calculators) as extended XYZ."""
    from ase.io import write as write_frames

    write(path, lambda partial: write_frames(partial, frames, format="extxyz"))


def to_json(results: dict) -> str:
    """Plain JSON; what is not finite becomes null, since NaN is not JSON."""
    return json.dumps(_plain(results), indent=1, ensure_ascii=False, allow_nan=False)


def _plain(value):
    if isinstance(value, dict):
        return {str(k): _plain(v) for k, v in value.items()}
    if hasattr(value, "tolist"):
        value = value.tolist()
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return str(value) if isinstance(value, Path) else value


# --- the terminal --------------------------------------------------------------------------------


def _console(stream) -> Console:
    width = None if stream.isatty() else 1000  # a pipe has no width; rich would cut at 80
    return Console(file=stream, markup=False, highlight=False, width=width)


def note(text: str) -> None:
    """A line on standard error."""
    print(text, file=sys.stderr, flush=True)


def table(columns: dict[str, str], rows, *, title: str | None = None):
    """columns: {heading: "left" or "right"}; rows of strings. Only the last column may wrap."""
    out = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for heading, side in columns.items():
        out.add_column(heading, justify=side, no_wrap=heading != list(columns)[-1], overflow="fold")
    for row in rows:
        out.add_row(*row)
    return out if title is None else Group(Text(title, style="bold"), out)


@contextmanager
def task(what: str):
    """Says what is being done and, at the end, what came of it and how long it took.

    Yields a function that takes news. A spinner on a terminal, plain lines elsewhere.
    """
    console, begun, news = _console(sys.stderr), time.monotonic(), [""]
    compiling = _compile_seconds()
    if not console.is_terminal:
        note(f"{what} ...")
    with console.status(what) if console.is_terminal else _nothing() as status:

        def tell(text):
            news[0] = f": {text}"
            if status is not None:
                status.update(f"{what}{news[0]}")

        yield tell
    seconds, compiling = time.monotonic() - begun, _compile_seconds() - compiling
    part = f", {compiling:.1f} s of it compiling" if compiling > 0.5 else ""
    note(f"{what}{news[0]} ({seconds:.1f} s{part})")


def _compile_seconds() -> float:
    """Seconds that JAX has spent compiling so far, counted from the first call."""
    from jax import monitoring

    if not _COMPILED:
        _COMPILED.append(0.0)
        monitoring.register_event_duration_secs_listener(_count_compilation)
    return sum(_COMPILED)


def _count_compilation(event, seconds, **more):
    if event.endswith("backend_compile_duration"):
        _COMPILED.append(seconds)


_COMPILED: list[float] = []


@contextmanager
def _nothing():
    yield None
