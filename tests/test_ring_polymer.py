"""Path integrals: quantum averages of oscillators, free rings, dynamics of the centroid."""

import json
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ase import Atoms
from numpy.testing import assert_allclose

from jaxmlip import units
from jaxmlip.cli.dynamics.rings import settled, settling
from jaxmlip.cli.main import main
from jaxmlip.errors import UsageError
from jaxmlip.interfaces.ase import from_ase
from jaxmlip.md.barostats import stochastic_cell
from jaxmlip.md.files import Files, Scene, read_h5md
from jaxmlip.md.integrators import nve
from jaxmlip.md.motion import at_rest, bodies_of, thermal_motion
from jaxmlip.md.observables import frame
from jaxmlip.md.ring_polymer import normal_modes, quantum, ring, ring_polymer
from jaxmlip.md.run import prepare, trajectory
from jaxmlip.md.simulate import Plan, simulate
from jaxmlip.potential import Potential
from jaxmlip.system import sum_energies

MASS, STIFFNESS, KELVIN, BEADS = 1.0, 20.0, 300.0, 8  # amu, eV/Å², K
OMEGA = np.sqrt(STIFFNESS / MASS)  # 2332 cm⁻¹: hbar w = 11.2 kT


def wells(params, system):
    """Every atom on a spring of its own, about its place on a line."""
    centers = 10.0 * (jnp.arange(system.n_atoms) % ATOMS)[:, None] * jnp.array([1.0, 0, 0])
    energies = 0.5 * STIFFNESS * ((system.positions - centers) ** 2).sum(-1)
    return {"energy": sum_energies(system, jnp.where(system.atom_mask, energies, 0))}


ATOMS = 16
WELLS = Potential(init=None, apply=wells, cutoff=1.0)


def hydrogens():
    places = 10.0 * np.arange(ATOMS)[:, None] * [[1.0, 0, 0]]
    return from_ase(Atoms(f"H{ATOMS}", positions=places), 1.0, dtype=np.float64)


def ready(integrator, n_beads=BEADS, **options):
    batch = ring(hydrogens(), n_beads)
    run = prepare(WELLS, {}, batch, integrator, masses=np.full(batch.n_atoms, MASS), **options)
    return run, thermal_motion(batch, run.bodies, jax.random.key(0), temperature=n_beads * KELVIN)


def joined(blocks, name):
    return np.concatenate([b.records[name] for b in blocks])


@pytest.mark.parametrize("n", [1, 2, 5, 8])
def test_modes_make_the_springs_of_a_ring_diagonal(n):
    modes, frequencies = normal_modes(n, kT=0.2)
    springs = 2 * np.eye(n) - np.roll(np.eye(n), 1, 0) - np.roll(np.eye(n), -1, 0)
    if n == 1:
        springs[:] = 0
    squares = (0.2 / units.hbar) ** 2 * modes @ springs @ modes.T
    assert_allclose(modes @ modes.T, np.eye(n), atol=1e-14)
    assert_allclose(squares, np.diag(frequencies**2), atol=1e-9 * max(1, squares.max()))


@pytest.mark.optimised
def test_an_oscillator_has_the_energy_of_so_many_beads():
    # exact for n beads: <V> = (kT/2) sum_k w²/(w² + w_k²) a degree of freedom, and as much kinetic
    bath = ring_polymer(dt=0.1, temperature=KELVIN, n_beads=BEADS, tau=10.0)
    run, motion = ready(bath, observe=quantum(BEADS, KELVIN))
    blocks = list(trajectory(run, motion, steps=10_000, block=10_000, record=20))
    kT = units.kB * KELVIN
    _, frequencies = normal_modes(BEADS, BEADS * kT)
    exact = 1.5 * ATOMS * kT * (OMEGA**2 / (OMEGA**2 + frequencies**2)).sum()
    classical, quantum_limit = 1.5 * ATOMS * kT, 0.75 * ATOMS * units.hbar * OMEGA
    assert classical < 0.3 * exact and exact < quantum_limit  # far from both limits
    for name in ("potential_energy", "kinetic_energy"):
        x = joined(blocks, name)[100:, 0]
        means = x.reshape(20, -1).mean(1)
        assert_allclose(x.mean(), exact, atol=4 * means.std(ddof=1) / np.sqrt(20))
        assert means.std(ddof=1) / np.sqrt(20) < 0.03 * exact
    assert_allclose(joined(blocks, "temperature")[100:].mean(), KELVIN, rtol=0.03)


def test_the_sum_over_beads_is_conserved_to_second_order():
    spread = []
    for dt in (0.2, 0.1):
        bath = ring_polymer(dt=dt, temperature=KELVIN, n_beads=BEADS)
        run, motion = ready(bath, observe=quantum(BEADS, KELVIN))
        blocks = trajectory(run, motion, steps=round(20 / dt), block=1000, record=round(1 / dt))
        kept = joined(blocks, "conserved_energy")[:, 0]
        spread.append(np.ptp(kept))
    assert spread[1] < 0.35 * spread[0]  # noise differs, so not exactly 1/4
    assert spread[1] < 1e-3 * ATOMS * BEADS * units.kB * KELVIN * BEADS


def test_the_centroid_of_oscillators_moves_as_one_oscillator():
    # ring-polymer dynamics is exact for the centroid in a harmonic potential
    free = ring_polymer(dt=0.02, temperature=KELVIN, n_beads=BEADS, tau=None, damping=0.0)
    run, motion = ready(free, observe=lambda m, *_: {"x": m.positions})
    centroid = lambda x: np.asarray(x).reshape(-1, BEADS, ATOMS, 3).mean(1)
    v0 = centroid(motion.velocities[None])[0]
    x = centroid(joined(trajectory(run, motion, steps=500, block=500, record=50), "x"))
    times = 0.02 * units.fs * 50 * np.arange(1, 11)[:, None, None]
    expected = v0 / OMEGA * np.sin(OMEGA * times)
    moved = x - centroid(np.asarray(run.system.positions)[None])
    assert_allclose(
        moved, expected, atol=2e-4 * np.abs(expected).max()
    )  # dt² error of the splitting


def plan_of(folder, steps, every, files=()):
    restarts = folder / f"restart-{steps}"
    return Plan(
        steps=steps, every=(every,), block=2000, files=files, restarts=restarts, settings={}
    )


def rested(run, motion, bath, folder, *, steps):
    """(run, motion) of rings that have settled."""
    plan = plan_of(folder, 4, 1)
    warm, before = settling(run, plan, bath, steps=steps, folder=folder / "settling")
    return settled(run, simulate(warm, motion, before))


FREE = ring_polymer(dt=0.25, temperature=KELVIN, n_beads=BEADS, tau=None, damping=0.5)
BATH = ring_polymer(dt=0.25, temperature=KELVIN, n_beads=BEADS, tau=10.0)


@pytest.mark.slow
def test_the_spectrum_of_rings_is_that_of_their_centroid(tmp_path, monkeypatch, capsys):
    # of harmonic nuclei the centroid moves at their frequency, and at the temperature of the nuclei
    # (48 oscillators: 14 % is a standard deviation); a bead has 8 times that, and lines elsewhere
    monkeypatch.chdir(tmp_path)
    run, motion = ready(FREE, observe=frame)
    run, motion = rested(run, motion, BATH, tmp_path, steps=400)
    scene = Scene(
        numbers=np.ones(ATOMS, int),
        symbols=("H",) * ATOMS,
        masses=np.full(ATOMS, MASS),
        pbc=np.zeros(3, bool),
        dt=0.25,
        role=(("ensemble", "trpmd"), ("beads", BEADS)),
        own_masses=True,
    )
    bead = replace(scene, role=(*scene.role, ("bead", 3)), index=3, first=3 * ATOMS)
    whole = replace(scene, mean_of=BEADS)
    names = ("md_3", "md_centroid")
    files = [
        Files(scene=s, h5md=tmp_path / f"{name}.h5", extxyz=tmp_path / f"{name}.xyz")
        for s, name in zip((bead, whole), names, strict=True)
    ]
    simulate(run, motion, plan_of(tmp_path, 4000, 4, tuple(files)))
    kind = "--kind vdos --width 100 --json found.json --overwrite".split()
    for suffix in ("h5", "xyz"):
        assert main(["spectra", f"md_3.{suffix}", *kind]) == 3
        assert f"md_centroid.{suffix}" in capsys.readouterr().err
        assert main(["spectra", f"md_centroid.{suffix}", *kind]) == 0
        found = json.loads((tmp_path / "found.json").read_text())
        assert found["ensemble"] == "trpmd"
        assert_allclose(found["temperature_K"], KELVIN, rtol=4 / np.sqrt(3 * ATOMS))
        x, y = np.array(found["vdos_frequencies_cm1"]), np.array(found["vdos_per_cm1"])
        near = np.abs(x - OMEGA * units.hbar / units.invcm) < 150
        assert_allclose(np.trapezoid(y[near], x[near]), 3 * ATOMS, rtol=0.02)
    assert main(["spectra", "md_centroid.h5", *kind, "--quantum", "standard"]) == 2
    assert "Kubo" in capsys.readouterr().err
    # what is written is the mean over beads
    centroid = read_h5md("md_centroid.h5")
    assert centroid.role == {"ensemble": "trpmd", "beads": BEADS}
    assert read_h5md("md_3.h5").role == {"ensemble": "trpmd", "beads": BEADS, "bead": 3}


@pytest.mark.slow
def test_rings_that_have_settled_keep_their_size_without_a_bath(tmp_path):
    # of n beads: <|q_k|²> = n kT / m (w² + w_k²) for modes of a ring, three ways for an atom; rings
    # that begin on a point have half of it. Beads of 6 x 16 atoms: 10 % of the sum is a deviation
    free = ring_polymer(dt=0.25, temperature=KELVIN, n_beads=BEADS, tau=None, damping=0.0)
    run, _ = ready(free, observe=quantum(BEADS, KELVIN))
    squares = []
    for i in range(6):
        key = jax.random.key(i)
        motion = thermal_motion(run.system, run.bodies, key, temperature=BEADS * KELVIN)
        run, motion = rested(run, motion, BATH, tmp_path, steps=200)
        assert_allclose(np.asarray(motion.velocities).sum(0), 0, atol=1e-10)  # at rest as a whole
        block = list(trajectory(run, motion, steps=400, block=400, record=4))
        squares.append((joined(block, "gyration") ** 2).mean())
    _, frequencies = normal_modes(BEADS, BEADS * units.kB * KELVIN)
    exact = 3 * units.kB * KELVIN / MASS * (1 / (OMEGA**2 + frequencies[1:] ** 2)).sum()
    assert_allclose(np.mean(squares), exact, rtol=0.2)


def test_one_bead_is_newtons_equation():
    one = ring_polymer(dt=0.5, temperature=KELVIN, n_beads=1, tau=None)
    run, motion = ready(one, 1)
    plain = replace(run, integrator=nve(dt=0.5))
    ends = [list(trajectory(r, motion, steps=50, block=50, record=50))[-1] for r in (run, plain)]
    assert_allclose(ends[0].motion.positions, ends[1].motion.positions, rtol=0, atol=1e-12)


def test_rings_of_single_precision_keep_it():
    system = ring(replace(hydrogens(), edges=None), BEADS)
    system = jax.tree.map(lambda x: x.astype(np.float32) if x.dtype == float else x, system)
    bodies = bodies_of(system, np.full(system.n_atoms, MASS), keeps_momentum=False)
    motion = at_rest(system, jax.random.key(0))
    motion = replace(motion, bath=BATH.init(motion, bodies))
    types = lambda motion: jax.tree.map(lambda x: x.dtype, motion)
    for part in (BATH.before, BATH.after):
        assert types(jax.eval_shape(part, motion, bodies, system)) == types(motion)


def test_what_rings_cannot_do_is_refused():
    bath = ring_polymer(dt=0.5, temperature=KELVIN, n_beads=4)
    batch, masses = ring(hydrogens(), 3), np.full(3 * ATOMS, MASS)
    with pytest.raises(UsageError, match="not made of 4 equal beads"):
        prepare(WELLS, {}, batch, bath, masses=masses)
    with pytest.raises(UsageError, match="held"):
        ready(bath, 4, fixed=np.arange(4 * ATOMS) == 0)
    with pytest.raises(UsageError, match="heat bath"):
        stochastic_cell(bath, pressure=0.0)
    with pytest.raises(UsageError, match="at least 1"):
        ring_polymer(dt=0.5, temperature=KELVIN, n_beads=0)
    assert at_rest(batch, jax.random.key(0)).energy.shape == (3,)
