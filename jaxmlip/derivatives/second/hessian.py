"""Second derivatives with respect to positions, exact, in bounded memory.

The gradient is linearised once; its linear map is applied to unit vectors in chunks, so that the
forward pass and its residuals are shared by all columns.
"""

import jax
import jax.numpy as jnp
import numpy as np

from jaxmlip.derivatives.first import total_energy
from jaxmlip.errors import UsageError


def hessian_vector_product(apply):
    """(params, system, vector [n_atoms, 3]) -> d²E/drdr . vector, [n_atoms, 3]."""

    def product(params, system, vector):
        positions = jnp.asarray(system.positions)
        return jax.jvp(gradient_at(apply, params, system), (positions,), (vector,))[1]

    return product


def hessian(apply, *, atoms=None, memory: float | None = None):
    """d²E/drdr, [n_atoms, 3, n_atoms, 3], eV/Å²; with `atoms` only the rows of those atoms.

    atoms: indices (host integers) of the rows wanted, or a mask [n_atoms]: [n_rows, 3, n_atoms, 3].
    memory: bytes that the rows of one chunk may use; fewer rows at a time need less of it. By
    default 2e8 on CPU, where small chunks that stay in cache are faster, 2e9 elsewhere. This is a
    count made while tracing; `plan_hessian` asks the compiler and keeps a limit on everything.
    The result is not symmetrised: its asymmetry is a check (`symmetrised`). Hessian of a batch is
    block diagonal.
    """

    def hessian_of(params, system):
        positions, at = jnp.asarray(system.positions), gradient_at(apply, params, system)
        rows = chosen(atoms, system.n_atoms)
        limit = chunk_memory() if memory is None else memory
        return rows_of(at, positions, rows, rows_at_once(at, positions, limit, 3 * len(rows)))

    return hessian_of


def gradient_at(apply, params, system):
    """dE/dr as a function of positions, in full matrix precision: TF32 ruins curvature."""
    gradient = jax.grad(total_energy(apply))

    def at(positions):
        with jax.default_matmul_precision("highest"):
            return gradient(positions, params, system)

    return at


def rows_of(function, positions, rows, chunk: int):
    """Jacobian of `function` [n_atoms, 3] -> [n_atoms, 3] along the `rows` of positions.

    [n_rows, 3, n_atoms, 3]: first the atom that moves, then what it changes; `chunk` directions
    at a time.
    """
    n = len(positions)
    _, linear = jax.linearize(function, positions)

    def row(column):
        return linear(jnp.zeros(3 * n, positions.dtype).at[column].set(1).reshape(n, 3))

    columns = (3 * np.asarray(rows)[:, None] + np.arange(3)).reshape(-1)
    return in_chunks(row, columns, chunk).reshape(len(rows), 3, n, 3)


def in_chunks(function, items, chunk: int):
    """function of every item of an array [n, ...], `chunk` at a time: a pytree of [n, ...].

    Whole chunks of equal size: a remainder would compile the function a second time.
    """
    n = len(items)
    count = -(-n // whole_chunk(n, chunk))
    chunk = -(-n // count)
    if chunk == 1:
        return jax.lax.map(function, jnp.asarray(items))
    padded = jnp.resize(jnp.asarray(items), (count, chunk, *items.shape[1:]))
    out = jax.lax.map(jax.vmap(function), padded)
    return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:])[:n], out)


def whole_chunk(n: int, chunk: int) -> int:
    """The largest divisor of n up to `chunk`, if that is at least half of it; else `chunk`.

    With a divisor nothing is computed in vain, and the result is not copied to cut the excess.
    """
    divisors = [k for k in range(-(-chunk // 2), chunk + 1) if n % k == 0]
    return divisors[-1] if divisors else chunk


def chunk_memory() -> float:
    """Bytes for the rows of one chunk beyond which larger chunks are not faster."""
    return 2e8 if jax.default_backend() == "cpu" else 2e9


def rows_at_once(function, argument, memory: float, n_rows: int) -> int:
    """How many tangents of `function` fit into `memory` bytes, between 1 and n_rows.

    Every intermediate value of the traced program is counted, those of a loop's body once. The
    compiler frees most of them earlier, so one tangent needs less.
    """
    jaxpr = jax.make_jaxpr(function)(argument)
    return int(np.clip(memory // max(_bytes(jaxpr.jaxpr), 1), 1, n_rows))


def _bytes(jaxpr) -> int:
    total = 0
    for equation in jaxpr.eqns:
        inner = [v.jaxpr if hasattr(v, "jaxpr") else v for v in equation.params.values()]
        inner = [v for v in inner if hasattr(v, "eqns")]
        total += sum(map(_bytes, inner))
        total += sum(
            v.aval.size * v.aval.dtype.itemsize for v in equation.outvars if hasattr(v.aval, "size")
        )
    return total


def chosen(atoms, n_atoms: int):
    """The rows asked for as host integers: all for None, those that are True for a mask [n_atoms].

    Raises `IndexError` for atoms that are not there, `UsageError` for what is no list of integers.
    """
    rows = np.arange(n_atoms) if atoms is None else np.atleast_1d(np.asarray(atoms))
    if rows.shape == (n_atoms,) and rows.dtype == bool:
        rows = np.flatnonzero(rows)
    if not rows.size:
        raise UsageError("atoms is empty: no rows are asked for", where="hessian")
    if rows.ndim != 1 or rows.dtype.kind not in "iu":
        raise UsageError(
            f"atoms is of shape {rows.shape} and {rows.dtype}",
            where="hessian",
            fix=f"a list of integers, or a mask of {n_atoms} booleans",
        )
    outside = rows[(rows < 0) | (rows >= n_atoms)]
    if len(outside):  # JAX would clamp the index without a word
        raise IndexError(f"atoms holds atom {outside[0]}, the system has atoms 0 to {n_atoms - 1}")
    return rows
