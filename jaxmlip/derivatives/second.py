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
    gradient = jax.grad(total_energy(apply))

    def product(params, system, vector):
        def at(positions):
            with jax.default_matmul_precision("highest"):
                return gradient(positions, params, system)

        return jax.jvp(at, (jnp.asarray(system.positions),), (vector,))[1]

    return product


def hessian(apply, *, atoms=None, memory: float | None = None):
    """d²E/drdr, [n_atoms, 3, n_atoms, 3], eV/Å²; with `atoms` only the rows of those atoms.

    atoms: indices (host integers) of the rows wanted, [n_rows, 3, n_atoms, 3].
    memory: bytes that the rows of one chunk may use; fewer rows at a time need less of it. By
    default 2e8 on CPU, where small chunks that stay in cache are faster, 2e9 elsewhere.
    The result is not symmetrised: its asymmetry is a check. Hessian of a batch is block diagonal.
    """
    gradient = jax.grad(total_energy(apply))
    if memory is None:
        memory = 2e8 if jax.default_backend() == "cpu" else 2e9

    def hessian_of(params, system):
        positions = jnp.asarray(system.positions)
        n = system.n_atoms

        def at(r):
            with jax.default_matmul_precision("highest"):  # TF32 ruins curvature
                return gradient(r, params, system)

        rows = np.arange(n) if atoms is None else np.atleast_1d(np.asarray(atoms))
        _check_rows(rows, n)
        columns = (3 * rows[:, None] + np.arange(3)).reshape(-1)
        _, linear = jax.linearize(at, positions)
        chunk = rows_at_once(at, positions, memory, len(columns))

        def row(column):
            unit = jnp.zeros(3 * n, positions.dtype).at[column].set(1)
            return linear(unit.reshape(n, 3))

        # whole chunks of equal size: a remainder would compile the linear map a second time
        count = -(-len(columns) // chunk)
        chunk = -(-len(columns) // count)
        padded = np.resize(columns, (count, chunk))
        out = jax.lax.map(jax.vmap(row), jnp.asarray(padded))
        return out.reshape(-1, 3 * n)[: len(columns)].reshape(len(rows), 3, n, 3)

    return hessian_of


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


def _check_rows(rows, n):
    if not len(rows):
        raise UsageError("atoms is empty: no rows are asked for", where="hessian")
    outside = rows[(rows < 0) | (rows >= n)]
    if len(outside):  # JAX would clamp the index without a word
        raise IndexError(f"atoms holds atom {outside[0]}, the system has atoms 0 to {n - 1}")
