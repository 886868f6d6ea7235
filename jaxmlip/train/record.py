"""What a run folder tells of its run: configuration, data, versions, machine, and every start.

`config.yaml` is the configuration with all defaults written out and `run.json` the rest, so that a
folder can be repeated by somebody else, or years later be told why it cannot.
"""

import hashlib
import json
import os
import subprocess
import sys
from dataclasses import asdict
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import jax
import yaml

from jaxmlip.errors import DataError, UsageError
from jaxmlip.parallel.processes import first_process

CONFIG, RECORD = "config.yaml", "run.json"
DECIDING = ("jaxmlip", "jax", "jaxlib", "flax", "optax", "numpy", "ase")  # packages


def write_record(run, *, start=None) -> None:
    """Writes both files of a run that is about to start; earlier starts in them are kept.

    start: the file of the model that the run starts from, whose hash is kept like those of data.
    """
    if not first_process():
        return
    folder = Path(run.config.output)
    path = folder / RECORD
    before = _read(path).get("starts", []) if path.is_file() else []
    record = {"data": run.card["data"], "starts": [*before, _start()]}
    if start is not None:
        record["start"] = {"file": Path(start).name, "sha256": file_hash(start)}
    text = yaml.safe_dump(asdict(run.config), sort_keys=False, allow_unicode=True)
    for name, content in ((CONFIG, text), (RECORD, json.dumps(record, indent=1) + "\n")):
        partial = folder / (name + ".partial")
        partial.write_text(content)
        os.replace(partial, folder / name)


def config_to_repeat(folder, *, find=Path) -> tuple[Path, list[str]]:
    """(configuration of a run folder, what has changed since in versions and machine).

    find: the path of the name of a model to start from. Raises `UsageError` for a folder that is
    not that of a run, and `DataError` where the data, or the model it starts from, are not those
    that it was trained on.
    """
    folder = Path(folder)
    if not (folder / CONFIG).is_file() or not (folder / RECORD).is_file():
        raise UsageError(
            f"no {CONFIG} and {RECORD} here, so this is not the folder of a run",
            where=str(folder),
            fix="name the output folder of `jaxmlip train`",
        )
    record = _read(folder / RECORD)
    config = yaml.safe_load((folder / CONFIG).read_text())
    paths = files_of(config)
    for name, known in record["data"].items():
        if name != "start":  # a model: its hash there is that of its weights
            _check_same(f"the {name} data have", paths[name], known)
    if "start" in record:
        model = config["start"]["model"]
        _check_same(f"the model to start from, {model}, has", find(model), record["start"])
    return folder / CONFIG, _changes(record["starts"][-1], _start())


def files_of(config: dict) -> dict:
    """{name: path} of the files with labels that a configuration names."""
    data, curved = config["data"], config.get("curvature") or {}
    found = {name: data.get(name) for name in ("train", "valid")}
    found["replay"] = (config.get("replay") or {}).get("train")
    found |= {name: curved.get(name) for name in ("hessians", "valid_hessians")}
    constants = curved.get("force_constants") or []
    found |= {f"force_constants_{i}": path for i, path in enumerate(constants)}
    return {name: path for name, path in found.items() if path is not None}


def _check_same(what, path, known):
    found = file_hash(path)
    if found != known["sha256"]:
        raise DataError(
            f"{what} changed since: SHA-256 {found[:12]}..., were {known['sha256'][:12]}...",
            where=str(path),
            code="JM232",
            fix="restore the file, or train anew from a configuration",
        )


def file_hash(path) -> str:
    """SHA-256 of a file. Raises `DataError` where it cannot be read."""
    try:
        with open(path, "rb") as f:
            return hashlib.file_digest(f, "sha256").hexdigest()
    except OSError as error:
        raise DataError(f"cannot read it: {error.strerror}", where=str(path)) from error


def _read(path: Path) -> dict:
    try:
        return json.loads(path.read_text())
    except json.JSONDecodeError as error:
        raise DataError(f"not JSON: {error}", where=str(path), fix="remove the file") from error


def _changes(old: dict, new: dict) -> list[str]:
    compared = ("versions", "device", "flags", "git")
    return [f"{k}: {old.get(k)} -> {new[k]}" for k in compared if old.get(k) != new[k]]


def _start() -> dict:
    """When, how and on what a run is started now."""
    devices = jax.devices()
    return {
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": [Path(sys.argv[0]).name, *sys.argv[1:]],
        "device": f"{len(devices)} x {devices[0].device_kind} ({devices[0].platform})",
        "versions": {"python": sys.version.split()[0]} | {n: _version(n) for n in DECIDING},
        "flags": {n: os.environ[n] for n in ("XLA_FLAGS", "JAX_ENABLE_X64") if n in os.environ},
        "git": _commit(),
    }


def _version(name):
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _commit():
    """The commit of a source tree that this package runs from; None for an installed one."""
    tree = Path(__file__).parents[2]
    if not (tree / ".git").exists():
        return None
    command = ["git", "-C", str(tree), "describe", "--always", "--dirty", "--abbrev=12"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() or None
