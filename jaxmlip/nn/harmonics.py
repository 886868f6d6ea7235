"""Real spherical harmonics of any degree as polynomials, so that every derivative is smooth.

The polar axis is y (components of l = 1 are x, y, z; e3nn's convention) and the normalisation is
'component': on unit vectors the squares of the 2l+1 components add up to 2l+1.
"""

from math import factorial, sqrt

import jax
import jax.numpy as jnp

from jaxmlip.system import System, mask_edges


def spherical_harmonics(vectors, l_max: int) -> list:
    """[Y_0, ..., Y_lmax] of vectors [..., 3], each [..., 2l+1].

    Solid harmonics, homogeneous of degree l: give unit vectors for the values on the sphere. No
    angle and no division appears, so gradients of any order are finite in every direction.
    """
    vectors = jnp.asarray(vectors)
    parts = jax.lax.split(vectors, [1, 1, 1], axis=vectors.ndim - 1)
    y, z, x = (part[..., 0] for part in parts)  # the textbook's z is our y
    square = x * x + y * y + z * z
    cosines, sines = _azimuthal(x, y, l_max)
    legendre = _legendre(z, square, l_max)
    return [_degree(l, legendre, cosines, sines) for l in range(l_max + 1)]


def edge_harmonics(system: System, vectors, l_max: int) -> list:
    """The same of vectors [edge, 3], and zero for padded edges, as homogeneous functions are."""
    constant, *rest = spherical_harmonics(mask_edges(system, vectors), l_max)
    return [mask_edges(system, constant), *rest]


def _azimuthal(x, y, l_max):
    """Real and imaginary parts of (x + iy)^m."""
    cosines, sines = [jnp.ones_like(x)], [jnp.zeros_like(x)]
    for _ in range(l_max):
        c, s = cosines[-1], sines[-1]
        cosines.append(x * c - y * s)
        sines.append(x * s + y * c)
    return cosines, sines


def _legendre(z, square, l_max):
    """{(l, m): r^(l-m) P_l^m(z/r) / sin^m}, by the upward recursion in l, without the sign."""
    table = {(0, 0): jnp.ones_like(z)}
    for m in range(1, l_max + 1):
        table[m, m] = (2 * m - 1) * table[m - 1, m - 1]
    for m in range(l_max):
        table[m + 1, m] = (2 * m + 1) * z * table[m, m]
        for l in range(m + 2, l_max + 1):
            upper, lower = table[l - 1, m], table[l - 2, m]
            table[l, m] = ((2 * l - 1) * z * upper - (l + m - 1) * square * lower) / (l - m)
    return table


def _degree(l, legendre, cosines, sines):
    def component(m):
        k = abs(m)
        norm = sqrt((2 * l + 1) * factorial(l - k) / factorial(l + k)) * (sqrt(2) if k else 1)
        return norm * legendre[l, k] * (cosines[k] if m >= 0 else sines[k])

    return jnp.stack([component(m) for m in range(-l, l + 1)], -1)
