"""Models that mace-torch saved, read without torch, give its energies, forces and stresses.

`data/mace_torch.tar.xz` holds small models with random weights and what mace-torch predicts with
them in float64 (mace-torch 0.3.16, e3nn 0.4.4), made by

    python benchmarks/compare_mace_torch.py --export FOLDER --slim
        --variant foundation omnibus dielectric_without_l2 plain_first

(between them: several heads, pair repulsion, distance transforms, density normalisation, gated
interactions, charge and spin, dipoles and polarisabilities). All variants, and models as they come
with compiled code in them: the same script without --slim.
"""

import sys
import tarfile
import zipfile
from copy import deepcopy
from dataclasses import replace
from pathlib import Path

import jax
import numpy as np
import pytest
from ase import Atoms
from numpy.testing import assert_allclose

import jaxmlip
from jaxmlip.errors import ModelError, UsageError
from jaxmlip.interfaces.weights.mace_torch import convert, matches, read
from jaxmlip.interfaces.weights.mace_torch_weights import projection
from jaxmlip.interfaces.weights.unpickle import Global, Record, read_torch
from jaxmlip.models.checkpoint import load, potential_of, save
from jaxmlip.system import pad

ARCHIVE = Path(__file__).parent / "data" / "mace_torch.tar.xz"
TRAINED = Path(__file__).parents[2] / "shared"  # beside a checkout, if at all
VARIANTS = {  # name: head
    "plain_first": "Default",
    "foundation": "two",
    "omnibus": "one",
    "dielectric_without_l2": "Default",
}
# a hundred times the round-off of the largest number that is summed (energies: 2e4 eV)
TOLERANCES = {
    "energy": 1e-9,
    "forces": 1e-12,
    "stress": 1e-13,
    "dipole": 1e-12,
    "polarizability": 1e-12,
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("mace_torch")
    with tarfile.open(ARCHIVE) as archive:
        archive.extractall(path, filter="data")
    return path


@pytest.fixture(scope="module")
def record(folder):
    return read_torch(folder / "foundation.model")


def structure(file, name, cutoff):
    keys = ("positions", "numbers", "cell", "pbc")
    system = jaxmlip.from_ase(Atoms(**{k: file[f"{name}|{k}"] for k in keys}), cutoff)
    if f"{name}|total_charge" in file:
        charge, spin = (file[f"{name}|{k}"] for k in ("total_charge", "total_spin"))
        system = replace(system, charge=charge, spin=spin)
    return system


def padded(system):
    return pad(system, n_atoms=12, n_neighbors=48)


EACH = [pytest.param(v, marks=[pytest.mark.slow] * (v == "plain_first")) for v in VARIANTS]


@pytest.mark.parametrize("variant", EACH)
def test_predictions_are_those_of_mace_torch(folder, tmp_path, variant):
    """On a molecule, a crystal smaller than the cutoff and a slab, after a trip through a file."""
    head, file = VARIANTS[variant], np.load(folder / f"{variant}.npz")
    save(tmp_path / "mace.safetensors", *read(folder / f"{variant}.model", head=head))
    potential, params, _ = load(tmp_path / "mace.safetensors")
    predict = jax.jit(jaxmlip.predict(potential.apply))
    for name in ("ethanol", "ice", "slab"):
        out = predict(params, padded(structure(file, name, potential.cutoff)))
        references = [k for k in file if k.startswith(f"{name}|{head}|") and "hessian" not in k]
        assert references
        for key in references:
            quantity, expected = key.split("|")[2], file[key]
            found = out[quantity][: len(expected)]
            assert_allclose(found, expected, rtol=0, atol=TOLERANCES[quantity], err_msg=key)
        if variant.startswith("dielectric"):  # mace-torch has no energy there, ours is zero
            assert_allclose(out["energy"], 0, atol=1e-12)


@pytest.mark.parametrize("variant", ["foundation", "plain_first"])
def test_the_hessian_is_that_of_mace_torch(folder, variant):
    """Of ethanol; some 50 eV/Å² at most, sums of a few hundred such terms."""
    head, file = VARIANTS[variant], np.load(folder / f"{variant}.npz")
    card, params = read(folder / f"{variant}.model", head=head)
    potential, expected = potential_of(card), file[f"ethanol|{head}|hessian"]
    ethanol = structure(file, "ethanol", potential.cutoff)
    found = jax.jit(jaxmlip.hessian(potential.apply))(params, ethanol)
    assert np.abs(expected).max() > 0.1
    assert_allclose(found, expected, rtol=0, atol=1e-11)


@pytest.mark.slow
@pytest.mark.skipif(not (TRAINED / "weights/mace_small").exists(), reason="no trained models here")
def test_a_trained_model_gives_its_reference_outputs():
    file = np.load(TRAINED / "data/reference/mace_small_and_dipep.npz")
    card, params = read(TRAINED / "weights/mace_small/mace01.model")
    potential = potential_of(card)
    predict = jax.jit(jaxmlip.predict(potential.apply))
    for i in (1, 2):
        atoms = Atoms(file[f"Z_{i}"], file[f"pos_{i}"])
        system = pad(jaxmlip.from_ase(atoms, potential.cutoff), n_atoms=40, n_neighbors=40)
        out = predict(params, system)
        assert_allclose(out["energy"], file[f"mace01_{i}_energy"], rtol=0, atol=1e-9)
        forces = out["forces"][: len(atoms)]
        assert_allclose(forces, file[f"mace01_{i}_forces"], rtol=0, atol=1e-12)


def test_nothing_of_torch_is_needed(folder):
    before = {"torch", "e3nn"} & set(sys.modules)
    assert matches(folder / "omnibus.model") and read(folder / "omnibus.model", head="two")
    assert {"torch", "e3nn"} & set(sys.modules) == before


def test_a_head_is_chosen_by_name_and_the_card_lists_all(folder):
    card, params = read(folder / "foundation.model", head="one")
    assert card["heads"] == {"imported": "one", "available": ["one", "two"]}
    other, weights = read(folder / "foundation.model", head="two")
    assert other["heads"]["imported"] == "two"
    assert other["fields"]["shift"] == card["fields"]["shift"] - 1
    assert other["reference_energies"][6] == card["reference_energies"][6] + 1
    assert not np.array_equal(
        params["params"]["energy_0"]["out"], weights["params"]["energy_0"]["out"]
    )
    with pytest.raises(UsageError, match="one, two"):
        read(folder / "foundation.model", head="onee")


def named(record, *heads):
    model = deepcopy(record)
    model.state["heads"] = list(heads)
    return model


def test_without_a_name_only_a_single_or_a_default_head_is_chosen(record):
    """As mace-torch, which refuses the others: they are levels of theory, and none is meant."""
    with pytest.raises(
        ModelError, match=r"2 heads \(one, two\)[\s\S]*--head NAME[\s\S]*head="
    ) as e:
        convert(record)
    assert e.value.exit_code == 6
    for heads in (("default", "two"), ("one", "Default")):
        found = convert(named(record, *heads))[0]["heads"]["imported"]
        assert found.lower() == "default"


def test_files_of_several_heads_ask_for_one_wherever_a_model_is_named(folder, monkeypatch, capsys):
    from jaxmlip.cli.main import main

    monkeypatch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
    monkeypatch.chdir(folder)
    ask = pytest.raises(ModelError, match=r"heads \(one, two\)[\s\S]*--head NAME")
    for function in (jaxmlip.load, jaxmlip.Calculator):
        with ask:
            function("foundation.model")
    assert main(["singlepoint", "CH4", "--model", "foundation.model"]) == 6
    assert "--head NAME" in capsys.readouterr().err
    assert main(["models", "import", "foundation.model", "--head", "one"]) == 0
    assert "head 'one' of one, two" in capsys.readouterr().err
    card = jaxmlip.pretrained.card("foundation.safetensors")
    assert card["head"] == card["heads"]["imported"] == "one"
    _, imported = jaxmlip.load("foundation.safetensors")
    for head, same in (("one", True), ("two", False)):
        _, params = jaxmlip.load("foundation.model", head=head)
        equal = jax.tree.map(np.array_equal, params, imported)
        assert all(jax.tree.leaves(equal)) == same
    with pytest.raises(ModelError, match="this is 'one'"):
        jaxmlip.load("foundation.safetensors", head="two")


def test_a_model_without_an_energy_is_no_potential(folder, tmp_path, monkeypatch, capsys):
    """Its forces would be zero; what its dipole and its polarisability are for goes on."""
    from jaxmlip.cli import session
    from jaxmlip.cli.main import main
    from jaxmlip.pretrained import imports

    monkeypatch.chdir(tmp_path)
    imports.import_weights(folder / "dielectric_without_l2.model", "d.safetensors")
    commands = [[command, "CH4", "--model"] for command in ("singlepoint", "relax", "ir")]
    for command in (*commands, ["models", "export"]):
        assert main([*command, "d.safetensors"]) == 6
        err = capsys.readouterr().err
        assert "JM508" in err and "no energy" in err
    with pytest.raises(ModelError, match="no energy"):
        jaxmlip.Calculator("d.safetensors")
    verified = session.open_model("d.safetensors", "float64", needs_energy=False).card["verified"]
    assert verified["largest_dipole_eA"] > 1e-3 and verified["dipole_rotation_error_eA"] < 1e-9
    assert verified["polarizability_rotation_error_e2A2_per_eV"] < 1e-9
    assert "energy_eV" not in verified
    potential, params = jaxmlip.load("d.safetensors")
    water = jaxmlip.from_ase(Atoms("OH2", [[0, 0, 0], [0.8, 0.5, 0], [-0.8, 0.5, 0]]), 5.0)
    alpha = jax.jit(jaxmlip.polarizability(potential.apply))(params, water)[0]
    assert_allclose(alpha, alpha.T, atol=1e-12)
    assert np.abs(alpha).max() > 1e-3


def test_the_card_tells_the_settings_of_the_model(folder):
    card, _ = read(folder / "omnibus.model", head="two")
    fields = card["fields"]
    assert fields["gated"] and fields["cut_weights"] and fields["last_readout_only"]
    assert fields["edge_channels"] == [3, 2] and not fields["species_product"]
    assert [q[0] for q in fields["state"]] == ["charge", "spin"]
    assert potential_of(card).cutoff == 5.0


def test_the_projection_of_couplings_loses_nothing(record):
    contraction = child(record, "products", "0", "symmetric_contractions", "contractions", "1")
    for degree in (1, 2):
        couplings = contraction.state["_buffers"][f"U_matrix_{degree}"]
        matrix = projection(couplings, 2, degree, (1, -1))  # raises if the remainder is not zero
        assert matrix.shape[1] == couplings.shape[-1] >= len(matrix)


def test_couplings_outside_the_basis_are_refused():
    with pytest.raises(ModelError, match="not polynomials"):
        projection(np.random.default_rng(0).normal(size=(9, 9, 2)), 2, 2, (0, 1))


def child(record, *names):
    for name in names:
        record = record.state["_modules"][name]
    return record


def of_class(name, *path):
    """A change of a model: the class of one part."""

    def change(model):
        part = child(model, *path)
        part.kind = part.kind.rsplit(".", 1)[0] + "." + name

    return change


def with_more_weights(model):
    linear = child(model, "readouts", "0", "linear")
    linear.state["_parameters"]["lora_A"] = np.ones(3)


def with_other_gate(model):
    act = child(model, "readouts", "1", "non_linearity", "acts", "0")
    act.state["f"] = Global("torch.nn.functional.gelu")


def with_not_a_number(model):
    linear = child(model, "readouts", "0", "linear")
    linear.state["_parameters"]["weight"] = np.full(8, np.nan)


def without_even_harmonics(model):
    harmonics = child(model, "spherical_harmonics")
    pairs = harmonics.state["irreps_out"].args[0]
    pairs[1].args[0][1].args = ((1, 1),)


def with_too_few_weights(model):
    linear = child(model, "interactions", "0", "linear_up")
    linear.state["_parameters"]["weight"] = np.ones(3)


def with_many_layers(model):
    for name in ("interactions", "products"):
        layers = child(model, name).state["_modules"]
        layers.update({str(i): layers["1"] for i in range(2, 17)})


def with_harmonics_of_high_degree(model):
    """Few in the messages, as before: what decides is the degree that our MACE is built with."""
    irreps = child(model, "spherical_harmonics").state["irreps_out"]
    irreps.args = (tuple(term(l) for l in range(41)),)


def term(l):
    return Record("e3nn._MulIr", ((1, Record("e3nn.Irrep", ((l, (-1) ** l),))),))


def without_interactions(model):
    del model.state["_modules"]["interactions"]


@pytest.mark.parametrize(
    "change, message",
    [
        (of_class("PolarMACE"), "PolarMACE"),
        (of_class("RealAgnosticAttResidualInteractionBlock", "interactions", "1"), "AttResidual"),
        (of_class("RealAgnosticInteractionBlock", "interactions", "0"), "mixture"),
        (of_class("FourierBasis", "radial_embedding", "bessel_fn"), "FourierBasis"),
        (of_class("TaperTransform", "radial_embedding", "distance_transform"), "TaperTransform"),
        (of_class("GeneralNonLinearBiasReadoutBlock", "readouts", "1"), "General"),
        (with_more_weights, "lora_A"),
        (with_other_gate, "gelu"),
        (with_not_a_number, "not finite"),
        (without_even_harmonics, "so3"),
        (with_too_few_weights, "damaged"),
        (without_interactions, "no interactions"),
        (with_many_layers, "17 layers"),
        (with_harmonics_of_high_degree, "l = 40 are too many"),
    ],
    ids=lambda x: x if isinstance(x, str) else "",
)
def test_what_cannot_be_represented_is_refused_by_name(record, change, message):
    model = deepcopy(record)
    change(model)
    with pytest.raises(ModelError, match=message) as caught:
        convert(model, head="two")
    assert caught.value.exit_code == 6


def written(path, pickled, extra=()):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x/data.pkl", pickled)
        for name in extra:
            archive.writestr(name, b"")
    return path


def test_a_training_checkpoint_is_refused_with_the_file_to_take_instead(tmp_path):
    import pickle

    path = written(tmp_path / "x.pt", pickle.dumps({"model": {}, "optimizer": {}}, 2))
    with pytest.raises(ModelError, match=r"training checkpoint[\s\S]*\.model"):
        read(path)


def test_a_compiled_model_is_refused(tmp_path):
    path = written(tmp_path / "x.pt", b"c__torch__.mace.modules.models\nX\n.", ["x/code/a.py"])
    assert matches(path)
    with pytest.raises(ModelError, match="TorchScript"):
        read(path)


def test_other_files_do_not_match(tmp_path):
    path = tmp_path / "x"
    for content in (b"", b"PK", b"mace.modules"):
        path.write_bytes(content)
        assert not matches(path)
    assert not matches(tmp_path / "missing") and not matches(tmp_path)
