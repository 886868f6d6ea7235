"""What does a second, longer cutoff cost if only a simple part of the model sees that far?

    python -m benchmarks.dual_cutoff --system si64 --short 4.0 --long 8.0

Energy and forces of four models in one process, float32, by turns; CPU time of the fastest of the
repeats. `short`: a MACE within the short cutoff; `dual`: that and a simple part within the long
one; `unplanned`: the same without packing of the near neighbours; `long`: the MACE within the long
cutoff. One JSON line a model, with the difference of its forces from those of `unplanned`.
"""

import argparse
import json

import jax
import numpy as np

from benchmarks.systems import ELEMENTS, structure
from benchmarks.timing import Stopwatch, memory_mb, once
from jaxmlip.derivatives.first import with_forces
from jaxmlip.interfaces.ase import from_ase
from jaxmlip.models import MACE, DualCutoff
from jaxmlip.potential import bind


def models(short, long, channels):
    rich = {"channels": channels}
    elements = tuple(ELEMENTS)
    dual = DualCutoff(elements=elements, cutoff=long, short_cutoff=short, short=rich)
    return {
        "short": MACE(elements=elements, cutoff=short, avg_num_neighbors=10.0, **rich),
        "unplanned": dual,
        "dual": dual,
        "long": MACE(elements=elements, cutoff=long, avg_num_neighbors=10.0, **rich),
    }


def prepared(name, model, atoms):
    """(call, forces, numbers) of one model."""
    system = from_ase(atoms, model.cutoff, dtype=np.float32)
    params = jax.jit(model.init)(jax.random.key(0), system)
    found = bind(model, system) if name == "dual" else model
    program, clock = jax.jit(with_forces(found.apply)), Stopwatch()
    forces = jax.block_until_ready(program(params, system))["forces"]
    numbers = {
        "model": name,
        "neighbors": system.edges.senders.shape[1],
        "near": getattr(found, "short_neighbors", 0) or None,
        "parameters": sum(x.size for x in jax.tree.leaves(params)),
        "first_call_s": round(clock.wall(), 1),
    }
    return lambda: jax.block_until_ready(program(params, system)), np.asarray(forces), numbers


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--system", default="si64")
    parser.add_argument("--short", type=float, default=4.0)
    parser.add_argument("--long", type=float, default=8.0)
    parser.add_argument("--channels", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=7)
    given = parser.parse_args()
    atoms = structure(given.system)
    ready = {
        name: prepared(name, model, atoms)
        for name, model in models(given.short, given.long, given.channels).items()
    }
    times = {name: [] for name in ready}
    for _ in range(given.repeats):
        for name, (call, _, _) in ready.items():
            times[name].append(1e3 * once(call)["cpu"])
    known = ready["unplanned"][1]
    for name, (_, forces, numbers) in ready.items():
        same = name in ("dual", "unplanned")
        numbers |= {
            "n_atoms": len(atoms),
            "cpu_ms": round(min(times[name]), 2),
            "of_short": round(min(times[name]) / min(times["short"]), 3),
            "max_force_difference": float(np.abs(forces - known).max()) if same else None,
            "max_force": float(np.abs(forces).max()),
            "memory_mb": memory_mb(),
            "jax": jax.__version__,
            "device": jax.devices()[0].device_kind,
            **{k: v for k, v in vars(given).items() if k != "repeats"},
        }
        print(json.dumps(numbers))


if __name__ == "__main__":
    main()
