"""Gradients of trajectories are finite differences of them, those of averages covariances."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ase.build import bulk
from ensembles import gas
from numpy.testing import assert_allclose

from jaxmlip import units
from jaxmlip.errors import UsageError
from jaxmlip.interfaces.ase import from_ase
from jaxmlip.md import csvr, langevin, nose_hoover, nve, stochastic_cell
from jaxmlip.md.differentiable import reweighted, sensitivity
from jaxmlip.md.motion import thermal_motion
from jaxmlip.md.observables import standard
from jaxmlip.md.run import prepare, trajectory
from jaxmlip.models import LennardJones
from jaxmlip.potential import Potential
from jaxmlip.system import sum_energies

ARGON = LennardJones(elements=(18,), cutoff=5.0, smoothness=3)
STRENGTH = jnp.asarray(1.2)
POTENTIAL = Potential(
    init=None,
    apply=lambda params, system: {"energy": params * ARGON.apply({}, system)["energy"]},
    cutoff=5.0,
)
INTEGRATORS = {
    "nve": nve(dt=4.0),
    "langevin": langevin(dt=4.0, temperature=60.0, friction=0.02),
    "csvr": csvr(dt=4.0, temperature=60.0, tau=50.0),
    "nose_hoover": nose_hoover(dt=4.0, temperature=60.0, tau=50.0),
}
INTEGRATORS["heated"] = csvr(dt=4.0, temperature=lambda time: 60 + 5 * time, tau=50.0)
INTEGRATORS["flexible"] = stochastic_cell(
    INTEGRATORS["csvr"], pressure=0.0, tau=300.0, compressibility=50.0, free=None
)


def observed(motion, bodies, system, integrator):
    found = standard(motion, bodies, system, integrator)
    return {"loss": found["energy"][0] + motion.positions[1, 0] * found["temperature"][0] / 60}


def loss(records):
    return (records["loss"] * jnp.arange(1.0, 5.0)).sum()


@pytest.mark.slow
@pytest.mark.parametrize("name", INTEGRATORS)
def test_the_gradient_of_a_trajectory_is_its_finite_difference(name):
    # of the ordinary loop, whose lists (for csvr of half the width at first) are renewed on the way
    atoms = bulk("Ar", "fcc", 5.4, cubic=True)
    atoms.rattle(0.1, seed=0)
    system = from_ase(atoms, 1.0, dtype="float64")
    options = {"masses": np.full(4, 39.948), "observe": observed, "skin": 0.02, "room": 1.5}
    run = prepare(POTENTIAL, STRENGTH, system, INTEGRATORS[name], **options)
    motion = thermal_motion(system, run.bodies, jax.random.key(1), temperature=60.0)
    plan = replace(run.neighbors.plan, width=run.neighbors.plan.width // 8 * 4)
    starved = replace(run, neighbors=replace(run.neighbors, plan=plan)) if name == "csvr" else run
    value, by_params, by_start, end = sensitivity(loss, starved, motion, steps=12, record=3)
    searches = []

    def ordinary(strength, start):
        blocks = trajectory(
            replace(run, params=strength), replace(motion, **start), steps=12, block=12, record=3
        )
        (block,) = blocks
        searches.append(block.searches)
        return float(loss(block.records)), block.motion

    start = {"positions": motion.positions, "velocities": motion.velocities}
    expected, last = ordinary(STRENGTH, start)
    assert min(searches) > 1
    assert_allclose(value, expected, rtol=1e-11)
    assert_allclose(end.positions, last.positions, rtol=1e-11)
    # central differences: rounding 1e-16/1e-5 and the square of 1e-5, relative
    h, rng = 1e-5, np.random.default_rng(0)
    slope = (ordinary(STRENGTH + h, start)[0] - ordinary(STRENGTH - h, start)[0]) / (2 * h)
    assert_allclose(by_params, slope, rtol=1e-6, atol=1e-8)
    for part in start:
        way = rng.normal(size=(4, 3)) * np.std(start[part])  # velocities here are about 0.01
        ends = [
            ordinary(STRENGTH, start | {part: start[part] + sign * h * way})[0] for sign in (1, -1)
        ]
        assert_allclose((by_start[part] * way).sum(), (ends[0] - ends[1]) / (2 * h), rtol=1e-6)
    with pytest.raises(UsageError, match="divide"):
        sensitivity(loss, run, motion, steps=10, record=3)


def test_averages_of_other_potentials_come_from_weights_of_the_frames():
    # springs k: <x²> = kT/k per axis, its slope -kT/k²; frames drawn for k = 1 eV/Å²
    n, kT = 4000, units.kB * 300.0
    system = gas(n, 1, 10.0)
    rng = np.random.default_rng(0)
    frames = replace(system, positions=np.sqrt(kT) * rng.normal(size=(n, 3)))

    def apply(k, system):
        return {"energy": sum_energies(system, 0.5 * k * (system.positions**2).sum(-1))}

    square = lambda k, system: {"square": (system.positions**2).sum(-1)}
    mean = jax.jit(reweighted(apply, square, temperature=300.0))
    given = apply(1.0, frames)["energy"]
    averages, effective = mean(1.0, frames, given)
    assert_allclose(effective, n, rtol=1e-12)
    x = np.asarray(averages["square"])
    assert_allclose(x, 3 * kT, rtol=4 * np.sqrt(2 / 3 / n))
    slope = jax.grad(lambda k: mean(k, frames, given)[0]["square"])(1.0)
    # exactly the covariance of the frames; that of the ensemble within four standard errors
    square = (frames.positions**2).sum(-1)
    assert_allclose(slope, -np.cov(square, square / 2, bias=True)[0, 1] / kT, rtol=1e-10)
    assert_allclose(slope, -3 * kT, rtol=4 * np.sqrt(6 / n))
    other, effective = mean(1.1, frames, given)
    assert_allclose(other["square"], 3 * kT / 1.1, rtol=0.03)
    assert 0.9 * n < effective < n
