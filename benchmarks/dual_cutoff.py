"""What does a second, longer cutoff cost if only a simple part of the model sees that far?

    python -m benchmarks.dual_cutoff --system si64 --short 4.0 --long 8.0

Energy and forces of four models in one process, float32, by turns; CPU time of the fastest of the
repeats. `short`: a MACE within the short cutoff; `dual`: that and a simple part within the long
one; `unplanned`: the same without packing of the near neighbours; `long`: the MACE within the long
cutoff. One JSON line a model, with the difference of its forces from those of `unplanned`.

    python -m benchmarks.dual_cutoff --train Mo_train.extxyz.xz --test Mo_test.extxyz.xz \
        --short 3.6 --long 6.0 --channels 16

And what is it worth? `short`, `dual` and `long` are trained from random parameters on the same
batches for the same number of steps, and judged on held-out frames. One JSON line a model.
"""

import argparse
import json

import jax
import numpy as np

from benchmarks.fine_tuning import TERMS, run
from benchmarks.systems import ELEMENTS, structure
from benchmarks.timing import Stopwatch, memory_mb, once
from jaxmlip.data.batching import make_buckets
from jaxmlip.data.statistics import average_neighbors
from jaxmlip.derivatives.first import with_forces
from jaxmlip.interfaces.ase import from_ase
from jaxmlip.interfaces.labels import read_labelled
from jaxmlip.models import MACE, DualCutoff
from jaxmlip.potential import bind
from jaxmlip.train.evaluation.accuracy import add_up, metric_sums
from jaxmlip.train.frames.references import refit, without_references
from jaxmlip.train.frames.stored import energies_of
from jaxmlip.train.objective.losses import summary


def models(given, elements, neighbors, scale=1.0):
    """neighbors: on average, {cutoff: number}."""
    rich = {"channels": given.channels}
    shared = {"elements": elements, "scale": scale}
    near, far = neighbors[given.short], neighbors[given.long]
    dual = DualCutoff(
        **shared,
        cutoff=given.long,
        short_cutoff=given.short,
        short=rich | {"avg_num_neighbors": near},
        avg_num_neighbors=far,
    )
    return {
        "short": MACE(**shared, cutoff=given.short, avg_num_neighbors=near, **rich),
        "unplanned": dual,
        "dual": dual,
        "long": MACE(**shared, cutoff=given.long, avg_num_neighbors=far, **rich),
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


def timed(given, device):
    """One line a model: CPU milliseconds of energy and forces."""
    atoms = structure(given.system)
    cutoffs = (given.short, given.long)
    neighbors = {r: average_neighbors([from_ase(atoms, r, dtype=np.float32)]) for r in cutoffs}
    ready = {
        name: prepared(name, model, atoms)
        for name, model in models(given, tuple(ELEMENTS), neighbors).items()
    }
    times = {name: [] for name in ready}
    for _ in range(given.repeats):
        for name, (call, _, _) in ready.items():
            times[name].append(1e3 * once(call)["cpu"])
    known = ready["unplanned"][1]
    for name, (_, forces, numbers) in ready.items():
        same = name in ("dual", "unplanned")
        numbers |= {
            "system": given.system,
            "n_atoms": len(atoms),
            "cpu_ms": round(min(times[name]), 2),
            "of_short": round(min(times[name]) / min(times["short"]), 3),
            "max_force_difference": float(np.abs(forces - known).max()) if same else None,
            "max_force": float(np.abs(forces).max()),
            "memory_mb": memory_mb(),
        }
        print(json.dumps(numbers | device), flush=True)


def drawn(path, cutoff, n):
    """n frames of the most common number of atoms, the same whatever the cutoff."""
    frames = read_labelled(path, cutoff)
    sizes = np.array([system.n_atoms for system, _ in frames])
    whole = np.flatnonzero(sizes == np.bincount(sizes).argmax())
    return [frames[i] for i in np.random.default_rng(0).permutation(whole)[:n]]


def trained(name, given):
    """Errors on held-out frames of one model after its training, and what a step costs."""
    cutoffs = {given.short, given.short if name == "short" else given.long}
    sets = {r: drawn(given.train, r, given.frames) for r in cutoffs}
    train = sets[max(cutoffs)]
    neighbors = {r: average_neighbors([s for s, _ in some]) for r, some in sets.items()}
    neighbors.setdefault(given.long, 1.0)  # of models that are not `name`
    test = drawn(given.test, max(cutoffs), given.test_frames)
    numbers = [s.numbers for s, _ in train]
    elements = tuple(sorted({int(z) for n in numbers for z in n}))
    force = np.concatenate([labels["forces"] for _, labels in train])
    model = models(given, elements, neighbors, scale=float(np.sqrt((force**2).mean())))[name]
    model = bind(model, [s for s, _ in train + test])
    free, _ = refit(numbers, energies_of(train), np.zeros(len(train)), {})
    train, test = (without_references(some, free) for some in (train, test))
    atoms = 2 * train[0][0].n_atoms
    buckets, test_buckets = (make_buckets(x, n_buckets=1, max_atoms=atoms) for x in (train, test))
    options = {"steps": given.steps, "rate": 0.01, "key": jax.random.key(0)}
    params, seconds, _ = run(model, train, buckets, **options)
    errors = summary(add_up(metric_sums(model.apply, TERMS), params, test, test_buckets))
    return {"step_cpu_s": round(seconds, 4), "test_frames": len(test), **errors}


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--system", default="si64")
    parser.add_argument("--short", type=float, default=4.0)
    parser.add_argument("--long", type=float, default=8.0)
    parser.add_argument("--channels", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--train", help="labelled frames: train, do not time")
    parser.add_argument("--test", help="labelled frames to judge by")
    parser.add_argument("--frames", type=int, default=60)
    parser.add_argument("--test-frames", type=int, default=20)
    parser.add_argument("--steps", type=int, default=300)
    given = parser.parse_args()
    device = {"jax": jax.__version__, "device": jax.devices()[0].device_kind, "dtype": "float32"}
    device |= {name: getattr(given, name) for name in ("short", "long", "channels")}
    if not given.train:
        return timed(given, device)
    for name in ("short", "dual", "long"):
        line = {"model": name, "frames": given.frames, "steps": given.steps}
        print(json.dumps(line | trained(name, given) | device), flush=True)


if __name__ == "__main__":
    main()
