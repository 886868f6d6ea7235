"""Worker processes that start clean, share the cores, and never outlive who started them."""

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import connection


def processes(workers: int, *, begin: Callable | None = None) -> Callable:
    """A function that makes an executor of `workers` processes, for `map_resumable`.

    They are spawned: a fork of a process that runs JAX may hang. begin: called first in each
    worker, as to set JAX up; it and all work must be importable. Each has its share of the cores.
    """

    def make():
        context = multiprocessing.get_context("spawn")
        count = context.Value("i", 0)
        return ProcessPoolExecutor(
            workers, mp_context=context, initializer=_begin, initargs=(begin, count, workers)
        )

    return make


def _begin(begin, count, workers):
    # Ctrl-C reaches all processes of a terminal: the one that started this one answers it
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    with count.get_lock():
        mine, count.value = count.value, count.value + 1
    _share_cores(mine % workers, workers)
    if begin is not None:
        begin()


def _end_with_parent():
    """A worker whose parent was killed would wait for work for ever."""
    connection.wait([multiprocessing.parent_process().sentinel])
    os._exit(1)


def _share_cores(mine: int, workers: int):
    """Every worker its own cores (Linux); XLA would otherwise start threads for all in each."""
    if workers > 1 and hasattr(os, "sched_setaffinity"):
        cores = sorted(os.sched_getaffinity(0))
        share = cores[mine::workers] or [cores[mine % len(cores)]]
        os.sched_setaffinity(0, share)
