"""The door to phonopy's files, and the force constants that go through it.

    constants, polar = read_phonopy("phonopy.yaml")       # or phonopy_disp.yaml beside FORCE_SETS
    write_phonopy("phonopy.yaml", constants, polar)       # any phonopy tool goes on from there

Everything is converted to Å, eV, amu and e, whatever the calculator of the file. Files may be
compressed (.xz, .gz, .bz2). Nothing is read from the working directory unasked.
"""

import bz2
import gzip
import lzma
import tempfile
import warnings
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from jaxmlip.errors import DataError, JaxmlipError, UsageError
from jaxmlip.interfaces.phonons.force_constants import (
    ForceConstants,
    Polar,
    column_of,
    from_phonopy,
    from_phonopy_atoms,
    polar_of,
    primitive_atoms,
    standard_masses,
    symmetrized,
    symmetrized_polar,
    to_phonopy,
    to_phonopy_atoms,
)

__all__ = [
    "ForceConstants",
    "Polar",
    "column_of",
    "from_phonopy",
    "from_phonopy_atoms",
    "polar_of",
    "primitive_atoms",
    "read_born",
    "read_force_sets",
    "read_phonopy",
    "standard_masses",
    "symmetrized",
    "symmetrized_polar",
    "to_phonopy",
    "to_phonopy_atoms",
    "write_born",
    "write_force_constants",
    "write_phonopy",
]


COMPRESSED = {".xz": lzma, ".gz": gzip, ".bz2": bz2}


def read_phonopy(path, *, forces=None, force_constants=None, born=None, tolerance=1e-5):
    """Force constants and `Polar` (or None) of a phonopy.yaml, _params.yaml or _disp.yaml.

    forces (FORCE_SETS), force_constants (FORCE_CONSTANTS or .hdf5), born (BORN): paths. What the
    yaml does not hold and is not named is looked for beside it under phonopy's names. Forces
    become force constants by phonopy's finite differences, symmetrised by symfc; force constants
    that are read stay as they are. Born charges are symmetrised and their mean is taken off, as
    phonopy does before it uses them. Raises `DataError` for a file that cannot be read or is of
    another supercell, and if there are no force constants.
    """
    _exists(path, forces, force_constants, born)
    phonon, yaml = _from_yaml(path, tolerance)
    if force_constants is None and yaml.force_constants is not None and forces is None:
        _give(phonon, yaml.force_constants, path)
    elif force_constants is None and forces is None and _has_forces(yaml.dataset):
        _differences(phonon, yaml.dataset, path)
    elif forces := forces or (not force_constants and _beside(path, ["FORCE_SETS"])):
        _differences(phonon, _force_sets(forces, len(phonon.supercell)), forces)
    elif found := force_constants or _beside(path, ["FORCE_CONSTANTS", "force_constants.hdf5"]):
        _give(phonon, _values(found, phonon.primitive.p2s_map), found)
    else:
        raise DataError(
            "no force constants: neither the file nor FORCE_SETS, FORCE_CONSTANTS or "
            "force_constants.hdf5 beside it holds any",
            where=str(path),
        )
    if born := born or (None if yaml.nac_params else _beside(path, ["BORN"])):
        phonon.nac_params = _born_file(born, phonon)
    elif yaml.nac_params:
        with _reading(path):
            phonon.nac_params = _with_factor(yaml.nac_params, phonon)
    return _both(phonon)


def read_force_sets(atoms, forces, supercell, *, born=None, tolerance: float = 1e-5):
    """The same from a unit cell (`ase.Atoms`, Å and eV) and its FORCE_SETS, without a yaml file.

    supercell: three repeats or a 3 x 3 matrix as phonopy's DIM. The primitive cell is found.
    """
    _exists(forces, born)
    phonon = _phonon(to_phonopy_atoms(atoms), supercell, primitive_matrix="auto", symprec=tolerance)
    _differences(phonon, _force_sets(forces, len(phonon.supercell)), forces)
    if born:
        phonon.nac_params = _born_file(born, phonon)
    return _both(phonon)


def read_born(path, constants: ForceConstants) -> Polar:
    """`Polar` of a BORN file for this primitive cell, symmetrised and of sum zero."""
    _exists(path)
    phonon = to_phonopy(constants)
    phonon.nac_params = _born_file(path, phonon)
    return symmetrized_polar(constants, polar_of(phonon))


def born_parameters(path, phonon) -> dict:
    """The `nac_params` of a BORN file for a `Phonopy` or `Phono3py`, symmetrised, of sum zero."""
    _exists(path)
    return nac_parameters(_born_file(path, phonon), phonon)


def nac_parameters(found: dict, phonon) -> dict:
    """The same of "born" [n, field, atom] and "dielectric" of its primitive cell."""
    from phonopy.structure.symmetry import symmetrize_borns_and_epsilon

    both = symmetrize_borns_and_epsilon(found["born"], found["dielectric"], phonon.primitive)
    parts = {"born": both[0] - both[0].mean(0), "dielectric": both[1]}
    return _with_factor(found | parts, phonon)


def write_phonopy(path, constants: ForceConstants, polar: Polar | None = None) -> None:
    """A phonopy.yaml with the force constants in it; compressed if the name ends in .xz.

    The primitive cell is phonopy's unit cell, so the q-points of both are the same.
    """
    phonon = to_phonopy(constants, polar)
    plain = Path(path).with_suffix("") if Path(path).suffix == ".xz" else Path(path)
    settings = {"force_constants": True, "force_sets": False, "displacements": False}
    phonon.save(plain, settings=settings, compression="xz" if plain != Path(path) else False)


def write_force_constants(path, constants: ForceConstants, *, full: bool = False) -> None:
    """FORCE_CONSTANTS, or force_constants.hdf5 by the name, in the atom order of phonopy.

    full: all rows of the supercell, else those of the primitive cell (phonopy's compact form).
    """
    from phonopy.file_IO import write_FORCE_CONSTANTS, write_force_constants_to_hdf5
    from phonopy.harmonic.force_constants import compact_fc_to_full_fc

    phonon = to_phonopy(constants)
    values, rows = phonon.force_constants, phonon.primitive.p2s_map
    if full:
        values, rows = compact_fc_to_full_fc(phonon.primitive, values), None
    if Path(path).suffix == ".hdf5":
        write_force_constants_to_hdf5(
            values, filename=path, p2s_map=rows, physical_unit="eV/angstrom^2"
        )
    else:
        write_FORCE_CONSTANTS(values, filename=path, p2s_map=rows)


def write_born(path, constants: ForceConstants, polar: Polar) -> None:
    """BORN: the dielectric tensor and the Born charges of the inequivalent atoms, symmetrised."""
    from phonopy.file_IO import get_BORN_lines

    cell = to_phonopy_atoms(primitive_atoms(constants))
    lines = get_BORN_lines(cell, polar.born_charges.swapaxes(1, 2), polar.dielectric)
    lines[0] = f"{polar.coulomb:.8f} {lines[0]}"
    Path(path).write_text("\n".join(lines) + "\n")


def _both(phonon):
    constants, polar = from_phonopy(phonon), polar_of(phonon)
    return constants, polar if polar is None else symmetrized_polar(constants, polar)


def _phonon(cell, matrix, **options):
    from phonopy import Phonopy

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about the default of older versions
        return Phonopy(cell, matrix, **options)


def _from_yaml(path, tolerance):
    from phonopy.interface.phonopy_yaml import PhonopyYaml

    yaml = PhonopyYaml()
    with _reading(path):
        yaml.read(path)
    if yaml.unitcell is None:
        raise DataError("no unit cell: not a phonopy yaml file", where=str(path))
    with _reading(path):
        phonon = _phonon(
            yaml.unitcell,
            np.eye(3, dtype=int) if yaml.supercell_matrix is None else yaml.supercell_matrix,
            primitive_matrix="auto" if yaml.primitive_matrix is None else yaml.primitive_matrix,
            calculator=yaml.calculator,
            symprec=tolerance,
        )
    return phonon, yaml


def _give(phonon, values, path):
    """Sets force constants; `DataError` unless they are numbers, and as many as the cell has."""
    shape, n, rows = np.shape(values), len(phonon.supercell), len(phonon.primitive)
    if shape not in ((n, n, 3, 3), (rows, n, 3, 3)) or not np.isfinite(values).all():
        raise DataError(
            f"force constants have shape {shape}, expected ({rows} or {n}, {n}, 3, 3) of finite "
            f"numbers for a supercell of {n} atoms",
            where=str(path),
            fix="the force constants that belong to this yaml file",
        )
    phonon.force_constants = values


def _differences(phonon, dataset, path):
    with _reading(path):
        phonon.dataset = dataset
        phonon.produce_force_constants(calculate_full_force_constants=False, show_drift=False)
        _give(phonon, phonon.force_constants, path)
        phonon.symmetrize_force_constants(use_symfc_projector=True, show_drift=False)


@contextmanager
def _reading(path):
    """What phonopy says of a file that it cannot use, as `DataError`."""
    try:
        yield
    except (JaxmlipError, MemoryError, PermissionError):
        raise
    except Exception as error:  # its parsers raise whatever they stumble over
        reason = (str(error).strip().splitlines() or ["no more is known"])[0]
        raise DataError(
            f"phonopy cannot read this: {reason} ({type(error).__name__})",
            where=str(path),
            fix="a whole file, of the same cell and supercell as the yaml",
        ) from error


def _has_forces(dataset) -> bool:
    if not dataset:
        return False
    return "forces" in dataset or all("forces" in d for d in dataset.get("first_atoms", [{}]))


def _force_sets(path, n_atoms):
    from phonopy.file_IO import parse_FORCE_SETS

    return _plain(path, lambda p: parse_FORCE_SETS(filename=p, natom=n_atoms))


def _values(path, rows):
    from phonopy.file_IO import parse_FORCE_CONSTANTS, read_force_constants_hdf5

    if ".hdf5" in Path(path).suffixes:
        return _plain(path, lambda p: read_force_constants_hdf5(p, p2s_map=rows))
    return _plain(path, lambda p: parse_FORCE_CONSTANTS(p, p2s_map=rows))


def _plain(path, parse):
    """What `parse` reads from a file that may be compressed."""
    path = Path(path)
    if path.suffix not in COMPRESSED:
        with _reading(path):
            return parse(path)
    with _reading(path), tempfile.TemporaryDirectory() as folder:
        plain = Path(folder) / path.stem
        plain.write_bytes(COMPRESSED[path.suffix].decompress(path.read_bytes()))
        return parse(plain)


def _beside(path, names):
    """The first file of these names in the folder of `path`, plain or compressed, or None."""
    endings = ["", *COMPRESSED]
    files = [Path(path).with_name(name + ending) for name in names for ending in endings]
    return next((file for file in files if file.is_file()), None)


def _born_file(path, phonon):
    from phonopy.file_IO import parse_BORN

    return _with_factor(_plain(path, lambda p: parse_BORN(phonon.primitive, filename=p)), phonon)


def _with_factor(found, phonon):
    from phonopy.physical_units import get_calculator_physical_units

    return {"factor": get_calculator_physical_units(phonon.calculator).nac_factor, **found}


def _exists(*paths):
    for path in paths:
        if path is not None and not Path(path).is_file():
            raise UsageError(f"there is no file {path}", where="phonopy")
