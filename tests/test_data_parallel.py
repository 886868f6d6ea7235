"""A process with eight devices, and two processes that find each other."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from jaxmlip.data.batching import Bucket, plan
from jaxmlip.errors import UsageError
from jaxmlip.parallel import processes
from jaxmlip.train.steps import devices

HERE = Path(__file__).parent


def environment(n_devices, **more):
    flags = os.environ.get("XLA_FLAGS", "") + f" --xla_force_host_platform_device_count={n_devices}"
    return {**os.environ, "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu", **more}


@pytest.mark.slow
@pytest.mark.parametrize("name, n_devices", [("batch_devices.py", 8), ("run_devices.py", 4)])
def test_on_several_devices(name, n_devices):
    """A file of tests in a process of its own: the number of devices is fixed at start."""
    options = ["-q", "-x", "-p", "no:cacheprovider"]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *options, str(HERE / name)],
        env=environment(n_devices),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_alone_nothing_is_joined(monkeypatch):
    for name in (*processes.ENVIRONMENT, *processes.TASKS):
        monkeypatch.delenv(name, raising=False)
    assert processes.connect() == 1
    monkeypatch.setenv("JAX_COORDINATOR", "localhost:1")
    with pytest.raises(UsageError, match="only some are set"):
        processes.connect()


def test_parts_are_even_and_have_every_frame_of_their_batch():
    atoms = np.random.default_rng(0).integers(2, 20, 200)
    bucket = Bucket(120, 60, 10, tuple(range(200)))
    todo = plan([bucket], atoms, seed=1)
    (share,) = devices.part_buckets([bucket], todo, atoms, 4)
    for _, members in todo:
        parts = devices.divide(members, atoms, 4)
        assert sorted(i for part in parts for i in part) == sorted(members)
        loads = [atoms[part].sum() for part in parts]
        assert max(loads) - min(loads) <= atoms[members].max()  # of the greedy rule
        assert devices.fitting(share, parts, atoms) == share
    wide = devices.fitting(share, [list(range(30)), []], atoms)
    assert wide.n_atoms >= atoms[:30].sum() > wide.n_atoms / devices.GROWTH - 1
    assert wide.n_graphs >= 31
    with pytest.raises(UsageError, match="larger batch_atoms"):
        devices.part_buckets([bucket], todo, atoms, 40)


PROGRAM = """
import sys; sys.path.insert(0, {here!r})
from jaxmlip.parallel import processes
from jaxmlip.train.steps import devices
assert processes.connect() == 2 == processes.connect()
import jax
jax.config.update("jax_enable_x64", True)
import batch_devices as tests
tests.N = 4
import optax
mesh = devices.device_mesh()
assert mesh.devices.size == 4
init, step = tests.training(devices.spread(tests.MODEL, mesh), tests.TERMS,
                            optimizer=optax.scale_by_adam(), ema=0.9)
plain, _ = tests.training(tests.MODEL, tests.TERMS, optimizer=optax.scale_by_adam(), ema=0.9)
plan = tests.entries()[:3]
state = devices.everywhere(jax.device_get(plain(tests.KEY, tests.whole(plan[0])[0])), mesh)
data = [devices.parallel_batch(tests.FRAMES, tests.BUCKETS[b], p, mesh) for b, p in plan]
print("losses", [float(x) for x in tests.curve(devices.parallel(step, mesh), state, data)[0][:, 0]])
"""


@pytest.mark.slow
def test_two_processes_of_two_devices_have_the_loss_of_one():
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    run = lambda i: subprocess.Popen(
        [sys.executable, "-c", PROGRAM.format(here=str(HERE))],
        env=environment(
            2, JAX_COORDINATOR=f"localhost:{port}", JAX_PROCESSES="2", JAX_PROCESS=str(i)
        ),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    jobs = [run(0), run(1)]
    texts = [job.communicate(timeout=500)[0] for job in jobs]
    assert all(job.returncode == 0 for job in jobs), "\n".join(texts)
    lines = [[x for x in text.splitlines() if x.startswith("losses")][0] for text in texts]
    assert lines[0] == lines[1]
    import batch_devices as tests
    import optax

    tests.N = 4
    init, step = tests.training(tests.MODEL, tests.TERMS, optimizer=optax.scale_by_adam(), ema=0.9)
    plan = tests.entries()[:3]
    start = init(tests.KEY, tests.whole(plan[0])[0])
    expected = tests.curve(step, start, map(tests.whole, plan))[0][:, 0]
    found = [float(x) for x in lines[0].removeprefix("losses ")[1:-1].split(",")]
    assert max(abs(a - b) / b for a, b in zip(found, expected, strict=True)) < 1e-6


RUN = """
import sys; sys.path.insert(0, {here!r})
import run_devices as tests
from jaxmlip.train.loop import train
tests.train_toy({config!r}, {{"devices": "all", "output": "both"}})
"""


@pytest.mark.slow
def test_a_run_of_two_processes_writes_the_metrics_of_one_device(tmp_path):
    import run_devices as tests

    tests.write_run(tmp_path)
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    join = {"JAX_COORDINATOR": f"localhost:{port}", "JAX_PROCESSES": "2"}
    run = lambda i: subprocess.Popen(
        [sys.executable, "-c", RUN.format(here=str(HERE), config=str(tmp_path / "run.yaml"))],
        env=environment(2, **join, JAX_PROCESS=str(i)),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    jobs = [run(0), run(1)]
    texts = [job.communicate(timeout=900)[0] for job in jobs]
    assert all(job.returncode == 0 for job in jobs), "\n".join(texts)
    tests.train_toy(tmp_path / "run.yaml", {"output": "one"})
    np.testing.assert_allclose(
        tests.losses(tmp_path / "both"), tests.losses(tmp_path / "one"), rtol=1e-6
    )
