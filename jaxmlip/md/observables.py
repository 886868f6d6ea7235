"""What is recorded along a trajectory; each is a function of one instant."""

import jax.numpy as jnp

from jaxmlip.md.motion import conserved_energy, kinetic_energy, temperature_of
from jaxmlip.system import sum_atoms


def standard(motion, bodies, system, integrator) -> dict:
    """Energies (eV), temperature (K) and, where there is a stress, the pressure (eV/Å³)."""
    out = {
        "step": motion.step,
        "energy": motion.energy,
        "kinetic_energy": kinetic_energy(motion, bodies, system),
        "conserved_energy": conserved_energy(motion, integrator, bodies, system),
        "temperature": temperature_of(motion, bodies, system),
    }
    if integrator.needs_stress:
        out["pressure"] = pressure(motion, bodies, system)
        out["volume"] = jnp.abs(jnp.linalg.det(motion.cell))
    return out


def kinetic_stress(motion, bodies, system):
    """-sum of m v v / V, [n_graphs, 3, 3] eV/Å³ (the momentum that atoms carry pushes outwards)."""
    volume = jnp.abs(jnp.linalg.det(motion.cell))[:, None, None]
    flow = bodies.masses[:, None, None] * motion.velocities[:, :, None]
    return -sum_atoms(system, flow * motion.velocities[:, None, :]) / volume


def pressure(motion, bodies, system):
    """-trace of the whole stress / 3, [n_graphs], eV/Å³."""
    whole = motion.stress + kinetic_stress(motion, bodies, system)
    return -jnp.trace(whole, axis1=1, axis2=2) / 3
