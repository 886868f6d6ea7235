"""Attention over neighbours as in So3krates: scalars and Euclidean variables, no tensor products.

Atoms carry scalars [n, channels] and one Euclidean variable, the components of a few degrees in
one row [n, sum of 2l+1]. Neighbours are weighed by scalar products of query and key in which a
filter of distance and relative orientation enters; only the norm of each degree feeds back into
the scalars (Frank, Unke and Müller 2022, arXiv:2205.14276; Frank et al. 2024,
10.1038/s41467-024-50620-6).
"""

from math import comb, log

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from jaxmlip.system import System, at_receivers, sum_edges, to_edges

BERNSTEIN_DECAY = 0.9448630809783936  # 1/Å, 1/2 bohr rounded as the published code rounds it
KEYS = ("key_0", "key_1")  # for the scalars, for the Euclidean variables


class AttentionLayer(nn.Module):
    """One layer: attention, then an exchange of scalars and Euclidean variables at each atom.

    x [n, channels]; euclidean [n, m] or None where it is still zero; basis [edges, n_radial],
    harmonics [edges, m] of unit vectors and smooth [edges] (0 at the cutoff) -> (x, euclidean).
    """

    heads: int
    degrees: tuple[int, ...]
    avg_num_neighbors: float

    @nn.compact
    def __call__(self, system: System, x, euclidean, basis, harmonics, smooth):
        dx, de = self._attention(system, x, euclidean, basis, harmonics, smooth)
        x = norm("norm_0", x + dx)
        euclidean = de if euclidean is None else euclidean + de
        hidden = jax.nn.silu(dense("mlp_0", jax.nn.silu(x), x.shape[-1]))
        x = x + dense("mlp_1", hidden, x.shape[-1])
        return self._exchange(x, euclidean)

    def _attention(self, system, x, euclidean, basis, harmonics, smooth):
        n, groups = x.shape[-1], (self.heads, len(self.degrees))
        own = {"value": self._heads("value", x, groups[0])}
        own |= {k: self._heads(k, x, count) for k, count in zip(KEYS, groups, strict=True)}
        if euclidean is not None:
            own["euclidean"] = euclidean
        sent = to_edges(system, own)
        turns = jnp.zeros(len(self.degrees), x.dtype)
        if euclidean is not None:
            turns = sent["euclidean"] - at_receivers(system, euclidean)
            turns = invariants(turns, self.degrees)
        radial = jax.nn.silu(dense("radial", basis, 2 * n))
        spherical = jax.nn.silu(dense("spherical", turns, n // 2))
        weights = [
            self._weights(i, system, x, sent[KEYS[i]], radial, spherical) * smooth[..., None]
            for i in (0, 1)
        ]
        scalars = sum_edges(system, weights[0][..., None] * sent["value"]).reshape(x.shape)
        return scalars, sum_edges(system, (weights[1] @ spread(self.degrees, x.dtype)) * harmonics)

    def _weights(self, i, system, x, key, radial, spherical):
        """Weights of the neighbours, [edges, heads] for i = 0 and [edges, n_degrees] for i = 1."""
        n, m, groups = x.shape[-1], spherical.shape[-1] // 2, key.shape[-2]
        filters = dense(f"radial_{i}", radial[..., i * n : (i + 1) * n], n)
        filters += dense(f"spherical_{i}", spherical[..., i * m : (i + 1) * m], n)
        query = at_receivers(system, self._heads(f"query_{i}", x, groups))
        product = query * key * filters.reshape(*filters.shape[:-1], groups, n // groups)
        return product.sum(-1) / self.avg_num_neighbors

    def _heads(self, name, x, groups):
        """A linear map of each group of channels to itself, [n, c] -> [n, groups, c / groups]."""
        width = x.shape[-1] // groups
        init = nn.initializers.lecun_normal(batch_axis=(0,))
        w = jnp.asarray(self.param(name, init, (groups, width, width)), x.dtype)
        return jnp.einsum("ngc,gdc->ngd", x.reshape(-1, groups, width), w)

    def _exchange(self, x, euclidean):
        n = x.shape[-1]
        both = jnp.concatenate([x, invariants(euclidean, self.degrees)], -1)
        change = dense("exchange", both, both.shape[-1])
        euclidean = euclidean * (1 + change[:, n:] @ spread(self.degrees, x.dtype))
        return norm("norm_1", x + change[:, :n]), euclidean


def spread(degrees, dtype):
    """Matrix of zeros and ones [n_degrees, m]: one number for all components of a degree."""
    return jnp.asarray(np.repeat(np.eye(len(degrees)), [2 * l + 1 for l in degrees], 1), dtype)


def invariants(euclidean, degrees):
    """Squared norm of each degree over sqrt(2l+1), [..., m] -> [..., n_degrees]."""
    scale = np.sqrt([2 * l + 1 for l in degrees])
    return (euclidean**2) @ (
        spread(degrees, euclidean.dtype).T / jnp.asarray(scale, euclidean.dtype)
    )


def dense(name, x, n_out: int, *, bias: bool = True):
    """x @ kernel + bias in the precision of x; inside a compact method, whose module owns it."""
    return nn.Dense(n_out, use_bias=bias, dtype=x.dtype, name=name)(x)


def norm(name, x):
    """Layer normalisation; inside a compact method, whose module owns scale and bias."""
    return nn.LayerNorm(use_fast_variance=False, dtype=x.dtype, name=name)(x)


def bernstein(r, n: int):
    """Bernstein polynomials of degree n - 1 in exp(-r / 2 bohr), r > 0: [...] -> [..., n].

    Unke et al. 2021, 10.1038/s41467-021-27504-0: densest at short distances, and no cutoff.
    """
    x = (BERNSTEIN_DECAY * r)[..., None]
    k = np.arange(n)
    binomials = jnp.asarray([log(comb(n - 1, i)) for i in k], r.dtype)
    k = jnp.asarray(k, r.dtype)
    return jnp.exp(binomials - k * x + (n - 1 - k) * jnp.log(-jnp.expm1(-x)))
