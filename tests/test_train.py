"""Losses, the step, and a run that is stopped, damaged and resumed."""

import json
import os
import re
import signal
import sys
from dataclasses import replace

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ase import Atoms
from ase.io import write
from toy_model import springs

from jaxmlip import models
from jaxmlip.data.batching import batch, batches, make_buckets
from jaxmlip.data.splits import load_split
from jaxmlip.errors import Interrupted, NumericalError, ResourceError, UsageError
from jaxmlip.interfaces.ase import from_ase
from jaxmlip.interfaces.labels import read_labelled
from jaxmlip.models import checkpoint
from jaxmlip.potential import Potential
from jaxmlip.restart import newest_state, only_run, read_state, saved_states
from jaxmlip.system import cast, edge_vectors, sum_atoms, sum_edges, sum_energies, to_edges
from jaxmlip.train.config.read import read_config
from jaxmlip.train.cross_validation import cross_validate
from jaxmlip.train.evaluation.accuracy import evaluate, evaluate_model
from jaxmlip.train.loop import train
from jaxmlip.train.objective.losses import (
    Term,
    add_sums,
    deviation,
    huber,
    loss,
    mean_loss,
    squared,
    summary,
)
from jaxmlip.train.objective.prediction import along, labelled_prediction, random_directions
from jaxmlip.train.setup import check_dipoles
from jaxmlip.train.steps.optimizers import adam
from jaxmlip.train.steps.schedules import learning_rate
from jaxmlip.train.steps.step import averaged, training


class Toy(nn.Module):
    """Energies of atoms from a small network on pair features; dipole from charges."""

    elements: tuple[int, ...]
    cutoff: float = 3.0
    scale: float = 1.0
    avg_num_neighbors: float = 1.0
    dipole: bool = False

    @nn.compact
    def __call__(self, system):
        r = jnp.linalg.norm(edge_vectors(system), axis=-1)
        inside = jnp.cos(jnp.pi * jnp.minimum(r / self.cutoff, 1)) + 1
        centres = jnp.linspace(0.5, self.cutoff, 8)
        pair = jnp.exp(-8 * (r[..., None] - centres) ** 2) * inside[..., None]
        pair = pair * to_edges(system, system.numbers)[..., None] / 8
        atom = sum_edges(system, pair) / self.avg_num_neighbors
        atom = jnp.concatenate([atom, system.numbers[:, None] / 8], axis=-1)
        out = nn.Dense(2)(nn.tanh(nn.Dense(16)(atom)))
        energies = jnp.where(system.atom_mask, self.scale * out[:, 0], 0)
        result = {"energy": sum_energies(system, energies), "energies": energies}
        if self.dipole:
            result["dipole"] = sum_atoms(system, out[:, 1:] * system.positions)
        return result


@pytest.fixture(autouse=True, scope="module")
def compiled_once(tmp_path_factory):
    """Runs that are started again compile the same steps: keep them while this file is tested."""
    jax.config.update("jax_compilation_cache_dir", str(tmp_path_factory.mktemp("cache")))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)


@pytest.fixture(autouse=True)
def toy(monkeypatch):
    monkeypatch.setattr(models, "_HOME", {"Toy": "toy"})
    monkeypatch.setattr(models, "__all__", ["Toy"])
    monkeypatch.setitem(sys.modules, "jaxmlip.models.toy", sys.modules[__name__])


def molecules(n, seed=0, stretch=0.1):
    """Waters and hydroxyls with bonds as springs: energies and forces of a law to be learnt."""
    out = []
    for atoms, bonds, energy, forces in springs(n, seed=seed, stretch=stretch):
        atoms.info["REF_energy"] = float(-430.0 - 14 * len(atoms) + energy)
        atoms.info["REF_dipole"] = 0.3 * bonds.sum(0)
        atoms.arrays["REF_forces"] = forces
        out.append(atoms)
    return out


def frames_of(tmp_path, atoms):
    write(tmp_path / "some.extxyz", atoms)
    return read_labelled(tmp_path / "some.extxyz", 3.0)


CONFIG = """
model: {architecture: Toy, fields: {cutoff: 3.0}}
data: {train: train.extxyz, valid: valid.extxyz, checks: false}  # softer than chemistry
loss: {energy: 1.0, forces: 1.0, dipole: 1.0}
optimizer:
  learning_rate: 0.01
  warmup_steps: 3
  weight_decay: 1e-6
epochs: 4
batch_atoms: 16
buckets: 1
output: out
"""


@pytest.fixture
def run(tmp_path):
    write(tmp_path / "train.extxyz", molecules(20))
    write(tmp_path / "valid.extxyz", molecules(6, seed=1))
    (tmp_path / "run.yaml").write_text(CONFIG)
    return tmp_path / "run.yaml"


class Events(list):
    """Collects events and can raise a signal at a step."""

    def __init__(self, *, stop_at=None):
        self.stop_at = stop_at

    def __call__(self, event):
        self.append(event)
        if event["event"] == "step" and event["step"] == self.stop_at:
            os.kill(os.getpid(), signal.SIGUSR1)


# --- losses --------------------------------------------------------------------------------------

TERMS = {
    "energy": Term(1.0, squared),
    "forces": Term(2.0, huber(0.1)),
    "dipole": Term(0.5, squared),
}


def setup_toy(tmp_path, n=6):
    frames = frames_of(tmp_path, molecules(n))
    (bucket,) = make_buckets(frames, n_buckets=1, max_atoms=40)
    model = Toy(elements=(1, 8), dipole=True)
    system, labels = batch(frames, bucket, range(n))
    params = jax.jit(model.init)(jax.random.key(0), system)
    return frames, bucket, model, params, system, labels


def test_sums_of_a_batch_are_the_sums_of_its_frames(tmp_path):
    frames, bucket, model, params, system, labels = setup_toy(tmp_path)
    sums = jax.jit(
        lambda s, l: loss(labelled_prediction(model.apply, TERMS)(params, s), l, s, terms=TERMS)
    )
    value, together = sums(system, labels)
    singly = None
    for i in range(len(frames)):
        singly = add_sums(singly, sums(*batch(frames, bucket, [i]))[1])
    for name in TERMS:  # float32 sums in another order
        np.testing.assert_allclose(singly[name], together[name], rtol=2e-5)
    assert mean_loss(singly, TERMS) == pytest.approx(float(value), rel=2e-5)


def test_a_nan_label_counts_nowhere(tmp_path):
    frames, bucket, model, params, system, labels = setup_toy(tmp_path)
    prediction = labelled_prediction(model.apply, TERMS)

    def value(params, labels):
        return loss(prediction(params, system), labels, system, terms=TERMS)

    none = jax.tree.map(lambda x: np.full_like(x, np.nan), labels)
    slopes = jax.jit(jax.value_and_grad(value, has_aux=True))
    (total, sums), slope = slopes(params, none)
    assert total == 0 and all(float(v[3]) == 0 for v in sums.values())
    assert all((np.asarray(x) == 0).all() for x in jax.tree.leaves(slope))
    no_energy = labels | {"energy": none["energy"]}
    (some, _), slope = slopes(params, no_energy)
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(slope))
    only = {k: v for k, v in TERMS.items() if k != "energy"}
    rest = jax.jit(lambda p: loss(prediction(p, system), labels, system, terms=only)[0])(params)
    np.testing.assert_allclose(some, rest, rtol=1e-6)


def crystal(dipole, *, pbc=True):
    """A System of one oxygen in a triclinic cell and a prediction of its dipole, [1, 3]."""
    cell = np.array([[3.0, 0, 0], [0.7, 2.5, 0], [-0.4, 0.9, 4.0]])
    system = from_ase(Atoms("O", [[0.1, 0.2, 0.3]], cell=cell, pbc=pbc), 2.0)
    return system, {"dipole": jnp.asarray([dipole], jnp.float32)}, cell


def test_dipoles_of_crystals_differ_by_less_than_half_a_quantum():
    """Modulo e x lattice vectors: moving an atom to another image must not cost anything."""
    label = {"dipole": np.array([[0.3, -0.2, 0.1]], np.float32)}
    apart = np.array([0.05, 0.02, -0.04])
    system, _, cell = crystal(np.zeros(3))
    for image in ([0, 0, 0], [2, -1, 3], [-1, 0, 0]):
        _, prediction, _ = crystal(label["dipole"][0] + apart + image @ cell)
        d, _ = deviation(prediction, label, system, "dipole")
        np.testing.assert_allclose(d[0], apart, atol=2e-6)  # float32 of numbers below 15
    slope = jax.jacobian(lambda p: deviation({"dipole": p}, label, system, "dipole")[0])
    np.testing.assert_allclose(slope(prediction["dipole"])[0, :, 0], np.eye(3), atol=1e-6)


def test_dipoles_of_molecules_have_no_branches():
    system, prediction, cell = crystal([5.0, 4.0, 3.0], pbc=False)
    d, _ = deviation(prediction, {"dipole": np.zeros((1, 3), np.float32)}, system, "dipole")
    np.testing.assert_array_equal(d[0], [5.0, 4.0, 3.0])


def with_born_charges(tmp_path):
    """Three frames, two with Born charges: ((System, labels), Toy, params, terms)."""
    atoms, rng = molecules(3), np.random.default_rng(5)
    for a in atoms[:2]:
        a.arrays["REF_born_charges"] = rng.normal(size=(len(a), 9))
    frames = frames_of(tmp_path, atoms)
    (bucket,) = make_buckets(frames, n_buckets=1, max_atoms=40)
    model = Toy(elements=(1, 8), dipole=True)
    system, labels = batch(frames, bucket, range(3))
    terms = TERMS | {"born_charges": Term(1.0, squared)}
    return system, labels, model, jax.jit(model.init)(jax.random.key(0), system), terms


@pytest.mark.slow
def test_random_directions_compare_born_charges_without_bias(tmp_path):
    """The mean over the four diagonals of a cube of |dZ v|² is |dZ|²/3, and v v sums to 1."""
    system, labels, model, params, terms = with_born_charges(tmp_path)
    prediction = labelled_prediction(model.apply, terms)
    only = {"born_charges": terms["born_charges"]}
    exact = loss(prediction(params, system), labels, system, terms=only)[0]
    projected = jax.jit(
        lambda v: loss(prediction(params, system, v), along(labels, v, system), system, terms=only)[
            0
        ]
    )
    diagonals = np.array([[1, 1, 1], [1, 1, -1], [1, -1, 1], [-1, 1, 1]]) / np.sqrt(3)
    rows = [np.tile(v, (system.n_graphs, 1)).astype(np.float32) for v in diagonals]
    assert np.mean([projected(v) for v in rows]) == pytest.approx(float(exact), rel=1e-5)
    drawn = np.array([random_directions(i, system) for i in range(300)]).reshape(-1, 3)
    np.testing.assert_allclose(np.einsum("na,na->n", drawn, drawn), 1, rtol=1e-6)
    # 1200 vectors: a standard error of 1/(3 sqrt(1200)) = 0.0096
    np.testing.assert_allclose(drawn.T @ drawn / len(drawn), np.eye(3) / 3, atol=0.04)


def test_predicted_born_charges_are_differences_of_the_dipole(tmp_path):
    """[atom, cartesian of the atom, cartesian of the field]."""
    system, _, model, params, terms = with_born_charges(tmp_path)
    system, params = cast(system, np.float64), cast(params, np.float64)
    born = jax.jit(labelled_prediction(model.apply, terms))(params, system)["born_charges"]
    dipole = jax.jit(lambda r: model.apply(params, replace(system, positions=r))["dipole"])
    for atom, axis in ((0, 2), (4, 0)):
        step = np.zeros_like(system.positions)
        step[atom, axis] = 1e-4
        ahead, behind = (dipole(system.positions + s) for s in (step, -step))
        change = (ahead - behind).sum(0) / 2e-4
        np.testing.assert_allclose(born[atom, axis], change, atol=1e-7)  # second order in the step


def test_dipoles_of_crystals_are_refused_for_sums_of_charges_and_positions():
    """An atom with 0.4 e listed one cell farther would move such a dipole by 0.4 quanta."""
    frame = crystal(np.zeros(3))[0], {"dipole": np.zeros((1, 3))}
    alone = frame[0], {"dipole": np.full((1, 3), np.nan)}
    model = lambda *names: Potential(lambda key, s: {}, lambda p, s: dict.fromkeys(names, 0.0), 2.0)
    of_charges, of_atoms = model("dipole", "charges"), model("dipole")
    dipole = {"dipole": TERMS["dipole"]}
    with pytest.raises(UsageError, match="images of atoms"):
        check_dipoles(of_charges, {}, [alone, frame], dipole)
    check_dipoles(of_charges, {"charge_transfer": 8}, [frame], dipole)
    check_dipoles(of_atoms, {}, [frame], dipole)
    check_dipoles(of_charges, {}, [alone], dipole)
    check_dipoles(of_charges, {}, [frame], {"energy": TERMS["energy"]})


def test_frames_without_born_charges_do_not_count(tmp_path):
    system, labels, model, params, terms = with_born_charges(tmp_path)
    init, step = make_step(model, terms=terms)
    _, metrics = step(init(jax.random.key(0), system), system, labels, np.float32(0.01))
    known = int(np.isfinite(labels["born_charges"]).all((1, 2)).sum())
    assert known == 5  # a hydroxyl and a water
    assert metrics["sums"]["born_charges"][3] == 3 * known and metrics["bad"] == 0
    assert "born_charges_rmse_e" in summary(metrics["sums"])


def test_huber_meets_the_square_with_the_same_slope():
    f = huber(0.5)
    np.testing.assert_allclose(f(jnp.array([0.3, -0.3])), 0.09, rtol=1e-6)
    assert float(jax.grad(f)(0.5 - 1e-4)) == pytest.approx(float(jax.grad(f)(0.5 + 1e-4)), rel=1e-3)


def test_errors_are_reported_per_atom_and_in_milli_units():
    out = summary({"energy": [0.02, 0.0002, 0.0, 2.0]})
    assert out["energy_mae_meV_per_atom"] == pytest.approx(10.0)
    assert out["energy_rmse_meV_per_atom"] == pytest.approx(10.0)


def test_the_learning_rate_rises_and_falls_to_its_floor():
    rate = lambda n: learning_rate(n, n / 100, peak=0.1, warmup=10, floor=0.05)
    assert rate(0) == pytest.approx(0.01, rel=1e-3)
    assert max(rate(n) for n in range(101)) > 0.09
    assert rate(100) == pytest.approx(0.005)


# --- the step ------------------------------------------------------------------------------------


def make_step(model, **options):
    optimizer = adam(clip=10.0, weight_decay=0.0, amsgrad=True)
    return training(model, options.pop("terms", TERMS), optimizer=optimizer, ema=0.9)


def test_one_frame_is_learnt_by_heart(tmp_path):
    frames = frames_of(tmp_path, molecules(1, stretch=0.2))
    frames[0][1]["energy"][:] = 1.5
    (bucket,) = make_buckets(frames, n_buckets=1)
    system, labels = batch(frames, bucket, [0])
    terms = {k: TERMS[k] for k in ("energy", "forces")}
    init, step = make_step(Toy(elements=(1, 8)), terms=terms)
    state = init(jax.random.key(0), system)
    begun = jax.tree.map(np.array, state.params)
    first = None
    for _ in range(400):
        state, metrics = step(state, system, labels, np.float32(0.01))
        first = first if first is not None else float(metrics["loss"])
    assert float(metrics["loss"]) < 1e-4 * first
    moved = jax.tree.map(lambda a, b: bool((a != b).any()), begun, state.params)
    assert all(jax.tree.leaves(moved))  # gradients reach every parameter


def test_one_compilation_a_bucket(tmp_path):
    rng = np.random.default_rng(0)
    atoms = molecules(12) + [
        Atoms("H6", 0.9 * np.eye(6, 3) + rng.normal(size=(6, 3))) for _ in range(4)
    ]
    for a in atoms[12:]:
        a.info["REF_energy"] = -30.0
    frames = frames_of(tmp_path, atoms)
    buckets = make_buckets(frames, n_buckets=2, max_atoms=20)
    init, step = make_step(Toy(elements=(1, 8), dipole=True))
    state = init(jax.random.key(0), next(batches(frames, buckets, seed=0))[0])
    for epoch in range(3):
        for system, labels in batches(frames, buckets, seed=0, epoch=epoch):
            state, _ = step(state, system, labels, np.float32(1e-3))
    assert len(buckets) == 2
    assert step._cache_size() == 2


def test_a_step_that_is_not_finite_changes_nothing(tmp_path):
    _, _, model, _, system, labels = setup_toy(tmp_path)
    init, step = make_step(model)
    state = init(jax.random.key(0), system)
    state, _ = step(state, system, labels, np.float32(0.01))
    before = jax.tree.map(np.array, state)
    bad = labels | {"energy": np.full_like(labels["energy"], np.inf)}
    state, metrics = step(state, system, bad, np.float32(0.01))
    assert metrics["bad"] == 1
    for a, b in zip(jax.tree.leaves(before.params), jax.tree.leaves(state.params), strict=True):
        np.testing.assert_array_equal(a, b)
    state, metrics = step(state, system, labels, np.float32(0.01))
    assert metrics["bad"] == 0


def test_the_first_average_is_the_parameters(tmp_path):
    _, _, model, _, system, labels = setup_toy(tmp_path)
    init, step = make_step(model)
    state, _ = step(init(jax.random.key(0), system), system, labels, np.float32(0.01))
    for a, b in zip(
        jax.tree.leaves(averaged(state, ema=0.9)), jax.tree.leaves(state.params), strict=True
    ):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7)


# --- runs ----------------------------------------------------------------------------------------


def test_a_stopped_and_resumed_run_is_bitwise_the_uninterrupted_one(run, tmp_path):
    whole = Events()
    train(run, overrides={"output": "whole"}, progress=whole)
    steps = sum(e["event"] == "step" for e in whole)
    with pytest.raises(Interrupted) as stopped:
        train(run, progress=Events(stop_at=steps // 2 + 1))
    assert stopped.value.exit_code == 75
    train(run, progress=Events())
    assert saved_states(tmp_path / "out")[0].name == saved_states(tmp_path / "whole")[0].name
    a, b = (read_state(saved_states(tmp_path / name)[0])[0] for name in ("whole", "out"))
    for name in a:
        np.testing.assert_array_equal(a[name], b[name], err_msg=name)
    lines = [
        [
            {k: v for k, v in json.loads(line).items() if k != "seconds"}
            for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()
        ]
        for name in ("whole", "out")
    ]
    assert lines[0] == lines[1] and len(lines[0]) == 4
    assert not list((tmp_path / "out").glob("*.partial"))


def test_a_run_learns_and_its_model_can_be_loaded_and_evaluated(run, tmp_path):
    events = Events()
    path = train(run, overrides={"epochs": 40}, progress=events)
    losses = [e["valid_loss"] for e in events if e["event"] == "epoch"]
    assert losses[-1] < 0.3 * losses[0]
    report = evaluate_model(path, tmp_path / "valid.extxyz")
    best = min((e for e in events if e["event"] == "epoch"), key=lambda e: e["valid_loss"])
    for name, value in best["valid"].items():
        assert report[name] == pytest.approx(value, rel=1e-4)
    potential, params, card = checkpoint.load(path)
    frames = read_labelled(tmp_path / "valid.extxyz", potential.cutoff)
    total = evaluate(potential, params, frames)  # float32 totals of 470 eV resolve 3e-5 eV
    assert total["energy_mae_meV_per_atom"] == pytest.approx(
        report["energy_mae_meV_per_atom"], abs=0.1
    )
    assert card["fields"]["elements"] == [1, 8] and card["data"]["train"]["sha256"]
    again = Events()
    train(run, overrides={"epochs": 40}, progress=again)
    assert [e["event"] for e in again] == ["start", "done"]


def test_a_damaged_checkpoint_is_refused_and_the_one_before_used(run, tmp_path):
    train(run, overrides={"epochs": 2}, progress=Events())
    newest, older = saved_states(tmp_path / "out")
    data = bytearray(newest.read_bytes())
    data[-3] ^= 1
    newest.write_bytes(data)
    warnings = []
    _, record = newest_state(tmp_path / "out", warn=warnings.append)
    assert record["position"]["epoch"] == 1 and "SHA-256" in str(warnings[0])
    events = Events()
    train(run, overrides={"epochs": 2}, progress=events)
    assert events[0]["event"] == "warning" and str(newest) in events[0]["message"]
    for path in saved_states(tmp_path / "out"):
        path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(ResourceError, match="damaged"):
        train(run, overrides={"epochs": 2}, progress=Events())


def test_resuming_with_another_configuration_is_refused_with_the_difference(run, tmp_path):
    train(run, overrides={"epochs": 1}, progress=Events())
    with pytest.raises(UsageError, match=r"optimizer.learning_rate: 0.01 -> 0.02"):
        train(run, overrides={"optimizer.learning_rate": 0.02}, progress=Events())
    write(tmp_path / "train.extxyz", molecules(21))
    with pytest.raises(UsageError, match="data_hashes.train.sha256"):
        train(run, progress=Events())
    train(run, resume=False, overrides={"epochs": 1}, progress=Events())


def test_a_run_that_only_diverges_ends_with_its_step(run):
    def explode(state, system, labels, rate, weights):
        metrics = {"loss": np.nan, "gradient": np.nan, "bad": 10, "sums": {}}
        return state, metrics

    from jaxmlip.train import loop

    with pytest.MonkeyPatch.context() as patch:
        prepare = loop.prepare
        patch.setattr(loop, "prepare", lambda c, **o: loop.replace(prepare(c, **o), step=explode))
        with pytest.raises(NumericalError, match=r"step 1.*frames \d+, \d+"):
            train(run, progress=Events())


def test_a_share_of_the_training_frames_validates_where_no_file_is_given(run, tmp_path):
    run.write_text(CONFIG.replace(", valid: valid.extxyz", ", valid_fraction: 0.2"))
    events = Events()
    train(run, overrides={"epochs": 1}, progress=events)
    assert (events[0]["n_train"], events[0]["n_valid"]) == (16, 4)
    assert (tmp_path / "out" / "split.json").is_file()


def test_hours_end_a_run_before_its_epochs(run):
    events = Events()
    train(run, overrides={"hours": 1e-6, "epochs": 1000}, progress=events)
    assert sum(e["event"] == "epoch" for e in events) == 1


EVERYTHING = {
    "loss.hessian": 0.01,
    "loss.function": {"hessian": "absolute", "dipole": "huber"},
    "curvature.hessians": "train.npz",
    "curvature.every": 2,
    "optimizer.method": "schedule_free",
    "optimizer.schedule": "plateau",
    "optimizer.plateau": 0,
    "second_stage.start": 0.5,
    "second_stage.energy": 100.0,
    "second_stage.stress": 0.0,
    "metric": "forces_mae_meV_per_A",
}


@pytest.mark.slow
def test_curvature_stages_and_plateaus_resume_bitwise_too(run, tmp_path):
    """Directions are drawn from the number of the step; every decision of validation is kept."""
    rng, hessians = np.random.default_rng(0), {}
    for i, atoms in enumerate(molecules(20)[::2]):
        h = rng.normal(size=(3 * len(atoms), 3 * len(atoms)))
        hessians[f"h{2 * i}"] = h + h.T
    np.savez(tmp_path / "train.npz", **hessians)
    whole = Events()
    train(run, overrides=EVERYTHING | {"output": "whole"}, progress=whole)
    epochs = [e for e in whole if e["event"] == "epoch"]
    assert [e["stage"] for e in epochs] == [1, 1, 2, 2]
    assert epochs[-1]["learning_rate"] == 0.001
    assert all(np.isfinite(e["train"]["hessian_mae_eV_per_A2"]) for e in epochs)
    assert (tmp_path / "whole" / "first_stage.safetensors").is_file()
    steps = sum(e["event"] == "step" for e in whole)
    with pytest.raises(Interrupted):
        train(run, overrides=EVERYTHING, progress=Events(stop_at=steps // 2 + 2))
    train(run, overrides=EVERYTHING, progress=Events())
    (a, first), (b, second) = (
        read_state(saved_states(tmp_path / name)[0]) for name in ("whole", "out")
    )
    for name in a:
        np.testing.assert_array_equal(a[name], b[name], err_msg=name)
    drop = lambda record: {k: v for k, v in record["position"].items() if k != "seconds"}
    assert drop(first) == drop(second)


def test_a_run_that_gets_no_better_is_stopped_early(run, monkeypatch):
    from jaxmlip.train import loop

    monkeypatch.setattr(loop, "mean_loss", lambda *a: 1.0)
    events = Events()
    train(run, overrides={"patience": 2, "epochs": 50}, progress=events)
    assert sum(e["event"] == "epoch" for e in events) == 3
    assert events[-1]["event"] == "done"


def test_a_loss_that_is_not_finite_names_its_frames(run, monkeypatch):
    from jaxmlip.train import loop

    def spoilt(config, **options):
        prepared = prepare(config, **options)
        prepared.train[7][1]["energy"][:] = np.inf
        return prepared

    prepare = loop.prepare
    monkeypatch.setattr(loop, "prepare", spoilt)
    events = Events()
    train(run, overrides={"epochs": 1}, progress=events)
    told = [e["message"] for e in events if "skipped" in e.get("message", "")]
    assert len(told) == 1 and "7" in re.findall(r"\d+", told[0].split("; frames")[1])
    monkeypatch.setattr(loop, "BAD_STEPS", 1)
    with pytest.raises(NumericalError, match="frames 7 of those trained on"):
        train(run, overrides={"epochs": 1}, resume=False, progress=Events())


def test_a_checkpoint_that_cannot_be_written_does_not_stop_the_run_but_its_end(run, monkeypatch):
    from jaxmlip.train import saving

    def full(*args, **options):
        raise ResourceError("cannot write the checkpoint: no space")

    monkeypatch.setattr(saving, "save_state", full)
    events = Events()
    with pytest.raises(ResourceError, match="no space"):
        train(run, overrides={"epochs": 2}, progress=events)
    assert sum("the run goes on" in e.get("message", "") for e in events) == 1
    assert sum(e["event"] == "epoch" for e in events) == 2


def test_a_folder_that_another_run_holds_is_refused_before_anything_is_read(run, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "train.extxyz").write_text("not a frame")
    with only_run(tmp_path / "out"), pytest.raises(ResourceError, match="another run"):
        train(run, progress=Events())


@pytest.mark.slow
def test_cross_validation_shows_every_frame_once_to_the_others(run, tmp_path):
    report = cross_validate(run, 3, seeds=(0, 1), overrides={"epochs": 1}, progress=Events())
    splits = [load_split(tmp_path / f"out/fold-{f}/seed-0/split.json") for f in range(3)]
    assert sorted(i for part in splits for i in part["valid"]) == list(range(20))
    assert all(not {*part["valid"]} & {*part["train"]} for part in splits)
    assert len(report["runs"]) == 6 and {(r["fold"], r["seed"]) for r in report["runs"]}
    errors = [r["forces_mae_meV_per_A"] for r in report["runs"]]
    assert report["mean"]["forces_mae_meV_per_A"] == pytest.approx(np.mean(errors))
    assert len(set(errors)) == 6
    again = Events()
    cross_validate(run, 3, seeds=(0, 1), overrides={"epochs": 1}, progress=again)
    assert not any(e["event"] == "step" for e in again)


# --- configuration -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("learning_rate: 0.01", "learning_rat: 0.01", r"run.yaml:6.*Did you mean 'learning_rate'"),
        ("learning_rate: 0.01", "learning_rate: -1", r"run.yaml:6.*above 0"),
        ("learning_rate: 0.01", "learning_rate: fast", r"run.yaml:6.*must be float"),
        ("epochs: 4", "epochs: 4\nepochs: 5", "given twice"),
        ("epochs: 4", "epochs: 4.5", r"run.yaml:9.*must be int"),
        ("cutoff: 3.0", "cutoff: 0", "above 0 in Å"),
        ("train.extxyz", "trian.extxyz", "no such file"),
        ("dipole: 1.0", "function: hubert", "Did you mean 'huber'"),
        ("Toy", "Tay", "Did you mean 'Toy'"),
        ("cutoff: 3.0", "cutof: 3.0", r"run.yaml.*Did you mean 'cutoff'"),
        ("cutoff: 3.0", "cutoff: 3.0, scale: large", "must be a number"),
    ],
)
def test_a_wrong_configuration_is_refused_with_its_line(run, old, new, message):
    run.write_text(CONFIG.replace(old, new))
    with pytest.raises(UsageError, match=message) as error:
        train(run, progress=Events())
    assert error.value.exit_code == 2
    assert not (run.parent / "out").exists()


def test_numbers_without_a_point_and_overrides_are_understood(run):
    config = read_config(run, overrides={"optimizer.learning_rate": 1, "loss": {"forces": 5}})
    assert config.optimizer.weight_decay == 1e-6
    assert config.optimizer.learning_rate == 1.0 and config.loss.forces == 5.0
    with pytest.raises(UsageError, match="override loss.force"):
        read_config(run, overrides={"loss.force": 1})
