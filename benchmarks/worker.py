"""One measurement in one process: the half of a benchmark that runs in the peer's environment.

    python -m benchmarks.worker '{"peer": "mlip", "task": "energy", "system": "aspirin", ...}'

started by `benchmarks.drive` from the root of the repository. Prints one line of JSON: what was
asked, versions, sizes, times and memory. A peer is a module of `benchmarks.peers` with

    prepare(task) -> (compile, facts)      compile() -> (call, facts)      call() -> output

where facts are entries of that line, `call` returns when its work is done, and output is a dict
with `forces`, or nothing.
"""

import json
import os
import sys
import time
from importlib import import_module

from benchmarks import timing


class Skip(Exception):
    """This peer has no such thing; the reason is reported, and it is not an error."""


def run(task):
    timing.pin(task.get("cores"))
    peer = import_module(f"benchmarks.peers.{task['peer'].replace('-', '_')}")
    begun = time.process_time()
    try:
        compile_, facts = peer.prepare(task)
    except Skip as reason:
        return {**task, "skipped": str(reason)}
    out = {**task, **facts, "cores": timing.cores(), "setup_cpu_s": time.process_time() - begun}
    before = timing.Stopwatch()
    call, facts = compile_()
    out |= facts
    if facts.get("temporary_mb", 0) > 1024 * task["memory_gb"]:
        return {**out, "skipped": f"needs {facts['temporary_mb'] / 1024:.1f} GB of memory to run"}
    output = call()
    out |= {"first_s": before.wall(), "first_cpu_s": before.cpu()}
    out |= checked(output) | timing.measure(call, budget=task["budget"], least=task["least"])
    return out | timing.memory_mb() | {"load": os.getloadavg()[0]}


def checked(output):
    """The largest component of a force, eV/Å: the sign that something finite was computed.

    Raises if it is zero or not finite: then the compiler may have left the work out.
    """
    import numpy as np

    if not output:
        return {}
    forces = output["forces"]
    largest = float(np.abs(np.asarray(forces.cpu() if hasattr(forces, "cpu") else forces)).max())
    if not 0 < largest < np.inf:
        raise ValueError(f"the largest force is {largest}")
    return {"largest_force": largest}


if __name__ == "__main__":
    print(json.dumps(timing.rounded(run(json.loads(sys.argv[1])))))
