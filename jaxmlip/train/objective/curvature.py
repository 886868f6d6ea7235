"""Second derivatives as labels: each step looks at a Hessian along random directions only.

What is known of a frame's Hessian H is some products H d: those with all unit vectors (the whole
Hessian), with some of them (rows), or with modes. Random combinations of the known directions are
known products too. So a step draws v, compares the model's H v with that of the label, and on
average over steps compares everything that is known, at the cost of one product. Directions depend
on (seed, step, frame) alone. Everything here is host numpy.

Directions have a root mean square of one per component: the deviation of H v, in eV/Å², is then
of the size of an error of a row of H, whatever the number of atoms; for v of random signs its mean
square is exactly |ΔH|² / 3n (Frobenius). Phonon fine-tuning of Nequix (Koker et al., 2026,
arXiv:2601.07742) draws one column: `single`.
"""

from typing import NamedTuple

import numpy as np

from jaxmlip.errors import DataError


class Known(NamedTuple):
    """What is known of the Hessian of one frame."""

    directions: np.ndarray | None  # [m, n_atoms, 3]; None: the 3 n_atoms unit vectors
    products: np.ndarray  # [m, n_atoms, 3] the Hessian times each, eV/Å² x unit of directions


def from_hessian(hessian, *, where: str = "", dtype=np.float32) -> Known | None:
    """The whole of a Hessian [n, 3, n, 3] or [3n, 3n], eV/Å²; NaN rows are not known.

    None where nothing is known. Raises `DataError` for an asymmetry above a tenth of the largest
    entry. The symmetric part is taken of a Hessian that is known as a whole.
    """
    hessian = np.asarray(hessian, np.float64)
    size = round(hessian.size**0.5)
    h = hessian.reshape(size, size)
    known = np.isfinite(h).all(1)
    if not known.any():
        return None
    if size % 3:
        raise DataError(f"a Hessian of shape {hessian.shape}", where=where, code="JM221")
    if known.all():
        apart, largest = np.abs(h - h.T).max(), np.abs(h).max()
        if apart > 0.1 * largest:
            raise DataError(
                f"the Hessian is not symmetric: by {apart:.3g} of {largest:.3g} eV/Å²",
                where=where,
                fix="the order of its axes is [atom, cartesian, atom, cartesian]",
                code="JM223",
            )
        return Known(None, ((h + h.T) / 2).reshape(size, -1, 3).astype(dtype))
    unit = np.eye(size)[known].reshape(-1, size // 3, 3)
    return Known(unit.astype(dtype), h[known].reshape(unit.shape).astype(dtype))


def soft_modes(hessian, masses, n: int) -> np.ndarray:
    """Displacements of the n softest modes of a whole Hessian [3m, 3m] eV/Å², [n, m, 3], unit norm.

    Eigenvectors of the mass-weighted Hessian over the root of the masses [m] (any unit), those of
    the lowest (most imaginary) frequency first; translations of the whole come last.
    """
    root = np.repeat(np.sqrt(masses), 3)
    dynamical = hessian / np.outer(root, root)
    shift = np.tile(np.eye(3), (len(masses), 1)) * root[:, None]
    shift = shift / np.linalg.norm(shift, axis=0)
    far = 2 * np.abs(dynamical).sum(1).max()  # above all frequencies: a bound by Gershgorin
    _, vectors = np.linalg.eigh((dynamical + dynamical.T) / 2 + far * shift @ shift.T)
    moves = (vectors[:, :n] / root[:, None]).T
    return (moves / np.linalg.norm(moves, axis=1, keepdims=True)).reshape(-1, len(masses), 3)


def along_moves(known: Known, moves) -> Known:
    """A whole Hessian as its products with displacements [n, n_atoms, 3] alone."""
    size = 3 * moves.shape[1]
    products = moves.reshape(-1, size) @ known.products.reshape(size, size)
    dtype = known.products.dtype
    return Known(moves.astype(dtype), products.reshape(moves.shape).astype(dtype))


def drawn(known: Known, generator, *, n: int, draw: str = "rademacher"):
    """(v, H v) of n random combinations of what is known, both [n_atoms, n, 3].

    draw: random signs of the known directions, normal numbers, or a single one of them. v has a
    root mean square of one per component.
    """
    m, shape = len(known.products), known.products.shape[1:]
    if draw == "single":
        share = np.eye(m)[generator.integers(m, size=n)]
    elif draw == "normal":
        share = generator.normal(size=(n, m))
    else:
        share = generator.choice([-1.0, 1.0], size=(n, m))
    v = share if known.directions is None else share @ known.directions.reshape(m, -1)
    product = share @ known.products.reshape(m, -1)
    size = np.sqrt((v * v).mean(1, keepdims=True))
    both = (v / size, product / size)
    return tuple(np.moveaxis(x.reshape(n, *shape), 0, 1) for x in both)


def with_directions(
    labels: dict,
    system,
    known,
    members,
    *,
    step: int,
    seed: int = 0,
    n: int = 1,
    draw="rademacher",
    always: bool = False,
) -> dict:
    """The labels of a batch with `directions` and `hessian` (products), both [n_atoms, n, 3].

    known: [Known or None] of all frames; members: those in the batch, in its order. Frames without
    curvature have NaN products, which count nowhere. The labels as they are where no frame of the
    batch has any, unless `always` (a part of a batch in which another part has some).
    """
    if not always and all(known[i] is None for i in members):
        return labels
    dtype = system.positions.dtype
    directions = np.zeros((system.n_atoms, n, 3), dtype)
    products = np.full_like(directions, np.nan)
    real = np.asarray(system.numbers) > 0
    for g, i in enumerate(members):
        if known[i] is not None:
            rows = real & (system.graph == g)
            generator = np.random.default_rng([seed, step, i])
            directions[rows], products[rows] = drawn(known[i], generator, n=n, draw=draw)
    return labels | {"directions": directions, "hessian": products}
