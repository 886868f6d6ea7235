"""All files of a run together: one set for every structure of the batch."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from jaxmlip.errors import ResourceError
from jaxmlip.md.files.extxyz import append_extxyz, append_table, cut, size_of
from jaxmlip.md.files.h5md import append_h5md, cut_h5md
from jaxmlip.md.files.scene import OBSERVABLES, Scene, frames_of, series_of

SUFFIX = {name: suffix for name, _, suffix in OBSERVABLES.values()}


@dataclass(frozen=True, kw_only=True)
class Files:
    """Where one structure of a run is written to."""

    scene: Scene
    table: Path | None = None  # observables as a table
    extxyz: Path | None = None
    h5md: Path | None = None


def append(files, records) -> None:
    """Adds the records of a block. records: those of frames, or None, first; then of tables."""
    frames, *tables = records
    for one in files:
        scene = one.scene
        seen = frames_of(scene, frames) if frames else {}
        series = [series_of(scene, t) for t in tables]
        if one.extxyz is not None and seen and len(seen["step"]):
            append_extxyz(one.extxyz, scene, seen)
        if one.h5md is not None:
            append_h5md(one.h5md, scene, seen, series)
        if one.table is not None and series and len(series[0]["step"]):
            append_table(one.table, _columns(series[0], scene.dt))


def lengths(files) -> dict[str, int]:
    """{name: bytes} of the text files, safely on disk."""
    paths = [p for one in files for p in (one.table, one.extxyz) if p is not None]
    return {p.name: size_of(p) for p in paths}


def remove(files) -> None:
    """Deletes all of them, and what a killed program may have left beside them."""
    for path in (p for one in files for p in (one.table, one.extxyz, one.h5md) if p is not None):
        for suffix in ("", ".journal", ".journal.partial"):
            path.with_name(path.name + suffix).unlink(missing_ok=True)


def cut_back(files, lengths: dict[str, int], *, step: int) -> None:
    """Forgets what was written after `step`, when the text files had these lengths.

    Raises `ResourceError` before any change where a file lacks what was written until then.
    """
    texts = [p for one in files for p in (one.table, one.extxyz) if p is not None]
    binaries = [one.h5md for one in files if one.h5md is not None]
    for path in (*texts, *binaries):
        if size_of(path) < lengths.get(path.name, 1):
            raise ResourceError(
                "the file is not there, or shorter than it was at the restart point",
                where=str(path),
                code="JM402",
                fix="put it back, or begin anew",
            )
    for path in texts:
        cut(path, lengths[path.name])
    for path in binaries:
        cut_h5md(path, step)


def _columns(series, dt):
    """Headings with units; tensors as one column a component."""
    out = {"step": series["step"], "time_fs": np.round(series["step"] * dt, 9)}
    for name, values in series.items():
        if name != "step":
            axes = [""] if values.ndim == 1 else _axes(values.ndim - 1)
            flat = values.reshape(len(values), -1).T
            for axis, column in zip(axes, flat, strict=True):
                out[f"{name}{axis}_{SUFFIX[name]}"] = column
    return out


def _axes(n):
    return [f"_{a}{b}" for a in "xyz" for b in ("xyz" if n == 2 else [""])]
