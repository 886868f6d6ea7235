"""Weights that other codes have written, as cards and arrays of ours; no foreign code runs.

One file a format, each with `matches(path)`, which tells by content and never raises, and
`read(path) -> (card, params)`. A file is read by the format that knows it, whatever its name.
"""

import hashlib
import inspect
from importlib import import_module
from pathlib import Path

import numpy as np

from jaxmlip.errors import ModelError, UsageError
from jaxmlip.neighbors import LARGEST_CUTOFF

FIX = "copy or download the file again, or ask its author for one that was saved whole"
CHOOSE = (  # a head
    "one by name: `jaxmlip models import FILE --head NAME` (or `models pull`); in Python "
    "jaxmlip.load(FILE, head=NAME), Calculator(FILE, head=NAME)"
)
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

    head: which one of a model with several, whose names the card keeps under "heads". Raises
    `ModelError` for whatever cannot be imported exactly: an unknown, damaged or hostile file, an
    architecture that is not here; and for several heads of which none is chosen.
    """
    path = Path(path)
    _check_file(path)
    name = format_of(path)
    reader = import_module(f"{__name__}.{name}")
    before = sha256(path)
    source = {
        "file": path.name,
        "size": path.stat().st_size,
        "sha256": before,
        "format": FORMATS[name],
    }
    try:
        card, params = _call(reader.read, path, head, FORMATS[name])
    except ModelError as error:
        where = str(path) if error.where in ("", name, "module_tree") else error.where
        raise ModelError(error.what, where=where, fix=error.fix or FIX, code=error.code) from None
    except UsageError:
        raise
    except Exception as error:  # whatever the bytes of a stranger may lead a parser to
        raise ModelError(
            f"this looks like {FORMATS[name]}, but cannot be read: it is damaged, or of a version "
            f"that is not known ({type(error).__name__}: {error})",
            where=str(path),
            code="JM510",
            fix=FIX,
        ) from error
    if not path.is_file() or sha256(path) != before:
        raise _changed(path)
    check_card(card, str(path))
    return {**card, "source": {**card.get("source", {}), **source}}, params


def check_card(card: dict, where: str) -> None:
    """Raises `ModelError` if elements, cutoff, scale, shift or reference energies make no sense."""
    fields = card["fields"]
    elements, cutoff = fields.get("elements"), fields.get("cutoff")
    energies = dict(card.get("reference_energies") or {})
    known = isinstance(elements, list) and all(type(z) is int and 0 < z < 119 for z in elements)
    if not known or not elements or sorted(set(elements)) != elements:
        _refuse(
            "elements", elements, "different atomic numbers from 1 to 118 in their order", where
        )
    if not isinstance(cutoff, int | float) or not 0 < cutoff < LARGEST_CUTOFF:
        _refuse("cutoff", cutoff, f"a length in Å between 0 and {LARGEST_CUTOFF:g}", where)
    for name in ("scale", "shift"):
        if not _finite(fields.get(name, 0.0)):
            _refuse(name, fields[name], "finite numbers in eV", where)
    for z, energy in energies.items():
        if not _finite(energy):
            _refuse(f"reference energy of element {z}", energy, "a finite number in eV", where)


def _refuse(name, value, wanted, where):
    what = f"{name}: {value!r:.80} is not {wanted}"
    raise ModelError(what, where=where, code="JM511", fix=FIX)


def _finite(value) -> bool:
    """Whether a number, or all of a list, is finite."""
    try:
        return bool(np.isfinite(np.asarray(value, float)).all())
    except (TypeError, ValueError):
        return False


def _changed(path):
    what = "the file changed while it was read"
    return ModelError(
        what, where=str(path), code="JM510", fix="wait until it is written; try again"
    )


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
