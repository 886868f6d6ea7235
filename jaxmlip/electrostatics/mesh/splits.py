"""1/r as a short part, zero beyond a cutoff, and a smooth part that a mesh can carry.

    1/r = short(r) + smooth(r),    smooth(r) = 1/r times the charge of a round cloud within r

What differs is the profile of the cloud. `gaussian` is Ewald's (smooth = erf(alpha r)/r; short is
cut where it is small). `prolate` takes the prolate spheroidal wave function of order zero, the
function on [0, cutoff] whose Fourier transform leaks least out of [0, c / cutoff] (Slepian and
Pollak 1961): its short part is zero at the cutoff by construction, and the mesh may be several
times coarser (Liang, Lu, Barnett, Greengard, Jiang 2025, arXiv:2505.09727).

Both parts are tables made on the host: smooth(r) is analytic in r², so a short polynomial holds it,
and no square root, exponential or error function is left for the device but one 1/sqrt(r²).
"""

from dataclasses import dataclass
from functools import partial
from math import erf, log, pi, sqrt

import jax
import jax.numpy as jnp
import numpy as np
from numpy.polynomial import chebyshev, legendre


@dataclass(frozen=True)
class Split:
    """The tables of one split; static under `jit`."""

    cutoff: float  # Å, where short(r) ends
    smooth: tuple[float, ...]  # polynomial in y = 2 r²/cutoff² - 1, highest power first, 1/Å
    at_zero: float  # smooth(0), 1/Å
    curvature: float  # d smooth / d(r²) at 0, 1/Å³
    volume: float  # integral of short over space, Å²
    k_max: float  # 1/Å, where the spectrum ends
    spectrum: tuple[float, ...]  # Chebyshev coefficients in 2 k²/k_max² - 1

    def short(self, r2):
        """(short(r), its derivative with respect to r²) from r² in Å²; zero beyond the cutoff."""
        inside = r2 < self.cutoff**2
        # a safe value before the root: what `where` discards must be finite, with its slopes
        r2 = jnp.where(inside, r2, 0.5 * self.cutoff**2)
        scale = 2 / self.cutoff**2
        y, inverse = scale * r2 - 1, 1 / jnp.sqrt(r2)
        value = inverse - horner(self.smooth, y)
        slope = -0.5 * inverse / r2 - scale * horner(slope_of(self.smooth), y)
        return jnp.where(inside, value, 0.0), jnp.where(inside, slope, 0.0)

    def transform(self, k2):
        """Fourier transform of smooth(r) times k²/4 pi: 1 at k = 0, zero beyond k_max."""
        z = jnp.minimum(k2 * (2 / self.k_max**2) - 1, 1.0)
        return jnp.where(k2 <= self.k_max**2, clenshaw(self.spectrum, z), 0.0)


def prolate(shape: float, cutoff: float, *, accuracy: float = 1e-10) -> Split:
    """The split whose cloud is the prolate spheroidal wave function of bandwidth `shape` (c).

    Nearly all of its spectrum lies below shape / cutoff; the table ends smoothly at twice that.
    """
    profile = prolate_function(shape)
    t, weight = legendre.leggauss(160)
    t, weight = 0.5 * (t + 1), 0.5 * weight
    norm = weight @ legendre.legval(t, profile)
    density = lambda x: legendre.legval(x, profile) / norm
    charge, zero = density(t) * weight, float(density(0.0))
    smooth = lambda r2: density(np.sqrt(r2)[..., None] / cutoff * t) @ weight / cutoff
    wave = lambda k2: np.cos(np.sqrt(k2)[..., None] * cutoff * t) @ charge
    k_max = 2 * shape / cutoff
    table = polynomial(smooth, cutoff**2, accuracy * zero / cutoff)
    return Split(
        cutoff=cutoff,
        smooth=table,
        at_zero=zero / cutoff,
        curvature=2 / cutoff**2 * float(np.polyval(slope_of(table), -1.0)),
        volume=float(2 * pi * cutoff**2 * (charge @ t**2)),
        k_max=k_max,
        spectrum=series(lambda k2: wave(k2) * fade(k2 / k_max**2), k_max**2, accuracy),
    )


def gaussian(shape: float, cutoff: float, *, accuracy: float = 1e-10) -> Split:
    """Ewald's split with alpha = shape / cutoff. Short ends with a step of erfc(shape)/cutoff."""
    alpha = shape / cutoff
    smooth = lambda r: np.array([erf(alpha * x) / x for x in r.ravel()]).reshape(r.shape)
    k_max = 2 * alpha * sqrt(-log(accuracy))
    return Split(
        cutoff=cutoff,
        smooth=polynomial(lambda r2: smooth(np.sqrt(r2)), cutoff**2, accuracy * alpha),
        at_zero=2 * alpha / sqrt(pi),
        curvature=-2 * alpha**3 / (3 * sqrt(pi)),
        volume=pi / alpha**2,
        k_max=k_max,
        spectrum=series(lambda k2: np.exp(-k2 / (4 * alpha**2)), k_max**2, accuracy),
    )


def fade(z):
    """1 up to about z = 1/2, two derivatives zero at z = 1."""
    return (1 - z**8) ** 3


def prolate_function(c: float, terms: int = 60):
    """Legendre coefficients of the prolate spheroidal wave function psi_0 on [-1, 1], host.

    The eigenvector of its differential operator, tridiagonal in normalised even Legendre
    polynomials (Xiao, Rokhlin, Yarvin 2001, 10.1088/0266-5611/17/4/315).
    """
    k = 2.0 * np.arange(terms)
    matrix = np.diag(k * (k + 1) + (2 * k * (k + 1) - 1) / ((2 * k + 3) * (2 * k - 1)) * c**2)
    next_ = (k + 2) * (k + 1) / ((2 * k + 3) * np.sqrt((2 * k + 1) * (2 * k + 5))) * c**2
    matrix += np.diag(next_[:-1], 1) + np.diag(next_[:-1], -1)
    lowest = np.linalg.eigh(matrix)[1][:, 0]
    out = np.zeros(2 * terms)
    out[::2] = lowest * np.sqrt(k + 0.5)
    return out * np.sign(legendre.legval(0.0, out))


# --- tables of functions -------------------------------------------------------------------------


def series(function, end: float, accuracy: float) -> tuple[float, ...]:
    """Chebyshev coefficients of function(x) on [0, end] in 2 x/end - 1, cut at `accuracy`."""
    coefficients = chebyshev.chebinterpolate(lambda z: function(0.5 * (z + 1) * end), 90)
    large = np.nonzero(np.abs(coefficients) > accuracy)[0]
    return tuple(coefficients[: large[-1] + 1].tolist())


def polynomial(function, end: float, accuracy: float) -> tuple[float, ...]:
    """The same in powers of 2 x/end - 1, highest first: cheaper, and safe where few terms do."""
    return tuple(chebyshev.cheb2poly(series(function, end, accuracy))[::-1].tolist())


def slope_of(powers) -> tuple[float, ...]:
    """The derivative of a polynomial, highest power first."""
    return tuple(np.polyder(powers).tolist()) or (0.0,)


@partial(jax.custom_jvp, nondiff_argnums=(0,))
def horner(powers, y):
    """A polynomial, highest power first; its derivatives are polynomials, too."""
    total = jnp.full_like(y, powers[0])
    for coefficient in powers[1:]:
        total = total * y + coefficient
    return total


@horner.defjvp
def _horner_jvp(powers, primals, tangents):
    slope = horner(slope_of(powers), *primals)
    return horner(powers, *primals), slope * tangents[0]


@partial(jax.custom_jvp, nondiff_argnums=(0,))
def clenshaw(coefficients, z):
    """Sum of Chebyshev polynomials: stable where the powers of many terms would cancel."""
    ahead = last = jnp.zeros_like(z)
    for coefficient in coefficients[:0:-1]:
        ahead, last = 2 * z * ahead - last + coefficient, ahead
    return z * ahead - last + coefficients[0]


@clenshaw.defjvp
def _clenshaw_jvp(coefficients, primals, tangents):
    slope = clenshaw(tuple(chebyshev.chebder(coefficients).tolist()), *primals)
    return clenshaw(coefficients, *primals), slope * tangents[0]
