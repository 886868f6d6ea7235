"""A structure from a file or from the name of a molecule; whatever is wrong is a `DataError`.

ASE reads about eighty formats, some of them by running or unpickling what is in the file. Only
those listed here are read, and nothing that a parser raises reaches the caller as it is.
"""

import logging
from pathlib import Path

import ase.io
import numpy as np
from ase import Atoms
from ase.build import molecule
from ase.build.molecule import extra
from ase.collections import g2

from jaxmlip.errors import DataError, did_you_mean
from jaxmlip.interfaces.check import check_structure
from jaxmlip.interfaces.extxyz import open_text, read_frames
from jaxmlip.interfaces.poscar import check_poscar

FORMATS = {  # suffix: ASE's name of the format
    ".xyz": "extxyz",
    ".extxyz": "extxyz",
    ".cif": "cif",
    ".vasp": "vasp",
    ".poscar": "vasp",
    ".traj": "traj",
    ".xsf": "xsf",
    ".pdb": "proteindatabank",
    ".json": "json",
    ".db": "db",
    ".in": "aims",
    ".lmp": "lammps-data",
    ".data": "lammps-data",
    ".gen": "gen",
    ".mol": "mol",
    ".sdf": "sdf",
    ".cube": "cube",
}
DECLARED = {  # where ASE does not compare: format: (line from 0, the number of atoms in it)
    "gen": (0, lambda line: line.split()[0]),
    "mol": (3, lambda line: line[:3]),
    "sdf": (3, lambda line: line[:3]),
}
COMPRESSED = {".gz", ".xz", ".bz2"}
COMMON = {
    "water": "H2O",
    "methane": "CH4",
    "ammonia": "NH3",
    "methanol": "CH3OH",
    "ethanol": "CH3CH2OH",
    "formaldehyde": "H2CO",
    "acetone": "CH3COCH3",
    "benzene": "C6H6",
}

log = logging.getLogger("jaxmlip")


def read_structure(name, *, frame: int = -1, format: str | None = None) -> Atoms:
    """One structure from a file, or a molecule of the G2 set by name, such as 'CH3CH2OH'.

    frame: which one of a file of many; the last by default, as in ASE. format: ASE's name of the
    format, where the name of the file does not tell. Constraints are kept.
    """
    if not Path(name).is_file() and str(name) in _molecules():
        return _molecule(str(name))
    frames = _frames(Path(name), format)
    if not -len(frames) <= frame < len(frames):
        raise DataError(
            f"there is no frame {frame}, the file has {len(frames)}",
            where=str(name),
            code="JM202",
            fix=f"0 to {len(frames) - 1}, or -1 for the last",
        )
    return _checked(frames[frame], f"{name}" if len(frames) == 1 else f"{name} frame {frame}")


def read_structures(name, *, format: str | None = None) -> list[Atoms]:
    """All structures of a file, or one molecule by name: see `read_structure`."""
    if not Path(name).is_file() and str(name) in _molecules():
        return [_molecule(str(name))]
    return [
        _checked(atoms, f"{name} frame {i}") for i, atoms in enumerate(_frames(Path(name), format))
    ]


# --- molecules by name ---------------------------------------------------------------------------


def _molecules() -> dict[str, str]:
    return {name: name for name in (*g2.names, *extra)} | COMMON


def _molecule(name) -> Atoms:
    atoms = molecule(_molecules()[name])
    unpaired = round(abs(atoms.get_initial_magnetic_moments().sum()))
    if unpaired:
        atoms.info["spin"] = unpaired + 1
    return atoms


def _unknown(path):
    """Neither a file nor a molecule: the nearest of both."""
    siblings = [p.name for p in path.parent.iterdir()] if path.parent.is_dir() else []
    known = {name.lower(): name for name in (*_molecules(), *siblings)}
    hint = did_you_mean(path.name.lower(), known)
    for lower, name in known.items():
        hint = hint.replace(f"'{lower}'", f"'{name}'")
    return DataError(
        f"no such file, and no molecule has this name.{hint}",
        where=str(path),
        code="JM212",
        fix="the path of a structure, or a molecule of the G2 set such as CH3CH2OH",
    )


# --- files ---------------------------------------------------------------------------------------


def _frames(path, format):
    if not path.exists():
        raise _unknown(path)
    open_text(path).close()  # refuses folders, empty, damaged and forbidden files
    name = _known(format, path) if format else format_of(path)
    if name == "extxyz":
        frames = read_frames(path)
    else:
        _before(path, name)
        frames = _read_with_ase(path, name)
        _after(path, name, frames)
    if not frames:
        raise DataError(
            f"no structure in this {name} file",
            where=str(path),
            code="JM202",
            fix="does it list atoms?",
        )
    return frames


def format_of(path) -> str:
    """ASE's name of the format of a file, by its name, else by its first line."""
    path = Path(path)
    bare = path.with_suffix("") if path.suffix.lower() in COMPRESSED else path
    if bare.name.upper().startswith(("POSCAR", "CONTCAR")):
        return "vasp"
    if bare.suffix.lower() in FORMATS:
        return FORMATS[bare.suffix.lower()]
    with open_text(path) as stream:
        first = stream.readline(1000).strip()
    if first.isdigit():
        return "extxyz"
    if first.startswith("data_"):
        return "cif"
    raise DataError(
        "the format of this file is not known",
        where=str(path),
        code="JM211",
        fix=f"name it by one of {', '.join(FORMATS)}, or give the format",
    )


def _known(format, path):
    known = sorted(set(FORMATS.values()))
    if format not in known:
        raise DataError(
            f"format '{format}' is not read.{did_you_mean(format, known)}",
            where=str(path),
            fix=f"one of {', '.join(known)}",
            code="JM211",
        )
    return format


def _before(path, name):
    """What must be known before ASE sees the file."""
    if name == "vasp":
        with open_text(path) as stream:
            check_poscar(stream.read(), str(path))
    elif name == "traj" and not path.read_bytes()[:8].startswith(b"- of Ulm"):
        # ASE would unpickle trajectories of versions before 2015
        raise DataError(
            "not an ASE trajectory",
            where=str(path),
            code="JM207",
            fix="write it again with a present version of ASE",
        )
    elif name == "lammps-data":
        with open_text(path) as stream:
            if not any(line.split()[:1] == ["Masses"] for line in stream):
                # ASE would take type 1 for hydrogen, 2 for helium ...
                raise DataError(
                    "no section 'Masses': the elements are not known",
                    where=str(path),
                    code="JM201",
                    fix="write the file with masses, or as extended XYZ",
                )


def _read_with_ase(path, name):
    try:
        frames = ase.io.read(str(path), ":", format=name, do_not_split_by_at_sign=True)
    except Exception as error:  # whatever a parser may raise
        raise DataError(
            f"ASE cannot read it as {name} ({type(error).__name__}: {error})",
            where=str(path),
            code="JM207",
            fix="is it whole, and does its name tell the right format?",
        ) from error
    return frames if isinstance(frames, list) else [frames]


def _after(path, name, frames):
    """A file cut in the middle of its atoms, which some parsers of ASE take for a whole one."""
    if name in DECLARED:
        number, count = DECLARED[name]
        with open_text(path) as stream:
            expected = int(count(stream.readlines()[number]))
        if len(frames[0]) != expected:
            raise DataError(
                f"expected {expected} atoms, found {len(frames[0])} (interrupted write?)",
                where=str(path),
                code="JM206",
                fix="copy the file again",
            )


def _checked(atoms, where):
    check_occupancy(atoms, where)
    check_structure(atoms, where=where)
    if atoms.constraints:
        kinds = ", ".join(type(c).__name__ for c in atoms.constraints)
        log.info("%s: constraints kept (%s)", where, kinds)
    return atoms


def check_occupancy(atoms, where):
    """ASE keeps the species that fills most of a site and drops the others."""
    sites = atoms.info.get("occupancy")
    for kind, species in sites.items() if isinstance(sites, dict) else ():
        if len(species) > 1 or abs(sum(species.values()) - 1) > 1e-3:
            found = ", ".join(f"{symbol} {share:g}" for symbol, share in species.items())
            of_kind = np.flatnonzero(atoms.arrays.get("spacegroup_kinds", []) == int(kind))
            atom = f" (atom {of_kind[0]})" if len(of_kind) else ""
            raise DataError(
                f"site {kind}{atom} is partially occupied: {found}",
                where=where,
                code="JM209",
                fix="choose an ordered structure or a supercell of one",
            )
    shares = np.asarray(atoms.arrays.get("occupancy", []), float)
    if len(partial := np.flatnonzero((shares > 0) & (shares < 0.999))):
        i = int(partial[0])
        raise DataError(
            f"atom {i} ({atoms.symbols[i]}) has occupancy {shares[i]:g}, expected 1",
            where=where,
            code="JM209",
            fix="keep one of the alternative positions",
        )
