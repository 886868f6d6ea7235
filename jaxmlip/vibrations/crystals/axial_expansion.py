"""Thermal expansion of each axis of a crystal from one structure: no volumes, no fit.

Vibrations push on the cell with the stress sum of gamma_ij energy / V; elastic constants say how
far it gives way: alpha = S : sum of gamma_ij c / V (Grüneisen; Barron, Collins and White, 1980,
10.1080/00018738000101426). Mode Grüneisen tensors are strain derivatives of D(q), with the atoms
following the strain. Right to first order in the expansion, as the elastic constants and
frequencies are those of the structure that is given.
"""

import jax
import numpy as np

from jaxmlip.derivatives.bloch.matrix import dynamical_matrix_strains
from jaxmlip.derivatives.bloch.modes import mode_gruneisen, phonon_frequencies
from jaxmlip.derivatives.elastic import elastic_constants, voigt_matrix
from jaxmlip.errors import UsageError
from jaxmlip.interfaces.phonons.phonopy import checked_temperatures, q_mesh
from jaxmlip.vibrations.crystals.elasticity import KELVIN, check_relaxed
from jaxmlip.vibrations.crystals.quasiharmonic import oscillator_capacity
from jaxmlip.vibrations.phonons.dispersion import raise_if_imaginary

FIRST, SECOND = np.array([0, 1, 2, 1, 0, 0]), np.array([0, 1, 2, 2, 2, 1])
PLACE = np.array([[0, 5, 4], [5, 1, 3], [4, 3, 2]])


def axial_expansion(apply, params, system, atoms, *, mesh=(8, 8, 8), temperatures) -> np.ndarray:
    """[T, 3, 3] 1/K, Cartesian, of a crystal without forces and stress.

    system: with its edges, no padding; atoms: the same as `ase.Atoms` (symmetry, masses). mesh:
    divisions of the reciprocal cell, whose irreducible points are used. Raises `NumericalError`
    where atoms feel forces or a mode of the mesh is imaginary (JM306).
    """
    temperatures, points = checked_temperatures(temperatures), q_mesh(atoms, mesh)
    found = jax.device_get(jax.jit(elastic_constants(apply))(params, system))
    check_relaxed(found)
    slope = dynamical_matrix_strains(apply, internal=found.internal)
    d, strains = slope(params, system, points.q)
    frequencies = np.asarray(phonon_frequencies(d, atoms.get_masses()))
    raise_if_imaginary(frequencies, points.q)
    return expansion_tensor(
        temperatures,
        frequencies,
        np.asarray(mode_gruneisen(d, strains, atoms.get_masses())),
        points.weights,
        constants=found.relaxed,
        volume=float(found.volume),
        rotations=points.group.cartesian,
    )


def expansion_tensor(
    temperatures, frequencies_THz, parameters, weights, *, constants, volume: float, rotations=None
) -> np.ndarray:
    """[T, 3, 3] 1/K from mode Grüneisen tensors [n_q, m, 3, 3] (-dln w/d strain) at n_q points.

    frequencies_THz [n_q, m]; weights [n_q]; constants [3, 3, 3, 3] eV/Å³ (relaxed); volume Å³ of a
    cell. rotations [n_ops, 3, 3]: Cartesian, over which the tensor is averaged where the points are
    irreducible ones. Modes that are not positive, or without a slope, count for nothing.
    """
    frequencies, gamma = np.asarray(frequencies_THz, float), np.asarray(parameters, float)
    share = np.asarray(weights, float) / np.sum(weights)
    if gamma.shape != (*frequencies.shape, 3, 3) or frequencies.shape[:1] != share.shape:
        raise UsageError(
            f"frequencies {frequencies.shape}, parameters {gamma.shape} and weights {share.shape} "
            "do not fit together",
            where="expansion_tensor",
        )
    real = (frequencies > 0) & np.isfinite(gamma).all((2, 3))
    gamma = np.where(real[..., None, None], gamma, 0) * share[:, None, None, None]
    safe = np.where(real, frequencies, 1.0)
    push = np.array([np.tensordot(oscillator_capacity(safe, t), gamma) for t in temperatures])
    if rotations is not None:
        push = np.einsum("oia,tab,ojb->tij", rotations, push, rotations) / len(rotations)
    stiff = voigt_matrix(np.asarray(constants, float)) * np.outer(KELVIN, KELVIN)
    flat = np.linalg.solve(stiff, (push[:, FIRST, SECOND] * KELVIN).T / volume).T / KELVIN
    return flat[:, PLACE]
