"""Real spherical harmonics of any degree as polynomials, so that every derivative is smooth.

The polar axis is y (components of l = 1 are x, y, z; e3nn's convention) and the normalisation is
'component': on unit vectors the squares of the 2l+1 components add up to 2l+1.
"""

from functools import cache
from itertools import product
from math import factorial, sqrt

import jax.numpy as jnp

from jaxmlip.nn.polynomials import Polynomials
from jaxmlip.system import System, mask_edges


def spherical_harmonics(vectors, l_max: int) -> list:
    """[Y_0, ..., Y_lmax] of vectors [..., 3], each [..., 2l+1].

    Solid harmonics, homogeneous of degree l: give unit vectors for the values on the sphere. No
    angle and no division appears, so gradients of any order are finite in every direction.
    """
    vectors = jnp.asarray(vectors)
    shape = vectors.shape[:-1]
    rows = vectors.reshape(-1, 3).T[None]  # edges last: the compiler fuses and vectorises these

    def degree(l):
        values = _polynomials(l)(rows)[0].T
        return values.reshape(*shape, 2 * l + 1)

    constant = jnp.ones((*shape, 1), vectors.dtype)
    return [constant, *(degree(l) for l in range(1, l_max + 1))]


def edge_harmonics(system: System, vectors, l_max: int) -> list:
    """The same of vectors [edge, 3], and zero for padded edges, as homogeneous functions are."""
    constant, *rest = spherical_harmonics(mask_edges(system, vectors), l_max)
    return [mask_edges(system, constant), *rest]


@cache
def _polynomials(l: int) -> Polynomials:
    """Those of degree l in the components of a vector."""
    z = _variable(1)  # the textbook's z is our y
    square = _sum(*(_times(_variable(a), _variable(a)) for a in range(3)))
    cosines, sines = _azimuthal(_variable(2), _variable(0), l)
    legendre = _legendre(z, square, l)
    return Polynomials(
        tuple(_component(l, m, legendre, cosines, sines) for m in range(-l, l + 1)), (3,)
    )


def _variable(a):
    """A component as a polynomial, {monomial: coefficient} as in `nn.polynomials`."""
    return {((0, a),): 1.0}


def _sum(*polynomials, factors=None):
    """Sum of factor x polynomial; terms that cancel are dropped."""
    out: dict = {}
    for p, factor in zip(polynomials, factors or [1.0] * len(polynomials), strict=True):
        for key, c in p.items():
            out[key] = out.get(key, 0.0) + factor * c
    return {key: c for key, c in out.items() if abs(c) > 1e-13}


def _times(p, q, factor=1.0):
    """p q x factor."""
    out: dict = {}
    for (a, c), (b, d) in product(p.items(), q.items()):
        key = tuple(sorted(a + b))
        out[key] = out.get(key, 0.0) + factor * c * d
    return out


def _azimuthal(x, y, l_max):
    """Real and imaginary parts of (x + iy)^m."""
    cosines, sines = [{(): 1.0}], [{}]
    for _ in range(l_max):
        c, s = cosines[-1], sines[-1]
        cosines.append(_sum(_times(x, c), _times(y, s), factors=(1, -1)))
        sines.append(_sum(_times(x, s), _times(y, c)))
    return cosines, sines


def _legendre(z, square, l_max):
    """{(l, m): r^(l-m) P_l^m(z/r) / sin^m}, by the upward recursion in l, without the sign."""
    table = {(0, 0): {(): 1.0}}
    for m in range(1, l_max + 1):
        table[m, m] = _sum(table[m - 1, m - 1], factors=[2 * m - 1])
    for m in range(l_max):
        table[m + 1, m] = _times(z, table[m, m], 2 * m + 1)
        for l in range(m + 2, l_max + 1):
            upper, lower = _times(z, table[l - 1, m]), _times(square, table[l - 2, m])
            factors = ((2 * l - 1) / (l - m), -(l + m - 1) / (l - m))
            table[l, m] = _sum(upper, lower, factors=factors)
    return table


def _component(l, m, legendre, cosines, sines):
    k = abs(m)
    norm = sqrt((2 * l + 1) * factorial(l - k) / factorial(l + k)) * (sqrt(2) if k else 1)
    return _times(legendre[l, k], cosines[k] if m >= 0 else sines[k], norm)
