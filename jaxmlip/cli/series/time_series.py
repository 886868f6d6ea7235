"""Time series of a trajectory file: H5MD, (extended) XYZ or ASE's .traj, in internal units.

What is recorded often (dipoles) and what is recorded seldom (positions) keep their own times.
"""

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from jaxmlip import units
from jaxmlip.cli.series import dynamics
from jaxmlip.errors import DataError

ROLE = ("ensemble", "beads", "bead", "ladder")  # as `jaxmlip.md.files` writes them
EVEN = 1e-3  # of an interval: how far intervals may differ
PER_FS = 1 / units.fs
FILES = (".h5", ".hdf5", ".h5md")
OBSERVABLES = {  # in a file: (here, shape, {unit: factor})
    "dipole": ("dipoles", (3,), {"e Angstrom": 1.0}),
    "current": ("currents", (3,), {"e Angstrom fs-1": PER_FS}),
    "polarizability": ("polarizabilities", (3, 3), {"e+2 Angstrom+2 eV-1": 1.0}),
    "stress": ("stresses", (3, 3), {"eV Angstrom-3": 1.0}),
    "heat_flux": ("heat_fluxes", (3,), {"eV Angstrom fs-1": PER_FS}),
    "temperature": ("temperatures", (), {"K": 1.0}),
}


@dataclass(frozen=True, kw_only=True)
class Series:
    """One property at its own times."""

    times: np.ndarray | None  # [n_frames] fs; None where the file has no times
    values: np.ndarray  # [n_frames, ...]


@dataclass(frozen=True, kw_only=True)
class TimeSeries:
    """What a trajectory file tells of one structure."""

    numbers: np.ndarray  # [n_atoms]
    masses: np.ndarray  # [n_atoms] amu
    pbc: np.ndarray  # [3]
    info: dict = field(default_factory=dict)  # charge, spin, field (V/Å), where they were told
    role: dict = field(default_factory=dict)  # what frames are: of a ring, a bead, a ladder
    ours: bool = False  # written by jaxmlip: positions go on across boundaries
    series: dict = field(default_factory=dict)
    # positions Å, cells Å, velocities (internal), dipoles e Å, currents (internal),
    # polarizabilities e² Å²/eV, stresses eV/Å³ with their kinetic part, temperatures K,
    # heat_fluxes (internal)

    @property
    def charge(self) -> float:
        """e."""
        return float(self.info.get("charge", 0.0))


def read_time_series(path: str) -> TimeSeries:
    """The series of a file; `DataError` for one that is not a trajectory of one structure."""
    if Path(path).suffix.lower() in FILES:
        if not Path(path).is_file():
            raise DataError("no such file", where=path, code="JM202", fix="check the path")
        return _from_h5md(path)
    from jaxmlip.interfaces.extxyz import read_frames
    from jaxmlip.interfaces.read import format_of, read_structures

    if not Path(path).is_file():
        raise DataError("no such file", where=path, code="JM202", fix="check the path")
    read = read_frames if format_of(path) == "extxyz" else read_structures
    return _from_frames(read(path), path)


def interval(series: Series, *, where: str, timestep: float | None = None) -> float:
    """fs between frames of a series; `DataError` where they are not even, or not known."""
    if len(series.values) < 2:
        raise DataError("one frame is no trajectory", where=where, code="JM202")
    if timestep is not None:
        return timestep
    t = series.times
    if t is None:
        raise DataError(
            "the file does not tell the time between frames",
            where=where,
            code="JM242",
            fix="--timestep FS",
        )
    steps = np.diff(t)
    dt = float(np.median(steps))
    off = np.abs(steps - dt) > EVEN * abs(dt)
    if not dt > 0 or off.any():
        i = int(off.argmax())
        raise DataError(
            f"the frames are not evenly spaced: {off.sum()} of {len(steps)} intervals are not "
            f"{dt:g} fs; frame {i} is at {t[i]:g} fs, the next at {t[i + 1]:g} fs",
            where=where,
            code="JM242",
            fix="one run with one interval; frames that a restart wrote twice must go",
        )
    return dt


def _from_h5md(path) -> TimeSeries:
    from ase.data import atomic_masses

    from jaxmlip.md.files import read_h5md

    read = read_h5md(path)
    series = {"positions": read.positions, "cells": read.cell}
    if read.velocities is not None:
        series["velocities"] = read.velocities * PER_FS
    n = len(read.positions)
    wrong = [name for name, x in series.items() if x is not None and len(x) != n]
    if wrong:
        raise DataError(
            f"there are {n} positions and another number of {wrong[0]}", where=path, code="JM241"
        )
    times = read.time if np.isfinite(read.time).all() else None
    found = {k: Series(times=times, values=x) for k, x in series.items() if x is not None}
    for name, (here, shape, factors) in OBSERVABLES.items():
        if name in read.observables:
            found[here] = _observed(read.observables[name], name, shape, factors, path)
    numbers = np.asarray(read.numbers)
    masses = atomic_masses[numbers] if read.masses is None else np.asarray(read.masses)
    pbc = np.asarray(read.pbc, bool)
    return TimeSeries(
        numbers=numbers,
        masses=masses,
        pbc=pbc,
        info=read.info,
        role=read.role or dynamics.implied(read.observables),
        ours=read.creator == "jaxmlip",
        series=found,
    )


def _observed(read, name, shape, factors, path):
    if read.unit not in factors:
        raise DataError(
            f"{name} has the unit '{read.unit}', expected {' or '.join(factors)}",
            where=path,
            code="JM241",
        )
    values = np.asarray(read.value, np.float64)
    if values.shape[1:] != shape:
        raise DataError(
            f"{name} has the shape {values.shape}, expected [n_frames, *{shape}]",
            where=path,
            code="JM241",
        )
    times = read.time if np.isfinite(read.time).all() else None
    return Series(times=times, values=factors[read.unit] * values)


# --- frames of ASE -------------------------------------------------------------------------------


def _from_frames(frames, where) -> TimeSeries:
    first = frames[0]
    for i, atoms in enumerate(frames):
        if not np.array_equal(atoms.numbers, first.numbers):
            raise DataError(
                f"frame {i} has other atoms than frame 0",
                where=where,
                code="JM241",
                fix="a trajectory of one structure, its atoms in one order",
            )
    found = {name: _of_all(name, read, frames, where) for name, read in READERS.items()}
    found = {name: values for name, values in found.items() if values is not None}
    masses, times = first.get_masses(), found.pop("times", None)
    if "stresses" in found:  # ASE's is that of the potential alone
        stress, v = found.pop("stresses"), found.get("velocities")
        if v is not None and first.cell.rank == 3:
            volumes = np.abs(np.linalg.det(found["cells"]))[:, None, None]
            found["stresses"] = stress - np.einsum("i,tia,tib->tab", masses, v, v) / volumes
    return TimeSeries(
        numbers=first.numbers,
        masses=masses,
        pbc=first.pbc,
        info={k: first.info[k] for k in ("charge", "spin", "field") if k in first.info},
        role={k: first.info[k] for k in ROLE if k in first.info},
        ours={"step", "time_fs"} <= set(first.info),
        series={name: Series(times=times, values=values) for name, values in found.items()},
    )


def _of_all(name, read, frames, where):
    """A property of every frame, None where no frame has it."""
    values = [read(atoms) for atoms in frames]
    missing = [i for i, v in enumerate(values) if v is None]
    if len(missing) == len(frames):
        return None
    if missing:
        raise DataError(
            f"{len(missing)} of {len(frames)} frames have no {name}, first {missing[0]}",
            where=where,
            code="JM241",
        )
    return np.stack(values)


def _velocities(atoms):
    if "momenta" in atoms.arrays:
        return atoms.get_velocities()
    for name in ("velocities", "velocity", "vel"):
        if name in atoms.arrays:
            return atoms.arrays[name] * PER_FS
    return None


def _told(*names, shape=(), factor=1.0):
    def value_of(atoms):
        results = {} if atoms.calc is None else atoms.calc.results
        values = [atoms.info.get(name, results.get(name)) for name in names]
        values = [v for v in values if v is not None]
        return factor * np.asarray(values[0], float).reshape(shape) if values else None

    return value_of


def _stress(atoms):
    results = {} if atoms.calc is None else atoms.calc.results
    stress = atoms.info.get("stress", results.get("stress"))
    if stress is None:
        return None
    stress = np.asarray(stress, float)
    if stress.shape != (6,):
        return stress.reshape(3, 3)
    xx, yy, zz, yz, xz, xy = stress
    return np.array([[xx, xy, xz], [xy, yy, yz], [xz, yz, zz]])


READERS = {
    "positions": lambda atoms: atoms.positions,
    "cells": lambda atoms: np.asarray(atoms.cell.complete()),
    "velocities": _velocities,
    "times": _told("time_fs", "time"),
    "dipoles": _told("dipole", shape=(3,)),
    "currents": _told("current", shape=(3,), factor=PER_FS),
    "polarizabilities": _told("polarizability", shape=(3, 3)),
    "stresses": _stress,
    "temperatures": _told("temperature"),
}
