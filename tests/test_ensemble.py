"""Members trained at once are those trained one by one; their mean and spread are one potential."""

import functools
import sys
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from ase.io import write
from numpy.testing import assert_allclose
from structures import KEY, card
from toy_model import CUTOFF, ToyModel, frames

from jaxmlip import models
from jaxmlip.data.batching import batch, make_buckets
from jaxmlip.derivatives import hessian
from jaxmlip.derivatives.first import with_forces
from jaxmlip.errors import ModelError, UsageError
from jaxmlip.interfaces.ase import to_ase
from jaxmlip.models import checkpoint
from jaxmlip.models.members import predict_members
from jaxmlip.train.ensemble import (
    ensemble,
    ensemble_potential,
    in_turn,
    leave_out,
    split_members,
    stack_members,
    together,
)
from jaxmlip.train.loop import train
from jaxmlip.train.losses import Term, squared
from jaxmlip.train.step import training

N, MODEL = 3, ToyModel()
FRAMES = frames(8)
TERMS = {"energy": Term(1.0, squared), "forces": Term(10.0, squared)}


def a_batch(members, bucket=None):
    bucket = bucket or make_buckets(FRAMES, n_buckets=1, max_atoms=30)[0]
    return batch(FRAMES, bucket, members)


@functools.cache
def trainer():
    return training(MODEL, TERMS, optimizer=optax.scale_by_adam(), ema=0.9)


def close(tree, expected, **options):
    jax.tree.map(lambda a, b: assert_allclose(a, b, **options), tree, expected)


@pytest.mark.parametrize("over", [together, pytest.param(in_turn, marks=pytest.mark.slow)])
def test_members_are_what_they_are_alone(over):
    """1e-10: sums in another order, amplified by five steps of Adam."""
    (system, labels), (init, step) = a_batch(range(8)), trainer()
    init_all, step_all = ensemble(init, step, N, over=over)
    states = init_all(KEY, system)
    alone = [init(key, system) for key in jax.random.split(KEY, N)]
    for _ in range(5):
        states, metrics = step_all(states, system, labels, 1e-2)
        alone = [step(state, system, labels, 1e-2) for state in alone]
        each, alone = [m for _, m in alone], [s for s, _ in alone]
    close(split_members(states.params), [s.params for s in alone], rtol=1e-10, atol=1e-12)
    assert_allclose(metrics["loss"], np.mean([m["loss"] for m in each]))
    assert_allclose(metrics["sums"]["forces"], sum(m["sums"]["forces"] for m in each))
    assert_allclose(metrics["gradient"], max(m["gradient"] for m in each))
    assert step_all._cache_size() == 1
    first, second = split_members(states.params)[:2]
    assert not np.allclose(jax.tree.leaves(first)[0], jax.tree.leaves(second)[0])


def test_a_member_that_breaks_stops_and_the_others_go_on():
    (system, labels), (init, step) = a_batch(range(8)), trainer()
    init_all, step_all = ensemble(init, step, N)
    states = init_all(KEY, system)
    broken = jax.tree.map(lambda x: x.at[1].set(jnp.nan), states.params)
    before = split_members(jax.device_get(states.params))
    states, metrics = step_all(replace(states, params=broken), system, labels, 1e-2)
    assert np.asarray(states.bad).tolist() == [0, 1, 0] and metrics["bad"] == 1
    after = split_members(jax.device_get(states.params))
    assert np.isfinite(jax.tree.leaves(after[2])[0]).all()
    assert not np.allclose(jax.tree.leaves(after[2])[0], jax.tree.leaves(before[2])[0])


def test_prediction_is_the_mean_and_the_spread_of_members():
    system, _ = a_batch(range(8))
    stacked = jax.jit(ensemble_potential(MODEL, N).init)(KEY, system)
    members = split_members(stacked)
    close(stack_members(members), stacked)
    one = jax.jit(with_forces(MODEL.apply))
    each = [one(w, system) for w in members]
    for forces in (True, False):
        together_ = ensemble_potential(MODEL, N, forces=forces)
        out = jax.jit(with_forces(together_.apply))(stacked, system)
        for name in ("energy", "energies", "forces"):
            mean = np.mean([e[name] for e in each], axis=0)
            assert_allclose(out[name], mean, rtol=1e-12, atol=1e-13)
        spread = np.std([e["energy"] for e in each], axis=0, ddof=1)
        assert_allclose(out["energy_uncertainty"], spread, rtol=1e-10, atol=1e-13)
        spread = np.var([e["forces"] for e in each], axis=0, ddof=1).mean(-1) ** 0.5
        if forces:
            assert_allclose(out["forces_uncertainty"], spread, rtol=1e-10, atol=1e-13)
        assert ("forces_uncertainty" in out) == forces


def test_members_in_turn_predict_the_same():
    system, _ = a_batch(range(8))
    stacked = jax.jit(ensemble_potential(MODEL, N).init)(KEY, system)
    out = jax.jit(predict_members(with_forces(MODEL.apply), N))(stacked, system)
    expected = jax.jit(with_forces(ensemble_potential(MODEL, N).apply))(stacked, system)
    close(out, expected, rtol=1e-10, atol=1e-13)


@pytest.mark.slow
def test_second_derivatives_are_means_too():
    system, _ = FRAMES[1]
    potential = ensemble_potential(MODEL, N)
    stacked = jax.jit(potential.init)(KEY, system)
    one, mean = (jax.jit(hessian(p.apply)) for p in (MODEL, potential))
    each = [one(w, system) for w in split_members(stacked)]
    assert_allclose(mean(stacked, system), np.mean(each, 0), atol=1e-12)


def test_what_a_member_does_not_see_is_decided_by_the_frame_alone():
    """In other batches, in another order, with more padding: the same frames are left out."""
    bucket = make_buckets(FRAMES, n_buckets=1, max_atoms=30)[0]
    roomy = replace(bucket, n_atoms=bucket.n_atoms + 5, n_graphs=bucket.n_graphs + 2)

    def seen(order, bucket, member):
        system, labels = a_batch(order, bucket)
        out = leave_out({**labels, "weight": np.ones(bucket.n_graphs)}, system, member, share=0.5)
        assert not np.isnan(out["weight"]).any()
        known = ~np.isnan(out["energy"])
        rows = ~np.isnan(out["forces"]).any(-1)
        assert (rows == (known[system.graph] & system.atom_mask)).all()
        return {i for g, i in enumerate(order) if known[g]}

    sets = [seen(range(8), bucket, m) for m in range(6)]
    assert seen([5, 2, 7, 0, 1, 3, 4, 6], roomy, 0) == sets[0]
    assert len(set(map(frozenset, sets))) > 3


def test_the_share_of_frames_is_seen():
    many = frames(200, seed=3)
    bucket = make_buckets(many, n_buckets=1, max_atoms=600)[0]
    system, labels = batch(many, bucket, range(200))
    for share in (0.3, 0.8):
        out = leave_out(labels, system, 0, share=share)
        count = (~np.isnan(out["energy"])).sum()
        assert abs(count - 200 * share) < 4 * np.sqrt(200 * share * (1 - share))


@pytest.mark.slow
def test_members_that_see_different_frames_learn_different_weights():
    (system, labels), (init, step) = a_batch(range(8)), trainer()
    init_all, step_all = ensemble(init, step, 2, share=0.6)
    states = init_all(KEY, system)
    same = jax.tree.map(lambda x: jnp.stack([x[0], x[0]]), states)
    states, _ = step_all(same, system, labels, 1e-2)
    first, second = split_members(states.params)
    gap = jax.tree.map(lambda a, b: np.abs(a - b).max(), first, second)
    assert max(jax.tree.leaves(gap)) > 1e-4


def test_one_file_holds_an_ensemble(tmp_path, monkeypatch):
    monkeypatch.setattr(models, "_HOME", {"ToyModel": "toy_model"})
    monkeypatch.setitem(sys.modules, "jaxmlip.models.toy_model", sys.modules["toy_model"])
    system, _ = a_batch(range(8))
    potential = ensemble_potential(MODEL, N)
    params = jax.jit(potential.init)(KEY, system)
    fields = {"elements": [1, 8], "cutoff": CUTOFF}
    free = {"1": -13.6, "8": -430.0}
    about = card("ToyModel", fields) | {"members": N, "reference_energies": free}
    checkpoint.save(tmp_path / "m.safetensors", about, params)
    loaded, again, known = checkpoint.load(tmp_path / "m.safetensors")
    assert known["members"] == N
    out = jax.jit(with_forces(loaded.apply))(again, system)
    expected = jax.jit(with_forces(potential.apply))(params, system)
    for name in ("forces", "energy_uncertainty", "forces_uncertainty"):
        assert_allclose(out[name], expected[name], rtol=1e-10, atol=1e-13)
    oxygens = np.bincount(system.graph, system.numbers == 8, minlength=system.n_graphs)
    hydrogens = np.bincount(system.graph, system.numbers == 1, minlength=system.n_graphs)
    shift = -430.0 * oxygens - 13.6 * hydrogens
    assert_allclose(out["energy"], expected["energy"] + shift, rtol=1e-12)


@pytest.mark.slow
@pytest.mark.parametrize("lines", ["ensemble: 2\nensemble_share: 0.7", "uncertainty: true"])
def test_a_configuration_asks_for_it_and_the_run_resumes(tmp_path, monkeypatch, lines):
    monkeypatch.setattr(models, "_HOME", {"ToyModel": "toy_model"})
    monkeypatch.setattr(models, "__all__", ["ToyModel"])
    monkeypatch.setitem(sys.modules, "jaxmlip.models.toy_model", sys.modules["toy_model"])
    for name, n, seed in (("train", 20, 0), ("valid", 10, 1)):
        some = []
        for system, labels in frames(n, seed=seed):
            (atoms,) = to_ase(system)
            atoms.info["REF_energy"] = float(labels["energy"][0]) - 14.0 * len(atoms)
            atoms.arrays["REF_forces"] = labels["forces"]
            some.append(atoms)
        write(tmp_path / f"{name}.extxyz", some)
    (tmp_path / "run.yaml").write_text(
        f"""
model: {{architecture: ToyModel, fields: {{cutoff: {CUTOFF}}}}}
data: {{train: train.extxyz, valid: valid.extxyz}}
loss: {{energy: 1.0, forces: 10.0}}
optimizer: {{learning_rate: 0.01, warmup_steps: 3}}
epochs: 3
batch_atoms: 24
dtype: float64
{lines}
"""
    )
    quiet = lambda event: None
    path = train(tmp_path / "run.yaml", progress=quiet)
    potential, params, _ = checkpoint.load(path)
    system, _ = frames(3, seed=5)[1]
    out = with_forces(potential.apply)(params, system)
    assert out["energy_uncertainty"][0] > 0
    train(tmp_path / "run.yaml", overrides={"epochs": 4}, progress=quiet)
    last = checkpoint.read(path.with_name("last.safetensors"))[0]
    assert last["epoch"] == 4  # one more, from the stacked states that were saved


@pytest.mark.slow
def test_few_elements_of_a_file_with_members(tmp_path):
    """A MACE of three elements, cut to two: each member is the same function of water."""
    small = {"channels": 4, "l_max": 1, "correlation": 2, "n_radial": 3, "radial_widths": [4]}
    fields = {"elements": [1, 6, 8], "cutoff": CUTOFF, "readout_width": 2, **small}
    model = checkpoint.build(card("MACE", fields))
    system = FRAMES[1][0]
    params = ensemble_potential(model, 2).init(KEY, system)
    path = tmp_path / "m.safetensors"
    checkpoint.save(path, card("MACE", fields) | {"members": 2}, params)
    whole, all_params, _ = checkpoint.load(path)
    few, few_params, known = checkpoint.load(path, elements=[1, 8])
    assert known["elements"] == [1, 8]
    out, expected = (p.apply(w, system) for p, w in ((few, few_params), (whole, all_params)))
    close(out, expected, rtol=1e-6, atol=1e-8)


def test_what_is_no_ensemble_is_refused():
    system, _ = FRAMES[1]
    with pytest.raises(ModelError, match="two members"):
        ensemble_potential(MODEL, 1)
    with pytest.raises(ModelError, match="stacked"):
        ensemble_potential(MODEL, 3).apply({"w": np.ones((2, 4))}, system)
    with pytest.raises(UsageError, match="share"):
        ensemble(*trainer(), 2, share=0.0)
