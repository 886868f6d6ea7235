"""Constant pressure: volumes and shapes of exactly known ensembles, steps and their reverse."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ase.build import bulk
from ensembles import driven, gas, likeliest_slope, no_force, standard_error
from numpy.testing import assert_allclose
from scipy.integrate import quad

import jaxmlip
from jaxmlip import units
from jaxmlip.bins import ListPlan
from jaxmlip.cell_list import plan_list, search
from jaxmlip.errors import DataError, UsageError
from jaxmlip.interfaces.ase import from_ase
from jaxmlip.md.barostats import stochastic_cell
from jaxmlip.md.integrators import csvr, langevin, nose_hoover, nve
from jaxmlip.md.listing import Listed, Neighbors, fresh
from jaxmlip.md.motion import at_rest, thermal_motion
from jaxmlip.md.run import advance, prepare, started, trajectory
from jaxmlip.models import LennardJones
from jaxmlip.neighbors import neighbor_pairs

pytestmark = pytest.mark.optimised  # thousands of steps

KT = units.kB * 300.0
PRESSURE = 1e-4  # eV/Å³
ARGON = LennardJones(elements=(18,), cutoff=5.0, smoothness=3)
MASS = 39.948


def volumes(records):
    return np.linalg.det(records["cell"])


# --- ideal gases and elastic cells: no neighbours ------------------------------------------------

FREE = [{}, pytest.param({"free": None}, marks=pytest.mark.slow)]


@pytest.mark.parametrize("free", FREE)
def test_ideal_gases_have_their_volumes_each_at_its_own_pressure(free):
    # weight V^N exp(-PV/kT): mean (N+1) kT/P, variance (N+1) (kT/P)², also where the centre of
    # mass rests; 3 standard errors of records that are a relaxation time apart (so 2.2 of them
    # count as one), and 1 and 2 % for the time step, a hundredth of it
    n, n_graphs = 6, 64
    pressure = np.repeat([PRESSURE, 2 * PRESSURE], n_graphs // 2)
    temperature = np.repeat([300.0, 450.0], n_graphs // 2)
    scale = units.kB * temperature / pressure  # Å³
    system = gas(n_graphs, n, ((n + 1) * scale) ** (1 / 3))
    bath = nose_hoover(dt=4.0, temperature=temperature, tau=100.0)
    npt = stochastic_cell(bath, pressure=pressure, tau=400.0, compressibility=1 / PRESSURE, **free)
    found = driven(system, npt, no_force, steps=4000, every=100, temperature=temperature)
    volume = volumes(found)[5:] / scale
    for part in volume[:, : n_graphs // 2], volume[:, n_graphs // 2 :]:
        count = part.size / 2.2
        assert_allclose(part.mean(), n + 1, rtol=0.01 + 3 * np.sqrt(1 / (n + 1) / count))
        spread = np.sqrt((2 + 6 / (n + 1)) / count)  # of the variance of a gamma law
        assert_allclose(part.var(), n + 1, rtol=0.02 + 3 * spread)
    # a step and its reverse are equally probable: of each step's width of 1e-3 kT no drift is left
    kept = found["conserved_energy"] / (units.kB * temperature)
    assert abs((kept[-1] - kept[5]).mean()) < 0.05


def elastic(system, bulk_modulus, shear_modulus):
    """Energy of the strain of the cell alone, with its stress: V0 (K tr²/2 + G dev²)."""
    start, volume = jnp.asarray(system.cell), np.linalg.det(system.cell[0])

    def energy(epsilon, cell):
        change = jnp.linalg.solve(start, cell @ (jnp.eye(3) + epsilon))
        green = (change @ change.swapaxes(1, 2) - jnp.eye(3)) / 2
        trace = jnp.trace(green, axis1=1, axis2=2)
        part = green - trace[:, None, None] / 3 * jnp.eye(3)
        each = bulk_modulus / 2 * trace**2 + shear_modulus * (part**2).sum((1, 2))
        return (volume * each).sum(), volume * each

    def evaluate(motion):
        slope = jax.grad(energy, has_aux=True)
        by_strain, each = slope(jnp.zeros_like(motion.cell), motion.cell)
        by_strain = (by_strain + by_strain.swapaxes(1, 2)) / 2
        stress = by_strain / jnp.abs(jnp.linalg.det(motion.cell))[:, None, None]
        forces = jnp.zeros_like(motion.positions)
        return replace(motion, forces=forces, energy=each, stress=stress)

    return evaluate


@pytest.mark.slow
def test_the_shape_of_an_elastic_cell_has_kT_over_two_for_each_strain():
    # six strains: mean energy 3 kT at small amplitudes, shear strain variances kT/(4 G V) each,
    # and the volume of the exact law of one variable where the shape is held
    n_graphs, K, G, length = 256, 0.05, 0.02, 30.0
    system = gas(n_graphs, 1, length)
    evaluate = elastic(system, K, G)
    bath = langevin(dt=2.0, temperature=300.0, friction=0.02)
    volume = length**3
    npt = stochastic_cell(bath, pressure=KT / volume, tau=100.0, compressibility=1 / K, free=None)
    found = driven(system, npt, evaluate, steps=20_000, every=100, temperature=300.0)
    cell = found["cell"][10:] / length
    green = (cell @ np.swapaxes(cell, -1, -2) - np.eye(3)) / 2
    for a, b in ((0, 1), (0, 2), (1, 2)):
        assert_allclose(green[..., a, b].var() * 4 * G * volume / KT, 1, rtol=0.03)
    npt = stochastic_cell(bath, pressure=KT / volume, tau=100.0, compressibility=1 / K)
    found = driven(system, npt, evaluate, steps=20_000, every=100, temperature=300.0)
    ratio = volumes(found)[10:] / volume

    def weight(v, power=0):
        strain = (v ** (2 / 3) - 1) / 2
        energy = volume * K / 2 * (3 * strain) ** 2 + KT * v
        return v ** (power + 1) * np.exp(-(energy - KT) / KT)

    moments = [quad(weight, 0.5, 1.6, args=(k,), points=[1.0])[0] for k in range(3)]
    mean = moments[1] / moments[0]
    variance = moments[2] / moments[0] - mean**2
    assert_allclose(ratio.mean(), mean, atol=0.02 * np.sqrt(variance))
    assert_allclose(ratio.var(), variance, rtol=0.03)


# --- argon, with neighbours ----------------------------------------------------------------------


def argon(repeats=2, a=5.4):
    atoms = bulk("Ar", "fcc", a, cubic=True).repeat(repeats)
    atoms.rattle(0.05, seed=0)
    return from_ase(atoms, 1.0, dtype="float64")


def ready(system, integrator, *, temperature=60.0, **options):
    run = prepare(ARGON, {}, system, integrator, masses=np.full(system.n_atoms, MASS), **options)
    return run, thermal_motion(system, run.bodies, jax.random.key(1), temperature=temperature)


def all_pairs(system, cutoff):
    i, j, shifts = neighbor_pairs(system.positions, system.cell[0], system.pbc[0], cutoff)
    return set(zip(i.tolist(), j.tolist(), *shifts.T.tolist(), strict=True))


def test_a_list_is_fresh_only_while_it_has_every_pair_of_a_cell_that_moves():
    system, cutoff, skin, rng = argon(1), 5.0, 0.6, np.random.default_rng(0)
    plan = ListPlan(cutoff=cutoff + skin, bins=((1, 1, 1),), reach=((1, 1, 1),))
    neighbors = Neighbors(plan=plan, cutoff=cutoff, width=None, moving_cell=True)
    listed = Listed(images=None, reach=cutoff + skin, positions=system.positions, cell=system.cell)
    known = all_pairs(system, cutoff + skin)
    is_fresh, told = jax.jit(lambda motion: fresh(motion, listed, system, neighbors)), []
    for size in np.linspace(0.01, 0.12, 12):
        change = np.eye(3) + rng.uniform(-size, size, (3, 3))
        moved = system.positions + rng.uniform(-0.1, 0.1, system.positions.shape)
        moved = replace(system, positions=moved @ change, cell=system.cell @ change)
        motion = replace(at_rest(moved, jax.random.key(0)), cell=jnp.asarray(moved.cell))
        told.append(bool(is_fresh(motion)))
        assert not told[-1] or all_pairs(moved, cutoff) <= known
    assert 0 < sum(told) < len(told)


@pytest.mark.slow
@pytest.mark.parametrize("free", [{}, {"free": None}])
def test_a_cell_that_collapses_gets_new_bins_and_loses_no_pair(free):
    # 27 % less volume in one block of steps: bins that were one cutoff wide no longer are
    bath = csvr(dt=4.0, temperature=60.0, tau=50.0)
    npt = stochastic_cell(bath, pressure=0.3 * units.GPa, tau=50.0, compressibility=50.0, **free)
    run, motion = ready(argon(3, a=6.0), npt)
    block = advance(run, started(run, motion), n_records=1, record=600)
    end = block.motion
    assert np.linalg.det(end.cell)[0] < 0.8 * np.linalg.det(run.system.cell)[0]
    assert any("bins made anew" in told for told in block.widened)
    at = replace(run.system, positions=end.positions, cell=end.cell)
    edges = search(plan_list(at, ARGON.cutoff, room=1.2), at).edges
    exact = jaxmlip.predict(ARGON.apply)({}, replace(at, edges=edges))
    assert_allclose(end.forces, exact["forces"], rtol=1e-9, atol=1e-9)
    assert_allclose(end.stress, exact["stress"], rtol=1e-9, atol=1e-12)


@pytest.mark.slow
@pytest.mark.parametrize(
    "bath, free", [(csvr, {}), (nose_hoover, {}), (langevin, {}), (csvr, {"free": None})]
)
def test_volumes_of_argon_at_two_pressures_have_the_slope_of_the_ensemble(bath, free):
    # ln p2(V)/p1(V) = -(P2 - P1) V/kT + constant (Shirts, 2013, 10.1021/ct300688p): for samples of
    # both pressures the most probable slope is that, within 3 standard errors; mean pressure too
    options = {"friction": 0.02} if bath is langevin else {"tau": 100.0}
    pressures = np.array([0.0, 0.03]) * units.GPa
    samples, kT = [], units.kB * 60.0
    for pressure in pressures:
        npt = stochastic_cell(
            bath(dt=4.0, temperature=60.0, **options),
            pressure=float(pressure),
            tau=200.0,
            compressibility=50.0,
            **free,
        )
        run, motion = ready(argon(), npt)
        blocks = list(trajectory(run, motion, steps=60_000, block=10_000, record=50))
        join = lambda name, blocks=blocks: np.concatenate([b.records[name] for b in blocks])[100:]
        samples.append(join("volume")[:, 0])
        missing = 0.0 if bath is langevin else kT * np.mean(1 / samples[-1])
        mean = join("pressure")[:, 0].mean() + missing  # of the centre of mass, which rests
        assert_allclose(mean, pressure, atol=3 * standard_error(join("pressure")[:, 0]))
    slope, error = likeliest_slope(*samples)
    assert abs(slope + (pressures[1] - pressures[0]) / kT) < 3 * error


def test_constant_pressure_is_refused_where_it_has_no_meaning():
    bath = csvr(dt=2.0, temperature=60.0)
    with pytest.raises(UsageError, match="heat bath"):
        stochastic_cell(nve(dt=2.0), pressure=0.0)
    npt = stochastic_cell(bath, pressure=[0.0, 0.1])
    with pytest.raises(UsageError, match="pressure"):
        ready(argon(1), npt)
    npt = stochastic_cell(bath, pressure=0.0)
    with pytest.raises(UsageError, match="held"):
        ready(argon(1), npt, fixed=[True, False, False, False])
    with pytest.raises(DataError, match="periodic"):
        ready(replace(argon(1), pbc=np.array([[True, True, False]])), npt)
