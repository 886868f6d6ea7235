"""Group velocities of phonons: slopes of frequencies along q, safe where modes are degenerate."""

from collections.abc import Callable

import numpy as np

from jaxmlip import units

KM_PER_S = 0.1  # of 1 Å THz
SLOWEST = 1e-3  # THz; below it a frequency has no usable slope
STEP = 2e-5  # of the reciprocal cell, for slopes of a D that gives none itself


def slopes(D: Callable, q, cell, nonanalytic: Callable | None = None) -> np.ndarray:
    """dD/dk [n_q, 3, 3n, 3n], eV/Å, k cartesian in 1/Å without 2 pi.

    From the sum itself where D has a `gradient`, else by central differences in q.
    """
    q = np.asarray(q, np.float64)
    exact = hasattr(D, "gradient")
    rest = [] if nonanalytic is None else [nonanalytic]
    rest = rest if exact else [D, *rest]
    steps = STEP * np.eye(3)
    parts = [[(f(q + s) - f(q - s)) / (2 * STEP) for s in steps] for f in rest]
    out = np.einsum("ca,aqij->qcij", np.asarray(cell).T, np.sum(parts, 0)) if rest else 0
    return out + D.gradient(q, cell) if exact else out


def group_velocities(slope, frequencies, vectors, masses) -> np.ndarray:
    """d nu / dk [n_q, 3n, 3], km/s, of dD/dk [n_q, 3, 3n, 3n] and modes at the same q.

    Modes of equal frequency are first turned into those that a step in a general direction
    separates. Zero below `SLOWEST` THz: at Gamma acoustic branches have a kink.
    """
    root = np.repeat(np.sqrt(np.asarray(masses)), 3)
    out = np.zeros((*np.shape(frequencies), 3))
    direction = np.array([1, 2, 3]) / np.sqrt(14)
    for i, (change, f, e) in enumerate(zip(slope, frequencies, vectors, strict=True)):
        change = change / np.outer(root, root)
        for same in _equal(f):
            part = e[:, same]
            matrices = part.conj().T @ change @ part  # [3, n, n]
            turn = np.linalg.eigh(np.tensordot(direction, matrices, 1))[1]
            matrices = turn.conj().T @ matrices @ turn
            out[i, same] = np.einsum("cmm->mc", matrices).real
    scale = (units.hbar / units.THz) ** 2 * KM_PER_S / 2
    usable = np.abs(frequencies) > SLOWEST
    return out * (scale * usable / np.where(usable, np.abs(frequencies), 1))[..., None]


def _equal(frequencies, tolerance: float = 1e-4):
    """Indices of modes in sets of equal frequency (THz)."""
    return np.split(
        np.arange(len(frequencies)), np.flatnonzero(np.diff(frequencies) > tolerance) + 1
    )
