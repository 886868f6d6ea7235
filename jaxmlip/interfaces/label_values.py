"""The value of one label as it stands in a frame: found, shaped, checked, converted to our unit.

`UNITS` are those that a file can have; a minus before the unit flips the sign. `field_first` is the
other layout of Born charges, [n_atoms, cartesian of the field, cartesian of the atom].
"""

import numpy as np

from jaxmlip import units as u
from jaxmlip.errors import DataError
from jaxmlip.potential import PER_ATOM, PER_STRUCTURE

UNITS = {  # label: {unit in the file: factor to ours}
    "energy": {
        **{"eV": 1.0, "Ha": u.hartree, "Ry": u.hartree / 2},
        **{"kcal/mol": u.kcal_mol, "kJ/mol": u.kJ_mol},
    },
    "forces": {
        **{"eV/A": 1.0, "Ha/bohr": u.hartree / u.bohr, "Ry/bohr": u.hartree / u.bohr / 2},
        **{"kcal/mol/A": u.kcal_mol, "kJ/mol/A": u.kJ_mol, "eV/bohr": 1 / u.bohr},
    },
    "stress": {
        **{"eV/A3": 1.0, "GPa": u.GPa, "kbar": u.GPa / 10, "Ha/bohr3": u.hartree / u.bohr**3},
        "eV virial": 1.0,
    },
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
ASYMMETRY = 1e-3, 1e-5  # of a stress: share of the largest, and eV/Å³ (rounding of small ones)


def raw_label(frame, key):
    """The value as it stands in the file: never through a calculator, which applies constraints."""
    for place in (frame.arrays, frame.info, results_of(frame)):
        if place.get(key) is not None:
            return place[key]
    return None


def results_of(frame):
    """Where ASE puts keys of its own such as `energy`; the raw dict, not the methods over it."""
    return getattr(frame.calc, "results", {})


def shape_of(name, n_atoms):
    return (n_atoms, *PER_ATOM[name]) if name in PER_ATOM else (1, *PER_STRUCTURE[name])


def label_value(frame, name, key, raw, unit, where):
    """The raw value as float64 of the shape of a batch of one, in our unit. Raises `DataError`."""
    shape = shape_of(name, len(frame))
    try:
        value = np.asarray(raw, np.float64)
    except (TypeError, ValueError) as error:
        raise DataError(f"'{key}' is not numeric: {raw!r}", where=where, code="JM221") from error
    value = shaped_label(value, shape, name, key, where)
    if not np.isfinite(value).all():
        first = tuple(int(i) for i in np.argwhere(~np.isfinite(value))[0])
        raise DataError(
            f"'{key}' is not finite: {value[first]} at {list(first)}",
            where=where,
            code="JM222",
            fix="remove the frame, or leave the label out of it",
        )
    if name.startswith("weight") and value[0] < 0:
        raise DataError(f"'{key}' is {value[0]:g}, below 0", where=where, code="JM228")
    value = _converted(value, name, unit, frame)
    if name == "stress":
        _check_stress(value[0], frame, key, where)
    return value


def _converted(value, name, unit, frame):
    if unit is None:
        return value
    bare = unit.removeprefix("-")
    value = value * UNITS[name][bare] * (-1 if unit.startswith("-") else 1)
    if bare == "eV virial":
        return -value / abs(np.linalg.det(np.asarray(frame.cell.complete())))
    return value.swapaxes(-1, -2) if "field_first" in bare else value


def shaped_label(value, shape, name, key, where):
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
    if asymmetry > max(ASYMMETRY[0] * np.abs(stress).max(), ASYMMETRY[1]):
        raise DataError(
            f"'{key}' is not symmetric: {stress.tolist()} eV/Å³ differs from its transpose "
            f"by {asymmetry:.2e}, limit 0.1 % and {ASYMMETRY[1]:g}",
            where=where,
            code="JM223",
        )
