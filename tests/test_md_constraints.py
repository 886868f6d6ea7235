"""What is held, what drives, and what each structure of a batch has of its own."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ensembles import driven, gas
from numpy.testing import assert_allclose

from jaxmlip import units
from jaxmlip.errors import UsageError
from jaxmlip.md.barostats import stochastic_cell
from jaxmlip.md.integrators import csvr, langevin, nose_hoover, nve
from jaxmlip.md.listing import fresh
from jaxmlip.md.motion import at_rest, bodies_of, temperature_of, thermal_motion
from jaxmlip.md.run import prepare, started, trajectory
from jaxmlip.potential import Potential, add_field
from jaxmlip.system import sum_atoms

MASSES = np.array([1.0, 12.0, 16.0, 40.0])


def wells(system, k=1.0):
    """Forces of independent springs, which act on the centre of mass, too."""
    start = jnp.asarray(system.positions)

    def evaluate(motion):
        away = motion.positions - start
        energy = sum_atoms(system, 0.5 * k * (away**2).sum(-1))
        return replace(motion, forces=-k * away, energy=energy)

    return evaluate


def test_a_held_centre_of_mass_stays_and_has_no_temperature():
    # 3 N - 3 degrees of freedom; means of 20 x 24 samples 2.5/friction apart: 4 standard errors
    n_graphs, n = 48, 4
    system, masses = gas(n_graphs, n, 20.0), np.tile(MASSES, n_graphs)
    temperature = np.repeat([100.0, 300.0], n_graphs // 2)
    bath = langevin(dt=1.0, temperature=temperature, friction=0.05)
    mass = {"masses": masses, "fixed_center": True}
    found = driven(
        system, bath, wells(system), steps=1000, every=50, temperature=temperature, **mass
    )
    weigh = lambda x: np.einsum("n,tgnx->tgx", MASSES, x.reshape(-1, n_graphs, n, 3)) / MASSES.sum()
    assert_allclose(weigh(found["velocities"]), 0, atol=1e-14)
    start = weigh(system.positions[None])
    assert_allclose(
        weigh(found["positions"]), np.broadcast_to(start, (20, n_graphs, 3)), atol=1e-11
    )
    ratio = found["temperature"] / temperature
    for part in ratio[:, : n_graphs // 2], ratio[:, n_graphs // 2 :]:
        assert_allclose(part.mean(), 1, atol=4 * np.sqrt(2 / 9 / part.size))


@pytest.mark.slow
@pytest.mark.parametrize("bath", [csvr, nose_hoover])
def test_every_structure_has_the_temperature_of_its_own_bath(bath):
    n_graphs, n = 64, 4
    system, masses = gas(n_graphs, n, 20.0), np.tile(MASSES, n_graphs)
    temperature = np.repeat([100.0, 300.0], n_graphs // 2)
    found = driven(
        system,
        bath(dt=1.0, temperature=temperature, tau=50.0),
        wells(system),
        steps=40_000,
        every=100,
        temperature=temperature,
        masses=masses,
        keeps_momentum=False,
    )
    ratio = found["temperature"][20:] / temperature
    assert_allclose(ratio.mean(0).reshape(2, -1).mean(1), 1, atol=0.03)


def test_a_structure_whose_atoms_are_held_has_no_centre_to_hold():
    system = gas(2, 3, 10.0)
    with pytest.raises(UsageError, match="centre of mass"):
        bodies_of(system, np.ones(6), fixed=np.arange(6) == 4, fixed_center=True)
    with pytest.raises(UsageError, match="temperature"):
        bodies = bodies_of(system, np.ones(6))
        thermal_motion(system, bodies, jax.random.key(0), temperature=[1.0, 2.0, 3.0])
    with pytest.raises(UsageError, match="one temperature for all times"):
        nose_hoover(dt=1.0, temperature=lambda t: 300.0)


@pytest.mark.slow
def test_a_field_that_changes_drives_charges_as_it_should():
    # two ions in E cos(w t): v = q E/(m w) sin(w t), less (w dt)²/12 of it by the trapezoid rule
    charges, masses = jnp.asarray([1.0, -1.0]), np.array([23.0, 35.5])
    strength, omega, dt = 0.02, 2 * np.pi / 200.0, 1.0  # V/Å, 1/fs, fs

    def apply(params, system):
        zero = 0.0 * system.positions.sum()
        dipole = sum_atoms(system, charges[:, None] * system.positions)
        return {"energy": jnp.zeros(1) + zero, "dipole": dipole}

    system = replace(gas(1, 2, 30.0), positions=np.array([[5.0, 5.0, 5.0], [20.0, 20.0, 20.0]]))
    ions = add_field(Potential(lambda key, system: {}, apply, 2.0))
    field = lambda t: strength * jnp.cos(omega * t) * jnp.array([1.0, 0.0, 0.0])
    run = prepare(ions, {}, system, nve(dt=dt), masses=masses, field=field, narrow=False)
    end = list(trajectory(run, at_rest(system, jax.random.key(0)), steps=130, block=130))[-1]
    time = 130 * dt
    speed = np.asarray(charges) * strength / masses * np.sin(omega * time) / (omega / units.fs)
    assert_allclose(end.motion.velocities[:, 0], speed, rtol=(omega * dt) ** 2 / 6)
    assert_allclose(end.motion.velocities[:, 1:], 0, atol=1e-15)


def test_the_temperature_counts_what_can_move():
    system = gas(1, 4, 10.0)
    held = bodies_of(system, MASSES, fixed=[True, False, False, False])
    assert held.dof[0] == 9
    motion = thermal_motion(system, held, jax.random.key(0), temperature=300.0)
    assert_allclose(temperature_of(motion, held, system), 300.0)
    assert (motion.velocities[0] == 0).all()
    noise = bodies_of(system, MASSES, keeps_momentum=False)
    assert noise.dof[0] == 12
    assert bodies_of(system, MASSES, keeps_momentum=False, fixed_center=True).dof[0] == 9


def test_a_motion_is_carried_on_only_by_what_knows_it():
    # not with the bath, the kept predictions or the shorter list of another run
    system, key = gas(1, 2, 30.0), jax.random.key(0)
    apply = lambda params, system: {"energy": jnp.zeros(1), "dipole": jnp.zeros((1, 3))}
    nothing = Potential(lambda key, system: {}, apply, 2.0)
    bath = csvr(dt=1.0, temperature=300.0)
    run = prepare(nothing, {}, system, bath, masses=np.ones(2), narrow=False)
    first = replace(run, keep=("dipole",))
    motion = started(first, at_rest(system, key))
    moved = replace(motion, step=jnp.asarray(5), extra={"dipole": jnp.ones((1, 3))})
    assert started(first, moved).extra["dipole"].all() and started(run, moved).extra == {}
    others = [
        nose_hoover(dt=1.0, temperature=300.0),
        stochastic_cell(bath, pressure=0.0),
        stochastic_cell(langevin(dt=1.0, temperature=300.0), pressure=0.0),
    ]
    for other in others:
        with pytest.raises(UsageError, match="another integrator"):
            started(replace(run, integrator=other), moved)
    assert started(replace(run, integrator=others[1]), replace(moved, step=-1)).bath["given"] == 0
    # a list within 2.5 Å serves a run that would make them within 2.6 Å while 2.5 is enough
    listed = replace(started(first, moved).list, positions=system.positions)
    longer = replace(run.neighbors, plan=replace(run.neighbors.plan, cutoff=2.6))
    for way, enough in ((0.24, True), (0.26, False)):
        shifted = replace(moved, positions=moved.positions + way * np.eye(3)[0])
        assert fresh(shifted, listed, system, longer) == enough
