"""A model file is whole or refused, and what it gives back is what went in."""

import json
import struct

import jax
import numpy as np
import pytest
from numpy.testing import assert_array_equal
from structures import ethanol

import jaxmlip
from jaxmlip.errors import ModelError, ResourceError
from jaxmlip.interfaces.ase import from_ase
from jaxmlip.models import checkpoint, checks, heads

CARD = {
    "architecture": "MACE",
    "elements": [1, 6, 8],
    "cutoff": 3.0,
    "reference_energies": {"1": -13.5, "6": -57.25, "8": -110.0},
    "fields": {
        "elements": [1, 6, 8],
        "cutoff": 3.0,
        "channels": 4,
        "l_max": 1,
        "n_layers": 1,
        "correlation": 1,
        "radial_widths": [4],
        "dipole": True,
    },
}


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    path = tmp_path_factory.mktemp("models") / "small.safetensors"
    system = from_ase(ethanol(), 3.0)
    params = jax.jit(checkpoint.build(CARD).init)(jax.random.key(0), system)
    checkpoint.save(path, CARD, params)
    return path, params, system


def test_weights_and_card_come_back_as_they_went(saved):
    path, params, _ = saved
    _, found, card = checkpoint.load(path)
    assert jax.tree.structure(found) == jax.tree.structure(params)
    jax.tree.map(assert_array_equal, found, params)
    assert card["fields"] == CARD["fields"] and card["format"] == checkpoint.FORMAT


def test_a_loaded_potential_gives_total_energies_and_responses(saved):
    path, params, system = saved
    potential, found = jaxmlip.load(path)
    energy = lambda potential, params: jax.jit(potential.apply)(params, system)["energy"][0]
    total, bare = energy(potential, found), energy(checkpoint.build(CARD), params)
    assert total - bare == pytest.approx(6 * -13.5 + 2 * -57.25 - 110.0, abs=1e-9)
    born = jax.jit(jaxmlip.born_charges(potential.apply))(found, system)
    assert np.abs(born).max() > 1e-3 and np.abs(born.sum(0)).max() < 1e-6  # float32 weights


def test_one_of_several_heads_is_loaded_by_its_name(saved, tmp_path):
    _, params, system = saved
    both = heads.stack_heads(params, 2)
    both["heads"] = jax.tree.map(lambda x: x.at[1].mul(2.0), both["heads"])
    path = tmp_path / "both.safetensors"
    card = {**CARD, "reference_energies": {}, "head_names": ["low", "high"]}
    checkpoint.save(path, card, both)
    energy = {}
    for name in ("low", "high"):
        potential, found = jaxmlip.load(path, head=name, elements=[1, 6, 8])
        energy[name] = float(jax.jit(potential.apply)(found, system)["energy"][0])
    bare = float(jax.jit(checkpoint.build(CARD).apply)(params, system)["energy"][0])
    assert energy["low"] == pytest.approx(bare, rel=1e-6)  # float32 weights
    assert energy["high"] != pytest.approx(bare, rel=1e-3)
    for file, name, message in ((path, "hihg", "Did you mean 'high'"), (saved[0], "a", "has none")):
        with pytest.raises(ModelError, match=message):
            jaxmlip.load(file, head=name)


@pytest.mark.parametrize("place", [-1, -200, 0.7])
def test_one_flipped_bit_is_found(saved, tmp_path, place):
    data = bytearray(saved[0].read_bytes())
    data[place if isinstance(place, int) else int(place * len(data))] ^= 4
    bad = tmp_path / "bad.safetensors"
    bad.write_bytes(data)
    with pytest.raises(ModelError, match="JM50"):
        checkpoint.load(bad)


@pytest.mark.parametrize("size", [0, 5, 100, 2000])
def test_a_file_that_was_cut_is_refused(saved, tmp_path, size):
    bad = tmp_path / "cut.safetensors"
    bad.write_bytes(saved[0].read_bytes()[:size])
    with pytest.raises(ModelError, match="JM504"):
        checkpoint.load(bad)


def rewritten(path, tmp_path, *, without=None, **changes):
    """The file with another card, as another version of this package would have written it."""
    data = path.read_bytes()
    (size,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + size])
    card = json.loads(header["__metadata__"]["jaxmlip"]) | changes
    card.pop(without, None)
    if "card_sha256" not in changes:
        card["card_sha256"] = checkpoint.card_digest(card)
    header["__metadata__"]["jaxmlip"] = json.dumps(card)
    text = json.dumps(header).encode()
    out = tmp_path / "other.safetensors"
    out.write_bytes(struct.pack("<Q", len(text)) + text + data[8 + size :])
    return out


BAD_CARDS = {  # entries of a card that no potential has
    "architecture": (["MACE"], None, 7),
    "fields": ([], None, "MACE"),
    "elements": (None, ["H", "C", "O"], [1, 1], [0], [300], [True], [], {"1": 1}, [1, 6, 7]),
    "cutoff": (None, "abc", float("nan"), -5.0, 0, 1e6, 10**400, True, [3.0], 4.0),
    "reference_energies": ("abc", {"H": 1}, {"1": "a"}, {"1": None}, [1.0], {"9" * 5000: 1.0}),
    "format": ("x", 0, -1, 1.0, None, True),
    "members": (-1, 1, "two", 10**9, [2]),
    "head_names": ("ab", [1, 2], ["a"], ["a", "a"]),
    "head_reference_energies": ([1], {"a": 3}),
    "electrostatics": ("ewald", {"method": "magic"}, {"method": "ewald", "cutoff": 1e6}),
    "dispersion": (1, {"tolerance": "small"}),
    "properties": (["gap"], {"gap": None}, {"energy": {}}),
    "uncertainty": (True, {"leaves": ["params/none"]}),
    "source": ([1],),
    "sha256": (None, 1, ["0"]),
}
BAD_FIELDS = {
    "elements": (None, 1, ["H", "C", "O"], [1, 6], [1, 6, 8, 9], [1, 6, 600], "HCO"),
    "cutoff": (None, "abc", float("nan"), float("inf"), -5.0, 0.0, 1e6, 3.5),
    "channels": (8, -3, 0, 4.5, "four", None, 10**9, [4], True),
    "l_max": (-1, 2, 40, 1.0),
    "correlation": (0, 2, 30),
    "n_layers": (0, 3, 10**6),
    "n_radial": (10**9, 0),
    "radial_widths": (4, ["4"], [4] * 5000, [0], [4.0]),
    "smoothness": (10**6, "two"),
    "avg_num_neighbors": (0.0, float("nan"), "12", 10**400),
    "scale": (float("inf"), "one", [1.0], None),
    "radial_basis": ("magic", 3, None),
    "dipole": ("false", 1, False),
    "frequencies": ([float("nan")], {"1": 2.0}),
    "state": ([["charge"]], "charge"),
    "covalent_radii": ([None] * 3,),
    "solver": (1,),
}


def each(table):
    return [pytest.param(k, v, id=f"{k}={v!r:.20}") for k, values in table.items() for v in values]


@pytest.mark.parametrize(
    "fields",
    [
        {"l_max": 2, "correlation": 7},
        {"l_max": 4, "correlation": 5},
        {"l_max": 1, "correlation": 11},
        {"cutoff": 500.0},
    ],
)
def test_what_can_be_built_is_not_refused(fields):
    card = {"architecture": "MACE", "fields": {"elements": [1], "cutoff": 5.0} | fields}
    checks.check_fields(card, "")


@pytest.mark.parametrize("key, value", each(BAD_CARDS))
def test_a_card_of_another_hand_is_not_believed(saved, tmp_path, key, value):
    with pytest.raises(ModelError, match="JM5") as error:
        checkpoint.load(rewritten(saved[0], tmp_path, **{key: value}))
    assert error.value.exit_code == 6 and "other.safetensors" in str(error.value)


@pytest.mark.parametrize("key, value", each(BAD_FIELDS))
def test_fields_of_another_hand_are_not_believed(saved, tmp_path, key, value):
    fields = CARD["fields"] | {key: value}
    with pytest.raises(ModelError, match="JM50") as error:
        checkpoint.load(rewritten(saved[0], tmp_path, fields=fields))
    assert error.value.exit_code == 6


@pytest.mark.parametrize("card", [[], ["fields"], "architecture fields format", None, 3])
def test_a_card_that_is_no_table_is_refused(tmp_path, card):
    from safetensors.numpy import save_file

    path = tmp_path / "card.safetensors"
    save_file({"a": np.zeros(3)}, path, metadata={"jaxmlip": json.dumps(card)})
    with pytest.raises(ModelError, match="JM505.*no table"):
        checkpoint.load(path)


NAME = "params/embedding/weight"
BAD_ARRAYS = {
    "missing": (lambda x: {}, "embedding/weight is missing"),
    "surplus": (lambda x: {NAME: x, "params/zzz": x}, "zzz has no place"),
    "both an array and a table": (lambda x: {NAME: x, "params": x}, "params has no place"),
    "NaN": (lambda x: {NAME: x * np.nan}, "not finite"),
    "infinite": (lambda x: {NAME: np.full_like(x, np.inf)}, "not finite"),
    "whole numbers": (lambda x: {NAME: x.astype(np.int32)}, "holds int32"),
    "bool": (lambda x: {NAME: x > 0}, "holds bool"),
    "complex": (lambda x: {NAME: x.astype(np.complex64)}, "holds complex"),
    "another shape": (lambda x: {NAME: x[:, :2].copy()}, r"shape \(3, 2\), expected \(3, 4\)"),
}


@pytest.mark.parametrize("name", BAD_ARRAYS)
def test_arrays_that_are_not_those_of_the_card_are_refused(saved, tmp_path, name):
    from safetensors.numpy import save_file

    change, message = BAD_ARRAYS[name]
    card, flat = checkpoint.read(saved[0])
    flat |= change(flat.pop(NAME))
    card["sha256"] = checkpoint.digest(flat)
    card["card_sha256"] = checkpoint.card_digest(card)
    path = tmp_path / "arrays.safetensors"
    save_file(flat, path, metadata={"jaxmlip": json.dumps(card)})
    with pytest.raises(ModelError, match=message) as error:
        checkpoint.load(path)
    assert error.value.code == "JM504" and error.value.exit_code == 6


@pytest.mark.parametrize("kind", ["F8_E4M3", "F8_E5M2", "BF16", "U16", "I4"])
def test_numbers_of_kinds_that_are_not_known_are_refused(saved, tmp_path, kind):
    data = saved[0].read_bytes()
    (size,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + size])
    first, last = header[NAME]["data_offsets"]
    width = {"BF16": 2, "U16": 2}.get(kind, 1)
    header[NAME] |= {"dtype": kind, "shape": [(last - first) // width]}
    text = json.dumps(header).encode()
    path = tmp_path / "kind.safetensors"
    path.write_bytes(struct.pack("<Q", len(text)) + text + data[8 + size :])
    with pytest.raises(ModelError, match="JM504"):
        checkpoint.load(path)


def test_shapes_are_found_once_for_each_kind_of_card(saved, monkeypatch):
    checkpoint.load(saved[0])
    monkeypatch.setattr(checkpoint.jax, "eval_shape", None)
    checkpoint.load(saved[0])


def test_a_newer_format_says_what_to_do(saved, tmp_path):
    with pytest.raises(ModelError, match="pip install -U"):
        checkpoint.load(rewritten(saved[0], tmp_path, format=99))


def test_a_changed_card_is_refused(saved, tmp_path):
    path = rewritten(saved[0], tmp_path, card_sha256="0" * 64)
    with pytest.raises(ModelError, match="changed or damaged"):
        checkpoint.load(path)


@pytest.mark.parametrize("key", ["architecture", "fields", "cutoff"])
def test_a_card_that_lacks_something_says_what(saved, tmp_path, key):
    path = rewritten(saved[0], tmp_path, without=key)
    with pytest.raises(ModelError, match=f"lacks {key}"):
        checkpoint.load(path)


def test_unknown_architectures_and_fields_are_named(saved, tmp_path):
    with pytest.raises(ModelError, match="Did you mean 'MACE'"):
        checkpoint.load(rewritten(saved[0], tmp_path, architecture="MACEE"))
    fields = CARD["fields"] | {"chanels": 4}
    with pytest.raises(ModelError, match="Did you mean 'channels'"):
        checkpoint.load(rewritten(saved[0], tmp_path, fields=fields))


def test_a_file_of_something_else_is_refused(tmp_path):
    from safetensors.numpy import save_file

    path = tmp_path / "other.safetensors"
    save_file({"a": np.zeros(3)}, path)
    with pytest.raises(ModelError, match="without a jaxmlip card"):
        checkpoint.load(path)


def test_unknown_names_get_a_suggestion():
    with pytest.raises(ModelError, match="unknown model 'organik'"):
        jaxmlip.load("organik")


def test_two_writers_do_not_meet_and_an_interrupt_leaves_nothing(tmp_path):
    path = tmp_path / "model.safetensors"
    with checkpoint.whole_file(path) as one, checkpoint.whole_file(path) as other:
        assert one != other
        one.write_bytes(b"one")
        other.write_bytes(b"other")
    assert path.read_bytes() == b"one" and list(tmp_path.iterdir()) == [path]  # the last one stays

    def interrupted():
        with checkpoint.whole_file(path) as partial:
            partial.write_bytes(b"half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert path.read_bytes() == b"one" and list(tmp_path.iterdir()) == [path]


def test_a_model_sees_charge_by_either_of_its_embeddings():
    fields = CARD["fields"]
    sees = lambda **more: checkpoint.sees_charge(CARD | {"fields": fields | more})
    assert not sees() and sees(charge_spin=True)
    assert sees(state=[["charge", 4, 3, -1.0, True]])  # as imported from mace-torch
    morse = {"elements": [1], "cutoff": 3.0, "depth": 1.0, "a": 1.0, "r0": 1.0}
    assert not checkpoint.sees_charge({"architecture": "Morse", "fields": morse})


def test_a_folder_that_is_not_there_leaves_nothing_behind(saved, tmp_path):
    with pytest.raises(ResourceError, match="cannot write"):
        checkpoint.save(tmp_path / "absent" / "model.safetensors", CARD, saved[1])
    assert not list(tmp_path.iterdir())
