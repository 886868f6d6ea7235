"""Many small structures whose statistics are known, moved without neighbour lists."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np

from jaxmlip.md.motion import bodies_of, conserved_energy, temperature_of, thermal_motion
from jaxmlip.system import System


def gas(n_graphs, n, length):
    """n_graphs cubic cells of n atoms; length: Å, one or one a structure."""
    cell = np.broadcast_to(length, (n_graphs,))[:, None, None] * np.eye(3)
    graph = np.repeat(np.arange(n_graphs), n).astype(np.int32)
    rng = np.random.default_rng(0)
    return System(
        positions=np.einsum("na,nab->nb", rng.random((n_graphs * n, 3)), cell[graph]),
        numbers=np.full(n_graphs * n, 18),
        graph=graph,
        cell=cell,
        pbc=np.ones((n_graphs, 3), bool),
        charge=np.zeros(n_graphs),
        spin=np.ones(n_graphs),
        field=np.zeros((n_graphs, 3)),
    )


def no_force(motion):
    """An ideal gas."""
    return replace(
        motion,
        forces=jnp.zeros_like(motion.positions),
        energy=jnp.zeros_like(motion.energy),
        stress=jnp.zeros_like(motion.cell),
    )


def driven(system, integrator, evaluate, *, steps, every, temperature, masses=40.0, **options):
    """Records along a trajectory with the forces of `evaluate(motion)`, {name: [records, ...]}."""
    system = jax.tree.map(jnp.asarray, system)
    masses = np.broadcast_to(masses, (system.n_atoms,))
    bodies = bodies_of(system, masses, **({"keeps_momentum": integrator.keeps_momentum} | options))
    integrator.check(system, bodies)
    bodies = jax.tree.map(jnp.asarray, bodies)
    motion = thermal_motion(system, bodies, jax.random.key(1), temperature=temperature)
    motion = evaluate(replace(motion, step=jnp.zeros((), jnp.int32)))
    motion = replace(motion, bath=integrator.init(motion, bodies))

    def step(motion, _):
        motion = evaluate(integrator.before(motion, bodies, system))
        motion = integrator.after(motion, bodies, system)
        return replace(motion, step=motion.step + 1), None

    def record(motion, _):
        motion, _ = jax.lax.scan(step, motion, None, length=every)
        return motion, {
            "cell": motion.cell,
            "positions": motion.positions,
            "velocities": motion.velocities,
            "temperature": temperature_of(motion, bodies, system),
            "conserved_energy": conserved_energy(motion, integrator, bodies, system),
        }

    _, records = jax.jit(lambda m: jax.lax.scan(record, m, None, length=steps // every))(motion)
    return jax.tree.map(np.asarray, records)


def standard_error(x, blocks=20):
    """Of the mean of correlated samples, from means of blocks."""
    means = x[: len(x) // blocks * blocks].reshape(blocks, -1).mean(1)
    return means.std(ddof=1) / np.sqrt(blocks)


def likeliest_slope(first, second, blocks=20):
    """(slope, error) of ln p2/p1 in V: logistic regression; its error from blocks left out."""

    def fit(first, second):
        center = np.concatenate([first, second]).mean()
        x = np.concatenate([first, second]) - center
        y = np.concatenate([np.zeros(len(first)), np.ones(len(second))])
        b = np.zeros(2)
        for _ in range(50):  # Newton
            p = 1 / (1 + np.exp(-b[0] - b[1] * x))
            design = np.stack([np.ones_like(x), x])
            b = b + np.linalg.solve(design * (p * (1 - p)) @ design.T, design @ (y - p))
        return b[1]

    cut = lambda x: np.array_split(x, blocks)
    rest = lambda parts, i: np.concatenate(parts[:i] + parts[i + 1 :])
    left = [fit(rest(cut(first), i), rest(cut(second), i)) for i in range(blocks)]
    return fit(first, second), np.std(left) * np.sqrt(blocks - 1)
