"""Weights of Nequix give its energies, forces and stress, and no other file passes for them.

`data/nequix.nqx` is a small random model and `data/nequix.npz` what nequix 0.4.5 predicts with it
in float32 (its only precision); both were written by

    python benchmarks/compare_nequip_family.py --random nequix --model tests/data/nequix.nqx
        --export tests/data/nequix.npz

Published models: benchmarks/compare_nequip_family.py, and the last test where their files are.
"""

import json
from pathlib import Path

import jax
import numpy as np
import pytest
from ase import Atoms
from numpy.testing import assert_allclose

import jaxmlip
from jaxmlip.errors import ModelError
from jaxmlip.interfaces import weights
from jaxmlip.interfaces.weights import nequix
from jaxmlip.interfaces.weights.nequix import matches, read
from jaxmlip.models.checkpoint import load, potential_of, save
from jaxmlip.system import cast, pad

DATA = Path(__file__).parent / "data"
PATH = DATA / "nequix.nqx"
SHARED = Path(__file__).parents[2] / "shared"  # beside a checkout, if at all
PUBLISHED = SHARED / "weights" / "nequix" / "nequix-mp-1.nqx"


@pytest.fixture(scope="module")
def imported(tmp_path_factory):
    """(prediction function of a system, cutoff), after a trip through a file of ours."""
    path = tmp_path_factory.mktemp("model") / "nequix.safetensors"
    save(path, *read(PATH))
    potential, params, _ = load(path)
    predict = jax.jit(jaxmlip.predict(potential.apply))
    return lambda system: predict(cast(params, "float64"), system), potential.cutoff


def structure(name, file, **change):
    keys = ("positions", "numbers", "cell", "pbc")
    return Atoms(**{**{k: file[f"{name}|{k}"] for k in keys}, **change})


def system_of(atoms, cutoff):
    return pad(jaxmlip.from_ase(atoms, cutoff), n_atoms=9, n_neighbors=30)


@pytest.mark.parametrize("name", ["ethanol", "ice", "slab"])
def test_energy_forces_and_stress_are_those_of_nequix(name, imported):
    """Limits: ten times what float32 resolves of the largest number that nequix adds up."""
    predict, cutoff = imported
    file = np.load(DATA / "nequix.npz")
    atoms = structure(name, file)
    out = predict(system_of(atoms, cutoff))
    assert_allclose(out["energy"], file[f"{name}|energy"], rtol=0, atol=2e-5)
    assert_allclose(out["forces"][: len(atoms)], file[f"{name}|forces"], rtol=0, atol=5e-6)
    if atoms.pbc.all():
        assert_allclose(out["stress"][0], file[f"{name}|stress"], rtol=0, atol=1e-7)


def test_a_slab_with_vacuum_is_the_same_open_and_periodic(imported):
    predict, cutoff = imported
    file = np.load(DATA / "nequix.npz")
    out = predict(system_of(structure("slab", file, pbc=(True, True, False)), cutoff))
    assert_allclose(out["forces"][:4], file["slab|forces"], rtol=0, atol=5e-6)


def test_the_card_has_the_settings_and_the_reference_energies_of_the_weights():
    card, params = read(PATH)
    assert card["architecture"] == "NequIP"
    assert card["fields"]["elements"] == [1, 6, 8] and card["fields"]["cutoff"] == 4.5
    assert (card["fields"]["scale"], card["fields"]["shift"]) == (0.7, 0.3)
    assert list(card["reference_energies"]) == [1, 6, 8]
    json.dumps(card)
    model = potential_of(card)
    system = jaxmlip.from_ase(Atoms("CO", [[0, 0, 0], [0, 0, 1.1]]), 4.5)
    wanted = jax.eval_shape(model.init, jax.random.key(0), system)
    assert jax.tree.map(np.shape, params) == jax.tree.map(np.shape, wanted)


def changed(tmp_path, change):
    """The small model with other settings in its first line."""
    head, data = PATH.read_bytes().split(b"\n", 1)
    path = tmp_path / "changed.nqx"
    path.write_bytes(json.dumps({**json.loads(head), **change}).encode() + b"\n" + data)
    return path


@pytest.mark.parametrize(
    "change, message",
    [
        ({"hidden_irreps": "4x0e + 3x1e"}, "are not 0e"),
        ({"hidden_irreps": "99999x0e"}, "cut short"),
        ({"n_layers": 10**9}, "n_layers is 1000000000"),
        ({"hidden_irreps": "+".join(["1x0e"] * 10**5)}, "more than 12 degrees"),
        ({"lmax": 2.5}, "not a whole number"),
        ({"cutoff": -1.0}, "not a positive"),
        ({"cutoff": float("nan")}, "not a finite"),
        ({"scale": float("inf")}, "not a finite"),
        ({"atomic_numbers": [1, 1, 6]}, "atomic numbers"),
        ({"atomic_numbers": [1, 6, 400]}, "atomic numbers"),
        ({"atomic_numbers": None}, "not a Nequix model"),
        ({"layer_norm": False}, "the settings ask for"),
        ({"radial_mlp_size": 7}, "the settings ask for"),
    ],
)
def test_settings_that_do_not_fit_the_weights_are_refused(tmp_path, change, message):
    with pytest.raises(ModelError, match=message) as error:
        read(changed(tmp_path, change))
    assert error.value.exit_code == 6 and "changed.nqx" in str(error.value)


def test_bytes_after_the_weights_are_refused_but_not_a_line_break(tmp_path):
    """A published file ends in one."""
    path = tmp_path / "longer.nqx"
    path.write_bytes(PATH.read_bytes() + b"\n")
    assert read(path)[0] == read(PATH)[0]
    path.write_bytes(PATH.read_bytes() + b"more")
    with pytest.raises(ModelError, match="4 bytes more"):
        read(path)


def test_every_cut_of_a_file_is_refused(tmp_path):
    whole = PATH.read_bytes()
    for length in (0, 1, 100, whole.index(b"\n") + 1, len(whole) // 2, len(whole) - 1):
        path = tmp_path / "cut.nqx"
        path.write_bytes(whole[:length])
        with pytest.raises(ModelError):
            read(path)


@pytest.mark.parametrize(
    "content",
    [b"{}\n", b"[" * 10**5, b"\x80\x04N.", b"null\n", b'{"hidden_irreps": 3}\n', b"\xff" * 1000],
)
def test_files_of_another_kind_are_refused(tmp_path, content):
    path = tmp_path / "other.nqx"
    path.write_bytes(content)
    with pytest.raises(ModelError):
        read(path)
    assert not matches(path) or b"hidden_irreps" in content


def test_arrays_of_objects_are_never_read(tmp_path):
    """numpy would unpickle them; the reader knows type and shape of every array beforehand."""
    head = PATH.read_bytes().split(b"\n", 1)[0]
    path = tmp_path / "objects.nqx"
    with open(path, "wb") as file:
        file.write(head + b"\n")
        np.save(file, np.array([{}, {}, {}], object), allow_pickle=True)
        file.write(bytes(10**5))
    with pytest.raises(ModelError, match="object"):
        read(path)


@pytest.mark.parametrize(
    "change, name",
    [
        ({"elements": [1, 6, 6]}, "elements"),
        ({"elements": [6, 1, 8]}, "elements"),
        ({"elements": [0, 6, 8]}, "elements"),
        ({"elements": [1, 6, 119]}, "elements"),
        ({"elements": [1.0, 6.0]}, "elements"),
        ({"elements": []}, "elements"),
        ({"elements": None}, "elements"),
        ({"cutoff": float("nan")}, "cutoff"),
        ({"cutoff": float("inf")}, "cutoff"),
        ({"cutoff": 0.0}, "cutoff"),
        ({"cutoff": 1e5}, "cutoff"),
        ({"cutoff": [4.5]}, "cutoff"),
        ({"scale": float("inf")}, "scale"),
        ({"shift": [0.0, 0.0, float("nan")]}, "shift"),
        ({"shift": None}, "shift"),
        ({"reference_energies": {1: float("nan")}}, "reference energy of element 1"),
    ],
)
def test_a_card_that_makes_no_sense_is_refused_whatever_the_format(monkeypatch, change, name):
    card, params = read(PATH)
    energies = change.pop("reference_energies", card["reference_energies"])
    card = {**card, "fields": card["fields"] | change, "reference_energies": energies}
    monkeypatch.setattr(nequix, "read", lambda path: (card, params))
    with pytest.raises(ModelError, match=f"{name}: ") as error:
        weights.read(PATH)
    assert (error.value.code, error.value.where) == ("JM511", str(PATH)) and error.value.fix


def test_a_file_that_changes_while_it_is_read_is_refused(tmp_path, monkeypatch):
    """Or the hash in the card would be that of another file."""
    path = tmp_path / "model.nqx"
    path.write_bytes(PATH.read_bytes())
    assert weights.read(path)[0]["source"]["sha256"] == weights.sha256(path)

    def read_and_change(path):
        found = read(path)
        path.write_bytes(path.read_bytes() + b"\n")
        return found

    monkeypatch.setattr(nequix, "read", read_and_change)
    with pytest.raises(ModelError, match="changed while"):
        weights.read(path)


def test_errors_keep_their_code_and_say_what_to_do(tmp_path, monkeypatch):
    def fail(data, shapes):
        raise ModelError("no", code="JM599")

    monkeypatch.setattr(nequix, "_arrays", fail)
    with pytest.raises(ModelError) as error:
        weights.read(PATH)
    assert error.value.code == "JM599" and error.value.fix


def test_only_its_own_files_match():
    assert matches(PATH)
    assert not matches(DATA / "nequix.npz") and not matches(DATA) and not matches("absent.nqx")


@pytest.mark.slow
@pytest.mark.skipif(not PUBLISHED.is_file(), reason="the published weights are not on this machine")
def test_published_weights_give_published_forces():
    """1e-4 eV/Å: what issue and peers ask for; float32 of both codes is some 1e-6 apart."""
    file = np.load(SHARED / "data" / "reference" / "nequix.npz")
    card, params = read(PUBLISHED)
    potential = potential_of(card)
    keys = ("positions", "numbers", "cell")
    atoms = Atoms(**{k: file[f"struct|Si8_rattled|{k}"] for k in keys}, pbc=True)
    system = jaxmlip.from_ase(atoms, potential.cutoff, dtype=np.float32)
    out = jax.jit(jaxmlip.predict(potential.apply))(params, system)
    expected = {k: file[f"nequix-mp-1_f32|Si8_rattled|{k}"] for k in ("energy", "forces", "stress")}
    assert_allclose(out["energy"][0], expected["energy"], rtol=0, atol=1e-4)
    assert_allclose(out["forces"], expected["forces"], rtol=0, atol=1e-4)
    assert_allclose(out["stress"][0], expected["stress"], rtol=0, atol=1e-6)
