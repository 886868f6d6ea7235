"""Which device owns which atom: nested equal shares along the three axes of the cell (host, numpy).

Atoms are cut into shares of equal number along the first axis, each share along the second, each
of those along the third. Every domain thus has the same number of atoms (within one) in crystals,
slabs, droplets and single molecules alike, and domains are boxes that follow the density.
"""

import numpy as np

from jaxmlip.system import System


def choose_grid(system: System, n_domains: int) -> tuple[int, int, int]:
    """Domains along each axis of the cell, with the least area of cuts; their product is n_domains.

    Extents are the height of the cell along periodic axes and the spread of the atoms along open
    ones. A batch of several structures is cut along its list of atoms only.
    """
    if system.n_graphs > 1:
        return (n_domains, 1, 1)
    extents, periodic = _extents(system), np.asarray(system.pbc)[0]

    def area(grid):
        cuts = np.where(periodic & (np.array(grid) > 1), grid, np.array(grid) - 1)
        return float((cuts / extents).sum())

    return min(_factorisations(n_domains), key=area)


def domains_of(system: System, grid: tuple[int, int, int]) -> np.ndarray:
    """Domain of each atom, [n_atoms]; the last grid axis runs fastest. Padding atoms get -1."""
    real = np.flatnonzero(np.asarray(system.numbers) > 0)
    coordinates = _coordinates(system)[real]
    shares = [np.arange(len(real))]
    for axis, n in enumerate(grid):
        shares = [part for share in shares for part in _cut(share, coordinates[:, axis], n)]
    owner = np.full(system.n_atoms, -1)
    for domain, share in enumerate(shares):
        owner[real[share]] = domain
    return owner


def _cut(share, coordinates, n):
    order = np.argsort(coordinates[share], kind="stable")
    return [np.sort(part) for part in np.array_split(share[order], n)]


def _coordinates(system):
    """[n_atoms, 3] along the cell vectors, wrapped where periodic; for a batch the atom's row.

    Rounded: atoms of one crystal plane must not be told apart by the last digit.
    """
    if system.n_graphs > 1:
        return np.repeat(np.arange(system.n_atoms, dtype=float)[:, None], 3, 1)
    periodic = np.asarray(system.pbc)[0]
    fractional = np.asarray(system.positions, float) @ np.linalg.inv(_cell(system))
    fractional = np.round(fractional, 6)
    return np.where(periodic, fractional % 1, fractional)


def _extents(system):
    cell = _cell(system)
    heights = 1 / np.linalg.norm(np.linalg.inv(cell), axis=0)
    real = np.asarray(system.numbers) > 0
    spread = np.ptp(_coordinates(system)[real], axis=0)
    return np.where(np.asarray(system.pbc)[0], heights, np.maximum(spread * heights, 1e-3))


def _cell(system):
    return np.asarray(system.cell, float)[0]


def _factorisations(n):
    divisors = [d for d in range(1, n + 1) if n % d == 0]
    return [(a, b, n // (a * b)) for a in divisors for b in divisors if n % (a * b) == 0]
