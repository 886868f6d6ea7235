"""The mass-weighted Hessian as a linear map, without its rigid motions: it is never stored.

Vectors are [n_atoms, 3] and mass-weighted, sqrt(mass) x displacement; padding atoms stay at rest.
"""

import jax
import jax.numpy as jnp
import numpy as np

from jaxmlip.derivatives.second.hessian import gradient_at
from jaxmlip.errors import DataError, UsageError

LINEAR = 0.02  # Å from its axis within which a molecule is linear, as for normal modes


def mass_weighted_product(apply, params, system, inverse_root, rigid):
    """v -> P M^-1/2 H M^-1/2 P v, eV/(Å² amu), linearised once for all v; P takes out `rigid`.

    inverse_root: [n_atoms, 1] 1/sqrt(mass), zero for padding; rigid: [n_rigid, n_atoms, 3].
    """
    positions = jnp.asarray(system.positions)
    _, linear = jax.linearize(gradient_at(apply, params, system), positions)
    flat = rigid.reshape(len(rigid), -1)

    def project(v):
        dot = lambda x, y: jnp.dot(x, y, precision=jax.lax.Precision.HIGHEST)
        return v - dot(dot(flat, v.reshape(-1)), flat).reshape(v.shape)

    return lambda v: project(inverse_root * linear(inverse_root * project(v))), project


def inverse_roots(system, masses):
    """1/sqrt(mass), [n_atoms, 1] float64, zero for padding. One structure; masses in amu."""
    if system.n_graphs != 1:
        raise UsageError(f"one structure is needed, got a batch of {system.n_graphs}")
    real = np.asarray(system.numbers) > 0
    masses = np.asarray(masses, np.float64)
    if masses.shape == (real.sum(),):  # masses of the real atoms alone will do
        masses = np.concatenate([masses, np.ones(len(real) - len(masses))])
    if masses.shape != real.shape or not (masses[real] > 0).all():
        raise DataError(
            f"masses must be positive, one for each of {real.sum()} atoms; got {masses.shape}"
        )
    return np.where(real, 1 / np.sqrt(np.where(real, masses, 1)), 0)[:, None]


def rigid_motions(system, inverse_root, *, project: bool = True):
    """Orthonormal mass-weighted translations, and rotations of a molecule, [n_rigid, n_atoms, 3].

    Six, five (linear), three (a crystal or an atom) or, with project=False, none.
    """
    root = np.where(inverse_root > 0, 1 / np.where(inverse_root > 0, inverse_root, 1), 0)
    positions = np.asarray(system.positions, np.float64)
    if not project:
        return np.zeros((0, *positions.shape))
    motions = [root * axis for axis in np.eye(3)]
    if not np.any(np.asarray(system.pbc)):
        r = positions - (root**2 * positions).sum(0) / (root**2).sum()
        r = np.where(root > 0, r, 0)
        axes = np.linalg.eigh((root * r).T @ (root * r))[1].T  # the last along a linear molecule
        turns = [np.cross(axis, r) for axis in axes]
        motions += [root * t for t in turns if np.linalg.norm(t, axis=1).max() > LINEAR]
    flat = np.stack([m.reshape(-1) for m in motions], axis=1)
    return np.linalg.qr(flat)[0].T.reshape(-1, *positions.shape)
