"""Weights that other codes have written, as cards and arrays of ours; no foreign code runs.

One file a format, each with `matches(path)`, which tells by content and never raises, and
`read(path) -> (card, params)`. A file is read by the format that knows it, whatever its name.
"""

import hashlib
import inspect
from importlib import import_module
from pathlib import Path

from jaxmlip.errors import ModelError, UsageError

FORMATS = {  # file here: the code that writes the format
    "mace_torch": "mace-torch",
    "nequix": "Nequix",
    "sevennet": "SevenNet",
    "so3lr": "SO3LR",
    "mlip": "mlip",
}
KINDS = (  # first bytes: what that is
    (b"\x89PNG", "a PNG picture"),
    (b"\xff\xd8\xff", "a JPEG picture"),
    (b"%PDF", "a PDF document"),
    (b"\x89HDF", "an HDF5 file"),
    (b"\x1f\x8b", "gzip-compressed: unpack it first"),
    (b"\x93NUMPY", "a numpy array"),
    (b"version https://git-lfs", "a pointer of git-lfs, not the file itself: `git lfs pull`"),
    (b"<!DOCTYPE html", "a web page, not the file that was meant to be downloaded"),
    (b"<html", "a web page, not the file that was meant to be downloaded"),
    (b"PK", "a zip archive of something else, or a damaged one"),
    (b"\x80", "a Python pickle of something else, or a damaged one"),
)


def read(path, *, head: str | None = None) -> tuple[dict, dict]:
    """(card, params) of a file that another code has written; the card tells format and source.

    head: which one of a model with several. Raises `ModelError` for whatever cannot be imported
    exactly: an unknown, damaged or hostile file, an architecture that is not here.
    """
    path = Path(path)
    _check_file(path)
    name = format_of(path)
    reader = import_module(f"{__name__}.{name}")
    source = {
        "file": path.name,
        "size": path.stat().st_size,
        "sha256": sha256(path),
        "format": FORMATS[name],
    }
    try:
        card, params = _call(reader.read, path, head, FORMATS[name])
    except ModelError as error:
        if error.where in ("", name):
            raise type(error)(error.what, where=str(path), fix=error.fix, code=error.code) from None
        raise
    except UsageError:
        raise
    except Exception as error:  # whatever the bytes of a stranger may lead a parser to
        raise ModelError(
            f"this looks like {FORMATS[name]}, but cannot be read: it is damaged, or of a version "
            f"that is not known ({type(error).__name__}: {error})",
            where=str(path),
            code="JM510",
            fix="copy or download the file again",
        ) from error
    return {**card, "source": {**card.get("source", {}), **source}}, params


def format_of(path) -> str:
    """The file here that reads `path`, told by its content; `ModelError` if there is none."""
    for name in FORMATS:
        if import_module(f"{__name__}.{name}").matches(path):
            return name
    raise ModelError(
        f"no weights that are known here: {_kind(path)}",
        where=str(path),
        code="JM510",
        fix=f"a file of {', '.join(FORMATS.values())}, or a .safetensors file of jaxmlip",
    )


def sha256(path) -> str:
    """SHA-256 of a file."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def version() -> str:
    """Hash of the readers themselves: what was imported by others is imported anew."""
    sources = sorted(Path(__file__).parent.glob("*.py"))
    return hashlib.sha256(b"".join(p.read_bytes() for p in sources)).hexdigest()


def _call(function, path, head, format):
    if head is None:
        return function(path)
    if "head" not in inspect.signature(function).parameters:
        raise UsageError(f"a model of {format} has no heads", where="--head", fix="leave it out")
    return function(path, head=head)


def _check_file(path):
    what = None
    if not path.exists():
        what = "no such file"
    elif path.is_dir():
        what = "this is a folder; the weights are in a file"
    elif not path.is_file():
        what = "this is no ordinary file"
    elif path.stat().st_size == 0:
        what = "the file is empty"
    if what:
        raise ModelError(what, where=str(path), code="JM510", fix="the file of weights itself")


def _kind(path) -> str:
    """What a file is, as far as its first bytes tell."""
    with open(path, "rb") as file:
        start = file.read(512)
    if b"__metadata__" in start or start[8:9] == b"{":
        return "a safetensors file; one of jaxmlip needs no import"
    for magic, what in KINDS:
        if start[:32].lower().startswith(magic.lower()):
            return what
    text = all(byte >= 32 or byte in b"\n\r\t" for byte in start)
    return "a text" if text else "its content is not of a known kind"
