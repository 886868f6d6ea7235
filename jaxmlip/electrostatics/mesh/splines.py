"""Cardinal B-splines: weights that carry a charge to a mesh, and what they do to its spectrum."""

from math import comb, factorial

import jax
import jax.numpy as jnp
import numpy as np


def weights(offset, order: int):
    """Shares of the `order` mesh points below a charge, [...] -> [..., order]; they sum to one.

    offset: distance above the nearest point below, in spacings, 0 <= offset < 1. The last share is
    that of the nearest point below, the one before that of the next lower, and so on, shifted by
    half the support: moduli are even, so the shift cancels in every |spectrum|². Recursion of
    Essmann et al. 1995 (10.1063/1.470117); order - 2 continuous derivatives.
    """
    shares = [1 - offset, offset]
    for n in range(3, order + 1):
        rising = [(offset + (n - 1 - j)) * s for j, s in enumerate(shares, 1)]
        falling = [(j + 1 - offset) * s for j, s in enumerate(shares)]
        inner = [a + b for a, b in zip(rising[:-1], falling[1:], strict=True)]
        shares = [s / (n - 1) for s in (falling[0], *inner, rising[-1])]
    return jnp.stack(shares, -1)


def spline(x, order: int):
    """The B-spline of this order with support [0, order], host."""
    x = np.minimum(x, order - x)  # it is even about its middle; powers of large x would cancel
    terms = [
        (-1) ** i * comb(order, i) * np.maximum(x - i, 0.0) ** (order - 1) for i in range(order)
    ]
    return sum(terms) / factorial(order - 1)


def frequencies(n: int):
    """The n integer wavenumbers of a mesh axis, host."""
    return np.fft.fftfreq(n, 1 / n)


def smooth_factors(n: int, order: int):
    """|b(m)|² of smooth PME (Essmann et al. 1995): what undoes interpolation, host, [n]."""
    angle = 2 * np.pi * frequencies(n) / n
    points = np.arange(order - 1)
    sampled = np.exp(1j * np.outer(angle, points)) @ spline(points + 1.0, order)
    return 1 / np.abs(sampled) ** 2


def optimal_factors(n: int, order: int):
    """U²/(sum of U² over aliases)² of P3M, host, [n], U the transform of the spline.

    The influence function of least energy error (Hockney and Eastwood 1988; Ballenegger, Cerda,
    Holm 2012, 10.1021/ct2001792) where the interaction does not reach the aliases, axis by axis.
    """
    m = frequencies(n) / n
    lags = np.arange(1 - order, order)
    aliased = np.cos(2 * np.pi * np.outer(m, lags)) @ spline(lags + float(order), 2 * order)
    return np.sinc(m) ** (2 * order) / aliased**2


def below(x):
    """Integer part (towards -inf) and the offset above it; the integer part has no derivative."""
    whole = jnp.floor(jax.lax.stop_gradient(x))
    return whole.astype(jnp.int32), x - whole
