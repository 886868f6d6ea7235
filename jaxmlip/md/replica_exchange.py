"""Replica exchange: copies of a structure at several temperatures that trade places.

The copies are structures of one batch, so all are computed at once. Between blocks of steps,
neighbours in temperature exchange their configurations with the probability of Metropolis, which
leaves the canonical distribution of every temperature as it is (Sugita and Okamoto, 1999,
10.1016/S0009-2614(99)01123-9).
"""

from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxmlip import units
from jaxmlip.errors import UsageError
from jaxmlip.md.motion import Motion, per_structure
from jaxmlip.md.run import Block, Run, trajectory


class Exchange(NamedTuple):
    """A block, and the exchange after it."""

    block: Block  # records are those of temperatures, not of walkers
    walkers: np.ndarray  # [n_graphs] which walker was at each temperature in the block
    tried: np.ndarray  # [n_graphs - 1] whether temperatures i and i + 1 tried to exchange after it
    accepted: np.ndarray  # [n_graphs - 1]


def replica_exchange(
    run: Run, motion: Motion, *, temperatures, key, steps: int, block: int, record: int = 10
) -> Iterator[Exchange]:
    """`trajectory` of a run whose structures are copies, one a temperature, with exchanges.

    temperatures: K, [n_graphs], those of the thermostat of the run. key: of the exchanges; with the
    step it decides them, so that a trajectory can be continued from `block.motion`. block: steps
    between exchanges of even pairs and of odd ones in turn. Cells, charges and spins must be the
    same in all copies, and the thermostat must not move cells.
    """
    temperatures = _checked(run, temperatures)
    walkers, end = np.arange(len(temperatures)), max(int(motion.step), 0) + steps
    while int(motion.step) < end:
        n = min(block, end - max(int(motion.step), 0))
        done = next(iter(trajectory(run, motion, steps=n, block=n, record=min(record, n))))
        run, odd = done.run, int(done.motion.step) // block % 2
        now = jax.random.fold_in(key, done.motion.step)
        motion, order, tried, accepted = exchanged(done.motion, temperatures, now, odd=odd)
        done = done._replace(motion=motion)
        yield Exchange(done, walkers, np.asarray(tried), np.asarray(accepted))
        walkers = walkers[np.asarray(order)]


@partial(jax.jit, static_argnames="odd")
def exchanged(motion: Motion, temperatures, key, *, odd: int):
    """(motion, order, tried, accepted): pairs (i, i + 1) of even or odd i traded by Metropolis.

    Velocities are scaled to their new temperature. order [n_graphs]: the old place of what is now
    at each temperature.
    """
    n = len(temperatures)
    lower = jnp.arange(n - 1)
    tried = lower % 2 == odd
    beta = 1 / (units.kB * jnp.asarray(temperatures, motion.energy.dtype))
    gain = (beta[1:] - beta[:-1]) * (motion.energy[1:] - motion.energy[:-1])
    chance = jax.random.uniform(key, (n - 1,), motion.energy.dtype)
    accepted = tried & (jnp.log(chance) < gain)
    zero = jnp.zeros(1, jnp.int32)
    up = jnp.concatenate([accepted.astype(jnp.int32), zero])
    down = jnp.concatenate([zero, accepted.astype(jnp.int32)])
    order = jnp.arange(n) + up - down
    return _permuted(motion, order, temperatures), order, tried, accepted


def _permuted(motion, order, temperatures):
    n = len(order)
    atoms = lambda x: x.reshape(n, -1, *x.shape[1:])[order].reshape(x.shape)
    graphs = lambda x: x[order]
    ratio = jnp.asarray(temperatures, motion.velocities.dtype)
    scale = jnp.sqrt(ratio / ratio[order])
    velocities = atoms(motion.velocities).reshape(n, -1, 3) * scale[:, None, None]
    moved = {name: atoms(getattr(motion, name)) for name in ("positions", "forces")}
    kept = lambda x: atoms(x) if len(x) == len(motion.positions) else graphs(x)
    return replace(
        motion,
        **moved,
        velocities=velocities.reshape(motion.velocities.shape),
        energy=graphs(motion.energy),
        stress=graphs(motion.stress),
        bath=jax.tree.map(graphs, motion.bath),
        extra=jax.tree.map(kept, motion.extra),
    )


def _checked(run: Run, temperatures) -> np.ndarray:
    system, n = jax.tree.map(np.asarray, run.system), run.system.n_graphs
    temperatures = per_structure(temperatures, n, "temperatures")
    if n < 2 or (temperatures <= 0).any():
        raise UsageError(
            f"temperatures {temperatures.tolist()} K: at least two, above zero",
            where="replica_exchange",
        )
    same = lambda x: (x.reshape(n, -1) == x.reshape(n, -1)[:1]).all()
    fixed = (system.cell, system.pbc, system.charge, system.spin, system.field)
    alike = system.n_atoms % n == 0 and all(same(x) for x in (system.numbers, *fixed))
    if not alike or not same(np.asarray(run.bodies.masses)):
        raise UsageError(
            "the structures are not copies of one (elements, cells, masses, charges, spins, field)",
            where="replica_exchange",
            fix="concatenate([system] * n_temperatures), without padding",
        )
    if run.integrator.kT is None or run.integrator.moves_cell:
        raise UsageError(
            "replicas need a thermostat and cells that do not move",
            where="replica_exchange",
            fix="csvr(dt=..., temperature=temperatures), langevin or nose_hoover",
        )
    return temperatures
