"""Which atoms a command means: held by a constraint, named on the command line, other isotopes."""

import numpy as np

from jaxmlip.errors import DataError, UsageError


def held(atoms, where: str):
    """[n_atoms] True for atoms held by FixAtoms, or None; other constraints are refused."""
    from ase.constraints import FixAtoms

    if not atoms.constraints:
        return None
    fixed = np.zeros(len(atoms), bool)
    for constraint in atoms.constraints:
        if not isinstance(constraint, FixAtoms):
            raise DataError(
                f"constraint {type(constraint).__name__} is not known here",
                where=where,
                code="JM215",
                fix="FixAtoms, or no constraints",
            )
        fixed[constraint.index] = True
    return fixed


def numbered(text: str, n_atoms: int, option: str):
    """Indices of atoms from "0 2 5-8" (counted from 0, commas allowed, ends included)."""
    found = []
    for word in text.replace(",", " ").split():
        first, _, last = word.partition("-")
        if not (first.isdecimal() and (last or first).isdecimal()):
            raise UsageError(f"'{word}' names no atoms", where=option, fix='as in "0 2 5-8"')
        found += range(int(first), int(last or first) + 1)
    outside = [i for i in found if i >= n_atoms]
    if outside or not found:
        what = f"there is no atom {outside[0]}" if outside else "no atoms are named"
        raise UsageError(what, where=option, fix=f"0 to {n_atoms - 1}")
    return np.unique(found)


def held_atoms(atoms, chosen: str | None, where: str):
    """[n_atoms] True for atoms that are held: by the file, or all but those chosen; or None."""
    fixed = held(atoms, where)
    if chosen is not None:
        free = numbered(chosen, len(atoms), "--atoms")
        fixed = np.zeros(len(atoms), bool) if fixed is None else fixed
        fixed |= ~np.isin(np.arange(len(atoms)), free)
    if fixed is not None and fixed.all():
        raise UsageError("all atoms are held: there is nothing to vibrate", where="--atoms")
    return fixed


def with_isotopes(atoms, isotopes):
    """A copy with the masses of isotopes, from "H=2" (every hydrogen) or "3=2" (atom 3)."""
    from jaxmlip.vibrations.molecules.isotopes import isotope_mass

    atoms = atoms.copy()
    masses = atoms.get_masses()
    for text in isotopes or ():
        who, _, number = text.partition("=")
        if not number.isdecimal():
            raise UsageError(f"'{text}' names no isotope", where="--isotope", fix="H=2, or 3=2")
        which = [i for i, s in enumerate(atoms.symbols) if s == who]
        if who.isdecimal():
            which = list(numbered(who, len(atoms), "--isotope"))
        if not which:
            raise UsageError(f"there is no atom '{who}'", where="--isotope", fix="H=2, or 3=2")
        for i in which:
            masses[i] = isotope_mass(int(atoms.numbers[i]), int(number))
    atoms.set_masses(masses)
    return atoms
