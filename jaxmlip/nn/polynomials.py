"""Sparse polynomials written out term by term, with Jacobians written out too.

The compiler fuses a whole sum into one pass over atoms and channels. Differentiating such a
program automatically repeats its products many times over; the Jacobian is again a sparse
polynomial, so it is derived by hand once, and derivatives of any order follow from it.
A polynomial is {index of a weight: {sorted tuple of component indices: coefficient}}.
"""

import jax
import jax.numpy as jnp


def derivative(polynomial: dict, component: int) -> dict:
    """d(polynomial)/d(component), in the same form; the empty tuple stands for 1."""
    out: dict = {}
    for weight, terms in polynomial.items():
        for monomial, coefficient in terms.items():
            if component in monomial:
                rest = list(monomial)
                rest.remove(component)
                slot = out.setdefault(weight, {})
                count = monomial.count(component)
                slot[tuple(rest)] = slot.get(tuple(rest), 0.0) + count * coefficient
    return out


def polynomial_map(polynomials, n_components: int):
    """The function (components, weights) -> values of the polynomials.

    components: list of n_components arrays, weights: list of arrays of their shape; the result is
    a list of such arrays. Linear in the weights.
    """
    jacobian = [[derivative(p, a) for a in range(n_components)] for p in polynomials]
    flat = [entry for row in jacobian for entry in row]

    @jax.custom_jvp
    def values(x, w):
        return _evaluate(polynomials, x, w)

    def rule(primals, tangents):
        (x, w), (dx, dw) = primals, tangents
        slopes = iter(_evaluate(flat, x, w))
        total = _evaluate(polynomials, x, [None if _is_zero(d) else d for d in dw])
        moved = [(a, d) for a, d in enumerate(dx) if not _is_zero(d)]
        for i, row in enumerate(jacobian):
            row_slopes = [next(slopes) for _ in row]
            total[i] = sum((row_slopes[a] * d for a, d in moved if row[a]), total[i])
        return values(x, w), total

    values.defjvp(rule, symbolic_zeros=True)
    return values


def _is_zero(tangent) -> bool:
    return isinstance(tangent, jax.custom_derivatives.SymbolicZero)


def _evaluate(polynomials, x, w) -> list:
    """Values; a weight that is None counts as zero."""
    powers = {}

    def power(monomial):
        if monomial not in powers:
            *before, last = monomial
            powers[monomial] = power(tuple(before)) * x[last] if before else x[last]
        return powers[monomial]

    def inner(terms):
        return sum(c * power(monomial) if monomial else c for monomial, c in terms.items())

    zero = jnp.zeros_like(x[0])
    return [
        sum((w[k] * inner(terms) for k, terms in p.items() if w[k] is not None), zero)
        for p in polynomials
    ]
