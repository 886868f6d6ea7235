"""What does an ensemble of n cost, beside n single models?

    python -m benchmarks.ensembles --what forces training

MACE on a batch of aspirins, float32, one process. Calls of the single model and of the ensemble
take turns; CPU times, and their ratio to n single models, are those of the fastest calls. The
ensemble's forces come with the uncertainties of energy and forces. `max_difference` is that of the
members' mean forces (or, of a training step, of their mean loss) from single models with the same
weights. One JSON line a measurement.
"""

import argparse
import json

import jax
import numpy as np

from benchmarks.systems import ELEMENTS, structure
from benchmarks.timing import Stopwatch, memory_mb, once
from jaxmlip.derivatives.first import with_forces
from jaxmlip.interfaces.ase import from_ase
from jaxmlip.models import MACE
from jaxmlip.system import concatenate
from jaxmlip.train.objective.losses import Term, squared
from jaxmlip.train.steps.ensemble import (
    ensemble,
    ensemble_potential,
    in_turn,
    split_members,
    together,
)
from jaxmlip.train.steps.optimizers import adam
from jaxmlip.train.steps.step import training

TERMS = {"energy": Term(1.0, squared), "forces": Term(10.0, squared)}


def batch_of(n_structures, cutoff):
    rng, some = np.random.default_rng(0), []
    for _ in range(n_structures):
        atoms = structure("aspirin")
        atoms.positions += rng.normal(0, 0.02, atoms.positions.shape)
        some.append(from_ase(atoms, cutoff, dtype=np.float32))
    system = jax.tree.map(jax.numpy.asarray, concatenate(some))
    forces = rng.normal(size=system.positions.shape).astype(np.float32)
    return system, {"energy": np.zeros(n_structures, np.float32), "forces": forces}


def by_turns(single, many, *, repeats):
    """CPU milliseconds of the fastest call of each."""
    best = [np.inf, np.inf]
    for _ in range(repeats):
        for i, call in enumerate((single, many)):
            best[i] = min(best[i], 1e3 * once(call)["cpu"])
    return best


def first(call):
    clock = Stopwatch()
    return call(), clock.cpu()


def of_forces(model, n, system, labels, over):
    """(single, many, difference, CPU seconds to compile either)."""
    potential = ensemble_potential(model, n, over=over)
    params = jax.jit(potential.init)(jax.random.key(0), system)
    each = split_members(params)
    one, all_ = jax.jit(with_forces(model.apply)), jax.jit(with_forces(potential.apply))
    single = lambda: jax.block_until_ready(one(each[0], system))
    many = lambda: jax.block_until_ready(all_(params, system))
    (_, seconds), (out, more) = first(single), first(many)
    mean = np.mean([one(w, system)["forces"] for w in each], axis=0)
    return single, many, float(np.abs(out["forces"] - mean).max()), (seconds, more)


def of_training(model, n, system, labels, over):
    optimizer = adam(clip=10.0, weight_decay=1e-6, amsgrad=True)
    init, step = training(model, TERMS, optimizer=optimizer, ema=0.99)
    init_all, step_all = ensemble(init, step, n, over=over)
    states = init_all(jax.random.key(0), system)
    kept = {"one": jax.tree.map(lambda x: x[0].copy(), states), "all": states}
    each = [jax.tree.map(lambda x, m=m: x[m].copy(), states) for m in range(n)]

    def call(name, program):
        def made():
            kept[name], metrics = program(kept[name], system, labels, np.float32(1e-4))
            return jax.block_until_ready(metrics)

        return made

    single, many = call("one", step), call("all", step_all)
    (_, seconds), (metrics, more) = first(single), first(many)
    losses = [step(s, system, labels, np.float32(1e-4))[1]["loss"] for s in each]
    difference = abs(float(metrics["loss"]) - float(np.mean(losses))) / float(np.mean(losses))
    return single, many, difference, (seconds, more)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--what", nargs="+", default=["forces", "training"])
    parser.add_argument("--members", type=int, default=4)
    parser.add_argument("--channels", type=int, default=32)
    parser.add_argument("--structures", type=int, default=4)
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--in-turn", action="store_true", help="a loop over members, no vmap")
    given = parser.parse_args()
    model = MACE(elements=tuple(ELEMENTS[:3]), channels=given.channels, avg_num_neighbors=15.0)
    system, labels = batch_of(given.structures, model.cutoff)
    for what in given.what:
        make = {"forces": of_forces, "training": of_training}[what]
        over = in_turn if given.in_turn else together
        single, many, difference, compiling = make(model, given.members, system, labels, over)
        one, all_ = by_turns(single, many, repeats=given.repeats)
        numbers = {
            "what": what,
            "over": over.__name__,
            **{k: getattr(given, k) for k in ("members", "channels", "structures")},
            "n_atoms": system.n_atoms,
            "single_cpu_ms": round(one, 2),
            "ensemble_cpu_ms": round(all_, 2),
            "ratio": round(all_ / one / given.members, 3),
            "max_difference": difference,
            "compile_single_cpu_s": round(compiling[0], 1),
            "compile_ensemble_cpu_s": round(compiling[1], 1),
            "memory_mb": memory_mb(),
            "jax": jax.__version__,
            "device": jax.devices()[0].device_kind,
        }
        print(json.dumps(numbers), flush=True)


if __name__ == "__main__":
    main()
