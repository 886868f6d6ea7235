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


_difference = _linear("mutual_difference", _differences, lambda x, s: (*s, *x[1:]))
_sum = _linear("mutual_sum", _sums, lambda y, s: (y[0], *y[2:]))
_transposed(_difference, _sum)
_transposed(_sum, _difference)
