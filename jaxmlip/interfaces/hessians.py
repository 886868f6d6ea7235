"""Second derivatives from files: Hessians of frames, and force constants as labelled supercells."""

import re
from pathlib import Path

import h5py
import numpy as np
from ase import Atoms

from jaxmlip.errors import DataError
from jaxmlip.interfaces.extxyz import read_frames
from jaxmlip.interfaces.hdf5 import FORMAT
from jaxmlip.interfaces.phonons.force_constants import ForceConstants, column_of

KEY = "REF_hessian"


def read_hessians(path, sizes) -> list:
    """[[n, 3, n, 3] or None] of frames with `sizes` atoms, eV/Å².

    From an .npz or HDF5 file whose names end in the number of the frame (h000, h001 ...; frames
    without an array have no Hessian), each [3n, 3n] or [n, 3, n, 3] in the order of the atoms; from
    a data set of `interfaces.hdf5` with structure/REF_hessian, where all frames are of one size; or
    from extended XYZ with 9 n² numbers under REF_hessian in the comment line. NaN is not known.
    Raises `DataError` for a name without a number, a frame that is not there, or another shape.
    """
    kind = Path(path).suffix.lower()
    read = _from_npz if kind == ".npz" else _from_hdf5 if kind in (".h5", ".hdf5") else _from_xyz
    found = read(path)
    if not found:
        raise DataError("no Hessians", where=str(path), code="JM220")
    out = [None] * len(sizes)
    for i, value in found.items():
        where = f"{path} frame {i}"
        if not 0 <= i < len(sizes):
            raise DataError(
                f"a Hessian of frame {i}, but the data have {len(sizes)} frames", where=str(path)
            )
        n = sizes[i]
        if value.size != 9 * n * n or value.squeeze().shape not in (
            (9 * n * n,),
            (3 * n, 3 * n),
            (n, 3, n, 3),
        ):
            raise DataError(
                f"a Hessian of shape {value.shape} for {n} atoms, expected [{3 * n}, {3 * n}]",
                where=where,
                code="JM221",
            )
        out[i] = value.reshape(n, 3, n, 3)
    return out


def _from_npz(path):
    with np.load(path, allow_pickle=False) as file:
        return _numbered(file, file.files, path)


def _numbered(file, names, path):
    out = {}
    for name in names:
        number = re.search(r"(\d+)$", name)
        if number is None:
            raise DataError(
                f"the name '{name}' does not end in the number of a frame", where=str(path)
            )
        if isinstance(file[name], h5py.Group):
            raise DataError(
                f"'{name}' is a group, expected an array [3n, 3n]", where=str(path), code="JM220"
            )
        out[int(number[1])] = np.asarray(file[name], np.float64)
    return out


def _from_hdf5(path):
    try:
        with h5py.File(path, "r") as file:
            if file.attrs.get("format") != FORMAT:
                return _numbered(file, list(file), path)
            every = np.asarray(file.get(f"structure/{KEY}", ()), np.float64)
    except OSError as error:
        raise DataError(
            f"cannot be read as HDF5 ({error})", where=str(path), code="JM207", fix="is it whole?"
        ) from error
    return {i: h for i, h in enumerate(every) if not np.isnan(h).all()}


def _from_xyz(path):
    frames = enumerate(read_frames(path))
    return {i: np.asarray(f.info[KEY], np.float64) for i, f in frames if KEY in f.info}


def supercell_hessian(constants: ForceConstants) -> tuple[Atoms, np.ndarray]:
    """(supercell, its Hessian [n, 3, n, 3] eV/Å²) of force constants; exact by translation."""
    atoms, shifts = constants.atoms, constants.shifts
    n = len(atoms)
    column = column_of(constants, np.broadcast_to(atoms, (n, n)), shifts[None] - shifts[:, None])
    hessian = constants.values[atoms[:, None], column].transpose(0, 2, 1, 3)
    supercell = Atoms(
        numbers=constants.numbers[atoms],
        positions=constants.positions[atoms] + shifts @ constants.cell,
        cell=constants.matrix @ constants.cell,
        pbc=True,
    )
    return supercell, hessian
