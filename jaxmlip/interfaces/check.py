"""Checks at the door: what ASE lets pass and no calculation could mean.

Each raises `DataError` that names the place (`where`), the atom, the value and the limit.
"""

import numpy as np

from jaxmlip.errors import DataError

CLOSEST = 0.3  # Å; two atoms nearer than this are a mistake in the file, not chemistry


def check_structure(atoms, *, where: str = "") -> None:
    """NaN or infinite positions or cell, zero or flat periodic cell, coincident atoms."""
    _check_positions(atoms, where)
    _check_cell(atoms, where)
    _check_distances(atoms, where)


def _check_positions(atoms, where):
    bad = np.flatnonzero(~np.isfinite(atoms.positions).all(axis=1))
    if len(bad):
        i = int(bad[0])
        raise DataError(f"atom {i} ({atoms.symbols[i]}) has the position "
                        f"{atoms.positions[i].tolist()}; {len(bad)} atom(s) are not finite",
                        where=where, code="JM203", fix="mend the coordinates in the file")
    unknown = np.flatnonzero((atoms.numbers < 1) | (atoms.numbers > 118))
    if len(unknown):
        i = int(unknown[0])
        raise DataError(f"atom {i} has atomic number {atoms.numbers[i]}, expected 1 to 118",
                        where=where, code="JM201")


def _check_cell(atoms, where):
    cell, pbc = np.asarray(atoms.cell), np.asarray(atoms.pbc)
    if not np.isfinite(cell).all():
        raise DataError(f"the cell is not finite: {cell.tolist()}", where=where, code="JM210")
    for axis in np.flatnonzero(pbc):
        if np.linalg.norm(cell[axis]) < 1e-6:
            raise DataError(f"periodic along axis {axis}, but that cell vector is zero",
                            where=where, code="JM210",
                            fix="give the cell, or set pbc to False for a molecule")
    if pbc.any():
        volume = abs(np.linalg.det(np.asarray(atoms.cell.complete())))
        if volume < 1e-6:
            raise DataError(f"the cell is flat: volume {volume:.1e} Å³, expected above 1e-6",
                            where=where, code="JM210", fix="give three independent cell vectors")


def _check_distances(atoms, where):
    from jaxmlip.neighbors import neighbor_pairs

    cell = np.asarray(atoms.cell.complete())
    i, j, shifts = neighbor_pairs(atoms.positions, cell, atoms.pbc, CLOSEST)
    if len(i):
        vectors = atoms.positions[j] + shifts @ cell - atoms.positions[i]
        distances = np.linalg.norm(vectors, axis=1)
        n = int(distances.argmin())
        a, b = int(i[n]), int(j[n])
        raise DataError(
            f"atoms {a} ({atoms.symbols[a]}) and {b} ({atoms.symbols[b]}) are "
            f"{distances[n]:.3f} Å apart, expected more than {CLOSEST} Å",
            where=where, code="JM208", fix="remove the duplicate atom or mend its coordinates")
