"""Molecular dynamics: conservation, ensembles, exact restarts, neighbours that are never missed."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk
from numpy.testing import assert_allclose, assert_array_equal

import jaxmlip
from jaxmlip import units
from jaxmlip.cell_list import plan_list, search
from jaxmlip.errors import NumericalError, UsageError
from jaxmlip.images import narrowed
from jaxmlip.interfaces.ase import from_ase
from jaxmlip.md.barostats import stochastic_cell
from jaxmlip.md.integrators import csvr, langevin, nose_hoover, nve
from jaxmlip.md.listing import Neighbors, healthy, no_list, resized, widened
from jaxmlip.md.motion import bodies_of, conserved_energy, temperature_of, thermal_motion
from jaxmlip.md.recording import Measured
from jaxmlip.md.run import advance, prepare, started, trajectory
from jaxmlip.models import LennardJones
from jaxmlip.neighbors import neighbor_pairs
from jaxmlip.potential import Potential
from jaxmlip.system import concatenate, pad

ARGON = LennardJones(elements=(18,), cutoff=5.0, smoothness=3)
MASS = 39.948


def argon(repeats=2, dtype="float64", a=5.4):
    atoms = bulk("Ar", "fcc", a, cubic=True).repeat(repeats)
    atoms.rattle(0.05, seed=0)
    return from_ase(atoms, 1.0, dtype=dtype)


def ready(system, integrator, *, temperature=60.0, seed=1, **options):
    run = prepare(ARGON, {}, system, integrator, masses=np.full(system.n_atoms, MASS), **options)
    return run, thermal_motion(system, run.bodies, jax.random.key(seed), temperature=temperature)


def joined(blocks):
    blocks = list(blocks)
    records = {
        name: np.concatenate([b.records[name] for b in blocks]) for name in blocks[0].records
    }
    return blocks[-1].motion, records


def drawn(rng):
    """A random structure: any cell, any periodicity, atoms outside the cell too."""
    while True:
        cell = rng.normal(0, 3, (3, 3)) + np.eye(3) * rng.choice([2, 5, 12])
        if abs(np.linalg.det(cell)) > 5:
            break
    pbc, n = rng.random(3) < 0.6, rng.integers(1, 25)
    wraps = rng.integers(-3, 3, (n, 3)) * pbc
    return Atoms(f"Ar{n}", positions=(rng.random((n, 3)) + wraps) @ cell, cell=cell, pbc=pbc)


def system_of(atoms):
    empty = Atoms("Ar", positions=[[0, 0, 0]], cell=atoms.cell, pbc=atoms.pbc)
    n, one = len(atoms), from_ase(empty, 0.1, dtype="float64")
    grow = lambda x: jax.tree.map(lambda a: np.repeat(a, n, axis=0), x)
    edges = replace(grow(one.edges), mask=np.zeros((n, one.edges.mask.shape[1]), bool))
    return replace(
        one,
        positions=atoms.positions,
        numbers=grow(one.numbers),
        graph=grow(one.graph),
        edges=edges,
    )


def pairs_of(edges, offset=0):
    edges = jax.tree.map(np.asarray, edges)
    receivers = np.broadcast_to(np.arange(len(edges.senders))[:, None], edges.senders.shape)
    columns = edges.senders, receivers, *np.moveaxis(edges.shifts, -1, 0)
    return set(zip(*(c[edges.mask].tolist() for c in columns), strict=True))


def test_a_plan_that_is_made_anew_covers_what_the_old_one_did():
    # clusters that breathe against each other: else two plans would take turns for ever
    long, short = (Atoms("Ar4", positions=np.outer(np.arange(4), [x, 0.1, 0])) for x in (1.6, 1.1))
    batches = [concatenate([system_of(a) for a in pair]) for pair in ((long, short), (short, long))]
    first = plan_list(batches[0], 1.5)
    both = plan_list(batches[1], 1.5, also=first)
    find = jax.jit(search, static_argnums=0)
    assert not find(first, batches[1]).covered
    for batch in batches:
        found = find(both, batch)
        assert found.complete(both)
        assert found.edges.mask.sum() == 6  # three bonds of the short one, both ways
    # the list that is kept meanwhile has a place in the new arrays
    wide = Neighbors(plan=replace(first, width=40), cutoff=1.4, width=None)
    anew, _ = widened(wide, batches[1], replace(healthy(), covered=False))
    assert anew.plan.bins == both.bins
    # one that is back at its size has been smaller meanwhile: the same bins would fail again
    again, _ = widened(replace(wide, plan=both), batches[1], replace(healthy(), covered=False))
    assert np.prod(again.plan.bins) < np.prod(both.bins)
    assert resized(no_list(wide, batches[1]), anew).images.index.shape[1] == 40


@pytest.mark.parametrize("seed", [0, *(pytest.param(i, marks=pytest.mark.slow) for i in (1, 2))])
def test_the_search_on_the_device_finds_the_pairs_of_vesin(seed):
    # triclinic, left-handed, tiny, open and mixed cells in one batch, with padding
    rng = np.random.default_rng(seed)
    frames, cutoff = [drawn(rng) for _ in range(3)], rng.uniform(1, 5)
    expected, near, offset = set(), set(), 0
    for atoms in frames:
        for found, radius in ((expected, cutoff), (near, 0.7 * cutoff)):
            cell = np.asarray(system_of(atoms).cell[0])
            i, j, shifts = neighbor_pairs(atoms.positions, cell, atoms.pbc, radius)
            found |= set(
                zip(*(x.tolist() for x in (i + offset, j + offset, *shifts.T)), strict=True)
            )
        offset += len(atoms)
    batch = pad(concatenate([system_of(a) for a in frames]), n_atoms=offset + 3, n_graphs=4)
    plan = plan_list(batch, cutoff)
    found = jax.jit(search, static_argnums=0)(plan, batch)
    assert found.complete(plan)
    assert pairs_of(found.edges) == expected
    inner, most = jax.jit(narrowed, static_argnums=(2, 3))(
        batch, found.images, 0.7 * cutoff, plan.width
    )
    assert most <= plan.width
    assert pairs_of(inner) == near


def test_an_atom_far_away_takes_no_room():
    # open, 8000 Å away: bins as fine as the cutoff would be some 64³, each with room for the rest
    near = bulk("Ar", "fcc", 5.4, cubic=True).repeat(4)
    near.pbc = False
    far = near.copy()
    far.positions[0] -= [5000, 3000, 5000]
    plans = [plan_list(system_of(atoms), 6.0) for atoms in (near, far)]
    rows = [np.prod(plan.bins) * plan.per_bin for plan in plans]
    assert rows[1] < 32 * max(len(near), 2048)
    systems = [system_of(near), system_of(far)]
    find = jax.jit(search, static_argnums=0)
    found = [find(*case) for case in zip(plans, systems, strict=True)]
    assert all(f.complete(p) for f, p in zip(found, plans, strict=True))
    kept = {pair for pair in pairs_of(found[0].edges) if 0 not in pair[:2]}
    assert pairs_of(found[1].edges) == kept


def test_dense_matter_in_a_large_box_keeps_its_bins():
    droplet = bulk("Ar", "fcc", 5.4, cubic=True).repeat(12)
    droplet.set_cell(300 * np.eye(3))
    plan = plan_list(system_of(droplet), 6.5)
    assert plan.per_bin < 50 and min(plan.bins[0]) > 40


def test_an_atom_that_leaves_does_not_gather_the_others_in_one_bin():
    # open axes are divided between the first and the last atom
    atoms = bulk("Ar", "fcc", 5.4, cubic=True).repeat(4)
    atoms.pbc = False
    home = plan_list(system_of(atoms), 6.0, room=1.1)
    had = Neighbors(plan=home, cutoff=5.5, width=None)
    atoms.positions[0] -= [500, 300, 500]
    needed = replace(healthy(), in_bin=len(atoms) - 1)
    plan = widened(had, system_of(atoms), needed)[0].plan
    assert np.prod(plan.bins) * plan.per_bin**2 <= 2 * len(atoms) ** 2  # pairs looked at
    found = jax.jit(search, static_argnums=0)(plan, system_of(atoms))
    assert found.complete(plan) and found.edges.mask.sum() > 0


def test_what_overflows_by_little_is_widened_by_little():
    # the most neighbours of an atom of a liquid fluctuate; each slot costs as much as a neighbour
    plan = plan_list(argon(1), 5.0)
    had = Neighbors(plan=replace(plan, width=88), cutoff=4.5, width=None)
    needing = lambda n: replace(healthy(), in_list=n)
    after = lambda n, **more: widened(had, argon(1), needing(n), **more)[0].plan.width
    assert after(88) == 88 and 89 < after(89) <= 96 and after(120) >= 1.25 * 120
    assert after(89, again=2) <= 96 and after(89, again=3) >= 1.25 * 89  # it goes on rising


def test_a_list_that_is_too_small_says_so():
    system, found = argon(1), jax.jit(search, static_argnums=0)
    plan = plan_list(system, 5.0)
    assert found(plan, system).complete(plan)
    for smaller in (
        replace(plan, width=plan.width // 8 * 4),
        replace(plan, per_bin=plan.per_bin - 1),
    ):
        assert not found(smaller, system).complete(smaller)
    shrunk = replace(system, cell=0.5 * system.cell, positions=0.5 * system.positions)
    assert not found(plan, shrunk).covered


@pytest.mark.slow
def test_the_error_of_the_energy_falls_as_the_square_of_the_time_step():
    # velocity Verlet: the conserved energy swings with an amplitude in dt²
    def swing(dt):
        run, motion = ready(argon(), nve(dt=dt))
        n = round(1000 / dt)
        _, records = joined(trajectory(run, motion, steps=n, block=n, record=1))
        return np.std(records["conserved_energy"])

    assert 3.6 < swing(8.0) / swing(4.0) < 4.4


@pytest.mark.optimised
def test_energy_and_momentum_are_kept():
    run, motion = ready(argon(), nve(dt=2.0))
    end, records = joined(trajectory(run, motion, steps=10_000, block=5000, record=50))
    time = records["step"] * 2e-3  # ps
    slope = np.polyfit(time, records["conserved_energy"][:, 0], 1)[0] / argon().n_atoms
    assert abs(slope) * 1e3 < 1e-5  # meV/atom/ps: bar M02, float64
    assert_allclose(np.asarray(end.velocities).sum(0), 0, atol=1e-12)


@pytest.mark.slow
def test_the_trajectory_is_that_of_jax_md():
    from jax_md import simulate, space

    system = argon()
    run, motion = ready(system, nve(dt=2.0))
    ours = advance(run, started(run, motion), n_records=1, record=20).motion
    plan = plan_list(system, 6.0, room=1.3)

    def energy(r, **_):
        edges = search(plan, replace(system, positions=jax.lax.stop_gradient(r))).edges
        return ARGON.apply({}, replace(system, positions=r, edges=edges))["energy"].sum()

    init, step = simulate.nve(energy, space.free()[1], 2.0 * units.fs)
    state = init(jax.random.PRNGKey(0), motion.positions, 0.0, mass=MASS)
    state = state.set(momentum=MASS * motion.velocities)
    state = jax.lax.fori_loop(0, 20, lambda _, s: step(s), state)
    # jax_md rounds time steps to float32
    assert_allclose(ours.positions, state.position, atol=1e-6)


BATHS = {
    "langevin": langevin(dt=4.0, temperature=60.0, friction=0.02),
    "csvr": csvr(dt=4.0, temperature=60.0, tau=50.0),
    "nose-hoover": nose_hoover(dt=4.0, temperature=60.0, tau=100.0),
}
PRESS = stochastic_cell(BATHS["csvr"], pressure=0.0, tau=300.0, compressibility=50.0, free=None)


ONE_BATH = ["csvr", *(pytest.param(n, marks=pytest.mark.slow) for n in ("langevin", "nose-hoover"))]


@pytest.mark.optimised
@pytest.mark.parametrize("name", ONE_BATH)
def test_a_bath_gives_the_canonical_kinetic_energy(name):
    # mean f kT/2 and variance f (kT)²/2 of the kinetic energy, which has a gamma law of kurtosis
    # 3 + 12/f; 400 records apart by more than the relaxation time; 3 standard errors
    run, motion = ready(argon(1), BATHS[name])
    _, records = joined(trajectory(run, motion, steps=21_000, block=7000, record=50))
    records = {name: x[20:] for name, x in records.items()}
    kinetic, dof = records["kinetic_energy"][:, 0], float(run.bodies.dof[0])
    kT, n = units.kB * 60.0, len(records["kinetic_energy"])
    assert_allclose(kinetic.mean(), dof * kT / 2, atol=3 * kT * np.sqrt(dof / 2 / n))
    error = np.sqrt((2 + 12 / dof) / n)
    assert_allclose(kinetic.var() / (dof * kT**2 / 2), 1, atol=3 * error)


@pytest.mark.slow
@pytest.mark.parametrize("name", BATHS)
def test_the_energy_with_that_of_the_bath_is_kept(name):
    run, motion = ready(argon(), BATHS[name])
    _, records = joined(trajectory(run, motion, steps=5000, block=5000, record=50))
    kept = records["conserved_energy"][:, 0]
    assert np.ptp(kept) < 0.02 * np.ptp(records["energy"])


@pytest.mark.parametrize(
    "bath", [PRESS, *(pytest.param(BATHS[name], marks=pytest.mark.slow) for name in BATHS)]
)
def test_a_trajectory_goes_on_bit_for_bit(bath):
    run, motion = ready(argon(), bath)
    whole = list(trajectory(run, motion, steps=100, block=50, record=10))
    first = list(trajectory(run, motion, steps=50, block=50, record=10))[-1]
    saved = jax.tree.map(lambda x: x, first.motion)
    again = list(trajectory(first.run, saved, steps=50, block=50, record=10))[-1]
    for a, b in zip(jax.tree.leaves(again.motion), jax.tree.leaves(whole[-1].motion), strict=True):
        assert_array_equal(_bits(a), _bits(b))


def _bits(x):
    typed = jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key)
    return np.asarray(jax.random.key_data(x) if typed else x)


@pytest.mark.slow
def test_an_overflow_is_repeated_and_ends_the_same():
    system = argon()
    run, motion = ready(system, nve(dt=4.0))
    wide = list(trajectory(run, motion, steps=200, block=100, record=10))[-1]
    plan = run.neighbors.plan
    tight = replace(plan, width=plan.width // 8 * 4, per_bin=plan.per_bin // 2)
    starved = replace(run, neighbors=replace(run.neighbors, plan=tight, width=4))
    blocks = list(trajectory(starved, motion, steps=200, block=100, record=10))
    assert len(blocks[0].widened) >= 2
    ends = [replace(b.motion, list=b.motion.list.positions) for b in (blocks[-1], wide)]
    for a, b in zip(*map(jax.tree.leaves, ends), strict=True):
        assert_array_equal(_bits(a), _bits(b))


@pytest.mark.slow
def test_a_structure_moves_the_same_alone_and_among_others():
    small, large = argon(1), argon(2)
    batch = pad(concatenate([small, large]), n_atoms=small.n_atoms + large.n_atoms + 2, n_graphs=3)
    masses = np.full(batch.n_atoms, MASS)
    bath = BATHS["langevin"]
    run = prepare(ARGON, {}, batch, bath, masses=masses)
    motion = thermal_motion(batch, run.bodies, jax.random.key(1), temperature=60.0)
    both = advance(run, started(run, motion), n_records=1, record=20).motion
    alone = prepare(ARGON, {}, large, bath, masses=np.full(large.n_atoms, MASS))
    part = slice(small.n_atoms, small.n_atoms + large.n_atoms)
    its = replace(
        motion,
        positions=motion.positions[part],
        velocities=motion.velocities[part],
        forces=motion.forces[part],
        cell=motion.cell[1:2],
        energy=motion.energy[1:2],
        stress=motion.stress[1:2],
        keys=motion.keys[1:2],
    )
    single = advance(alone, started(alone, its), n_records=1, record=20).motion
    assert_allclose(both.positions[part], single.positions, atol=1e-10)
    assert_allclose(both.velocities[part], single.velocities, atol=1e-12)


@pytest.mark.slow
def test_held_atoms_stay_and_do_not_count():
    system = argon()
    fixed = np.arange(system.n_atoms) < 5
    run, motion = ready(system, BATHS["csvr"], fixed=fixed)
    end = advance(run, started(run, motion), n_records=1, record=50).motion
    assert_array_equal(end.positions[:5], system.positions[:5])
    assert run.bodies.dof[0] == 3 * (system.n_atoms - 5)
    assert abs(temperature_of(motion, run.bodies, system)[0] - 60) < 1e-9


@pytest.mark.slow
def test_fast_atoms_are_never_missed():
    # 200 000 K: atoms pass half the skin in one step
    run, motion = ready(argon(1), nve(dt=4.0), temperature=2e5, skin=0.2)
    block = advance(run, started(run, motion), n_records=5, record=1)
    assert block.searches >= 5
    end = block.motion
    at = replace(run.system, positions=end.positions)
    exact = jaxmlip.forces(ARGON.apply)(
        {}, replace(at, edges=search(plan_list(at, ARGON.cutoff, room=1.2), at).edges)
    )
    assert_allclose(end.forces, exact, rtol=1e-9, atol=1e-9)


def test_what_is_not_finite_is_raised_with_step_and_time():
    broken = Potential(
        lambda key, system: {},
        lambda params, system: {
            "energy": ARGON.apply({}, system)["energy"]
            * jnp.where(jnp.linalg.norm(system.positions[0]) > 0.2, jnp.nan, 1.0)
        },
        5.0,
    )
    system = argon()
    system = replace(system, positions=system.positions - system.positions[0])
    run = prepare(broken, {}, system, nve(dt=4.0), masses=np.full(system.n_atoms, MASS))
    motion = thermal_motion(system, run.bodies, jax.random.key(1), temperature=60.0)
    with pytest.raises(NumericalError, match="not finite after step"):
        list(trajectory(run, motion, steps=1000, block=500, record=10))


def test_one_program_for_all_blocks():
    traces = []

    def apply(params, system):
        traces.append(1)
        return ARGON.apply(params, system)

    counted = Potential(ARGON.init, apply, ARGON.cutoff)
    system = argon()
    run = prepare(counted, {}, system, nve(dt=2.0), masses=np.full(system.n_atoms, MASS), room=1.5)
    motion = thermal_motion(system, run.bodies, jax.random.key(1), temperature=30.0)
    list(trajectory(run, motion, steps=100, block=20, record=10))
    assert len(traces) == 1


def test_bad_input_is_refused():
    with pytest.raises(UsageError, match="fs"):
        nve(dt=1e-15)
    run, motion = ready(argon(1), nve(dt=2.0))
    with pytest.raises(UsageError, match="divide"):
        next(trajectory(run, motion, steps=95, block=25, record=10))
    with pytest.raises(UsageError, match="skin"):
        ready(argon(1), nve(dt=2.0), skin=0.0)
    for bath, name in (
        (lambda: csvr(dt=1.0, temperature=300.0, tau=0.0), "tau"),
        (lambda: langevin(dt=1.0, temperature=300.0, friction=-0.1), "friction"),
        (lambda: langevin(dt=1.0, temperature=[300.0, -1.0]), "temperature"),
        (lambda: nose_hoover(dt=1.0, temperature=0.0), "temperature"),
    ):
        with pytest.raises(UsageError, match=name):
            bath()
    (only,) = ready(argon(1), nve(dt=2.0), observe=Measured(lambda *state: {}))[0].observe
    assert isinstance(only, Measured)


def test_velocities_have_the_temperature_and_no_drift():
    system = argon()
    bodies = bodies_of(system, np.full(system.n_atoms, MASS))
    motion = thermal_motion(system, bodies, jax.random.key(0), temperature=300.0)
    assert_allclose(temperature_of(motion, bodies, system), 300.0)
    assert_allclose(np.asarray(motion.velocities).sum(0), 0, atol=1e-12)
    assert np.isnan(conserved_energy(motion, nve(dt=1.0), bodies, system)).all()
