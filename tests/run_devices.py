"""Runs of a configuration on several devices. Run by test_data_parallel.py in its own process.

The losses are those of one device to 1e-6, in float64: what differs is the order of sums.
"""

import json
import sys

import numpy as np
import pytest
import test_train
from ase.io import write
from numpy.testing import assert_allclose, assert_array_equal
from test_train import Events, molecules

from jaxmlip import models
from jaxmlip.errors import Interrupted, UsageError
from jaxmlip.restart import read_state, saved_states
from jaxmlip.train.loop import train

CONFIG = test_train.CONFIG.replace("batch_atoms: 16", "batch_atoms: 40\ndtype: float64")
CURVED = {
    "loss.hessian": 0.01,
    "curvature.hessians": "train.npz",
    "curvature.every": 1,
    "ensemble": 2,
}


def write_run(folder):
    """A configuration and its data: springs, some with a Hessian."""
    write(folder / "train.extxyz", molecules(40))
    write(folder / "valid.extxyz", molecules(6, seed=1))
    rng, hessians = np.random.default_rng(0), {}
    for i, atoms in enumerate(molecules(9)):
        h = rng.normal(size=(3 * len(atoms), 3 * len(atoms)))
        hessians[f"h{i}"] = h + h.T
    np.savez(folder / "train.npz", **hessians)
    (folder / "run.yaml").write_text(CONFIG)


def train_toy(path, overrides, **options):
    """`train` with the toy model of test_train, in any process."""
    import jax

    jax.config.update("jax_enable_x64", True)
    models._HOME, models.__all__ = {"Toy": "toy"}, ["Toy"]
    sys.modules["jaxmlip.models.toy"] = test_train
    return train(path, overrides=overrides, **{"progress": Events(), **options})


def losses(folder):
    """[n_epochs, 2] of training and validation."""
    lines = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    return np.array([[line["train_loss"], line["valid_loss"]] for line in lines])


@pytest.fixture
def run(tmp_path):
    write_run(tmp_path)
    return tmp_path / "run.yaml"


@pytest.mark.parametrize("more", [{}, CURVED], ids=["plain", "curvature of an ensemble"])
def test_four_devices_have_the_losses_of_one(run, tmp_path, more):
    events = Events()
    train_toy(run, more | {"output": "one"})
    train_toy(run, more | {"output": "four", "devices": "all"}, progress=events)
    one, four = losses(tmp_path / "one"), losses(tmp_path / "four")
    assert len(one) == 4 and one[-1, 1] < one[0, 1]
    assert_allclose(four, one, rtol=1e-6)
    assert 0 <= events[0]["padding"] < 0.6


def test_a_stopped_run_on_devices_is_resumed_to_the_bit(run, tmp_path):
    on_four = {"devices": 4}
    whole = Events()
    train_toy(run, on_four | {"output": "whole"}, progress=whole)
    steps = sum(e["event"] == "step" for e in whole)
    with pytest.raises(Interrupted):
        train_toy(run, on_four, progress=Events(stop_at=steps // 2 + 1))
    train_toy(run, on_four)
    a, b = (read_state(saved_states(tmp_path / name)[0])[0] for name in ("whole", "out"))
    for name in a:
        assert_array_equal(a[name], b[name], err_msg=name)


def test_what_devices_cannot_share_is_refused(run):
    with pytest.raises(UsageError, match="5 devices are asked for, there are 4"):
        train_toy(run, {"devices": 5})
    with pytest.raises(UsageError, match="4 devices share batches of at most 3 structures"):
        train_toy(run, {"devices": 4, "batch_atoms": 6})
