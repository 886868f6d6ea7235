"""Group velocities of phonons: slopes of frequencies along q, safe where modes are degenerate."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from jaxmlip import units
from jaxmlip.derivatives.bloch.matrix import dynamical_matrix, dynamical_matrix_slopes
from jaxmlip.interfaces.phonons.symmetry import Symmetry
from jaxmlip.vibrations.phonons.reduced import symmetric_matrices

KM_PER_S = 0.1  # of 1 Å THz
SLOWEST = 1e-3  # THz; below it a frequency has no usable slope
STEP = 3e-4  # of the reciprocal cell: 1e-5 of a slope in either precision


@dataclass(frozen=True, kw_only=True)
class Matrices:
    """D(q) with its slopes; call it with q [n_q, 3]."""

    values: Callable  # q -> [n_q, 3n, 3n] eV/Å²
    slopes: Callable  # (q, cell) -> dD/dk [n_q, 3, 3n, 3n] eV/Å

    def __call__(self, q) -> np.ndarray:
        return self.values(q)

    def gradient(self, q, cell) -> np.ndarray:
        """dD/dk [n_q, 3, 3n, 3n], eV/Å, k cartesian in 1/Å without 2 pi."""
        return self.slopes(q, cell)


def model_matrices(
    apply, params, system, *, group: Symmetry | None = None, tolerance: float = 0.0
) -> Matrices:
    """D(q) of a potential, exact as its slopes are; each is compiled when it is first asked for.

    group: of the crystal; then only the columns that symmetry leaves at q are computed, with the
    tolerance of `symmetric_matrices`.
    """
    matrix, slope = dynamical_matrix(apply), dynamical_matrix_slopes(apply)
    values = lambda q: np.asarray(matrix(params, system, np.asarray(q)))
    if group is not None and group.n_ops > 1:
        values = symmetric_matrices(apply, params, system, group, tolerance=tolerance)
    return Matrices(
        values=values,
        slopes=lambda q, cell: np.asarray(slope(params, system, np.asarray(q))[1]),
    )


def slopes(D: Callable, q, cell, nonanalytic: Callable | None = None) -> np.ndarray:
    """dD/dk [n_q, 3, 3n, 3n], eV/Å, k cartesian in 1/Å without 2 pi, of D and what is added to it.

    Exact where a function has a `gradient`, else by central differences in q.
    """
    q = np.asarray(q, np.float64).reshape(-1, 3)
    parts = [D] if nonanalytic is None else [D, nonanalytic]
    return sum(f.gradient(q, cell) if hasattr(f, "gradient") else _steps(f, q, cell) for f in parts)


def _steps(f, q, cell):
    each = [(f(q + s) - f(q - s)) / (2 * STEP) for s in STEP * np.eye(3)]
    return np.einsum("ca,aqij->qcij", np.asarray(cell).T, np.array(each), optimize=True)


def group_velocities(slope, frequencies, vectors, masses) -> np.ndarray:
    """d nu / dk [n_q, 3n, 3], km/s, of dD/dk [n_q, 3, 3n, 3n] and modes at the same q.

    Modes of equal frequency are first turned into those that a step in a general direction
    separates. Zero below `SLOWEST` THz: at Gamma acoustic branches have a kink.
    """
    root = np.repeat(np.sqrt(np.asarray(masses)), 3)
    out = mode_slopes(slope / np.outer(root, root), frequencies, vectors, along=[1, 2, 3])
    scale = (units.hbar / units.THz) ** 2 * KM_PER_S / 2
    usable = np.abs(frequencies) > SLOWEST
    return out * (scale * usable / np.where(usable, np.abs(frequencies), 1))[..., None]


def mode_slopes(changes, frequencies, vectors, *, along, tolerance: float = 1e-4) -> np.ndarray:
    """Slopes of eigenvalues [n_q, 3n, m] under changes [n_q, m, 3n, 3n] of mass-weighted D.

    Modes closer than `tolerance` THz are first turned into those that the change
    `along` [m] . changes separates, so that they do not depend on the eigensolver.
    """
    out = np.zeros((*np.shape(frequencies), len(along)))
    for i, (change, levels, columns) in enumerate(zip(changes, frequencies, vectors, strict=True)):
        for same in _equal(levels, tolerance):
            inside = columns[:, same].conj().T @ change @ columns[:, same]  # [m, n, n]
            turn = np.linalg.eigh(np.tensordot(along, inside, 1))[1]
            out[i, same] = np.einsum("cmm->mc", turn.conj().T @ inside @ turn).real
    return out


def _equal(frequencies, tolerance):
    """Indices of modes in sets of equal frequency (THz)."""
    return np.split(
        np.arange(len(frequencies)), np.flatnonzero(np.diff(frequencies) > tolerance) + 1
    )
