"""What a run leaves on disk when it is killed, when there is no space, and when there are two."""

import errno
import json
import os
import signal
import subprocess
import sys
import threading
import time
import types

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import save_file

from jaxmlip import restart
from jaxmlip.errors import ResourceError
from jaxmlip.restart import (
    newest_state,
    only_run,
    read_state,
    save_state,
    saved_states,
    stop_signals,
)

STATE = {"w": np.arange(6.0), "n": np.int32(3)}


def saved(folder, step):
    return save_state(folder, STATE | {"n": np.int32(step)}, {"step": step}, step=step)


KILLED = """
import os, random, signal, sys, time
import numpy as np
from jaxmlip.restart import newest_state, save_state

folder = sys.argv[1]
random.seed(0)
big = np.random.default_rng(0).normal(size=200_000)
for trial in range(20):
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        first = 0 if trial == 0 else newest_state(folder)[1]["step"] + 1
        for step in range(first, first + 10_000):
            save_state(folder, {"w": big * step}, {"step": step}, step=step)
            os.write(write, step.to_bytes(4, "big"))
    os.close(write)
    last = os.read(read, 4)  # at least one is done
    time.sleep(random.uniform(0, 0.03))
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    while more := os.read(read, 4):
        last = more
    os.close(read)
    arrays, position = newest_state(folder, warn=lambda error: sys.exit(f"damaged: {error}"))
    assert position["step"] >= int.from_bytes(last, "big"), (position, last)
    assert np.array_equal(next(iter(arrays.values())), big * position["step"])
print("sound")
"""


def test_a_run_that_is_killed_while_it_saves_loses_nothing_that_was_saved(tmp_path):
    """kill -9 at 20 random moments: the newest state is whole and no older than the last done."""
    command = [sys.executable, "-c", KILLED, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=900)
    assert done.stdout.strip() == "sound", done.stderr


def test_a_full_disk_leaves_the_states_before_and_says_what_is_needed(tmp_path, monkeypatch):
    for step in (1, 2):
        saved(tmp_path, step)

    def full(descriptor):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(restart.os, "fsync", full)
    with pytest.raises(ResourceError, match=r"No space left.*needs .* MB, .* MB are free"):
        saved(tmp_path, 3)
    assert newest_state(tmp_path)[1] == {"step": 2}
    assert not list(tmp_path.glob("*.partial"))


def test_where_there_is_no_space_the_older_state_makes_room(tmp_path, monkeypatch):
    for step in (1, 2):
        saved(tmp_path, step)
    fsync = os.fsync

    def nearly_full(descriptor):
        if len(saved_states(tmp_path)) > 1:
            raise OSError(errno.ENOSPC, "No space left on device")
        fsync(descriptor)

    monkeypatch.setattr(restart.os, "fsync", nearly_full)
    saved(tmp_path, 3)
    assert [read_state(p)[1]["step"] for p in saved_states(tmp_path)] == [3, 2]


def test_pruning_never_takes_the_only_whole_state(tmp_path):
    for step in (1, 2):
        saved(tmp_path, step)
    for path in saved_states(tmp_path)[:1]:
        path.write_bytes(path.read_bytes()[:-8])
    whole = saved_states(tmp_path)[1]
    data = saved(tmp_path, 3).read_bytes()
    assert not whole.exists()  # the new one is whole
    third = saved_states(tmp_path)[0]
    third.write_bytes(data[:-8])
    restart._prune(tmp_path, keep=1)
    assert len(saved_states(tmp_path)) == 2  # both are damaged: nothing is taken
    saved(tmp_path, 4)
    assert newest_state(tmp_path)[1] == {"step": 4}


def test_a_state_of_a_newer_version_is_not_passed_over(tmp_path):
    saved(tmp_path, 1)
    path = saved(tmp_path, 2)
    with safe_open(path, framework="numpy") as f:
        header, arrays = f.metadata(), {k: f.get_tensor(k) for k in f.keys()}  # noqa: SIM118
    assert header["format"] == "1" and header["written_by"]
    save_file(arrays, path, metadata=header | {"format": "2", "written_by": "9.9"})
    with pytest.raises(ResourceError, match=r"jaxmlip 9\.9 in format 2.*with format 1"):
        newest_state(tmp_path)
    del header["format"], header["written_by"]  # as before formats were written
    save_file(arrays, path, metadata=header)
    assert newest_state(tmp_path)[1] == {"step": 2}


def test_a_second_run_in_a_folder_is_refused_with_the_first_ones_name(tmp_path):
    with only_run(tmp_path):
        with pytest.raises(ResourceError, match=f"process {os.getpid()} on ") as error:
            with only_run(tmp_path):
                pass
        assert error.value.exit_code == 5
        told = []
        with only_run(tmp_path, force=True, warn=told.append):
            assert "taken from another run" in told[0]
    told = []
    with only_run(tmp_path, warn=told.append):
        assert told == []


def test_where_locks_are_of_bytes_the_folder_has_one_owner_too(tmp_path, monkeypatch):
    """Windows: `msvcrt.locking` locks from the present place on, EACCES where it is locked."""
    held = set()

    def locking(descriptor, mode, size):
        byte = os.lseek(descriptor, 0, os.SEEK_CUR)
        if byte in held:
            raise OSError(errno.EACCES, "locked")
        held.add(byte)

    monkeypatch.setitem(sys.modules, "fcntl", None)
    fake = types.SimpleNamespace(locking=locking, LK_NBLCK=2)
    monkeypatch.setitem(sys.modules, "msvcrt", fake)
    with only_run(tmp_path):
        owner = (tmp_path / "running.lock").read_text()
        assert f"process {os.getpid()}" in owner and min(held) > len(owner)  # readable
        with pytest.raises(ResourceError, match=f"process {os.getpid()}"), only_run(tmp_path):
            pass
    assert (tmp_path / "running.lock").read_text() == ""


HOLD = """
import sys, time
from jaxmlip.restart import only_run
with only_run(sys.argv[1]):
    print("held", flush=True)
    time.sleep(60)
"""


def test_what_a_killed_run_left_locked_is_taken_over_and_told(tmp_path):
    command = [sys.executable, "-c", HOLD, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout.readline().strip() == "held"
        with pytest.raises(ResourceError, match=f"process {other.pid} on"):
            with only_run(tmp_path):
                pass
        other.kill()
    told = []
    with only_run(tmp_path, warn=told.append):
        assert f"process {other.pid} on" in told[0]


def test_the_first_signal_asks_and_a_second_interrupt_ends():
    handler = signal.getsignal(signal.SIGTERM)
    with stop_signals() as stop:
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.wait(5)
        os.kill(os.getpid(), signal.SIGTERM)  # Slurm repeats it: still the same wish
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(5)
    assert signal.getsignal(signal.SIGTERM) is handler
    threading.Thread(target=lambda: stop_signals().__enter__()).start()  # no handler of its own


def test_a_position_is_json_and_comes_back_as_it_was(tmp_path):
    position = {"step": 3, "best": 0.1, "sums": {"energy": [1.0, 2.0]}}
    save_state(tmp_path, STATE, position, step=3)
    arrays, found = newest_state(tmp_path)
    assert found == json.loads(json.dumps(position))
    np.testing.assert_array_equal(arrays["00001['w']"], STATE["w"])
