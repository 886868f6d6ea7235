"""Elastic constants: second derivatives of the energy of one crystal by strain and positions.

One linear map, that of the gradient by six strains and 3 n positions of the cell that is given, is
applied to 6 + 3 n unit vectors. What atoms do inside a strained cell follows from its blocks:
C = [d²E/de² - L^T Phi^+ L] / V with L = d²E/dr de and Phi the Hessian (Wu, Vanderbilt and Hamann,
2005, 10.1103/PhysRevB.72.035105). No step, no strained cells, no relaxations.
"""

from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp
import numpy as np

from jaxmlip.derivatives.second.hessian import chunk_memory, in_chunks, rows_at_once
from jaxmlip.errors import DataError, UsageError
from jaxmlip.system import Array, strain

VOIGT = np.array([[0, 5, 4], [5, 1, 3], [4, 3, 2]])  # of ij: xx yy zz yz xz xy
FIRST, SECOND = np.array([0, 1, 2, 1, 0, 0]), np.array([0, 1, 2, 2, 2, 1])


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class ElasticConstants:
    """Stress-strain coefficients of a crystal whose atoms feel no force.

    c_ijkl = d stress_ij / d strain_kl for strains without rotation, eV/Å³: Wallace's coefficients
    (Solid State Phys. 25, 301 (1970), eq. 2.24), with all symmetries of a tensor of elasticity
    where the stress is zero, and c_ijkl = c_klij where it is a pressure.
    """

    relaxed: Array  # [3, 3, 3, 3] eV/Å³, atoms follow
    clamped: Array  # [3, 3, 3, 3] eV/Å³, fractional coordinates kept
    stress: Array  # [3, 3] eV/Å³
    forces: Array  # [n_atoms, 3] eV/Å; must be zero for `relaxed` to mean anything
    internal: Array  # [n_atoms, 3, 3, 3] Å, d r / d strain beside the homogeneous strain
    hessian: Array  # [n_atoms, 3, n_atoms, 3] eV/Å²
    volume: Array  # Å³


def elastic_constants(apply, *, memory: float | None = None):
    """(params, system) -> `ElasticConstants` of one crystal, from 6 + 3 n_atoms directions.

    The primitive cell is enough and cheapest. memory: bytes for the directions of one chunk, as in
    `hessian`. The stress may be any; the forces should have been relaxed away. Raises `UsageError`
    for a batch, `DataError` for an open axis, where strain has no volume to refer to.
    """

    def elastic_of(params, system):
        _check(system)
        gradient = _gradient(apply, params, system)
        slope, second = _jacobian(gradient, 6 + 3 * system.n_atoms, system, memory)
        volume = jnp.abs(jnp.linalg.det(jnp.asarray(system.cell)[0]))
        stress = slope[:6][VOIGT] / volume
        by_strain, mixed, hessian = second[:6, :6], second[6:, :6], second[6:, 6:]
        internal = -pseudo_solve(hessian, mixed, system.atom_mask)
        tensor = lambda c: _with_stress(full_tensor(c / volume), stress)
        shape = (system.n_atoms, 3)
        return ElasticConstants(
            relaxed=tensor(by_strain + _dot(mixed.T, internal)),
            clamped=tensor(by_strain),
            stress=stress,
            forces=-slope[6:].reshape(shape),
            internal=internal[:, VOIGT].reshape(*shape, 3, 3),
            hessian=hessian.reshape(*shape, *shape),
            volume=volume,
        )

    return elastic_of


def full_tensor(voigt):
    """[6, 6] -> [3, 3, 3, 3]; order xx yy zz yz xz xy."""
    return voigt[VOIGT[:, :, None, None], VOIGT[None, None]]


def voigt_matrix(tensor):
    """[3, 3, 3, 3] -> [6, 6]; order xx yy zz yz xz xy."""
    return tensor[FIRST[:, None], SECOND[:, None], FIRST[None], SECOND[None]]


def stress_terms(stress):
    """sigma_ik delta_jl + sigma_il delta_jk + sigma_jk delta_il + sigma_jl delta_ik."""
    one = np.eye(3)
    pair = lambda text: jnp.einsum(text, stress, one)
    return pair("ik,jl->ijkl") + pair("il,jk->ijkl") + pair("jk,il->ijkl") + pair("jl,ik->ijkl")


def _with_stress(second, stress):
    """Stress-strain coefficients from d²E/de² / V at r' = r (1 + e), e symmetric.

    The energy is that of Lagrange strain e + e²/2, which gives a quarter of `stress_terms` less in
    Lagrange's constants and half of them more, less sigma_ij delta_kl, in Wallace's.
    """
    return second + stress_terms(stress) / 4 - jnp.einsum("ij,kl->ijkl", stress, np.eye(3))


# --- the map -------------------------------------------------------------------------------------


def _gradient(apply, params, system):
    """dE/d(six engineering strains, displacements) as one flat function of the same."""

    def energy(x):
        e = x[:6]
        epsilon = jnp.where(np.eye(3, dtype=bool), e[VOIGT], e[VOIGT] / 2)
        positions = jnp.asarray(system.positions) + x[6:].reshape(-1, 3)
        moved = strain(replace(system, positions=positions), epsilon[None])
        return apply(params, moved)["energy"].sum()

    def at(x):
        with jax.default_matmul_precision("highest"):
            return jax.grad(energy)(x)

    return at


def _jacobian(gradient, n, system, memory):
    """Gradient at zero and its Jacobian [n, n], symmetric up to rounding."""
    zero = jnp.zeros(n, jnp.asarray(system.positions).dtype)
    value, linear = jax.linearize(gradient, zero)
    limit = chunk_memory() if memory is None else memory
    chunk = rows_at_once(gradient, zero, limit, n)
    rows = in_chunks(lambda k: linear(zero.at[k].set(1)), np.arange(n), chunk)
    return value, (rows + rows.T) / 2


def pseudo_solve(hessian, right, mask):
    """Phi^+ right, without translations; rows of padding are zero."""
    real = jnp.repeat(jnp.asarray(mask, hessian.dtype), 3)
    shifts = jnp.tile(jnp.eye(3, dtype=hessian.dtype), (len(mask), 1)) * real[:, None]
    shifts = shifts / jnp.sqrt(real.sum() / 3)
    scale = 1 + jnp.abs(jnp.trace(hessian)) / real.sum()  # eV/Å²; one atom alone has trace zero
    away = lambda x: x - _dot(shifts, _dot(shifts.T, x))
    filled = hessian + scale * _dot(shifts, shifts.T) + jnp.diag(1 - real)
    return away(jnp.linalg.solve(filled, away(right))) * real[:, None]


def _dot(a, b):
    return jnp.matmul(a, b, precision=jax.lax.Precision.HIGHEST)


def _check(system):
    if system.n_graphs != 1:
        raise UsageError(
            f"elastic constants are of one structure, got a batch of {system.n_graphs}",
            where="elastic_constants",
        )
    if not isinstance(system.pbc, jax.core.Tracer) and not np.all(system.pbc):
        raise DataError(
            f"pbc is {np.asarray(system.pbc)[0].tolist()}: stress along an open axis has no volume",
            where="elastic_constants",
            fix="a crystal, periodic along three axes",
        )
