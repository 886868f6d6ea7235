"""Starts one worker a measurement, each in the Python of its own code.

The environments are folders with the peer's name in one folder (see benchmarks/README.md); jaxmlip
runs in the environment of the driver. What cannot be measured is skipped with its reason.
"""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

from benchmarks import timing

ROOT = Path(__file__).parent.parent
PEERS = ("jaxmlip", "mace-torch", "mlip", "mace-jax", "nequix")

MACE = {
    "architecture": "MACE",
    "channels": 128,
    "hidden_l": 1,
    "l_max": 3,
    "correlation": 3,
    "n_layers": 2,
    "cutoff": 5.0,
    "n_radial": 8,
    "radial_widths": [64, 64, 64],
}
NEQUIP = {
    "architecture": "NequIP",
    "channels": 64,
    "l_max": 2,
    "n_layers": 4,
    "cutoff": 5.0,
    "n_radial": 8,
    "radial_widths": [64, 64],
}
MODELS = {
    "mace": MACE,
    "mace-inv32": MACE | {"channels": 32, "hidden_l": 0},
    "mace-inv64": MACE | {"channels": 64, "hidden_l": 0},
    "nequip64": NEQUIP,
    "nequip64-onehot": NEQUIP | {"embedding_channels": 5},  # species as one-hot features: nequix
}


def add_options(parser):
    """The options that every driver has."""
    parser.add_argument("--peers", nargs="+", default=list(PEERS), choices=PEERS)
    parser.add_argument("--environments", default=os.environ.get("JAXMLIP_PEERS"), metavar="DIR")
    parser.add_argument("--dtypes", nargs="+", default=["float32"], choices=["float32", "float64"])
    parser.add_argument("--cores", type=int, help="pin to so many cores (Linux); default all")
    parser.add_argument(
        "--allocators", nargs="+", default=["default"], choices=list(timing.ALLOCATORS)
    )
    parser.add_argument("--budget", type=float, default=6.0, help="seconds of repeats")
    parser.add_argument("--least", type=int, default=5, help="repeats at least")
    parser.add_argument("--memory-gb", type=float, default=16.0, help="skip what needs more")
    parser.add_argument("--output", help="append the lines to this file, too")


def settings(given):
    """What a worker is told beside the model and the system."""
    names = ("cores", "budget", "least", "memory_gb")
    return {name: getattr(given, name) for name in names}


def measured(peer, task, given, *, allocator="default"):
    """One line of results, printed and kept: the worker's, or why there is none."""
    task = {"peer": peer, "allocator": allocator, **task, **settings(given)}
    result = work(task, python_of(peer, given.environments))
    keep(result, given.output)
    return result


def keep(result, output):
    """Prints a line of results, and appends it to a file."""
    line = json.dumps(timing.rounded(result) | stamp())
    print(line, flush=True)
    if output:
        with open(output, "a") as file:
            file.write(line + "\n")


def stamp():
    """When, where and how a line was made; without paths, which tell nothing elsewhere."""
    options, hidden = [], False
    for word in sys.argv[1:]:
        hidden = hidden and not word.startswith("--") or word in ("--output", "--environments")
        options += [] if hidden else [Path(word).name if Path(word).is_absolute() else word]
    command = " ".join(["python -m", f"benchmarks.{Path(sys.argv[0]).stem}", *options])
    return {"date": time.strftime("%Y-%m-%d"), "processor": processor(), "command": command}


def processor():
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return ""
    return next((line.split(":")[1].strip() for line in lines if "model name" in line), "")


def python_of(peer, environments):
    """The interpreter of a peer, or None."""
    if peer == "jaxmlip":
        return sys.executable
    python = Path(environments or "peers") / peer / "bin" / "python"
    return str(python.absolute()) if python.exists() else None


def work(task, python):
    if python is None:
        return {**task, "skipped": f"no environment {task['peer']} (see benchmarks/README.md)"}
    command = [python, "-m", "benchmarks.worker", json.dumps(task)]
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        cwd=ROOT,
        env=os.environ | timing.ALLOCATORS[task["allocator"]],
    )
    if done.returncode == 0:
        return json.loads(done.stdout.splitlines()[-1])
    said = done.stderr.strip().splitlines() or [f"exit status {done.returncode}"]
    return {**task, "skipped": f"failed: {said[-1][:300]}"}
