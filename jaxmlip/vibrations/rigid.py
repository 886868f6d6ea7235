"""The motions that cost no energy: translations and rotations of a whole molecule.

Modes are found in the space that is left when these are taken out, and the same principal axes
give the rotational part of thermodynamics, so both must agree on what counts as linear.
"""

import numpy as np

from jaxmlip.errors import DataError


def principal_rotations(positions, masses, *, tolerance: float = 0.02):
    """Moments of inertia [k] (amu Å²) and unit axes [k, 3] of the k rotations of a molecule.

    k is 3, or 2 if no atom is farther than `tolerance` (Å) from one line, or 0 if none is farther
    than that from one point. A distance is compared, not a ratio of moments: that ratio tends
    to zero for every long molecule, linear or not.
    """
    return _rotations_about_origin(centred(positions, masses), masses, tolerance)


def _rotations_about_origin(r, masses, tolerance):
    if np.linalg.norm(r, axis=1).max() < tolerance:
        return np.zeros(0), np.zeros((0, 3))
    inertia = np.einsum("i,ia,ib->ab", masses, r, r)
    moments, axes = np.linalg.eigh(np.trace(inertia) * np.eye(3) - inertia)
    off_axis = np.linalg.norm(np.cross(r, axes[:, 0]), axis=1).max()
    first = 1 if off_axis < tolerance else 0
    return moments[first:], axes.T[first:]


def rigid_motions(
    positions, masses, *, rotations: bool = True, tolerance: float = 0.02, fixed=None
):
    """Orthonormal mass-weighted translations and rotations, [n_rigid, n_atoms, 3].

    n_rigid is 6, 5 (linear) or 3 (an atom, or `rotations=False` as in a crystal). fixed: [n_atoms]
    True for atoms that are held: what is left are rotations about one held atom (3 or 2) or about
    the line of the held atoms (1), otherwise nothing.
    """
    root = np.sqrt(masses)[:, None]
    if fixed is not None and np.any(fixed):
        motions = _about_the_fixed(positions, masses, fixed, tolerance) if rotations else []
        motions = [np.where(fixed[:, None], 0, root * m) for m in motions]
    else:
        motions = [root * axis for axis in np.eye(3)]
        if rotations:
            r = centred(positions, masses)
            _, axes = principal_rotations(positions, masses, tolerance=tolerance)
            motions += [root * np.cross(axis, r) for axis in axes]
    flat = (
        np.stack([m.reshape(-1) for m in motions], axis=1) if motions else root.repeat(3, 0)[:, :0]
    )
    return np.linalg.qr(flat)[0].T.reshape(len(motions), len(masses), 3)


def _about_the_fixed(positions, masses, fixed, tolerance):
    """Rotations that leave the held atoms where they are, as fields of displacement."""
    positions = np.asarray(positions, np.float64)
    r = positions - positions[fixed].mean(0)
    if np.linalg.norm(r[fixed], axis=1).max() < tolerance:
        _, axes = _rotations_about_origin(r, masses, tolerance)
    else:
        axes = np.linalg.svd(r[fixed])[2][:1]
    moves = [np.cross(axis, r) for axis in axes]
    stays = lambda m: np.linalg.norm(m[fixed], axis=1).max() < tolerance
    turns = lambda m: np.linalg.norm(m[~fixed], axis=1).max(initial=0) > tolerance
    return [m for m in moves if stays(m) and turns(m)]


def centred(positions, masses):
    """Positions about the centre of mass, float64."""
    positions = np.asarray(positions, np.float64)
    return positions - np.average(positions, axis=0, weights=masses)


def checked_masses(masses, n_atoms: int):
    """Masses as float64 [n_atoms], all positive; raises `DataError` otherwise."""
    masses = np.asarray(masses, np.float64)
    if masses.shape != (n_atoms,):
        raise DataError(f"masses have shape {masses.shape}, the structure has {n_atoms} atoms")
    wrong = np.flatnonzero(~(np.isfinite(masses) & (masses > 0)))
    if len(wrong):
        raise DataError(
            f"mass of atom {wrong[0]} is {masses[wrong[0]]} amu; it must be positive",
            fix="leave padding atoms out, or give the mass of the isotope",
        )
    return masses
