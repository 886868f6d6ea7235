"""Frames that stay in their file: the same batches as from memory, of which few are held."""

import gc

import jax
import numpy as np
import pytest
from ase.db import connect
from test_train import CONFIG, Events, compiled_once, molecules, toy  # noqa: F401

from jaxmlip.errors import DataError, Interrupted
from jaxmlip.interfaces import hdf5
from jaxmlip.restart import read_state, saved_states
from jaxmlip.system import System
from jaxmlip.train.config.read import read_config
from jaxmlip.train.frames import reading as of_runs
from jaxmlip.train.frames.stored import Stored, read_stored
from jaxmlip.train.loop import train
from jaxmlip.train.saving import Position
from jaxmlip.train.setup import prepare
from jaxmlip.train.steps.feed import batches_from

HELD = 3


def written(path, atoms):
    """Frames, of which some lack a label, as an HDF5 file or an ASE database."""
    for i, a in enumerate(atoms):
        a.info["config_type"] = "odd" if i % 2 else "even"
        if i % 5 == 3:
            del a.arrays["REF_forces"]
    if path.suffix == ".h5":
        hdf5.write_frames(path, atoms)
        return path
    with connect(path) as db:
        for a in atoms:
            told = {k: a.info.pop(k) for k in ("REF_energy", "config_type")}
            db.write(a, data={**a.info, **a.arrays}, **told)
    return path


@pytest.fixture(params=[".h5", pytest.param(".db", marks=pytest.mark.slow)])
def run(tmp_path, request):
    written(tmp_path / f"train{request.param}", molecules(60))
    more = f"data: {{train: train{request.param}, held_frames: {HELD}, checks: false}}\n"
    more += "loss: {energy: 1.0, forces: 1.0, dipole: 1.0, config_type_weights: {odd: 0.5}}"
    lines = [x for x in CONFIG.splitlines() if not x.startswith(("data:", "loss:"))]
    (tmp_path / "run.yaml").write_text("\n".join([*lines, more]))
    return tmp_path / "run.yaml"


def epoch(prepared, count=lambda: 0):
    """[(arrays of every batch of an epoch)] and what was counted after each."""
    out = [
        (jax.tree.map(np.array, (system, labels)), count())
        for _, system, labels in batches_from(prepared, Position())
    ]
    return [arrays for arrays, _ in out], [n for _, n in out]


@pytest.fixture
def only_new():
    """The collector looks only at what this test makes: fast, whatever others have left."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


def single_structures():
    """How many are in memory, without those in cycles that only the collector can free."""
    gc.collect()
    return sum(type(x) is System and x.n_graphs == 1 for x in gc.get_objects())


def test_batches_are_bitwise_those_from_memory_and_few_frames_are_held(run, only_new, monkeypatch):
    config = read_config(run)
    stored = prepare(config, tell=lambda text: None)
    assert isinstance(stored.train, Stored) and len(stored.train) == 57
    batches, counts = epoch(stored, single_structures)
    assert 0 < max(counts) <= HELD + 16 / 2  # and those of one batch: 16 atoms, each 2 or more
    assert len(stored.train.held) == HELD
    monkeypatch.setattr(of_runs, "is_stored", lambda path: False)
    whole = prepare(config, tell=lambda text: None)
    assert isinstance(whole.train, list)
    assert stored.card == whole.card and stored.buckets == whole.buckets
    assert stored.valid_buckets == whole.valid_buckets and stored.padding == whole.padding
    jax.tree.map(np.testing.assert_array_equal, batches, epoch(whole)[0])


def test_a_frame_that_has_grown_during_the_run_is_refused(tmp_path):
    path = written(tmp_path / "a.db", molecules(3))
    found, _ = read_stored(path, 3.0)
    assert found.frames[2][0].n_atoms == 3
    path.unlink()
    written(path, molecules(3)[::-1])
    assert found.frames[1][0].n_atoms == 3  # as before
    with pytest.raises(DataError, match="frame 2 has changed since the run began"):
        found.frames[2]


@pytest.mark.slow
def test_a_run_on_stored_frames_that_is_resumed_is_bitwise_the_one_in_memory(run, monkeypatch):
    whole = Events()
    with monkeypatch.context() as patch:
        patch.setattr(of_runs, "is_stored", lambda path: False)
        train(run, overrides={"output": "whole"}, progress=whole)
    steps = sum(e["event"] == "step" for e in whole)
    with pytest.raises(Interrupted):
        train(run, progress=Events(stop_at=steps // 2 + 1))
    train(run, progress=Events())
    states = [saved_states(run.parent / name)[0] for name in ("whole", "out")]
    a, b = (read_state(state)[0] for state in states)
    for name in a:
        np.testing.assert_array_equal(a[name], b[name], err_msg=name)
