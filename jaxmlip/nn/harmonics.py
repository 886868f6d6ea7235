"""Real spherical harmonics of any degree as polynomials, so that every derivative is smooth.

The polar axis is y (components of l = 1 are x, y, z; e3nn's convention) and the normalisation is
'component': on unit vectors the squares of the 2l+1 components add up to 2l+1.
"""

from functools import cache
from math import sqrt

import jax
import jax.numpy as jnp

from jaxmlip.nn.clebsch_gordan import clebsch_gordan
from jaxmlip.system import System, mask_edges


def spherical_harmonics(vectors, l_max: int):
    """Y_0 .. Y_lmax of vectors [..., 3], one after the other, [..., (l_max+1)²]: l² .. (l+1)² is l.

    Solid harmonics, homogeneous of degree l: give unit vectors for the values on the sphere. No
    angle and no division appears, so gradients of any order are finite in every direction. Each
    degree is the one below coupled to the vector, one matrix product: little to compile.
    """
    vectors = jnp.asarray(vectors)
    shape = vectors.shape[:-1]
    degrees = [jnp.ones((*shape, 1), vectors.dtype), sqrt(3) * vectors][: l_max + 1]
    for l in range(1, l_max):
        products = degrees[-1][..., :, None] * vectors[..., None, :]
        table = jnp.asarray(_next_degree(l), vectors.dtype)
        flat = products.reshape(*shape, len(table))
        degrees.append(jnp.matmul(flat, table, precision=jax.lax.Precision.HIGHEST))
    return jnp.concatenate(degrees, -1)


def edge_harmonics(system: System, vectors, l_max: int):
    """The same of vectors [edge, 3], and zero for padded edges."""
    return mask_edges(system, spherical_harmonics(mask_edges(system, vectors), l_max))


@cache
def _next_degree(l):
    """[(2l+1) 3, 2l+3]: (harmonic of degree l) x (component of the vector) -> degree l + 1."""
    table = (2 * l + 3) / sqrt(l + 1) * clebsch_gordan(l, 1, l + 1)
    return table.reshape(-1, 2 * l + 3)
