"""Displaced geometries around a minimum: vibrations, noise, stretched bonds, turned bonds, pairs.

Pure geometry: nothing here computes an energy.
"""

import numpy as np
from ase import units
from ase.data import covalent_radii
from scipy.spatial.transform import Rotation

HBAR = units._hbar * units.J * units.second
TEMPERATURES = (50, 300, 300, 600, 1000)
LOWEST = 100 * units.invcm


def rigid_motions(atoms):
    """Mass-weighted translations and rotations as orthonormal columns (5 if linear)."""
    roots = np.sqrt(atoms.get_masses())[:, None]
    centred = atoms.positions - atoms.get_center_of_mass()
    moves = [np.tile(axis, (len(atoms), 1)) for axis in np.eye(3)]
    moves += [np.cross(axis, centred) for axis in np.eye(3)]
    columns = np.array([(roots * move).ravel() for move in moves]).T
    vectors, sizes, _ = np.linalg.svd(columns, full_matrices=False)
    return vectors[:, sizes > 1e-2 * sizes[0]]


def normal_modes(atoms, hessian):
    """Quanta (eV, floored) and mass-weighted vectors (columns) of the vibrations alone."""
    roots = np.repeat(np.sqrt(atoms.get_masses()), 3)
    rigid = rigid_motions(atoms)
    keep = np.eye(len(roots)) - rigid @ rigid.T
    values, vectors = np.linalg.eigh(keep @ (hessian / np.outer(roots, roots)) @ keep)
    inside = np.linalg.norm(rigid.T @ vectors, axis=0) < 0.5
    quanta = HBAR * np.sqrt(abs(values[inside]))
    return np.maximum(quanta, LOWEST), vectors[:, inside]


def mode_displacement(atoms, modes, rng):
    """One draw from a harmonic ensemble, classical or quantum, at a random temperature."""
    quanta, vectors = modes
    kt = units.kB * rng.choice(TEMPERATURES)
    quantum = quanta / 2 / np.tanh(quanta / (2 * kt))
    energy = quantum if rng.random() < 0.5 else kt
    widths = HBAR * np.sqrt(energy) / quanta
    move = vectors @ (widths * rng.normal(size=len(quanta)))
    return move.reshape(-1, 3) / np.sqrt(atoms.get_masses())[:, None]


def sound(atoms, shortest=0.6):
    """No two atoms closer than a fraction of the sum of their covalent radii."""
    radii = covalent_radii[atoms.numbers]
    distances = atoms.get_all_distances() + 10 * np.eye(len(atoms))
    return bool((distances > shortest * (radii[:, None] + radii)).all())


def far_side(mol, bond):
    """Atoms that move with the end of an open-chain bond when its start is held."""
    start, end = bond.GetBeginAtomIdx(), bond.GetEndAtomIdx()
    side, todo = {end}, [end]
    while todo:
        near = {a.GetIdx() for a in mol.GetAtomWithIdx(todo.pop()).GetNeighbors()}
        fresh = near - side - {start}
        side |= fresh
        todo += fresh
    return start, end, sorted(side)


def open_bonds(mol, torsion=False):
    """Bonds outside rings; for torsions, single ones with something on both ends to turn."""
    bonds = [bond for bond in mol.GetBonds() if not bond.IsInRing()]
    ends = [(b, b.GetBeginAtom().GetDegree(), b.GetEndAtom().GetDegree()) for b in bonds]
    return [b for b, i, j in ends if not torsion or (i > 1 < j and b.GetBondTypeAsDouble() == 1)]


def stretched(atoms, mol, rng):
    """One open-chain bond pressed or pulled to 0.85-1.5 of its length, or None."""
    bonds = open_bonds(mol)
    if not bonds:
        return None
    start, end, side = far_side(mol, bonds[rng.integers(len(bonds))])
    new = atoms.copy()
    bond = atoms.positions[end] - atoms.positions[start]
    new.positions[side] += (rng.uniform(0.85, 1.5) - 1) * bond
    return new


def turned(atoms, mol, rng):
    """One single bond turned by a random angle, or None."""
    bonds = open_bonds(mol, torsion=True)
    if not bonds:
        return None
    start, end, side = far_side(mol, bonds[rng.integers(len(bonds))])
    origin = atoms.positions[start]
    axis = atoms.positions[end] - origin
    turn = Rotation.from_rotvec(axis / np.linalg.norm(axis) * rng.uniform(0, 2 * np.pi))
    new = atoms.copy()
    new.positions[side] = turn.apply(atoms.positions[side] - origin) + origin
    return new


def jittered(atoms, rng, low=0.01, high=0.05):
    """Independent noise on every coordinate, its size drawn first."""
    new = atoms.copy()
    new.positions += rng.normal(scale=rng.uniform(low, high), size=new.positions.shape)
    return new


def paired(first, second, contact, rng):
    """Two molecules, turned at random, pushed apart to `contact` between their closest atoms."""
    left, right = first.copy(), second.copy()
    for part in (left, right):
        turn = Rotation.random(random_state=rng)
        part.positions = turn.apply(part.positions - part.positions.mean(0))
    direction = rng.normal(size=3)
    direction /= np.linalg.norm(direction)
    for distance in np.arange(0, 20, 0.02):
        moved = right.positions + distance * direction
        gaps = np.linalg.norm(left.positions[:, None] - moved, axis=-1)
        if gaps.min() >= contact and distance > 1.5:
            break
    right.positions = moved
    return left + right
