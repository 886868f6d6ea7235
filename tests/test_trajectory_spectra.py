"""`jaxmlip spectra`: what it reads, what it computes from it, and what it refuses."""

import json

import numpy as np
import pytest
from ase import Atoms
from ase.io import write
from numpy.testing import assert_allclose

from jaxmlip import units
from jaxmlip.cli.main import main
from jaxmlip.cli.series.source import freedom
from jaxmlip.md.files import Scene, append_h5md
from jaxmlip.vibrations.spectra.density import LIGHT

MASSES = np.array([15.999, 1.008, 1.008])
PLACES = np.array([[0.0, 0, 0], [0.76, 0.59, 0], [-0.76, 0.59, 0]])
BANDS = {1600.0: [[0, 0], [0.2, 1], [-0.2, 1]], 3700.0: [[0, 0], [1, 0.4], [-0.3, 0.6]]}  # of H
TEMPERATURE = 300.0


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def swings(n_frames, dt=1.0, bands=BANDS):
    """(positions, velocities, dipoles) of two bands, each with kT, charges of 0.4 e on hydrogen."""
    t = dt * np.arange(n_frames)
    r, v = np.tile(PLACES, (n_frames, 1, 1)), np.zeros((n_frames, 3, 3))
    for nu, move in bands.items():
        move = np.pad(np.array(move, float), [(0, 0), (0, 1)])
        move[0] = -1.008 / 15.999 * move[1:].sum(0)
        omega = 2 * np.pi * LIGHT * nu / units.fs
        move *= np.sqrt(2 * units.kB * TEMPERATURE / (MASSES[:, None] * move**2).sum()) / omega
        angle = (omega * units.fs * t)[:, None, None]
        r, v = r + np.cos(angle) * move, v - omega * np.sin(angle) * move
    return r, v, np.einsum("i,tia->ta", [-0.8, 0.4, 0.4], r)


def written(n_frames, name="water.xyz"):
    r, v, dipoles = swings(n_frames)
    frames = []
    for i in range(n_frames):
        atoms = Atoms("OH2", r[i], info={"time_fs": float(i), "dipole": dipoles[i]})
        atoms.set_velocities(v[i])
        frames.append(atoms)
    write(name, frames)
    return frames


def result(name):
    with open(name) as file:
        return json.load(file)


def band(found, kind, key, nu):
    x, y = np.array(found[f"{kind}_frequencies_cm1"]), np.array(found[key])
    near = np.abs(x - nu) < 150
    return np.trapezoid(y[near], x[near])


def test_a_molecule_from_extended_xyz(capsys):
    written(n_frames=900)
    assert main(["spectra", "water.xyz", "--width", "60", "--csv"]) == 0
    found = result("water_spectra.json")
    assert_allclose(found["temperature_K"], 2 / 6 * TEMPERATURE, rtol=0.02)  # 2 of 6 modes move
    assert found["degrees_of_freedom"] == 6 and found["ir_route"] == "dipole"
    assert_allclose(found["vdos_integral"], 6, rtol=1e-3)
    for nu, move in BANDS.items():
        assert_allclose(band(found, "vdos", "vdos_per_cm1", nu), 3, rtol=0.02)
        # |d mu/dQ|² / 2 is the mean square of the current over kT, which the file's T is not
        move = np.pad(np.array(move, float), [(0, 0), (0, 1)])
        move[0] = -1.008 / 15.999 * move[1:].sum(0)
        slope = np.array([-0.8, 0.4, 0.4]) @ move / np.sqrt((MASSES[:, None] * move**2).sum())
        share = TEMPERATURE / found["temperature_K"]
        expected = units.infrared_intensity * (slope**2).sum() * share
        assert_allclose(band(found, "ir", "ir_km_mol_per_cm1", nu), expected, rtol=0.02, atol=1e-3)
    told = capsys.readouterr().out
    assert any(f"{nu}." in told for nu in range(1590, 1611))
    with open("water_spectra.csv") as file:
        assert file.readline().startswith("ir_frequency_cm1,ir_km_mol_per_cm1")
    with open("water_spectra.png", "rb") as file:
        assert file.read(4) == b"\x89PNG"
    assert main(["spectra", "water.xyz"]) == 2  # results are there


def test_a_molecule_that_does_not_turn_has_fewer_degrees_of_freedom():
    r, v, _ = swings(50)
    assert freedom(v, MASSES, r) == 6  # one of the bands has angular momentum
    r, v, _ = swings(50, bands={1600.0: BANDS[1600.0]})  # a bend that keeps the mirror plane
    assert freedom(v, MASSES, r) == 3
    assert freedom(v, MASSES) == 6  # in a crystal there is no rotation
    assert freedom(v + 1.0, MASSES, r) == 9
    line = np.tile(np.outer([-1.0, 0, 1], [1, 0, 0]), (50, 1, 1))
    stretch = np.tile(np.outer([1.0, -2, 1], [1, 0, 0]), (50, 1, 1))
    assert freedom(stretch, np.ones(3), line) == 4  # 3 n - 5


def box(n_frames=4000, dt=2.0, seed=0, step=0.05):
    """A liquid of three atoms that walk at random, with a stress that forgets in 20 fs."""
    rng = np.random.default_rng(seed)
    r = np.cumsum(step * rng.normal(size=(n_frames, 30, 3)), 0)
    s = np.zeros((n_frames, 3, 3))
    for i in range(1, n_frames):
        s[i] = 0.9 * s[i - 1] + 1e-3 * rng.normal(size=(3, 3))
    scene = Scene(
        numbers=np.full(30, 18),
        symbols=("Ar",) * 30,
        masses=np.full(30, 39.948),
        pbc=np.ones(3, bool),
        dt=dt,
    )
    steps = np.arange(n_frames)
    cells = np.tile(12.0 * np.eye(3), (n_frames, 1, 1))
    frames = {"step": steps, "positions": r, "velocities": rng.normal(size=r.shape), "cell": cells}
    current = np.cos(2 * np.pi * LIGHT * 500 * dt * steps)[:, None] * [0.01, 0, 0]
    table = {"step": steps, "temperature": np.full(n_frames, 90.0), "stress": s, "current": current}
    append_h5md("box.h5", scene, frames, (table,))
    return r, current


def test_a_liquid_from_h5md():
    pytest.importorskip("h5py", reason="H5MD needs h5py")
    r, current = box()
    kinds = [x for kind in ("ir", "diffusion", "viscosity") for x in ("--kind", kind)]
    limits = ["--between", "10 200", "--upto", "300", "--width", "40"]
    assert main(["spectra", "box.h5", *kinds, *limits]) == 0
    found = result("box_spectra.json")
    assert found["temperature_K"] == 90 and found["ir_route"] == "current"
    # n alpha of <J²>: in cm²/mol over N_A V, e Å/fs in internal units
    power = (current**2).sum(1).mean() / units.fs**2
    molar = units.infrared_intensity / (units.kB * 90) * power * 1e5
    expected = molar / (6.022140857e23 * 1728e-24)
    assert_allclose(band(found, "ir", "ir_absorption_coefficient_per_cm", 500), expected, rtol=0.01)
    exact = 0.05**2 / 2 / 2.0 * 0.1 * (1 - 1 / 30)  # without the drift of all; cm²/s
    value, error = found["diffusion_cm2_per_s_Ar"], found["diffusion_cm2_per_s_Ar_error"]
    assert abs(value - exact) < 4 * error and error < 0.2 * exact
    assert found["viscosity_mPa_s"] > 3 * found["viscosity_mPa_s_error"] > 0
    assert found["diffusion_infinite_cell_cm2_per_s_Ar"] > value


def test_frames_far_apart_of_our_own_files_are_not_folded_into_the_cell():
    # steps of 6 Å from frame to frame in a cell of 12: whoever unwraps them finds less
    pytest.importorskip("h5py", reason="H5MD needs h5py")
    box(n_frames=400, step=6.0)
    assert main(["spectra", "box.h5", "--kind", "diffusion", "--between", "2 40"]) == 0
    found = result("box_spectra.json")
    exact = 6.0**2 / 2 / 2.0 * 0.1 * (1 - 1 / 30)
    value, error = found["diffusion_cm2_per_s_Ar"], found["diffusion_cm2_per_s_Ar_error"]
    assert abs(value - exact) < 4 * error and error < 0.1 * exact


def refused(capsys, *arguments, code, says):
    assert main(["spectra", *arguments, "--overwrite"]) == code
    assert says in capsys.readouterr().err


def test_what_a_file_cannot_tell_is_refused(capsys):
    frames = written(n_frames=200)
    refused(capsys, "water.xyz", "--width", "2", code=3, says="a width above")
    refused(capsys, "water.xyz", "--kind", "raman", code=3, says="no polarizabilities")
    refused(capsys, "water.xyz", "--kind", "viscosity", "-k", "vdos", code=3, says="no stresses")
    refused(capsys, "water.xyz", "--skip", "250", code=3, says="skip less")
    refused(capsys, "water.xyz", "--width", "-1", code=2, says="above zero")
    refused(capsys, "water.xyz", "--between", "5", "-k", "diffusion", code=2, says="two numbers")
    refused(capsys, "water.xyz", "-k", "diffusion", code=3, says="longer than a block")
    refused(capsys, "none.h5", code=3, says="no such file")
    write("sparse.xyz", frames[::20])
    refused(capsys, "sparse.xyz", code=3, says="--highest")
    write("uneven.xyz", [*frames[:20], *frames[30:]])
    refused(capsys, "uneven.xyz", code=3, says="frame 19 is at 19 fs, the next at 30 fs")
    write("other.xyz", [*frames[:2], Atoms("OH", PLACES[:2])])
    refused(capsys, "other.xyz", code=3, says="frame 2 has other atoms")
    write("bare.xyz", [Atoms("OH2", PLACES)] * 5)
    refused(capsys, "bare.xyz", code=3, says="neither velocities")
    for atoms in frames:
        atoms.info.pop("time_fs")
    write("timeless.xyz", frames)
    refused(capsys, "timeless.xyz", code=3, says="--timestep")
    assert main(["spectra", "timeless.xyz", "--timestep", "1", "--width", "300"]) == 0


@pytest.mark.slow
def test_a_model_says_what_the_trajectory_lacks():
    # 'water' on frames with velocities: open, the dipole of the model; in a box, its current
    r, v, _ = swings(1500)
    spectra = []
    for name, cell in (("open.xyz", None), ("boxed.xyz", [12.0] * 3)):
        frames = []
        for i in range(len(r)):
            atoms = Atoms("OH2", r[i], cell=cell, pbc=cell is not None, info={"time_fs": float(i)})
            atoms.set_velocities(v[i])
            frames.append(atoms)
        write(name, frames)
        options = ["--model", "water", "--kind", "ir", "--width", "60", "--json", "out.json"]
        assert main(["spectra", name, *options, "--overwrite"]) == 0
        spectra.append(result("out.json"))
    assert [s["ir_route"] for s in spectra] == ["dipole", "current"]
    # charges of 'organic' are brought to their sum by a shift of all: no crystal has that dipole
    assert main(["spectra", "boxed.xyz", "--model", "organic", "--kind", "ir", "--overwrite"]) == 3
    for nu in BANDS:
        molar = band(spectra[0], "ir", "ir_km_mol_per_cm1", nu)
        dense = band(spectra[1], "ir", "ir_absorption_coefficient_per_cm", nu)
        assert_allclose(dense, molar * 1e5 / (6.022140857e23 * 1728e-24), rtol=0.01)
