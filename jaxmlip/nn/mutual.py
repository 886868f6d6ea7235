"""Newton's third law for pair potentials: forces without a scatter.

Pairs are listed both ways, so the energy of all pairs of a structure depends on the vectors of
i -> j and j -> i with equal and opposite slopes, and the force on an atom is twice the sum over its
own row. Autodiff does not know that and scatters the other half of the slopes to the senders, which
takes most of the time of a pair potential (on CPU; on a GPU its order is not even fixed).

`mutual_differences` is the difference of the ends of edges with that transpose. It is exact for
what is antisymmetric under exchange of the two ends: slopes and their derivatives of any order, as
long as every pair has the same weight both ways. So it serves the energy of a structure, but not
that of single atoms.
"""

import jax
import jax.numpy as jnp
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

from jaxmlip.system import FAR, System, edge_vectors


def mutual_vectors(system: System) -> list:
    """The three axes of `edge_vectors`, [n_atoms, k] each, for energies of whole structures."""
    edges = system.edges
    if edges.receivers is not None or edges.halo is not None or system.wave is not None:
        vectors = edge_vectors(system)
        return [vectors[..., axis] for axis in range(3)]
    system = jax.tree.map(jnp.asarray, system)
    cell, shifts = system.cell[system.graph][:, None], system.edges.shifts
    moved = lambda axis: sum(
        shifts[..., i].astype(cell.dtype) * cell[..., i, axis] for i in range(3)
    )
    far = jnp.asarray(FAR, system.positions.dtype)
    return [
        jnp.where(
            system.edges.mask,
            mutual_differences(system.positions[:, axis], system.edges.senders) + moved(axis),
            far,
        )
        for axis in range(3)
    ]


def kept(x, senders):
    """x, and backwards its slope, computed once where XLA for CPU would do so in each fused loop
    that reads them. `senders` are any indices of at least one edge.
    """
    return x if senders.size == 0 else _kept.bind(x, senders.reshape(-1)[0])


def mutual_differences(x, senders):
    """x[i] - x[senders[i, j]], [n, ...] -> [n, k, ...]."""
    return _difference.bind(x, senders)


def _differences(x, senders):
    return x[:, None] - x[senders]


def _sums(y, senders):
    return 2 * y.sum(1)


def _linear(name, function, shape):
    """A primitive that is linear in its first operand."""
    primitive = Primitive(name)
    primitive.def_impl(jax.jit(function))
    primitive.def_abstract_eval(lambda x, senders: x.update(shape=shape(x.shape, senders.shape)))
    mlir.register_lowering(primitive, mlir.lower_fun(function, multiple_results=False))
    batching.primitive_batchers[primitive] = lambda *args: _batch(primitive, *args)
    ad.primitive_jvps[primitive] = lambda *args: _jvp(primitive, *args)
    return primitive


def _jvp(primitive, primals, tangents):
    (x, senders), (dx, _) = primals, tangents  # dx is not zero: senders have no tangent
    return primitive.bind(x, senders), primitive.bind(dx, senders)


def _transposed(primitive, other):
    def transpose(ct, x, senders):
        return ad.Zero(x.aval) if isinstance(ct, ad.Zero) else other.bind(ct, senders), None

    ad.primitive_transposes[primitive] = transpose


def _batch(primitive, args, axes):
    """The new axis becomes the last; where the senders have it, too, one list of all atoms."""
    (x, senders), (at, senders_at) = args, axes
    if senders_at is None:
        out = primitive.bind(jnp.moveaxis(x, at, -1), senders)
        return out, out.ndim - 1
    senders = jnp.moveaxis(senders, senders_at, 0)
    size, n = senders.shape[:2]
    x = jnp.broadcast_to(x, (size, *x.shape)) if at is None else jnp.moveaxis(x, at, 0)
    senders = senders + n * jnp.arange(size, dtype=senders.dtype)[:, None, None]
    merged = lambda a: a.reshape(size * n, *a.shape[2:])
    out = primitive.bind(merged(x), merged(senders))
    return out.reshape(size, n, *out.shape[1:]), 0


def _through_a_loop(x, index):
    """x: the loop makes no turn, since no index is negative, but XLA cannot know that."""
    return jax.lax.while_loop(lambda c: c[1] < 0, lambda c: (-c[0], c[1] + 1), (x, index))[0]


def _kept_batch(args, axes):
    (x, index), (at, index_at) = args, axes
    index = index if index_at is None else index.reshape(-1)[0]
    return _kept.bind(x, index), at


_kept = Primitive("kept")
_kept.def_impl(lambda x, index: x)
_kept.def_abstract_eval(lambda x, index: x)
mlir.register_lowering(_kept, mlir.lower_fun(lambda x, index: x, multiple_results=False))
through_a_loop = mlir.lower_fun(_through_a_loop, multiple_results=False)
mlir.register_lowering(_kept, through_a_loop, platform="cpu")
ad.primitive_jvps[_kept] = lambda args, tangents: _jvp(_kept, args, tangents)
_transposed(_kept, _kept)
batching.primitive_batchers[_kept] = _kept_batch
_difference = _linear("mutual_difference", _differences, lambda x, s: (*s, *x[1:]))
_sum = _linear("mutual_sum", _sums, lambda y, s: (y[0], *y[2:]))
_transposed(_difference, _sum)
_transposed(_sum, _difference)
