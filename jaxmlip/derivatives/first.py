"""First derivatives: forces and stress."""

from dataclasses import replace

import jax
import jax.numpy as jnp

from jaxmlip.system import strain


def total_energy(apply):
    """Energy summed over the batch as a function of positions, for derivatives of any order."""

    def energy(positions, params, system):
        return apply(params, replace(system, positions=positions))["energy"].sum()

    return energy


def forces(apply):
    """-dE/dr, [n_atoms, 3], eV/Å."""
    gradient = jax.grad(total_energy(apply))
    return lambda params, system: -gradient(system.positions, params, system)


def stress(apply):
    """(1/V) dE/dstrain, [n_graphs, 3, 3], eV/Å³, symmetric, positive under tension (ASE sign).

    V is the volume of the cell, for slabs and wires too (a cell vector that was missing counts as
    1 Å); structures without a periodic axis have no stress and get NaN.
    Method: Langer, Frank and Knoop, 2023, 10.1063/5.0155760.
    """

    def stress_of(params, system):
        def energy(epsilon):
            return apply(params, strain(system, _symmetric(epsilon)))["energy"].sum()

        return _per_volume(jax.grad(energy)(jnp.zeros_like(system.cell)), system)

    return stress_of


def with_forces(apply):
    """The prediction of `apply` and `forces`, from one backward pass over positions alone."""

    def with_forces_of(params, system):
        def energy(positions):
            out = apply(params, replace(system, positions=positions))
            return out["energy"].sum(), out

        gradient, out = jax.grad(energy, has_aux=True)(jnp.asarray(system.positions))
        return {**out, "forces": -gradient}

    return with_forces_of


def predict(apply):
    """Everything that one backward pass gives: the prediction of `apply` with forces and stress."""

    def predict_of(params, system):
        def energy(positions, epsilon):
            moved = strain(replace(system, positions=positions), _symmetric(epsilon))
            out = apply(params, moved)
            return out["energy"].sum(), out

        zero = jnp.zeros_like(system.cell)
        grad = jax.grad(energy, argnums=(0, 1), has_aux=True)
        (by_position, by_strain), out = grad(jnp.asarray(system.positions), zero)
        return {**out, "forces": -by_position, "stress": _per_volume(by_strain, system)}

    return predict_of


def _symmetric(epsilon):
    return (epsilon + epsilon.swapaxes(-1, -2)) / 2


def _per_volume(by_strain, system):
    volume = jnp.abs(jnp.linalg.det(jnp.asarray(system.cell)))
    periodic = jnp.any(jnp.asarray(system.pbc), axis=-1)
    return jnp.where(periodic[:, None, None], by_strain / volume[:, None, None], jnp.nan)
