"""What is recorded along a trajectory; each is a function of one instant."""

from collections.abc import Callable

import jax.numpy as jnp
import numpy as np

from jaxmlip import units
from jaxmlip.derivatives.heat_flux import heat_flux
from jaxmlip.derivatives.response import current, polarizability
from jaxmlip.md.motion import conserved_energy, kinetic_energy, temperature_of, without_drift
from jaxmlip.md.recording import Measured
from jaxmlip.system import edge_vectors, sum_atoms, to_edges


def standard(motion, bodies, system, integrator) -> dict:
    """Energies (eV), temperature (K), what the run keeps of the prediction (such as dipole) and,
    where there is a stress, pressure and stress with the part of the momenta (eV/Å³).

    Where the run keeps `forces_uncertainty`, uncertainty (eV/Å) is that of the worst atom.
    """
    out = {
        "step": motion.step,
        "energy": motion.energy,
        "kinetic_energy": kinetic_energy(motion, bodies, system),
        "conserved_energy": conserved_energy(motion, integrator, bodies, system),
        "temperature": temperature_of(motion, bodies, system),
    }
    if integrator.needs_stress:
        out["pressure"] = pressure(motion, bodies, system)
        out["total_stress"] = motion.stress + kinetic_stress(motion, bodies, system)
        out["volume"] = jnp.abs(jnp.linalg.det(motion.cell))
    return out | _kept(motion, system)


def _kept(motion, system) -> dict:
    """What the run keeps, one value a structure."""
    kept = dict(motion.extra or {})
    worst = kept.pop("forces_uncertainty", None)
    if worst is not None:
        known = jnp.where(system.atom_mask, worst, 0)
        kept["uncertainty"] = jnp.zeros(system.n_graphs, worst.dtype).at[system.graph].max(known)
    return kept


def with_msd(motion, bodies, system, integrator) -> dict:
    """`standard` and the mean square displacement of free atoms since the start, Å².

    The start is the structure that the run was prepared with, deformed as the cell is now; the
    motion of the centre of mass does not count.
    """
    weight = jnp.where(bodies.free, 1, 0).astype(motion.positions.dtype)
    start = _carried(system, motion) if integrator.moves_cell else system.positions
    moved = weight[:, None] * (motion.positions - start)
    mass = jnp.where(bodies.free, bodies.masses, 0)
    whole = jnp.maximum(sum_atoms(system, mass), 1e-30)[:, None]
    held = sum_atoms(system, jnp.where(bodies.free | (system.numbers == 0), 0, 1)) > 0
    center = jnp.where(held[:, None], 0, sum_atoms(system, mass[:, None] * moved) / whole)
    apart = weight * ((moved - center[system.graph]) ** 2).sum(-1)
    mean = sum_atoms(system, apart) / jnp.maximum(sum_atoms(system, weight), 1)
    return standard(motion, bodies, system, integrator) | {"msd": mean}


def velocity_correlation(velocities) -> Callable:
    """<v(0).v(t)> of free atoms, one a structure, Å²/fs²: a function to be observed.

    velocities: [n_atoms, 3] of the motion at time 0 (internal units). One origin: for averages over
    all origins, and spectra, record frames and use `vibrations.spectra`.
    """
    first = np.array(velocities) * units.fs

    def of(motion, bodies, system, integrator):
        each = jnp.where(bodies.free, (first * motion.velocities * units.fs).sum(-1), 0)
        count = jnp.maximum(sum_atoms(system, bodies.free.astype(each.dtype)), 1)
        return {"step": motion.step, "vacf": sum_atoms(system, each) / count}

    return of


def _carried(system, motion):
    """Where atoms would be if the cell alone had moved: that it breathes is no diffusion."""
    change = jnp.linalg.solve(system.cell, motion.cell)
    return jnp.einsum("na,nab->nb", system.positions, change[system.graph], precision="highest")


def frame(motion, bodies, system, integrator) -> dict:
    """All that is written of an instant: positions, velocities, forces, cell, energy, and more."""
    out = {
        "step": motion.step,
        "positions": motion.positions,
        "velocities": motion.velocities,
        "forces": motion.forces,
        "cell": motion.cell,
        "energy": motion.energy,
    }
    if integrator.needs_stress:
        out["stress"] = motion.stress
    return out | _kept(motion, system)


def responses(apply, *, alpha: bool = True) -> Measured:
    """The current d(dipole)/dt (e Å/fs), which knows no branches, and the polarisability
    (e² Å²/eV) where `alpha`: for infrared and Raman spectra, one a structure. A net charge does
    not flow with the centre of mass, where no atom is held.
    """

    def of(params, motion, bodies, system, integrator):
        inner = without_drift(motion, bodies, system).velocities
        flow = current(apply)(params, system, inner) * units.fs
        out = {"step": motion.step, "current": flow}
        return out | ({"polarizability": polarizability(apply)(params, system)} if alpha else {})

    return Measured(of)


def heat_flow(apply, *, convective: bool = True) -> Measured:
    """The heat flux (eV Å/fs), one a structure, for thermal conductivities; arguments as in
    `derivatives.heat_flux`.
    """
    flux = heat_flux(apply, convective=convective)

    def of(params, motion, bodies, system, integrator):
        flow = flux(params, system, motion.velocities, bodies.masses) * units.fs
        return {"step": motion.step, "heat_flux": flow}

    return Measured(of)


def pair_counts(numbers, cutoff: float, *, bins: int = 200) -> Measured:
    """Pairs of each two elements in bins of distance up to the cutoff of the potential.

    numbers: of the whole batch. Gives `pairs` [n_kinds, n_kinds, bins] of [receiver, sender], kinds
    in the order of np.unique(numbers) without padding; all structures together.
    """
    known = np.unique(np.asarray(numbers)[np.asarray(numbers) > 0])
    kind = np.searchsorted(known, np.asarray(numbers)).clip(0, len(known) - 1)
    n = len(known)

    def of(params, motion, bodies, system, integrator):
        length = jnp.linalg.norm(edge_vectors(system), axis=-1)
        where = (length * (bins / cutoff)).astype(jnp.int32)
        pair = jnp.asarray(kind)[:, None] * n + to_edges(system, jnp.asarray(kind))
        valid = system.edges.mask & (where < bins)
        index = jnp.where(valid, pair * bins + where, n * n * bins)
        counts = jnp.zeros(n * n * bins + 1).at[index.reshape(-1)].add(1.0)[:-1]
        volume = jnp.abs(jnp.linalg.det(motion.cell)).sum()
        return {"step": motion.step, "pairs": counts.reshape(n, n, bins), "cells": volume}

    return Measured(of)


def kinetic_stress(motion, bodies, system):
    """-sum of m v v / V, [n_graphs, 3, 3] eV/Å³ (the momentum that atoms carry pushes outwards)."""
    volume = jnp.abs(jnp.linalg.det(motion.cell))[:, None, None]
    flow = bodies.masses[:, None, None] * motion.velocities[:, :, None]
    return -sum_atoms(system, flow * motion.velocities[:, None, :]) / volume


def pressure(motion, bodies, system):
    """-trace of the whole stress / 3, [n_graphs], eV/Å³."""
    whole = motion.stress + kinetic_stress(motion, bodies, system)
    return -jnp.trace(whole, axis1=1, axis2=2) / 3
