"""Checkpoints of SevenNet give its energies, forces and stress, and no other file passes for them.

`data/sevennet_old.pth` is as version 0.9 wrote them (rotations only, XPLOR switch, solid harmonics,
radial weights sender by sender), `data/sevennet_new.pth` as 0.13 does (both parities,
self-connections by species, biases, two data sets); both are small and random.
`data/sevennet_*.npz` is what sevenn 0.13.0 predicts with them in float32 (its only precision). All
written by

    python benchmarks/compare_nequip_family.py --random sevennet_new --head first
        --model tests/data/sevennet_new.pth --export tests/data/sevennet_new.npz

and the same for sevennet_old, without --head.
"""

import importlib.util
import zipfile
from pathlib import Path

import jax
import numpy as np
import pytest
from ase import Atoms
from numpy.testing import assert_allclose

import jaxmlip
from jaxmlip.errors import ModelError, UsageError
from jaxmlip.interfaces.weights import sevennet
from jaxmlip.interfaces.weights.unpickle import read_torch
from jaxmlip.models.checkpoint import potential_of
from jaxmlip.system import cast, pad

DATA = Path(__file__).parent / "data"
OLD, NEW = DATA / "sevennet_old.pth", DATA / "sevennet_new.pth"
REFERENCE = Path(__file__).parents[2] / "shared" / "data" / "reference" / "sevennet.npz"


def published(name):
    """A file of weights in the installed sevenn, which is not imported; None without it."""
    found = importlib.util.find_spec("sevenn")
    folder = Path(found.submodule_search_locations[0]) if found else Path("absent")
    path = folder / "pretrained_potentials" / name
    return path if path.is_file() and REFERENCE.is_file() else None


@pytest.fixture(scope="module", params=["sevennet_old", "sevennet_new"])
def imported(request):
    """(what sevenn says, prediction function of a system, cutoff)."""
    file = np.load(DATA / f"{request.param}.npz")
    card, params = sevennet.read(DATA / f"{request.param}.pth", head=str(file["head"]) or None)
    potential = potential_of(card)
    predict = jax.jit(jaxmlip.predict(potential.apply))
    return file, lambda system: predict(cast(params, "float64"), system), potential.cutoff


@pytest.mark.parametrize("name", ["ethanol", "ice", "slab"])
def test_energy_forces_and_stress_are_those_of_sevennet(name, imported):
    """Limits: ten times what float32 resolves of the largest number that sevenn adds up."""
    file, predict, cutoff = imported
    atoms = Atoms(**{k: file[f"{name}|{k}"] for k in ("positions", "numbers", "cell", "pbc")})
    out = predict(pad(jaxmlip.from_ase(atoms, cutoff), n_atoms=9, n_neighbors=30))
    assert_allclose(out["energy"], file[f"{name}|energy"], rtol=0, atol=2e-5)
    assert_allclose(out["forces"][: len(atoms)], file[f"{name}|forces"], rtol=0, atol=5e-6)
    if atoms.pbc.all():
        assert_allclose(out["stress"][0], file[f"{name}|stress"], rtol=0, atol=1e-7)


@pytest.mark.parametrize("path, head", [(OLD, None), (NEW, "first")])
def test_all_weights_have_the_shapes_of_the_architecture(path, head):
    card, params = sevennet.read(path, head=head)
    system = jaxmlip.from_ase(Atoms("CO", [[0, 0, 0], [0, 0, 1.1]]), 4.5)
    wanted = jax.eval_shape(potential_of(card).init, jax.random.key(0), system)
    assert jax.tree.map(np.shape, params) == jax.tree.map(np.shape, wanted)


def test_shifts_become_reference_energies_of_the_elements_in_their_order():
    card, _ = sevennet.read(OLD)
    assert card["fields"]["elements"] == [1, 6, 8] and card["fields"]["cutoff"] == 4.5
    assert_allclose(card["fields"]["scale"], 0.7, rtol=1e-7)
    assert list(card["reference_energies"]) == [1, 6, 8]
    assert_allclose(list(card["reference_energies"].values()), [-1.1, -3.2, -4.5], rtol=1e-7)


def test_of_several_data_sets_the_file_has_a_default_and_others_are_chosen_by_name():
    default, chosen = sevennet.read(NEW), sevennet.read(NEW, head="second")
    jax.tree.map(np.testing.assert_array_equal, default[1], chosen[1])
    other = sevennet.read(NEW, head="first")
    energies = [card["reference_energies"][6] for card in (chosen[0], other[0])]
    assert_allclose(energies[0] - energies[1], 0.2, atol=1e-6)
    with pytest.raises(ModelError, match="first, second"):
        sevennet.read(NEW, head="third")
    with pytest.raises(UsageError, match="one data set"):
        sevennet.read(OLD, head="first")


@pytest.fixture
def content():
    content = read_torch(OLD)
    return {**content, "config": dict(content["config"])}


def read_changed(monkeypatch, content):
    monkeypatch.setattr(sevennet, "read_torch", lambda path: content)
    return sevennet.read(OLD)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"act_radial": "ssp"}, "act_radial is 'ssp'"),
        ({"readout_as_fcn": True}, "readout_as_fcn"),
        ({"self_connection_type": "none"}, "self-connections"),
        ({"self_connection_type": ["linear", "nequip", "linear"]}, "self-connections"),
        ({"radial_basis": {"radial_basis_name": "gaussian"}}, "radial basis"),
        ({"irreps_manual": ["4x0e", "4x0e+3x1o+2x2e", "4x0e+3x1o+2x2e", "4x0e"]}, "features"),
        ({"irreps_manual": ["4x0e", "4x0e+3x1e", "4x0e+3x1e+2x2e", "4x0e"]}, "features"),
        ({"num_convolution_layer": 10**9}, "features"),
        ({"lmax": 40}, "harmonics of degree 40"),
        ({"cutoff": float("nan")}, "cutoff of nan"),
        ({"cutoff": 3.0}, "radial basis"),
        ({"_type_map": {1: 0, 6: 0, 8: 1}}, "share a place"),
        ({"_type_map": None}, "not a SevenNet checkpoint"),
        ({"use_bias_in_linear": None, "weight_nn_hidden_neurons": [10**9]}, "expected"),
        ({"use_modality": True, "_modal_map": {"a": 0, "b": 1}}, "several data sets"),
    ],
)
def test_other_architectures_are_refused(monkeypatch, content, change, message):
    content["config"] |= change
    with pytest.raises(ModelError, match=message) as error:
        read_changed(monkeypatch, content)
    assert error.value.exit_code == 6 and "sevennet_old.pth" in str(error.value)


def test_weights_that_are_no_arrays_are_refused(monkeypatch, content):
    """numpy would make one of lists that hold each other, and not come to an end."""
    state = dict(content["model_state_dict"])
    content["model_state_dict"] = {**state, "more": [[1.0], [2.0]]}
    with pytest.raises(ModelError, match="no arrays"):
        read_changed(monkeypatch, content)


def test_weights_that_are_missing_or_have_no_place_are_refused(monkeypatch, content):
    state = dict(content["model_state_dict"])
    content["model_state_dict"] = {**state, "charge_head.weight": np.ones(3)}
    with pytest.raises(ModelError, match="charge_head"):
        read_changed(monkeypatch, content)
    state.pop("1_self_interaction_1.linear.weight")
    content["model_state_dict"] = state
    with pytest.raises(ModelError, match="1_self_interaction_1.linear.weight are missing"):
        read_changed(monkeypatch, content)


def test_couplings_of_the_file_count_with_their_sign(monkeypatch, content):
    """Older versions of e3nn have some of them with the other sign; weights follow."""
    name = "1_convolution.convolution._compiled_main_left_right._w3j_1_1_2"
    before = sevennet.read(OLD)[1]["params"]["radial_1"]["layer_1"]
    state = dict(content["model_state_dict"])
    content["model_state_dict"] = {**state, name: -state[name]}
    changed = read_changed(monkeypatch, content)[1]["params"]["radial_1"]["layer_1"]
    flipped = (before == -changed).all(0)
    assert flipped.sum() == 3 and (before == changed)[:, ~flipped].all()
    content["model_state_dict"] = {**state, name: state[name][::-1]}
    with pytest.raises(ModelError, match="not that of angular momenta"):
        read_changed(monkeypatch, content)


def test_cut_files_and_files_of_another_kind_are_refused(tmp_path):
    whole = OLD.read_bytes()
    for length in (0, 10, len(whole) // 2, len(whole) - 1):
        path = tmp_path / "cut.pth"
        path.write_bytes(whole[:length])
        assert not sevennet.matches(path)
        with pytest.raises(ModelError):
            sevennet.read(path)
    other = tmp_path / "other.pth"
    with zipfile.ZipFile(other, "w") as archive:
        archive.writestr("other/data.pkl", b"\x80\x02}.")
    assert not sevennet.matches(other) and not sevennet.matches("absent.pth")
    with pytest.raises(ModelError):
        sevennet.read(other)
    assert sevennet.matches(OLD) and sevennet.matches(NEW)


@pytest.mark.parametrize(
    "file, model",
    [
        ("SevenNet_0__11Jul2024/checkpoint_sevennet_0.pth", "7net-0_f32"),
        ("SevenNet_l3i5/checkpoint_l3i5.pth", "7net-l3i5_f32"),
    ],
)
@pytest.mark.slow
def test_published_weights_give_published_forces(file, model):
    """1e-4 eV/Å: what peers ask for; float32 of both codes is some 1e-5 apart."""
    path = published(file)
    if path is None:
        pytest.skip("sevenn with its weights, or the reference, is not on this machine")
    reference = np.load(REFERENCE)
    card, params = sevennet.read(path)
    potential = potential_of(card)
    keys = ("positions", "numbers", "cell")
    atoms = Atoms(**{k: reference[f"struct|Si8_rattled|{k}"] for k in keys}, pbc=True)
    system = jaxmlip.from_ase(atoms, potential.cutoff, dtype=np.float32)
    out = jax.jit(jaxmlip.predict(potential.apply))(params, system)
    expected = {k: reference[f"{model}|Si8_rattled|{k}"] for k in ("energy", "forces", "stress")}
    assert_allclose(out["energy"][0], expected["energy"], rtol=0, atol=1e-4)
    assert_allclose(out["forces"], expected["forces"], rtol=0, atol=1e-4)
    assert_allclose(out["stress"][0], expected["stress"], rtol=0, atol=1e-6)
