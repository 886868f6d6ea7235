"""Radial kernels 1/r^p, split into a part that a cutoff holds and a smooth rest.

A split kernel has five numbers or functions, all that a solver needs: `short(r²)`, the part summed
over edges; `smooth(k²)`, the Fourier transform of the rest; its value at k = 0 (`background`); and
what the rest does to a charge and to a dipole where they are (`self_charge`, `self_dipole`).
"""

from dataclasses import dataclass
from math import gamma, pi, sqrt

import jax
import jax.numpy as jnp
from jax.scipy.special import erfc, exp1


@dataclass(frozen=True)
class InversePower:
    """1/r^p = Gamma(p/2, a² r²) / (Gamma(p/2) r^p) + rest, with a = alpha in 1/Å, p = 1 ... 6.

    Williams, Acta Cryst. A 27, 452 (1971); p = 1 is Ewald's erfc(a r) / r.
    """

    power: int
    alpha: float

    def short(self, r2):
        """The part of the edges, r2 in Å²."""
        s = self.alpha**2 * r2
        return _upper(self.power, s) * inverse_power(r2, self.power)

    def smooth(self, k2):
        """Fourier transform of the rest, k2 > 0 in 1/Å²."""
        x = k2 / (4 * self.alpha**2)
        scale = pi**1.5 / gamma(self.power / 2) * self.alpha ** (self.power - 3)
        return scale * _transform(self.power, x)

    @property
    def background(self) -> float:
        """The transform at k = 0: finite for p > 3, less that of a uniform background else."""
        p = self.power
        if p == 3:
            return 0.0
        return pi**1.5 / gamma(p / 2) * self.alpha ** (p - 3) * 2 / (p - 3)

    @property
    def self_charge(self) -> float:
        """The rest at r = 0."""
        return self.alpha**self.power / gamma(self.power / 2 + 1)

    @property
    def self_dipole(self) -> float:
        """-2 d/d(r²) of the rest at r = 0."""
        h = self.power / 2
        return 2 * self.alpha ** (self.power + 2) / (gamma(h) * (h + 1))


def inverse_power(r2, power: int):
    """1/r^power."""
    even = (1 / r2) ** (power // 2)
    return even if power % 2 == 0 else even * jax.lax.rsqrt(r2)


def _upper(p, s):
    """Gamma(p/2, s) / Gamma(p/2)."""
    h = p / 2
    if p % 2 == 0:
        return jnp.exp(-s) * sum(s**k / gamma(k + 1) for k in range(p // 2))
    terms = [s**k / gamma(k + 1) for k in _halves(h)]
    return erfc(jnp.sqrt(s)) + (jnp.exp(-s) * sum(terms) if terms else 0)


def _halves(h):
    return [0.5 + i for i in range(int(h - 0.5))]


def _transform(p, x):
    """Gamma((3-p)/2, x) x^((p-3)/2), by recursion from p = 1, 2 or 3."""
    if p == 1:
        return jnp.exp(-x) / x
    if p == 2:
        return sqrt(pi) * erfc(jnp.sqrt(x)) / jnp.sqrt(x)
    if p == 3:
        return exp1(x)
    return (jnp.exp(-x) - x * _transform(p - 2, x)) * 2 / (p - 3)


def window(r2, radius: float):
    """1 at r = 0, 0 from `radius` on, three continuous derivatives."""
    x = jnp.sqrt(jnp.minimum(r2 / radius**2, 1.0))
    return 1 - x**4 * (35 - x * (84 - x * (70 - 20 * x)))


def bare(power: int, exclude: float | None = None):
    """1/r^p as a function of r², less what a window of radius `exclude` (Å) takes away."""

    def kernel(r2):
        whole = inverse_power(r2, power)
        return whole if exclude is None else whole * (1 - window(r2, exclude))

    return kernel


def less_window(short, power: int, exclude: float | None):
    """`short` without the pairs inside the window, which are left to the short-range model."""
    if exclude is None:
        return short
    return lambda r2: short(r2) - window(r2, exclude) * inverse_power(r2, power)


def interaction(kernel, vectors, first, second):
    """Energy of two sites with (charge, dipole or None) at the ends of `vectors` = r2 - r1.

    kernel: a function of r². With L = q + mu.grad it is L1 L2 kernel; dipoles need its first and
    second derivative, which come from `kernel` itself.
    """
    r2 = (vectors**2).sum(-1)
    (q1, mu1), (q2, mu2) = first, second
    energy = q1 * q2 * kernel(r2)
    if mu1 is None:
        return energy
    slope = _descent(kernel)
    along1, along2 = (mu1 * vectors).sum(-1), (mu2 * vectors).sum(-1)
    single = q2 * along1 - q1 * along2 + (mu1 * mu2).sum(-1)
    return energy + slope(r2) * single - _descent(slope)(r2) * along1 * along2


def _descent(function):
    """-2 d/dx, which is -(1/r) d/dr of a function of x = r²."""
    return lambda x: jax.jvp(function, (x,), (jnp.full_like(x, -2),))[1]
