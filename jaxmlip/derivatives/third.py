"""Third derivatives with respect to positions: one more forward pass over the Hessian.

The slope of H along a displacement is itself the Jacobian of a vector, H(r) u, so it is computed
as a Hessian is: linearised once, column by column. A potential whose cutoff is smooth to second
order (`smoothness=2`) has jumps in these where a pair crosses it; take 3 or more.
"""

import jax
import jax.numpy as jnp
import numpy as np

from jaxmlip.derivatives.second.hessian import (
    chosen,
    chunk_memory,
    gradient_at,
    in_chunks,
    rows_at_once,
    rows_of,
)
from jaxmlip.errors import UsageError


def third_derivative_product(apply):
    """(params, system, u, v) -> d³E/drdrdr . u . v, all [n_atoms, 3]; symmetric in u and v."""

    def product(params, system, u, v):
        positions = jnp.asarray(system.positions)
        return jax.jvp(_turned(apply, params, system, u), (positions,), (v,))[1]

    return product


def hessian_slope(apply, *, atoms=None, memory: float | None = None):
    """(params, system, direction) -> dH/ds for r + s direction, [n_rows, 3, n_atoms, 3].

    eV/Å³ for a direction [n_atoms, 3] of plain numbers. atoms, memory: as for `hessian`.
    """

    def slope(params, system, direction):
        positions = jnp.asarray(system.positions)
        rows = chosen(atoms, system.n_atoms)
        at = _turned(apply, params, system, jnp.asarray(direction, positions.dtype))
        return rows_of(at, positions, rows, _chunk(at, positions, memory, 3 * len(rows)))

    return slope


def cubic_force_constants(apply, *, columns=None, atoms=None, memory: float | None = None):
    """d³E/drdrdr, [n_columns, n_rows, 3, n_atoms, 3], eV/Å³, for chosen columns.

    columns: [n_columns, 2] of (atom, axis), host integers: the displacements along which H is
    differentiated; all 3 n_atoms by default. atoms: rows of H wanted, all by default. One column
    costs about twice the rows of a Hessian; one is in memory at a time beside the result.
    """

    def cubic(params, system):
        pairs = _columns(columns, system.n_atoms)
        slope = hessian_slope(apply, atoms=atoms, memory=memory)
        flat = jnp.asarray(pairs @ np.array([3, 1]))
        dtype = jnp.asarray(system.positions).dtype

        def column(k):
            direction = jnp.zeros(3 * system.n_atoms, dtype).at[k].set(1).reshape(-1, 3)
            return slope(params, system, direction)

        return jax.lax.map(column, flat)

    return cubic


def cubic_along(apply, *, memory: float | None = None):
    """(params, system, directions [k, n_atoms, 3]) -> [k, k, k], d³E along three of them.

    eV per cubed unit of the directions: for `Modes.displacements` eV/(Å sqrt(amu))³. Costs k²
    products of the third derivative, k of them linearised together.
    """

    def along(params, system, directions):
        positions = jnp.asarray(system.positions)
        directions = jnp.asarray(directions, positions.dtype)
        k = len(directions)

        def slice_(u):
            at = _turned(apply, params, system, u)
            _, linear = jax.linearize(at, positions)
            return in_chunks(linear, directions, _chunk(at, positions, memory, k))

        products = jax.lax.map(slice_, directions)  # [k, k, n_atoms, 3]
        return jnp.einsum(
            "abix,cix->abc", products, directions, precision=jax.lax.Precision.HIGHEST
        )

    return along


def _turned(apply, params, system, direction):
    """H(r) . direction as a function of r."""
    at = gradient_at(apply, params, system)
    return lambda r: jax.jvp(at, (r,), (direction,))[1]


def _chunk(function, positions, memory, n_columns):
    limit = chunk_memory() if memory is None else memory
    return rows_at_once(function, positions, limit, n_columns)


def _columns(columns, n_atoms):
    if columns is None:
        return np.stack(np.divmod(np.arange(3 * n_atoms), 3), 1)
    pairs = np.asarray(columns).reshape(-1, 2)
    chosen(pairs[:, 0], n_atoms)
    if not np.isin(pairs[:, 1], (0, 1, 2)).all():
        raise UsageError("axes are 0, 1 and 2", where="cubic_force_constants")
    return pairs
