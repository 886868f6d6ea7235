"""Supercell force constants by automatic differentiation, and the D(q) that they give.

    constants = force_constants(apply, cutoff, repeats=(4, 4, 4), group=group)(params, system)
    matrices = fourier_sum(constants)                      # matrices(q): [n_q, 3n, 3n], eV/Å²

The energy of the supercell is differentiated along displacements of one primitive cell, 3 n columns
instead of 3 n N; all other rows are these, translated. With a symmetry group only inequivalent
atoms move, along as few directions as their site needs, and the rest follows by rotation.

D(q) is exact where q belongs to the supercell. Between such points it is that of force constants
that end where the supercell ends: `derivatives.dynamical_matrix` has no such limit.
"""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np

from jaxmlip.derivatives.second.hessian import chunk_memory, gradient_at, in_chunks, rows_at_once
from jaxmlip.errors import NumericalError, UsageError
from jaxmlip.interfaces.phonons.phonopy_files import ForceConstants, column_of, standard_masses
from jaxmlip.interfaces.phonons.symmetry import (
    Symmetry,
    displacement_directions,
    operations,
    site_symmetry,
)
from jaxmlip.neighbors import find_edges
from jaxmlip.system import supercell
from jaxmlip.vibrations.phonons.interpolation import FourierSum, from_supercell, nearest_images

EQUALLY_NEAR = 1e-5  # Å; phonopy's


def force_constants(
    apply, cutoff: float, *, repeats, group: Symmetry | None = None, masses=None, memory=None
):
    """(params, system of one primitive cell) -> `ForceConstants` of a supercell of `repeats`.

    group: the symmetry of the crystal (`interfaces.symmetry.symmetry`); None computes all columns.
    Positions must have the symmetry to the accuracy wanted (`interfaces.symmetry.symmetrized`).
    masses: amu, default those of the elements. memory: bytes for the columns of one chunk.
    The edges of `system` are not used: those of the supercell within `cutoff` Å are found.
    """

    @jax.jit
    def run(params, system, atoms, vectors):
        positions = jnp.asarray(system.positions)
        at = gradient_at(apply, params, system)
        limit = chunk_memory() if memory is None else memory
        _, linear = jax.linearize(at, positions)
        column = lambda i: linear(jnp.zeros_like(positions).at[atoms[i]].set(vectors[i]))
        chunk = rows_at_once(at, positions, limit, len(atoms))
        return in_chunks(column, jnp.arange(len(atoms)), chunk)

    def constants_of(params, system):
        constants, large = _supercell(system, repeats, cutoff, masses)
        reduced = None if group is None else compatible(group, constants.matrix)
        atoms, vectors = displacements(len(constants.values), reduced)
        columns = run(
            params, large, jnp.asarray(atoms), jnp.asarray(vectors, large.positions.dtype)
        )
        columns = np.asarray(columns, np.float64)
        if not np.isfinite(columns).all():
            raise NumericalError(
                "the Hessian of the supercell is not finite",
                where="force_constants",
                fix="long-range sums are planned for one cell: bind them for the supercell first",
            )
        blocks = _unfolded(constants, reduced, atoms, vectors, columns)
        return replace(constants, values=blocks.swapaxes(-1, -2))

    return constants_of


def displacements(n_atoms: int, group: Symmetry | None = None):
    """(atoms [n], unit vectors [n, 3]) whose columns of the Hessian give all: 3 n without a group.

    The length is the cost of `force_constants` in Hessian-vector products.
    """
    if group is None:
        return np.repeat(np.arange(n_atoms), 3), np.tile(np.eye(3), (n_atoms, 1))
    each = [displacement_directions(group, a) for a in group.irreducible]
    return np.repeat(group.irreducible, [len(d) for d in each]), np.concatenate(each)


def compatible(group: Symmetry, matrix) -> Symmetry:
    """The operations that map a supercell (integer rows `matrix` [3, 3]) onto itself."""
    turned = np.linalg.inv(matrix.T) @ group.rotations @ matrix.T
    return operations(group, np.abs(turned - np.rint(turned)).max((1, 2)) < 1e-8)


def enough_repeats(cell, reach: float, *, pbc=(True, True, True)) -> np.ndarray:
    """The smallest repeats [3] in which no image of an atom is within 2 `reach` Å of it.

    Force constants are then those of the infinite crystal if they end at `reach`: the cutoff for
    a pair potential, twice the number of layers times the cutoff for message passing.
    """
    height = 1 / np.linalg.norm(np.linalg.inv(cell), axis=0)
    return np.where(pbc, np.maximum(np.ceil(2 * reach / height - 1e-9), 1), 1).astype(int)


def fourier_sum(constants: ForceConstants) -> FourierSum:
    """D(q) of force constants, each shared equally by its nearest images (as phonopy's).

    A column stands for all images of an atom under translations of the supercell; only the
    nearest ones to the atom of the row count, all of them if they are equally near.
    """
    return from_supercell(
        constants.values,
        [_vectors(constants, a) for a in range(len(constants.values))],
        constants.atoms,
        constants.shifts,
        constants.matrix,
        constants.cell,
        tolerance=EQUALLY_NEAR,
    )


def _vectors(constants, atom):
    """[n_columns, 3] Å from an atom of cell 0 to the atom of each column, any of its images."""
    start = constants.positions[constants.atoms] - constants.positions[atom]
    return start + constants.shifts @ constants.cell


def truncation(constants: ForceConstants) -> float:
    """Largest |Φ| (eV/Å²) of atoms half a supercell apart: about what is cut off beyond."""
    supercell = constants.matrix @ constants.cell
    inside = 0.5 / np.linalg.norm(np.linalg.inv(supercell), axis=0).max()
    worst = 0.0
    for a in range(len(constants.values)):
        vectors = _vectors(constants, a)
        column, moved, _ = nearest_images(vectors, supercell, tolerance=EQUALLY_NEAR)
        far = np.linalg.norm(vectors[column] + moved @ supercell, axis=1) > inside - 1e-6
        worst = max(worst, np.abs(constants.values[a, column[far]]).max(initial=0))
    return float(worst)


def _supercell(system, repeats, cutoff, masses):
    """Force constants still empty, and the supercell with its edges."""
    real = np.asarray(system.atom_mask)
    if system.n_graphs != 1 or not real.all():
        raise UsageError(
            f"needs one structure without padding, got {system.n_graphs} with "
            f"{int((~real).sum())} padded atoms",
            where="force_constants",
        )
    large = supercell(system, repeats)
    cell = np.asarray(large.cell)[0]
    edges = find_edges(large.positions, cell, np.asarray(large.pbc)[0], cutoff)
    n, numbers = system.n_atoms, np.asarray(system.numbers)
    axes = [np.arange(r) for r in np.asarray(repeats)]
    shifts = np.stack(np.meshgrid(*axes, indexing="ij"), -1).reshape(-1, 3)
    empty = ForceConstants(
        values=np.zeros((n, large.n_atoms, 3, 3)),
        cell=_far_apart(system, cell),
        positions=np.asarray(system.positions, np.float64),
        numbers=numbers,
        masses=standard_masses(numbers) if masses is None else np.asarray(masses, np.float64),
        matrix=np.diag(np.asarray(repeats, int)),
        atoms=np.tile(np.arange(n), len(shifts)),
        shifts=np.repeat(shifts, n, axis=0),
    )
    return empty, replace(large, edges=edges)


def _far_apart(system, whole):
    """The primitive cell; open axes, which are never repeated, get vectors beyond all images."""
    cell = np.array(np.asarray(system.cell)[0], np.float64)
    height = 1 / np.linalg.norm(np.linalg.inv(cell), axis=0)
    far = 2 * (np.linalg.norm(whole, axis=1).sum() + np.ptp(system.positions, axis=0).sum())
    return cell * np.where(np.asarray(system.pbc)[0], 1, far / height)[:, None]


def _unfolded(constants, group, atoms, vectors, columns):
    """d²E/dr_k dr_a [n_primitive, n_supercell, 3, 3] from the columns of some displacements."""
    if group is None:
        return columns.reshape(-1, 3, *columns.shape[1:]).transpose(0, 2, 3, 1)
    blocks = np.empty((*constants.values.shape,))
    for a in group.irreducible:
        moved = atoms == a
        blocks[a] = _from_site(constants, group, a, vectors[moved], columns[moved])
        for other in np.flatnonzero(group.equivalent == a)[1:]:
            o = np.flatnonzero(group.permutations[:, a] == other)[0]
            turn = group.cartesian[o]
            blocks[other, _images(constants, group, [o], a)[0]] = turn @ blocks[a] @ turn.T
    return blocks


def _from_site(constants, group, atom, vectors, columns):
    """All three columns of an atom: least squares over the images of those that are known."""
    site = site_symmetry(group, atom)
    turns = group.cartesian[site]
    moved = vectors @ turns.swapaxes(1, 2)
    right = np.zeros(constants.values.shape[1:])
    images = _images(constants, group, site, atom)
    for turn, seen, to in zip(turns, moved, images, strict=True):
        right[to] += turn @ (columns.transpose(1, 2, 0) @ seen)
    return right @ np.linalg.inv(np.einsum("ovi,ovj->ij", moved, moved))


def _images(constants, group, operations, atom):
    """[n, columns] where operations [n] that take `atom` to an atom of cell 0 take each column."""
    moved = constants.shifts @ group.rotations[operations].swapaxes(1, 2)
    shifts = group.shifts[operations]
    moved = moved + shifts[:, constants.atoms] - shifts[:, atom, None]
    atoms = group.permutations[operations][:, constants.atoms]
    found = column_of(constants, atoms.reshape(-1), moved.reshape(-1, 3))
    return found.reshape(atoms.shape)
