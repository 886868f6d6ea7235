"""The heat flux of any potential whose energy is a sum over atoms, many-body and message-passing.

It is the rate of the energy's centre of gravity, d/dt sum of r_i E_i, E_i = U_i + m v²/2:

    J = sum of v_i E_i + sum over i, j of (r_i - r_j) (dU_i/dr_j . v_j).

In a crystal j runs over all images that U_i knows of, as far as messages carry (Langer, Knoop,
Carbogno, Scheffler and Rupp, 2023, 10.1103/PhysRevB.108.L100302, who unfold the cell for that).
Here the cells are told apart by a phase, as a displacement wave does (`bloch.wave`): the share of
whole lattice vectors R in r_j is the slope in the wavevector, at zero, of the energy that a wave of
displacements along the velocities makes in one cell. A few energies' work, on the cell as it is.
"""

from dataclasses import replace

import jax
import jax.numpy as jnp

from jaxmlip.derivatives.bloch.wave import PART, Wave
from jaxmlip.errors import UsageError
from jaxmlip.system import sum_atoms

NEARLY = 1e-30  # a wavevector next to zero: sums over a structure do not follow a wave any more


def heat_flux(apply, *, convective: bool = True):
    """(params, system, velocities [n_atoms, 3], masses [n_atoms]) -> J [n_graphs, 3].

    eV Å per unit of time of the velocities (internal: masses in amu), of the whole cell. From
    `energies`, so without what a field or long-range terms add. convective: with the first sum;
    in a solid it does not conduct, and leaving it out takes noise away. Energies of free atoms
    belong to it: take references off. In a mixture enthalpies flow with the species, which
    conduction does not count.
    """

    def heat_flux_of(params, system, velocities, masses):
        r = jnp.asarray(system.positions)
        v = jnp.where(system.atom_mask[:, None], velocities, 0).astype(r.dtype)
        energies_at = lambda r: _energies(apply, params, replace(system, positions=r))
        with jax.default_matmul_precision("highest"):
            energies, rates = jax.jvp(energies_at, (r,), (v,))
            slopes = jax.vjp(energies_at, r)[1](jnp.ones_like(energies))[0]
            whole = _of_lattice_vectors(apply, params, system, r, v)
        near = r * (rates - (slopes * v).sum(-1))[:, None]
        flux = sum_atoms(system, near) - whole
        if not convective:
            return flux
        kinetic = 0.5 * jnp.asarray(masses, r.dtype) * (v**2).sum(-1)
        return flux + sum_atoms(system, v * (energies + kinetic)[:, None])

    return heat_flux_of


def _of_lattice_vectors(apply, params, system, r, v):
    """Sum of R (dU_i/dr_jR . v_j) over the atoms i of a cell and all images R of j, [n_graphs, 3].

    The wave i v exp(2 pi i q.R) changes the energy of the cell by -sum sin(2 pi q.R) dU/dr . v.
    """
    parts = jnp.stack([jnp.zeros_like(v), v])

    def change(q):
        def energies(r, marker):
            wave = Wave(q=q, marker=marker)
            return _energies(apply, params, replace(system, positions=r, wave=wave))

        along = lambda u: jax.jvp(lambda r: energies(r, r[0, 0]), (r,), (u,))[1]
        return sum_atoms(system, jax.vmap(along, axis_name=PART)(parts)[0])

    slope = lambda dq: jax.jvp(change, (jnp.full(3, NEARLY, r.dtype),), (dq,))[1]
    slopes = jax.vmap(slope)(jnp.eye(3, dtype=r.dtype))
    return -jnp.einsum("ag,gab->gb", slopes, jnp.asarray(system.cell)) / (2 * jnp.pi)


def _energies(apply, params, system):
    out = apply(params, system)
    if "energies" not in out:
        raise UsageError(
            f"this potential predicts {', '.join(sorted(out))}: it has no energies of atoms",
            where="heat_flux",
            fix="a potential whose energy is a sum over atoms",
        )
    return jnp.where(system.atom_mask, out["energies"], 0)
