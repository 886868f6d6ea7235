"""From D(q) and its derivatives to frequencies, group velocities and mode Grüneisen parameters.

Derivatives of eigenvalues are diagonal elements of the derivative of the matrix. Where modes are
degenerate that holds only in the basis in which the derivative is diagonal among them, so it is
diagonalised there first: no division by differences of frequencies occurs anywhere.
"""

import jax.numpy as jnp
import numpy as np

from jaxmlip import units

THZ = units.hbar / units.THz  # sqrt(eV/(Å² amu)) -> THz
KM_PER_S = 0.1  # Å THz -> km/s


def phonon_frequencies(matrix, masses):
    """Frequencies of D(q) [n_q, 3n, 3n] (eV/Å²), [n_q, 3n] THz in rising order.

    masses [n] amu. Imaginary frequencies are negative. Differentiable: sums over degenerate modes
    have exact derivatives; that of a frequency that is exactly zero counts as zero.
    """
    return _frequencies(jnp.linalg.eigvalsh(mass_weighted(matrix, masses)))


def phonon_modes(matrix, masses):
    """Frequencies [n_q, 3n] THz and orthonormal eigenvectors [n_q, 3n, mode] of D(q).

    Eigenvectors are mass-weighted and belong to the phases of cells (exp(2 pi i q.R)).
    """
    values, vectors = jnp.linalg.eigh(mass_weighted(matrix, masses))
    return _frequencies(values), vectors


def group_velocities(matrix, slopes, masses, *, along=(1.0, 2.0, 3.0), tolerance=1e-4):
    """d(frequency)/dq of each mode, [n_q, 3n, 3] Å THz (x 0.1 = km/s), NaN at frequency zero.

    matrix, slopes: from `dynamical_matrix_slopes`; d nu/dq with q in 1/Å is d omega/dk. Modes
    closer than `tolerance` (THz) count as degenerate; each is then one of those into which a step
    of q in the direction `along` splits them. At the tip of the acoustic branches (|nu| below
    `tolerance`) the slope depends on the direction: NaN.
    """
    return _mode_slopes(matrix, slopes, masses, np.asarray(along), tolerance)[1]


def mode_gruneisen(matrix, strains, masses, *, along=None, tolerance=1e-4):
    """-d ln(frequency)/d(strain) of each mode, [n_q, 3n, 3, 3], NaN at frequency zero.

    matrix, strains: from `dynamical_matrix_strains`. The parameter of the volume,
    -d ln(nu)/d ln(V), is a third of the trace. along [3, 3]: the strain that tells degenerate
    modes apart (default: that of the volume).
    """
    n_q, size = matrix.shape[:2]
    along = np.eye(3) if along is None else np.asarray(along)
    flat = strains.reshape(n_q, 9, size, size)
    frequencies, slopes = _mode_slopes(matrix, flat, masses, along.reshape(9), tolerance)
    return -(slopes / frequencies[..., None]).reshape(n_q, size, 3, 3)


def mass_weighted(matrix, masses):
    """Hermitian part of D_ab / sqrt(m_a m_b), [..., 3n, 3n]."""
    root = jnp.repeat(jnp.sqrt(jnp.asarray(masses, matrix.real.dtype)), 3)
    matrix = matrix / (root[:, None] * root)
    return (matrix + matrix.conj().swapaxes(-1, -2)) / 2


def _frequencies(values):
    """sign sqrt|values| in THz; the slope at zero is zero."""
    zero = values == 0
    safe = jnp.where(zero, 1, jnp.abs(values))
    return THZ * jnp.where(zero, 0, jnp.sign(values) * jnp.sqrt(safe))


def _mode_slopes(matrix, perturbations, masses, along, tolerance):
    """Frequencies [n_q, 3n] and their slopes [n_q, 3n, m] for perturbations [n_q, m, 3n, 3n]."""
    frequencies, vectors = phonon_modes(matrix, masses)
    perturbations = mass_weighted(perturbations, masses)
    inner = vectors.conj().swapaxes(-1, -2)[:, None] @ perturbations @ vectors[:, None]
    basis = _within_degenerate(frequencies, jnp.einsum("m,qmij->qij", along, inner), tolerance)
    slopes = jnp.einsum("qim,qaij,qjm->qma", basis.conj(), inner, basis).real
    frequencies = jnp.where(jnp.abs(frequencies) < tolerance, jnp.nan, frequencies)
    # an imaginary frequency is -sqrt(-value): its slope has the sign of the other
    return frequencies, THZ**2 * slopes / (2 * jnp.abs(frequencies)[..., None])


def _within_degenerate(frequencies, perturbation, tolerance):
    """The rotation among degenerate modes that makes the perturbation diagonal, [n_q, 3n, 3n].

    Sets are kept apart by a shift of each that exceeds what the perturbation can do.
    """
    gaps = jnp.diff(frequencies, axis=1, prepend=frequencies[:, :1]) > tolerance
    which = jnp.cumsum(gaps, axis=1)
    same = which[:, :, None] == which[:, None, :]
    perturbation = jnp.where(same, perturbation, 0)
    scale = jnp.abs(perturbation).sum((1, 2), keepdims=True)
    perturbation = perturbation / jnp.where(scale > 0, scale, 1)  # eigenvalues within [-1, 1]
    shift = 3 * which[..., None] * jnp.eye(frequencies.shape[1], dtype=frequencies.dtype)
    return jnp.linalg.eigh(perturbation + shift)[1]
