"""Training on eight devices is training on one. Run by test_data_parallel.py in its own process.

Tolerances: 1e-6 of the loss over 20 steps, in float64; what differs is the order of sums.
"""

import jax
import numpy as np
import optax
import pytest
from numpy.testing import assert_allclose
from structures import KEY
from toy_model import ToyModel, frames

from jaxmlip.data.batching import Bucket, batch, make_buckets, plan
from jaxmlip.errors import UsageError
from jaxmlip.models.heads import given, heads_potential
from jaxmlip.train.objective.losses import Term, squared
from jaxmlip.train.steps import devices
from jaxmlip.train.steps.step import training

N, MODEL = 8, ToyModel()
TERMS = {"energy": Term(1.0, squared), "forces": Term(10.0, squared), "stress": Term(1.0, squared)}


def labelled():
    """Frames of which some lack forces or energies, so that counts differ between devices."""
    out = []
    for i, (system, labels) in enumerate(frames(50)):
        labels = labels | {"stress": np.full((1, 3, 3), np.nan)}
        if i % 3 == 1:
            labels = labels | {"forces": np.full_like(labels["forces"], np.nan)}
        if i % 7 == 2:
            labels = labels | {"energy": np.full(1, np.nan)}
        out.append((system, labels))
    return out


FRAMES = labelled()
BUCKETS = make_buckets(FRAMES, n_buckets=1, max_atoms=12)  # each of them is compiled twice
ATOMS = [s.n_atoms for s, _ in FRAMES]


def curve(step, state, data):
    losses = []
    for system, labels in data:
        state, metrics = step(state, system, labels, 1e-2)
        losses.append((float(metrics["loss"]), float(metrics["gradient"])))
    return np.array(losses), state


def entries():
    """20 steps of several epochs; parts of 12 atoms at most hold 7.5 on average."""
    batches = make_buckets(FRAMES, n_buckets=1, max_atoms=15 * N // 2)
    many = [e for k in range(20) for e in plan(batches, ATOMS, seed=0, epoch=k)]
    return [(0, devices.divide(members, ATOMS, N)) for _, members in many[:20]]


def whole(entry):
    """The same batch as one array of one device, without empty parts in between."""
    b, parts = entry
    members = [i for part in parts for i in part]
    size = sum(ATOMS[i] for i in members)
    bucket = BUCKETS[b]
    roomy = Bucket(N * bucket.n_atoms, N * bucket.n_graphs, bucket.n_neighbors, bucket.frames)
    assert size <= roomy.n_atoms
    return batch(FRAMES, roomy, members)


def test_the_loss_curve_of_eight_devices_is_that_of_one():
    assert jax.device_count() == N
    mesh, plan = devices.device_mesh(), entries()
    assert any(not part for _, parts in plan for part in parts)  # some devices have nothing
    init, step = training(MODEL, TERMS, optimizer=optax.scale_by_adam(), ema=0.9)
    start = init(KEY, whole(plan[0])[0])
    one, ended = curve(step, start, map(whole, plan))
    spread = devices.spread(MODEL, mesh)
    _, step = training(spread, TERMS, optimizer=optax.scale_by_adam(), ema=0.9)
    start = devices.everywhere(init(KEY, whole(plan[0])[0]), mesh)
    data = [devices.parallel_batch(FRAMES, BUCKETS[b], parts, mesh) for b, parts in plan]
    for x in jax.tree.leaves(data[0]):
        assert len(x.sharding.device_set) == N and not x.sharding.is_fully_replicated
    eight, state = curve(devices.parallel(step, mesh), start, data)
    assert_allclose(eight, one, rtol=1e-6)
    close = lambda a, b: assert_allclose(a, b, rtol=1e-6, atol=1e-9)
    jax.tree.map(close, jax.device_get(state.params), jax.device_get(ended.params))
    for x in jax.tree.leaves(state):
        assert x.sharding.is_fully_replicated


def test_a_mean_of_means_would_be_another_loss():
    """The devices know different numbers of labels: what is tested above is worth testing."""
    _, step = training(MODEL, TERMS, optimizer=optax.scale_by_adam(), ema=0.9)
    init, _ = training(MODEL, TERMS, optimizer=optax.scale_by_adam(), ema=0.9)
    entry = entries()[0]
    system, labels = whole(entry)
    losses = []
    for part in entry[1]:
        if part:
            some, known = batch(FRAMES, BUCKETS[entry[0]], part)
            losses.append(float(step(init(KEY, system), some, known, 1e-2)[1]["loss"]))
    true = float(step(init(KEY, system), system, labels, 1e-2)[1]["loss"])
    assert abs(np.mean(losses) - true) > 1e-3 * true


def test_predictions_of_parts_are_those_of_the_parts_alone():
    mesh = devices.device_mesh()
    b, parts = entries()[0]
    system, _ = devices.parallel_batch(FRAMES, BUCKETS[b], parts, mesh)
    params = MODEL.init(KEY, whole((b, parts))[0])
    out = jax.jit(devices.spread(MODEL, mesh).apply)(params, system)
    n, g = BUCKETS[b].n_atoms, BUCKETS[b].n_graphs
    for k, members in enumerate(parts):
        if members:
            alone = MODEL.apply(params, batch(FRAMES, BUCKETS[b], members)[0])
            assert_allclose(out["energies"][k * n : (k + 1) * n], alone["energies"], rtol=1e-12)
            assert_allclose(out["energy"][k * g : (k + 1) * g], alone["energy"], rtol=1e-12)


def test_parts_that_do_not_fit_are_refused():
    mesh = devices.device_mesh()
    one = batch(FRAMES, BUCKETS[0], BUCKETS[0].frames[:1])
    other = batch(FRAMES, make_buckets(FRAMES, n_buckets=1, max_atoms=20)[0], [0])
    with pytest.raises(UsageError, match="differ"):
        devices.join([one, other])
    with pytest.raises(UsageError, match="parts of one shape"):
        devices.spread(MODEL, mesh).apply(MODEL.init(KEY, one[0]), frames(2)[1][0])
    with pytest.raises(UsageError, match="9 devices"):
        devices.device_mesh(9)


def test_each_structure_is_read_by_its_own_head_wherever_it_lies():
    """The label `head` of a structure is that of its part, as its positions are."""
    potential = heads_potential(MODEL, ["low", "high"])
    mesh, (b, parts) = devices.device_mesh(), entries()[0]
    labelled = [(s, {"head": np.array([float(i % 2)])}) for i, (s, _) in enumerate(FRAMES)]
    system, labels = devices.parallel_batch(labelled, BUCKETS[b], parts, mesh)
    params = potential.init(KEY, whole((b, parts))[0])
    params["heads"] = jax.tree.map(lambda x: x.at[1].mul(3.0), params["heads"])
    spread = jax.jit(devices.spread(potential, mesh).apply)
    out = spread(given(params, labels), system)["energy"]
    g = BUCKETS[b].n_graphs
    for k, members in enumerate(parts):
        for place, i in enumerate(members):
            alone = potential.apply({**params, "head": i % 2}, batch(FRAMES, BUCKETS[b], [i])[0])
            assert_allclose(out[k * g + place], alone["energy"][0], rtol=1e-12)
