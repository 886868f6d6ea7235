"""D(q) from rows of a larger graph: slower than `bloch`, and free of its one condition.

Here a potential may do with the atoms what it likes. The graph of the primitive cell is repeated
(periodically, or as far as messages reach), the 3 n rows of the Hessian that belong to one cell are
computed, and their Fourier sum is D(q). It is also what `dynamical_matrix` is checked against.
"""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np

from jaxmlip.derivatives.bloch.matrix import bloch_product, checked
from jaxmlip.derivatives.second.hessian import hessian, hessian_vector_product
from jaxmlip.errors import NumericalError, UsageError
from jaxmlip.system import Edges, System, supercell


def dynamical_matrix_supercell(apply, repeats, **options):
    """(params, system, q) -> D(q) as `dynamical_matrix`, for q commensurate with `repeats` [3].

    q times repeats must be whole: then it is exact for every potential, those with global sums
    included. options: those of `hessian`.
    """
    repeats = np.asarray(repeats, int)

    def matrices(params, system, q):
        q = checked(system, q)
        _check_commensurate(q, repeats)
        copies, n = _copies(repeats), system.n_atoms
        rows = jax.jit(hessian(apply, atoms=np.arange(n), **options))
        rows = rows(params, repeated(system, repeats))
        _check_finite(rows)
        return _fourier(rows, np.tile(np.arange(n), len(copies)), np.repeat(copies, n, 0), q)

    return matrices


def dynamical_matrix_unrolled(apply, hops: int, **options):
    """(params, system, q) -> D(q) as `dynamical_matrix`, at any q, from an open cluster.

    hops: how many edges away an atom's energy reaches (layers of messages; 1 for pairs). The
    cluster holds all atoms within 2 hops edges of one cell, thousands for deep networks. Exact for
    every potential whose energies of atoms end there. options: those of `hessian`.
    """

    def matrices(params, system, q):
        q = checked(system, q)
        cluster, atom, cells = unrolled(system, 2 * hops)
        rows = jax.jit(hessian(apply, atoms=np.arange(system.n_atoms), **options))(params, cluster)
        return _fourier(rows, atom, cells, q)

    return matrices


def door_error(apply, *, seed: int = 0):
    """(params, system) -> error of `dynamical_matrix` in the direction of a random wave.

    Largest deviation from the product in a supercell of three cells, as a share of the largest
    element (two complex Hessian-vector products): rounding for potentials that know their
    neighbours through the doors of `System` alone, of the order of one for those that do not.
    """

    def error(params, system):
        system = jax.tree.map(jnp.asarray, system)
        axis = int(np.abs(system.edges.shifts).reshape(-1, 3).sum(0).argmax())
        q = checked(system, np.eye(3)[axis : axis + 1] / 3)[0]
        vector = np.random.default_rng(seed).normal(size=system.positions.shape)
        vector = jnp.asarray(vector * np.asarray(system.atom_mask)[:, None], q.dtype)
        found = jax.jit(bloch_product(apply))(params, system, q, vector[None])[0]
        repeats = 1 + 2 * np.eye(3, dtype=int)[axis]
        expected = _supercell_product(apply, repeats)(params, system, q, vector)
        return float(jnp.abs(found - expected).max() / jnp.abs(expected).max())

    return error


def _supercell_product(apply, repeats):
    """(params, system, q, vector [n_atoms, 3]) -> D(q) u, for q commensurate with `repeats`."""
    product = jax.jit(hessian_vector_product(apply))

    def response(params, system, q, vector):
        large = repeated(system, repeats)
        phases = jnp.exp(2j * jnp.pi * (_copies(repeats) @ q))
        wave = (phases[:, None, None] * vector).reshape(-1, 3)
        real, imaginary = (product(params, large, x) for x in (wave.real, wave.imag))
        return (real + 1j * imaginary)[: len(vector)]

    return response


# --- larger graphs, on the host ------------------------------------------------------------------


def repeated(system: System, repeats) -> System:
    """`supercell` with the edges of the cell repeated too, however many images they cross."""
    copies = _copies(repeats)
    edges, n = jax.tree.map(np.asarray, system.edges), system.n_atoms
    lead = copies.reshape(len(copies), *[1] * edges.mask.ndim, 3)
    turns, where = np.divmod(lead - edges.shifts, np.asarray(repeats))
    copy = np.ravel_multi_index(np.moveaxis(where, -1, 0), repeats)
    first = n * np.arange(len(copies))
    together = lambda x: x.reshape(-1, *x.shape[2:])
    receivers = None if edges.receivers is None else together(first[:, None] + edges.receivers)
    return replace(
        supercell(jax.tree.map(np.asarray, system), repeats),
        edges=Edges(
            senders=together(copy * n + edges.senders).astype(np.int32),
            receivers=None if receivers is None else receivers.astype(np.int32),
            shifts=together(-turns).astype(np.int32),
            mask=np.tile(edges.mask, (len(copies), *[1] * (edges.mask.ndim - 1))),
        ),
    )


def unrolled(system: System, hops: int):
    """The open cluster of all atoms within `hops` edges of cell 0, whose atoms come first.

    Returns the system, and of each of its atoms the index in the primitive cell and the cell [3].
    """
    system = jax.tree.map(np.asarray, system)
    links = _links(system)
    found = np.c_[np.arange(system.n_atoms), np.zeros((system.n_atoms, 3), int)]
    new = found
    for _ in range(hops):
        pairs = _neighbours(new, links)[1]
        new = _without(np.unique(pairs, axis=0), found)
        found = np.concatenate([found, new])
    place = {tuple(x): i for i, x in enumerate(found.tolist())}
    receivers, nodes = _neighbours(found, links)
    senders = np.array([place.get(tuple(x), -1) for x in nodes.tolist()], int)
    inside = senders >= 0
    atom, cells = found[:, 0], found[:, 1:]
    cluster = replace(
        system,
        positions=(system.positions[atom] + cells @ system.cell[0]).astype(system.positions.dtype),
        numbers=system.numbers[atom],
        graph=np.zeros(len(found), np.int32),
        edges=Edges(
            senders=senders[inside].astype(np.int32),
            receivers=receivers[inside].astype(np.int32),
            shifts=np.zeros((inside.sum(), 3), np.int32),
            mask=np.ones(inside.sum(), bool),
        ),
    )
    return cluster, atom, cells


def _links(system):
    """For each atom, (sender, cell of the sender) of its edges, [k, 4]."""
    edges = system.edges
    receivers = edges.receivers
    if receivers is None:
        receivers = np.broadcast_to(np.arange(system.n_atoms)[:, None], edges.mask.shape)
    receivers = receivers[edges.mask]
    nodes = np.c_[edges.senders[edges.mask], -edges.shifts[edges.mask]]
    return [nodes[receivers == i] for i in range(system.n_atoms)]


def _neighbours(nodes, links):
    """Receivers (rows of nodes) and senders (atom, cell) of all edges that end at `nodes`."""
    size = [len(links[a]) for a in nodes[:, 0]]
    senders = [links[a] + [0, *cell] for a, *cell in nodes.tolist()]
    return np.repeat(np.arange(len(nodes)), size), np.concatenate(senders)


def _without(nodes, known):
    seen = set(map(tuple, known.tolist()))
    return nodes[[tuple(x) not in seen for x in nodes.tolist()]].reshape(-1, 4)


def _copies(repeats):
    """Cells of a supercell in the order of `supercell`, [n, 3]."""
    return np.stack(np.meshgrid(*map(np.arange, repeats), indexing="ij"), -1).reshape(-1, 3)


def _fourier(rows, atom, cells, q):
    """Sum over cells R of rows [n, 3, n_large, 3] exp(2 pi i q.R), [n_q, 3n, 3n]."""
    n = rows.shape[0]
    phases = jnp.exp(2j * jnp.pi * (q @ cells.T.astype(q.dtype)))
    phases = phases[:, :, None] * jnp.asarray(atom[:, None] == np.arange(n), phases.dtype)
    matrices = jnp.einsum("aimj,qmb->qaibj", rows.astype(phases.dtype), phases)
    return matrices.reshape(len(q), 3 * n, 3 * n)


def _check_finite(rows):
    if isinstance(rows, jax.core.Tracer) or jnp.isfinite(rows).all():
        return
    raise NumericalError(
        "the Hessian of the supercell is not finite",
        where="dynamical_matrix_supercell",
        fix="long-range sums are planned for one cell: bind(potential, the supercell) first",
    )


def _check_commensurate(q, repeats):
    if isinstance(q, jax.core.Tracer):
        return
    whole = np.asarray(q, float) * repeats
    if np.abs(whole - np.round(whole)).max() > 1e-4:
        raise UsageError(
            f"q = {np.asarray(q).tolist()} is not commensurate with {repeats.tolist()} cells",
            where="dynamical_matrix_supercell",
            fix="repeats such that q times repeats is whole, or dynamical_matrix",
        )
