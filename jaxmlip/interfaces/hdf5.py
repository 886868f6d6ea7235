"""Data sets in HDF5: any number of frames, read a block at a time or one by its index.

| path | shape | meaning |
|---|---|---|
| attributes format, version | | "jaxmlip dataset", 1 |
| n_atoms | [n_frames] | |
| numbers, positions | [n_all], [n_all, 3] | atoms of all frames, one after another; Å |
| cell, pbc | [n_frames, 3, 3], [n_frames, 3] | rows are vectors, Å |
| atom/<key> | [n_all, ...] | such as REF_forces (eV/Å) |
| structure/<key> | [n_frames, ...] | such as REF_energy (eV), charge, spin |
| text/<key> | [n_frames] | such as config_type |

A key that a frame does not have is NaN (text: empty) and is left out when it is read.
"""

import os
from itertools import islice
from pathlib import Path

import h5py
import numpy as np
from ase import Atoms

from jaxmlip.errors import DataError, ResourceError

FORMAT, VERSION = "jaxmlip dataset", 1
BLOCK = 256  # frames held at once
KNOWN_ARRAYS = {"numbers", "positions"}
OF_ATOMS = {"forces", "charges", "magmoms", "energies", "stresses"}  # results of ASE, by atom


def write_frames(path, frames) -> int:
    """Writes `ase.Atoms` from any iterable, atomically; returns how many. Labels stay as they are.

    Numbers and vectors of info, arrays and the results of a calculator are kept, and text of info;
    a key whose shape changes from frame to frame raises `DataError`.
    """
    path, frames, n = Path(path), iter(frames), 0
    partial = path.with_name(path.name + ".partial")
    try:
        with h5py.File(partial, "w") as file:
            file.attrs.update({"format": FORMAT, "version": VERSION})
            while block := list(islice(frames, BLOCK)):
                _append(file, block, n)
                n += len(block)
            if n == 0:
                raise DataError("there are no frames to write", where=str(path), code="JM202")
        os.replace(partial, path)
    except OSError as error:
        if isinstance(error, ResourceError):
            raise
        raise ResourceError(f"cannot write: {error}", where=str(path)) from error
    finally:
        partial.unlink(missing_ok=True)
    return n


def iter_frames(path):
    """The frames of a file, a block at a time."""
    with open_frames(path) as frames:
        for start in range(0, len(frames), BLOCK):
            yield from frames.block(start, min(start + BLOCK, len(frames)))


def open_frames(path) -> "Frames":
    """The frames of a file by their index: `frames[i]`, `len(frames)`; to be closed."""
    try:
        return Frames(h5py.File(path, "r"), path)
    except DataError:
        raise
    except Exception as error:  # whatever HDF5 may raise
        raise _damaged(path, error) from error


class Frames:
    """An open file as a sequence of `ase.Atoms`; nothing is held but where each frame starts."""

    def __init__(self, file, path):
        self.file, self.path = file, path
        if str(file.attrs.get("format", "")) != FORMAT or file.attrs.get("version") != VERSION:
            raise DataError(
                f"not a data set of this program: format {file.attrs.get('format')!r}, version "
                f"{file.attrs.get('version')!r}, expected {FORMAT!r}, {VERSION}",
                where=str(path),
                code="JM207",
                fix="convert it: jaxmlip check-data FILE --convert OUT.h5",
            )
        self.starts = np.concatenate([[0], np.cumsum(file["n_atoms"][:].astype(np.int64))])
        if np.any(np.diff(self.starts) < 0) or self.starts[-1] != len(file["positions"]):
            raise DataError(
                f"n_atoms sum to {self.starts[-1]}, there are {len(file['positions'])} positions",
                where=str(path),
                code="JM206",
                fix="write the file again",
            )

    def __len__(self):
        return len(self.starts) - 1

    def __getitem__(self, i: int) -> Atoms:
        if not -len(self) <= i < len(self):
            raise IndexError(i)
        return self.block(i % len(self), i % len(self) + 1)[0]

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.file.close()

    def block(self, start: int, stop: int) -> list[Atoms]:
        """Frames start to stop - 1."""
        try:
            return _block(self.file, self.starts, start, stop)
        except Exception as error:  # whatever HDF5 may raise
            raise _damaged(f"{self.path} frames {start}-{stop - 1}", error) from error


def _damaged(where, error):
    return DataError(
        f"cannot be read as HDF5 ({type(error).__name__}: {error})",
        where=str(where),
        code="JM207",
        fix="is the file whole, and was it written by this program?",
    )


def _block(file, starts, start, stop):
    atoms = slice(starts[start], starts[stop])
    numbers, positions = file["numbers"][atoms], file["positions"][atoms]
    cell, pbc = file["cell"][start:stop], file["pbc"][start:stop]
    read = lambda group, rows: {k: v[rows] for k, v in file.get(group, {}).items()}
    arrays, infos = read("atom", atoms), read("structure", slice(start, stop))
    texts, out = read("text", slice(start, stop)), []
    for i in range(stop - start):
        own = slice(starts[start + i] - starts[start], starts[start + i + 1] - starts[start])
        info = {k: v[i] if v.ndim > 1 else float(v[i]) for k, v in infos.items() if _known(v[i])}
        info |= {k: v[i].decode() for k, v in texts.items() if v[i]}
        one = Atoms(
            numbers=numbers[own], positions=positions[own], cell=cell[i], pbc=pbc[i], info=info
        )
        one.arrays.update({k: v[own] for k, v in arrays.items() if _known(v[own])})
        out.append(one)
    return out


def _known(value):
    return not np.isnan(value).all()


# --- writing -------------------------------------------------------------------------------------


def _append(file, block, n_before):
    """Adds a block of frames behind the first n_before."""
    n_atoms = np.array([len(a) for a in block])
    before = len(file["positions"]) if n_before else 0
    _extend(file, "n_atoms", n_atoms, n_before)
    _extend(file, "numbers", np.concatenate([a.numbers for a in block]).astype(np.uint8), before)
    _extend(file, "positions", np.concatenate([a.positions for a in block]), before)
    _extend(file, "cell", np.array([np.asarray(a.cell) for a in block]), n_before)
    _extend(file, "pbc", np.array([a.pbc for a in block]), n_before)
    described = [_description(a) for a in block]
    for name in _names(file, "atom", (d[0] for d in described)):
        values = _filled([d[0].get(name) for d in described], n_atoms.tolist(), name)
        _extend(file, f"atom/{name}", np.concatenate(values), before)
    for name in _names(file, "structure", (d[1] for d in described)):
        values = _filled([d[1].get(name) for d in described], [None] * len(block), name)
        _extend(file, f"structure/{name}", np.array(values), n_before)
    for name in _names(file, "text", (d[2] for d in described)):
        values = np.array([d[2].get(name, "") for d in described], dtype=object)
        _extend(file, f"text/{name}", values, n_before, dtype=h5py.string_dtype())


def _names(file, group, dicts):
    return sorted(set(file.get(group, ())).union(*dicts))


def _description(atoms):
    """(arrays, numbers and vectors, text) of a frame."""
    arrays = {k: v for k, v in atoms.arrays.items() if k not in KNOWN_ARRAYS}
    numbers, text = {}, {}
    results = getattr(atoms.calc, "results", {})  # the raw dict: constraints leave it alone
    for name, value in {**results, **atoms.info}.items():
        if isinstance(value, str):
            text[name] = value
            continue
        try:
            value = np.asarray(value)
        except ValueError:  # lists of several lengths
            continue
        if value.dtype.kind in "fiub":
            mine = name in results and value.ndim and len(value) == len(atoms)
            (arrays if mine and name in OF_ATOMS else numbers)[name] = value
    arrays = {k: v.astype(float) for k, v in arrays.items() if v.dtype.kind in "fiub"}
    return arrays, {k: v.astype(float) for k, v in numbers.items()}, text


def _filled(values, rows, name):
    """Arrays of one shape, NaN where there is none."""
    tail = lambda v, n: v.shape[1:] if n is not None else v.shape
    shapes = {tail(v, n) for v, n in zip(values, rows, strict=True) if v is not None}
    if len(shapes) > 1:
        raise DataError(
            f"'{name}' has several shapes: {sorted(map(str, shapes))}",
            where=name,
            code="JM221",
            fix="one shape for one key",
        )
    shape = shapes.pop() if shapes else None
    if shape is None:
        return [np.full(() if n is None else (n,), np.nan) for n in rows]
    full = lambda n: np.full(shape if n is None else (n, *shape), np.nan)
    return [full(n) if v is None else v for v, n in zip(values, rows, strict=True)]


def _extend(file, name, values, before, dtype=None):
    """Appends to a data set of `before` rows, which is made (and filled with NaN) if needed."""
    values = np.asarray(values)
    if name not in file:
        fill = np.nan if dtype is None and values.dtype.kind == "f" else None
        file.create_dataset(
            name,
            shape=(before, *values.shape[1:]),
            maxshape=(None, *values.shape[1:]),
            dtype=dtype or values.dtype,
            chunks=(max(1, min(4096, 2**17 // max(values[:1].nbytes, 1))), *values.shape[1:]),
            compression="gzip",
            compression_opts=1,
            shuffle=dtype is None,
            fillvalue=fill,
        )
    data = file[name]
    if data.shape[1:] != values.shape[1:]:
        if not np.isnan(values).all():
            raise DataError(
                f"'{name}' has the shape {values.shape[1:]} after {data.shape[1:]}",
                where=name,
                code="JM221",
                fix="one shape for one key",
            )
        values = np.full((len(values), *data.shape[1:]), np.nan)
    data.resize(before + len(values), axis=0)
    data[before:] = values
