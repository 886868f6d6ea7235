"""Files of many structures, one frame at a time: extended XYZ, ASE databases, HDF5, the rest.

Nothing but the present frame is held, so a file may be larger than the memory; formats that ASE
reads only as a whole are the exception.
"""

from contextlib import contextmanager
from pathlib import Path

import numpy as np

from jaxmlip.errors import DataError
from jaxmlip.interfaces import hdf5
from jaxmlip.interfaces.extxyz import iter_frames, open_text
from jaxmlip.interfaces.read import format_of, read_structures

HDF5 = (".h5", ".hdf5")


def iter_atoms(path, *, on_bad=None):
    """The frames of a file as `ase.Atoms`, as they stand there, labels in info and arrays.

    on_bad (extended XYZ): called with the `DataError` of a frame that cannot be read, which is
    then left out.
    Raises `DataError` for what is not there or cannot be read.
    """
    path = Path(path)
    if not path.is_file():
        raise DataError("no such file", where=str(path), fix="check the path", code="JM202")
    if path.suffix.lower() in HDF5:
        yield from hdf5.iter_frames(path)
        return
    open_text(path).close()  # refuses empty, damaged and forbidden files
    name = format_of(path)
    if name == "extxyz":
        yield from iter_frames(path, on_bad=on_bad)
    elif name == "db":
        yield from _rows(path)
    else:
        yield from read_structures(path)


def by_index(path):
    """The frames of an HDF5 file or an ASE database by their place: `frames[i]`, `len(frames)`.

    They are those of `iter_atoms`, in its order. Raises `DataError` for what cannot be read.
    """
    return hdf5.open_frames(path) if Path(path).suffix.lower() in HDF5 else Rows(path)


class Rows:
    """The rows of an ASE database by their place; held are their ids alone."""

    def __init__(self, path):
        with _database(path) as db:
            self.path, self.ids = path, [row.id for row in db.select(include_data=False)]

    def __len__(self):
        return len(self.ids)

    def __getitem__(self, i: int):
        with _database(self.path) as db:
            return _atoms_of(db.get(id=self.ids[i]))


def _rows(path):
    """The rows of an ASE database; its key-value pairs are info, its data info or arrays."""
    with _database(path) as db:
        for row in db.select():
            yield _atoms_of(row)


@contextmanager
def _database(path):
    from ase.db import connect

    try:
        with connect(str(path), use_lock_file=False) as db:
            yield db
    except Exception as error:  # whatever sqlite or ASE may raise
        raise DataError(
            f"ASE cannot read it as a database ({type(error).__name__}: {error})",
            where=str(path),
            code="JM207",
            fix="is it whole, and was it written by ase.db?",
        ) from error


def _atoms_of(row):
    atoms = row.toatoms()
    atoms.info.update(row.key_value_pairs)
    for name, value in (row.data or {}).items():
        array = np.asarray(value)
        if array.ndim and len(array) == len(atoms) and array.dtype.kind in "fi":
            atoms.arrays[name] = array
        else:
            atoms.info[name] = value
    return atoms
