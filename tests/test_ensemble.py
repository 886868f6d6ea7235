"""Members trained at once are those trained one by one; their mean and spread are one potential."""

import functools
import json
import sys
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from ase import Atoms
from ase.io import read, write
from numpy.testing import assert_allclose
from structures import KEY, card
from toy_model import CUTOFF, ToyModel, frames

from jaxmlip import Calculator, models
from jaxmlip.cli.main import main
from jaxmlip.data.batching import batch, make_buckets
from jaxmlip.derivatives import forces, hessian, predict
from jaxmlip.derivatives.first import with_forces
from jaxmlip.derivatives.response import depends_on_field
from jaxmlip.errors import ModelError, UsageError
from jaxmlip.interfaces.ase import from_ase, to_ase
from jaxmlip.models import checkpoint
from jaxmlip.potential import Potential, add_field
from jaxmlip.system import sum_atoms
from jaxmlip.train.loop import train
from jaxmlip.train.objective.losses import Term, squared
from jaxmlip.train.steps.ensemble import (
    ensemble,
    ensemble_potential,
    in_turn,
    leave_out,
    split_members,
    stack_members,
    together,
)
from jaxmlip.train.steps.step import training

N, MODEL = 3, ToyModel()
FRAMES = frames(8)


def _polar(params, system):
    out = MODEL.apply(params, system)
    return out | {"dipole": sum_atoms(system, out["energies"][:, None] * system.positions)}


IN_FIELD = add_field(Potential(MODEL.init, _polar, CUTOFF))
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


@pytest.mark.parametrize("over", [in_turn, pytest.param(together, marks=pytest.mark.slow)])
def test_prediction_is_the_mean_and_the_spread_of_members(over):
    """1e-12: sums in another order."""
    system, _ = a_batch(range(8))
    potential = ensemble_potential(MODEL, N, over=over)
    stacked = jax.jit(potential.init)(KEY, system)
    members = split_members(stacked)
    close(stack_members(members), stacked)
    one, all_ = (jax.jit(predict(p.apply)) for p in (MODEL, potential))
    each, out = [one(w, system) for w in members], all_(stacked, system)
    for name in ("energy", "energies", "forces", "stress"):
        mean = np.mean([e[name] for e in each], axis=0)
        assert_allclose(out[name], mean, rtol=1e-12, atol=1e-13)
    spread = np.std([e["energy"] for e in each], axis=0, ddof=1)
    assert_allclose(out["energy_uncertainty"], spread, rtol=1e-10, atol=1e-13)
    spread = np.var([e["forces"] for e in each], axis=0, ddof=1).mean(-1) ** 0.5
    assert_allclose(out["forces_uncertainty"], spread, rtol=1e-10, atol=1e-13)
    all_(stacked, replace(system, positions=system.positions + 0.1))
    assert all_._cache_size() == 1


def test_uncertainty_of_forces_is_left_out_where_it_is_not_asked_for():
    system, _ = FRAMES[1]
    potential = ensemble_potential(MODEL, N, forces=False)
    out = jax.eval_shape(lambda s: potential.apply(potential.init(KEY, s), s), system)
    assert "forces_uncertainty" not in out and out["energy_uncertainty"].shape == (1,)


@pytest.mark.parametrize("over", [in_turn, pytest.param(together, marks=pytest.mark.slow)])
def test_second_derivatives_are_means_too(over):
    """1e-12: sums in another order."""
    system, _ = FRAMES[1]
    potential = ensemble_potential(MODEL, N, over=over)
    stacked = jax.jit(potential.init)(KEY, system)
    one, mean = (jax.jit(hessian(p.apply)) for p in (MODEL, potential))
    each = [one(w, system) for w in split_members(stacked)]
    assert_allclose(mean(stacked, system), np.mean(each, 0), atol=1e-12)


@pytest.mark.slow
@pytest.mark.parametrize("over", [in_turn, together])
def test_copies_of_an_ensemble_are_a_vmap(over):
    system, _ = FRAMES[1]
    potential = ensemble_potential(MODEL, N, over=over)
    stacked = jax.jit(potential.init)(KEY, system)
    copies = system.positions + np.linspace(0, 0.1, 2)[:, None, None] * np.arange(3)
    force = lambda r: forces(potential.apply)(stacked, replace(system, positions=r))
    assert_allclose(jax.vmap(force)(copies), [force(r) for r in copies], atol=1e-12)


@pytest.mark.parametrize("over", [in_turn, together])
def test_an_ensemble_without_a_coupling_to_the_field_has_no_response(over):
    """Else its Born charges would be zero without a word."""
    system, _ = FRAMES[1]
    for model, coupled in ((MODEL, False), (IN_FIELD, True)):
        potential = ensemble_potential(model, 2, over=over)
        shapes = jax.eval_shape(lambda p=potential: p.init(KEY, system))
        params = jax.tree.map(lambda x: np.ones(x.shape), shapes)
        assert depends_on_field(potential.apply, params, system) == coupled


@pytest.mark.slow
@pytest.mark.parametrize("over", [in_turn, together])
def test_slopes_that_are_there_already_are_those_of_the_energy(over):
    """Of weights, positions, cell and field, and how they change along all; 1e-12: rounding."""
    water = Atoms("OHH", [[0, 0, 0], [0.8, 0, 0.5], [-0.8, 0.1, 0.5]], cell=[3, 3.1, 3.2], pbc=True)
    system = from_ase(water, CUTOFF, dtype=float)
    known, plain = (ensemble_potential(IN_FIELD, 2, forces=f, over=over) for f in (True, False))
    stacked = jax.jit(known.init)(KEY, system)
    start = (stacked, *(jnp.asarray(getattr(system, k)) for k in ("positions", "cell", "field")))
    wiggled = lambda t: lambda x: x + 0.1 * t * jnp.cos(jnp.arange(x.size)).reshape(x.shape)

    def slopes(apply):
        def energy(w, positions, cell, field):
            moved = replace(system, positions=positions, cell=cell, field=field)
            return apply(w, moved)["energy"].sum()

        along = lambda t: energy(*jax.tree.map(wiggled(t), start))
        back = lambda t: jax.grad(energy, (0, 1, 2, 3))(*jax.tree.map(wiggled(t), start))
        return jax.jvp(lambda t: (along(t), back(t)), (0.0,), (1.0,))

    found, expected = jax.jit(lambda: (slopes(known.apply), slopes(plain.apply)))()
    assert all(np.abs(x).max() > 1e-6 for x in jax.tree.leaves(expected))
    close(found, expected, rtol=1e-10, atol=1e-12)


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


@pytest.fixture
def toy(monkeypatch):
    """Files may hold the model of the tests."""
    monkeypatch.setattr(models, "_HOME", {"ToyModel": "toy_model"})
    monkeypatch.setattr(models, "__all__", ["ToyModel"])
    monkeypatch.setitem(sys.modules, "jaxmlip.models.toy_model", sys.modules["toy_model"])


def an_ensemble(path, free=None):
    """A file of `N` members with random weights."""
    potential = ensemble_potential(MODEL, N)
    params = jax.jit(potential.init)(KEY, FRAMES[1][0])
    about = card("ToyModel", {"elements": [1, 8], "cutoff": CUTOFF}) | {"members": N}
    checkpoint.save(path, about | ({"reference_energies": free} if free else {}), params)
    return potential, params


def test_one_file_holds_an_ensemble(tmp_path, toy):
    system, _ = a_batch(range(8))
    free = {"1": -13.6, "8": -430.0}
    potential, params = an_ensemble(tmp_path / "m.safetensors", free)
    loaded, again, known = checkpoint.load(tmp_path / "m.safetensors")
    assert known["members"] == N
    pairs = ((loaded, again), (potential, params))
    out, expected = jax.jit(lambda: [with_forces(p.apply)(w, system) for p, w in pairs])()
    for name in ("forces", "energy_uncertainty", "forces_uncertainty"):
        assert_allclose(out[name], expected[name], rtol=1e-10, atol=1e-13)
    oxygens = np.bincount(system.graph, system.numbers == 8, minlength=system.n_graphs)
    hydrogens = np.bincount(system.graph, system.numbers == 1, minlength=system.n_graphs)
    shift = -430.0 * oxygens - 13.6 * hydrogens
    assert_allclose(out["energy"], expected["energy"] + shift, rtol=1e-12)


def test_every_door_tells_the_uncertainty(folder, toy, capsys):
    """Calculator, JSON, table and extended XYZ; 1e-7: what the file of structures rounds to."""
    an_ensemble("m.safetensors")
    (atoms,) = to_ase(FRAMES[1][0])
    atoms.info["energy_uncertainty"] = 99.0  # of an earlier model: it must go
    write("water.xyz", atoms)
    command = ["singlepoint", "water.xyz", "--model", "m.safetensors", "--extxyz", "--json"]
    assert main([*command, "found.json"]) == 0
    assert "± (eV)" in capsys.readouterr().out
    found = json.loads(Path("found.json").read_text())
    atoms.calc = Calculator("m.safetensors")
    assert atoms.get_forces().shape == (3, 3)
    energy, force = (atoms.calc.results[f"{name}_uncertainty"] for name in ("energy", "forces"))
    assert energy > 0 and force.shape == (3,) and (force > 0).all()
    assert atoms.calc.get_property("energy_uncertainty", atoms) == energy
    written = read("water_singlepoint.xyz")
    for e, f in (
        (found["energy_uncertainty_eV"], found["forces_uncertainty_eV_per_A"]),
        (written.info["energy_uncertainty"], written.arrays["forces_uncertainty"]),
    ):
        assert_allclose(e, energy, atol=1e-7)
        assert_allclose(f, force, atol=1e-7)


@pytest.mark.slow
@pytest.mark.parametrize("lines", ["ensemble: 2\nensemble_share: 0.7", "uncertainty: true"])
def test_a_configuration_asks_for_it_and_the_run_resumes(tmp_path, toy, lines):
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
