"""The part of the edges, with its first derivatives written out.

Every pair is in the list twice, once for each of its atoms. So the force on an atom is the sum over
its own row, and nothing need be sent back to the senders: a program without scatter, half as long
as the one that automatic differentiation finds. Higher derivatives are those of these sums.
"""

from functools import partial

import jax
import jax.numpy as jnp
from jax.custom_derivatives import SymbolicZero

from jaxmlip.system import System, at_receivers, sum_edges, sum_energies, to_edges


@partial(jax.custom_jvp, nondiff_argnums=(0,))
def pair_energy(short, system: System, charges) -> jax.Array:
    """1/2 sum over edges of q_i q_j short(r), [n_graphs].

    short: hashable function of r² (Å²) -> (value, derivative with respect to r²), zero where
    it should be cut. Edges must hold every pair in both directions.
    """
    vectors, r2, sent = _edges(system, charges)
    potential = sum_edges(system, sent * short(r2)[0])
    return sum_energies(system, 0.5 * charges * potential)


@partial(pair_energy.defjvp, symbolic_zeros=True)
def _pair_energy_jvp(short, primals, tangents):
    (system, charges), (moved, d_charges) = primals, tangents
    vectors, r2, sent = _edges(system, charges)
    value, slope = short(r2)
    potential = sum_edges(system, sent * value)
    pull = 2 * sent * slope
    rows = [sum_edges(system, pull * x) for x in vectors]
    change = jnp.zeros_like(charges)
    if not _is_zero(d_charges):
        change = change + potential * d_charges
    if not _is_zero(moved.positions):
        change = change + charges * (jnp.stack(rows, -1) * moved.positions).sum(-1)
    if not _is_zero(moved.cell):
        change = change + 0.5 * charges * _along_cell(system, pull, vectors, moved.cell)
    # the sum over atoms looks whether its summands are finite: at the energies, not the tangents
    total = lambda energies: sum_energies(system, energies)
    return jax.jvp(total, (0.5 * charges * potential,), (change,))


def _is_zero(tangent) -> bool:
    return isinstance(tangent, SymbolicZero)


def _along_cell(system, pull, vectors, d_cell):
    """Row sums of pull * vector . (shift @ d_cell), [n_atoms]."""
    shifts = system.edges.shifts
    total = 0.0
    for a in range(3):
        for b in range(3):
            row = sum_edges(system, pull * vectors[b] * shifts[..., a])
            total = total + row * d_cell[system.graph, a, b]
    return total


def _edges(system, charges):
    """Components of the edge vectors, r² (far where masked), and the charges of the senders.

    `edge_vectors` once more, but by components, with one gather for positions and charges: one
    loop over edges instead of five.
    """
    packed = jnp.concatenate([system.positions, charges[:, None]], -1)
    sent, own = to_edges(system, packed), at_receivers(system, system.positions)
    cell = at_receivers(system, system.cell[system.graph])
    shifts = system.edges.shifts.astype(packed.dtype)
    offset = lambda b: sum(shifts[..., a] * cell[..., a, b] for a in range(3))
    vectors = [own[..., b] + offset(b) - sent[..., b] for b in range(3)]
    r2 = sum(x * x for x in vectors)
    return vectors, jnp.where(system.edges.mask, r2, jnp.inf), sent[..., 3]
