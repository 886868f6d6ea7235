"""The command line: every mistake has its exit status and its message, and leaves no file behind.

In process, which is what a subprocess runs too, but without the seconds of an import.
"""

import json
import os
import subprocess
import sys

import jax
import numpy as np
import pytest
from ase.build import molecule
from ase.io import read
from structures import KEY, SPRINGS, card

import jaxmlip
from jaxmlip.cli import session
from jaxmlip.cli.demo import ETHANOL
from jaxmlip.cli.main import main
from jaxmlip.models import MACE, checkpoint

pytestmark = pytest.mark.usefixtures("folder")

WATER = "3\nwater\nO 0.0 0.0 0.119\nH 0.0 0.763 -0.477\nH 0.0 -0.763 -0.477\n"
TINY = {
    "elements": [1, 8],
    "cutoff": 3.0,
    "channels": 4,
    "hidden_l": 0,
    "l_max": 1,
    "correlation": 1,
    "n_layers": 1,
    "n_radial": 3,
    "radial_widths": [4],
    "dipole": True,
}


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """Random weights with a dipole: every quantity is there, none is true."""
    path = tmp_path_factory.mktemp("models") / "tiny.safetensors"
    system = jaxmlip.from_ase(molecule("H2O"), TINY["cutoff"], dtype="float32")
    fields = {k: tuple(v) if isinstance(v, list) else v for k, v in TINY.items()}
    shapes, random = jax.eval_shape(MACE(**fields).init, KEY, system), np.random.default_rng(0)
    params = jax.tree.map(lambda x: random.normal(size=x.shape).astype("float32"), shapes)
    checkpoint.save(path, card("MACE", TINY), params)
    return str(path)


@pytest.fixture(scope="module")
def springs(tmp_path_factory):
    """Morse curves between O and H: a molecule with a minimum, at no cost."""
    path = tmp_path_factory.mktemp("models") / "springs.safetensors"
    fields = SPRINGS | {k: tuple(map(tuple, v)) for k, v in SPRINGS.items() if k in ("depth", "r0")}
    checkpoint.save(path, card("Morse", fields), {"params": {}})
    return str(path)


@pytest.fixture
def water():
    with open("water.xyz", "w") as file:
        file.write(WATER)
    return "water.xyz"


def files():
    return sorted(os.listdir("."))


# --- mistakes ------------------------------------------------------------------------------------

BAD = {
    "element that is none": (WATER.replace("O ", "Qq "), 3, "JM201"),
    "element outside the model": (WATER.replace("O ", "Si "), 6, "structure has Si (atom 0)"),
    "NaN coordinate": (WATER.replace("0.119", "nan"), 3, "not finite"),
    "truncated file": (WATER.rsplit("H", 1)[0], 3, "expected 3 atoms, found 2"),
    "word for a number": (WATER.replace("0.763", "o.763", 1), 3, "is not a number"),
    "flat cell": (WATER.replace("water", 'Lattice="0 0 0 0 0 0 0 0 0" pbc="T T T"'), 3, "JM210"),
    "coincident atoms": (WATER.replace("-0.763", "0.763"), 3, "0.000 Å apart"),
    "empty file": ("", 3, "empty"),
    "no structure": ("hello\n", 3, "expected the number of atoms"),
    "charge that is none": (WATER.replace("water", "charge=much"), 3, "JM213"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_structure_is_refused_with_its_place_and_leaves_nothing(name, springs, capsys):
    text, status, message = BAD[name]
    with open("bad.xyz", "w") as file:
        file.write(text)
    assert (
        main(["singlepoint", "bad.xyz", "--model", springs, "--extxyz", "--json", "o.json"])
        == status
    )
    out, err = capsys.readouterr()
    assert out == "" and "error: JM" in err and "bad.xyz" in err and message in err
    assert files() == ["bad.xyz"]


USAGE = {
    "unknown command": (["irr", "H2O"], 2, "No such command"),
    "unknown option": (["ir", "H2O", "--modle", "x"], 2, "--modle"),
    "no file given": (["ir"], 2, "FILE"),
    "no such structure": (["modes", "ethanoll", "--model", "MODEL"], 3, "Did you mean 'ethanol'?"),
    "unknown model": (["ir", "H2O", "--model", "orgnic"], 6, "unknown model 'orgnic'"),
    "model that is a text": (["ir", "water.xyz", "--model", "water.xyz"], 6, "safetensors"),
    "unknown dtype": (["ir", "H2O", "--dtype", "float16"], 2, "float16"),
    "width of zero": (["ir", "H2O", "--width", "0", "--model", "MODEL"], 2, "--width"),
    "no dipole": (["ir", "H2O", "--model", "MODEL"], 6, "predicts no dipole"),
    "cold": (["modes", "H2O", "--temperature", "-5", "--model", "MODEL"], 2, "--temperature"),
    "file that is there": (["singlepoint", "H2O", "--json", "water.xyz"], 2, "--overwrite"),
    "output in a file": (["relax", "H2O", "--out", "water.xyz/x"], 5, "cannot write here"),
    "no such frame": (["relax", "water.xyz", "--frame", "3", "--model", "MODEL"], 3, "frame 3"),
    "no configuration": (["train", "none.yaml"], 2, "none.yaml"),
    "no labels": (["evaluate", "MODEL", "water.xyz"], 3, "JM220"),
    "key that is none": (["evaluate", "MODEL", "water.xyz", "--key", "energy"], 2, "--key"),
    "unit that is none": (["evaluate", "MODEL", "water.xyz", "--unit", "dipole=a.u."], 2, "'a.u.'"),
    "card of no model": (["models", "show", "none.safetensors"], 6, "no such model file"),
}


@pytest.mark.parametrize("name", USAGE)
def test_a_wrong_command_line_is_refused_before_anything_is_written(name, springs, water, capsys):
    arguments, status, message = USAGE[name]
    assert main([springs if a == "MODEL" else a for a in arguments]) == status
    out, err = capsys.readouterr()
    assert out == "" and "error: " in err and message in err
    assert files() == ["water.xyz"] and open("water.xyz").read() == WATER


def test_a_mistyped_key_of_a_training_run_is_named_with_its_line(water, capsys):
    with open("run.yaml", "w") as file:
        file.write("data: {train: water.xyz}\nmodel: {fields: {cutoff: 4.0}}\nepoch: 3\n")
    assert main(["train", "run.yaml"]) == 2
    err = capsys.readouterr().err
    assert "run.yaml:3" in err and "Did you mean 'epochs'?" in err
    assert main(["train", "run.yaml", "--set", "epochs"]) == 2
    assert "KEY=VALUE" in capsys.readouterr().err


def test_an_interrupted_training_run_leaves_75_and_the_command_that_resumes(
    water, capsys, monkeypatch
):
    from jaxmlip.errors import Interrupted
    from jaxmlip.train import loop

    def stopped(*args, **kwargs):
        raise Interrupted("stopped by a signal", where="runs")

    monkeypatch.setattr(loop, "train", stopped)
    monkeypatch.setattr(sys, "argv", ["jaxmlip", "train", "run.yaml", "--fresh"])
    with open("run.yaml", "w") as file:
        file.write("data: {train: water.xyz}\nmodel: {fields: {cutoff: 4.0}}\n")
    assert main(["train", "run.yaml", "--fresh"]) == 75
    assert "resume with: jaxmlip train run.yaml\n" in capsys.readouterr().err


def test_ctrl_c_is_130_and_a_bug_is_1_with_its_traceback_on_demand(monkeypatch, capsys, springs):
    def raising(error):
        def start(**kwargs):
            raise error

        monkeypatch.setattr(session, "start", start)

    raising(KeyboardInterrupt())
    assert main(["singlepoint", "H2O", "--model", springs]) == 130
    raising(TypeError("a bug"))
    assert main(["singlepoint", "H2O", "--model", springs]) == 1
    err = capsys.readouterr().err
    assert "unexpected TypeError: a bug" in err and "report" in err and "Traceback" not in err
    main(["singlepoint", "H2O", "--model", springs, "--debug"])
    assert "Traceback" in capsys.readouterr().err
    raising(MemoryError())
    assert main(["singlepoint", "H2O", "--model", springs]) == 5


def test_a_write_that_fails_half_way_leaves_nothing(tmp_path):
    from jaxmlip.cli.output import write
    from jaxmlip.errors import ResourceError

    def half(partial):
        partial.write_text("half")
        raise OSError(28, "No space left on device")

    with pytest.raises(ResourceError, match="No space left"):
        write(tmp_path / "whole.txt", half)
    assert not [p for p in tmp_path.iterdir() if p.is_file()]


# --- what works ----------------------------------------------------------------------------------


def run_json(arguments, capsys):
    assert main([*arguments, "--json", "-"]) == 0
    return json.loads(capsys.readouterr().out)


def test_ir_of_water_from_structure_to_files(water, tiny, capsys):
    assert main(["ir", water, "--model", tiny, "--no-relax", "--csv", "--out", "results"]) == 0
    out, err = capsys.readouterr()
    assert "cm⁻¹" in out and "km/mol" in out and "warning" in err
    assert sorted(os.listdir("results")) == [
        "water_ir.csv",
        "water_ir.json",
        "water_ir.png",
        "water_relaxed.xyz",
    ]
    found = json.load(open("results/water_ir.json"))
    for key in (
        "frequencies_cm1",
        "intensities_km_mol",
        "energy_eV",
        "fmax_eV_per_A",
        "positions_A",
        "numbers",
        "dipole_eA",
        "zpe_eV",
        "model",
        "model_sha256",
        "jaxmlip_version",
        "jax_version",
        "warnings",
        "files",
    ):
        assert key in found, key
    assert len(found["frequencies_cm1"]) == len(found["intensities_km_mol"]) == 3
    assert found["model_sha256"] == checkpoint.read(tiny)[0]["sha256"]
    assert np.isclose(read("results/water_relaxed.xyz").get_potential_energy(), found["energy_eV"])
    assert open("results/water_ir.png", "rb").read(4) == b"\x89PNG"
    assert main(["ir", water, "--model", tiny, "--no-relax", "--out", "results"]) == 2
    assert "already there" in capsys.readouterr().err


def test_relaxation_reaches_the_distance_of_the_springs(water, springs, capsys):
    found = run_json(["relax", water, "--model", springs, "--fmax", "1e-5"], capsys)
    r = np.array(found["positions_A"])
    assert found["converged"] and found["fmax_eV_per_A"] <= 1e-5
    np.testing.assert_allclose(np.linalg.norm(r[1:] - r[0], axis=1), 0.97, atol=1e-4)
    np.testing.assert_allclose(read("water_relaxed.xyz").positions, r, atol=1e-7)


def test_a_relaxation_that_does_not_converge_is_4_and_keeps_its_best(water, springs, capsys):
    assert main(["relax", water, "--model", springs, "--steps", "2"]) == 4
    assert "JM304" in capsys.readouterr().err and "water_relaxed.xyz" in files()


def test_modes_give_thermochemistry_and_a_movie(water, springs, capsys):
    found = run_json(
        ["modes", water, "--model", springs, "--symmetry-number", "2", "--animate", "1"], capsys
    )
    assert found["n_imaginary"] == 0 and len(found["frequencies_cm1"]) == 3
    assert found["enthalpy_eV"] - found["internal_energy_eV"] == pytest.approx(
        298.15 * jaxmlip.units.kB
    )
    frames = read("water_mode1.xyz", ":")
    assert len(frames) == 20 and frames[0].info["frequency_cm1"] == found["frequencies_cm1"][1]


def test_singlepoint_of_many_frames_agrees_with_one(water, springs, capsys):
    one = run_json(["singlepoint", water, "--model", springs], capsys)
    with open("two.xyz", "w") as file:
        file.write(2 * WATER)
    two = run_json(["singlepoint", "two.xyz", "--model", springs, "--extxyz"], capsys)
    assert two["n_frames"] == 2 and two["energy_eV"] == [one["energy_eV"]] * 2
    np.testing.assert_allclose(
        read("two_singlepoint.xyz").get_forces(), one["forces_eV_per_A"], atol=1e-7
    )


def test_stress_is_given_for_a_crystal(springs, capsys):
    with open("box.xyz", "w") as file:
        file.write(WATER.replace("water", 'Lattice="4 0 0 0 4 0 0 0 4" pbc="T T T"'))
    assert (
        len(
            run_json(["singlepoint", "box.xyz", "--model", springs], capsys)[
                "stress_voigt_eV_per_A3"
            ]
        )
        == 6
    )


def test_evaluate_of_the_model_on_itself_is_exact(water, springs, capsys):
    assert main(["singlepoint", water, "--model", springs, "--extxyz"]) == 0
    capsys.readouterr()
    command = ["evaluate", springs, "water_singlepoint.xyz", "--dtype", "float64"]
    command += ["--key", "energy=energy", "--key", "forces=forces"]
    found = run_json(command, capsys)
    assert found["forces_mae_meV_per_A"] < 1e-4 and found["energy_mae_meV_per_atom"] < 1e-4


def test_evaluate_reads_labels_in_the_unit_that_it_is_told(springs, capsys):
    text = WATER.replace("water", "REF_energy=2.0")
    with open("hartree.xyz", "w") as one, open("ev.xyz", "w") as other:
        one.write(text)
        other.write(text.replace("2.0", str(2 * jaxmlip.units.hartree)))
    command = ["evaluate", springs, "--dtype", "float64", "--label", "energy"]
    expected = run_json([*command, "ev.xyz"], capsys)["energy_mae_meV_per_atom"]
    found = run_json([*command, "hartree.xyz", "--unit", "energy=Ha"], capsys)
    assert found["energy_mae_meV_per_atom"] == pytest.approx(expected, rel=1e-9)


def test_models_are_listed_and_shown(springs, capsys):
    assert main(["models", "list"]) == 0
    capsys.readouterr()
    shown = run_json(["models", "show", springs], capsys)
    assert shown["card"]["architecture"] == "Morse" and shown["cutoff_A"] == 4.0
    assert main(["models", "show", springs]) == 0
    assert "sha256" in capsys.readouterr().out


def test_one_damaged_model_does_not_hide_the_others(springs, tmp_path, capsys):
    from jaxmlip.pretrained.pull import cache_folder

    cache_folder().mkdir(parents=True)
    (cache_folder() / "bad.safetensors").write_bytes(b"cut")
    (cache_folder() / "good.safetensors").write_bytes(open(springs, "rb").read())
    found = run_json(["models", "list"], capsys)
    assert found["damaged"] == ["bad"] and found["pulled"] == ["good"]
    assert len(found["models"]) == len(found["model_sha256"])
    assert any("bad" in warning for warning in found["warnings"])


def test_a_charge_that_the_model_cannot_see_is_warned_of(springs, capsys):
    with open("ion.xyz", "w") as file:
        file.write(WATER.replace("water", "charge=1"))
    found = run_json(["singlepoint", "ion.xyz", "--model", springs], capsys)
    assert any("does not depend on charge" in warning for warning in found["warnings"])


def test_the_doctor_finds_nothing_wrong(springs, capsys):
    found = run_json(["doctor", "--model", springs], capsys)
    assert found["ok"] and not found["failed"]
    checks = {c["name"]: c["value"] for c in found["checks"]}
    assert {"versions", "float64", "forces against differences", "cold start, forces"} <= set(
        checks
    )
    assert checks["kernels"].startswith("plain XLA")
    empty, filled = found["cold_start"], found["cold_start_with_cache"]
    assert set(empty) == set(filled) and min(empty.values()) >= 0
    assert empty["forces_first_s"] > empty["forces_compile_s"] > 0  # a part of it, stall or not
    assert not any("hessian" in key for key in empty)  # only with --full


def test_the_doctor_says_why_a_fresh_process_could_not_be_timed(springs, monkeypatch, capsys):
    from jaxmlip.cli import cold_start

    monkeypatch.setattr(cold_start, "CODE", "raise SystemExit('no room')")
    found = run_json(["doctor", "--model", springs], capsys)
    checks = {c["name"]: c for c in found["checks"]}
    assert found["ok"] and checks["cold start"]["verdict"] == "WARN"
    assert checks["cold start"]["value"] == "no room"


def test_a_fresh_process_that_is_late_silent_or_in_a_strange_folder_is_told(springs, monkeypatch):
    from jaxmlip.cli import cold_start, doctor

    def told(code, limit=60):
        monkeypatch.setattr(cold_start, "CODE", code)
        monkeypatch.setattr(cold_start, "LIMIT", limit)
        ((finding,), seconds) = doctor._cold_start(springs, False)
        assert finding.verdict == "WARN" and not seconds
        return finding.value

    late = "import sys, time; print('noise', file=sys.stderr, flush=True); time.sleep(60)"
    assert told(late, 0.5) == "a fresh process took more than 0.5 s"
    assert "index" in told("pass")  # prints nothing
    open("strange.py", "w").close()
    assert "strange" in told("import strange")  # no module of that name: the folder is not searched


def test_the_doctor_refuses_the_jax_that_miscompiles(monkeypatch, capsys):
    monkeypatch.setattr(session, "MISCOMPILES", (jax.__version__,))
    assert main(["doctor"]) == 1
    assert "gives wrong numbers" in capsys.readouterr().out
    assert main(["singlepoint", "H2O"]) == 5


def test_the_module_runs_and_help_needs_neither_jax_nor_ase():
    code = (
        "import sys; from jaxmlip.cli.main import main; main(['ir', '--help']); "
        "assert not {'jax', 'ase', 'matplotlib', 'flax'} & set(sys.modules)"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "cm⁻¹" in out.stdout
    out = subprocess.run(
        [sys.executable, "-m", "jaxmlip", "--version"], capture_output=True, text=True, check=True
    )
    assert out.stdout == f"jaxmlip {jaxmlip.__version__}\n"


def test_the_example_is_the_molecule_of_the_demo():
    path = os.path.join(os.path.dirname(__file__), "..", "examples", "ethanol.xyz")
    assert open(path).read() == ETHANOL
