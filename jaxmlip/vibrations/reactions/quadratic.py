"""What a quadratic model of the energy is good for: steps, its update from slopes, lowest modes.

Small dense algebra on the host, shared by searches for saddle points, minima and paths.
"""

import numpy as np


def rational_step(values, slopes, *, up=()):
    """A step to a stationary point in eigenvectors of the model: uphill along `up`, else downhill.

    values, slopes: [n] curvatures and slopes along the eigenvectors. Partitioned rational
    function optimisation (Banerjee, Adams, Simons and Shepard, 1985, 10.1021/j100247a015).
    """
    above = np.zeros(len(values), bool)
    above[list(up)] = True
    step = np.zeros(len(values))
    step[above] = _shifted_step(-values[above], -slopes[above])
    step[~above] = _shifted_step(values[~above], slopes[~above])
    return step


def _shifted_step(values, slopes):
    """Downhill: -slope / (value - shift), the shift below every value and zero."""
    if len(values) == 0:
        return np.zeros(0)
    arrow = np.diag(np.append(values, 0.0))
    arrow[-1, :-1] = arrow[:-1, -1] = slopes
    gap = values - np.linalg.eigvalsh(arrow)[0]
    small = np.abs(slopes) < 1e-14
    return np.where(small, 0.0, -slopes / np.where(small, 1.0, np.maximum(gap, 1e-12)))


def updated(model, step, change):
    """The model after a step along which the gradient changed by `change` (Bofill, 1994).

    A mixture of the symmetric rank-one and Powell updates, 10.1002/jcc.540150102: neither keeps
    the model positive, which a saddle must not be.
    """
    missed = change - model @ step
    length, size = step @ step, missed @ missed
    if length < 1e-16 or size < 1e-24:
        return model
    along = step @ missed
    share = along**2 / (length * size)
    powell = (np.outer(missed, step) + np.outer(step, missed)) / length
    powell -= np.outer(step, step) * along / length**2
    if share < 1e-12:
        return model + powell
    return model + share * np.outer(missed, missed) / along + (1 - share) * powell


def informed(model, vectors, images):
    """The nearest symmetric model that maps orthonormal `vectors` [n, k] to `images` [n, k].

    Greenstadt's correction in blocks: the change has the least Frobenius norm.
    """
    missed = images - model @ vectors
    half = missed @ vectors.T
    return model + half + half.T - vectors @ (vectors.T @ missed) @ vectors.T


def lowest(product, model, guesses, *, count: int = 1, tolerance: float = 0.05, limit: int = 60):
    """The lowest eigenvectors of a symmetric operator known by its products (Davidson, 1975).

    product: vector [n] -> vector [n]. model: [n, n], whose inverse proposes directions. guesses:
    [n, k]. tolerance: residual |A v - a v|, in units of the operator, of each of `count` pairs.
    Returns the values [count], vectors [n, count], all directions tried [n, m] (orthonormal),
    their images [n, m], and whether the tolerance was reached within `limit` products.
    """
    n = len(model)
    count = min(count, n)
    values, axes = np.linalg.eigh(model)
    basis, images = np.zeros((n, 0)), np.zeros((n, 0))
    fresh = list(np.reshape(guesses, (n, -1)).T) + list(axes[:, :count].T)
    while True:
        for vector in fresh:
            vector = _new_direction(vector, basis)
            if vector is not None and basis.shape[1] < min(limit, n):
                basis = np.column_stack([basis, vector])
                images = np.column_stack([images, product(vector)])
        inner = basis.T @ images
        found, mix = np.linalg.eigh((inner + inner.T) / 2)
        found, mix = found[:count], mix[:, :count]
        residuals = images @ mix - basis @ mix * found
        open_ = np.linalg.norm(residuals, axis=0) > tolerance
        full = basis.shape[1] >= min(limit, n)
        if full or not open_.any():
            return found, basis @ mix, basis, images, not open_.any()
        fresh = [
            axes @ (axes.T @ residuals[:, k] / _away(values - found[k]))
            for k in np.flatnonzero(open_)
        ]
        fresh += list(residuals[:, open_].T)  # where the model proposes nothing new


def _new_direction(vector, basis):
    """`vector` made orthonormal to the basis, or None if it lies in it."""
    norm = np.linalg.norm(vector)
    for _ in range(2):  # once is not enough in finite precision
        vector = vector - basis @ (basis.T @ vector)
    rest = np.linalg.norm(vector)
    return vector / rest if rest > 1e-6 * norm and norm > 0 else None


def _away(x, least=0.1):
    return np.where(np.abs(x) < least, np.where(x < 0, -least, least), x)
