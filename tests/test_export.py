"""An exported program is the potential it was made from, without the code of the potential."""

import json
import os
import subprocess
import sys

import jax
import numpy as np
import pytest
from ase import Atoms
from ase.build import molecule
from numpy.testing import assert_allclose
from structures import KEY, ethanol, toy, triclinic

import jaxmlip
from jaxmlip.errors import DataError, ModelError, PrecisionError, UsageError
from jaxmlip.models import MACE, LennardJones, checkpoint
from jaxmlip.potential import PER_ATOM
from jaxmlip.pretrained import program_file
from jaxmlip.pretrained.export import export, load_exported
from jaxmlip.system import concatenate, pad

pytest.importorskip("flatbuffers")  # what jax.export writes with

CUTOFF = 3.0
FIELDS = {
    "elements": (1, 6, 8),
    "cutoff": CUTOFF,
    "channels": 4,
    "n_layers": 1,
    "l_max": 1,
    "correlation": 2,
    "radial_widths": (4,),
    "dipole": True,
}


@pytest.fixture(scope="module")
def mace():
    """(potential, params): a small MACE with charges and a wall, its parameters a tuple."""
    wall = LennardJones(elements=(1, 6, 8), epsilon=0.01, sigma=1.0, cutoff=CUTOFF)
    model = jaxmlip.add(MACE(**FIELDS), wall)
    system = jaxmlip.from_ase(ethanol(), CUTOFF)
    return model, jaxmlip.cast(jax.jit(model.init)(KEY, system), np.float64)


@pytest.fixture(scope="module")
def program(mace, tmp_path_factory):
    path = tmp_path_factory.mktemp("program") / "mace.npz"
    export(*mace, path, sizes=[(9, 17)], card={"name": "small"})
    return path


@pytest.fixture(scope="module")
def live(mace):
    return jax.jit(jaxmlip.predict(mace[0].apply))


def assert_equal(found, expected):
    """Limits: rounding, since XLA may order sums otherwise when it compiles anew."""
    assert set(found) == set(expected)
    for key, value in expected.items():
        assert_allclose(found[key], value, rtol=1e-12, atol=1e-12, err_msg=key)


@pytest.mark.parametrize("atoms", [ethanol(), triclinic()], ids=["molecule", "crystal"])
def test_a_program_is_its_potential(mace, program, live, atoms):
    found = load_exported(program)
    assert found.cutoff == CUTOFF and found.card == {"name": "small"}
    assert jax.tree.structure(found.params) == jax.tree.structure(mace[1])
    system = jaxmlip.from_ase(atoms, CUTOFF)
    out = live(mace[1], pad(system, n_atoms=9, n_neighbors=17))
    n = len(atoms)
    expected = {k: v[:n] if k in PER_ATOM else v for k, v in out.items()}
    assert_equal(found.predict(found.params, system), expected)


def test_other_parameters_give_other_energies(mace, program, live):
    """The parameters are an argument, as of every potential: ensembles need one program."""
    found = load_exported(program)
    system = pad(jaxmlip.from_ase(ethanol(), CUTOFF), n_neighbors=17)
    other = jax.tree.map(lambda x: 0.9 * x, found.params)
    assert_equal(found.predict(other, system), live(other, system))


@pytest.mark.parametrize("atoms", [ethanol(), triclinic()], ids=["molecule", "crystal"])
def test_one_program_serves_every_size(tmp_path, atoms):
    potential, system = toy(CUTOFF), jaxmlip.from_ase(atoms, CUTOFF)
    export(potential, {}, tmp_path / "p.npz")
    found = load_exported(tmp_path / "p.npz")
    assert found.sizes == []
    live = jax.jit(jaxmlip.predict(potential.apply))
    assert_equal(found.predict({}, system), live({}, system))


def test_a_potential_that_looks_at_its_sizes_asks_for_them(tmp_path):
    potential = toy(CUTOFF)

    def apply(params, system):
        return potential.apply(params, system) if system.n_atoms > 7 else {}

    with pytest.raises(ModelError, match="JM520"):
        export(potential._replace(apply=apply), {}, tmp_path / "p.npz")
    assert not os.listdir(tmp_path)


@pytest.fixture(scope="module")
def cheap(tmp_path_factory):
    """Programs of two sizes of a potential that compiles at once."""
    path = tmp_path_factory.mktemp("program") / "sizes.npz"
    export(toy(CUTOFF), {}, path, sizes=[(12, 11), (5, 4)], stress=False, vjp_order=1)
    return path


def test_programs_of_fixed_sizes_pad_and_cut(cheap):
    found = load_exported(cheap)
    potential = toy(CUTOFF)
    for name in ("H2O", "CH3CH2OH"):
        system = jaxmlip.from_ase(molecule(name), CUTOFF)
        out = found.predict(found.params, system)
        expected = jax.jit(potential.apply)({}, system)
        for key, value in expected.items():
            assert_allclose(out[key], value, atol=1e-12, err_msg=key)
        forces = jax.jit(jaxmlip.forces(potential.apply))({}, system)
        assert_allclose(out["forces"], forces, atol=1e-12)
        assert "stress" not in out


def test_a_program_can_be_differentiated_as_often_as_it_was_asked_for(cheap):
    """The force along x of one atom, differentiated: a row of minus the Hessian."""
    from dataclasses import replace

    found = load_exported(cheap)
    system = pad(jaxmlip.from_ase(molecule("CH4"), CUTOFF), n_neighbors=4)
    force = lambda x: found.predict({}, replace(system, positions=x))["forces"][1, 0]
    hessian = jax.jit(jaxmlip.hessian(toy(CUTOFF).apply))({}, system)
    assert_allclose(jax.grad(force)(system.positions), -hessian[1, 0], atol=1e-11)


def test_a_fresh_process_needs_neither_flax_nor_models(program, mace, live):
    code = """if True:
        import sys, jax, json
        jax.config.update("jax_enable_x64", True)
        from ase.build import molecule
        import jaxmlip
        from jaxmlip.pretrained.export import load_exported
        found = load_exported(sys.argv[1])
        out = found.predict(found.params, jaxmlip.from_ase(molecule("H2O"), found.cutoff))
        heavy = [m for m in sys.modules if m.split(".")[0] == "flax" or "jaxmlip.models" in m]
        assert not heavy, heavy
        print(json.dumps([float(out["energy"][0]), out["forces"].tolist()]))
    """
    run = [sys.executable, "-c", code, str(program)]
    done = subprocess.run(run, capture_output=True, text=True, check=True)
    energy, forces = json.loads(done.stdout)
    water = jaxmlip.from_ase(molecule("H2O"), CUTOFF)
    expected = live(mace[1], pad(water, n_atoms=9, n_neighbors=17))
    assert_allclose(energy, expected["energy"][0], rtol=1e-12)
    assert_allclose(forces, expected["forces"][:3], atol=1e-12)


def test_what_does_not_fit_is_refused_with_its_numbers(cheap):
    found = load_exported(cheap)
    system = jaxmlip.from_ase(molecule("CH3CH2OH"), CUTOFF)
    large = jaxmlip.from_ase(molecule("C6H6"), CUTOFF)
    for wrong, message in (
        (concatenate([system, system]), "batch of 2"),
        (pad(large, n_atoms=20), "20 atoms .* at most 12 atoms with 11 or 5 atoms with 4"),
        (jaxmlip.from_ase(molecule("H2O"), CUTOFF, flat=True), "per receiver"),
        (jaxmlip.from_ase(molecule("H2O"), None), "per receiver"),
        (jaxmlip.from_ase(molecule("H2O"), CUTOFF, dtype="float32"), "computes in float64"),
    ):
        with pytest.raises(DataError, match=message):
            found.predict(found.params, wrong)


def test_elements_that_the_card_does_not_list_are_refused(tmp_path):
    export(toy(CUTOFF), {}, tmp_path / "p.npz", card={"elements": [1, 8]})
    found = load_exported(tmp_path / "p.npz")
    found.predict({}, pad(jaxmlip.from_ase(molecule("H2O"), CUTOFF), n_atoms=5))  # 0: padding
    with pytest.raises(DataError, match=r"\[16\] are not known; this program knows \[1, 8\]"):
        found.predict({}, jaxmlip.from_ase(molecule("SH2"), CUTOFF))


def test_a_program_of_float64_is_refused_without_float64(cheap):
    with jax.enable_x64(False), pytest.raises(PrecisionError):
        load_exported(cheap)


def test_float32_stays_float32(tmp_path):
    potential, system = toy(CUTOFF), jaxmlip.from_ase(ethanol(), CUTOFF, dtype="float32")
    with jax.enable_x64(False):
        export(potential, {}, tmp_path / "p.npz", dtype="float32")
        found = load_exported(tmp_path / "p.npz")
        out = found.predict(found.params, system)
        expected = jax.jit(jaxmlip.predict(potential.apply))({}, system)
    assert {str(v.dtype) for v in out.values()} == {"float32"}
    assert_allclose(out["forces"], expected["forces"], atol=1e-5)


def test_a_program_for_another_platform_says_so(tmp_path):
    potential = toy(CUTOFF)
    both = export(potential, {}, tmp_path / "p.npz", platforms=("cpu", "cuda"))
    assert both["platforms"] == ["cpu", "cuda"]
    load_exported(tmp_path / "p.npz")
    elsewhere = "tpu" if jax.default_backend() != "tpu" else "cpu"
    export(potential, {}, tmp_path / "p.npz", platforms=(elsewhere,))
    with pytest.raises(ModelError, match=f"exported for {elsewhere}"):
        load_exported(tmp_path / "p.npz")


def test_the_calling_convention_is_one_that_this_jax_reads(tmp_path):
    found = export(toy(CUTOFF), {}, tmp_path / "p.npz")
    lowest = jax.export.minimum_supported_calling_convention_version
    assert lowest <= found["calling_convention"]
    assert found["calling_convention"] <= jax.export.maximum_supported_calling_convention_version


@pytest.mark.parametrize("place", [100, 0.3, 0.6, 0.95])
def test_a_flipped_bit_and_a_cut_file_are_refused(cheap, tmp_path, place):
    data = bytearray(cheap.read_bytes())
    at = int(place * len(data)) if place < 1 else place
    bad = tmp_path / "bad.npz"
    bad.write_bytes(data[:at])
    with pytest.raises(ModelError, match="JM504"):
        load_exported(bad)
    data[at] ^= 16
    bad.write_bytes(data)
    with pytest.raises(ModelError, match="JM504"):
        load_exported(bad)


def test_a_file_of_something_else_is_refused(tmp_path):
    with open(tmp_path / "pickled.npz", "wb") as file:
        np.savez(file, manifest=np.array([{"a": 1}], object))
    np.save(tmp_path / "plain.npy", np.zeros(3))
    for name in ("pickled.npz", "plain.npy"):
        with pytest.raises(ModelError, match="JM504"):
            load_exported(tmp_path / name)
    with pytest.raises(ModelError, match="no such file"):
        load_exported(tmp_path / "absent.npz")


MANIFESTS = [
    *((key, None) for key in program_file.OWED),  # None: absent
    ("format", "1"),
    ("format", 99),
    ("sizes", [12, 11]),
    ("sizes", [[12, "many"]]),
    ("sizes", [[12, 0]]),
    ("sizes", [[1, 1]] * 3),
    ("dtype", "float65"),
    ("cutoff", -3.0),
    ("cutoff", float("nan")),
    ("platforms", "cpu"),
    ("params", {"set": [0]}),
    ("params", {"dict": {"a": 0}}),
    ("params", {"dict": [0]}),
    ("card", {"elements": [300]}),
    ("card", {"elements": ["Si"]}),
]


@pytest.mark.parametrize("key, value", MANIFESTS, ids=str)
def test_a_manifest_that_another_hand_wrote_is_refused(cheap, tmp_path, key, value):
    arrays, manifest = program_file.read(cheap)
    changed = {k: v for k, v in (manifest | {key: value}).items() if v is not None}
    program_file.write(tmp_path / "p.npz", arrays, changed)
    with pytest.raises(ModelError, match="JM50[56]"):
        load_exported(tmp_path / "p.npz")


def test_parameters_of_other_containers_are_refused(tmp_path):
    from typing import NamedTuple

    class Two(NamedTuple):
        a: float
        b: float

    with pytest.raises(UsageError, match="Two"):
        export(toy(CUTOFF), Two(1.0, 2.0), tmp_path / "p.npz")
    assert not os.listdir(tmp_path)


def test_the_command_exports_a_model_file(tmp_path, monkeypatch, capsys):
    from jaxmlip.cli.main import main

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    card = {"architecture": "Morse", "fields": {"elements": [29]}}
    checkpoint.save("copper.safetensors", card, {"params": {}})
    arguments = ["models", "export", "copper.safetensors", "--atoms", "2", "--json", "-"]
    assert main(arguments) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["sizes"] == [[2, 1]] and found["path"] == "copper.npz"
    assert main(arguments) == 2
    exported = load_exported("copper.npz")
    pair = Atoms("Cu2", [[0, 0, 0], [0, 0, 2.866]])
    out = exported.predict(exported.params, jaxmlip.from_ase(pair, exported.cutoff))
    assert_allclose(out["energy"], -0.3429, rtol=1e-12)
    assert_allclose(out["forces"], 0, atol=1e-12)


def test_options_without_a_meaning_are_refused_before_anything_is_opened(capsys):
    from jaxmlip.cli.main import main

    for arguments, message in (
        (["--neighbors", "8"], "--neighbors"),
        (["--platform", "cpu", "--platform", "cudaa"], "Did you mean 'cuda'"),
    ):
        assert main(["models", "export", "absent.safetensors", *arguments]) == 2
        assert message in capsys.readouterr().err
