"""Trajectories on disk: what is read is what was written, after any crash, by others too."""

import shutil
from dataclasses import replace

import h5py
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk
from ase.io import read
from numpy.testing import assert_allclose, assert_array_equal

from jaxmlip import units
from jaxmlip.errors import DataError, NumericalError, ResourceError, UsageError
from jaxmlip.interfaces.ase import from_ase
from jaxmlip.interfaces.frames import to_frames
from jaxmlip.md.files import (
    Files,
    Scene,
    append_extxyz,
    append_h5md,
    append_table,
    cut_back,
    lengths,
    read_h5md,
    read_table,
)
from jaxmlip.md.files.h5md import cut_h5md
from jaxmlip.md.files.journal import journaled, settle
from jaxmlip.md.files.scene import frames_of, series_of
from jaxmlip.md.guards import Bonds, check_block, from_middle
from jaxmlip.md.integrators import csvr, langevin, nve
from jaxmlip.md.motion import thermal_motion
from jaxmlip.md.observables import frame, pair_counts, responses, with_msd
from jaxmlip.md.restart_points import last_good
from jaxmlip.md.run import prepare, trajectory
from jaxmlip.md.simulate import Plan, simulate
from jaxmlip.models import LennardJones
from jaxmlip.potential import Potential
from jaxmlip.restart import only_run, read_state, save_state, saved_states
from jaxmlip.system import concatenate, pad

ARGON = LennardJones(elements=(18,), cutoff=5.0, smoothness=3)
MASS = 39.948


def scene_of(atoms, **more):
    return Scene(
        numbers=atoms.numbers,
        symbols=tuple(atoms.get_chemical_symbols()),
        masses=atoms.get_masses(),
        pbc=atoms.pbc,
        dt=0.5,
        **more,
    )


def drawn(n_frames, n_atoms, dtype, first=0):
    rng = np.random.default_rng(first)
    normal = lambda *shape: rng.normal(size=(n_frames, *shape)).astype(dtype)
    return {
        "step": 10 * np.arange(first, first + n_frames),
        "positions": 50 * normal(n_atoms, 3),
        "velocities": normal(n_atoms, 3),
        "forces": normal(n_atoms, 3),
        "cell": 10 * np.eye(3, dtype=dtype) + normal(3, 3),
        "energy": normal(),
        "stress": (lambda s: s + s.swapaxes(1, 2))(normal(3, 3)),
        "dipole": normal(3),
    }


@pytest.mark.parametrize("dtype, rtol", [("float64", 3e-16), ("float32", 1e-7)])
def test_extended_xyz_gives_ase_the_same_numbers(tmp_path, dtype, rtol):
    # momenta are products of a mass: one rounding; all else is exact
    water = Atoms("OH2", positions=np.zeros((3, 3)), cell=np.eye(3), pbc=[True, True, False])
    scene = scene_of(water, info=(("charge", 1.0), ("field", (0.0, 0.0, 0.25))))
    frames = drawn(3, 3, dtype)
    for part in (slice(0, 1), slice(1, 3)):
        append_extxyz(tmp_path / "a.xyz", scene, {k: v[part] for k, v in frames.items()})
    found = read(tmp_path / "a.xyz", ":")
    assert len(found) == 3
    for i, atoms in enumerate(found):
        exact = lambda a, b: assert_array_equal(np.asarray(a, dtype), b)
        exact(atoms.positions, frames["positions"][i])
        exact(atoms.cell.array, frames["cell"][i])
        exact(atoms.get_forces(), frames["forces"][i])
        exact(atoms.get_potential_energy(), frames["energy"][i])
        exact(atoms.get_stress(voigt=False), frames["stress"][i])
        exact(atoms.get_dipole_moment(), frames["dipole"][i])
        assert_allclose(atoms.get_velocities(), frames["velocities"][i], rtol=2 * rtol)
        assert atoms.info["step"] == 10 * i and atoms.info["time_fs"] == 5 * i
        assert atoms.info["charge"] == 1 and list(atoms.pbc) == [True, True, False]
        assert_array_equal(atoms.info["field"], [0, 0, 0.25])


def test_a_file_of_the_mean_of_beads_says_so_and_has_their_means(tmp_path):
    atoms = drawn(2, 12, "float64")  # four beads of three atoms
    per_bead = {"cell": (4, 3, 3), "energy": (4,), "dipole": (4, 3), "stress": (4, 3, 3)}
    normal = np.random.default_rng(1).normal
    beads = atoms | {name: normal(size=(2, *shape)) for name, shape in per_bead.items()}
    table = {"step": np.arange(2), "uncertainty": np.arange(8.0).reshape(2, 4)}
    role = (("ensemble", "rpmd"), ("beads", 4))
    scene = scene_of(Atoms("OH2", np.eye(3)), role=role, mean_of=4)
    append_h5md(tmp_path / "a.h5", scene, frames_of(scene, beads), [series_of(scene, table)])
    append_extxyz(tmp_path / "a.xyz", scene, frames_of(scene, beads))
    found, frames = read_h5md(tmp_path / "a.h5"), read(tmp_path / "a.xyz", ":")
    mean = lambda name: beads[name].reshape(2, 4, 3, 3).mean(1)
    assert_array_equal(found.positions, mean("positions"))
    assert_allclose(found.velocities / units.fs, mean("velocities"), rtol=1e-15)
    assert_allclose([f.get_forces() for f in frames], mean("forces"), rtol=1e-15)
    assert_allclose([f.get_dipole_moment() for f in frames], beads["dipole"].mean(1), rtol=1e-15)
    assert_array_equal(found.observables["forces_uncertainty_max"].value, [3, 7])
    assert found.role == dict(role)
    assert {k: frames[1].info[k] for k in dict(role)} == dict(role)


def test_isotopes_and_held_atoms_are_in_the_file(tmp_path):
    water = Atoms("OH2", positions=np.eye(3))
    water.set_masses([15.999, 2.014, 2.014])
    fixed = np.array([True, False, False])
    scene, frames = scene_of(water, own_masses=True, fixed=fixed), drawn(1, 3, "float64")
    append_extxyz(tmp_path / "a.xyz", scene, frames)
    atoms = read(tmp_path / "a.xyz")
    assert_array_equal(atoms.get_masses(), water.get_masses())
    assert_array_equal(atoms.constraints[0].index, [0])
    assert not atoms.pbc.any() and not atoms.cell.any()
    assert_allclose(atoms.get_velocities()[1:], frames["velocities"][0][1:], rtol=1e-15)


@pytest.mark.parametrize("dtype, rtol", [("float64", 3e-16), ("float32", 2e-7)])
def test_h5md_gives_the_same_numbers(tmp_path, dtype, rtol):
    crystal = bulk("Ar")
    told = {"charge": 1.0, "spin": 2, "field": (0.0, 0.0, 0.25)}
    scene, frames = scene_of(crystal, info=tuple(told.items())), drawn(5, 1, dtype)
    series = {"step": np.arange(8), "dipole": np.random.default_rng(1).normal(size=(8, 3))}
    for a, b in ((0, 2), (2, 5)):
        table = {k: v[2 * a : 2 * b] for k, v in series.items()}
        append_h5md(tmp_path / "a.h5", scene, {k: v[a:b] for k, v in frames.items()}, [table])
    found = read_h5md(tmp_path / "a.h5")
    assert_array_equal(found.step, frames["step"])
    assert_array_equal(found.time, 0.5 * frames["step"])
    assert_array_equal(found.positions, frames["positions"])
    assert_array_equal(found.cell, frames["cell"])
    assert found.positions.dtype == dtype
    assert_allclose(found.velocities / units.fs, frames["velocities"], rtol=rtol)
    assert_allclose(found.forces, frames["forces"], rtol=rtol)
    assert_array_equal(found.masses, crystal.get_masses())
    atoms = to_frames(found)[4]
    assert_allclose(atoms.get_velocities(), frames["velocities"][4], rtol=rtol)
    assert_array_equal(atoms.cell.array, frames["cell"][4])
    assert atoms.info["step"] == 40
    assert all(np.array_equal(atoms.info[name], value) for name, value in told.items())
    dipole = found.observables["dipole"]
    assert_array_equal(dipole.value, series["dipole"])
    assert dipole.unit == "e Angstrom" and dipole.time[-1] == 3.5
    with h5py.File(tmp_path / "a.h5", "r+") as file:  # as other programs may write it
        position = file["particles/atoms/position"]
        del position["step"], position["time"]
        position["step"], position["time"] = 10, 5.0
    assert_array_equal(read_h5md(tmp_path / "a.h5").time, found.time)
    with h5py.File(tmp_path / "a.h5", "r+") as file:
        file["particles/atoms/position/value"].attrs["unit"] = "nm"
    with pytest.raises(DataError, match="position is in nm, expected Angstrom"):
        read_h5md(tmp_path / "a.h5")


def test_h5md_is_laid_out_as_its_specification_says(tmp_path):
    scene = scene_of(bulk("Ar"))
    table = {"step": np.arange(3), "energy_potential": np.ones(3), "temperature": np.ones(3)}
    append_h5md(tmp_path / "a.h5", scene, drawn(2, 1, "float32"), [table])
    with h5py.File(tmp_path / "a.h5") as file:
        assert list(file["h5md"].attrs["version"]) == [1, 1]
        assert {"author", "creator", "modules"} <= set(file["h5md"])
        assert {"name", "version"} <= set(file["h5md/creator"].attrs)
        atoms = file["particles/atoms"]
        assert atoms["box"].attrs["dimension"] == 3
        assert list(atoms["box"].attrs["boundary"]) == ["periodic"] * 3
        for name in ("position", "velocity", "force", "box/edges"):
            assert set(atoms[name]) == {"step", "time", "value"}
            assert len(atoms[name]["step"]) == len(atoms[name]["value"]) == 2
        # units that MDAnalysis knows
        assert atoms["position/value"].attrs["unit"] == "Angstrom"
        assert atoms["velocity/value"].attrs["unit"] == "Angstrom fs-1"
        assert atoms["force/value"].attrs["unit"] == "kJ mol-1 Angstrom-1"
        assert atoms["position/time"].attrs["unit"] == "fs"
        assert file["observables/temperature/value"].attrs["unit"] == "K"
        assert len(file["observables/energy_potential/step"]) == 3


def test_a_write_that_is_killed_leaves_the_file_as_it_was_or_as_it_should_be(tmp_path, monkeypatch):
    path, scene = tmp_path / "a.h5", scene_of(bulk("Ar"))
    append_h5md(path, scene, drawn(2, 1, "float64"))
    before = path.read_bytes()
    monkeypatch.setattr("jaxmlip.md.files.journal.settle", lambda path: None)
    append_h5md(path, scene, drawn(3, 1, "float64", first=2))  # killed: the journal alone is there
    monkeypatch.undo()
    journal = path.with_name("a.h5.journal")
    assert path.read_bytes() == before and journal.exists()
    whole = journal.read_bytes()

    path.write_bytes(before[:5000] + b"half of the changes" + before[5019:])  # killed within them
    assert len(read_h5md(path).step) == 5
    assert not journal.exists()

    path.write_bytes(before)
    journal.write_bytes(whole[:-100])  # not whole: never
    assert len(read_h5md(path).step) == 2

    with pytest.raises(RuntimeError), journaled(path) as pages:
        pages.write(b"an error in the block changes nothing")
        raise RuntimeError
    settle(path)
    assert path.read_bytes() == before


def test_files_are_cut_back_to_a_step(tmp_path):
    path, scene = tmp_path / "a.h5", scene_of(bulk("Ar"))
    frames, table = drawn(5, 1, "float64"), {"step": np.arange(41), "temperature": np.ones(41)}
    append_h5md(path, scene, frames, [table])
    cut_h5md(path, 25)
    found = read_h5md(path)
    assert_array_equal(found.step, [0, 10, 20])
    assert_array_equal(found.cell, frames["cell"][:3])
    assert_array_equal(found.observables["temperature"].step, np.arange(26))
    append_h5md(path, scene, {k: v[3:] for k, v in frames.items()})
    assert_array_equal(read_h5md(path).positions, frames["positions"])


def test_a_run_whose_files_have_gone_is_not_gone_on_with(tmp_path):
    files = [Files(scene=scene_of(bulk("Ar")), table=tmp_path / "a.csv")]
    append_table(files[0].table, {"step": np.arange(5)})
    with pytest.raises(ResourceError, match="shorter"):
        cut_back(files, {"a.csv": 100}, step=4)
    cut_back(files, {"a.csv": 9}, step=1)
    assert_array_equal(read_table(files[0].table)["step"], [0, 1])


def test_a_file_of_something_else_is_refused(tmp_path):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["x"] = 1
    with pytest.raises(DataError, match="H5MD"):
        read_h5md(tmp_path / "a.h5")


def test_a_table_has_its_headings_once(tmp_path):
    rows = {"step": np.array([1, 2]), "energy_eV": np.array([0.1, 1 / 3])}
    append_table(tmp_path / "a.csv", rows)
    append_table(tmp_path / "a.csv", rows)
    assert (tmp_path / "a.csv").read_text().splitlines()[:2] == ["step,energy_eV", "1,0.1"]
    assert_array_equal(read_table(tmp_path / "a.csv")["energy_eV"], [0.1, 1 / 3] * 2)


# --- whole runs ----------------------------------------------------------------------------------

INTEGRATORS = {
    "nve": nve(dt=2.0),
    "langevin": langevin(dt=2.0, temperature=60.0),
    "csvr": csvr(dt=2.0, temperature=60.0),
}
OBSERVE = (frame, with_msd, pair_counts(np.full(64, 18), 5.0, bins=20))


def ready(name="langevin"):
    atoms = bulk("Ar", "fcc", 5.4, cubic=True).repeat(2)
    atoms.rattle(0.05, seed=0)
    system = concatenate([from_ase(atoms, 1.0, dtype="float64")] * 2)
    masses = np.full(system.n_atoms, MASS)
    run = prepare(ARGON, {}, system, INTEGRATORS[name], masses=masses, observe=OBSERVE)
    motion = thermal_motion(system, run.bodies, jax.random.key(1), temperature=60.0)
    return run, motion, atoms


def planned(folder, atoms, steps=60, copies=2, **more):
    folder.mkdir(exist_ok=True)
    scene = replace(scene_of(atoms), dt=2.0)
    files = tuple(
        Files(
            scene=replace(scene, index=i, first=i * len(atoms)),
            table=folder / f"{i}.csv",
            extxyz=folder / f"{i}.xyz",
            h5md=folder / f"{i}.h5",
        )
        for i in range(copies)
    )
    plan = Plan(
        steps=steps,
        every=(20, 10, 5),
        block=15,
        files=files,
        restarts=folder / "restart",
        settings={"seed": 1},
        summed=(2,),
    )
    return replace(plan, **more)


class Killed(BaseException):
    pass


def killed_after(n):
    """A report that ends the program at the n-th block, as a signal that nobody hears."""
    count = iter(range(n))

    def report(progress):
        if next(count, None) is None:
            raise Killed

    return report


def same_bits(a, b):
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        key = jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key)
        bits = jax.random.key_data if key else np.asarray
        assert_array_equal(np.asarray(bits(x)), np.asarray(bits(y)))


def same_files(one, other):
    for path in [*one.glob("*.csv"), *one.glob("*.xyz")]:
        assert path.read_bytes() == (other / path.name).read_bytes()
    for path in one.glob("*.h5"):
        a, b = read_h5md(path), read_h5md(other / path.name)
        for name in ("step", "time", "positions", "velocities", "cell"):
            assert_array_equal(getattr(a, name), getattr(b, name))
        assert a.observables.keys() == b.observables.keys()
        for name, series in a.observables.items():
            assert_array_equal(series.value, b.observables[name].value)


@pytest.mark.parametrize(
    "name", ["langevin", *(pytest.param(n, marks=pytest.mark.slow) for n in ("nve", "csvr"))]
)
def test_a_run_that_was_killed_ends_as_one_that_was_not(tmp_path, name):
    run, motion, atoms = ready(name)
    whole = simulate(run, motion, planned(tmp_path / "whole", atoms))
    plan = planned(tmp_path / "killed", atoms, minutes=0.0)
    with pytest.raises(Killed):
        simulate(run, motion, plan, report=killed_after(2))
    with open(plan.files[0].extxyz, "a") as file:  # written beyond the restart point
        file.write("64\nhalf a frame")
    newest = saved_states(plan.restarts)[0]
    newest.write_bytes(newest.read_bytes()[:-1000])  # the older one is taken
    warnings = []
    with pytest.raises(Killed):
        late = replace(plan, minutes=60.0)  # blocks are written, but no restart point
        simulate(run, motion, late, resume=True, report=killed_after(1), warn=warnings.append)
    assert len(warnings) == 1
    again = simulate(run, motion, plan, resume=True, warn=warnings.append)
    same_bits(again.motion, whole.motion)
    assert_array_equal(again.sums["pairs"], whole.sums["pairs"])
    same_files(tmp_path / "whole", tmp_path / "killed")
    steps = [a.info["step"] for a in read(plan.files[0].extxyz, ":")]
    assert steps == [0, 20, 40, 60]
    assert_array_equal(read_table(plan.files[1].table)["step"], np.arange(0, 61, 10))
    longer = simulate(run, motion, replace(plan, steps=80), resume=True)
    assert int(longer.motion.step) == 80


def test_records_are_those_of_the_instants_and_units_are_right(tmp_path):
    from ase.neighborlist import neighbor_list

    run, motion, atoms = ready()
    plan = planned(tmp_path, atoms)
    out, one = simulate(run, motion, plan), plan.files[1]
    frames, table = read(one.extxyz, ":"), read_table(one.table)
    energies = [f.get_potential_energy() for f in frames]
    assert_allclose(table["energy_potential_eV"][::2], energies, rtol=1e-12)
    kinetic = [f.get_kinetic_energy() for f in frames]
    assert_allclose(table["energy_kinetic_eV"][::2], kinetic, rtol=1e-12)
    # with friction on the centre of mass, as ASE counts: 3n degrees of freedom
    temperature = [f.get_temperature() for f in frames]
    assert_allclose(table["temperature_K"][::2], temperature, rtol=1e-12)
    # positions move by velocity x time; an error of units would be a factor of ten
    speeds = np.array([f.get_velocities() for f in frames])
    moved = np.diff([f.positions for f in frames], axis=0)
    mean = 40 * units.fs * (speeds[1:] + speeds[:-1]) / 2
    assert np.linalg.norm(moved - mean) < 0.5 * np.linalg.norm(moved)
    assert_allclose(read_h5md(one.h5md).velocities, speeds * units.fs, rtol=1e-12)
    apart = frames[-1].positions - atoms.positions
    assert_allclose(table["msd_A2"][-1], ((apart - apart.mean(0)) ** 2).sum(1).mean(), rtol=1e-9)
    # pairs: every fifth step of both replicas, against ASE's of every twentieth
    both = [f for file in plan.files for f in read(file.extxyz, ":")]
    counted = np.mean([len(neighbor_list("d", f, 5.0)) for f in both])
    assert out.sums["count"] == 13
    assert_allclose(out.sums["pairs"].sum() / 13 / 2, counted, rtol=0.02)


def test_current_and_polarizability_of_the_loop_are_those_of_the_instants(tmp_path):
    # fixed charges and one polarisability: the current is the sum of charge times velocity about
    # the centre of mass, which carries a net charge along
    charges, alpha = np.array([0.3, -0.1, 0.2]), np.diag([1.0, 2.0, 3.0])

    def apply(params, system):
        out = dict(ARGON.apply(params, system))
        weak = (charges @ system.positions) * system.field[0]
        out["energy"] -= weak.sum() + 0.5 * system.field[0] @ alpha @ system.field[0]
        return out | {"dipole": (charges @ system.positions)[None]}

    atoms = Atoms("Ar3", positions=[[0, 0, 0], [3.9, 0, 0], [0, 4.1, 0]])
    system = from_ase(atoms, None, dtype="float64")
    observe = (frame, with_msd, responses(apply))
    run = prepare(
        Potential(None, apply, 5.0),
        {},
        system,
        INTEGRATORS["nve"],
        masses=atoms.get_masses(),
        observe=observe,
        keep=("dipole",),
    )
    motion = thermal_motion(system, run.bodies, jax.random.key(1), temperature=60.0)
    motion = replace(motion, velocities=motion.velocities + jnp.array([0.0, 0.01, 0.02]))
    plan = planned(tmp_path, atoms, copies=1, every=(10, 10, 5), steps=20, summed=())
    simulate(run, motion, plan)
    found = read_h5md(plan.files[0].h5md)
    current, at = found.observables["current"], found.observables["polarizability"]
    assert_array_equal(current.step, [0, 5, 10, 15, 20])
    inner = found.velocities - found.velocities.mean(1, keepdims=True)
    flow = np.einsum("a,tab->tb", charges, inner)
    assert_allclose(current.value[::2], flow, rtol=1e-12)
    assert_allclose(at.value, np.broadcast_to(alpha, (5, 3, 3)), atol=1e-14)
    moment = np.einsum("a,tab->tb", charges, found.positions)
    assert_allclose(found.observables["dipole"].value, moment, rtol=1e-12)
    assert_allclose([a.get_dipole_moment() for a in read(plan.files[0].extxyz, ":")], moment)
    missing = replace(run, keep=("charges",))
    with pytest.raises(UsageError, match="does not predict charges"):
        simulate(missing, motion, plan)


@pytest.mark.parametrize("name, code", [("current", "JM110"), ("heat_flux", "JM305")])
def test_whatever_is_recorded_and_not_finite_stops_the_run(tmp_path, name, code):
    run, motion, atoms = ready("nve")
    run = replace(run, observe=(with_msd,))
    [block] = trajectory(run, motion, steps=10, block=10, record=(5,), first=True)
    flow = np.zeros((3, 2, 3))
    block = block._replace(records=({"step": np.array([0, 5, 10]), name: flow},))
    plan = planned(tmp_path, atoms, summed=())
    check_block(block, plan)
    flow[1, 1] = np.nan
    with pytest.raises(NumericalError, match=f"{code} the {name} is not finite at step 5"):
        check_block(block, plan)


def test_a_stress_that_a_molecule_does_not_have_stops_nothing(tmp_path):
    run, motion, atoms = ready("nve")
    run = replace(run, observe=(with_msd,))
    [block] = trajectory(run, motion, steps=10, block=10, record=(10,))
    records = ({"step": np.array([10]), "pressure": np.array([[0.1, np.nan]])},)
    pbc = np.array([[True] * 3, [False] * 3])
    run = replace(run, system=replace(run.system, pbc=pbc))
    check_block(block._replace(records=records, run=run), planned(tmp_path, atoms, summed=()))


def test_a_structure_whose_bonds_break_stops_the_run(tmp_path):
    # by 90 % of an edge of the box; bonds to an image go with the cell
    run, motion, atoms = ready("nve")
    [block] = trajectory(run, motion, steps=2, block=2, record=(2, 2, 2))
    r, cell, n = np.array(run.system.positions), atoms.cell.array, len(atoms)
    pairs, shifts = np.array([[0, 1], [1, 2], [2, 3], [3, 4]]) + n, np.zeros((4, 3))
    shifts[0, 0] = 1
    lengths = np.linalg.norm(r[pairs[:, 1]] - r[pairs[:, 0]] + shifts @ cell, axis=1)
    bonds = Bonds(pairs, shifts, lengths, np.ones(4, int))
    plan = replace(planned(tmp_path, atoms, summed=()), bonds=bonds)
    check_block(block, plan)
    check_block(block, replace(plan, bonds=Bonds(*(x[:0] for x in bonds))))
    wider = np.asarray(block.motion.cell) * [[[1.9], [1], [1]]]
    moved = block._replace(motion=replace(block.motion, cell=wider))
    told = r"JM305 structure 1 is torn apart before step 2 \(4.0 fs\): 25% of its bonds.* 0-1 \("
    with pytest.raises(NumericalError, match=told):
        check_block(moved, plan)
    several = Bonds(*(np.concatenate([x, x[1:]]) for x in bonds))
    check_block(moved, replace(plan, bonds=several))  # one of seven


def test_other_settings_are_not_resumed(tmp_path):
    run, motion, atoms = ready()
    plan = planned(tmp_path, atoms, steps=20)
    simulate(run, motion, plan)
    with pytest.raises(UsageError, match="seed was 1, is 2"):
        simulate(run, motion, replace(plan, settings={"seed": 2}), resume=True)


def test_a_restart_point_with_neighbours_of_an_older_layout_is_gone_on_from(tmp_path):
    run, motion, atoms = ready()
    plan = planned(tmp_path, atoms, steps=20)
    first = simulate(run, motion, plan)
    [path, *_] = saved_states(plan.restarts)
    _, position = read_state(path)
    old = replace(first.motion, list={"edges": np.zeros((4, 4), np.int32)})
    save_state(plan.restarts, {"motion": old, "sums": first.sums}, position, step=20)
    told = []
    again = simulate(run, motion, plan, resume=True, warn=told.append)
    assert "older version" in str(told[0])
    assert jax.tree.structure(again.motion) == jax.tree.structure(first.motion)
    assert_array_equal(again.motion.positions, first.motion.positions)
    assert_array_equal(again.motion.velocities, first.motion.velocities)


def test_a_run_that_blows_up_stops_with_the_last_good_state(tmp_path):
    run, motion, atoms = ready()
    plan = planned(tmp_path, atoms)
    simulate(run, motion, replace(plan, steps=20))
    hot = replace(plan, hottest=1.0)
    with pytest.raises(NumericalError, match=r"blows up.*\(limit 1\).*last good state, of step 20"):
        simulate(run, motion, hot, resume=True)
    good = last_good(plan)
    frames = read(plan.files[1].extxyz, ":")
    assert_array_equal(frames[-1].positions, good["positions"][len(atoms) :])
    assert [f.info["step"] for f in frames] == [0, 20]


def test_a_run_stops_where_an_atom_is_lost(tmp_path):
    run, motion, atoms = ready()
    open_run = replace(run, system=replace(run.system, pbc=np.zeros_like(run.system.pbc)))
    plan = planned(tmp_path, atoms, steps=20, steepest=float("inf"))
    lost = replace(motion, positions=motion.positions.at[3].add(jnp.array([0.0, 2000.0, 0.0])))
    with pytest.raises(
        NumericalError, match=r"atom 3 is lost: (19|20)\d\d Å .*\(limit 1000\).* fs"
    ):
        simulate(open_run, lost, plan)
    assert simulate(run, lost, plan).motion.step == 20  # periodic: its image is where it was


def test_atoms_of_padding_are_not_lost():
    batch = pad(concatenate([from_ase(Atoms("Ar2", [[0, 0, 0], [9, 0, 0]]), 5.0)]), n_graphs=3)
    assert_allclose(from_middle(batch, batch.positions, batch.cell)[:2], 4.5)


def test_two_runs_do_not_work_in_one_folder(tmp_path):
    run, motion, atoms = ready()
    plan = planned(tmp_path, atoms, steps=20)
    first = simulate(run, motion, plan)
    with only_run(plan.restarts), pytest.raises(ResourceError, match="JM407 .*another run"):
        simulate(run, motion, plan)
    assert saved_states(plan.restarts)  # nothing of the first is touched
    again = simulate(run, motion, plan, resume=True)
    assert_array_equal(again.motion.positions, first.motion.positions)


def test_a_run_stops_where_its_potential_is_unsure(tmp_path):
    # unsure of what is far from where it began, as an ensemble would be
    run, motion, atoms = ready()
    home = run.system.positions
    away = lambda system: jnp.linalg.norm(system.positions - home, axis=-1)
    unsure = lambda params, system: (
        ARGON.apply(params, system) | {"forces_uncertainty": away(system)}
    )
    potential = Potential(init=None, apply=unsure, cutoff=ARGON.cutoff)
    run = replace(run, potential=potential, keep=("forces_uncertainty",), observe=OBSERVE[1:2])
    plan = planned(tmp_path, atoms, every=(5,), frames=False, summed=(), unsure=0.25)
    with pytest.raises(NumericalError, match=r"JM308 .*unsure of structure \d at step \d+.*0\.25"):
        simulate(run, motion, plan)
    told = read_table(plan.files[0].table)["forces_uncertainty_max_eV_per_A"]
    assert len(told) and (told <= 0.25).all() and told[0] == 0
    assert saved_states(plan.restarts)  # goes on from the last sure block


@pytest.mark.slow  # atoms that are nowhere fill a bin: compiled again
def test_a_frame_that_is_not_finite_is_never_written(tmp_path):
    run, motion, atoms = ready()
    plan = planned(tmp_path, atoms, steepest=float("inf"))
    bad = replace(motion, velocities=motion.velocities.at[3].set(np.nan))
    with pytest.raises(NumericalError, match="not finite|blows up"):
        simulate(run, bad, plan)
    assert not plan.files[0].extxyz.exists()
    shutil.rmtree(plan.restarts)
    assert set(lengths(plan.files).values()) == {0}
