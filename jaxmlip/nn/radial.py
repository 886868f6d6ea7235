"""Radial bases and envelopes: how distances enter, and how they leave smoothly at the cutoff."""

from functools import cache
from math import comb, pi, sqrt

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

SILU_GAIN = 1.6791767923989418  # 1 / rms of silu of a unit normal, so that activations keep it
TANH_GAIN = 1.5937334472592695  # the same for tanh; both as e3nn samples them, exact to 0.2 %


def envelope(r, cutoff: float, *, p: int = 6, smoothness: int = 2):
    """A polynomial that falls from 1 at r = 0 to 0 at the cutoff, [...] -> [...].

    1 + O(r^p) near zero; value and the first `smoothness` derivatives vanish at the cutoff.
    smoothness = 2 is DimeNet's (Gasteiger 2020, arXiv:2003.03123); third derivatives of the
    energy need 3.
    """
    x = jnp.minimum(r / cutoff, 1.0)
    s = smoothness + 1
    # (1-x)^s sum_{k<p} C(s-1+k, k) x^k = 1 - sum_j c_j x^(p+j): few terms, no cancellation near 0
    total = 0.0
    for j in range(s):
        c = (-1) ** j * comb(s - 1, j) * comb(p + s - 1, s - 1) * p / (p + j)
        total = total + c * x ** (p + j)
    return jnp.where(r < cutoff, 1.0 - total, 0.0)


def bessel(r, cutoff: float, n: int, *, frequencies=None):
    """sqrt(2/rc) sin(k pi r/rc) / r for k = 1..n (or `frequencies`), [...] -> [..., n]; r > 0."""
    if frequencies is None:
        k = jnp.asarray(np.arange(1, n + 1) * (pi / cutoff), r.dtype)  # of numpy: a constant
    else:
        k = frequencies.astype(r.dtype) * (pi / cutoff)
    return sqrt(2 / cutoff) * jnp.sin(k * r[..., None]) / r[..., None]


def gaussians(r, cutoff: float, n: int):
    """n Gaussians with centres from 0 to the cutoff and their spacing as width, [..., n]."""
    centres = jnp.linspace(0.0, cutoff, n, dtype=r.dtype)
    width = cutoff / max(n - 1, 1)
    return jnp.exp(-0.5 * ((r[..., None] - centres) / width) ** 2)


def chebyshev(r, cutoff: float, n: int):
    """Chebyshev polynomials T_1 .. T_n of r itself (not of r/cutoff), [...] -> [..., n]."""
    r = jnp.minimum(r, cutoff)  # padded edges are far away, and T_n there overflows
    values = [jnp.ones_like(r), r]
    for _ in range(n - 1):
        values.append(2 * r * values[-1] - values[-2])
    return jnp.stack(values[1:], -1)


def agnesi(r, r0, q: float, p: float, a: float):
    """Distance (0 .. inf) -> (1 .. 0), steepest near the bond length r0; [...] -> [...].

    1 / (1 + a x^q / (1 + x^(q-p))), x = r/r0: Witt et al. 2023, 10.1063/5.0158783.
    """
    x = r / r0
    return 1 / (1 + a * x**q / (1 + x ** (q - p)))


def soft(r, r0, steepness: float):
    """Distance -> distance that does not fall below about 3/4 r0 (smoothly), [...] -> [...]."""
    low, high = 0.75 * r0, 4 / 3 * r0
    slope = steepness / (high - low)
    return low + (r - low) * 0.5 * (1 + jnp.tanh(slope * (r - (low + high) / 2)))


def with_slope(function):
    """function(weights, r [...], *others) -> arrays [..., n], with slopes in r beside the values.

    `others` are arrays of the shape of r. A derivative in r is then a product with a number for
    each value, in every order and both modes, where it would be a pass through `function`: second
    derivatives of wide functions of a distance cost next to nothing. Derivatives in the weights
    and in `others` are those of the function.
    """

    @jax.custom_jvp
    def value(weights, r, *others):
        return function(weights, r, *others)

    def rule(primals, tangents):
        weights, r, *others = primals
        d_weights, dr, *d_others = tangents
        out, rest = value(*primals), (d_weights, d_others)
        moved = jax.tree.map(jnp.zeros_like, out)
        if not _is_zero(dr):
            # one array for all of a width: their cotangents are added before the sum over channels
            wide = cache(lambda n: jnp.broadcast_to(dr[..., None], (*dr.shape, n)))
            moved = jax.tree.map(lambda x: wide(x.shape[-1]) * x, slope(*primals))
        if not all(map(_is_zero, jax.tree.leaves(rest))):
            at_r = lambda weights, others: function(weights, r, *others)
            more = jax.jvp(at_r, (weights, others), jax.tree.map(_instantiate, rest))[1]
            moved = jax.tree.map(jnp.add, moved, more)
        return out, moved

    def slope(weights, r, *others):
        along = lambda weights, r, *others: jax.jvp(
            lambda r: function(weights, r, *others), (r,), (jnp.ones_like(r),)
        )[1]
        return with_slope(along)(weights, r, *others)

    value.defjvp(rule, symbolic_zeros=True)
    return value


def _is_zero(tangent) -> bool:
    return isinstance(tangent, jax.custom_derivatives.SymbolicZero)


def _instantiate(tangent):
    return jnp.zeros(tangent.shape, tangent.dtype) if _is_zero(tangent) else tangent


class RadialMLP(nn.Module):
    """Radial basis [..., n] -> weights [..., n_out]; no bias, so zero basis gives zero weight."""

    widths: tuple[int, ...]
    n_out: int

    @nn.compact
    def layers(self, n_in: int) -> tuple[list, jax.Array]:
        """The matrices of the hidden layers, and the last, [width, n_out]."""
        sizes = (n_in, *self.widths, self.n_out)
        normal = nn.initializers.normal(1.0)
        *hidden, last = [
            self.param(f"layer_{i}", normal, (m, n))
            for i, (m, n) in enumerate(zip(sizes[:-1], sizes[1:], strict=True))
        ]
        return hidden, last

    def function(self, n_in: int):
        """The map itself, basis -> weights, for a basis of n_in functions."""
        layers = self.layers(n_in)
        return lambda basis: radial_weights(layers, basis)

    def __call__(self, basis):
        return self.function(basis.shape[-1])(basis)


def radial_weights(layers, basis, *, scaled: bool = True):
    """(hidden matrices, last matrix), basis [..., n] -> weights [..., n_out].

    Not `scaled`: times sqrt(last width), for who divides in passing elsewhere.
    """
    hidden, last = layers
    scale = 1 / sqrt(len(last)) if scaled else 1.0
    return perceptron(hidden, basis, scale) @ last.astype(basis.dtype)


def split_last(x, sizes) -> list:
    """[..., sum of sizes] -> [..., size] for each; one operation (its gradient is one, too)."""
    return jax.lax.split(x, sizes, axis=x.ndim - 1)


def perceptron(layers, x, scale: float = 1.0):
    """x [..., n] through matrices, each followed by a silu of unit gain; the result times a number.

    Not the matrices but what they give is divided by the root of their size, in passing.
    """
    gains, roots = [SILU_GAIN] * len(layers), [sqrt(len(w)) for w in layers]
    gains[-1:] = [gain * scale for gain in gains[-1:]]
    if len(layers) > 1:  # the first layer is then compiled as the second
        x, roots[0] = x * (roots[1] / roots[0]), roots[1]
    for w, gain, root in zip(layers, gains, roots, strict=True):
        x = jax.nn.silu((x @ w.astype(x.dtype)) * (1 / root)) * gain
    return x if layers else x * scale
