"""The folder of a run: what is written there repeats it, or says what has changed."""

import json
from pathlib import Path

import numpy as np
import pytest
from test_train import run, toy  # noqa: F401

from jaxmlip.cli import learning, watch
from jaxmlip.cli.main import main
from jaxmlip.errors import UsageError
from jaxmlip.models import checkpoint
from jaxmlip.train.config.read import read_config


@pytest.mark.usefixtures("toy")
def test_a_folder_repeats_its_run_to_the_bit_and_refuses_other_data(run, capsys, monkeypatch):  # noqa: F811
    monkeypatch.chdir(run.parent)
    assert main(["train", "run.yaml", "--json", "run.json"]) == 0
    folder = run.parent / "out"
    record = json.loads((folder / "run.json").read_text())
    assert record["data"]["train"]["sha256"] and record["starts"][0]["versions"]["jax"]
    assert read_config(folder / "config.yaml") == read_config(run)
    pictures = json.loads(Path("run.json").read_text())["pictures"]
    assert all(Path(p).read_bytes()[:4] == b"\x89PNG" for p in pictures) and len(pictures) == 2
    assert main(["train", "--from-run", "out", "--no-pictures"]) == 0
    first, second = (
        checkpoint.read(f / "model.safetensors") for f in (folder, Path("out_repeated"))
    )
    assert first[1].keys() == second[1].keys()
    assert all(np.array_equal(first[1][k], second[1][k]) for k in first[1])
    (run.parent / "train.extxyz").write_text((run.parent / "valid.extxyz").read_text())
    assert main(["train", "--from-run", "out", "--out", "third"]) == 3
    assert "have changed" in capsys.readouterr().err
    assert main(["train", "--from-run", "third"]) == 2
    assert main(["train", "run.yaml", "--from-run", "out"]) == 2


def test_parity_pictures_draw_every_label(tmp_path):
    rng = np.random.default_rng(0)
    found = {name: (rng.normal(size=50), rng.normal(size=50)) for name in learning.AXES}
    found["charges"] = (np.zeros(0), np.zeros(0))
    learning.draw_parity(tmp_path / "parity.png", found, title="random numbers")
    assert (tmp_path / "parity.png").read_bytes()[:4] == b"\x89PNG"


EPOCH = {
    **{"event": "epoch", "epoch": 2, "step": 10, "seconds": 3.0, "best": True},
    **{"train_loss": None, "valid_loss": 0.5, "learning_rate": 0.01},
    "train": {},
    "valid": {"forces_mae_meV_per_A": 12.0},
}


def test_trackers_get_the_numbers_of_an_epoch(tmp_path, capsys):
    assert watch.scalars(EPOCH)["valid/forces_mae_meV_per_A"] == 12.0
    assert "train_loss" not in watch.scalars(EPOCH)
    pytest.importorskip("tensorboardX", reason="pip install 'jaxmlip[tensorboard]'")
    with watch.watching(tmp_path, tensorboard=True) as report:
        report(EPOCH)
    assert list(tmp_path.glob("events.*"))


@pytest.mark.parametrize("name, option", [("tensorboardX", "tensorboard"), ("wandb", "wandb")])
def test_a_tracker_that_is_not_installed_is_named(tmp_path, monkeypatch, name, option):
    import sys

    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(UsageError, match=name):
        with watch.watching(tmp_path, **{option: "project"}):
            pass
