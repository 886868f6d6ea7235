"""The lowest normal modes without a Hessian: block Davidson on Hessian-vector products.

For stability (is there an imaginary mode?), transition states and soft modes of systems whose full
Hessian is too much. Products run on the device in its precision; the subspace, which is small, is
kept orthogonal on the host in float64, so float32 products still give converged modes.
"""

from collections.abc import Callable
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np

from jaxmlip import units
from jaxmlip.derivatives.second.hessian import chunk_memory, gradient_at, in_chunks, rows_at_once
from jaxmlip.derivatives.second.mass_weighted import (
    inverse_roots,
    mass_weighted_product,
    rigid_motions,
)
from jaxmlip.errors import NumericalError, UsageError


@dataclass(frozen=True, kw_only=True)
class LowestModes:
    """The lowest eigenpairs of the mass-weighted Hessian, and how well they are known. Host."""

    eigenvalues: np.ndarray  # [n_modes] eV/(Å² amu), ascending
    vectors: np.ndarray  # [n_modes, n_atoms, 3] mass-weighted, orthonormal
    residuals: np.ndarray  # [n_modes] |A x - a x|: an eigenvalue lies within this distance
    converged: np.ndarray  # [n_modes] bool, residual below the tolerance
    n_products: int  # Hessian-vector products used

    @property
    def frequencies_cm1(self) -> np.ndarray:
        """[n_modes] negative = imaginary."""
        return _cm1(self.eigenvalues)

    @property
    def uncertainties_cm1(self) -> np.ndarray:
        """[n_modes] bounds from the residuals; the error itself is of second order in them."""
        ends = [_cm1(self.eigenvalues + sign * self.residuals) for sign in (-1, 1)]
        return np.abs(np.array(ends) - self.frequencies_cm1).max(0)


def lowest_modes(
    apply,
    *,
    n_modes: int = 1,
    block: int = 4,
    tolerance: float | None = None,
    max_products: int = 1000,
    max_subspace: int | None = None,
    precondition: Callable | None = None,
    project: bool = True,
    strict: bool = True,
) -> Callable:
    """(params, system, masses, guess=None) -> `LowestModes` of one structure; a host function.

    block: products a step, of one compiled program. tolerance: of the residual, as a share of the
    largest eigenvalue seen; 1e-8 by default, 1e-5 in float32, whose products are no better.
    max_subspace: vectors kept before a restart; by default 20 blocks or 4 n_modes. precondition:
    residual [n_atoms, 3] -> an approximate inverse of (A - eigenvalue) times it, mass-weighted.
    guess: [k, n_atoms, 3] mass-weighted. project: leave out translations, and rotations of
    molecules. Not converged after max_products: `NumericalError`, or with strict=False what is
    there, with `converged` False. Davidson 1975, 10.1016/0021-9991(75)90065-0.
    """
    for name, value in (("n_modes", n_modes), ("block", block), ("max_products", max_products)):
        if not value >= 1:
            raise UsageError(f"{name} is {value}; it must be at least 1", where="lowest_modes")
    program = jax.jit(_products(apply))
    size = max_subspace or max(20 * block, 4 * n_modes + block)

    def lowest_modes_of(params, system, masses, guess=None):
        inverse = inverse_roots(system, masses)
        rigid = rigid_motions(system, inverse, project=project)
        space = _space(inverse, rigid, n_modes)
        dtype = jnp.asarray(system.positions).dtype
        on_device = (params, system, jnp.asarray(inverse, dtype), jnp.asarray(rigid, dtype))

        def products(vectors):
            shaped = np.zeros((block, *inverse.shape[:1], 3))
            shaped[: len(vectors)] = vectors.reshape(-1, *shaped.shape[1:])
            out = program(*on_device, jnp.asarray(shaped, dtype))
            return np.asarray(out, np.float64)[: len(vectors)].reshape(len(vectors), -1)

        limit = tolerance or (1e-8 if dtype == jnp.float64 else 1e-5)
        found = _davidson(
            products, space, guess, n_modes, block, limit, max_products, size, precondition
        )
        return _checked(found, limit, strict)

    return lowest_modes_of


def _products(apply):
    def products(params, system, inverse_root, rigid, vectors):
        product, _ = mass_weighted_product(apply, params, system, inverse_root, rigid)
        at = gradient_at(apply, params, system)
        n = rows_at_once(at, jnp.asarray(system.positions), chunk_memory(), len(vectors))
        return in_chunks(product, vectors, n)

    return products


def _space(inverse_root, rigid, n_modes):
    """Orthonormal rows that vectors must stay orthogonal to: rigid motions; padding is zeroed."""
    real = np.repeat(inverse_root > 0, 3, 1).reshape(-1)
    free = int(real.sum()) - len(rigid)
    if n_modes > free:
        raise UsageError(f"n_modes is {n_modes}; there are {free} vibrations", where="lowest_modes")
    return real, rigid.reshape(len(rigid), -1), free


def _davidson(products, space, guess, n_modes, block, limit, max_products, size, precondition):
    real, rigid, free = space
    rng = np.random.default_rng(0)
    random = lambda: rng.normal(size=(block, len(real)))
    start = random() if guess is None else np.concatenate([_flat(guess)[:block], random()])
    basis, images = np.zeros((0, len(real))), np.zeros((0, len(real)))
    new, used = _orthonormal(start[:block] * real, [rigid]), 0
    while True:
        basis, images = np.concatenate([basis, new]), np.concatenate([images, products(new)])
        used += len(new)
        matrix = basis @ images.T
        values, turns = np.linalg.eigh((matrix + matrix.T) / 2)
        largest = np.abs(values).max()
        k = min(n_modes, len(values))
        vectors, moved = turns[:, :k].T @ basis, turns[:, :k].T @ images
        errors = moved - values[:k, None] * vectors
        residuals = np.linalg.norm(errors, axis=1)
        complete = len(basis) >= free
        open_ = np.flatnonzero(residuals > limit * largest)
        if (k == n_modes and not len(open_)) or complete or used >= max_products:
            return values[:k], vectors, residuals, limit * largest, used
        if len(basis) + block > size:  # restart from the lowest, a block of spares included
            keep = min(n_modes + 2 * block, len(basis))
            basis, images = turns[:, :keep].T @ basis, turns[:, :keep].T @ images
        wanted = errors[open_][:block]
        if precondition is not None:
            wanted = _flat([precondition(e.reshape(-1, 3)) for e in wanted])
        wanted = np.concatenate([wanted, random()])[: min(block, free - len(basis))]
        new = _orthonormal(wanted * real, [rigid, basis])


def _orthonormal(vectors, others):
    """Rows orthonormal to one another and to `others`; a row that vanishes becomes a random one."""
    rng, kept = np.random.default_rng(1), []
    for v in vectors:
        support = np.abs(vectors).sum(0) > 0
        for _ in range(10):
            size = max(np.linalg.norm(v), 1e-300)
            v = v / size
            for _ in range(2):  # once leaves rounding errors along the others
                for rows in (*others, np.reshape(kept, (-1, len(v)))):
                    v = v - (rows @ v) @ rows
            left = np.linalg.norm(v)
            if left > 1e-6:
                kept.append(v / left)
                break
            v = rng.normal(size=len(v)) * support
    return np.array(kept)


def _checked(found, limit, strict):
    values, vectors, residuals, absolute, used = found
    converged = residuals <= absolute
    if strict and not converged.all():
        raise NumericalError(
            f"{int((~converged).sum())} of {len(values)} modes did not converge in {used} "
            f"Hessian-vector products: largest residual {residuals.max():.3g} eV/(Å² amu), "
            f"tolerance {absolute:.3g}",
            where="lowest_modes",
            fix="more max_products, a guess, precondition=, or a tolerance above rounding errors",
        )
    return LowestModes(
        eigenvalues=values,
        vectors=vectors.reshape(len(values), -1, 3),
        residuals=residuals,
        converged=converged,
        n_products=used,
    )


def _flat(vectors):
    vectors = np.asarray(vectors, np.float64)
    return vectors.reshape(len(vectors), -1)


def _cm1(eigenvalues):
    return np.sign(eigenvalues) * np.sqrt(np.abs(eigenvalues)) * units.hbar / units.invcm
