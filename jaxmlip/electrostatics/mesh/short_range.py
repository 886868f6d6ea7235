"""The part of the edges, with its first derivatives written out.

Every pair is in the list twice, once for each of its atoms. So the force on an atom is the sum over
its own row, and nothing need be sent back to the senders: a program without scatter, half as long
as the one that automatic differentiation finds. Higher derivatives are those of these sums.

Long lists are summed in blocks of receivers: what is known of a pair then stays in the cache, and
the time for an atom does not grow with their number.
"""

from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
from jax import lax
from jax.custom_derivatives import SymbolicZero

from jaxmlip.system import System, sum_edges, sum_energies, to_edges

BLOCK = 2**15  # edges at once: some 20 numbers of each are 5 MB
WHOLE = 2**18  # a list up to this is one block: it costs a tenth less, and the caches hold it


@partial(jax.custom_jvp, nondiff_argnums=(0,))
def pair_energy(short, system: System, charges) -> jax.Array:
    """1/2 sum over edges of q_i q_j short(r), [n_graphs].

    short: hashable function of r² (Å²) -> (value, derivative with respect to r²), zero where
    it should be cut. Edges must hold every pair in both directions.
    """
    potential = _sums(partial(_potential, short), system, charges)[:, 0]
    return sum_energies(system, 0.5 * charges * potential)


@partial(pair_energy.defjvp, symbolic_zeros=True)
def _pair_energy_jvp(short, primals, tangents):
    (system, charges), (moved, d_charges) = primals, tangents
    strained = not _is_zero(moved.cell)
    sums = _sums(partial(_slopes, short, strained), system, charges)
    potential, rows, along_cell = sums[:, 0], sums[:, 1:4], sums[:, 4:]
    change = jnp.zeros_like(charges)
    if not _is_zero(d_charges):
        change = change + potential * d_charges
    if not _is_zero(moved.positions):
        change = change + charges * (rows * moved.positions).sum(-1)
    if strained:
        d_cell = moved.cell.reshape(-1, 9)[system.graph]
        change = change + 0.5 * charges * (along_cell * d_cell).sum(-1)
    # the jvp of the sum: in float32 it splits its summands by their size, energies but not tangents
    total = lambda energies: sum_energies(system, energies)
    return jax.jvp(total, (0.5 * charges * potential,), (change,))


def _is_zero(tangent) -> bool:
    return isinstance(tangent, SymbolicZero)


# --- what is summed at an atom, of the pairs (r² [edges], vectors, charges sent, shifts) ----------


def _potential(short, r2, vectors, sent, shifts):
    return [sent * short(r2)[0]]


def _slopes(short, strained, r2, vectors, sent, shifts):
    """Potential, its slope along the atom [3], and with a strained cell that times shift [9]."""
    value, slope = short(r2)
    pull = 2 * sent * slope
    rows = [pull * x for x in vectors]
    along_cell = [row * shifts[..., a] for a in range(3) for row in rows] if strained else []
    return [sent * value, *rows, *along_cell]


def _sums(terms, system, charges):
    """Sums over the edges of each atom, [n_atoms, number of terms]."""
    edges, packed = system.edges, jnp.concatenate([system.positions, charges[:, None]], -1)
    short_list = edges.senders.size <= WHOLE or jax.default_backend() != "cpu"  # caches of CPUs
    if edges.receivers is not None or short_list:
        return _block(terms, system, packed, jnp.arange(system.n_atoms))
    n, width = edges.senders.shape
    count = -(-n * width // BLOCK)
    size = -(-n // count)

    @jax.checkpoint
    def some(start):
        cut = lambda x: lax.dynamic_slice_in_dim(x, start, size)
        rows = {k: cut(getattr(edges, k)) for k in ("senders", "shifts", "mask")}
        part = replace(edges, images=None, **rows)
        return _block(terms, replace(system, edges=part), packed, start + jnp.arange(size))

    # the last block reaches back into the one before it, so that all are of one size
    parts = lax.map(some, jnp.minimum(size * jnp.arange(count), n - size))
    return jnp.concatenate([parts[:-1].reshape(-1, parts.shape[-1])[: n - size], parts[-1]])


def _block(terms, system, packed, atoms):
    """The same for the rows of some atoms [n], whose edges those of `system` are.

    `edge_vectors` once more, but by components, with one gather for positions and charges: one
    loop over edges instead of five.
    """
    edges = system.edges
    receivers = atoms[:, None] if edges.receivers is None else edges.receivers
    sent = to_edges(system, packed)
    own, cell = system.positions[receivers], system.cell[system.graph[receivers]]
    shifts = edges.shifts.astype(sent.dtype)
    offset = lambda b: sum(shifts[..., a] * cell[..., a, b] for a in range(3))
    vectors = [own[..., b] + offset(b) - sent[..., b] for b in range(3)]
    r2 = jnp.where(edges.mask, sum(x * x for x in vectors), jnp.inf)
    return jnp.stack([sum_edges(system, x) for x in terms(r2, vectors, sent[..., 3], shifts)], -1)
