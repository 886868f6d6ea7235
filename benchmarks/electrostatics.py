"""What do Coulomb energies and forces of n charges cost at a known error, beside the peers?

    python -m benchmarks.electrostatics compare --systems salt1000 --tolerances 1e-4 --cores 1 \\
        --environments PEERS --output results.jsonl
    python -m benchmarks.electrostatics accuracy --systems salt1000 water1029 random512
    python -m benchmarks.electrostatics scaling --cores 1

Every time of `compare` stands beside the force error |F - F_exact| / |F_exact| measured in the same
process; F_exact is jaxmlip's Ewald sum to 1e-9 (`--reference`). `scaling` measures times alone: its
error is the one that the planner was asked for (`accuracy` and tests/test_mesh.py judge that).
Peers have no planner: their settings are scanned from coarse to fine until the error is met, for
every method and cutoff they have. Energy and forces, warm; the search for neighbours is left out.
One line of JSON a measurement.
"""

import argparse
import json
import os
import subprocess
import tempfile
from importlib import import_module
from pathlib import Path

import numpy as np

from benchmarks import drive, timing
from benchmarks.charges import charged

PEERS = {"jaxmlip": "jaxmlip", "jax-pme": "jax_pme", "torch-pme": "torch_pme"}


def main():
    parser = argparse.ArgumentParser(
        prog="benchmarks.electrostatics", description=__doc__.splitlines()[0]
    )
    parser.add_argument("question", choices=["compare", "accuracy", "scaling", "worker"])
    parser.add_argument("task", nargs="?", help=argparse.SUPPRESS)
    parser.add_argument("--systems", nargs="+", default=["salt1000", "salt8000", "water1029"])
    parser.add_argument("--tolerances", nargs="+", type=float, default=[1e-3, 1e-4])
    parser.add_argument("--peers", nargs="+", default=list(PEERS), choices=list(PEERS))
    parser.add_argument("--methods", nargs="+", help="of those of a peer; default all")
    parser.add_argument("--cutoffs", nargs="+", type=float, help="Å; default those of a method")
    parser.add_argument("--dtypes", nargs="+", default=["float64"])
    parser.add_argument("--reference", type=float, default=1e-9, help="tolerance of F_exact")
    parser.add_argument("--environments", default=os.environ.get("JAXMLIP_PEERS"), metavar="DIR")
    parser.add_argument("--cores", type=int, help="pin to so many cores (Linux); default all")
    parser.add_argument("--allocator", default="default", choices=list(timing.ALLOCATORS))
    parser.add_argument("--budget", type=float, default=4.0, help="seconds of repeats")
    parser.add_argument("--least", type=int, default=5, help="repeats at least")
    parser.add_argument("--most-seconds", type=float, default=20.0, help="leave out slower calls")
    parser.add_argument("--output", help="append the lines to this file, too")
    given = parser.parse_args()
    {"compare": compare, "accuracy": accuracy, "scaling": scaling, "worker": work}[given.question](
        given
    )


def compare(given):
    """All peers on the same charges."""
    with tempfile.TemporaryDirectory() as folder:
        for system in given.systems:
            reference = make_reference(system, given, folder)
            for peer in given.peers:
                run(peer, system, reference, given)


def accuracy(given):
    """Requested and achieved error of our own planner, without times."""
    given.peers, given.most_seconds = ["jaxmlip"], 0.0
    given.methods = given.methods or ["pme", "p3m"]
    given.cutoffs = given.cutoffs or [6.0]
    compare(given)


def scaling(given):
    """Time against n, in the order of the lattice and in none; the error is not measured."""
    given.peers = ["jaxmlip"]
    given.methods, given.cutoffs = given.methods or ["pme"], given.cutoffs or [5.0]
    for n in (1000, 8000, 64000):
        for kind in ("salt", "mixed"):
            run("jaxmlip", f"{kind}{n}", None, given)


# --- processes -----------------------------------------------------------------------------------


def make_reference(system, given, folder):
    """A file with the forces of a tight Ewald sum."""
    path = str(Path(folder) / f"{system}.npz")
    task = {"system": system, "reference": path, "tolerance": given.reference}
    start("jaxmlip", task, given)
    return path


def run(peer, system, reference, given):
    task = {
        "system": system,
        "errors_from": reference,
        **{k: getattr(given, k) for k in ("methods", "cutoffs", "tolerances", "dtypes", "cores")},
        **{k: getattr(given, k) for k in ("budget", "least", "most_seconds")},
    }
    start(peer, task, given)


def start(peer, task, given):
    """One process in the environment of the peer; its lines are printed and kept."""
    python = drive.python_of(peer, given.environments)
    if python is None:
        drive.keep(
            {"peer": peer, "system": task["system"], "skipped": "no environment"}, given.output
        )
        return
    command = [python, "-m", "benchmarks.electrostatics", "worker"]
    process = subprocess.Popen(
        [*command, json.dumps({"peer": peer, **task})],
        stdout=subprocess.PIPE,
        text=True,
        cwd=drive.ROOT,
        env=os.environ | timing.ALLOCATORS[given.allocator],
    )
    for line in process.stdout:
        drive.keep(json.loads(line), given.output)
    if process.wait() != 0:
        drive.keep({"peer": peer, "system": task["system"], "skipped": "failed"}, given.output)


def work(given):
    """The half of the benchmark in the process of a peer."""
    task = json.loads(given.task)
    timing.pin(task.get("cores"))
    peer = import_module(f"benchmarks.peers.charges_{PEERS[task['peer']]}")
    if "reference" in task:
        return write_reference(peer, task)
    for dtype in task["dtypes"]:
        for tolerance in task["tolerances"]:
            for method in task["methods"] or peer.METHODS:
                if method in peer.METHODS:
                    scan(peer, method, tolerance, dtype, task)


def write_reference(peer, task):
    positions, charges, cell, numbers = charged(task["system"])
    settings = {"cutoff": 9.0, "tolerance": task["tolerance"]}
    call, _ = peer.prepare("ewald", settings, "float64", positions, charges, cell, numbers)
    np.savez(task["reference"], **{k: np.asarray(v) for k, v in call().items()})


def scan(peer, method, tolerance, dtype, task):
    """For each cutoff the coarsest settings that meet the tolerance, timed."""
    system = charged(task["system"])
    for settings in peer.settings(method, tolerance, system[2], task["cutoffs"]):
        line = {"peer": task["peer"], "system": task["system"], "method": method, "dtype": dtype}
        line |= {"tolerance": tolerance} | peer.facts()
        for given in settings:
            watch = timing.Stopwatch()
            call, plan = peer.prepare(method, given, dtype, *system)
            output = call()
            line |= given | plan | {"first_cpu_s": watch.cpu()} | errors(output, task)
            once = timing.once(call)["cpu"]
            planned = len(settings) == 1
            if (
                planned
                or line.get("force_error", 0) <= tolerance
                or once > task["most_seconds"] > 0
            ):
                break
        if once <= task["most_seconds"] and (planned or line["force_error"] <= tolerance):
            line |= timing.measure(call, budget=task["budget"], least=task["least"])
        elif task["most_seconds"]:
            line |= {"skipped": "slower than --most-seconds, or no setting meets the error"}
        print(json.dumps(timing.rounded(line)), flush=True)


def errors(output, task):
    if task["errors_from"] is None:
        return {}
    exact = np.load(task["errors_from"])
    difference = np.asarray(output["forces"], float) - exact["forces"]
    return {
        "force_error": float(np.linalg.norm(difference) / np.linalg.norm(exact["forces"])),
        "energy_error": float(abs(output["energy"] / exact["energy"] - 1)),
    }


if __name__ == "__main__":
    main()
