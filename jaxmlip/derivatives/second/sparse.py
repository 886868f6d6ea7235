"""The Hessian of a short-ranged potential from few products: columns that share no row go together.

It pays for pair potentials and for one layer of many-body terms, in cells wider than twice the
interaction. Deep message passing couples so many atoms that there are as many colours as atoms
until about 10^4 of them; then this is the dense Hessian, column by column, and says so.
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np

from jaxmlip.derivatives.second.hessian import (
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
    hops: int | None  # edges apart at which atoms still feel one another; None: any number
    n_colours: int
    n_products: int  # Hessian-vector products used: three a colour, trials included, one to check
    n_columns: int  # products that a dense Hessian would need
    residual: float  # |H v - blocks v| / |H v| for a random v

    @property
    def pays(self) -> bool:
        """Whether colouring saved anything."""
        return self.n_products < self.n_columns

    def __str__(self):
        reach = "all atoms" if self.hops is None else f"{self.hops} edges apart"
        verdict = "" if self.pays else ": colouring does not pay, use the dense Hessian"
        used = f"{self.n_products} products of {self.n_columns}"
        return f"{reach}, {self.n_colours} colours, {used}{verdict}"


def sparse_hessian(
    apply, *, hops: int | None = None, memory: float | None = None, tolerance: float | None = None
):
    """(params, system) -> `SparseHessian`; a host function, compiled once for each shape.

    hops: how many edges apart atoms can still feel one another: 1 for a pair potential, 2 for
    one layer of many-body terms, 2 n for n layers. Counted on the system's own edges, so periodic
    images and small cells are right by themselves. Too few, or anything of longer range, is found
    by one product with a random vector that is off by more than `tolerance` (1e-10, in float32
    1e-4), and raises `NumericalError`. None: 1, 2, 4 ... are tried until that product is right;
    before the trials have used as many products as there are columns, all columns are computed
    instead. A number that is known saves products and compilations. memory: bytes for a chunk, as
    for `hessian`.
    """
    if hops is not None and hops < 1:
        raise UsageError(f"hops is {hops}; atoms that share an edge are 1 apart", where="hops")
    products = jax.jit(_products(apply, memory))
    check = jax.jit(hessian_vector_product(apply))

    def sparse_hessian_of(params, system):
        _check_edges(system)
        probe, limit = _probe(check, params, system), _limit(system, tolerance)
        n_products = 1
        for reach, near, colours in _trials(system, hops):
            tangents = _tangents(colours, system)
            columns = np.asarray(products(params, system, tangents), np.float64)
            n_products += 3 * len(tangents)
            indices, blocks = _blocks(columns, near, colours)
            found = SparseHessian(
                indices=indices,
                blocks=blocks,
                n_atoms=system.n_atoms,
                hops=reach,
                n_colours=len(tangents),
                n_products=n_products,
                n_columns=3 * _n_real(system),
                residual=_residual(probe, indices, blocks),
            )
            if found.residual <= limit:
                return found
        raise _wrong(found, limit)

    return sparse_hessian_of


def dense(hessian: SparseHessian) -> np.ndarray:
    """[n_atoms, 3, n_atoms, 3] eV/Å²."""
    out = np.zeros((hessian.n_atoms, 3, hessian.n_atoms, 3))
    i, j = hessian.indices.T
    out[i, :, j] = hessian.blocks
    return out


def neighbourhoods(system, hops: int) -> list[np.ndarray]:
    """For every atom the atoms at most `hops` edges away and itself, sorted; none for padding."""
    _check_edges(system)
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


def _trials(system, hops):
    """(hops, neighbourhoods, colours) in the order to be tried."""
    if hops is not None:
        near = neighbourhoods(system, hops)
        yield hops, near, colouring(near)
        return
    hops, size, n_left = 1, 0, _n_real(system)
    while True:
        near = neighbourhoods(system, hops)
        before, size = size, sum(map(len, near))
        if size == before or max(map(len, near)) >= n_left:  # there are at least so many colours
            break
        colours = colouring(near)
        n_left -= colours.max() + 1
        if n_left <= 0:
            break
        yield hops, near, colours
        hops *= 2
    real = np.asarray(system.numbers) > 0
    everyone = np.flatnonzero(real)
    yield None, [everyone if x else everyone[:0] for x in real], np.cumsum(real) - 1


def _blocks(columns, near, colours):
    """Indices [n_blocks, 2] and blocks [n_blocks, of i, of j] of columns [colour, 3, atom, 3]."""
    i, j = np.repeat(np.arange(len(near)), [len(js) for js in near]), np.concatenate(near)
    return np.stack([i, j], 1), columns[colours[j], :, i].swapaxes(1, 2)


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


def _probe(check, params, system):
    """A random v and H v, [n_atoms, 3] each."""
    positions = jnp.asarray(system.positions)
    v = np.random.default_rng(0).normal(size=positions.shape)
    return v, np.asarray(check(params, system, jnp.asarray(v, positions.dtype)), np.float64)


def _residual(probe, indices, blocks):
    v, expected = probe
    found = np.zeros_like(v)
    np.add.at(found, indices[:, 0], np.einsum("kab,kb->ka", blocks, v[indices[:, 1]]))
    return float(np.linalg.norm(found - expected) / max(np.linalg.norm(expected), 1e-300))


def _limit(system, tolerance):
    if tolerance is not None:
        return tolerance
    return 1e-10 if jnp.asarray(system.positions).dtype == np.float64 else 1e-4


def _n_real(system) -> int:
    return int((np.asarray(system.numbers) > 0).sum())


def _check_edges(system):
    if system.edges is None:
        raise DataError("the system has no edges", where="sparse_hessian")


def _wrong(found, limit) -> NumericalError:
    off = f"a random product is off by {found.residual:.2g}, limit {limit:.2g}"
    if found.hops is None or not np.isfinite(found.residual):
        return NumericalError(
            f"the columns are not those of a Hessian: {off}",
            where="sparse_hessian",
            fix="look for values that are not finite; in float32, float64 or a larger tolerance",
        )
    return NumericalError(
        f"atoms more than {found.hops} edges apart feel one another: {off}",
        where="sparse_hessian",
        fix="more hops (two for each layer of message passing); without hops= they are found",
    )
