"""Batched products of narrow and wide matrices, with every derivative in the layout that is fast.

Narrow: few columns (components of a harmonic); wide: many (channels). The three products are each
other's transposes, so derivatives of any order stay among them. Those that JAX derives from an
einsum put the axes in another order, for which the compiler transposes arrays of all edges: the
Hessian of a MACE took 1.6 times as long with them (one core, float32:
`python -m benchmarks.energy_forces --systems aspirin --hessian`).
"""

import jax
import jax.numpy as jnp
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir


def gather_rows(narrow, wide):
    """sum_q narrow[n, q, m] wide[n, q, c] -> [n, m, c]."""
    return _bind(_gather, narrow, wide)


def spread_rows(narrow, wide):
    """sum_m narrow[n, q, m] wide[n, m, c] -> [n, q, c]."""
    return _bind(_spread, narrow, wide)


def overlap_rows(rows, wide):
    """sum_c rows[n, q, c] wide[n, m, c] -> [n, q, m]."""
    return _bind(_overlap, rows, wide)


def _bind(primitive, x, y):
    dtype = jnp.result_type(x, y)
    # the context of the caller is gone when the program is lowered
    precision = jax.config.jax_default_matmul_precision
    return primitive.bind(jnp.asarray(x, dtype), jnp.asarray(y, dtype), precision=precision)


def _product(name, axes, shape):
    """A bilinear primitive on [n, ...] arrays that contracts one axis of each."""
    primitive = Primitive(name)
    numbers = ((axes[:1], axes[1:]), ((0,), (0,)))

    def product(x, y, *, precision):
        return jax.lax.dot_general(x, y, numbers, precision=precision)

    primitive.def_impl(jax.jit(product, static_argnames="precision"))
    primitive.def_abstract_eval(lambda x, y, **_: x.update(shape=shape(x.shape, y.shape)))
    mlir.register_lowering(primitive, mlir.lower_fun(product, multiple_results=False))
    batching.primitive_batchers[primitive] = lambda *args, **p: _batch(primitive, *args, **p)
    return primitive


def _batch(primitive, args, axes, **params):
    """The new axis joins the batch that the product already has."""
    size = next(x.shape[a] for x, a in zip(args, axes, strict=True) if a is not None)

    def front(x, axis):
        if axis is None:
            return jnp.broadcast_to(x, (size, *x.shape))
        return jnp.moveaxis(x, axis, 0)

    args = [front(x, axis) for x, axis in zip(args, axes, strict=True)]
    n = args[0].shape[1]
    out = primitive.bind(*(x.reshape(size * n, *x.shape[2:]) for x in args), **params)
    return out.reshape(size, n, *out.shape[1:]), 0


def _transposes(primitive, by_first, by_second):
    """Cotangents of the operands, as products of the cotangent with the other operand."""
    ad.defbilinear(
        primitive,
        lambda ct, x, y, *, precision: by_first(ct, y, precision),
        lambda ct, x, y, *, precision: by_second(ct, x, precision),
    )


_gather = _product("gather_rows", (1, 1), lambda f, v: (v[0], f[2], v[2]))
_spread = _product("spread_rows", (2, 1), lambda f, o: (f[0], f[1], o[2]))
_overlap = _product("overlap_rows", (2, 2), lambda v, o: (v[0], v[1], o[1]))
_transposes(
    _gather,
    lambda ct, v, p: _overlap.bind(v, ct, precision=p),
    lambda ct, f, p: _spread.bind(f, ct, precision=p),
)
_transposes(
    _spread,
    lambda ct, o, p: _overlap.bind(ct, o, precision=p),
    lambda ct, f, p: _gather.bind(f, ct, precision=p),
)
_transposes(
    _overlap,
    lambda ct, o, p: _spread.bind(ct, o, precision=p),
    lambda ct, v, p: _gather.bind(ct, v, precision=p),
)
