"""Structures made of structures, for audits: turned, strained, cut down to pairs (host, numpy)."""

from dataclasses import replace

import numpy as np

from jaxmlip.system import System


def random_rotation(rng):
    """A rotation [3, 3], all equally likely (QR of normal numbers, signs fixed)."""
    Q, R = np.linalg.qr(rng.normal(size=(3, 3)))
    Q = Q * np.sign(np.diag(R))
    return Q * np.sign(np.linalg.det(Q))


def rotated(system: System, Q) -> System:
    """The structure turned by an orthogonal Q [3, 3]; a cell that it mirrors stays right-handed."""
    cell, order = system.cell[0] @ Q.T, [0, 1, 2]
    if np.linalg.det(cell) * np.linalg.det(system.cell[0]) < 0:
        order = [1, 0, 2]
    return replace(
        system,
        positions=system.positions @ Q.T,
        cell=cell[order][None],
        pbc=system.pbc[:, order],
        field=system.field @ Q.T,
    )


def strained(system: System, e) -> System:
    """r -> r (1 + e), cell alike; e [3, 3]."""
    F = np.eye(3) + e
    return replace(system, positions=system.positions @ F, cell=system.cell @ F)


def at_positions(system: System, positions) -> System:
    """The structure with its atoms elsewhere, [n_atoms, 3] Å."""
    return replace(system, positions=positions)


def molecule(like: System, numbers, positions) -> System:
    """A neutral molecule in no field, in arrays of the types of `like`."""
    return replace(
        like,
        numbers=np.asarray(numbers, like.numbers.dtype),
        positions=np.asarray(positions, float),
        graph=np.zeros(len(numbers), like.graph.dtype),
        cell=np.eye(3)[None],
        pbc=np.zeros((1, 3), bool),
        charge=np.zeros(1),
        spin=np.ones(1),
        field=np.zeros((1, 3)),
    )


def dimer(like: System, pair, r) -> System:
    """Two atoms (a pair of atomic numbers) r Å apart, along no axis."""
    return molecule(like, pair, [[0, 0, 0], [0.6 * r, 0, 0.8 * r]])


def twice(system: System, apart: float) -> System:
    """Two copies of a molecule, the second `apart` Å along x; each with its charge."""
    both = np.concatenate([system.positions, system.positions + [apart, 0, 0]])
    both_of = molecule(system, np.tile(system.numbers, 2), both)
    return replace(both_of, charge=2 * system.charge, field=system.field)
