"""The Hessian of a short-ranged potential from few products: columns that share no row go together.

It pays for pair potentials and for one layer of many-body terms, in cells wider than twice the
interaction. Deep message passing couples so many atoms that there are as many colours as atoms
until about 10^4 of them; then this is the dense Hessian, column by column, and says so.
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np

from jaxmlip.derivatives.second import (
    chunk_memory,
    gradient_at,
    hessian_vector_product,
    in_chunks,
    rows_at_once,
)
from jaxmlip.errors import DataError, NumericalError, UsageError


@dataclass(frozen=True, kw_only=True)
class SparseHessian:
    """Blocks of the Hessian that may differ from zero; all others do not exist. Host."""

    indices: np.ndarray  # [n_blocks, 2] (atom, atom), sorted, both orders of every pair
    blocks: np.ndarray  # [n_blocks, 3, 3] eV/Å²
    n_atoms: int
    n_colours: int
    n_products: int  # Hessian-vector products used: three a colour, and one to check
    n_columns: int  # products that a dense Hessian would need
    residual: float  # |H v - blocks v| / |H v| for a random v

    @property
    def pays(self) -> bool:
        """Whether colouring saved anything."""
        return self.n_products < self.n_columns

    def __str__(self):
        verdict = "" if self.pays else ": colouring does not pay, use the dense Hessian"
        return f"{self.n_colours} colours, {self.n_products} products of {self.n_columns}{verdict}"


def sparse_hessian(apply, *, hops: int, memory: float | None = None, tolerance=None):
    """(params, system) -> `SparseHessian`; a host function, compiled once for each shape.

    hops: how many edges apart atoms can still feel one another: 1 for a pair potential, 2 for
    one layer of many-body terms, 2 n for n layers. Counted on the system's own edges, so periodic
    images and small cells are right by themselves. memory: bytes for a chunk, as for `hessian`.
    Too few hops, or anything of longer range, is found by one product with a random vector and
    raises `NumericalError`, where it is off by more than `tolerance` (1e-10, in float32 1e-4).
    """
    if hops < 1:
        raise UsageError(f"hops is {hops}; atoms that share an edge are 1 apart", where="hops")
    products = jax.jit(_products(apply, memory))
    check = jax.jit(hessian_vector_product(apply))

    def sparse_hessian_of(params, system):
        near = neighbourhoods(system, hops)
        colours = colouring(near)
        tangents = _tangents(colours, system)
        columns = np.asarray(products(params, system, tangents), np.float64)
        indices = np.array([(i, j) for i, js in enumerate(near) for j in js]).reshape(-1, 2)
        i, j = indices.T
        blocks = columns[colours[j], :, i].swapaxes(1, 2)  # [block, of i, of j]
        residual = _residual(check, params, system, indices, blocks)
        _refuse(residual, tolerance, hops, tangents.dtype)
        n_real = int((np.asarray(system.numbers) > 0).sum())
        return SparseHessian(
            indices=indices,
            blocks=blocks,
            n_atoms=system.n_atoms,
            n_colours=len(tangents),
            n_products=3 * len(tangents) + 1,
            n_columns=3 * n_real,
            residual=residual,
        )

    return sparse_hessian_of


def dense(hessian: SparseHessian) -> np.ndarray:
    """[n_atoms, 3, n_atoms, 3] eV/Å²."""
    out = np.zeros((hessian.n_atoms, 3, hessian.n_atoms, 3))
    i, j = hessian.indices.T
    out[i, :, j] = hessian.blocks
    return out


def neighbourhoods(system, hops: int) -> list[np.ndarray]:
    """For every atom the atoms at most `hops` edges away and itself, sorted; none for padding."""
    if system.edges is None:
        raise DataError("the system has no edges", where="sparse_hessian")
    direct = _direct(system)
    near = [np.array([i], int) for i in range(system.n_atoms)]
    for _ in range(hops):
        near = [np.unique(np.concatenate([direct[j] for j in js])) for js in near]
    real = np.asarray(system.numbers) > 0
    return [js if real[i] else np.zeros(0, int) for i, js in enumerate(near)]


def colouring(near) -> np.ndarray:
    """Greedy colours [n_atoms], from 0: atoms of one colour are in no common neighbourhood.

    Atoms with the most conflicts first; padding has colour 0, where it disturbs nobody.
    """
    nothing = [np.zeros(0, int)]
    conflicts = [np.unique(np.concatenate([near[i] for i in js] or nothing)) for js in near]
    colours = np.full(len(near), -1)
    for atom in np.argsort([-len(c) for c in conflicts], kind="stable"):
        taken = np.unique(colours[conflicts[atom]])
        free = np.setdiff1d(np.arange(len(taken) + 1), taken, assume_unique=True)
        colours[atom] = free[0]
    return colours


def _direct(system):
    """Atoms one edge away in either direction, and the atom itself."""
    edges, n = system.edges, system.n_atoms
    mask, senders = np.asarray(edges.mask), np.asarray(edges.senders)
    rows = np.arange(n)[:, None] if edges.receivers is None else np.asarray(edges.receivers)
    i, j = np.broadcast_to(rows, senders.shape)[mask], senders[mask]
    pairs = np.concatenate(
        [np.stack([i, j], 1), np.stack([j, i], 1), np.arange(n)[:, None] * [1, 1]]
    )
    pairs = np.unique(pairs, axis=0)
    return np.split(pairs[:, 1], np.searchsorted(pairs[:, 0], np.arange(1, n)))


def _tangents(colours, system):
    """[n_colours, n_atoms] 1 for the atoms of a colour."""
    real = np.asarray(system.numbers) > 0
    dtype = jnp.asarray(system.positions).dtype
    present = np.arange(colours.max(initial=0) + 1)
    return ((colours == present[:, None]) & real).astype(dtype)


def _products(apply, memory):
    def products(params, system, tangents):
        """[n_colours, 3 (direction), n_atoms, 3] H times every atom of a colour moved alike."""
        positions, at = jnp.asarray(system.positions), gradient_at(apply, params, system)
        _, linear = jax.linearize(at, positions)
        axes = jnp.eye(3, dtype=positions.dtype)
        n_columns = 3 * len(tangents)
        limit = chunk_memory() if memory is None else memory

        def column(k):
            return linear(tangents[k // 3][:, None] * axes[k % 3])

        chunk = rows_at_once(at, positions, limit, n_columns)
        out = in_chunks(column, np.arange(n_columns), chunk)
        return out.reshape(len(tangents), 3, *positions.shape)

    return products


def _residual(check, params, system, indices, blocks):
    positions = jnp.asarray(system.positions)
    v = np.random.default_rng(0).normal(size=positions.shape)
    expected = np.asarray(check(params, system, jnp.asarray(v, positions.dtype)), np.float64)
    found = np.zeros_like(v)
    np.add.at(found, indices[:, 0], np.einsum("kab,kb->ka", blocks, v[indices[:, 1]]))
    return float(np.linalg.norm(found - expected) / max(np.linalg.norm(expected), 1e-300))


def _refuse(residual, tolerance, hops, dtype):
    limit = tolerance or (1e-10 if dtype == np.float64 else 1e-4)
    if not residual <= limit:
        raise NumericalError(
            f"atoms more than {hops} edges apart feel one another: a random product is off by "
            f"{residual:.2g}, limit {limit:.2g}",
            where="sparse_hessian",
            fix="more hops (two for each layer of message passing), or the dense hessian",
        )
