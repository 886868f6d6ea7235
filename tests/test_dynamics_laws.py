"""Long laws of dynamics: drift over tens of picoseconds, ensembles at two temperatures, batches."""

from dataclasses import replace

import jax
import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk, molecule
from ensembles import likeliest_slope
from numpy.testing import assert_allclose, assert_array_equal

import jaxmlip
from jaxmlip import units
from jaxmlip.interfaces.ase import from_ase
from jaxmlip.md import (
    csvr,
    handed_over,
    langevin,
    nose_hoover,
    nve,
    prepare,
    relax,
    replica_exchange,
    ring,
    ring_polymer,
    stochastic_cell,
    thermal_motion,
    trajectory,
)
from jaxmlip.md.motion import at_rest, temperature_of
from jaxmlip.md.observables import velocity_correlation, with_msd
from jaxmlip.md.run import started
from jaxmlip.models import LennardJones
from jaxmlip.potential import Potential
from jaxmlip.restart import newest_state, restore_state, save_state
from jaxmlip.system import concatenate

ARGON = LennardJones(elements=(18,), cutoff=5.0, smoothness=3)
MASS = 39.948


def argon(repeats=2, dtype="float64"):
    atoms = bulk("Ar", "fcc", 5.4, cubic=True).repeat(repeats)
    atoms.rattle(0.05, seed=0)
    return from_ase(atoms, 1.0, dtype=dtype)


def ready(system, integrator, *, temperature=60.0, potential=ARGON, **options):
    run = prepare(
        potential, {}, system, integrator, masses=np.full(system.n_atoms, MASS), **options
    )
    return run, thermal_motion(system, run.bodies, jax.random.key(1), temperature=temperature)


def joined(blocks, name):
    return np.concatenate([b.records[name] for b in blocks])


def drift(blocks, dt, n_atoms):
    """meV an atom and ps: the slope of a straight line through the conserved energy."""
    time = np.concatenate([b.records["step"] for b in blocks]) * dt * 1e-3
    return 1e3 * np.polyfit(time, joined(blocks, "conserved_energy")[:, 0], 1)[0] / n_atoms


@pytest.mark.slow
@pytest.mark.parametrize(("dtype", "limit"), [("float64", 1e-5), ("float32", 1e-2)])
def test_argon_does_not_drift_in_twenty_picoseconds(dtype, limit):
    run, motion = ready(argon(3, dtype), nve(dt=2.0))
    blocks = list(trajectory(run, motion, steps=10_000, block=5000, record=50))
    assert abs(drift(blocks, 2.0, argon(3).n_atoms)) < limit


@pytest.mark.slow
@pytest.mark.parametrize(("dtype", "limit"), [("float64", 1e-5), ("float32", 1e-2)])
def test_a_message_passing_potential_does_not_drift_in_five_picoseconds(dtype, limit):
    # ethanol at 300 K: the error of 0.1 fs swings and does not grow
    potential, params = jaxmlip.load("organic")
    params = jax.tree.map(lambda x: np.asarray(x, dtype), params)
    atoms = molecule("CH3CH2OH")
    system = from_ase(atoms, potential.cutoff, dtype=dtype)
    system, _ = relax(potential, params, system, fmax=1e-2)
    run = prepare(potential, params, system, nve(dt=0.1), masses=atoms.get_masses())
    motion = thermal_motion(system, run.bodies, jax.random.key(0), temperature=300.0)
    blocks = list(trajectory(run, motion, steps=50_000, block=10_000, record=20))
    assert abs(drift(blocks, 0.1, len(atoms))) < limit


@pytest.mark.slow
@pytest.mark.parametrize("bath", [langevin, csvr, nose_hoover])
def test_energies_of_argon_at_two_temperatures_have_the_slope_of_the_ensemble(bath):
    # ln p2(U)/p1(U) = -(1/kT2 - 1/kT1) U + constant (Shirts, 2013, 10.1021/ct300688p), within 3
    # standard errors of blocks; samples are 200 fs apart
    options = {"friction": 0.02} if bath is langevin else {"tau": 100.0}
    temperatures, samples = (58.0, 64.0), []
    for kelvin in temperatures:
        run, motion = ready(argon(), bath(dt=4.0, temperature=kelvin, **options))
        blocks = list(trajectory(run, motion, steps=60_000, block=10_000, record=50))
        samples.append(joined(blocks, "energy")[100:, 0])
    slope, error = likeliest_slope(*samples)
    first, second = (1 / (units.kB * kelvin) for kelvin in temperatures)
    assert abs(slope + (second - first)) < 3 * error
    assert error < 0.2 * abs(second - first)  # or the test would say nothing


@pytest.mark.slow
def test_the_run_of_a_hundred_structures_of_different_sizes_is_one_program():
    traces = []

    def apply(params, system):
        traces.append(1)
        return ARGON.apply(params, system)

    systems = []
    for n in range(2, 102):
        side = int(np.ceil(n ** (1 / 3)))
        places = 3.9 * np.stack(np.meshgrid(*[np.arange(side)] * 3), -1).reshape(-1, 3)[:n]
        systems.append(from_ase(Atoms(f"Ar{n}", positions=places), 1.0, dtype="float64"))
    batch = concatenate(systems)
    potential = Potential(ARGON.init, apply, ARGON.cutoff)
    run, motion = ready(batch, csvr(dt=4.0, temperature=30.0), potential=potential, temperature=30)
    (block,) = trajectory(run, motion, steps=50, block=50, record=50)
    assert len(traces) <= 6
    assert block.records["temperature"].shape == (1, 100)
    assert np.isfinite(block.records["energy"]).all()


BATH = csvr(dt=4.0, temperature=60.0, tau=50.0)
PRESSED = {"pressure": 0.0, "tau": 300.0, "compressibility": 50.0}
RESTARTED = {
    "nve": nve(dt=4.0),
    "isotropic": stochastic_cell(BATH, **PRESSED),
    "isotropic-langevin": stochastic_cell(langevin(dt=4.0, temperature=60.0), **PRESSED),
    "flexible-nose-hoover": stochastic_cell(
        nose_hoover(dt=4.0, temperature=60.0), **PRESSED, free=None
    ),
    "ladder": replica_exchange(langevin(dt=4.0, temperature=[60.0, 65.0]), every=20),
    "ring": ring_polymer(dt=2.0, temperature=30.0, n_beads=4),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", RESTARTED)
def test_two_halves_are_the_whole_to_the_last_bit(name, tmp_path):
    # the state goes through a file between them (the baths alone: test_md)
    copies, beads = {"ring": (4, 4), "ladder": (2, 1)}.get(name, (1, 1))
    system = ring(argon(1), copies)
    run, motion = ready(system, RESTARTED[name], temperature=60.0 * beads)
    *_, whole = trajectory(run, motion, steps=200, block=100, record=10)
    *_, first = trajectory(run, motion, steps=100, block=100, record=10)
    save_state(tmp_path, {"motion": first.motion}, {}, step=100)
    arrays, _ = newest_state(tmp_path)
    template = started(first.run, replace(motion, list=()))
    again = restore_state({"motion": template}, arrays)["motion"]
    *_, last = trajectory(first.run, again, steps=100, block=100, record=10)
    pairs = zip(jax.tree.leaves(last.motion), jax.tree.leaves(whole.motion), strict=True)
    for a, b in pairs:
        assert_array_equal(*(_bits(x) for x in (a, b)))


def _bits(x):
    typed = jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key)
    return np.asarray(jax.random.key_data(x) if typed else x)


def test_what_a_langevin_bath_leaves_of_the_centre_of_mass_is_not_handed_over():
    # else a bath without friction on it would count it as heat for ever
    system = argon(1)
    run, motion = ready(system, langevin(dt=4.0, temperature=60.0), narrow=False)
    pushed = replace(motion, velocities=motion.velocities + 1e-3, step=np.asarray(100))
    other, _ = ready(system, csvr(dt=4.0, temperature=60.0), narrow=False)
    begun = handed_over(other, pushed)
    assert begun.step == -1 and (begun.bath == 0).all()
    assert_allclose(np.asarray(begun.velocities).sum(0), 0, atol=1e-15)
    assert_allclose(temperature_of(begun, other.bodies, system), 60 * 12 / 9, rtol=1e-9)
    back = handed_over(run, pushed)
    assert_array_equal(back.velocities, pushed.velocities)


def test_a_cell_that_breathes_moves_no_atom():
    # the displacement of a crystal that is deformed as a whole is none
    system = argon(1)
    bath = csvr(dt=4.0, temperature=60.0)
    change = np.eye(3) + np.array([[0.02, 0.01, 0], [0, -0.03, 0], [0, 0.01, 0.05]])
    moved = replace(system, positions=system.positions @ change, cell=system.cell @ change)
    for integrator, expected in ((stochastic_cell(bath, pressure=0.0), 0), (bath, None)):
        run, _ = ready(system, integrator, narrow=False)
        motion = at_rest(moved, jax.random.key(0))
        motion = replace(motion, bath=integrator.init(motion, run.bodies))
        found = with_msd(motion, run.bodies, system, integrator)["msd"][0]
        assert found > 1e-3 if expected is None else found < 1e-20


@pytest.mark.slow
def test_velocities_are_forgotten_as_the_recorded_ones_are():
    # the series of the loop is the product of frames; in files it is in Å²/fs²
    system = argon(1)
    run, motion = ready(system, nve(dt=4.0))
    seen = (
        velocity_correlation(motion.velocities),
        lambda m, *_: {"step": m.step, "v": m.velocities},
    )
    run = replace(run, observe=seen)
    (block,) = trajectory(run, motion, steps=50, block=50, record=(5, 5), first=True)
    found, frames = block.records
    v = frames["v"] * units.fs
    assert_allclose(found["vacf"][:, 0], (v[0] * v).sum((1, 2)) / 4, rtol=1e-12)
    kT = units.kB * 60.0 * 9 / 12  # of three degrees of freedom less for the centre
    assert_allclose(found["vacf"][0, 0], 3 * kT / MASS * units.fs**2, rtol=1e-9)
