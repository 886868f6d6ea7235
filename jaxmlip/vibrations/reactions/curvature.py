"""Where a search on the energy surface learns its curvature: a Hessian, or products with it."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from jaxmlip.errors import UsageError
from jaxmlip.vibrations.modes import frequencies_cm1, normal_modes
from jaxmlip.vibrations.reactions import surface as surfaces
from jaxmlip.vibrations.reactions.quadratic import informed, lowest


class Curvature(NamedTuple):
    """Where the quadratic model comes from."""

    model: Callable  # (surface, model or None, guess [3 n_free], age) -> (model, products)
    modes: Callable  # (surface, model or None, guess) -> Lowest


class Lowest(NamedTuple):
    """The lowest modes, or all of them, in order."""

    frequencies_cm1: np.ndarray  # [k] imaginary ones negative
    vectors: np.ndarray  # [k, n_atoms, 3] mass-weighted, orthonormal
    products: int  # Hessian-vector products they cost
    certain: bool  # whether they are those to a small residual


def exact_hessian(every: int = 1) -> Curvature:
    """The whole Hessian every `every` steps, updated from gradients between; for small molecules.

    Costs 3 n_free Hessian-vector products each time.
    """
    if every < 1:
        raise UsageError(f"every is {every}; it must be at least 1")

    def model(at, old, guess, age):
        if old is not None and age % every:
            return old, 0
        return surfaces.flat_curvature(at), 3 * len(at.free)

    def modes(at, old, guess):
        found = normal_modes(
            surfaces.curvature(at),
            at.masses,
            at.positions,
            pbc=np.asarray(at.system.pbc)[0],
            project=at.project,
            fixed=at.fixed if at.fixed.any() else None,
            symmetry_tolerance=np.inf,
        )
        return Lowest(found.frequencies_cm1, found.vectors, 3 * len(at.free), True)

    return Curvature(model, modes)


def hessian_products(*, first: int = 40, each: int = 12, stiffness: float = 20.0) -> Curvature:
    """The lowest mode from Hessian-vector products, for systems whose Hessian is too large.

    first, each: most products in the first and in any other step. stiffness: eV/Å² of directions
    nothing is known of. What a product has taught stays in the model, whose (3 n_free)² numbers
    are what memory it takes. Which mode to follow is best given as a direction: only the lowest is
    known by its number.
    """

    def model(at, old, guess, age):
        limit = first if old is None else each
        inner = surfaces.inner_motions(at)
        start = stiffness * np.eye(3 * len(at.free)) if old is None else old
        *_, vectors, images, _ = lowest(
            lambda v: inner.T @ surfaces.product(at, inner @ v),
            inner.T @ start @ inner,
            inner.T @ guess,
            limit=limit,
        )
        taught = inner @ informed(inner.T @ start @ inner, vectors, images) @ inner.T
        return taught, vectors.shape[1]

    def modes(at, old, guess):
        inner, root = surfaces.inner_motions(at, weighted=True), at.root_masses
        known = stiffness * np.eye(len(root)) if old is None else old
        random = np.random.default_rng(0).normal(size=len(root))  # no symmetry hides a mode
        values, vectors, tried, _, certain = lowest(
            lambda v: inner.T @ (surfaces.product(at, inner @ v / root) / root),
            inner.T @ (known / np.outer(root, root)) @ inner,
            inner.T @ np.stack([root * guess, random], 1),
            count=3,
            tolerance=1e-3,
            limit=20 * first,
        )
        found = np.zeros((len(values), *at.positions.shape))
        found[:, at.free] = (inner @ vectors).T.reshape(len(values), -1, 3)
        return Lowest(frequencies_cm1(values), found, tried.shape[1], certain)

    return Curvature(model, modes)
