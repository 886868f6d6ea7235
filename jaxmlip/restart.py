"""What a long run needs to be stopped at any moment: its state on disk, and an ear for signals.

A checkpoint is whole or not there, checked, and the one before it is kept: one safetensors file
with the leaves of the state in tree order, and in its header the position of the run as JSON with a
SHA-256 over both. Resuming from it is exact, bit for bit. One run at a time owns a folder.
"""

import errno
import hashlib
import json
import os
import shutil
import signal
import socket
import threading
import time
from contextlib import contextmanager
from pathlib import Path

import jax
import numpy as np

from jaxmlip.errors import ResourceError

KEEP = 2
FORMAT = 1  # of a state file; a file without one is of format 1
LOCK = "running.lock"
LOCKED = 2**30  # the byte of it that is locked where locks are of bytes


def save_state(folder, state, position: dict, *, step: int) -> Path:
    """Writes `state-<step>.safetensors`, then removes all but the newest two.

    Older ones go only once a newer one has been read back whole. Where there is no space, all but
    the newest whole one go and it is tried once more; then `ResourceError`, and what was there
    before is untouched.
    """
    from safetensors.numpy import save

    folder = Path(folder)
    arrays = _leaves(state)
    text = json.dumps(position, sort_keys=True)
    header = {
        "position": text,
        "sha256": _digest(arrays, text),
        "format": str(FORMAT),
        "written_by": _version(),
    }
    path = folder / f"state-{step:010d}.safetensors"
    data = save(arrays, metadata=header)
    try:
        _write(path, data)
    except OSError:
        _prune(folder, keep=1)
        try:
            _write(path, data)
        except OSError as error:
            raise ResourceError(
                f"cannot write the checkpoint: {error.strerror}; it needs "
                f"{len(data) / 1e6:.1f} MB, {shutil.disk_usage(folder).free / 1e6:.1f} MB are free",
                where=str(path),
                fix="free some space, or look for a quota; the previous checkpoint is untouched",
            ) from error
    _prune(folder, keep=KEEP)
    return path


def _write(path, data):
    partial = path.with_name(path.name + ".partial")
    try:
        with open(partial, "wb") as f:
            f.write(data)
            f.flush()
            os.fsync(f.fileno())
        os.replace(partial, path)
    except OSError:
        partial.unlink(missing_ok=True)
        raise


def _prune(folder, *, keep: int):
    """Removes what is older than the newest `keep`, if one of these is whole; oldest first."""
    states = saved_states(folder)
    if len(states) > keep and any(map(_is_whole, states[:keep])):
        for old in reversed(states[keep:]):
            old.unlink(missing_ok=True)


def _is_whole(path) -> bool:
    try:
        read_state(path)
    except ResourceError:
        return False
    return True


def _version() -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("jaxmlip")
    except PackageNotFoundError:
        return "unknown"


def saved_states(folder) -> list[Path]:
    """Checkpoints in the folder, the newest first."""
    return sorted(Path(folder).glob("state-*.safetensors"), reverse=True)


def newest_state(folder, *, warn=lambda error: None):
    """(arrays, position) of the newest whole checkpoint, or None if there is none at all.

    Each damaged one is given to `warn` as a ResourceError; if all are damaged, the last is raised.
    One of a newer version is raised at once: it would be lost by going on from an older one.
    """
    error = None
    for path in saved_states(folder):
        try:
            return read_state(path)
        except ResourceError as damaged:
            if damaged.code == "JM406":
                raise
            warn(damaged)
            error = damaged
    if error is not None:
        raise error
    return None


def read_state(path) -> tuple[dict, dict]:
    """({leaf name: array}, position). Raises `ResourceError` if the file is not what was saved."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="numpy") as f:
            header = f.metadata() or {}
            arrays = {k: f.get_tensor(k) for k in f.keys()}  # noqa: SIM118
    except (SafetensorError, OSError, ValueError) as error:
        raise _damaged(path, str(error)) from error
    if header.get("format", "1") != str(FORMAT):
        raise ResourceError(
            f"the checkpoint was written by jaxmlip {header.get('written_by', '?')} in format "
            f"{header['format']}; this is jaxmlip {_version()} with format {FORMAT}",
            where=str(path),
            code="JM406",
            fix="update jaxmlip, or start afresh in another folder",
        )
    text = header.get("position", "")
    if not text or header.get("sha256") != _digest(arrays, text):
        raise _damaged(path, "it does not match its SHA-256")
    return arrays, json.loads(text)


def restore_state(template, arrays: dict):
    """The state with the saved leaves. Raises `ResourceError` if shapes or dtypes differ."""
    expected = _leaves(template)
    for name in sorted(expected.keys() | arrays.keys()):
        describe = lambda a: "missing" if a is None else f"{a.dtype}{list(a.shape)}"
        saved, wanted = describe(arrays.get(name)), describe(expected.get(name))
        if saved != wanted:
            raise ResourceError(
                f"the checkpoint has {name} {saved}, this run needs {wanted}",
                code="JM403",
                fix="start afresh with resume off",
            )
    leaves, tree = jax.tree.flatten(template)
    saved = [_as_leaf(arrays[name], x) for name, x in zip(expected, leaves, strict=True)]
    return jax.tree.unflatten(tree, saved)


def _leaves(state) -> dict:
    leaves = jax.tree_util.tree_leaves_with_path(state)
    return {f"{i:05d}{jax.tree_util.keystr(p)}": _as_array(x) for i, (p, x) in enumerate(leaves)}


def _is_key(leaf) -> bool:
    return isinstance(leaf, jax.Array) and jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _as_array(leaf):
    return np.asarray(jax.random.key_data(leaf) if _is_key(leaf) else leaf)


def _as_leaf(array, like):
    if _is_key(like):
        return jax.random.wrap_key_data(array, impl=jax.random.key_impl(like))
    return array if isinstance(like, np.ndarray) else jax.numpy.array(array)


def _digest(arrays, text):
    h = hashlib.sha256(text.encode())
    for name in sorted(arrays):
        array = np.ascontiguousarray(arrays[name])
        h.update(f"{name}{array.dtype}{array.shape}".encode())
        h.update(array.tobytes())
    return h.hexdigest()


def _damaged(path, why):
    return ResourceError(
        f"the checkpoint is damaged: {why}",
        where=str(path),
        code="JM402",
        fix="delete it; an older whole one is used where there is one",
    )


# --- one run a folder ---------------------------------------------------------------------------


@contextmanager
def only_run(folder, *, force: bool = False, warn=lambda message: None):
    """The folder is this process's own until the end of the context.

    The lock is one of the operating system on the file `running.lock`, so it ends with the
    process, however that ends; the file says whose it is. What a killed process left is told to
    `warn` and taken over. Raises `ResourceError` where another run holds the lock, unless `force`.
    """
    path = Path(folder) / LOCK
    with open(path, "a+") as file:
        file.seek(0)
        owner = file.read().strip()
        try:
            _lock(file)
            if owner:
                warn(f"the last run in {folder} did not end by itself ({owner})")
        except OSError as error:
            if error.errno not in (errno.EAGAIN, errno.EACCES):
                warn(f"{folder} knows no locks: nothing keeps a second run out of it")
            elif not force:
                raise ResourceError(
                    f"another run works in this folder: {owner or 'unknown owner'}",
                    where=str(folder),
                    code="JM407",
                    fix="wait for it, use another output, or take the folder with force",
                ) from error
            else:
                warn(f"{folder} is taken from another run ({owner})")
        file.truncate(0)
        since = time.strftime("%Y-%m-%d %H:%M:%S %z")
        file.write(f"process {os.getpid()} on {socket.gethostname()} since {since}\n")
        file.flush()
        try:
            yield
        finally:
            file.truncate(0)


def _lock(file):
    """Takes the lock of the operating system on an open file; `OSError` where it is held."""
    try:
        import fcntl
    except ImportError:
        import msvcrt  # Windows: nobody else can read a byte that is locked, so one behind the end

        place = os.lseek(file.fileno(), 0, os.SEEK_CUR)
        os.lseek(file.fileno(), LOCKED, os.SEEK_SET)
        try:
            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
        finally:
            os.lseek(file.fileno(), place, os.SEEK_SET)
    else:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


# --- signals -----------------------------------------------------------------------------------


@contextmanager
def stop_signals():
    """An event that the first INT, TERM or USR1 sets; a second INT kills as usual."""
    event, old = threading.Event(), {}
    asking = [getattr(signal, n) for n in ("SIGINT", "SIGTERM", "SIGUSR1") if hasattr(signal, n)]

    def ask(number, frame):
        event.set()
        signal.signal(signal.SIGINT, signal.default_int_handler)

    if threading.current_thread() is threading.main_thread():
        old = {n: signal.signal(n, ask) for n in asking}
    try:
        yield event
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)
