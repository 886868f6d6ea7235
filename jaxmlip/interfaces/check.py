"""Checks at the door: what ASE lets pass and no calculation could mean.

Each raises `DataError` (`ModelError` for elements that a model has not seen) that names the place
(`where`), the atom, the value and the limit. Atoms count from 0, as in ASE.
"""

import numpy as np
from ase.data import atomic_numbers, chemical_symbols

from jaxmlip.errors import DataError, ModelError

CLOSEST = 0.3  # Å; two atoms nearer than this are a mistake in the file, not chemistry
FLATTEST = 0.1  # Å; lattice planes nearer than this are a flat cell
FARTHEST = 1e4  # Å; a mistake, and from 3e4 on the neighbour search (vesin) ends the process


def check_structure(atoms, *, where: str = "") -> None:
    """Refuses no atoms, wild or coincident positions, a flat cell, a bad charge, spin or field."""
    if len(atoms) == 0:
        raise DataError("the structure has no atoms", where=where, code="JM202")
    _check_positions(atoms, where)
    _check_cell(atoms, where)
    _check_distances(atoms, where)
    _check_info(atoms, where)


def check_elements(numbers, elements, *, model: str, where: str = "") -> None:
    """Raises `ModelError` if a structure has elements that the model does not know.

    numbers [n_atoms]; elements: those of the model, as symbols or atomic numbers.
    """
    known = {atomic_numbers[e] if isinstance(e, str) else int(e) for e in elements}
    numbers = np.asarray(numbers)
    unknown = sorted(set(numbers.tolist()) - known - {0})
    if not unknown:
        return
    found = "; ".join(
        f"{chemical_symbols[z]} ({_atoms_at(np.flatnonzero(numbers == z))})" for z in unknown
    )
    names = ", ".join(chemical_symbols[z] for z in sorted(known))
    raise ModelError(
        f"model '{model}' knows {names}; structure has {found}",
        where=where,
        code="JM507",
        fix="choose a model that was trained on these elements",
    )


def _atoms_at(indices) -> str:
    """'atom 3', 'atoms 0-11', 'atoms 0-3, 7': runs of indices."""
    runs = np.split(indices, np.flatnonzero(np.diff(indices) > 1) + 1)
    text = [f"{r[0]}" if len(r) == 1 else f"{r[0]}-{r[-1]}" for r in runs]
    more = f" and {len(text) - 5} more runs" if len(text) > 5 else ""
    return f"atom{'s' if len(indices) > 1 else ''} {', '.join(text[:5])}{more}"


def _check_positions(atoms, where):
    bad = np.flatnonzero(~np.isfinite(atoms.positions).all(axis=1))
    if len(bad):
        i = int(bad[0])
        raise DataError(
            f"atom {i} ({atoms.symbols[i]}) has the position "
            f"{atoms.positions[i].tolist()}; {len(bad)} atom(s) are not finite",
            where=where,
            code="JM203",
            fix="mend the coordinates in the file",
        )
    unknown = np.flatnonzero((atoms.numbers < 1) | (atoms.numbers > 118))
    if len(unknown):
        i = int(unknown[0])
        raise DataError(
            f"atom {i} has atomic number {atoms.numbers[i]}, expected 1 to 118",
            where=where,
            code="JM201",
            fix="name its element, or remove dummy atoms",
        )
    far = np.abs(atoms.positions).max(axis=1)
    if far.max() > FARTHEST:
        i = int(far.argmax())
        raise DataError(
            f"atom {i} ({atoms.symbols[i]}) is {far[i]:.1e} Å from the origin, "
            f"expected less than {FARTHEST:.0e} Å",
            where=where,
            code="JM203",
            fix="are the coordinates in Å?",
        )


def _check_cell(atoms, where):
    cell, pbc = np.asarray(atoms.cell), np.asarray(atoms.pbc)
    if not np.isfinite(cell).all():
        raise DataError(f"the cell is not finite: {cell.tolist()}", where=where, code="JM210")
    longest = np.abs(cell).max()
    if longest > FARTHEST:
        raise DataError(
            f"a cell vector is {longest:.1e} Å long, expected less than {FARTHEST:.0e} Å",
            where=where,
            code="JM210",
            fix="is the cell in Å?",
        )
    for axis in np.flatnonzero(pbc):
        if np.linalg.norm(cell[axis]) < 1e-6:
            raise DataError(
                f"periodic along axis {axis}, but that cell vector is zero",
                where=where,
                code="JM210",
                fix="give the cell, or set pbc to False for a molecule",
            )
    if pbc.any():
        spacing = _plane_spacings(np.asarray(atoms.cell.complete()))
        if spacing.min() < FLATTEST:
            raise DataError(
                f"the cell is flat: its planes are {spacing.min():.1e} Å apart along "
                f"axis {spacing.argmin()}, expected above {FLATTEST} Å",
                where=where,
                code="JM210",
                fix="give three independent cell vectors",
            )


def _plane_spacings(cell):
    """Distances between lattice planes, [3], Å: the volume over the areas of the faces."""
    areas = [np.linalg.norm(np.cross(cell[(i + 1) % 3], cell[(i + 2) % 3])) for i in range(3)]
    return abs(np.linalg.det(cell)) / np.maximum(areas, 1e-30)


def _check_distances(atoms, where):
    from jaxmlip.neighbors import neighbor_pairs

    cell = np.asarray(atoms.cell.complete())
    i, j, shifts = neighbor_pairs(atoms.positions, cell, atoms.pbc, CLOSEST)
    if len(i):
        vectors = atoms.positions[j] + shifts @ cell - atoms.positions[i]
        distances = np.linalg.norm(vectors, axis=1)
        n = int(distances.argmin())
        a, b = sorted((int(i[n]), int(j[n])))
        image = " (across the periodic boundary)" if shifts[n].any() else ""
        raise DataError(
            f"atoms {a} ({atoms.symbols[a]}) and {b} ({atoms.symbols[b]}) are "
            f"{distances[n]:.3f} Å apart{image}, expected more than {CLOSEST} Å",
            where=where,
            code="JM208",
            fix="remove the duplicate atom or mend its coordinates",
        )


def _check_info(atoms, where):
    """Charge (e), spin multiplicity and field (V/Å) are taken from atoms.info."""
    for name, default, size in (("charge", 0.0, 1), ("spin", 1, 1), ("field", np.zeros(3), 3)):
        value = atoms.info.get(name, default)
        try:
            numbers = np.asarray(value, float)
        except (TypeError, ValueError):
            numbers = np.array([])
        if numbers.size != size or not np.isfinite(numbers).all():
            raise DataError(
                f"info['{name}'] is {value!r}, expected {size} finite number(s)",
                where=where,
                code="JM213",
            )
        if name == "spin" and numbers < 1:
            raise DataError(
                f"info['spin'] is {value!r}; the multiplicity 2S+1 is at least 1",
                where=where,
                code="JM213",
                fix="1 for a singlet, 2 for a doublet",
            )
