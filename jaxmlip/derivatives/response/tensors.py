"""Dielectric and piezoelectric tensors of crystals, with clamped atoms and with atoms that follow.

One energy E(R, strain, field), and how atoms give way to strain and field through the inverse of
the Hessian (Wu, Vanderbilt and Hamann, 2005, 10.1103/PhysRevB.72.035105). The field is the
macroscopic one, and the energy that of one cell: E - field.dipole.
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np

from jaxmlip import units
from jaxmlip.derivatives.elastic import VOIGT, elastic_constants, pseudo_solve, voigt_matrix
from jaxmlip.derivatives.response.charges import periodic_born_charges
from jaxmlip.derivatives.response.field import by_field, polarizability
from jaxmlip.derivatives.response.images import other_images
from jaxmlip.system import Array, strain

FULL = 4 * np.pi * units.coulomb_constant  # 4 pi k, eV Å / e²: dielectric tensor of alpha / V


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class CrystalResponse:
    """Linear response of a crystal at rest to strain and field; Cartesian axes, units e, Å, eV."""

    dielectric: Array  # [3, 3] electronic, atoms and cell clamped (epsilon infinity)
    dielectric_static: Array  # [3, 3] atoms follow, the cell does not
    dielectric_free: Array  # [3, 3] atoms follow and the cell is free of stress
    piezoelectric_clamped: Array  # [3 (field), 3, 3 (strain)] e/Å², proper, d P / d strain
    piezoelectric: Array  # [3, 3, 3] e/Å², atoms follow; x 1602.18 for C/m²
    piezoelectric_strain: Array  # [3, 3, 3] Å/V, d strain / d field without stress; x 1e5 for pm/V
    born_charges: Array  # [n_atoms, 3 (of the atom), 3 (of the field)] e
    internal_field: Array  # [n_atoms, 3, 3 (field)] Å²/V, d r / d field
    internal_strain: Array  # [n_atoms, 3, 3, 3] Å, d r / d strain beside the homogeneous one
    elastic: Array  # [3, 3, 3, 3] eV/Å³, atoms follow, at constant field
    hessian: Array  # [n_atoms, 3, n_atoms, 3] eV/Å²
    polarizability: Array  # [3, 3] e² Å²/eV of the cell
    stress: Array  # [3, 3] eV/Å³
    forces: Array  # [n_atoms, 3] eV/Å; must be zero for what follows them to mean anything
    volume: Array  # Å³


def dielectric(apply):
    """1 + 4 pi k alpha / V with clamped atoms, [n_graphs, 3, 3]; NaN unless all axes are periodic.

    alpha is the response of the cell's dipole to the macroscopic field.
    """
    alpha = polarizability(apply)

    def dielectric_of(params, system):
        volume = jnp.abs(jnp.linalg.det(jnp.asarray(system.cell)))[:, None, None]
        out = jnp.eye(3) + FULL * alpha(params, system) / volume
        return jnp.where(jnp.all(system.pbc, axis=-1)[:, None, None], out, jnp.nan)

    return dielectric_of


def piezoelectric(apply):
    """Proper piezoelectric tensor, fractional coordinates kept, [n_graphs, 3, 3, 3], e/Å².

    e_ijk = d P_i / d strain_jk less what merely turns and stretches the polarisation: the
    derivative of the dipole in units of the strained cell (Vanderbilt, 2000,
    10.1016/S0022-3697(99)00273-5), which does not depend on its branch. NaN unless all axes are
    periodic, and for dipoles of point charges that depend on strain: their answer would depend on
    the images of atoms.
    """
    gradient = by_field(apply)

    def reduced(params, system, epsilon):
        e = (epsilon + epsilon.swapaxes(-1, -2)) / 2
        moved = strain(system, e)
        out = -gradient(jnp.asarray(moved.field), moved.positions, params, moved)
        return jnp.linalg.solve(jnp.eye(3) + e, out[..., None])[..., 0]  # e is symmetric

    def piezoelectric_of(params, system):
        system = jax.tree.map(jnp.asarray, system)
        zero = jnp.zeros_like(system.cell)
        value, back = jax.vjp(lambda e: reduced(params, system, e), zero)
        axes = jnp.broadcast_to(jnp.eye(3, dtype=value.dtype)[:, None], (3, *value.shape))
        out = jnp.moveaxis(jax.vmap(lambda axis: back(axis)[0])(axes), 0, 1)
        good = _same_at_other_images(lambda s, e: reduced(params, s, e), system)
        good = good & jnp.all(system.pbc, axis=-1)
        volume = jnp.abs(jnp.linalg.det(system.cell))
        return jnp.where(good[:, None, None, None], out / volume[:, None, None, None], jnp.nan)

    return piezoelectric_of


def _same_at_other_images(reduced, system):
    """Whether the slope along one strain of no symmetry is that of other images, [n_graphs]."""
    along = jnp.asarray([[1.0, 0.3, -0.2], [0.3, -0.7, 0.5], [-0.2, 0.5, 0.4]])
    along = jnp.broadcast_to(along.astype(system.cell.dtype), system.cell.shape)
    slope = lambda s: jax.jvp(lambda e: reduced(s, e), (jnp.zeros_like(along),), (along,))[1]
    moved, moves = other_images(system)
    here, there = slope(system), slope(moved)
    rounding = 1e4 * jnp.finfo(here.dtype).eps * (1 + jnp.abs(moves).sum())
    return jnp.abs(here - there).max(-1) <= rounding


def crystal_response(apply, *, memory: float | None = None):
    """(params, system) -> `CrystalResponse` of one crystal; primitive cells are cheapest.

    memory: as in `hessian`. Raises `UsageError` for a batch or an energy without a field,
    `DataError` for an open axis. Born charges of point charges are exact (`periodic_born_charges`);
    piezoelectric tensors of those are NaN where `piezoelectric` is.
    """
    elastic_of = elastic_constants(apply, memory=memory)
    born_of, alpha_of = periodic_born_charges(apply), polarizability(apply)
    piezo_of = piezoelectric(apply)

    def response_of(params, system):
        elastic = elastic_of(params, system)
        charges, alpha = born_of(params, system), alpha_of(params, system)[0]
        clamped = piezo_of(params, system)[0]
        shape, volume = charges.shape, elastic.volume
        flat = charges.reshape(-1, 3)  # the force on an atom in a field
        moved = pseudo_solve(elastic.hessian.reshape(len(flat), -1), flat, system.atom_mask)
        electronic = jnp.eye(3) + FULL * alpha / volume
        static = electronic + FULL * _dot(flat.T, moved) / volume
        internal = elastic.internal.reshape(len(flat), 9)
        piezo = clamped + _dot(flat.T, internal).reshape(3, 3, 3) / volume
        strained = _strain_by_field(piezo, elastic.relaxed)
        return CrystalResponse(
            dielectric=electronic,
            dielectric_static=static,
            dielectric_free=static + FULL * jnp.einsum("ajk,bjk->ab", piezo, strained),
            piezoelectric_clamped=clamped,
            piezoelectric=piezo,
            piezoelectric_strain=strained,
            born_charges=charges,
            internal_field=moved.reshape(shape),
            internal_strain=elastic.internal,
            elastic=elastic.relaxed,
            hessian=elastic.hessian,
            polarizability=alpha,
            stress=elastic.stress,
            forces=elastic.forces,
            volume=volume,
        )

    return response_of


def _strain_by_field(piezo, elastic):
    """d strain / d field at zero stress [3, 3, 3]: compliance times the piezoelectric tensor."""
    first, second = np.array([0, 1, 2, 1, 0, 0]), np.array([0, 1, 2, 2, 2, 1])
    engineering = jnp.linalg.solve(voigt_matrix(elastic), piezo[:, first, second].T).T
    factor = np.where(np.eye(3, dtype=bool), 1.0, 0.5)
    return engineering[:, VOIGT] * factor


def _dot(a, b):
    return jnp.matmul(a, b, precision=jax.lax.Precision.HIGHEST)
