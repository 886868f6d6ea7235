"""Published potentials from their publishers' addresses, checked, imported and kept.

Only `pull` reaches for the network. What was pulled, and what was imported on the fly, lies as
model files of ours in a folder of the user, beside the cache of compiled programs.
"""

import hashlib
import os
import stat
import tempfile
import urllib.request
from contextlib import contextmanager
from http.client import HTTPException
from pathlib import Path

from jaxmlip.errors import ModelError, ResourceError, UsageError, did_you_mean
from jaxmlip.interfaces import weights
from jaxmlip.pretrained.published import PUBLISHED, Published

BLOCK = 1 << 20  # bytes between two reports
TIMEOUT = 60  # seconds without a byte
LARGEST = 4 << 30  # bytes; nothing published is near it


def cache_folder() -> Path:
    """Where models are kept: $XDG_CACHE_HOME or ~/.cache, then jaxmlip/models; perhaps not there.

    Raises `ResourceError` where there is no home.
    """
    try:
        base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    except RuntimeError as error:
        raise ResourceError("there is no home folder", fix="set XDG_CACHE_HOME") from error
    return base / "jaxmlip" / "models"


def pulled() -> dict[str, Path]:
    """{name: model file} of what has been pulled."""
    try:
        return {p.stem: p for p in sorted(cache_folder().glob("*.safetensors"))}
    except (ResourceError, OSError):
        return {}


def published(name: str) -> Published:
    """The entry of a published potential. Raises `ModelError` for an unknown name."""
    if name not in PUBLISHED:
        raise ModelError(
            f"no published potential '{name}' is known here.{did_you_mean(name, PUBLISHED)}",
            code="JM501",
            fix=f"one of {', '.join(PUBLISHED)}; or `jaxmlip models import FILE`",
        )
    return PUBLISHED[name]


def pull(
    name: str,
    *,
    source=None,
    head: str | None = None,
    accept_licence: bool = False,
    accept_unverified: bool = False,
    overwrite: bool = False,
    tell=lambda text: None,
) -> tuple[Path, dict]:
    """(model file, card) of a published potential, downloaded, checked and imported once.

    What was pulled before is given again, unless another version of the importer made it: then it
    is pulled anew. Where it is of another file or head, only `overwrite` replaces it, and else
    there is a `UsageError`.

    source: a file that was downloaded before, instead of the network. Licences that restrict use
    and files without a known hash have to be accepted by the caller, else `UsageError`. Raises
    `ModelError` for a file that is not the published one, `ResourceError` where the network or the
    disk fails. Nothing is left behind but the model file.
    """
    entry = published(name)
    _check_accepted(name, entry, accept_licence, accept_unverified)
    from jaxmlip.pretrained import imports

    output = _made(cache_folder()) / f"{name}.safetensors"
    if output.exists() and not overwrite:
        card = _pulled_card(output, entry, source, head)
        if not outdated(card):
            return output, card
        tell("imported by another version: once more")
    with _fetched(entry, source, output.parent, tell) as files:
        hashes = _verified(entry, files)
        tell("importing")
        terms = {**entry.terms, "name": name, "origin_sha256": hashes}
        terms["importer"] = imports.version()
        if not entry.verified:
            terms["origin_verified"] = "not verified against a known hash"
        card = imports.import_weights(files[0], output, name=name, head=head, extra=terms)
    return output, card


def outdated(card: dict) -> bool:
    """Whether a model was pulled, and imported by another version than this one."""
    if "origin_sha256" not in card:
        return False
    from jaxmlip.pretrained import imports

    return card.get("importer") != imports.version()


def on_the_fly(path, *, head: str | None = None) -> Path:
    """The model file of foreign weights, imported when they are first used; each head has its own.

    Kept under the hash of the files and of what makes numbers of them, so that none can go stale.
    """
    from jaxmlip.pretrained import imports

    beside, sha256 = imports.hashes_beside(path), weights.sha256(path)
    told = f"{sha256} {sorted(beside.items())} {imports.version()} {head or ''}"
    key = hashlib.sha256(told.encode())
    _made(cache_folder())
    kept = _made(cache_folder() / "imported") / f"{key.hexdigest()}.safetensors"
    source = (_card(kept) or {}).get("source", {})
    if source.get("sha256") != sha256 or source.get("beside", {}) != beside:
        imports.import_weights(path, kept, head=head)
    return kept


def _card(path) -> dict | None:
    """The card of a model file, if it is there and whole."""
    from jaxmlip.models import checkpoint

    try:
        return checkpoint.read(path)[0]
    except ModelError:
        return None


def _pulled_card(path, entry, source, head) -> dict:
    """The card of what was pulled before, if that is what is asked for now."""
    card = _card(path) or {}
    wanted = {_name(address): expected for address, expected in entry.files.items()}
    if source is not None:
        with _fetched(entry, source, None, None) as files:
            wanted = _verified(entry, files)
    found = card.get("origin_sha256", {})
    same = found.keys() == wanted.keys() and all(
        expected in (None, found[name]) for name, expected in wanted.items()
    )
    if not same or card.get("origin") != entry.terms["origin"] or card.get("head") != head:
        raise UsageError(
            "there is a model of this name of another file or head, or a damaged one",
            where=str(path),
            code="JM104",
            fix="--overwrite to pull it again and replace it",
        )
    return card


def _check_accepted(name, entry, accept_licence, accept_unverified):
    if not entry.permissive and not accept_licence:
        raise UsageError(
            f"'{name}' is under the {entry.licence}: {entry.terms['licence_terms']}",
            where="--accept-licence",
            code="JM513",
            fix="read the licence; if you accept it, give --accept-licence",
        )
    if not entry.verified and not accept_unverified:
        raise UsageError(
            f"no SHA-256 of '{name}' is known here, so a download cannot be verified",
            where="--accept-unverified",
            code="JM514",
            fix="--accept-unverified takes the file as it comes, and records its hash",
        )


# --- files ---------------------------------------------------------------------------------------


def _made(folder: Path) -> Path:
    """The folder, made if need be; `ResourceError` unless it belongs to this user alone."""
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        info = folder.stat()
    except OSError as error:
        raise ResourceError(
            f"cannot make this folder: {error.strerror}",
            where=str(folder),
            fix="set XDG_CACHE_HOME to a writable folder",
        ) from error
    foreign = hasattr(os, "getuid") and info.st_uid != os.getuid()
    if foreign or info.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise ResourceError(
            "others can write here, and models in it are trusted",
            where=str(folder),
            fix="chmod go-w on it, or set XDG_CACHE_HOME to a folder of your own",
        )
    return folder


@contextmanager
def _fetched(entry, source, folder, tell):
    """The files of an entry: downloaded into a folder that goes away, or those given."""
    if source is not None:
        first, *others = entry.files
        yield [Path(source), *(Path(source).parent / _name(a) for a in others)]
        return
    with _temporary(folder) as place:
        files = [place / _name(address) for address in entry.files]
        for address, file in zip(entry.files, files, strict=True):
            download(address, file, tell=tell)
        yield files


@contextmanager
def _temporary(folder):
    try:
        place = tempfile.TemporaryDirectory(prefix=".pull-", dir=folder)
    except OSError as error:
        raise ResourceError(f"cannot write here: {error.strerror}", where=str(folder)) from error
    with place as name:
        yield Path(name)


def _name(address: str) -> str:
    return address.rpartition("/")[2]


def _verified(entry, files) -> dict:
    """{file name: SHA-256} of the files, or `ModelError` if one is not what it should be."""
    found = {}
    for (address, expected), file in zip(entry.files.items(), files, strict=True):
        if not file.is_file():
            raise ModelError("no such file", where=str(file), code="JM515", fix=f"from {address}")
        found[_name(address)] = weights.sha256(file)
        if expected is not None and found[_name(address)] != expected:
            raise ModelError(
                f"not the published file: SHA-256 {found[_name(address)]}, expected {expected}",
                where=str(file),
                code="JM515",
                fix=f"download it again from {address}",
            )
    return found


def download(address: str, path: Path, *, tell=lambda text: None) -> None:
    """Writes what is at `address` to `path`; `ResourceError` unless it came whole."""
    offline = "is there a network? --from FILE takes a file that was downloaded elsewhere"
    try:
        with urllib.request.urlopen(address, timeout=TIMEOUT) as answer, open(path, "wb") as file:
            expected = int(answer.headers.get("Content-Length") or 0)
            size = _copied(answer, file, expected, tell)
    except (OSError, ValueError, HTTPException) as error:
        raise ResourceError(
            f"the download failed: {error}", where=address, code="JM405", fix=offline
        ) from error
    if expected and size != expected:
        raise ResourceError(
            f"the download ended after {size} of {expected} bytes",
            where=address,
            code="JM405",
            fix="try again",
        )


def _copied(answer, file, expected, tell) -> int:
    size = 0
    while block := answer.read(BLOCK):
        size += len(block)
        if size > LARGEST:
            raise ValueError(f"more than {LARGEST >> 30} GiB")
        file.write(block)
        of = f" of {expected / 1e6:.1f}" if expected else ""
        tell(f"{size / 1e6:.1f}{of} MB")
    return size
