"""Clocks and memory of one process: what a worker of any environment measures.

On a machine that others use, the smallest CPU time over repeats is the figure to trust: it leaves
out what others' work adds, short of what they do to caches and clock speed.
"""

import os
import resource
import time
from statistics import median

# Environments for the process. glibc maps what is larger than 32 MiB anew in every call and returns
# it afterwards, so that the kernel must fill each page with zeros again; XLA asks for all temporary
# memory of a program in one piece, in a thread whose arena cannot hold more than 64 MiB.
ALLOCATORS = {
    "default": {},
    "kept": {  # one arena that never maps and never shrinks
        "MALLOC_ARENA_MAX": "1",
        "MALLOC_MMAP_MAX_": "0",
        "MALLOC_TRIM_THRESHOLD_": str(2**31 - 1),
    },
    "huge": {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"},  # pages of 2 MiB where the kernel may
}


def measure(call, *, budget=6.0, least=5, most=200):
    """Repeats `call`, which returns when its work is done: smallest and median times of one call.

    budget: seconds to spend, apart from the `least` repeats (a call longer than it is made once).
    page_faults and system_ms are those of the call in which the least CPU time was used.
    """
    runs, end = [], time.perf_counter() + budget
    while len(runs) < least or (len(runs) < most and time.perf_counter() < end):
        runs.append(once(call))
        if runs[0]["wall"] > budget:
            break
    best = min(runs, key=lambda run: run["cpu"])
    return {
        "cpu_ms": 1e3 * best["cpu"],
        "cpu_median_ms": 1e3 * median(run["cpu"] for run in runs),
        "wall_ms": 1e3 * min(run["wall"] for run in runs),
        "wall_median_ms": 1e3 * median(run["wall"] for run in runs),
        "system_ms": 1e3 * best["system"],
        "page_faults": best["faults"],
        "repeats": len(runs),
    }


def once(call):
    """Seconds and page faults of one call."""
    usage, cpu, wall = resource.getrusage(resource.RUSAGE_SELF), time.process_time(), clock()
    call()
    wall, cpu, after = clock() - wall, time.process_time() - cpu, resource.getrusage(0)
    return {
        "wall": wall,
        "cpu": cpu,
        "system": after.ru_stime - usage.ru_stime,
        "faults": after.ru_minflt - usage.ru_minflt,
    }


clock = time.perf_counter


class Stopwatch:
    """Seconds since it was made."""

    def __init__(self):
        self.begun = clock(), time.process_time()

    def wall(self):
        return clock() - self.begun[0]

    def cpu(self):
        return time.process_time() - self.begun[1]


def memory_mb():
    """Resident memory of this process now, and the most that it has held, MB of 2^20 bytes."""
    try:
        with open("/proc/self/status") as file:
            rows = dict(line.split(":", 1) for line in file)
    except OSError:
        return {}
    return {
        k: int(rows[v].split()[0]) / 1024
        for k, v in {"rss_mb": "VmRSS", "peak_rss_mb": "VmHWM"}.items()
    }


def pin(n_cores):
    """Lets this process and its children use the first `n_cores` cores (Linux); None: all."""
    if n_cores and hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:n_cores])


def cores():
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()


def rounded(tree, digits=4):
    """Numbers with so many significant digits, so that a line of JSON can be read."""
    if isinstance(tree, dict):
        return {k: rounded(v, digits) for k, v in tree.items()}
    return float(f"{tree:.{digits}g}") if isinstance(tree, float) else tree
