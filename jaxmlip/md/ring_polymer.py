"""Quantum nuclei: a ring of beads, classical copies of a structure joined by springs.

The beads are structures of one batch (`ring`), so nothing else of a run changes: forces of all
beads are one evaluation. Beads move at `n_beads` times the temperature with

    H = sum_j K_j + V(q_j) + sum_j m w_P^2 (q_j - q_j+1)^2 / 2,  w_P = n_beads kT / hbar,

whose averages are those of the quantum Boltzmann distribution as n_beads grows (Parrinello and
Rahman, 1984, 10.1063/1.446740). Free rings move exactly, by their normal modes, under a Langevin
bath of each mode (Ceriotti, Parrinello, Markland and Manolopoulos, 2010, 10.1063/1.3489925).
"""

from collections.abc import Callable
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np

from jaxmlip import units
from jaxmlip.errors import UsageError
from jaxmlip.md.integrators import checked, kicked, same
from jaxmlip.md.motion import (
    Integrator,
    conserved_energy,
    kinetic_energy,
    normals,
    temperature_of,
)
from jaxmlip.system import System, concatenate, sum_atoms


def ring(system: System, n_beads: int) -> System:
    """The batch of all beads: bead j of structure g is structure j x n_graphs + g (host)."""
    return concatenate([system] * n_beads)


@same
def ring_polymer(
    *,
    dt: float,
    temperature: float,
    n_beads: int,
    tau: float | None = 100.0,
    damping: float = 1.0,
) -> Integrator:
    """Path-integral molecular dynamics of a batch made by `ring`.

    dt: fs. temperature: K, of the nuclei; start with `thermal_motion` of n_beads times that. tau:
    relaxation time of the bath of the centroid, fs; None leaves the centroid alone. damping: of the
    other modes, in units of the critical one.

    Sampling: the defaults. Thermostatted ring-polymer dynamics, for spectra and diffusion (Rossi,
    Ceriotti and Manolopoulos, 2014, 10.1063/1.4883861): tau None, damping 0.5. Ring-polymer
    dynamics (Craig and Manolopoulos, 2004, 10.1063/1.1777575): tau None, damping 0.

    The bath has the energy of springs and has given heat: the sum over the beads of a ring of
    their conserved energies is conserved within the error of `dt`. Atoms are not held.
    """
    if not temperature > 0 or n_beads < 1 or damping < 0:
        raise UsageError(
            f"temperature = {temperature} K, n_beads = {n_beads}, damping = {damping}: they must "
            "be above zero, at least 1 and not below zero",
            where="ring_polymer",
        )
    dt, kT = checked(dt) * units.fs, n_beads * units.kB * temperature
    modes, frequencies = normal_modes(n_beads, kT)
    first = 0.0 if tau is None else 1 / (tau * units.fs)
    frictions = np.where(frequencies > 0, 2 * damping * frequencies, first)
    keep = np.exp(-frictions * dt / 2)[:, None, None]
    turn, stretch, slow = _propagator(frequencies, dt)

    def bathed(motion, bodies, system):
        if not frictions.any():
            return motion
        dtype, cold = motion.velocities.dtype, kinetic_energy(motion, bodies, system)
        keys, noise = _drawn(motion, bodies, system)
        width = jnp.sqrt(kT / bodies.masses).reshape(n_beads, -1, 1)
        kept = jnp.asarray(keep, dtype)
        x = kept * to_modes(motion.velocities) + jnp.sqrt(1 - kept**2) * width * noise
        moved = replace(motion, velocities=_real(to_beads(x), bodies).astype(dtype), keys=keys)
        given = kinetic_energy(moved, bodies, system) - cold
        return replace(moved, bath=motion.bath + given.astype(motion.bath.dtype))

    def free(motion):
        x, v = to_modes(motion.positions), to_modes(motion.velocities)
        c, s, w = (jnp.asarray(part, x.dtype) for part in (turn, stretch, slow))
        x, v = c * x + s * v, c * v - w * x
        return replace(motion, positions=to_beads(x), velocities=to_beads(v))

    def before(motion, bodies, system):
        return free(kicked(bathed(motion, bodies, system), bodies, system, dt / 2))

    def after(motion, bodies, system):
        return bathed(kicked(motion, bodies, system, dt / 2), bodies, system)

    def _drawn(motion, bodies, system):
        keys = jax.vmap(jax.random.split)(motion.keys)
        noise = normals(keys[:, 0], bodies, system, motion.velocities.dtype)
        return keys[:, 1], noise.reshape(n_beads, -1, 3)

    def to_modes(x):
        beads = x.reshape(n_beads, -1, 3)
        return jnp.einsum("kj,jax->kax", jnp.asarray(modes, x.dtype), beads, precision="highest")

    def to_beads(x):
        back = jnp.asarray(modes.T, x.dtype)
        return jnp.einsum("jk,kax->jax", back, x, precision="highest").reshape(-1, 3)

    def bath_energy(motion, bodies, system):
        beads = motion.positions.reshape(n_beads, -1, 3)
        apart = ((beads - jnp.roll(beads, -1, 0)) ** 2).sum(-1).reshape(-1)
        springs = 0.5 * (kT / units.hbar) ** 2 * bodies.masses * apart
        return sum_atoms(system, springs) - motion.bath

    return Integrator(
        lambda motion, bodies: jnp.zeros_like(motion.energy),
        before,
        after,
        dt,
        keeps_momentum=False,
        bath_energy=bath_energy,
        check=lambda system, bodies: _check(system, bodies, n_beads),
    )


def normal_modes(n_beads: int, kT: float) -> tuple[np.ndarray, np.ndarray]:
    """(modes [n, n], rows orthonormal, the centroid first; frequencies [n]) of a free ring.

    kT: of the beads, eV. Frequencies are 2 w_P sin(k pi / n), in internal units.
    """
    j, n = np.arange(n_beads), n_beads
    k = np.arange(n)[:, None]
    phase = 2 * np.pi * k * j / n
    waves = np.where(2 * k <= n, np.cos(phase), np.sin(phase))
    waves = waves / np.linalg.norm(waves, axis=1, keepdims=True)
    return waves, 2 * kT / units.hbar * np.abs(np.sin(np.pi * k[:, 0] / n))


def quantum(n_beads: int, temperature: float) -> Callable:
    """What is observed of rings, one number a ring: for `prepare(observe=quantum(...))`.

    potential_energy (eV), the mean over beads; kinetic_energy (eV), by the centroid virial
    estimator (Herman, Bruskin and Berne, 1982, 10.1063/1.442815); gyration (Å), the root mean
    square distance of beads from their centroid; temperature (K) of the nuclei, from the velocities
    of beads; conserved_energy (eV), the sum over beads. temperature: K, as in `ring_polymer`.
    """

    def of(motion, bodies, system, integrator):
        over = lambda x: x.reshape(n_beads, -1)
        beads = motion.positions.reshape(n_beads, -1, 3)
        apart = _real((beads - beads.mean(0)).reshape(-1, 3), bodies)
        virial = over(sum_atoms(system, -(apart * motion.forces).sum(-1))).mean(0)
        n_atoms = over(sum_atoms(system, bodies.free.astype(apart.dtype)))[0]
        square = over(sum_atoms(system, (apart**2).sum(-1))).mean(0)
        kept = conserved_energy(motion, integrator, bodies, system)
        return {
            "step": motion.step,
            "potential_energy": over(motion.energy).mean(0),
            "kinetic_energy": 1.5 * n_atoms * units.kB * temperature + virial / 2,
            "gyration": jnp.sqrt(square / jnp.maximum(n_atoms, 1)),
            "temperature": over(temperature_of(motion, bodies, system)).mean(0) / n_beads,
            "conserved_energy": over(kept).sum(0),
        } | (motion.extra or {})

    return of


def _propagator(frequencies, dt):
    """cos(w dt), sin(w dt)/w and w sin(w dt), [n, 1, 1] each."""
    w = frequencies[:, None, None]
    return np.cos(w * dt), dt * np.sinc(w * dt / np.pi), w * np.sin(w * dt)


def _real(x, bodies):
    """Zero for padding."""
    return jnp.where(bodies.free[:, None], x, 0)


def _check(system, bodies, n_beads):
    numbers = np.asarray(system.numbers)
    whole = system.n_graphs % n_beads == 0 and len(numbers) % n_beads == 0
    if not whole or (numbers.reshape(n_beads, -1) != numbers[: len(numbers) // n_beads]).any():
        raise UsageError(
            f"a batch of {system.n_graphs} structures is not made of {n_beads} equal beads",
            where="ring_polymer",
            fix="ring(system, n_beads)",
        )
    if not np.array_equal(np.asarray(bodies.free), np.asarray(system.atom_mask)):
        raise UsageError("atoms of rings cannot be held", where="ring_polymer")
    if bodies.center is not None:
        raise UsageError("the centre of mass of rings cannot be held", where="ring_polymer")
