"""`map` over named items that can be killed at any moment and goes on where it was.

Any `concurrent.futures.Executor` does the work: processes (`workflows.processes`), threads,
`lambda: client.get_executor()` of dask.distributed, `lambda: SlurmClusterExecutor(...)` of
executorlib. Each result is one JSON file, whole or not there, with a key by which it is known
again; a key is a hash of all that the result depends on. A result with another key, of other
settings or another model, is not replaced unless that is asked for.
"""

import hashlib
import json
import os
import time
import traceback
from collections import deque
from collections.abc import Callable
from concurrent.futures import FIRST_COMPLETED, BrokenExecutor, CancelledError, wait
from dataclasses import dataclass, field
from pathlib import Path

from jaxmlip.errors import Interrupted, JaxmlipError, NumericalError, ResourceError, UsageError


@dataclass(frozen=True, kw_only=True)
class Failure:
    """An item that gave no result."""

    reason: str
    attempts: int
    traceback: str = ""


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What came of every item, in the order of the items."""

    results: dict[str, dict]
    failures: dict[str, Failure]
    n_reused: int  # results that were there before


@dataclass(kw_only=True)
class _Work:
    """What is left to do; the one thing here that changes."""

    waiting: deque
    suspects: deque = field(default_factory=deque)  # in flight when a worker died: one at a time
    running: dict = field(default_factory=dict)  # {future: (name, alone)}
    attempts: dict = field(default_factory=dict)
    results: dict = field(default_factory=dict)
    failures: dict = field(default_factory=dict)


def map_resumable(
    function: Callable,
    items: dict,
    *,
    executor: Callable,
    folder,
    key: Callable = lambda item: item,
    overwrite: bool = False,
    retries: int = 1,
    in_flight: int | None = None,
    report: Callable | None = None,
) -> Outcome:
    """function(item) -> dict for every item of `{name: item}`, kept as `folder/name.json`.

    executor: makes the executor, and another one if its workers die. key: item -> all that the
    result depends on (content of files, model, settings) as plain JSON. overwrite: compute anew
    what is there with another key, which is refused otherwise. retries: more attempts for
    what may go better next time (a worker that died, memory, disk); an error that is certain to
    come again (any other `JaxmlipError`) is not tried again. An item that kills its worker is found
    by running those that were in flight one at a time. in_flight: items given to the executor at
    once; default the number of cores. report: called with (outcome so far, name) after each item.
    Raises `Interrupted` on Ctrl-C, with all finished results on disk and in its `outcome`;
    `UsageError` for names that are no file names, JM104 for results that would be replaced.
    """
    folder = Path(folder)
    _check(items, retries, in_flight)
    folder.mkdir(parents=True, exist_ok=True)
    keys = {name: _digest(key(item)) for name, item in items.items()}
    found = {name: stored(folder, name) for name in items}
    whole = {name: record for name, record in found.items() if record}
    known = {n: record["result"] for n, record in whole.items() if record.get("key") == keys[n]}
    if not overwrite:
        _check_same(folder, [name for name in whole if name not in known])
    work = _Work(waiting=deque(n for n in items if n not in known), results=dict(known))

    def finished(name, answer):
        if _settle(work, name, answer, retries):
            if name in work.results:
                record = {"key": keys[name], "name": name, "attempts": work.attempts[name]}
                _write(folder / f"{name}.json", record | answer)
            if report is not None:
                report(_outcome(items, work, known), name)

    try:
        _drain(function, items, work, executor, in_flight or os.cpu_count() or 1, finished)
    except KeyboardInterrupt:
        left = len(items) - len(work.results) - len(work.failures)
        stop = Interrupted(
            f"interrupted, {left} of {len(items)} are left",
            where=str(folder),
            fix="the same command goes on from here",
        )
        stop.outcome = _outcome(items, work, known)
        raise stop from None
    return _outcome(items, work, known)


def stored(folder, name: str) -> dict | None:
    """The record of an item, or None if there is none (a damaged file is none)."""
    try:
        record = json.loads((Path(folder) / f"{name}.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    whole = isinstance(record, dict) and isinstance(record.get("result"), dict)
    return record if whole else None


# --- the loop ------------------------------------------------------------------------------------


def _drain(function, items, work, executor, in_flight, finished):
    """Until nothing waits or runs. Leaves no worker behind, whatever happens."""
    if not work.waiting:
        return
    pool = executor()
    try:
        while work.waiting or work.suspects or work.running:
            alive = _submit(function, items, work, pool, in_flight)
            alive = _collect(work, finished) and alive
            if not alive:
                _stop(pool, ())
                pool = executor()
    except BaseException:
        _stop(pool, work.running)
        raise
    pool.shutdown(wait=True)


def _submit(function, items, work, pool, in_flight) -> bool:
    """Fills the executor; False if it is broken."""
    while (found := _next(work, in_flight)) is not None:
        name, alone = found
        try:
            number = work.attempts.get(name, 0)  # dask knows a call by its arguments
            future = pool.submit(attempt, function, items[name], number)
        except BrokenExecutor:
            work.suspects.appendleft(name)
            return False
        work.running[future] = (name, alone)
    return True


def _next(work, in_flight) -> tuple[str, bool] | None:
    """(name, whether nothing else may run beside it) of the item to submit now, if there is one."""
    if work.suspects:
        return None if work.running else (work.suspects.popleft(), True)
    if any(alone for _, alone in work.running.values()):
        return None
    if work.waiting and len(work.running) < in_flight:
        return work.waiting.popleft(), in_flight == 1
    return None


def _collect(work, finished) -> bool:
    """Waits for one future or more; False if the executor has broken."""
    alive = True
    done, _ = wait(work.running, return_when=FIRST_COMPLETED) if work.running else ((), ())
    for future in done:
        name, alone = work.running.pop(future)
        try:
            answer = future.result()
        except (BrokenExecutor, CancelledError):
            alive = False
            if not alone:
                work.suspects.append(name)
                continue
            answer = _failed("the worker died (out of memory, or killed)", again=True)
        except Exception as error:  # not of the function: attempt() catches those
            answer = _failed(f"{type(error).__name__}: {error}", again=True)
        finished(name, answer)
    if not alive:
        work.suspects.extend(name for name, _ in work.running.values())
        work.running.clear()
    return alive


def attempt(function, item, number: int = 0) -> dict:
    """Runs in the worker: the result, or the error as text (exceptions may not travel)."""
    begun = time.perf_counter()
    try:
        result = function(item)
        if not isinstance(result, dict):
            raise TypeError(f"the result is of type {type(result).__name__}, not a dict")
        result = json.loads(_plain(result))  # as it will be read again
    except JaxmlipError as error:
        again = isinstance(error, ResourceError)
        return _failed(str(error), again=again, text=traceback.format_exc())
    except Exception as error:
        return _failed(f"{type(error).__name__}: {error}", again=True, text=traceback.format_exc())
    return {"result": result, "seconds": time.perf_counter() - begun}


def _plain(result: dict) -> str:
    try:
        return json.dumps(result, allow_nan=False)
    except ValueError as error:
        told = ", ".join(repr(k) for k, v in result.items() if not _finite(v))
        if not told:
            raise
        raise NumericalError(f"{told}: a number is not finite", code="JM303") from error


def _finite(value) -> bool:
    try:
        json.dumps(value, allow_nan=False)
    except ValueError:
        return False
    return True


def _failed(reason: str, *, again: bool, text: str = "") -> dict:
    return {"reason": reason, "again": again, "traceback": text}


def _settle(work, name, answer, retries) -> bool:
    """Books one answer; False if the item is to be tried again."""
    work.attempts[name] = work.attempts.get(name, 0) + 1
    if "result" in answer:
        work.results[name] = answer["result"]
        return True
    if answer["again"] and work.attempts[name] <= retries:
        work.waiting.append(name)
        return False
    work.failures[name] = Failure(
        reason=answer["reason"], attempts=work.attempts[name], traceback=answer["traceback"]
    )
    return True


def _stop(pool, futures):
    """Ends an executor now; what is running is lost."""
    workers = list((getattr(pool, "_processes", None) or {}).values())
    for future in futures:
        future.cancel()
    pool.shutdown(wait=False)  # dask's knows no cancel_futures
    for worker in workers:
        worker.terminate()


def _outcome(items, work, known) -> Outcome:
    pick = lambda found: {name: found[name] for name in items if name in found}
    return Outcome(results=pick(work.results), failures=pick(work.failures), n_reused=len(known))


# --- files and checks ----------------------------------------------------------------------------


def _digest(value) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def _write(path, record):
    """One move: the file is whole or not there."""
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        partial.write_text(json.dumps(record, indent=1, ensure_ascii=False), encoding="utf-8")
        os.replace(partial, path)
    except OSError as error:
        raise ResourceError(
            f"cannot write: {error.strerror}",
            where=str(path),
            fix="choose a writable folder with free space",
        ) from error
    finally:
        partial.unlink(missing_ok=True)


def _check_same(folder, others):
    if others:
        some = ", ".join(others[:3]) + ", ..." * (len(others) > 3)
        raise UsageError(
            f"{len(others)} of the results are of another structure, model or settings: {some}",
            where=str(folder),
            code="JM104",
            fix="--overwrite to replace them, or another --out",
        )


def _check(items, retries, in_flight):
    bad = [name for name in items if not name or Path(name).name != name or name.startswith(".")]
    if bad:
        raise UsageError(f"{bad[0]!r} is not a file name", where="map_resumable")
    folded = {name.lower() for name in items}
    if len(folded) != len(items):
        raise UsageError("two items have names that differ in case alone", where="map_resumable")
    if retries < 0 or (in_flight is not None and in_flight < 1):
        raise UsageError(
            f"retries is {retries} and in_flight {in_flight}; they must be at least 0 and 1",
            where="map_resumable",
        )
