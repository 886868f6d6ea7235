"""Going on from a potential: what is trained moves, what is frozen keeps every bit."""

import sys
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ase import Atoms
from ase.io import write
from numpy.testing import assert_allclose, assert_array_equal

from jaxmlip import models
from jaxmlip.data.batching import batch, make_buckets
from jaxmlip.errors import DataError, ModelError, UsageError
from jaxmlip.interfaces.ase import from_ase
from jaxmlip.interfaces.labels import read_labelled
from jaxmlip.models import MACE, NequIP, checkpoint
from jaxmlip.models.elements import extend_elements, keep_elements
from jaxmlip.models.heads import choose_head, given, heads_potential, select_head, stack_heads
from jaxmlip.models.leaves import by_name, is_readout, nested
from jaxmlip.nn.linear import SpeciesEmbedding, species_index
from jaxmlip.nn.readout import energy_prediction, read_scalar
from jaxmlip.system import cast, edge_vectors, sum_edges, to_edges
from jaxmlip.train.config.read import read_config
from jaxmlip.train.frames.references import refit
from jaxmlip.train.frames.sources import bare_labels, replayed
from jaxmlip.train.loop import train
from jaxmlip.train.objective.losses import Term, squared
from jaxmlip.train.record import config_to_repeat, file_hash
from jaxmlip.train.setup import make_card
from jaxmlip.train.start.beginning import Beginning, _moved, settle
from jaxmlip.train.start.properties import add_property, readout_of, ridge, scalars
from jaxmlip.train.start.transfer import last_layers, low_rank, transfer
from jaxmlip.train.steps.optimizers import adam
from jaxmlip.train.steps.step import training

KEY = jax.random.key(0)
TERMS = {"energy": Term(1.0, squared), "forces": Term(1.0, squared)}


class Small(nn.Module):
    """A backbone of one layer on distances and a readout, named as the architectures name them."""

    elements: tuple[int, ...]
    cutoff: float = 3.0
    scale: float = 1.0
    width: int = 16

    @nn.compact
    def __call__(self, system):
        species, known = species_index(system.numbers, self.elements)
        r = jnp.linalg.norm(edge_vectors(system), axis=-1)
        inside = jnp.cos(jnp.pi * jnp.minimum(r / self.cutoff, 1)) + 1
        radial = jnp.exp(-8 * (r[..., None] - jnp.linspace(0.5, self.cutoff, 8)) ** 2)
        embedding = SpeciesEmbedding(8, len(self.elements), name="embedding")
        own = embedding(species, r.dtype)[0, 1][:, 0]
        pair = radial * inside[..., None] * to_edges(system, own)
        x = jnp.concatenate([sum_edges(system, pair), own], axis=-1)
        x = nn.tanh(nn.Dense(self.width, name="backbone")(x))
        self.sow("intermediates", "scalars", x)
        energies = self.scale * read_scalar("energy", [{(0, 1): x[:, None]}], 8)
        return energy_prediction(system, energies, known)


@pytest.fixture(autouse=True)
def small(monkeypatch):
    monkeypatch.setattr(models, "_HOME", {**models._HOME, "Small": "small"})
    monkeypatch.setattr(models, "__all__", [*models.__all__, "Small"])
    monkeypatch.setitem(sys.modules, "jaxmlip.models.small", sys.modules[__name__])


def molecules(n, *, seed=0, stiffness=6.0, offset=-430.0, centre="O"):
    """Waters and hydroxyls with bonds as springs of a given stiffness, eV/Å²."""
    rng, out = np.random.default_rng(seed), []
    for i in range(n):
        size = 3 if i % 3 else 2
        positions = np.array([[0, 0, 0], [0.8, 0, 0.5], [-0.8, 0, 0.5]])[:size]
        positions = positions + 0.1 * rng.normal(size=positions.shape)
        bonds = positions[1:] - positions[0]
        r = np.linalg.norm(bonds, axis=1, keepdims=True)
        pull = stiffness * (r - 0.95) * bonds / r
        atoms = Atoms(f"{centre}HH"[: size + len(centre) - 1], positions)
        energy = offset - 14 * size + stiffness / 2 * ((r - 0.95) ** 2).sum()
        atoms.info["REF_energy"] = float(energy)
        atoms.arrays["REF_forces"] = np.concatenate([pull.sum(0, keepdims=True), -pull])
        out.append(atoms)
    return out


def labelled(path, atoms, dtype=np.float64):
    write(path, atoms)
    return read_labelled(path, 3.0, dtype=dtype)


def one_batch(frames):
    (bucket,) = make_buckets(frames, n_buckets=1, max_atoms=200)
    return batch(frames, bucket, range(len(frames)))


def begin(model, system):
    return jax.jit(model.init)(KEY, system)


def steps(potential, system, labels, n=5, terms=TERMS, rate=0.01):
    optimizer = adam(clip=10.0, weight_decay=0.0, amsgrad=False)
    init, step = training(potential, terms, optimizer=optimizer, ema=0.9)
    state = init(KEY, system)
    for _ in range(n):
        state, metrics = step(state, system, labels, np.asarray(rate, system.positions.dtype))
    return state.params, metrics


@pytest.fixture
def start(tmp_path):
    """(model, params, system, labels) of water with energies of a few eV."""
    frames = labelled(tmp_path / "w.extxyz", molecules(6, offset=42.0))
    system, labels = one_batch(frames)
    model = Small(elements=(1, 8))
    return model, cast(begin(model, system), np.float64), system, labels


# --- what moves ----------------------------------------------------------------------------------


def test_last_layers_move_and_the_backbone_keeps_every_bit(start):
    model, params, system, labels = start
    tuned = transfer(model, params, update=last_layers)
    trained, _ = steps(tuned, system, labels)
    assert set(by_name(trained)) == {"params/energy_0/hidden", "params/energy_0/out"}
    before, after = by_name(params), by_name(tuned.merge(trained))
    assert before.keys() == after.keys()
    for name in before:
        assert is_readout(name) == bool((np.asarray(before[name]) != after[name]).any()), name


def test_low_ranks_begin_at_the_model_and_merge_into_one_of_its_kind(start):
    """A B is zero at first; after training, the merged weights W + A B predict the same."""
    model, params, system, labels = start
    tuned = transfer(model, params, update=partial(low_rank, rank=2))
    start_of_all = tuned.init(KEY, system)
    jax.tree.map(assert_array_equal, tuned.merge(start_of_all), params)
    first = jax.jit(tuned.apply)(start_of_all, system)["energy"]
    known = jax.jit(model.apply)(params, system)["energy"]  # may sum in another order
    assert_allclose(first, known, rtol=1e-14)
    trained, _ = steps(tuned, system, labels)
    merged = tuned.merge(trained)
    apart = by_name(merged)["params/backbone/kernel"] - params["params"]["backbone"]["kernel"]
    values = np.linalg.svd(apart, compute_uv=False)
    assert values[1] > 1e-6 and (values[2:] < 1e-14).all()  # rank 2, in float64
    both = (tuned.apply, trained), (model.apply, merged)
    one, other = (jax.jit(f)(p, system) for f, p in both)
    assert_allclose(one["energy"], other["energy"], rtol=1e-13)
    sizes = [sum(x.size for x in jax.tree.leaves(tree)) for tree in (trained, params)]
    assert sizes[0] < 0.6 * sizes[1]


def test_what_is_chosen_must_be_there(start):
    model, params, _, _ = start
    with pytest.raises(UsageError, match="no parameter is chosen"):
        transfer(model, {"params": {"backbone": params["params"]["backbone"]}}, update=last_layers)


# --- reference energies --------------------------------------------------------------------------


def test_references_of_another_level_are_found_exactly_and_unknown_elements_take_the_rest():
    """Labels = start + sum of e(z): e is found, also where a new element begins at nothing."""
    numbers = [np.array(n) for n in ([8, 1, 1], [8, 8, 1, 1], [16, 1, 1], [8], [1, 1])]
    old, new = {1: -3.0, 8: -20.0}, {1: -3.5, 8: -21.0, 16: -1000.0}
    bare = np.array([0.3, -0.2, 0.1, 7.0, 0.5])
    energies = bare + [sum(new[int(z)] for z in n) for n in numbers]
    energies[3] += 5.0  # an atom alone, which the start does not know, is left out
    found, shift = refit(numbers, energies, bare, old)
    assert found == pytest.approx(new, abs=1e-8)
    assert shift == pytest.approx(np.sqrt(np.mean([(2 / 3) ** 2, 0.75**2, (1 / 3) ** 2, 0.25])))
    # without H2 and H2O2 compositions leave a choice: the known elements move little
    found, _ = refit(numbers[2:3], energies[2:3], bare[2:3], old)
    assert found[1] == pytest.approx(-3.0, abs=0.01) and found[16] == pytest.approx(-1001, abs=0.1)


def test_an_element_of_which_only_crystals_of_one_atom_tell_is_no_silent_zero():
    """Copper in its primitive cell beside water; sulphur has no energy and so no reference."""
    numbers = [np.array(n) for n in ([8, 1, 1], [29], [16, 1, 1])]
    energies, bare = np.array([-27.0, -3.5, np.nan]), np.array([0.0, 0.5, 0.0])
    found, _ = refit(numbers, energies, bare, {1: -3.0, 8: -21.0})
    assert found == pytest.approx({1: -3.0, 8: -21.0, 29: -4.0})


# --- runs ----------------------------------------------------------------------------------------

RUN = """
start: {model: start.safetensors, update: last}
data: {train: train.extxyz, valid: valid.extxyz, checks: false}
loss: {energy: 1.0, forces: 1.0}
optimizer: {learning_rate: 0.01, warmup_steps: 3}
epochs: 2
batch_atoms: 32
buckets: 1
output: out
"""


@pytest.fixture
def run(tmp_path):
    write(tmp_path / "train.extxyz", molecules(12))
    write(tmp_path / "valid.extxyz", molecules(4, seed=1))
    model = Small(elements=(1, 6, 8), scale=0.5)
    system = labelled(tmp_path / "some.extxyz", molecules(2), np.float32)[1][0]
    card = {"architecture": "Small", "fields": {"elements": [1, 6, 8], "scale": 0.5}}
    card |= {"reference_energies": {"1": -1.0, "6": -2.0, "8": -3.0}, "licence": "MIT"}
    checkpoint.save(tmp_path / "start.safetensors", card, begin(model, system))
    (tmp_path / "run.yaml").write_text(RUN)
    return tmp_path / "run.yaml"


def quiet(event):
    pass


def test_a_run_goes_on_from_a_file_with_references_of_the_new_level(run, tmp_path):
    path = train(run, progress=quiet)
    card, leaves = checkpoint.read(path)
    old, before = checkpoint.read(tmp_path / "start.safetensors")
    for name in before:
        assert is_readout(name) == bool((before[name] != leaves[name]).any()), name
    assert card["fields"]["scale"] == 0.5 and card["licence"] == "MIT"
    assert card["started_from"] == {"sha256": old["sha256"], "update": "last"}
    assert set(card["reference_energies"]) == {"1", "8"}  # carbon is not of the new level
    assert card["accuracy"]["energy_mae_meV_per_atom"] < 500  # eV/atom of another level: 140
    assert config_to_repeat(tmp_path / "out")[1] == []
    other = {name.removeprefix("params/"): 2 * x for name, x in before.items()}
    checkpoint.save(tmp_path / "start.safetensors", old, {"params": nested(other)})
    with pytest.raises(DataError, match="the model to start from, .*, has changed since: SHA-256"):
        config_to_repeat(tmp_path / "out")
    potential, params, _ = checkpoint.load(path)
    methane = from_ase(Atoms("CH", [[0, 0, 0], [0, 0, 1.1]]), 3.0)
    assert np.isnan(jax.jit(potential.apply)(params, methane)["energy"]).all()


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("loss:", "model: {architecture: Small, fields: {scale: 1.0}}\nloss:", "1.0 here, 0.5"),
        ("update: last", "reference_energies: keep", "another level"),
        ("update: last", "update: lst", "Did you mean 'last'"),
        ("update: last", "reference_energies: old", "refit, keep"),
        ("update: last", "heads: [a]", "two or more"),
        ("forces: 1.0", "dipole: 1.0", "does not predict"),
        ("epochs", "ensemble: 2\nepochs", "would be equal"),
    ],
)
def test_a_start_that_cannot_be_is_refused(run, old, new, message):
    run.write_text(RUN.replace(old, new))
    with pytest.raises((UsageError, DataError), match=message):
        train(run, progress=quiet)


def test_elements_that_the_start_does_not_know_must_be_named(run, tmp_path):
    write(tmp_path / "train.extxyz", molecules(6) + molecules(6, centre="S"))
    with pytest.raises(UsageError, match=r"elements \[16\].*"):
        train(run, progress=quiet)


@pytest.mark.slow
def test_replayed_frames_keep_their_distance_to_the_references(run, tmp_path):
    """Energies of another level move with the references, those of the start as well."""
    from jaxmlip.train.setup import prepare

    write(tmp_path / "old.extxyz", molecules(9, seed=3, offset=50.0))
    replay = "replay: {train: old.extxyz, fraction: 0.25, weight: 0.5}\n"
    run.write_text(RUN + replay)
    got = prepare(read_config(run))
    assert len(got.train) == 16  # 12 and a quarter of all
    weights = [float(labels["weight"][0]) for _, labels in got.train]
    assert np.isnan(weights[:12]).all() and weights[12:] == [0.5] * 4
    old = {
        z: float(e)
        for z, e in checkpoint.read(tmp_path / "start.safetensors")[0]["reference_energies"].items()
    }
    frames = labelled(tmp_path / "again.extxyz", molecules(9, seed=3, offset=50.0), np.float32)
    left = [float(l["energy"][0]) - sum(old[str(z)] for z in s.numbers) for s, l in frames]
    for _, labels in got.train[12:]:
        assert min(abs(labels["energy"][0] - x) for x in left) < 1e-4
    run.write_text(RUN + replay.replace("weight: 0.5", "labels: start"))
    told = prepare(read_config(run))
    potential, params, card = checkpoint.load(tmp_path / "start.safetensors")
    apply = jax.jit(checkpoint.potential_of(card | {"reference_energies": {}}).apply)
    for system, labels in told.train[12:]:
        assert_allclose(labels["energy"], apply(params, system)["energy"], atol=1e-4)


def replay_of(run, tmp_path, replay, more=""):
    """The configuration of a run with a section `replay`."""
    run.write_text(RUN.replace("update: last", "update: last" + more) + f"replay: {{{replay}}}\n")
    return read_config(run, overrides={"model.fields": {"cutoff": 3.0}})


def test_what_is_replayed_keeps_its_weights_and_isolated_atoms_stay_out(run, tmp_path):
    old = molecules(4) + [Atoms("O", info={"REF_energy": -7.0})]
    old[1].info["config_weight"] = 3.0
    write(tmp_path / "old.extxyz", old)
    config = replay_of(run, tmp_path, "train: old.extxyz, fraction: 0.9, weight: 0.5")
    frames = replayed(config, Beginning(), TERMS, 100)
    assert sorted(s.n_atoms for s, _ in frames) == [2, 2, 3, 3]
    assert sorted(float(labels["weight"][0]) for _, labels in frames) == [0.5, 0.5, 0.5, 1.5]


def test_replayed_forces_need_no_energies(run, tmp_path):
    old = molecules(4)
    for atoms in old:
        del atoms.info["REF_energy"]
    write(tmp_path / "old.extxyz", old)
    config = replay_of(run, tmp_path, "train: old.extxyz")
    new = labelled(tmp_path / "train.extxyz", molecules(4))
    frames = new + replayed(config, Beginning(), TERMS, 4)
    card = make_card(config, frames, TERMS)
    assert card["data"]["replay"]["sha256"] == file_hash(tmp_path / "old.extxyz")
    bare = bare_labels(frames, card)
    assert [bool(np.isnan(labels["energy"][0])) for _, labels in bare] == 4 * [False] + 4 * [True]


def test_energies_of_a_start_without_references_are_replayed():
    """What is a total energy for the start is moved by the references of the new level."""
    water = from_ase(molecules(2)[1], 3.0)
    _, labels = _moved((water, {"energy": np.array([5.0])}), {}, {1: -1.0, 8: -10.0})
    assert labels["energy"] == [5.0 - 12.0]
    _, labels = _moved((water, {"energy": np.array([5.0])}), {"1": 0.0}, {1: -1.0, 8: -10.0})
    assert np.isnan(labels["energy"])


# --- levels of theory ----------------------------------------------------------------------------


def two_levels(tmp_path):
    """Frames of two spring constants and energies; a potential with two heads, and the batch."""
    frames = []
    for i, (stiffness, offset) in enumerate(((6.0, 42.0), (9.0, 52.0))):
        some = labelled(tmp_path / "h.extxyz", molecules(6, stiffness=stiffness, offset=offset))
        frames += [(s, labels | {"head": np.array([float(i)])}) for s, labels in some]
    model = Small(elements=(1, 8))
    return model, heads_potential(model, ["low", "high"]), *one_batch(frames)


@pytest.mark.slow
def test_two_labelings_of_the_same_structures_are_learnt_by_two_heads(tmp_path):
    """One head can at best meet the mean of both, forces of spring constants 6 and 9."""
    model, both, system, labels = two_levels(tmp_path)
    wrong = {}
    for name, potential in (("two heads", both), ("one", model)):
        known = {k: x for k, x in labels.items() if k != "head" or potential is both}
        _, metrics = steps(potential, system, known, n=400, rate=0.02)
        sums = metrics["sums"]["forces"]
        wrong[name] = float(np.sqrt(sums[1] / sums[3]))
    assert wrong["two heads"] < 0.3 * wrong["one"]


def test_training_one_head_leaves_the_others_bit_by_bit(tmp_path):
    _, both, system, labels = two_levels(tmp_path)
    params = begin(both, system)
    low = np.asarray(labels["head"]) == 0
    atoms = low[np.asarray(system.graph)]
    labels = labels | {
        "energy": np.where(low, labels["energy"], np.nan),
        "forces": np.where(atoms[:, None], labels["forces"], np.nan),
    }
    trained, _ = steps(transfer(both, params), system, labels)
    before, after = by_name(params["heads"]), by_name(trained["heads"])
    for name in before:
        assert_array_equal(before[name][1], after[name][1])
        assert (np.asarray(before[name][0]) != after[name][0]).any()
    backbone = [tree["params"]["backbone"]["kernel"] for tree in (params, trained)]
    assert (np.asarray(backbone[0]) != backbone[1]).any()


def test_one_head_is_an_ordinary_potential_and_none_is_chosen_silently(tmp_path):
    model, _, system, labels = two_levels(tmp_path)
    references = {"low": {"1": -1.0, "8": -2.0}, "high": {"1": -10.0, "8": -20.0}}
    fields = {"elements": [1, 8]}
    card = {"architecture": "Small", "fields": fields, "head_names": ["low", "high"]}
    card["head_reference_energies"] = references
    params = stack_heads(begin(model, system), 2)
    params["heads"]["energy_0"]["out"] = params["heads"]["energy_0"]["out"] * jnp.array(
        [1.0, 3.0]
    ).reshape(2, 1, 1)
    checkpoint.save(tmp_path / "both.safetensors", card, params)
    potential, params, card = checkpoint.load(tmp_path / "both.safetensors")
    with pytest.raises(ModelError, match="low, high"):
        potential.apply(params, system)
    with pytest.raises(ModelError, match="Did you mean 'high'"):
        choose_head(params, card, "hihg")
    each, apply = {}, jax.jit(potential.apply)
    for head in card["head_names"]:
        one = select_head(card, params, head)
        checkpoint.save(tmp_path / f"{head}.safetensors", *one)
        alone, weights, _ = checkpoint.load(tmp_path / f"{head}.safetensors")
        each[head] = jax.jit(alone.apply)(weights, system)["energy"]
        checkpoint.save(tmp_path / "chosen.safetensors", card, choose_head(params, card, head))
        _, weights, _ = checkpoint.load(tmp_path / "chosen.safetensors")
        chosen = apply(choose_head(params, card, head), system)["energy"]
        assert_allclose(chosen, each[head], rtol=1e-13)
        assert_array_equal(weights["head"], card["head_names"].index(head))
    mixed = apply(given(params, labels), system)["energy"]
    assert_allclose(mixed, np.where(labels["head"] == 0, each["low"], each["high"]), rtol=1e-13)


@pytest.mark.slow
def test_a_run_of_several_levels_reads_them_from_the_frames(run, tmp_path):
    low, high = molecules(9), molecules(9, stiffness=9.0, offset=-900.0)
    for atoms in high:
        atoms.info["head"] = "high"
    write(tmp_path / "train.extxyz", low + high)
    run.write_text(RUN.replace("update: last", "update: lora, heads: [low, high], head: low"))
    path = train(run, progress=quiet)
    potential, params, card = checkpoint.load(path)
    water = low[1]
    for head, energy in (("low", -430 - 42), ("high", -900 - 42)):
        one = select_head(card, params, head)
        out = jax.jit(checkpoint.potential_of(one[0]).apply)(one[1], from_ase(water, 3.0))
        assert float(out["energy"][0]) == pytest.approx(energy, abs=3.0)


def test_isolated_atoms_and_given_energies_are_references_of_their_heads(run, tmp_path):
    run.write_text(
        RUN.replace("model: start.safetensors, update: last", "heads: [low, high]").replace(
            "checks: false", "checks: false, reference_energies: {H: -13.5}"
        )
    )
    config = read_config(run, overrides={"model.fields": {"cutoff": 3.0}})
    of = lambda frames, i: [(s, {**l, "head": np.array([float(i)])}) for s, l in frames]
    low = of(labelled(tmp_path / "low.extxyz", molecules(6)), 0)
    high = of(labelled(tmp_path / "high.extxyz", molecules(6, offset=-900.0)), 1)
    oxygen = Atoms("O", info={"REF_energy": -425.0})
    atoms = of(labelled(tmp_path / "atom.extxyz", [oxygen]), 0)
    found = settle(Beginning(), config, TERMS, low + high, atoms=atoms).references
    assert found["low"] == {1: -13.5, 8: -425.0}
    assert found["high"][1] == -13.5 and found["high"][8] == pytest.approx(-922.5, abs=20)


def test_a_head_that_the_run_does_not_list_is_an_error_and_never_another(run, tmp_path):
    frames = molecules(4)
    frames[2].info["head"] = "hihg"
    write(tmp_path / "train.extxyz", frames)
    run.write_text(RUN.replace("update: last", "heads: [low, high], head: low"))
    with pytest.raises(DataError, match="frame 2.*'hihg'.*Did you mean 'high'"):
        train(run, progress=quiet)
    run.write_text(RUN.replace("update: last", "heads: [low, high]"))
    with pytest.raises(DataError, match="frame 0.*names no head"):
        train(run, progress=quiet)


# --- elements ------------------------------------------------------------------------------------

SIZES = dict(cutoff=3.0, channels=4, l_max=1, n_radial=4, radial_widths=(8,), n_layers=2)
ARCHITECTURES = {
    "MACE": MACE(elements=(1, 8), correlation=2, hidden_l=0, **SIZES),
    "NequIP": NequIP(elements=(1, 8), scale=(1.0, 2.0), shift=(3.0, 4.0), **SIZES),
}


@pytest.mark.parametrize("name", ["MACE", pytest.param("NequIP", marks=pytest.mark.slow)])
def test_an_element_that_begins_like_another_is_the_other_and_the_old_ones_stay(name):
    """Water, and hydrogen sulphide with S like O; then without S again: the same weights."""
    model = ARCHITECTURES[name]
    water = molecules(2)[1]
    system = from_ase(water, 3.0)
    params = jax.jit(model.init)(KEY, system)
    fields = {f: getattr(model, f) for f in ("elements", *SIZES)}
    more = {"correlation": 2, "hidden_l": 0} if name == "MACE" else {"scale": [1.0, 2.0]}
    more |= {} if name == "MACE" else {"shift": [3.0, 4.0]}
    card = {"architecture": name, "fields": {**fields, **more, "elements": [1, 8]}}
    card["reference_energies"] = {"1": -1.0, "8": -2.0}
    leaves = {k: np.asarray(v, float) for k, v in by_name(params).items()}
    extended, longer = extend_elements(card, leaves, [16, 9], like={16: 8})
    assert extended["fields"]["elements"] == [1, 8, 9, 16]
    bare = checkpoint.potential_of({**extended, "reference_energies": {}})
    apply = jax.jit(bare.apply)
    old = jax.jit(model.apply)(nested(leaves), system)["energy"]
    new = nested(longer)
    assert_allclose(apply(new, system)["energy"], old, rtol=1e-12)
    water.numbers[0] = 16
    assert_allclose(apply(new, from_ase(water, 3.0))["energy"], old, rtol=1e-12)
    water.numbers[0] = 9  # not like any: the mean of what is known
    assert abs(apply(new, from_ase(water, 3.0))["energy"] - old) > 1e-3
    assert set(extended["reference_energies"]) == {"1", "8"}  # others are NaN until they are given
    back, shorter = keep_elements(extended, longer, [1, 8])
    assert back["fields"] == card["fields"]
    for key in leaves:
        assert_allclose(shorter[key], leaves[key], rtol=1e-15, err_msg=key)


def test_an_element_must_be_like_a_known_one():
    card = {"architecture": "MACE", "fields": {"elements": [1, 8]}}
    with pytest.raises(ModelError, match="16 was to be like 7"):
        extend_elements(card, {}, [16], like={16: 7})
    with pytest.raises(ModelError, match="can be added to MACE"):
        extend_elements({**card, "architecture": "So3krates"}, {}, [16])


# --- properties ----------------------------------------------------------------------------------


def measured(tmp_path, rng, n=30):
    """A card, params and frames whose property is linear in the features, with a little noise."""
    frames = labelled(tmp_path / "p.extxyz", molecules(n))
    card = {"architecture": "Small", "fields": {"elements": [1, 8], "width": 6}}
    card["reference_energies"] = {"1": -1.0, "8": -2.0}
    params = begin(checkpoint.build(card), frames[0][0])
    features = scalars(card, params, [s for s, _ in frames])
    true = rng.normal(size=features[0].shape[1])
    mean = np.array([x.mean(0) @ true for x in features])
    y = 7.0 + mean + 1e-3 * rng.normal(size=n) * mean.std()
    return card, params, [(s, {"gap": y[i : i + 1]}) for i, (s, _) in enumerate(frames)], y


def test_a_property_linear_in_the_features_is_found_and_travels_in_a_file(tmp_path):
    card, params, frames, y = measured(tmp_path, np.random.default_rng(0))
    found = ridge(card, params, "gap", frames, unit="eV")
    assert found.error < 0.01 * found.composition
    path = tmp_path / "gap.safetensors"
    checkpoint.save(path, found.card, found.params)
    potential, weights, card = checkpoint.load(path)
    assert card["properties"]["gap"]["fit"]["structures"] == 30
    system, _ = one_batch(frames)
    out = jax.jit(potential.apply)(weights, system)
    assert_allclose(out["gap"][:30], y, atol=5e-3 * y.std())
    plain = checkpoint.potential_of({**card, "properties": {}})
    assert_allclose(out["energy"], jax.jit(plain.apply)(weights, system)["energy"], rtol=1e-13)


def test_the_error_of_what_is_left_out_is_that_of_fits_without_it():
    """Groups of rows against as many fits as there are groups, with a penalty of 1e-2."""
    from jaxmlip.train.start.properties import _left_out

    rng = np.random.default_rng(3)
    x, c, y = rng.normal(size=(24, 5)), np.repeat(np.eye(2), 12, 0), rng.normal(size=24)
    group, penalty = np.arange(24) // 3, 1e-2
    q, _ = np.linalg.qr(c)
    u, s, _ = np.linalg.svd(x - q @ (q.T @ x), full_matrices=False)
    fast = _left_out(np.hstack([q, u * np.sqrt(s**2 / (s**2 + penalty))]), y, group)
    slow = 0.0
    for g in range(8):
        a = np.hstack([x, c])
        stay, out = group != g, group == g
        normal = a[stay].T @ a[stay] + np.diag([penalty] * 5 + [0, 0])
        slow += ((y[out] - a[out] @ np.linalg.solve(normal, a[stay].T @ y[stay])) ** 2).sum()
    assert fast == pytest.approx(np.sqrt(slow / 24), rel=1e-9)


GAP = """property: {name: gap, unit: eV, widths: WIDTHS}
optimizer: {learning_rate: 0.05, warmup_steps: 3}
epochs: EPOCHS
"""


def run_of_property(run, tmp_path, *, widths, epochs):
    """(model of a run, its start) on frames whose gap is 2 eV more for every hydrogen, 1 for O."""
    for name, n, seed in (("train", 24, 0), ("valid", 6, 1)):
        frames = molecules(n, seed=seed)
        for atoms in frames:
            atoms.info["REF_gap"] = float(1 + 2 * atoms.numbers.tolist().count(1)) / len(atoms)
        write(tmp_path / f"{name}.extxyz", frames)
    text = RUN.replace("optimizer: {learning_rate: 0.01, warmup_steps: 3}\nepochs: 2\n", GAP)
    run.write_text(text.replace("WIDTHS", str(widths)).replace("EPOCHS", str(epochs)))
    return checkpoint.read(train(run, progress=quiet)), checkpoint.read(
        tmp_path / "start.safetensors"
    )


def check_frozen(found, begun):
    (card, leaves), (old, before) = found, begun
    for name in before:
        np.testing.assert_array_equal(leaves[name], before[name])
    assert card["reference_energies"] == old["reference_energies"]
    assert card["properties"]["gap"]["unit"] == "eV"


def test_a_linear_property_is_solved_by_a_run_and_leaves_the_model_as_it_was(run, tmp_path):
    found, begun = run_of_property(run, tmp_path, widths=[], epochs=1)
    check_frozen(found, begun)
    assert found[0]["properties"]["gap"]["fit"]["structures"] == 24
    assert found[0]["accuracy"]["gap_rmse_own_unit"] < 1e-5  # of 1.5: a table by element has it
    potential, params, _ = checkpoint.load(tmp_path / "out/model.safetensors")
    water = from_ase(Atoms("OH2", [[0, 0, 0], [0.8, 0, 0.5], [-0.8, 0, 0.5]]), 3.0)
    out = jax.jit(potential.apply)(params, water)
    assert_allclose(out["gap"], [5 / 3], atol=1e-5)  # float32
    run.write_text(run.read_text().replace("name: gap", "name: gap, key: GAP"))
    with pytest.raises(DataError, match="no frame has 'GAP'"):
        train(run, progress=quiet)
    for old, new, message in (
        ("start: {model: start.safetensors, update: last}\n", "", "there is none"),
        ("buckets: 1", "ensemble: 2", "'ensemble' and 'property' do not combine"),
    ):
        run.with_name("no.yaml").write_text(
            run.read_text().replace(old, new or "model: {fields: {cutoff: 3.0}}\n")
        )
        with pytest.raises(UsageError, match=message):
            train(run.with_name("no.yaml"), progress=quiet)


@pytest.mark.slow
def test_a_network_for_a_property_is_trained_by_a_run(run, tmp_path):
    found, begun = run_of_property(run, tmp_path, widths=[8], epochs=60)
    check_frozen(found, begun)
    assert found[0]["accuracy"]["gap_rmse_own_unit"] < 0.1  # of 1.5


@pytest.mark.slow
def test_a_network_for_a_property_is_trained_by_the_ordinary_step(tmp_path):
    card, params, frames, _ = measured(tmp_path, np.random.default_rng(1))
    card, params = add_property(card, params, "gap", frames[0][0], widths=[8], key=KEY)
    bare = checkpoint.potential_of({**card, "reference_energies": {}})
    tuned = transfer(bare, params, update=readout_of("gap"))
    system, labels = one_batch(frames)
    terms = {"gap": Term(1.0, squared)}
    trained, metrics = steps(tuned, system, labels, n=300, terms=terms, rate=0.05)
    assert metrics["sums"]["gap"][1] / 30 < 0.05  # of 7²
    assert by_name(trained).keys() == {n for n in by_name(params) if n.startswith("properties/")}


def test_names_that_a_potential_owns_are_no_property(start):
    _, params, system, _ = start
    card = {"architecture": "Small", "fields": {"elements": [1, 8]}}
    for name, entry, message in (
        ("energy", {}, "itself"),
        ("gap", {"of": "molecule"}, "structure or atom"),
        ("charges", {"of": "structure"}, "not such a scalar"),
        ("gap", {"extensiv": True}, "Did you mean 'extensive'"),
    ):
        with pytest.raises(ModelError, match=message):
            add_property(card, params, name, system, key=KEY, **entry)
