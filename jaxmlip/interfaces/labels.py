"""Labelled structures from files: each frame as a `System` and a dict of labels.

Labels carry the keys, units and shapes of a prediction (one structure is a batch of one). What a
file does not say is NaN, never zero; what it says wrongly is refused with its frame and value.

Units are converted here, where the file's own are named: see `UNITS`. `field_first` is the other
layout of Born charges, [n_atoms, cartesian of the field, cartesian of the atom].
"""

from collections import Counter
from pathlib import Path

import numpy as np

from jaxmlip import units as u
from jaxmlip.errors import DataError, UsageError, did_you_mean
from jaxmlip.interfaces.ase import from_ase
from jaxmlip.interfaces.extxyz import read_frames
from jaxmlip.potential import PER_ATOM, PER_STRUCTURE

KEYS = {
    name: f"REF_{name}"
    for name in (
        *("energy", "forces", "stress"),
        *("dipole", "polarizability", "charges", "born_charges"),
    )
}
UNITS = {  # label: {unit in the file: factor to ours}
    "energy": {"eV": 1.0, "Ha": u.hartree, "kcal/mol": u.kcal_mol, "kJ/mol": u.kJ_mol},
    "forces": {
        "eV/A": 1.0,
        "Ha/bohr": u.hartree / u.bohr,
        "kcal/mol/A": u.kcal_mol,
        "kJ/mol/A": u.kJ_mol,
    },
    "stress": {"eV/A3": 1.0, "GPa": u.GPa},
    "dipole": {"eA": 1.0, "D": u.debye, "e bohr": u.bohr},
    "polarizability": {
        "e2A2/eV": 1.0,
        "A3": 1 / u.coulomb_constant,
        "bohr3": u.bohr**3 / u.coulomb_constant,
    },
    "charges": {"e": 1.0},
    "born_charges": {"e": 1.0, "e field_first": 1.0},
}
VOIGT = [[0, 5, 4], [5, 1, 3], [4, 3, 2]]  # xx, yy, zz, yz, xz, xy


def read_labelled(
    path,
    cutoff: float,
    *,
    keys: dict | None = None,
    units: dict | None = None,
    needed=(),
    dtype=np.float32,
):
    """[(System, labels)] of every frame; labels are float64 with the shapes of a batch of one.

    keys: {label: key in the file}, added to the defaults REF_energy, REF_forces ...
    units: {label: unit in the file} where it is not the first of `UNITS`.
    needed: labels that at least one frame must have. Labels that no frame has are left out.
    """
    keys, units = KEYS | (keys or {}), units or {}
    _check_names("keys", keys, PER_ATOM | PER_STRUCTURE)
    _check_names("units", units, UNITS)
    for label, unit in units.items():
        _check_names(f"units.{label}", [unit], UNITS[label])
    frames = _frames(path)
    found = {label for label, key in keys.items() if any(_raw(f, key) is not None for f in frames)}
    _check_needed(frames, {label: keys[label] for label in needed}, found, path)
    out = []
    for i, frame in enumerate(frames):
        where = f"{path} frame {i}"
        read = lambda name, frame=frame, where=where: _label(frame, name, keys[name], where)
        labels = {name: _converted(read(name), name, units.get(name)) for name in sorted(found)}
        out.append((from_ase(frame, cutoff, dtype=dtype, where=where), labels))
    return out


def _check_names(where, names, known):
    for name in names:
        if name not in known:
            raise UsageError(
                f"unknown name '{name}'.{did_you_mean(name, sorted(known))}",
                where=where,
                fix=f"one of {', '.join(sorted(known))}",
            )


def _converted(value, name, unit):
    if unit is None:
        return value
    value = value * UNITS[name][unit]
    return value.swapaxes(-1, -2) if "field_first" in unit else value


def _frames(path):
    if not Path(path).is_file():
        raise DataError("no such file", where=str(path), fix="check the path", code="JM202")
    frames = read_frames(path)
    if not frames:
        raise DataError("the file has no frames", where=str(path), code="JM202")
    return frames


def _raw(frame, key):
    """The value as it stands in the file: never through a calculator, which applies constraints."""
    for place in (frame.arrays, frame.info, _results(frame)):
        if place.get(key) is not None:
            return place[key]
    return None


def _results(frame):
    """Where ASE puts keys of its own such as `energy`; the raw dict, not the methods over it."""
    return getattr(frame.calc, "results", {})


def _check_needed(frames, needed, found, path):
    missing = [label for label in needed if label not in found]
    if not missing:
        return
    present = Counter(key for f in frames for key in (*f.info, *f.arrays, *_results(f)))
    label = missing[0]
    counts = ", ".join(f"{key} ({n})" for key, n in present.most_common())
    raise DataError(
        f"no frame has '{needed[label]}', the {label} that the loss asks for."
        f"{did_you_mean(needed[label], present)} Keys in {len(frames)} frames: {counts}",
        where=str(path),
        code="JM220",
        fix=f"name the right key (data: keys: {label}: ...) or give {label} no weight",
    )


def _label(frame, name, key, where):
    per_atom = name in PER_ATOM
    shape = (len(frame), *PER_ATOM[name]) if per_atom else (1, *PER_STRUCTURE[name])
    raw = _raw(frame, key)
    if raw is None:
        return np.full(shape, np.nan)
    try:
        value = np.asarray(raw, np.float64)
    except (TypeError, ValueError) as error:
        raise DataError(f"'{key}' is not numeric: {raw!r}", where=where, code="JM221") from error
    value = _shaped(value, shape, name, key, where)
    if not np.isfinite(value).all():
        first = tuple(int(i) for i in np.argwhere(~np.isfinite(value))[0])
        raise DataError(
            f"'{key}' is not finite: {value[first]} at {list(first)}",
            where=where,
            code="JM222",
            fix="remove the frame, or leave the label out of it",
        )
    if name == "stress":
        _check_stress(value[0], frame, key, where)
    return value


def _shaped(value, shape, name, key, where):
    if name in ("stress", "polarizability") and value.shape == (6,):
        value = value[VOIGT]
    if name in ("stress", "polarizability", "born_charges") and value.size == np.prod(shape):
        return value.reshape(shape)
    elif value.size == np.prod(shape) and value.squeeze().shape == np.empty(shape).squeeze().shape:
        return value.reshape(shape)
    raise DataError(
        f"'{key}' has shape {value.shape}, expected that of {name}, "
        f"{shape if name in PER_ATOM else shape[1:]}",
        where=where,
        code="JM221",
        fix="3x3 and Voigt order xx, yy, zz, yz, xz, xy are read for tensors",
    )


def _check_stress(stress, frame, key, where):
    if not frame.pbc.any():
        raise DataError(
            f"'{key}' is given for a structure without a periodic axis",
            where=where,
            code="JM224",
            fix="set pbc, or remove the stress of molecules",
        )
    asymmetry = np.abs(stress - stress.T).max()
    if asymmetry > 1e-3 * np.abs(stress).max():
        raise DataError(
            f"'{key}' is not symmetric: {stress.tolist()} differs from its transpose "
            f"by {asymmetry:.2e}, limit 0.1 %",
            where=where,
            code="JM223",
        )
