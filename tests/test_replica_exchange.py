"""Replica exchange: canonical at every temperature, with the acceptance that theory says."""

import jax
import numpy as np
import pytest
from ase import Atoms
from numpy.testing import assert_allclose, assert_array_equal

from jaxmlip import units
from jaxmlip.errors import UsageError
from jaxmlip.interfaces.ase import from_ase
from jaxmlip.md.integrators import langevin, nve
from jaxmlip.md.motion import thermal_motion
from jaxmlip.md.replica_exchange import exchanged, replica_exchange
from jaxmlip.md.run import prepare
from jaxmlip.potential import Potential
from jaxmlip.system import concatenate, sum_energies

ATOMS, STIFFNESS = 4, 2.0  # eV/Å²
CENTERS = 5.0 * np.arange(ATOMS)[:, None] * [[1.0, 0, 0]]
LADDER = np.array([200.0, 300.0, 450.0])  # K


def wells(params, system):
    """Every atom on a spring of its own."""
    away = system.positions - np.tile(CENTERS, (system.n_graphs, 1))
    return {"energy": sum_energies(system, 0.5 * STIFFNESS * (away**2).sum(-1))}


WELLS = Potential(init=None, apply=wells, cutoff=1e-3)


def ready(bath=None):
    places = CENTERS + np.random.default_rng(0).normal(0, 0.1, (ATOMS, 3))
    one = from_ase(Atoms(f"He{ATOMS}", positions=places), 1e-3, dtype=np.float64)
    batch = concatenate([one] * len(LADDER))
    bath = bath or langevin(dt=2.0, temperature=LADDER, friction=0.05)
    run = prepare(WELLS, {}, batch, bath, masses=np.full(batch.n_atoms, 4.0))
    return run, thermal_motion(batch, run.bodies, jax.random.key(0), temperature=LADDER)


@pytest.mark.slow
def test_every_temperature_stays_canonical_and_accepts_as_theory_says():
    run, motion = ready()
    found = list(
        replica_exchange(
            *(run, motion), temperatures=LADDER, key=jax.random.key(1), steps=60_000, block=100
        )
    )
    energy = np.array([e.block.records["energy"][-1] for e in found[20:]])
    dof, kT = 3 * ATOMS, units.kB * LADDER
    error = np.sqrt(dof / 2) * kT / np.sqrt(len(energy) / 2)  # blocks are nearly independent
    assert_allclose(energy.mean(0), dof / 2 * kT, atol=4 * error.max())
    # energies of harmonic wells are Gamma distributed: acceptance by sampling them
    rng = np.random.default_rng(0)
    drawn = rng.gamma(dof / 2, kT, (200_000, len(LADDER)))
    gain = np.diff(1 / kT) * np.diff(drawn, axis=1)
    theory = np.minimum(1, np.exp(gain)).mean(0)
    tried = np.array([e.tried for e in found])
    accepted = np.array([e.accepted for e in found]).sum(0) / tried.sum(0)
    assert_allclose(accepted, theory, atol=4 * np.sqrt(0.25 / tried.sum(0)).max())
    assert {tuple(np.sort(e.walkers)) for e in found} == {(0, 1, 2)}
    assert len({int(e.walkers[0]) for e in found}) == 3  # every walker has been coldest


def test_an_exchange_swaps_configurations_and_scales_velocities():
    run, motion = ready()
    energy = np.array([-1.0, -9.0, 0.0])  # the second is far below the first: surely traded
    motion = type(motion)(**{**vars(motion), "energy": energy, "step": np.int32(5)})
    out, order, tried, accepted = exchanged(motion, LADDER, jax.random.key(0), odd=0)
    assert_array_equal(order, [1, 0, 2])
    assert_array_equal(tried, [True, False])
    assert_array_equal(accepted, tried)
    assert_array_equal(out.positions[:ATOMS], motion.positions[ATOMS : 2 * ATOMS])
    old = motion.velocities[ATOMS : 2 * ATOMS] * np.sqrt(LADDER[0] / LADDER[1])
    assert_allclose(out.velocities[:ATOMS], old, rtol=1e-14)
    assert_array_equal(out.energy, energy[np.asarray(order)])


def test_a_ladder_goes_on_where_it_stopped():
    options = {"temperatures": LADDER, "key": jax.random.key(1), "block": 20, "record": 20}
    whole = list(replica_exchange(*ready(), steps=80, **options))[-1].block.motion
    run, motion = ready()
    half = list(replica_exchange(run, motion, steps=40, **options))[-1].block
    again = list(replica_exchange(half.run, half.motion, steps=40, **options))[-1].block.motion
    assert_array_equal(again.positions, whole.positions)


def test_what_is_no_ladder_is_refused():
    run, motion = ready(nve(dt=1.0))
    options = {"key": jax.random.key(0), "steps": 10, "block": 10}
    with pytest.raises(UsageError, match="thermostat"):
        next(replica_exchange(run, motion, temperatures=LADDER, **options))
    run, motion = ready()
    with pytest.raises(UsageError, match="one number"):
        next(replica_exchange(run, motion, temperatures=LADDER[:2], **options))
