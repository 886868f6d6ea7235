"""`jaxmlip md`: refusals before anything is computed, interruptions that change nothing."""

import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from types import SimpleNamespace

import jax
import numpy as np
import pytest
import typer
from ase import Atoms
from ase.build import bulk, molecule, nanotube
from ase.io import read, write
from numpy.testing import assert_allclose, assert_array_equal
from structures import SPRINGS, card

from jaxmlip import units
from jaxmlip.cli.dynamics import bonds, job, minimum, start, summary
from jaxmlip.cli.main import main
from jaxmlip.cli.options import femtoseconds
from jaxmlip.cli.series.source import Source, evaluated
from jaxmlip.cli.series.time_series import TimeSeries
from jaxmlip.errors import DataError, ModelError, UsageError
from jaxmlip.interfaces.ase import from_ase
from jaxmlip.md.files import Scene, append_extxyz, append_h5md, read_h5md, read_table
from jaxmlip.md.integrators import nve
from jaxmlip.md.motion import bodies_of, temperature_of
from jaxmlip.models import checkpoint
from jaxmlip.vibrations import spectra

ARGON = {"elements": [18], "cutoff": 5.0, "smoothness": 3}
WATER = "3\nwater\nO 0.0 0.0 0.119\nH 0.0 0.763 -0.477\nH 0.0 -0.763 -0.477\n"
SHORT = "--steps 20 --stats-every 5 --traj-every 10 --seed 3 --no-plot --dtype float64".split()


def saved(folder, architecture, fields):
    path = folder / f"{architecture}.safetensors"
    checkpoint.save(path, card(architecture, fields), {"params": {}})
    return str(path)


@pytest.fixture(scope="module")
def springs(tmp_path_factory):
    """Morse curves between O and H: a molecule with a minimum, at no cost."""
    return saved(tmp_path_factory.mktemp("models"), "Morse", SPRINGS)


@pytest.fixture(scope="module")
def lennard_jones(tmp_path_factory):
    return saved(tmp_path_factory.mktemp("models"), "LennardJones", ARGON)


@pytest.fixture(autouse=True)
def alone(folder):
    (folder / "water.xyz").write_text(WATER)


def argon(name="argon.xyz"):
    atoms = bulk("Ar", "fcc", 5.4, cubic=True).repeat(2)
    atoms.rattle(0.05, seed=0)
    write(name, atoms)
    return name


def files():
    return sorted(os.listdir("."))


# --- mistakes ------------------------------------------------------------------------------------

REFUSED = {
    "negative temperature": ("--temp -5", 2, "cannot be negative"),
    "bath at 0 K": ("--temp 0", 2, "heat bath"),
    "no time step": ("--timestep 0", 2, "above zero"),
    "time step in ps": ("--timestep 0.001", 2, "it is in fs"),
    "frames that do not fit": ("--steps 50 --traj-every 20", 2, "--steps 40 or 60"),
    "pressure that is none": ("--pressure nan", 2, "GPa"),
    "no friction": ("--friction -1", 2, "--friction"),
    "cell of a molecule": ("--ensemble npt", 3, "periodic along 0 of 3 axes"),
    "responses without a dipole": ("--response-every 10 --format h5md", 6, "no dipole"),
    "responses nowhere": ("--response-every 10", 2, "H5MD"),
    "g(r) of a molecule": ("--rdf", 2, "periodic"),
    "exchange without a bath": ('--ensemble nve --temperatures "300 330"', 2, "nvt-csvr"),
    "a ladder that falls": ('--temperatures "330 300"', 2, "from cold to hot"),
    "copies of copies": ('--temperatures "300 330" --replicas 2', 2, "one copy a temperature"),
    "exchanges after the end": (
        '--temperatures "300 330" --steps 50 --exchange-every 60 --traj-every 10',
        *(2, "nothing would be exchanged"),
    ),
    "currents that jump": (
        '--temperatures "300 330" --response-every 5 --format h5md',
        *(2, "without jumps"),
    ),
    "uncertainty of one model": ("--max-uncertainty 0.1", 2, "not an ensemble"),
    "g(r) after relaxing": ("--rdf --minimize --fmax 1e-9", 2, "periodic"),
    "uncertainty after relaxing": ("--max-uncertainty 1 --minimize", 2, "not an ensemble"),
}


@pytest.mark.parametrize("text, fs", [("0.5", 0.5), ("0.5 fs", 0.5), ("5e-4ps", 0.5), (2, 2.0)])
def test_times_may_have_a_unit(text, fs):
    assert femtoseconds(text) == pytest.approx(fs, rel=1e-15)
    with pytest.raises(typer.BadParameter, match="no time.*fs"):
        femtoseconds(f"{text} s")


@pytest.mark.parametrize("case", REFUSED)
def test_mistakes_are_refused_before_anything_is_written(springs, capsys, case, monkeypatch):
    options, status, told = REFUSED[case]
    monkeypatch.setattr(minimum, "minimized", lambda *_, **__: pytest.fail("it relaxes first"))
    assert main(["md", "water.xyz", "--model", springs, *shlex.split(options)]) == status
    assert told in capsys.readouterr().err
    assert files() == ["water.xyz"]


def test_elements_the_model_does_not_know_are_refused(lennard_jones, capsys):
    assert main(["md", "--struct", "water.xyz", "--model", lennard_jones]) == 6
    assert "O" in capsys.readouterr().err
    assert main(["md", "--model", lennard_jones]) == 2
    assert files() == ["water.xyz"]


def test_what_is_likely_a_mistake_is_warned_about():
    water, heavy = Atoms("OH2", np.eye(3)), Atoms("OH2", np.eye(3), masses=[16, 2, 2])
    usual = {"timestep": 0.5, "response_every": 0, "ensemble": "nvt", "friction": 0.01}
    usual |= {"heat_flux_every": 0, "replicas": 1, "new_velocities": False}
    assert "hydrogen" in next(start.warnings_of(water, usual | {"timestep": 5.5}))
    assert not list(start.warnings_of(water, usual))
    assert not list(start.warnings_of(heavy, usual | {"timestep": 2.0}))
    # an oscillator damped by 0.01/fs has a line 0.01/(2 pi c) = 53 cm⁻¹ wide
    assert "53 cm⁻¹ wider" in next(start.warnings_of(water, usual | {"response_every": 5}))
    assert not list(start.warnings_of(water, usual | {"response_every": 5, "ensemble": "nve"}))
    assert "conductivity" in next(start.warnings_of(water, usual | {"heat_flux_every": 5}))
    assert not list(start.warnings_of(water, usual | {"heat_flux_every": 5, "ensemble": "nve"}))
    water.set_velocities(np.ones((3, 3)))
    assert not list(start.warnings_of(water, usual))
    assert "of FILE are not used" in next(start.warnings_of(water, usual | {"replicas": 4}))


def test_the_heat_flux_is_refused_where_energies_of_atoms_are_not_all_there_is():
    of = lambda **more: SimpleNamespace(name="test", potential=None, card=more)
    crystal, o = bulk("Ar"), {"heat_flux_every": 5, "beads": 1}
    start.check_heat_flux(of(), crystal, o, "x")
    charged = of(electrostatics={"method": "ewald"})
    start.check_heat_flux(charged, crystal, o | {"heat_flux_every": 0}, "x")
    with pytest.raises(ModelError, match="long-range terms .electrostatics"):
        start.check_heat_flux(charged, crystal, o, "x")
    with pytest.raises(DataError, match="0 of 3 axes"):
        start.check_heat_flux(of(), Atoms("Ar2", np.eye(3)[:2]), o, "x")
    with pytest.raises(UsageError, match="classical nuclei"):
        start.check_heat_flux(of(), crystal, o | {"beads": 4}, "x")


def test_reference_energies_of_elements_do_not_flow():
    # sum of v_i E_0 of two elements that move against one another is no heat
    bare, references = card("Morse", SPRINGS), {"1": -13.6, "8": -407.0}
    crystal = Atoms("OH", positions=[[0, 0, 0], [0, 0, 1.1]], cell=3 * np.eye(3), pbc=True)
    system = from_ase(crystal, SPRINGS["cutoff"], dtype="float64")
    referenced = bare | {"reference_energies": references}

    @jax.jit
    def energies():
        of = lambda apply, params: apply(params, system)["energies"]
        return (
            of(checkpoint.potential_of(bare).apply, {"params": {}}),
            of(checkpoint.potential_of(referenced).apply, {"params": {}}),
            of(job._unreferenced(referenced), {"params": {}}),
        )

    expected, whole, without = energies()
    assert_allclose(whole - expected, [-407, -13.6])
    assert_allclose(without, expected, atol=1e-12)


@pytest.mark.slow
def test_heat_fluxes_of_two_elements_do_not_know_their_reference_energies(springs):
    crystal = Atoms("OH", positions=[[0, 0, 0], [0, 0.1, 1.1]], cell=3 * np.eye(3), pbc=True)
    write("oh.xyz", crystal)
    referenced = card("Morse", SPRINGS) | {"reference_energies": {"1": -13.6, "8": -407.0}}
    checkpoint.save("referenced.safetensors", referenced, {"params": {}})
    found = []
    for model, out in ((springs, "a"), ("referenced.safetensors", "b")):
        run = ["md", "oh.xyz", "--model", model, *SHORT, "--ensemble", "nve", "--out", out]
        assert main([*run, "--heat-flux-every", "5", "--format", "h5md"]) == 0
        found.append(read_h5md(f"{out}/oh_md.h5").observables["heat_flux"].value)
    assert np.abs(found[0]).max() > 1e-3
    assert_allclose(found[1], found[0], rtol=1e-9, atol=1e-12)


def test_a_molecule_without_rotation_keeps_none():
    # rigid rotation is taken out wholly; what is left has no angular momentum
    rng = np.random.default_rng(0)
    r, v, m = rng.normal(size=(5, 3)), rng.normal(size=(5, 3)), rng.uniform(1, 16, 5)
    r -= np.average(r, axis=0, weights=m)
    spin, turns = start._spin(r, v, m)
    left = (m[:, None] * np.cross(r, v - np.cross(spin, r))).sum(0)
    assert_allclose(left, 0, atol=1e-12)
    assert turns == 3
    line = np.outer([-1.0, 0.0, 1.0], [1.0, 2.0, 3.0])
    assert start._spin(line, v[:3], np.ones(3))[1] == 2


def test_copies_of_a_moving_structure_are_not_the_same_trajectory():
    atoms = Atoms("OH2", np.diag([1.0, 2, 3]))
    atoms.set_velocities(np.random.default_rng(0).normal(0, 0.02, (3, 3)))
    system, o = from_ase(atoms, None, dtype="float64"), {"seed": 0, "beads": 1, "ladder": None}
    o |= {"remove_rot": False, "new_velocities": False, "temp": 200.0, "ensemble": "nve"}
    for n in (1, 2):
        batch = start.copies_of(system, n)
        bodies = bodies_of(batch, np.tile(atoms.get_masses(), n))
        run = SimpleNamespace(system=batch, bodies=bodies, integrator=nve(dt=0.5))
        _, motion = start.motion_of(run, atoms, o | {"replicas": n}, n)
        v = np.asarray(motion.velocities).reshape(n, 3, 3)
        if n == 1:
            still = atoms.get_velocities() - atoms.get_momenta().sum(0) / atoms.get_masses().sum()
            assert_allclose(v[0], still, atol=1e-12)
    assert np.abs(v[1] - v[0]).max() > 0.1 * np.abs(v).max()
    assert_allclose(temperature_of(motion, bodies, batch), 200, rtol=1e-9)


def test_bonds_that_are_watched_are_those_of_molecules():
    water = molecule("H2O")
    water.cell, water.pbc = 3.1 * np.eye(3), True
    liquid = water.repeat(2)
    liquid.wrap()  # some molecules lie across the boundary
    pairs, shifts, lengths = bonds.of_molecules(liquid)
    assert len(pairs) == 16 and np.abs(shifts).max() == 1
    assert_allclose(lengths, water.get_distance(0, 1), rtol=1e-9)
    vectors = np.diff(liquid.positions[pairs], axis=1)[:, 0] + shifts @ liquid.cell.array
    assert_allclose(np.linalg.norm(vectors, axis=1), lengths, rtol=1e-12)
    # networks, chains and metals change their neighbours when they melt, and nothing is wrong
    for endless in (bulk("Si"), bulk("Cu"), nanotube(5, 5), bulk("NaCl", "rocksalt", a=5.6)):
        assert len(bonds.of_molecules(endless)[0]) == 0
    ring = bonds.found(molecule("CH3CH2OH"), 4, together=True)
    assert ring.pairs.shape == (32, 2) and ring.pairs.max() == 35 and not ring.group.any()
    assert bonds.found(molecule("CH3CH2OH"), 4).group.max() == 3


def test_a_structure_is_relaxed_once(tmp_path, monkeypatch):
    water, told, calls = Atoms("OH2", np.eye(3)), [], []

    def relaxed(*arguments):
        calls.append(arguments)
        return np.full((3, 3), len(calls) / 3), "too few steps"

    monkeypatch.setattr(minimum, "_relaxed", relaxed)
    settings = {"structure": "x", "model_sha256": "y", "fmax": 0.05, "dtype": "float32"}
    output = SimpleNamespace(warn=told.append)
    begin = lambda resume, **more: minimum.minimized(
        water, None, {"resume": resume}, output, folder=tmp_path, settings=settings | more
    )
    assert_array_equal(begin(False).positions, np.full((3, 3), 1 / 3))
    assert_array_equal(begin(True).positions, np.full((3, 3), 1 / 3))
    assert len(calls) == 1 and told == 2 * ["--minimize: too few steps"]
    begin(True, fmax=0.01)  # another minimum
    begin(False, fmax=0.01)
    assert len(calls) == 3


def test_quantum_averages_have_the_errors_of_blocks():
    rng = np.random.default_rng(0)
    names = "energy_potential_eV energy_kinetic_eV energy_conserved_eV temperature_K gyration_A"
    table = {name: rng.normal(1.0, 0.1, 1000) for name in names.split()}
    table |= {"step": np.arange(1000), "time_fs": np.arange(1000.0)}
    found = summary.summarize([table], 3)
    assert_allclose(found["gyration_mean_A"], table["gyration_A"][200:].mean())
    # 800 independent values: 0.1 / sqrt(800), known from ten blocks to 1 / sqrt(18)
    for name in ("gyration_error_A", "energy_kinetic_centroid_virial_error_eV"):
        assert_allclose(found[name], 0.1 / np.sqrt(800), rtol=3 / np.sqrt(18))
    shown = dict(summary.rows(found))
    assert "error 0.00" in shown["radius of gyration"] and "Å" in shown["radius of gyration"]


def test_frames_of_a_ladder_are_no_trajectory(capsys):
    scene = Scene(
        numbers=np.array([8, 1]),
        symbols=("O", "H"),
        masses=np.array([16.0, 1.0]),
        pbc=np.zeros(3, bool),
        dt=0.5,
    )
    frames = {"step": np.arange(50), "positions": np.zeros((50, 2, 3)), "cell": np.zeros((50, 3))}
    frames["velocities"] = np.random.default_rng(0).normal(size=(50, 2, 3))
    ladder = replace(scene, role=(("ladder", True),))
    append_extxyz("ladder.xyz", ladder, frames)
    append_h5md("ladder.h5", ladder, frames)
    walker = {"step": np.arange(50), "walker": np.arange(50) // 20}
    append_h5md("older.h5", scene, frames, [walker])
    bead = {"step": np.arange(50), "gyration": np.ones(50)}
    append_h5md("bead_3.h5", scene, frames, [bead])
    pimd = (("ensemble", "pimd"), ("beads", 4))
    append_h5md("pimd_centroid.h5", replace(scene, role=pimd), frames)
    rpmd = replace(scene, role=(("ensemble", "rpmd"), ("beads", 4)))
    append_h5md("rpmd_centroid.h5", rpmd, frames, [bead])
    assert main(["spectra", "rpmd_centroid.h5", "--kind", "ir"]) == 3
    assert "JM244" not in capsys.readouterr().err  # it has no dipoles
    for name, told in {
        "ladder.xyz": "they jump",
        "ladder.h5": "they jump",
        "older.h5": "they jump",
        "bead_3.h5": "bead_centroid.h5",
        "pimd_centroid.h5": "--ensemble trpmd",
    }.items():
        assert main(["spectra", name, "--kind", "vdos", "--width", "1000"]) == 3
        err = " ".join(capsys.readouterr().err.split())
        assert "JM244" in err and told in err, err


def test_responses_of_rings_are_not_computed_at_their_centroid():
    nothing = {"numbers": np.ones(1), "masses": np.ones(1), "pbc": np.zeros(3, bool)}
    ring = Source("x", TimeSeries(role={"beads": 4}, **nothing), None, None, 0.0)
    with pytest.raises(DataError, match="mean over its beads"):
        evaluated(ring, "dipole")


def test_drift_is_the_slope_of_the_conserved_energy():
    table = {"time_fs": np.arange(0, 1000, 10.0)}
    table["energy_conserved_eV"] = -5 + 2e-3 * 8 * table["time_fs"] * 1e-3
    assert_allclose(summary.drift(table, 8), 2.0, rtol=1e-9)


# --- runs ----------------------------------------------------------------------------------------


def test_a_run_leaves_what_it_says(springs, capsys):
    arguments = ["md", "water.xyz", "--model", springs, "--json", "md.json", *SHORT]
    assert main([*arguments, "--remove-rot", "--format", "both", "--plot"]) == 0
    told = capsys.readouterr().out
    assert "0.01 ps" in told and "drift" in told
    names = "_final.xyz .h5 .png _stats.csv .xyz _restart".split()
    assert {f"water_md{n}" for n in names} | {"md.json", "water.xyz"} == set(files())
    with open("md.json") as file:
        told = json.load(file)
    assert told["n_steps"] == 20 and told["time_ps"] == 0.01
    assert told["ensemble"] == "nvt" and told["n_atoms"] == 3
    frames, table = read("water_md.xyz", ":"), read_table("water_md_stats.csv")
    assert [f.info["step"] for f in frames] == [0, 10, 20]
    assert list(table["step"]) == [0, 5, 10, 15, 20]
    assert_allclose(table["temperature_K"][0], 300, rtol=1e-9)
    assert_allclose(frames[0].get_angular_momentum(), 0, atol=1e-9)
    assert len(read_h5md("water_md.h5").step) == 3
    final = read("water_md_final.xyz")
    assert_allclose(final.get_velocities(), frames[-1].get_velocities(), atol=1e-8)  # 8 decimals
    # what is there is not overwritten; a finished run can be made longer
    assert main(arguments) == 2
    assert "already there" in capsys.readouterr().err
    longer = [*arguments, "--remove-rot", "--format", "both", "--plot", "--resume"]
    longer[longer.index("--steps") + 1] = "30"
    assert main(longer) == 0
    assert [f.info["step"] for f in read("water_md.xyz", ":")] == [0, 10, 20, 30]
    assert main([*longer, "--temp", "310"]) == 2
    assert "temp was 300.0, is 310.0" in capsys.readouterr().err


@pytest.mark.slow
def test_replicas_are_runs_of_their_own_and_crystals_have_pressure_and_pairs(lennard_jones):
    name = argon()
    more = ["--ensemble", "npt", "--temp", "40", "--timestep", "2", "--bulk-modulus", "3"]
    replicas = ["--replicas", "2", "--rdf", "--json", "md.json"]
    assert main(["md", name, "--model", lennard_jones, *SHORT, *more, *replicas]) == 0
    with open("md.json") as file:
        told = json.load(file)
    assert 5 < told["volume_mean_A3"] / 32 < 50 and abs(told["pressure_mean_GPa"]) < 5
    one, other = (read_table(f"argon_md_{i}_stats.csv") for i in (0, 1))
    assert one["temperature_K"][0] == pytest.approx(other["temperature_K"][0], abs=1e-9)
    assert one["energy_potential_eV"][-1] != other["energy_potential_eV"][-1]
    cells = [a.get_volume() for a in read("argon_md_0.xyz", ":")]
    assert cells[-1] != cells[0]
    assert_allclose(cells, one["volume_A3"][::2], rtol=1e-12)
    # g(r) counts neighbours: 12 within the first shell of a crystal that is close packed
    g = read_table("argon_md_rdf.csv")
    shell, width = g["r_A"] < 4.6, g["r_A"][1] - g["r_A"][0]
    density = 32 / told["volume_mean_A3"]
    n = (g["g_Ar_Ar"] * 4 * np.pi * g["r_A"] ** 2 * width * density)[shell].sum()
    assert_allclose(n, 12, rtol=0.01)


@pytest.mark.slow
def test_copies_that_exchange_have_a_table_a_temperature(springs, capsys):
    run = ["md", "water.xyz", "--model", springs, *SHORT, "--temperatures", "300, 310"]
    assert main([*run, "--exchange-every", "5", "--json", "md.json"]) == 0
    with open("md.json") as file:
        told = json.load(file)
    cold, hot = told["ladder"]
    assert (cold["target_temperature_K"], hot["target_temperature_K"]) == (300, 310)
    assert told["target_temperature_K"] is None and "temperature_mean_K" not in told
    tables = [read_table(f"water_md_{i}_stats.csv") for i in (0, 1)]
    assert [t["temperature_K"][0] for t in tables] == pytest.approx([300, 310], rel=1e-6)
    walkers = np.array([t["walker_index"] for t in tables])
    assert (np.sort(walkers, 0) == [[0], [1]]).all()
    assert cold["acceptance_to_next"] in (0, 0.5, 1)  # every other of the four attempts is theirs
    assert hot["acceptance_to_next"] is None
    assert "walkers seen at both ends" in capsys.readouterr().out
    longer = [a if a != "20" else "40" for a in run]
    assert main([*longer, "--exchange-every", "10", "--resume"]) == 2
    assert "exchange_every was 5, is 10" in capsys.readouterr().err
    assert main([*longer, "--exchange-every", "5", "--temp", "7", "--resume"]) == 0  # not used
    assert read("water_md_1.xyz", -1).info["ladder"]
    assert main(["spectra", "water_md_1.xyz"]) == 3


@pytest.mark.slow
def test_rings_of_beads_have_one_table_and_a_trajectory_each(springs, capsys):
    run = ["md", "water.xyz", "--model", springs, *SHORT, "--ensemble", "pimd", "--beads", "4"]
    assert main([*run, "--replicas", "2"]) == 2
    assert "rings of beads" in capsys.readouterr().err
    assert main([*run, "--json", "md.json"]) == 0
    with open("md.json") as file:
        told = json.load(file)
    assert told["beads"] == 4 and told["replicas"] == 1
    table, frames = (
        read_table("water_md_stats.csv"),
        [read(f"water_md_{i}.xyz", ":") for i in range(4)],
    )
    assert list(table["step"]) == [0, 5, 10, 15, 20]
    # the mean over beads; beads are apart; their velocities are those of four times 300 K
    potential = np.mean([[f.get_potential_energy() for f in bead] for bead in frames], axis=0)
    assert_allclose(table["energy_potential_eV"][::2], potential, rtol=1e-12)
    places = np.array([[f.positions for f in bead] for bead in frames])
    apart = np.sqrt(((places - places.mean(0)) ** 2).sum((0, 2, 3)) / 12)
    assert_allclose(table["gyration_A"][::2], apart, rtol=1e-9)
    hot = np.mean([[f.get_temperature() for f in bead] for bead in frames], axis=0)
    assert_allclose(table["temperature_K"][::2], hot / 4, rtol=1e-9)
    # the mean over beads, as V is: K + springs of them, 4 x 3/2 kT an atom at first, with no heat
    assert_allclose(
        table["energy_conserved_eV"][0] - table["energy_potential_eV"][0],
        4 * 9 / 2 * units.kB * 300,
        rtol=1e-9,
    )
    assert np.ptp(table["energy_conserved_eV"]) < 0.1 * np.ptp(table["energy_potential_eV"])
    assert not any(read(f"water_md_{i}_final.xyz").has("momenta") for i in range(4))
    centroid = read("water_md_centroid.xyz", ":")
    assert_allclose([f.positions for f in centroid], places.mean(0), atol=1e-12)
    moves = np.array([[f.get_momenta() for f in bead] for bead in frames]).mean(0)
    assert_allclose([f.get_momenta() for f in centroid], moves, atol=1e-8)  # 8 decimals
    assert centroid[0].info["beads"] == 4 and frames[2][1].info["bead"] == 2
    assert told["gyration_mean_A"] > 0 and told["energy_quantum_error_eV"] is None  # too short
    longer = [*run, "--resume"]
    longer[longer.index("--steps") + 1] = "30"
    assert main(longer) == 0
    assert [f.info["step"] for f in read("water_md_3.xyz", ":")] == [0, 10, 20, 30]


@pytest.mark.slow
def test_rings_without_a_bath_begin_settled_and_at_rest_as_a_whole(springs, capsys):
    run = ["md", "water.xyz", "--model", springs, *SHORT, "--ensemble", "rpmd", "--beads", "4"]
    early = [*run, "--settle", "40", "--block", "20", "--out", "stopped"]
    assert main([*early, "--hours", "0"]) == 75
    assert "after step 20 of 40" in capsys.readouterr().err
    assert files() == ["stopped", "water.xyz"]
    assert main(early) == 2
    assert "--resume to go on" in capsys.readouterr().err
    assert main([*early, "--resume"]) == 0
    assert not os.path.exists("stopped/water_md_settling_restart")
    assert main([*run, "--settle", "40", "--block", "20"]) == 0
    for name in ("water_md_centroid.xyz", "water_md_stats.csv"):
        with open(name) as whole, open(f"stopped/{name}") as resumed:
            assert whole.read() == resumed.read()
    table = read_table("water_md_stats.csv")
    assert table["gyration_A"][0] > 0.02  # beads of a start from one point are nowhere else
    beads = [read(f"water_md_{i}.xyz", ":") for i in range(4)]
    momenta = np.sum([[f.get_momenta().sum(0) for f in bead] for bead in beads], axis=0)
    assert_allclose(momenta, 0, atol=1e-6)  # 8 decimals
    assert np.ptp(table["energy_conserved_eV"]) < 0.1 * np.ptp(table["energy_potential_eV"])
    longer = [*run, "--settle", "40", "--block", "20", "--resume"]
    longer[longer.index("--steps") + 1] = "30"
    capsys.readouterr()
    assert main(longer) == 0
    assert "rings settle" not in capsys.readouterr().err


@pytest.mark.slow
def test_heat_fluxes_are_recorded_and_make_a_conductivity(lennard_jones, capsys):
    from jaxmlip.derivatives.heat_flux import heat_flux
    from jaxmlip.models import LennardJones

    name, more = argon(), ["--ensemble", "nve", "--temp", "60", "--timestep", "2", "--steps", "200"]
    run = ["md", name, "--model", lennard_jones, *more, "--heat-flux-every", "2", "--no-plot"]
    run += ["--dtype", "float64", "--traj-every", "50"]
    assert main(run) == 2
    assert "writes to H5MD" in capsys.readouterr().err
    assert main([*run, "--format", "h5md"]) == 0
    found = read_h5md("argon_md.h5")
    flux = found.observables["heat_flux"]
    assert_array_equal(flux.step, np.arange(0, 201, 2))
    atoms = read(name)
    atoms.positions = found.positions[-1]
    potential = LennardJones(**ARGON)
    system = from_ase(atoms, potential.cutoff, dtype="float64")
    velocities = found.velocities[-1] / units.fs
    exact = heat_flux(potential.apply)({}, system, velocities, atoms.get_masses())[0] * units.fs
    assert_allclose(flux.value[-1], exact, rtol=1e-8, atol=1e-12)
    capsys.readouterr()
    kind = ["--kind", "conductivity", "--upto", "40", "--blocks", "2", "--json", "c.json"]
    assert main(["spectra", "argon_md.h5", *kind]) == 0
    with open("c.json") as file:
        told = json.load(file)
    own = spectra.thermal_conductivity(
        flux.value / units.fs,
        dt=4.0,
        temperature=told["temperature_K"],
        volume=atoms.get_volume(),
        upto=40.0,
        n_blocks=2,
    )
    assert_allclose(told["thermal_conductivity_W_per_m_K"], own.value, rtol=1e-9)


@pytest.mark.slow
def test_velocities_of_the_file_are_kept(springs):
    atoms = read("water.xyz")
    velocities = np.random.default_rng(0).normal(0, 0.02, (3, 3))
    atoms.set_velocities(velocities - atoms.get_masses() @ velocities / atoms.get_masses().sum())
    write("moving.xyz", atoms)
    more = ["--ensemble", "nve", "--model", springs, *SHORT]
    assert main(["md", "moving.xyz", *more]) == 0
    first = read("moving_md.xyz", 0)
    assert_allclose(first.get_velocities(), read("moving.xyz").get_velocities(), rtol=1e-12)


def command(springs, *more):
    arguments = f"md water.xyz --model {springs} --steps 4000 --stats-every 20 --traj-every 50"
    more = [*arguments.split(), "--block", "50", "--no-plot", "--dtype", "float64", *more]
    return [sys.executable, "-m", "jaxmlip", *more]


def same(one, other):
    for name in ("water_md.xyz", "water_md_stats.csv", "water_md_final.xyz"):
        with open(f"{one}/{name}", "rb") as a, open(f"{other}/{name}", "rb") as b:
            assert a.read() == b.read(), name


def size(path):
    return os.path.getsize(path) if os.path.exists(path) else 0


@pytest.mark.slow
def test_runs_that_are_killed_or_told_to_stop_end_as_one_that_was_not(springs):
    subprocess.run(command(springs, "--out", "whole"), check=True)
    often = ["--out", "killed", "--restart-minutes", "0", "--resume", "--format", "both"]
    statuses, signals = [], iter([signal.SIGKILL, signal.SIGTERM, signal.SIGKILL, signal.SIGINT])
    rng = np.random.default_rng(int(time.time()))
    for number in signals:
        process = subprocess.Popen(command(springs, *often), stderr=subprocess.DEVNULL)
        begun = size("killed/water_md_stats.csv")
        while process.poll() is None and size("killed/water_md_stats.csv") == begun:
            time.sleep(0.01)
        time.sleep(rng.uniform(0, 0.3))
        process.send_signal(number)
        statuses.append(process.wait())
    done = subprocess.run(command(springs, *often), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert set(statuses) <= {-9, 75, 0} and -9 in statuses, statuses
    same("whole", "killed")
    found = read_h5md("killed/water_md.h5")
    assert list(found.step) == list(range(0, 4001, 50))


@pytest.mark.slow
def test_a_time_limit_saves_and_says_how_to_go_on(springs, capsys):
    arguments = command(springs, "--hours", "0")[3:]
    assert main(arguments) == 75
    assert "--resume" in capsys.readouterr().err
    assert main([*arguments[:-2], "--resume", "--steps", "200"]) == 0
    steps = [f.info["step"] for f in read("water_md.xyz", ":")]
    assert steps == [0, 50, 100, 150, 200]


def hot(speed):
    """A file with velocities far beyond what is allowed, and a run of it."""
    atoms = read("water.xyz")
    atoms.set_velocities(np.random.default_rng(0).normal(0, speed, (3, 3)))
    write("moving.xyz", atoms)
    return ["md", "moving.xyz", "--ensemble", "nve", "--block", "5", *SHORT]


@pytest.mark.slow  # the library's own is always run
def test_a_run_that_blows_up_says_where(springs, capsys):
    assert main([*hot(5.0), "--model", springs]) == 4
    told = capsys.readouterr().err
    assert "blows up before step 5" in told and "it is the first block" in told
    assert not os.path.exists("moving_md.xyz")


@pytest.mark.slow
def test_a_run_may_be_told_to_go_on_and_else_the_last_good_structure_is_kept(springs, capsys):
    arguments = [*hot(1.5), "--model", springs]
    assert main([*arguments, "--allow-unstable"]) == 0
    longer = [*arguments, "--resume", "--steps", "40"]
    assert main(longer) == 4
    told = " ".join(capsys.readouterr().err.split())
    assert "the last good state, of step 20" in told and "moving_md_last_good.xyz" in told
    good, final = read("moving_md_last_good.xyz"), read("moving_md_final.xyz")
    assert_allclose(good.positions, final.positions, atol=1e-12)
    assert main([*longer, "--allow-unstable"]) == 0
    assert [f.info["step"] for f in read("moving_md.xyz", ":")] == [0, 10, 20, 30, 40]


@pytest.mark.slow
def test_resuming_never_replaces_a_run_that_it_does_not_go_on_from(springs, capsys):
    arguments = ["md", "water.xyz", "--model", springs, *SHORT]
    assert main(arguments) == 0
    shutil.rmtree("water_md_restart")
    assert main([*arguments, "--resume"]) == 2
    assert "without a restart point" in capsys.readouterr().err
    assert len(read("water_md.xyz", ":")) == 3
