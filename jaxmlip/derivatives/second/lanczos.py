"""The spectrum of a Hessian that is never built: stochastic Lanczos quadrature.

Sums over all vibrations (heat capacity, entropy, free energy, density of states) are traces of a
function of the mass-weighted Hessian. A random vector and a few Hessian-vector products give a
Gauss quadrature of it, and the mean over vectors its trace: the error falls as the root of
vectors x modes, so the larger the cell the fewer are needed.
Method: Ubaru, Chen and Saad 2017, 10.1137/16M1104974.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxmlip.derivatives.second.hessian import chunk_memory, gradient_at, in_chunks, rows_at_once
from jaxmlip.derivatives.second.mass_weighted import (
    inverse_roots,
    mass_weighted_product,
    rigid_motions,
)
from jaxmlip.errors import NumericalError, UsageError


class Estimate(NamedTuple):
    """A sum over modes and what is known of its error; same shape as the function's values."""

    value: np.ndarray
    error: np.ndarray  # one standard deviation, from the number of random vectors
    truncation: np.ndarray  # change when a quarter of the Lanczos steps is left out


@dataclass(frozen=True, kw_only=True)
class SpectralDensity:
    """Quadrature of the vibrations of one structure; host numpy, float64."""

    diagonals: np.ndarray  # [n_probes, n_steps] of the Lanczos matrices, eV/(Å² amu)
    off_diagonals: np.ndarray  # [n_probes, n_steps - 1]
    n_modes: int  # that there are: 3 n_atoms without rigid motions
    n_products: int  # Hessian-vector products used

    @property
    def n_probes(self) -> int:
        return len(self.diagonals)


def spectral_density(
    apply,
    *,
    n_probes: int = 5,
    n_steps: int = 20,
    project: bool = True,
    memory: float | None = None,
):
    """(params, system, masses, key) -> `SpectralDensity` of one structure; a host function.

    n_probes x n_steps Hessian-vector products, linearised once, compiled once. Lanczos vectors
    are kept (n_steps x 3 n_atoms numbers a probe) and fully reorthogonalised: no ghosts.
    Translations, and rotations of molecules, are projected out unless project=False. masses: amu,
    of the real atoms. key: `jax.random.key`. memory: bytes that the products of the probes of one
    chunk may use, as for `hessian`.
    """
    for name, value in (("n_probes", n_probes), ("n_steps", n_steps)):
        if not value >= 1:
            raise UsageError(f"{name} is {value}; it must be at least 1", where="spectral_density")
    program = jax.jit(_quadratures(apply, n_probes, n_steps, memory))

    def spectral_density_of(params, system, masses, key):
        inverse = inverse_roots(system, masses)
        rigid = rigid_motions(system, inverse, project=project)
        dtype = jnp.asarray(system.positions).dtype
        on_device = jnp.asarray(inverse, dtype), jnp.asarray(rigid, dtype)
        diagonals, off_diagonals = program(params, system, *on_device, key)
        diagonals = np.asarray(diagonals, np.float64)
        if not np.isfinite(diagonals).all():
            raise NumericalError("the Hessian is not finite", where="spectral_density")
        return SpectralDensity(
            diagonals=diagonals,
            off_diagonals=np.asarray(off_diagonals, np.float64)[:, :-1],
            n_modes=3 * int((inverse > 0).sum()) - len(rigid),
            n_products=n_probes * n_steps,
        )

    return spectral_density_of


def nodes_and_weights(density: SpectralDensity, *, n_steps: int | None = None):
    """Eigenvalues [n_probes, k], eV/(Å² amu), and weights [n_probes, k] that sum to 1 a probe."""
    k = n_steps or density.diagonals.shape[1]
    nodes, weights = [], []
    for diagonal, beside in zip(density.diagonals, density.off_diagonals, strict=True):
        beside = beside[: k - 1]
        matrix = np.diag(diagonal[:k]) + np.diag(beside, 1) + np.diag(beside, -1)
        values, vectors = np.linalg.eigh(matrix)
        nodes.append(values)
        weights.append(vectors[0] ** 2)
    return np.array(nodes), np.array(weights)


def sum_over_modes(density: SpectralDensity, function: Callable) -> Estimate:
    """Sum of function(eigenvalue) over all modes: value, statistical error, and truncation.

    function: eigenvalues [k] (squared angular frequencies, eV/(Å² amu); negative = imaginary) to
    [k, ...]. The error needs no repeats: for directions uniform on the sphere of n_modes dimensions
    the variance of a probe is 2 (<f²> - <f>²) / (n_modes + 2), averages over modes.
    """
    mean, square = _means(density, function, None)
    n_steps = density.diagonals.shape[1]
    fewer, _ = _means(density, function, max(1, n_steps - max(1, n_steps // 4)))
    n = density.n_modes
    variance = 2 * np.maximum(square - mean**2, 0) / ((n + 2) * density.n_probes)
    return Estimate(n * mean, n * np.sqrt(variance), n * np.abs(mean - fewer))


def _means(density, function, n_steps):
    """<f> and <f²> over modes."""
    nodes, weights = nodes_and_weights(density, n_steps=n_steps)
    real = weights > 1e-24  # others are zeros that fill up a space exhausted early
    values = np.asarray(function(nodes[real]), np.float64)
    weights = weights[real] / density.n_probes
    average = lambda x: np.tensordot(weights, x, 1)
    return average(values), average(values**2)


def _quadratures(apply, n_probes, n_steps, memory):
    memory = chunk_memory() if memory is None else memory

    def quadratures(params, system, inverse_root, rigid, key):
        positions = jnp.asarray(system.positions)
        product, project = mass_weighted_product(apply, params, system, inverse_root, rigid)

        def probe(key):
            # normal, not +-1: uniform on the sphere, for which the variance is known
            start = jax.random.normal(key, positions.shape, positions.dtype)
            return _lanczos(product, project(jnp.where(inverse_root > 0, start, 0)), n_steps)

        at = gradient_at(apply, params, system)
        chunk = rows_at_once(at, positions, memory, n_probes)
        return in_chunks(probe, jax.random.split(key, n_probes), chunk)

    return quadratures


def _lanczos(product, start, n_steps):
    """Diagonal [n_steps] and off-diagonal [n_steps] of the Lanczos matrix from one vector."""
    size = start.size
    dot = lambda x, y: jnp.dot(x, y, precision=jax.lax.Precision.HIGHEST)
    tiny = 1e3 * jnp.finfo(start.dtype).eps

    def step(carry, i):
        basis, q, largest = carry
        basis = basis.at[i].set(q)
        w = product(q.reshape(start.shape)).reshape(size)
        diagonal = dot(q, w)
        for _ in range(2):
            w = w - dot(dot(basis, w), basis)
        beside = jnp.linalg.norm(w)
        largest = jnp.maximum(largest, jnp.abs(diagonal) + beside)
        ended = beside <= tiny * largest  # the space is exhausted: exact from here on
        beside = jnp.where(ended, 0, beside)
        q = jnp.where(ended, 0, w / jnp.where(ended, 1, beside))
        return (basis, q, largest), (diagonal, beside)

    flat = start.reshape(size)
    norm = jnp.linalg.norm(flat)
    first = flat / jnp.where(norm > 0, norm, 1)
    basis = jnp.zeros((n_steps, size), start.dtype)
    _, out = jax.lax.scan(step, (basis, first, jnp.zeros((), start.dtype)), jnp.arange(n_steps))
    return out
