"""`jaxmlip ir` and `raman` of crystals and molecules, and spectra laid over them."""

import json
import os

import jax
import numpy as np
import pytest
from ase.build import bulk
from ase.io import write
from numpy.testing import assert_allclose

import jaxmlip
from jaxmlip import pretrained
from jaxmlip.cli.compare import read_curve, scaled
from jaxmlip.cli.main import main
from jaxmlip.errors import DataError, UsageError
from jaxmlip.models import MACE, LongRangeMACE, checkpoint

POLAR = {
    "elements": [11, 17],
    "cutoff": 3.2,
    "channels": 2,
    "hidden_l": 2,
    "l_max": 2,
    "correlation": 1,
    "n_layers": 1,
    "n_radial": 3,
    "radial_widths": [4],
    "dipole": True,
    "charges": False,
    "polarizability": True,
}


def salt(a=5.6):
    return bulk("NaCl", "rocksalt", a=a)


@pytest.fixture(scope="module")
def polar(tmp_path_factory):
    """Random weights with dipoles and polarisabilities of atoms: everything is there, none true."""
    path = tmp_path_factory.mktemp("models") / "polar.safetensors"
    system = jaxmlip.from_ase(salt(), POLAR["cutoff"], dtype="float32")
    model = MACE(**{k: tuple(v) if isinstance(v, list) else v for k, v in POLAR.items()})
    shapes, random = jax.eval_shape(model.init, jax.random.key(0), system), np.random.default_rng(3)
    small = lambda path: 0.05 if "isotropic" in jax.tree_util.keystr(path) else 1.0  # eps > 0
    weights = lambda path, x: (small(path) * random.normal(size=x.shape)).astype("float32")
    params = jax.tree_util.tree_map_with_path(weights, shapes)
    card = {"architecture": "MACE", "fields": POLAR, "level_of_theory": "none", "name": "polar"}
    checkpoint.save(path, card, params)
    return str(path)


def result(name):
    with open(name) as file:
        return json.load(file)


# --- spectra of others ---------------------------------------------------------------------------


def test_a_table_is_read_with_its_heading_and_any_mark_between_columns(tmp_path):
    for text in (
        "# measured\nwavenumber,absorbance\n1000,0.5\n400,1.5\n",
        "﻿cm-1;I\n400;1.5\n1000;0.5\n",
        "400\t1.5\n1000\t0.5\textra\n",
        "\n400 1.5\n\n1000   0.5 7\n",
    ):
        path = tmp_path / "table.csv"
        path.write_text(text, encoding="utf-8")
        x, y = read_curve(path)
        assert x.tolist() == [400, 1000] and y.tolist() == [1.5, 0.5]


BAD = {
    "word in a row": ("400,1\n500,much\n", ":2"),
    "nothing but words": ("a\nb\nc\nd\ne\n", ":4"),
    "one point": ("400,1\n", "1 points"),
    "no number": ("400,nan\n500,1\n600,1\n", "2"),
    "nothing above zero": ("400,0\n500,-1\n", "above zero"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_table_that_is_no_spectrum_is_refused_with_its_line(name, tmp_path):
    text, message = BAD[name]
    path = tmp_path / "bad.csv"
    path.write_text(text)
    if name == "no number":  # passes for a heading, and is not read as one
        assert len(read_curve(path)[0]) == 2
        return
    with pytest.raises(DataError, match="JM225") as error:
        read_curve(path)
    assert message in str(error.value)


def test_a_spectrum_is_scaled_to_ours_where_both_are(tmp_path):
    x = np.arange(0, 2000.0)
    ours = np.exp(-(((x - 800) / 50) ** 2))
    other = np.array([300.0, 800.0, 5000.0]), np.array([1.0, 4.0, 100.0])
    assert_allclose(scaled(other, x, ours), np.array([0.25, 1, 25]))
    with pytest.raises(DataError, match="cm⁻¹"):
        scaled((np.array([1e4, 2e4]), np.ones(2)), x, ours)
    with pytest.raises(UsageError, match="no file"):
        read_curve(tmp_path / "none.csv")


# --- commands ------------------------------------------------------------------------------------


@pytest.mark.skipif("organic" not in pretrained.names(), reason="no packaged model 'organic'")
def test_raman_of_a_model_without_polarisability_is_refused_with_those_that_can(folder, capsys):  # noqa: F811
    assert main(["raman", "H2O", "--model", "organic"]) == 6
    err = capsys.readouterr().err
    assert "JM508" in err and "polarizability" in err and "--model" in err
    assert not os.listdir(".")


MISTAKES = {
    "no such table": (["ir", "salt.xyz", "--compare", "no.csv"], 2, "--compare"),
    "width": (["raman", "salt.xyz", "--width", "-1"], 2, "--width"),
    "cold": (["raman", "salt.xyz", "--temperature", "-5"], 2, "--temperature"),
    "direction": (["ir", "salt.xyz", "--direction", "0 0"], 2, "--direction"),
    "charged cell": (["ir", "ion.xyz"], 3, "infrared"),
    "slab": (["ir", "slab.xyz"], 3, "JM214"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_told_before_anything_is_computed(name, folder, polar, capsys):  # noqa: F811
    atoms = salt()
    write("salt.xyz", atoms)
    atoms.info["charge"] = 1.0
    write("ion.xyz", atoms)
    atoms = salt()
    atoms.pbc = [True, True, False]
    write("slab.xyz", atoms)
    before = sorted(os.listdir("."))
    arguments, status, message = MISTAKES[name]
    assert main([*arguments, "--model", polar]) == status
    assert message in capsys.readouterr().err
    assert sorted(os.listdir(".")) == before


def test_ir_of_a_crystal_from_structure_to_files(folder, polar, capsys):  # noqa: F811
    write("salt.xyz", salt())
    (folder / "measured.csv").write_text("cm-1,absorption\n10,0.1\n50,1\n90,0.3\n")
    options = ["--no-relax", "--csv", "--compare", "measured.csv", "--direction", "1 1 1"]
    assert main(["ir", "salt.xyz", "--model", polar, *options]) == 0
    assert "transverse" in capsys.readouterr().out
    found = result("salt_ir.json")
    keys = ("frequencies_cm1", "intensities_km_mol", "lo_frequencies_cm1", "epsilon_infinity")
    assert all(found[k] is not None for k in keys)
    to, lo = np.array(found["frequencies_cm1"]), np.array(found["lo_frequencies_cm1"][0])
    charges, eps = np.array(found["born_charges_e"]), np.array(found["epsilon_infinity"])
    assert np.abs(charges.sum(0)).max() < 1e-8 and found["born_charge_sum_error_e"] < 1e-8
    # cubic: one number each, and one mode that splits by the plasma frequency of the two ions
    z, masses = charges[0, 0, 0], np.array(found["masses_amu"])
    assert_allclose(charges[0], z * np.eye(3), atol=1e-10)
    assert_allclose(eps, eps[0, 0] * np.eye(3), atol=1e-10)
    assert_allclose(to, to[0], rtol=1e-8)
    units = jaxmlip.units
    plasma = 4 * np.pi * units.coulomb_constant * z**2 * (1 / masses).sum() / found["volume_A3"]
    squared = lambda f: np.sign(f) * (f * units.invcm / units.hbar) ** 2
    split = np.sort(squared(lo))[-1] - squared(to[0])
    assert_allclose(split, plasma / eps[0, 0], rtol=1e-6)
    assert_allclose(found["intensities_km_mol"], 974.88 * z**2 * (1 / masses).sum(), rtol=1e-4)
    assert open("salt_ir.png", "rb").read(4) == b"\x89PNG"
    table = np.genfromtxt("salt_ir.csv", delimiter=",", names=True)
    assert "epsilon_imaginary_0" in table.dtype.names and len(table) > 100


def ions(folder, architecture=MACE, **card):
    """The path of ions on springs of random weights, with the long-range terms of a card."""
    fields = POLAR | {"polarizability": False, "atomic_dipoles": False, "charges": True}
    fields |= {"formal_charges": [0.7, -0.7]}
    if architecture is not MACE:
        fields = POLAR | {"n_layers": 2, "hidden_l": 1, "polarizability": False}
    model = architecture(**{k: tuple(v) if isinstance(v, list) else v for k, v in fields.items()})
    params = jax.jit(model.init)(jax.random.key(0), jaxmlip.from_ase(salt(), fields["cutoff"]))
    path = str(folder / "ions.safetensors")
    card = {"architecture": architecture.__name__, "fields": fields, "name": "ions", **card}
    checkpoint.save(path, card, params)
    write("salt.xyz", salt())
    return path


def test_a_field_of_waves_is_not_added_to_matrices_that_have_it(folder, tmp_path, capsys):  # noqa: F811
    path = ions(tmp_path, electrostatics={"method": "ewald", "tolerance": 1e-3})
    (folder / "BORN").write_text("14.4\n")
    assert main(["phonons", "salt.xyz", "--model", path, "--born", "BORN"]) == 2
    told = capsys.readouterr().err
    assert "there twice" in told and "leave out --born" in told and "relax" not in told


FLOWS = {"method": "ewald", "equilibration": {"widths": {"11": 1.0, "17": 1.0}}}


@pytest.mark.parametrize("command", ["ir", "phonons", "qha"])
def test_charges_that_follow_no_wave_are_refused_before_anything_is_computed(
    command, folder, tmp_path, capsys
):  # noqa: F811
    path = ions(tmp_path, electrostatics=FLOWS)
    assert main([command, "salt.xyz", "--model", path]) == 6
    told = capsys.readouterr().err
    assert "JM533" in told and "equilibrated" in told and "--force-constants" in told
    assert "relax" not in told


@pytest.mark.slow
def test_a_mesh_gives_the_spectrum_of_its_ewald_sum(folder, tmp_path, capsys):  # noqa: F811
    far = {"tolerance": 1e-6, "cutoff": 5.0}
    run = ["ir", "salt.xyz", "--no-relax", "--direction", "0 0 1", "--overwrite", "--model"]
    found = []
    for method in ("ewald", "pme"):
        path = ions(tmp_path, electrostatics={"method": method, **far})
        assert main([*run, path]) == 0
        found.append(result("salt_ir.json"))
    assert "takes the place of the model's mesh" in capsys.readouterr().err
    for key in ("frequencies_cm1", "lo_frequencies_cm1", "born_charges_e"):
        assert_allclose(found[1][key], found[0][key], rtol=1e-9)


@pytest.mark.slow
def test_where_waves_feel_no_far_charges_there_are_transverse_modes(folder, tmp_path, capsys):  # noqa: F811
    path = ions(tmp_path, LongRangeMACE)
    assert main(["phonons", "salt.xyz", "--model", path]) == 6
    assert "JM533" in capsys.readouterr().err
    run = ["ir", "salt.xyz", "--model", path, "--no-relax", "--epsilon-infinity", "2"]
    assert main(run) == 0
    assert "transverse modes alone" in capsys.readouterr().err
    found = result("salt_ir.json")
    assert found["lo_frequencies_cm1"] is None and found["nonanalytic"] is None
    to, charges = np.array(found["frequencies_cm1"]), np.array(found["born_charges_e"])
    assert_allclose(to, to[0], rtol=1e-6)  # the box of waves is not cubic, to its tolerance
    assert np.abs(charges.sum(0)).max() < 1e-8 < np.abs(charges).max()
    assert found["intensities_km_mol"][0] > 0


@pytest.mark.slow
def test_longitudinal_modes_of_ions_with_an_ewald_sum_are_not_screened_twice(folder, tmp_path):  # noqa: F811
    """eps_inf of rigid ions is 1: w_LO² - w_TO² = 4 pi k Z² / (V mu), which D(q -> 0) has, too
    (`test_longitudinal_optical_modes_of_rigid_ions_are_split_from_transverse_ones`)."""
    path = ions(tmp_path, electrostatics={"method": "ewald", "tolerance": 1e-8, "cutoff": 5.0})
    assert main(["ir", "salt.xyz", "--model", path, "--no-relax", "--direction", "0 0 1"]) == 0
    found = result("salt_ir.json")
    assert found["nonanalytic"].startswith("in the dynamical matrices")
    squared = lambda f: np.sign(f) * (np.array(f) * jaxmlip.units.invcm / jaxmlip.units.hbar) ** 2
    to, lo = squared(found["frequencies_cm1"]), squared(found["lo_frequencies_cm1"][0])
    masses, z = np.array(found["masses_amu"]), found["born_charges_e"][0][0][0]
    assert_allclose(z, 0.7, rtol=1e-10)
    plasma = 4 * np.pi * jaxmlip.units.coulomb_constant * z**2 * (1 / masses).sum()
    assert_allclose(np.abs(lo - to).max(), plasma / found["volume_A3"], rtol=1e-6)


@pytest.mark.slow
def test_raman_of_rock_salt_is_dark_and_of_a_polar_pair_is_not(folder, polar, capsys):  # noqa: F811
    """All atoms at centres of inversion: no mode scatters at first order."""
    write("salt.xyz", salt())
    assert main(["raman", "salt.xyz", "--model", polar, "--no-relax", "--csv"]) == 0
    found = result("salt_raman.json")
    assert np.abs(found["activities_A4_per_amu"]).max() < 1e-12
    atoms = salt()
    atoms.positions[1] += [0.1, 0.05, -0.02]
    write("polar.xyz", atoms)
    assert main(["raman", "polar.xyz", "--model", polar, "--no-relax", "--laser", "785"]) == 0
    found = result("polar_raman.json")
    assert np.max(found["activities_A4_per_amu"]) > 1e-6 and found["laser_nm"] == 785
    assert len(found["frequencies_cm1"]) == 3


@pytest.mark.slow
def test_raman_of_a_crystal_asks_for_no_born_charges(folder, tmp_path, capsys):  # noqa: F811
    """Charges that all atoms alike make up for have none; the polarisability does not mind."""
    fields = POLAR | {"charges": True}
    model = MACE(**{k: tuple(v) if isinstance(v, list) else v for k, v in fields.items()})
    params = jax.jit(model.init)(jax.random.key(0), jaxmlip.from_ase(salt(), fields["cutoff"]))
    path = str(tmp_path / "even.safetensors")
    checkpoint.save(path, {"architecture": "MACE", "fields": fields}, params)
    atoms = salt()
    atoms.positions[1] += [0.1, 0.05, -0.02]
    write("salt.xyz", atoms)
    assert main(["raman", "salt.xyz", "--model", path, "--no-relax"]) == 0
    found = result("salt_raman.json")
    assert np.max(found["activities_A4_per_amu"]) > 0 and len(found["frequencies_cm1"]) == 3
    assert main(["ir", "salt.xyz", "--model", path, "--no-relax", "--out", "ir"]) == 2
    assert "all atoms alike" in capsys.readouterr().err


@pytest.mark.slow
def test_phonons_split_by_the_models_own_charges_as_ir_does(folder, polar):  # noqa: F811
    write("salt.xyz", salt())
    options = ["--model", polar, "--no-relax", "--imaginary", "ignore"]
    mesh = ["--mesh", "2", "2", "2", "--tolerance", "100", "--temperatures", "0", "100", "100"]
    assert main(["phonons", "salt.xyz", *options, *mesh]) == 0
    found = result("salt_phonons.json")
    assert found["nonanalytic"] == "model" and found["epsilon_infinity"] is not None
    assert main(["ir", "salt.xyz", "--model", polar, "--no-relax", "--direction", "0 0 1"]) == 0
    lo = result("salt_ir.json")["lo_frequencies_cm1"][0]
    gamma = [i for i, q in enumerate(found["qpoints"]) if not np.any(q)]
    top = np.max(np.array(found["frequencies_THz"])[gamma])
    assert_allclose(top, np.max(lo) * 0.0299792458, rtol=1e-4)
    options += ["--no-nac", "--overwrite"]
    assert main(["phonons", "salt.xyz", *options, "--qpoints", "0 0 0", *mesh]) == 0
    assert result("salt_phonons.json").get("nonanalytic") is None
