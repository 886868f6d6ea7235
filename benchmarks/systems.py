"""The structures of the benchmarks, by name; needs nothing but ASE and numpy.

`ethanol`, `aspirin`, `water192` and `si64`, `si1000`, `cu108` ...: the number is that of the atoms,
and for silicon and copper any whole number of cubic cells will do. All are rattled, with fixed
seeds, so that no force is zero by symmetry; every environment makes the same positions.
"""

import re
from pathlib import Path

import numpy as np

ELEMENTS = [1, 6, 8, 14, 29]  # every model of the benchmarks knows these
DT, KELVIN, FRICTION = 0.5, 300.0, 0.01  # fs, K, 1/fs: of engines
EVERY = 10  # steps between frames
FAINT = 0.1  # eV/Å, the largest force of random weights in an engine, which must not heat
LATTICES = {"si": ("Si", "diamond", 5.43, 8), "cu": ("Cu", "fcc", 3.61, 4)}


def structure(name):
    """ASE atoms; raises `ValueError` for a name that is no structure of the benchmarks."""
    if name in MOLECULES:
        return rattled(MOLECULES[name](), 0.02)
    match = re.fullmatch(r"(si|cu|water)([1-9]\d*)", name)
    if match is None:
        raise ValueError(f"unknown system {name!r}: ethanol, aspirin, water192, si64, cu108 ...")
    kind, n = match[1], int(match[2])
    return water(n) if kind == "water" else rattled(crystal(kind, n), 0.05)


def ethanol():
    from ase.build import molecule

    return molecule("CH3CH2OH")


def aspirin():
    from ase.io import read

    return read(Path(__file__).parent / "aspirin.xyz")


def quartz():
    """Alpha-quartz at the lattice of experiment."""
    from ase.io import read

    return read(Path(__file__).parent.parent / "examples" / "silica" / "quartz.cif")


MOLECULES = {"ethanol": ethanol, "aspirin": aspirin}


def rattled(atoms, size):
    atoms.rattle(size, seed=0)
    return atoms


def crystal(kind, n_atoms):
    from ase.build import bulk

    symbol, lattice, a, per_cell = LATTICES[kind]
    if n_atoms % per_cell:
        raise ValueError(f"{kind}{n_atoms}: the cubic cell has {per_cell} atoms")
    return bulk(symbol, lattice, a=a, cubic=True).repeat(edges_of_box(n_atoms // per_cell))


def edges_of_box(n):
    """Three factors of n, as equal as can be."""
    boxes = [
        (a, b, n // (a * b))
        for a in range(1, round(n ** (1 / 3)) + 1)
        if n % a == 0
        for b in range(a, int((n / a) ** 0.5 + 1e-9) + 1)
        if n // a % b == 0
    ]
    return min(boxes, key=lambda box: box[2] - box[0])


def water(n_atoms, density=0.997):
    """Molecules turned at random on the sites of a cubic lattice, at the density of the liquid."""
    from ase import Atoms
    from ase.build import molecule

    n = round((n_atoms / 3) ** (1 / 3))
    if 3 * n**3 != n_atoms:
        raise ValueError(f"water{n_atoms}: three times a cube is needed, 24, 81, 192, 375 ...")
    rng = np.random.default_rng(1)
    length = (n**3 * 18.01528 / 6.02214076e23 / density) ** (1 / 3) * 1e8  # Å
    one = molecule("H2O")
    one.positions -= one.get_center_of_mass()
    out = Atoms(cell=[length] * 3, pbc=True)
    for site in np.ndindex(n, n, n):
        turn, _ = np.linalg.qr(rng.normal(size=(3, 3)))
        turned = one.copy()
        turned.positions = turned.positions @ turn.T + (np.array(site) + 0.5) * length / n
        out += turned
    return out


def labelled_copies(atoms, n=5):
    """(n rattled copies, energies [n], forces [all atoms, 3]): something to train on."""
    rng = np.random.default_rng(0)
    copies = [atoms.copy() for _ in range(n)]
    for copy in copies:
        copy.positions += rng.normal(scale=0.05, size=copy.positions.shape)
    return copies, rng.normal(size=n), rng.normal(size=(n * len(atoms), 3))
