"""Dynamical matrices from the columns that symmetry leaves.

An operation that takes q to itself, or to -q, which time reversal undoes, takes columns of D(q)
to columns of the same D(q): U D U^+ = D, or its conjugate, with U as in `grids.rotated`.
So one atom of each set of equivalent ones moves, along the fewest directions whose images span
space: one column where lines of high symmetry ask for 3 n.
"""

from collections.abc import Callable

import jax
import numpy as np

from jaxmlip.derivatives.bloch.matrix import bloch_columns, checked
from jaxmlip.errors import NumericalError
from jaxmlip.interfaces.phonons.symmetry import Symmetry, displacement_directions, operations

SAME = 1e-8  # of a fraction of the reciprocal cell


def symmetric_matrices(
    apply, params, system, group: Symmetry, *, tolerance: float = 0.0
) -> Callable:
    """q [n_q, 3] -> D [n_q, 3n, 3n] eV/Å² of a potential; one program for all q.

    group: of the crystal, whose positions must have it to the accuracy wanted. Columns are taken
    one at a time, which costs nothing on CPUs and needs the least memory. tolerance: share of
    max |D| to which the potential itself has the symmetry, that of its long-range sums; rotated
    columns make D(q) Hermitian to that alone, and the Hermitian part is returned. Raises
    `NumericalError` JM301 where it is off by more.
    """
    checked(system, np.zeros((1, 3)))
    columns, n = jax.jit(bloch_columns(apply)), group.permutations.shape[1]  # no padding
    dtype, few = np.dtype(jax.numpy.result_type(system.positions)), {}

    def one(q):
        little, reverses = little_group(group, q)
        name = little.rotations.tobytes()  # all q of a line have the same
        atoms, directions = few[name] = few.get(name) or _displacements(little)
        vectors = np.zeros((3 * n, *np.shape(system.positions)), dtype)
        vectors[np.arange(len(atoms)), atoms] = directions
        images = np.asarray(columns(params, system, q.astype(dtype), vectors, len(atoms)))
        flat = lambda x: x[: len(atoms), :n].reshape(len(atoms), -1).astype(np.complex128)
        D = _from_columns(little, reverses, q, flat(vectors), flat(images))
        return _hermitian(D, q, tolerance) if tolerance else D

    return lambda q: np.stack([one(x) for x in np.reshape(np.asarray(q, float), (-1, 3))])


def little_group(group: Symmetry, q) -> tuple[Symmetry, np.ndarray]:
    """The operations that take q to itself or to -q (up to whole numbers); which of them to -q."""
    after = q @ group.inverses
    whole = lambda x: np.abs(x - np.rint(x)).max(1) < SAME
    same, reversed_ = whole(after - q), whole(after + q)
    chosen = np.flatnonzero(same | reversed_)
    return operations(group, chosen), ~same[chosen]


def _displacements(little):
    """(atoms [m], directions [m, 3]): the fewest whose images span all displacements."""
    sets = [displacement_directions(little, atom) for atom in little.irreducible]
    return np.repeat(little.irreducible, [len(d) for d in sets]), np.concatenate(sets)


def _from_columns(little, reverses, q, vectors, images):
    """D(q) [3n, 3n] from D(q) u = images [m, 3n] of vectors [m, 3n]."""
    u, y = (_turned(little, reverses, q, x) for x in (vectors, images))
    return np.linalg.solve(u.conj().T @ u, u.conj().T @ y).T


def _hermitian(D, q, tolerance):
    apart, largest = np.abs(D - D.conj().T).max(), np.abs(D).max()
    if apart > tolerance * largest:
        raise NumericalError(
            f"columns by symmetry make D(q) Hermitian to {apart / largest:.2g} of max |D| at "
            f"q = {np.round(q, 4).tolist()}, limit {tolerance:g}, the tolerance of the "
            "long-range sums",
            code="JM301",
            fix="a smaller tolerance of the sums in the model card; relax without --no-relax",
        )
    return (D + D.conj().T) / 2


def _turned(little, reverses, q, vectors):
    """The images [n_ops m, 3n] of displacement waves under each operation."""
    after = q @ little.inverses
    phase = np.exp(-2j * np.pi * np.einsum("oj,oaj->oa", after, little.shifts))
    parts = vectors.reshape(len(vectors), -1, 3)
    moved = np.einsum("oij,maj->omai", little.cartesian, parts) * phase[:, None, :, None]
    out = np.empty_like(moved)
    o, m = np.ogrid[: len(moved), : len(parts)]
    out[o[..., None], m[..., None], little.permutations[:, None]] = moved
    out[reverses] = out[reverses].conj()
    return out.reshape(-1, vectors.shape[1])
