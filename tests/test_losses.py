"""Functions of the deviation, measures, weights of frames and of stages, optimisers, schedules."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ase import Atoms
from ase.io import write

from jaxmlip.errors import DataError, UsageError
from jaxmlip.interfaces.ase import from_ase
from jaxmlip.interfaces.labels import read_labelled
from jaxmlip.system import concatenate
from jaxmlip.train.config.read import read_config
from jaxmlip.train.config.settings import stage_weights
from jaxmlip.train.objective.losses import (
    Term,
    absolute,
    conditional_huber,
    loss,
    mean_loss,
    of_structure,
    squared,
    virial_per_atom,
)
from jaxmlip.train.objective.terms import make_terms
from jaxmlip.train.saving import Position
from jaxmlip.train.steps.optimizers import adam, muon, rule, schedule_free
from jaxmlip.train.steps.schedules import cosine, validated, warm

# --- functions and measures ----------------------------------------------------------------------


def test_the_universal_loss_narrows_its_delta_where_forces_are_long():
    """Twice torch's huber_loss with 1, 0.7, 0.4 and 0.1 of delta (mace-torch 0.3.16)."""
    delta, d = 0.01, 0.5
    label = jnp.array([[60.0, 0, 0], [0, 150.0, 0], [0, 0, 250.0], [300.0, 10, 0]])
    found = conditional_huber(delta)(jnp.full((4, 3), d), label)
    for row, share in zip(found, (1.0, 0.7, 0.4, 0.1), strict=True):
        expected = 2 * share * delta * (d - 0.5 * share * delta)
        np.testing.assert_allclose(row, expected, rtol=1e-12)
    small = conditional_huber(delta)(jnp.full((4, 3), 1e-4), label)
    np.testing.assert_allclose(small, 1e-8, rtol=1e-12)
    unknown = conditional_huber(delta)(jnp.full((1, 3), d), jnp.full((1, 3), jnp.nan))
    np.testing.assert_allclose(unknown[0], found[0])


def two_frames():
    """A batch of a dimer and a trimer of argon in boxes, edges aside, and labels."""
    sizes, systems = (2, 3), []
    for n in sizes:
        atoms = Atoms(
            "Ar" * n, 3.0 * np.arange(n)[:, None] * [1, 0, 0], cell=[20, 10, 10], pbc=True
        )
        systems.append(from_ase(atoms, 4.0))
    labels = {"energy": np.zeros(2), "forces": np.zeros((5, 3)), "stress": np.zeros((2, 3, 3))}
    prediction = {
        "energy": jnp.array([4.0, 9.0]),
        "forces": jnp.ones((5, 3)),
        "stress": jnp.full((2, 3, 3), 1e-3),
    }
    return concatenate(systems), labels, prediction


def value(terms, labels=None, **options):
    system, known, prediction = two_frames()
    return loss(prediction, labels or known, system, terms=terms, **options)


def test_energies_count_per_atom_or_per_structure_and_are_reported_per_atom():
    per_atom, sums = value({"energy": Term(1.0, squared)})
    assert float(per_atom) == pytest.approx((2.0**2 + 3.0**2) / 2)
    whole, same = value({"energy": Term(1.0, squared, of_structure)})
    assert float(whole) == pytest.approx((4.0**2 + 9.0**2) / 2)
    np.testing.assert_allclose(sums["energy"][:2], same["energy"][:2])
    assert float(value({"energy": Term(1.0, absolute)})[0]) == pytest.approx(2.5)


def test_stress_as_a_virial_is_in_electronvolt_per_atom():
    found, sums = value({"stress": Term(1.0, squared, virial_per_atom)})
    assert float(found) == pytest.approx(((1e-3 * 2000 / 2) ** 2 + (1e-3 * 2000 / 3) ** 2) / 2)
    assert float(sums["stress"][0] / sums["stress"][3]) == pytest.approx(1e-3)


# --- weights -------------------------------------------------------------------------------------


def test_a_frame_of_weight_two_counts_as_two_and_one_of_zero_as_none():
    _, labels, _ = two_frames()
    terms = {"energy": Term(1.0, squared), "forces": Term(1.0, squared)}
    plain, _ = value(terms)
    weights = {"weight": np.array([np.nan, 2.0]), "weight:forces": np.array([0.0, 1.0])}
    found, sums = value(terms, labels | weights)
    energy, forces = (2.0**2 + 2 * 3.0**2) / 2, 2 * 1.0
    assert float(found) == pytest.approx(energy + forces) and float(plain) == pytest.approx(7.5)
    assert sums["forces"][3] == 9 and sums["energy"][3] == 2


def test_a_frame_of_weight_zero_is_no_part_of_the_gradient_even_where_it_is_not_finite():
    system, labels, prediction = two_frames()
    labels = labels | {"weight": np.array([0.0, 1.0])}

    def of(energy):
        out = prediction | {"energy": energy}
        return loss(out, labels, system, terms={"energy": Term(1.0, squared)})[0]

    slope = jax.grad(of)(jnp.array([jnp.inf, 9.0]))
    np.testing.assert_allclose(slope, [0.0, 2 * 3.0 / 3])


def test_weights_of_a_stage_are_traced_and_compile_nothing():
    system, labels, prediction = two_frames()
    terms = {"energy": Term(1.0, squared), "forces": Term(10.0, squared)}
    step = jax.jit(lambda w: loss(prediction, labels, system, terms=terms, weights=w))
    for weights in ({"energy": 1.0, "forces": 10.0}, {"energy": 1000.0, "forces": 0.0}):
        found, sums = step({k: jnp.asarray(v) for k, v in weights.items()})
        expected = weights["energy"] * 6.5 + weights["forces"]
        assert float(found) == pytest.approx(expected)
        assert mean_loss(sums, terms, weights) == pytest.approx(expected)
    assert step._cache_size() == 1


def test_weights_of_frames_are_read_by_the_keys_of_mace(tmp_path):
    frames = [Atoms("H2", [[0, 0, 0], [0, 0, 0.8]]) for _ in range(2)]
    for atoms in frames:
        atoms.info["REF_energy"] = -1.0
        atoms.arrays["REF_forces"] = np.zeros((2, 3))
    frames[1].info |= {"config_weight": 3.0, "config_forces_weight": 0.5}
    write(tmp_path / "a.extxyz", frames)
    (_, first), (_, second) = read_labelled(tmp_path / "a.extxyz", 2.0)
    assert np.isnan(first["weight"]).all() and second["weight"] == 3.0
    assert second["weight:forces"] == 0.5
    frames[0].info["config_weight"] = -1.0
    write(tmp_path / "a.extxyz", frames)
    with pytest.raises(DataError, match="frame 0.*config_weight"):
        read_labelled(tmp_path / "a.extxyz", 2.0)


# --- from the configuration ----------------------------------------------------------------------

CONFIG = """
model: {architecture: MACE, fields: {cutoff: 3.0}}
data: {train: train.extxyz}
loss:
  energy: 1.0
  forces: 100.0
  function: {energy: absolute, forces: universal}
  delta: 0.02
  energy_per: structure
second_stage: {start: 0.6, energy: 1000, stress: 10}
"""


def config_of(tmp_path, text=CONFIG):
    (tmp_path / "train.extxyz").write_text("")
    (tmp_path / "run.yaml").write_text(text)
    return read_config(tmp_path / "run.yaml")


def test_terms_follow_the_configuration_and_cover_both_stages(tmp_path):
    config = config_of(tmp_path)
    terms = make_terms(config)
    assert set(terms) == {"energy", "forces", "stress"}
    assert terms["energy"][1:] == (absolute, of_structure) and terms["stress"].function is squared
    assert stage_weights(config, 1)["energy"] == 1.0 and stage_weights(config, 1)["stress"] == 0.0
    second = stage_weights(config, 2)
    assert (second["energy"], second["forces"], second["stress"]) == (1000.0, 100.0, 10.0)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("forces: universal", "forces: univrsal", r"loss.function.forces.*'universal'"),
        ("{energy: absolute", "{enrgy: absolute", "no label.*'energy'"),
        ("structure", "atoms", "Did you mean 'atom'"),
        ("start: 0.6", "start: 1.5", "at most 1"),
        ("forces: 100.0", "forces: 100.0\n  hessian: 1.0", "where Hessians come from"),
    ],
)
def test_a_loss_that_cannot_be_meant_is_refused(tmp_path, old, new, message):
    with pytest.raises(UsageError, match=message):
        config_of(tmp_path, CONFIG.replace(old, new))


# --- optimisers and schedules --------------------------------------------------------------------


@pytest.mark.parametrize(
    "optimizer",
    [
        adam(clip=10.0, weight_decay=0.0, amsgrad=True),
        muon(clip=10.0, weight_decay=0.0),
        schedule_free(clip=10.0, weight_decay=0.0),
    ],
    ids=["adam", "muon", "schedule_free"],
)
def test_every_rule_finds_the_minimum_of_a_quadratic_form(optimizer):
    """A linear regression that has an exact solution; what is evaluated gets there."""
    rng = np.random.default_rng(0)
    x, true = rng.normal(size=(32, 4)), {"w": rng.normal(size=(4, 3)), "b": rng.normal(size=3)}
    y = x @ true["w"] + true["b"]
    error = lambda p: jnp.mean((x @ p["w"] + p["b"] - y) ** 2)
    found = rule(optimizer)

    @jax.jit
    def step(params, memory, rate):
        params, memory = found.update(jax.grad(error)(params), memory, params, rate)
        return params, memory, error(found.evaluated(memory, params))

    params = jax.tree.map(jnp.zeros_like, true)
    memory, first = found.init(params), float(error(params))
    for i in range(600):
        rate = 0.05 * cosine(i / 600, floor=0.01)
        params, memory, last = step(params, memory, rate)
    assert float(last) < 1e-3 * first
    assert step._cache_size() == 1


def test_an_update_is_proportional_to_the_learning_rate():
    direction = rule(adam(clip=10.0, weight_decay=0.0, amsgrad=False))
    params = {"w": jnp.ones((2, 2))}
    slope, memory = {"w": jnp.full((2, 2), 0.3)}, direction.init(params)
    a, b = (direction.update(slope, memory, params, rate)[0]["w"] for rate in (0.01, 0.02))
    np.testing.assert_allclose(params["w"] - b, 2 * (params["w"] - a), rtol=1e-12)


def test_a_plateau_cuts_the_learning_rate_and_a_better_one_begins_anew():
    at = Position()
    judge = lambda at, x: validated(at, x, factor=0.5, patience=2, floor=0.2)
    shares, bests = [], []
    for metric in (1.0, 0.9, 0.95, 0.95, 0.95, 0.8, 0.8, 0.8, np.nan, 0.81, 0.81, 0.81):
        at, best = judge(at, metric)
        shares.append(at.share)
        bests.append(best)
    assert shares == [1, 1, 1, 1, 0.5, 0.5, 0.5, 0.5, 0.25, 0.25, 0.25, 0.2]
    assert [i for i, best in enumerate(bests) if best] == [0, 1, 5]
    assert at.best == 0.8 and at.waited == 6
    assert not judge(replace(at, best=None), np.nan)[1]


def test_a_cosine_falls_from_one_to_its_floor_and_a_warm_up_rises_to_one():
    assert cosine(0.0, floor=0.1) == 1.0 and cosine(1.0, floor=0.1) == pytest.approx(0.1)
    assert cosine(0.5, floor=0.0) == pytest.approx(0.5)
    assert [warm(i, warmup=4) for i in range(5)] == [0.25, 0.5, 0.75, 1.0, 1.0]
