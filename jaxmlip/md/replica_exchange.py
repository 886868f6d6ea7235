"""Replica exchange: copies of a structure at several temperatures that trade places.

The copies are structures of one batch, so all are computed at once and the exchanges are part of
the compiled step: a run of them is recorded, stopped and resumed as any other. Neighbours in
temperature trade their configurations with the probability of Metropolis, which leaves the
canonical distribution of every temperature as it is (Sugita and Okamoto, 1999,
10.1016/S0009-2614(99)01123-9).
"""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np

from jaxmlip.errors import UsageError
from jaxmlip.md.integrators import same
from jaxmlip.md.motion import Integrator, conserved_energy, inner
from jaxmlip.md.observables import standard

STREAM = 0x5265_7845  # of the random numbers of exchanges, far from those that baths draw


@same
def replica_exchange(bath: Integrator, *, every: int = 100) -> Integrator:
    """`bath`, with exchanges between its temperatures after every so many steps.

    bath: `langevin`, `csvr` or `nose_hoover` with one temperature (K) for each structure, from one
    end of the ladder to the other; it must not move cells. Pairs (0, 1), (2, 3) ... and (1, 2),
    (3, 4) ... try in turn. Structure i of the batch, `concatenate([system] * n)` without padding,
    is always at temperature i; what comes to it keeps its positions, and its velocities are scaled
    to the temperature. The energy that an exchange brings counts as given by the bath: with it, the
    total is conserved. A field must be the same for all. Energies are compared in the widest float
    there is: without `jax_enable_x64` that is float32, too coarse beyond some 10 000 eV.

    `walkers` records who is where, `acceptance` tells of how many attempts succeeded. Spacings
    that give 0.2 to 0.4 are usual: a ratio of about 1 + 1.5 / sqrt(degrees of freedom / 2).
    """
    if bath.kT is None or bath.moves_cell or bath.exchanges:
        raise UsageError(
            "replicas need a thermostat without exchanges and cells that do not move",
            where="replica_exchange",
            fix="csvr(dt=..., temperature=temperatures), langevin or nose_hoover",
        )
    if every < 1:
        raise UsageError(f"every = {every}; it must be at least 1", where="replica_exchange")

    def init(motion, bodies):
        n, kT = len(bodies.dof), np.shape(bath.kT(motion))
        if kT != (n,):
            raise UsageError(
                f"the bath has temperatures {kT} for {n} copies; it must have one for each",
                where="replica_exchange",
            )
        none = jnp.zeros(n, jnp.int32)
        return {
            "inner": bath.init(motion, bodies),
            "given": jnp.zeros_like(motion.energy),
            "walker": jnp.arange(n, dtype=jnp.int32),
            "tried": none,
            "accepted": none,
        }

    def after(motion, bodies, system):
        motion = inner(bath.after, motion, bodies, system)
        total = lambda motion: conserved_energy(motion, exchanging, bodies, system)
        now = motion.step + 1

        def traded(motion):
            key = jax.random.fold_in(jax.random.fold_in(motion.keys[0], STREAM), now)
            before, kT = total(motion), bath.kT(motion)
            motion = exchanged(motion, kT, key, odd=now // every % 2)
            given = motion.bath["given"] + total(motion) - before
            return replace(motion, bath=motion.bath | {"given": given})

        return jax.lax.cond(now % every == 0, traded, lambda motion: motion, motion)

    def bath_energy(motion, bodies, system):
        own = bath.bath_energy(replace(motion, bath=motion.bath["inner"]), bodies, system)
        return own - motion.bath["given"]

    def check(system, bodies):
        bath.check(system, bodies)
        _check_copies(system, bodies)

    exchanging = bath._replace(
        init=init,
        before=lambda motion, bodies, system: inner(bath.before, motion, bodies, system),
        after=after,
        bath_energy=bath_energy,
        exchanges=True,
        check=check,
    )
    return exchanging


def exchanged(motion, kT, key, *, odd):
    """The motion after pairs (i, i + 1) of even or odd i have tried to trade. kT: eV, [n_graphs].

    The state of the bath stays with the temperature.
    """
    lower = jnp.arange(len(kT) - 1)
    beta = 1 / jnp.asarray(kT, motion.energy.dtype)
    gain = (beta[1:] - beta[:-1]) * (motion.energy[1:] - motion.energy[:-1])
    chance = jax.random.uniform(key, gain.shape, gain.dtype)
    tried = lower % 2 == odd
    accepted = tried & (jnp.log(chance) < gain)
    none = jnp.zeros(1, bool)
    up, down = jnp.append(accepted, none), jnp.append(none, accepted)
    order = jnp.arange(len(kT)) + up - down
    bath = motion.bath | {
        "walker": motion.bath["walker"][order],
        "tried": motion.bath["tried"] + jnp.append(tried, none),
        "accepted": motion.bath["accepted"] + up,
    }
    return replace(_permuted(motion, order, beta), bath=bath)


def _permuted(motion, order, beta):
    n = len(order)
    atoms = lambda x: x.reshape(n, -1, *x.shape[1:])[order].reshape(x.shape)
    graphs = lambda x: x[order]
    scale = jnp.sqrt(beta[order] / beta).astype(motion.velocities.dtype)
    velocities = atoms(motion.velocities).reshape(n, -1, 3) * scale[:, None, None]
    kept = lambda x: atoms(x) if len(x) == len(motion.positions) else graphs(x)
    return replace(
        motion,
        positions=atoms(motion.positions),
        forces=atoms(motion.forces),
        velocities=velocities.reshape(motion.velocities.shape),
        energy=graphs(motion.energy),
        stress=graphs(motion.stress),
        extra=jax.tree.map(kept, motion.extra),
    )


def walkers(motion, bodies, system, integrator) -> dict:
    """`observables.standard`, and which copy is at each temperature; for `prepare(observe=...)`."""
    return standard(motion, bodies, system, integrator) | {"walker": motion.bath["walker"]}


def acceptance(motion) -> np.ndarray:
    """Exchanges of temperatures i and i + 1 that were accepted, of those tried, [n_graphs - 1];
    NaN where none was.
    """
    tried, accepted = (np.asarray(motion.bath[k], float)[:-1] for k in ("tried", "accepted"))
    return np.divide(accepted, tried, out=np.full(len(tried), np.nan), where=tried > 0)


def _check_copies(system, bodies):
    system, n = jax.tree.map(np.asarray, system), system.n_graphs
    same = lambda x: (np.asarray(x).reshape(n, -1) == np.asarray(x).reshape(n, -1)[:1]).all()
    fixed = (system.cell, system.pbc, system.charge, system.spin, system.field)
    alike = n > 1 and system.n_atoms % n == 0 and all(same(x) for x in (system.numbers, *fixed))
    still = np.where(np.asarray(bodies.free)[:, None], 0, system.positions)  # of held atoms
    if not alike or not all(map(same, (bodies.masses, bodies.free, still))):
        raise UsageError(
            f"the {n} structures are not copies of one (elements, cells, masses, charges, "
            "spins, field, which atoms are held and where)",
            where="replica_exchange",
            fix="concatenate([system] * n_temperatures), without padding",
        )
