"""Sparse polynomials of arrays, written out term by term when they are lowered.

One primitive evaluates them, for all atoms and channels alike. A derivative of a sparse polynomial
is one again, and so is the transpose in an operand that it is linear in: derivatives of any order
are the primitive with another table, made here once. To JAX a polynomial is one operation, where
automatic differentiation of its terms would trace and repeat thousands; the compiler then fuses
each into one pass over atoms and channels.
"""

from dataclasses import dataclass, field
from functools import cache, partial, reduce

import jax
import jax.numpy as jnp
from jax.extend.core import Primitive
from jax.extend.mlir import ir
from jax.extend.mlir.dialects import stablehlo as hlo
from jax.interpreters import ad, batching, mlir


@dataclass(frozen=True, eq=False)
class Polynomials:
    """One polynomial for each component of the result, of components of some operands.

    outputs: {monomial: coefficient} each, a monomial being a sorted tuple of (operand, component);
    sizes: numbers of components of the operands. Compared by identity, so that it is hashed at
    once: make a table once and keep it.
    """

    outputs: tuple
    sizes: tuple
    tables: dict = field(default_factory=dict)  # derivatives and transposes made so far

    def __call__(self, *operands):
        """Operands [n, components, c] -> values [n, outputs, c]."""
        dtype = jnp.result_type(*operands)
        return _polynomials.bind(*(jnp.asarray(x, dtype) for x in operands), table=self)

    def is_linear(self, operand: int) -> bool:
        """Whether every term has exactly one factor from this operand."""
        return all(_count(key, operand) == 1 for terms in self.outputs for key in terms)

    def derivative(self, operand: int):
        """Slope along a direction in this operand, which is a further operand, the last."""
        return self._made(("derivative", operand), lambda: _derivative(self, operand))

    def transpose(self, operand: int):
        """Transpose in an operand that is linear; the cotangent takes its place."""
        return self._made(("transpose", operand), lambda: _transpose(self, operand))

    def _made(self, key, make):
        if key not in self.tables:
            self.tables[key] = make()
        return self.tables[key]


def _count(monomial, operand):
    return sum(k == operand for k, _ in monomial)


def _derivative(table, operand):
    new, outputs = len(table.sizes), []
    for terms in table.outputs:
        slopes: dict = {}
        for monomial, coefficient in terms.items():
            for i, (k, a) in enumerate(monomial):
                if k == operand:
                    key = (*monomial[:i], *monomial[i + 1 :], (new, a))
                    slopes[key] = slopes.get(key, 0.0) + coefficient
        outputs.append(slopes)
    return Polynomials(tuple(outputs), (*table.sizes, table.sizes[operand]))


def _transpose(table, operand):
    outputs: list = [{} for _ in range(table.sizes[operand])]
    for b, terms in enumerate(table.outputs):
        for monomial, coefficient in terms.items():
            (a,) = (a for k, a in monomial if k == operand)
            key = tuple(sorted((k, b if k == operand else m) for k, m in monomial))
            outputs[a][key] = coefficient
    sizes = list(table.sizes)
    sizes[operand] = len(table.outputs)
    return Polynomials(tuple(outputs), tuple(sizes))


# --- the primitive ------------------------------------------------------------------------------


def _shape(*operands, table):
    x = operands[0]
    return x.update(shape=(x.shape[0], len(table.outputs), x.shape[2]))


def _evaluate(*operands, table):
    """The same in JAX's own operations, for sizes that are not known when it is lowered."""
    columns = [jax.lax.split(x, [1] * x.shape[1], axis=1) for x in operands]
    constant = partial(jax.lax.full_like, columns[0][0])
    rows = written_out(table, columns, jax.lax.mul, jax.lax.add, jax.lax.sub, constant)
    return jax.lax.concatenate(rows, 1)


def _lower(context, *operands, table):
    """As StableHLO, without tracing what may be thousands of operations."""
    n, _, c = context.avals_out[0].shape
    if not isinstance(n, int) or not isinstance(c, int):
        return mlir.lower_fun(_evaluate, multiple_results=False)(context, *operands, table=table)
    number = ir.RankedTensorType(operands[0].type).element_type
    column = ir.RankedTensorType.get((n, 1, c), number)
    indices = ir.DenseI64ArrayAttr.get

    def part(x, a):
        return hlo.slice(x, indices([0, a, 0]), indices([n, a + 1, c]), indices([1, 1, 1]))

    def constant(value):
        value = ir.FloatAttr.get(number, value)
        return hlo.constant(ir.DenseElementsAttr.get_splat(column, value))

    columns = [
        [part(x, a) for a in range(size)] for x, size in zip(operands, table.sizes, strict=True)
    ]
    rows = written_out(table, columns, hlo.multiply, hlo.add, hlo.subtract, constant)
    return [hlo.concatenate(rows, ir.IntegerAttr.get(ir.IntegerType.get_signless(64), 1))]


def written_out(table, columns, multiply, add, subtract, constant) -> list:
    """The outputs, from columns[operand][component] and the arithmetic of these."""
    product = cache(lambda monomial: _product(monomial, columns, product, multiply))
    constant = cache(constant)

    def nested(terms):
        """Factors of the last operand are taken out of the sum, then those of the one before."""
        groups: dict = {}
        for monomial, c in terms.items():
            last = monomial[-1] if monomial and monomial[-1][0] else None
            groups.setdefault(last, {})[monomial[:-1] if last else monomial] = c
        return reduce(
            add,
            (
                multiply(nested(rest), columns[last[0]][last[1]]) if last else plain(rest)
                for last, rest in groups.items()
            ),
        )

    def plain(terms):
        """Monomials of operand 0; those whose coefficients differ by sign are summed first."""
        sizes: dict = {}
        for monomial, c in sorted(terms.items(), key=lambda term: term[1] < 0):
            value = product(monomial) if monomial else constant(1.0)
            size = abs(c)
            if size not in sizes:
                sizes[size] = (c, value)
            else:
                first, total = sizes[size]
                sizes[size] = (first, (add if c == first else subtract)(total, value))
        scaled = (v if c == 1 else multiply(v, constant(c)) for c, v in sizes.values())
        return reduce(add, scaled)

    return [nested(terms) if terms else constant(0.0) for terms in table.outputs]


def _product(monomial, columns, product, multiply):
    *before, (operand, component) = monomial
    last = columns[operand][component]
    return multiply(product(tuple(before)), last) if before else last


def _jvp(operands, tangents, *, table):
    out, slopes = _polynomials.bind(*operands, table=table), []
    for k, moved in enumerate(tangents):
        if type(moved) is ad.Zero:
            continue
        if table.is_linear(k):
            args, slope = [*operands[:k], moved, *operands[k + 1 :]], table
        else:
            args, slope = [*operands, moved], table.derivative(k)
        slopes.append(_polynomials.bind(*args, table=slope))
    return out, reduce(ad.add_tangents, slopes)


def _transpose_rule(ct, *operands, table):
    (k,) = (k for k, x in enumerate(operands) if ad.is_undefined_primal(x))
    if type(ct) is ad.Zero:
        return [None] * len(operands)
    args = [*operands[:k], ct, *operands[k + 1 :]]
    back = _polynomials.bind(*args, table=table.transpose(k))
    return [back if i == k else None for i in range(len(operands))]


def _batch(operands, axes, *, table):
    """The new axis joins that of the atoms."""
    size = next(x.shape[a] for x, a in zip(operands, axes, strict=True) if a is not None)

    def front(x, axis):
        x = jnp.broadcast_to(x, (size, *x.shape)) if axis is None else jnp.moveaxis(x, axis, 0)
        return x.reshape(-1, *x.shape[2:])

    args = [front(x, axis) for x, axis in zip(operands, axes, strict=True)]
    out = _polynomials.bind(*args, table=table)
    return out.reshape(size, -1, *out.shape[1:]), 0


_polynomials = Primitive("polynomials")
_polynomials.def_impl(jax.jit(_evaluate, static_argnames="table"))
_polynomials.def_abstract_eval(_shape)
mlir.register_lowering(_polynomials, _lower)
batching.primitive_batchers[_polynomials] = _batch
ad.primitive_jvps[_polynomials] = _jvp
ad.primitive_transposes[_polynomials] = _transpose_rule
