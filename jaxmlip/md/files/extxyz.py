"""Frames as extended XYZ with ASE's names: `ase.io.read` finds momenta, energy, forces, stress.

Text is only ever added at the end, so a file is cut back to where a restart begins by its length.
Numbers are as long as it takes to read the same ones again.
"""

import os
from pathlib import Path

import numpy as np

from jaxmlip.md.files.scene import Scene


def append_extxyz(path, scene: Scene, frames: dict) -> None:
    """Adds frames {step, positions, velocities, cell, energy, ...} [n_frames, ...] of one
    structure, in the units of a run.
    """
    with open(path, "ab") as file:
        file.write(extxyz_text(scene, frames).encode())


def extxyz_text(scene: Scene, frames: dict) -> str:
    """The text of frames."""
    columns, names = _columns(scene, frames)
    digits = "%r" if columns.dtype == np.float64 else "%.9g"
    fixed = [None] * len(scene.symbols) if scene.fixed is None else scene.fixed
    ends = ["" if f is None else " F" if f else " T" for f in fixed]
    row = " ".join([digits] * columns.shape[-1])
    pattern = "".join(
        f"{symbol:<2} {row}{end}\n" for symbol, end in zip(scene.symbols, ends, strict=True)
    )
    properties = "species:S:1:" + ":".join(f"{name}:R:{n}" for name, n in names)
    properties += "" if scene.fixed is None else ":move_mask:L:1"
    out = []
    for i, rows in enumerate(columns):
        out.append(f"{len(scene.symbols)}\n{_comment(scene, frames, i, properties)}\n")
        out.append(pattern % tuple(rows.ravel().tolist()))
    return "".join(out)


def _columns(scene, frames):
    """Numbers of every atom [n_frames, n_atoms, columns], and what they are."""
    masses = scene.masses[:, None]
    parts = {"pos": frames["positions"]}
    if "velocities" in frames:
        parts["momenta"] = (frames["velocities"] * masses).astype(frames["velocities"].dtype)
    if "forces" in frames:
        parts["forces"] = frames["forces"]
    if scene.own_masses:
        shape = (*frames["positions"].shape[:2], 1)
        parts["masses"] = np.broadcast_to(masses, shape).astype(frames["positions"].dtype)
    return np.concatenate(list(parts.values()), -1), [(k, v.shape[-1]) for k, v in parts.items()]


def _comment(scene, frames, i, properties):
    """The second line of a frame."""
    words = []
    if scene.pbc.any():
        words.append(f'Lattice="{_numbers(frames["cell"][i])}"')
    words.append(f"Properties={properties}")
    if "energy" in frames:
        words.append(f"energy={_numbers(frames['energy'][i])}")
    if scene.pbc.any() and "stress" in frames and np.isfinite(frames["stress"][i]).all():
        words.append(f'stress="{_numbers(frames["stress"][i])}"')
    if "dipole" in frames:
        words.append(f'dipole="{_numbers(frames["dipole"][i])}"')
    step = int(frames["step"][i])
    words += [f"step={step}", f"time_fs={round(step * scene.dt, 9)!r}"]
    quote = lambda value: '"' if np.ndim(value) else ""
    words += [f"{k}={quote(v)}{_numbers(v)}{quote(v)}" for k, v in scene.info]
    words += [f"{k}={'FT'[v] if isinstance(v, bool) else v}" for k, v in scene.role]
    words.append('pbc="' + " ".join("FT"[int(p)] for p in scene.pbc) + '"')
    return " ".join(words)


def _numbers(x):
    x = np.asarray(x)
    digits = "%.9g" if x.dtype == np.float32 else "%r"
    return " ".join(digits % v for v in np.atleast_1d(x).ravel().tolist())


# --- tables --------------------------------------------------------------------------------------


def append_table(path, columns: dict) -> None:
    """Adds rows {heading: [n_rows]} to a table with commas; headings come first in a new file."""
    path = Path(path)
    new = not path.exists() or path.stat().st_size == 0
    lists = [np.asarray(v).tolist() for v in columns.values()]
    rows = [",".join(map(repr, row)) + "\n" for row in zip(*lists, strict=True)]
    with open(path, "a", encoding="utf-8") as file:
        file.write((",".join(columns) + "\n" if new else "") + "".join(rows))


def read_table(path) -> dict:
    """{heading: [n_rows]} of such a table."""
    with open(path, encoding="utf-8") as file:
        names = file.readline().strip().split(",")
        rows = [line.split(",") for line in file if line.endswith("\n")]
    values = np.array(rows, float).reshape(len(rows), len(names))
    return {name: values[:, i] for i, name in enumerate(names)}


def size_of(path) -> int:
    """Bytes that are safely on disk."""
    if not Path(path).exists():
        return 0
    with open(path, "rb") as file:
        os.fsync(file.fileno())
        return os.fstat(file.fileno()).st_size


def cut(path, size: int) -> None:
    """Forgets what comes after `size` bytes."""
    if Path(path).exists():
        with open(path, "r+b") as file:
            file.truncate(size)
