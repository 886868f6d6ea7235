"""Replica exchange: canonical at every temperature, with the acceptance that theory says."""

from dataclasses import replace
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ase import Atoms
from numpy.testing import assert_allclose, assert_array_equal

from jaxmlip import units
from jaxmlip.errors import UsageError
from jaxmlip.interfaces.ase import from_ase
from jaxmlip.md import (
    csvr,
    langevin,
    nose_hoover,
    nve,
    prepare,
    sensitivity,
    stochastic_cell,
    thermal_motion,
    trajectory,
)
from jaxmlip.md.recording import Measured
from jaxmlip.md.replica_exchange import acceptance, exchanged, replica_exchange, walkers
from jaxmlip.models import LennardJones
from jaxmlip.potential import Potential
from jaxmlip.system import concatenate, sum_energies

ATOMS, STIFFNESS = 4, 2.0  # eV/Å²
CENTERS = 5.0 * np.arange(ATOMS)[:, None] * [[1.0, 0, 0]]
LADDER = np.array([200.0, 300.0, 450.0])  # K


def wells(params, system):
    """Every atom on a spring of its own."""
    away = system.positions - np.tile(CENTERS, (system.n_graphs, 1))
    return {"energy": sum_energies(system, 0.5 * STIFFNESS * (away**2).sum(-1))}


ARGON = LennardJones(elements=(18,), cutoff=6.0, smoothness=3)
WELLS = Potential(init=None, apply=wells, cutoff=1e-3)


def ready(bath=None, *, every=20):
    places = CENTERS + np.random.default_rng(0).normal(0, 0.1, (ATOMS, 3))
    one = from_ase(Atoms(f"He{ATOMS}", positions=places), 1e-3, dtype=np.float64)
    batch = concatenate([one] * len(LADDER))
    bath = bath or langevin(dt=0.5, temperature=LADDER)
    ladder = replica_exchange(bath, every=every)
    run = prepare(WELLS, {}, batch, ladder, masses=np.full(batch.n_atoms, 4.0), observe=walkers)
    return run, thermal_motion(batch, run.bodies, jax.random.key(0), temperature=LADDER)


@cache
def compiled_once(bath):
    """(run, motion): an integrator is a program of its own."""
    return ready(bath(dt=0.5, temperature=LADDER))


def last(run, motion, *, steps, block=100, record=20):
    return list(trajectory(run, motion, steps=steps, block=block, record=record))[-1]


@pytest.mark.slow
def test_every_temperature_stays_canonical_and_accepts_as_theory_says():
    run, motion = ready(langevin(dt=2.0, temperature=LADDER, friction=0.05), every=100)
    found = last(run, motion, steps=60_000, block=60_000, record=100)
    names = ("energy", "kinetic_energy", "walker")
    energy, kinetic, walker = (found.records[name][20:] for name in names)  # just after exchanges
    dof, kT = 3 * ATOMS, units.kB * LADDER
    error = np.sqrt(dof / 2) * kT / np.sqrt(len(energy) / 2)  # records are nearly independent
    for part in (energy, kinetic):
        assert (np.abs(part.mean(0) - dof / 2 * kT) < 3 * error).all()
    # energies of harmonic wells are Gamma distributed: acceptance by sampling them
    drawn = np.random.default_rng(0).gamma(dof / 2, kT, (200_000, len(LADDER)))
    theory = np.minimum(1, np.exp(np.diff(1 / kT) * np.diff(drawn, axis=1))).mean(0)
    tried = np.asarray(found.motion.bath["tried"])[:-1]
    assert_array_equal(tried, [300, 300])
    assert_allclose(acceptance(found.motion), theory, atol=3 * np.sqrt(0.25 / 300))
    assert (np.sort(walker, 1) == np.arange(3)).all()
    assert set(walker[:, 0]) == {0, 1, 2}  # every walker has been coldest


def test_an_exchange_swaps_configurations_and_scales_velocities():
    run, motion = compiled_once(langevin)
    motion = last(run, motion, steps=100).motion
    before = {name: np.asarray(motion.bath[name]) for name in ("walker", "tried", "accepted")}
    energy = jnp.array([-1.0, -9.0, 0.0])  # the second is far below the first: surely traded
    motion = replace(motion, energy=energy)
    out = exchanged(motion, units.kB * LADDER, jax.random.key(0), odd=0)
    assert_array_equal(out.bath["walker"], before["walker"][[1, 0, 2]])
    for name in ("tried", "accepted"):
        assert_array_equal(out.bath[name] - before[name], [1, 0, 0])
    assert_array_equal(out.positions[:ATOMS], motion.positions[ATOMS : 2 * ATOMS])
    old = motion.velocities[ATOMS : 2 * ATOMS] * np.sqrt(LADDER[0] / LADDER[1])
    assert_allclose(out.velocities[:ATOMS], old, rtol=1e-14)
    assert_array_equal(out.energy, [-9.0, -1.0, 0.0])


OTHERS = [pytest.param(bath, marks=pytest.mark.slow) for bath in (csvr, nose_hoover)]


@pytest.mark.parametrize("bath", [langevin, *OTHERS])
def test_a_ladder_goes_on_to_the_bit_and_keeps_its_energy(bath):
    run, motion = compiled_once(bath)
    blocks = list(trajectory(run, motion, steps=400, block=100, record=20))
    half = last(run, motion, steps=200)
    again = last(half.run, half.motion, steps=200)
    for one, other in zip(*map(jax.tree.leaves, (again.motion, blocks[-1].motion)), strict=True):
        if not jnp.issubdtype(one.dtype, jax.dtypes.prng_key):
            assert_array_equal(one, other)
    found = lambda name: np.concatenate([b.records[name] for b in blocks])
    assert np.ptp(found("walker"), axis=0).any()  # somebody has moved
    error = np.ptp(found("conserved_energy"), axis=0).max()
    assert error < 0.02 * np.ptp(found("energy"), axis=0).max()  # of dt alone


def test_configurations_are_of_the_positions_that_they_came_with():
    """Energies and forces after an exchange are those of the positions after it."""
    run, motion = compiled_once(langevin)
    motion = last(run, motion, steps=200).motion
    assert np.asarray(motion.bath["accepted"]).sum() > 0
    placed = replace(run.system, positions=motion.positions)
    assert_allclose(motion.energy, wells({}, placed)["energy"], rtol=1e-14)
    away = motion.positions - np.tile(CENTERS, (3, 1))
    assert_allclose(motion.forces, -STIFFNESS * away, rtol=1e-13)


def test_what_is_measured_is_measured_where_atoms_are():
    # the list of a step is that of the places before the exchange: a pair apart would have none
    def measured(params, motion, bodies, system, integrator):
        return {"seen": ARGON.apply(params, system)["energy"]}

    pairs = [Atoms("Ar2", positions=[[0, 0, 0], [0, 0, d]]) for d in (3.8, 9.0)]
    batch = concatenate([from_ase(a, ARGON.cutoff, dtype=np.float64) for a in pairs])
    ladder = replica_exchange(csvr(dt=1.0, temperature=[50.0, 60.0]), every=2)
    observe = (walkers, Measured(measured))
    run = prepare(ARGON, {}, batch, ladder, masses=np.full(4, 39.948), observe=observe)
    motion = thermal_motion(batch, run.bodies, jax.random.key(0), temperature=[50.0, 60.0])
    (block,) = trajectory(run, motion, steps=12, block=12, record=(2, 2))
    told, seen = block.records
    assert np.ptp(told["walker"][:, 0]) == 1
    assert_allclose(seen["seen"], told["energy"], rtol=1e-12)
    with pytest.raises(UsageError, match="no slope"):
        sensitivity(lambda records: 0.0, run, motion, steps=2)


def test_what_is_no_ladder_is_refused():
    bath = csvr(dt=1.0, temperature=[200.0, 300.0])
    with pytest.raises(UsageError, match="cells of others"):
        stochastic_cell(replica_exchange(bath), pressure=0.0)
    with pytest.raises(UsageError, match="without exchanges"):
        replica_exchange(replica_exchange(bath))
    with pytest.raises(UsageError, match="thermostat"):
        ready(nve(dt=1.0))
    with pytest.raises(UsageError, match="every"):
        ready(every=0)
    run, motion = ready(langevin(dt=2.0, temperature=300.0))
    with pytest.raises(UsageError, match="one for each"):
        last(run, motion, steps=20)
    one = from_ase(Atoms("HeNe", positions=[[0, 0, 0], [0, 0, 5.0]]), 1e-3)
    other = from_ase(Atoms("NeHe", positions=[[0, 0, 0], [0, 0, 5.0]]), 1e-3)
    ladder = replica_exchange(bath)
    with pytest.raises(UsageError, match="copies"):
        prepare(WELLS, {}, concatenate([one, other]), ladder, masses=np.full(4, 4.0))
