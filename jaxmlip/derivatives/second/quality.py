"""How good a Hessian is, from laws that it must obey, and its symmetric part. Host, float64.

Nothing is corrected before it is measured: symmetrising would hide a program that is wrong.
"""

from dataclasses import dataclass

import numpy as np

from jaxmlip.errors import DataError, NumericalError


@dataclass(frozen=True, kw_only=True)
class HessianQuality:
    """By how much a Hessian breaks laws that hold for any energy: zero for exact numbers."""

    dtype: str  # in which it was computed
    largest: float  # max |H|, eV/Å²
    asymmetry: float  # max |H - H^T|, eV/Å²
    relative_asymmetry: float  # of max |H|
    translation: float  # max |sum over atoms of H|, eV/Å²: moving all atoms changes no force
    relative_translation: float  # of max |H|
    rotation: float | None  # eV/Å a radian: turning a molecule turns its forces; None in a crystal
    relative_rotation: float | None  # of the largest |H| |r| that is summed


def symmetrised(hessian, system, *, forces=None) -> tuple[np.ndarray, HessianQuality]:
    """(H + H^T)/2, [n_atoms, 3, n_atoms, 3] float64, and the quality of the H that was given.

    forces: [n_atoms, 3] eV/Å of the same geometry; without them the rotational law is that of a
    relaxed molecule, H (w x r) = 0 instead of w x dE/dr. It holds without an external field only.
    Raises `NumericalError` for values that are not finite. Padding atoms and batches are allowed.
    """
    dtype = str(np.asarray(hessian).dtype)
    hessian = np.asarray(hessian, np.float64)
    n = system.n_atoms
    if hessian.shape != (n, 3, n, 3):
        raise DataError(f"hessian has shape {hessian.shape}, not ({n}, 3, {n}, 3)")
    _check_finite(hessian)
    largest = float(np.abs(hessian).max(initial=0))
    share = lambda value: value / largest if largest else 0.0
    transposed = hessian.transpose(2, 3, 0, 1)
    asymmetry = float(np.abs(hessian - transposed).max(initial=0))
    translation = float(np.abs(hessian.sum(2)).max(initial=0))
    rotation, size = _rotation(hessian, system, forces)
    card = HessianQuality(
        dtype=dtype,
        largest=largest,
        asymmetry=asymmetry,
        relative_asymmetry=share(asymmetry),
        translation=translation,
        relative_translation=share(translation),
        rotation=rotation,
        relative_rotation=None if rotation is None else share(rotation) / max(size, 1e-300),
    )
    return (hessian + transposed) / 2, card


def _rotation(hessian, system, forces):
    """max |H (w x r) - w x dE/dr| over three axes w, eV/Å, and the largest |r|, Å."""
    if np.any(np.asarray(system.pbc)):
        return None, 1.0
    real = np.asarray(system.numbers) > 0
    positions = np.asarray(system.positions, np.float64)
    r = np.where(real[:, None], positions - positions[real].mean(0), 0)
    gradient = np.zeros_like(r) if forces is None else -np.asarray(forces, np.float64)
    broken = [
        np.einsum("iajb,jb->ia", hessian, np.cross(axis, r)) - np.cross(axis, gradient)
        for axis in np.eye(3)
    ]
    return float(np.abs(broken).max(initial=0)), float(np.abs(r).max(initial=0))


def _check_finite(hessian):
    bad = np.flatnonzero(~np.isfinite(hessian).all((1, 2, 3)))
    if len(bad):
        raise NumericalError(
            f"the Hessian is not finite in the rows of {len(bad)} atoms, first atom {bad[0]}",
            where="symmetrised",
            fix="look at the energy and forces of this geometry",
        )
