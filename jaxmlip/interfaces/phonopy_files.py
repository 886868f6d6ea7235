"""The door to phonopy's files, and the force constants that go through it.

    constants, polar = read_phonopy("phonopy.yaml")       # or phonopy_disp.yaml beside FORCE_SETS
    write_phonopy("phonopy.yaml", constants, polar)       # any phonopy tool goes on from there

Everything is converted to Å, eV, amu and e, whatever the calculator of the file. Files may be
compressed as phonopy allows (.xz, .gz, .bz2). Nothing is read from the working directory unasked.
"""

import lzma
import warnings
from pathlib import Path

import numpy as np

from jaxmlip.errors import DataError, UsageError
from jaxmlip.interfaces.force_constants import (
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


def read_phonopy(path, *, forces=None, force_constants=None, born=None, tolerance=1e-5):
    """Force constants and `Polar` (or None) of a phonopy.yaml, _params.yaml or _disp.yaml.

    forces (FORCE_SETS), force_constants (FORCE_CONSTANTS or .hdf5), born (BORN): paths. What the
    yaml does not hold and is not named is looked for beside it under phonopy's names. Forces
    become force constants by phonopy's finite differences, symmetrised by symfc; force constants
    that are read stay as they are. Born charges are symmetrised and their mean is taken off, as
    phonopy does before it uses them. Raises `DataError` if there are no force constants.
    """
    _exists(path, forces, force_constants, born)
    phonon, yaml = _from_yaml(path, tolerance)
    beside = lambda *names: next((p for p in map(Path(path).with_name, names) if p.exists()), None)
    if force_constants is None and yaml.force_constants is not None and forces is None:
        phonon.force_constants = yaml.force_constants
    elif force_constants is None and forces is None and _has_forces(yaml.dataset):
        _differences(phonon, yaml.dataset)
    elif forces := forces or (not force_constants and beside("FORCE_SETS", "FORCE_SETS.xz")):
        _differences(phonon, _force_sets(forces, len(phonon.supercell)))
    elif found := force_constants or beside("FORCE_CONSTANTS", "force_constants.hdf5"):
        phonon.force_constants = _values(found, phonon.primitive.p2s_map)
    else:
        raise DataError(
            "no force constants: neither the file nor FORCE_SETS, FORCE_CONSTANTS or "
            "force_constants.hdf5 beside it holds any",
            where=str(path),
        )
    if born := born or (None if yaml.nac_params else beside("BORN")):
        phonon.nac_params = _born_file(born, phonon)
    elif yaml.nac_params:
        phonon.nac_params = _with_factor(yaml.nac_params, phonon)
    return _both(phonon)


def read_force_sets(atoms, forces, supercell, *, born=None, tolerance: float = 1e-5):
    """The same from a unit cell (`ase.Atoms`, Å and eV) and its FORCE_SETS, without a yaml file.

    supercell: three repeats or a 3 x 3 matrix as phonopy's DIM. The primitive cell is found.
    """
    _exists(forces, born)
    phonon = _phonon(to_phonopy_atoms(atoms), supercell, primitive_matrix="auto", symprec=tolerance)
    _differences(phonon, _force_sets(forces, len(phonon.supercell)))
    if born:
        phonon.nac_params = _born_file(born, phonon)
    return _both(phonon)


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
    yaml.read(path)
    if yaml.unitcell is None:
        raise DataError("no unit cell: not a phonopy yaml file", where=str(path))
    phonon = _phonon(
        yaml.unitcell,
        np.eye(3, dtype=int) if yaml.supercell_matrix is None else yaml.supercell_matrix,
        primitive_matrix="auto" if yaml.primitive_matrix is None else yaml.primitive_matrix,
        calculator=yaml.calculator,
        symprec=tolerance,
    )
    return phonon, yaml


def _differences(phonon, dataset):
    phonon.dataset = dataset
    phonon.produce_force_constants(calculate_full_force_constants=False, show_drift=False)
    phonon.symmetrize_force_constants(use_symfc_projector=True, show_drift=False)


def _has_forces(dataset) -> bool:
    if not dataset:
        return False
    return "forces" in dataset or all("forces" in d for d in dataset.get("first_atoms", [{}]))


def _force_sets(path, n_atoms):
    from phonopy.file_IO import parse_FORCE_SETS

    return _plain(path, lambda p: parse_FORCE_SETS(natom=None, filename=p))


def _values(path, rows):
    from phonopy.file_IO import parse_FORCE_CONSTANTS, read_force_constants_hdf5

    if ".hdf5" in Path(path).suffixes:
        return _plain(path, lambda p: read_force_constants_hdf5(p, p2s_map=rows))
    return _plain(path, lambda p: parse_FORCE_CONSTANTS(p, p2s_map=rows))


def _plain(path, parse):
    """What `parse` reads from a file that may be compressed by xz."""
    if Path(path).suffix != ".xz":
        return parse(path)
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        plain = Path(folder) / Path(path).stem
        plain.write_bytes(lzma.decompress(Path(path).read_bytes()))
        return parse(plain)


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
