"""How few frames does another level of theory need, beginning from a potential that exists?

A packaged or imported potential goes on to PBE-D3 frames of acetylacetone (shared/data/acac): all
parameters, low ranks, the last layers, and the same network from random parameters, each for the
same number of steps on the same batches; errors of the force on held-out frames, before and after.
One JSON line each, with the CPU seconds of a step and the sizes of what is trained.

    python -m benchmarks.fine_tuning --data ../shared/data/acac --frames 20 --steps 60
    python -m benchmarks.fine_tuning --model mace01.model --elements 1 6 8
"""

import argparse
import json
import time
from functools import partial
from pathlib import Path

import jax
import numpy as np

from jaxmlip.data.batching import batches, make_buckets
from jaxmlip.interfaces.labels import read_labelled
from jaxmlip.models import checkpoint
from jaxmlip.pretrained import path_of
from jaxmlip.system import cast
from jaxmlip.train.evaluation.accuracy import add_up, metric_sums
from jaxmlip.train.frames.references import bare_energies, refit, without_references
from jaxmlip.train.frames.stored import energies_of
from jaxmlip.train.objective.losses import Term, huber, summary
from jaxmlip.train.start.transfer import last_layers, low_rank, transfer, whole
from jaxmlip.train.steps.optimizers import adam
from jaxmlip.train.steps.schedules import cosine, warm
from jaxmlip.train.steps.step import averaged, training

TERMS = {"energy": Term(100.0, huber(0.01)), "forces": Term(5.0, huber(0.1))}
EMA = 0.9
MODES = {  # update, peak learning rate
    "all": (whole, 0.002),
    "lora": (partial(low_rank, rank=4), 0.005),
    "last": (last_layers, 0.01),
    "scratch": (whole, 0.01),
}


def size(tree) -> int:
    return sum(x.size for x in jax.tree.leaves(tree))


def run(tuned, frames, buckets, *, steps, rate, key):
    """(trained, CPU seconds of a step, those of the first with its compilation)."""
    optimizer = adam(clip=10.0, weight_decay=0.0, amsgrad=True)
    init, step = training(tuned, TERMS, optimizer=optimizer, ema=EMA)
    state, n, times = init(key, next(batches(frames, buckets, seed=0))[0]), 0, []
    while n < steps:
        for system, labels in batches(frames, buckets, seed=0, epoch=n):
            now = warm(n, warmup=10) * cosine(n / steps, floor=0.01) * rate
            begun = time.process_time()
            state, metrics = step(state, system, labels, np.float32(now))
            jax.block_until_ready(metrics["loss"])
            times.append(time.process_time() - begun)
            n += 1
    return averaged(state, ema=EMA), float(np.median(times[1:])), times[0]


def with_own_references(card, params, train, test):
    """(train, test) less the energies of free atoms that these params leave to be told."""
    old = {int(z): e for z, e in (card.get("reference_energies") or {}).items()}
    bare = bare_energies(card, params, train, batch_atoms=75, dtype="float32")
    free, _ = refit([s.numbers for s, _ in train], energies_of(train), bare, old)
    return without_references(train, free), without_references(test, free)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, default=Path("../shared/data/acac"))
    parser.add_argument("--model", default="organic", help="a name, or a file, also of other codes")
    parser.add_argument("--elements", type=int, nargs="+", help="atomic numbers to cut it to")
    parser.add_argument("--frames", type=int, default=20)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--test", type=int, default=100)
    parser.add_argument("--modes", nargs="+", default=list(MODES), choices=list(MODES))
    asked = parser.parse_args()
    _, params, card = checkpoint.load(path_of(asked.model), elements=asked.elements)
    params = cast(params, np.float32)
    bare = checkpoint.potential_of({**card, "reference_energies": {}})
    read = lambda name: read_labelled(asked.data / name, bare.cutoff)
    some = np.random.default_rng(0).permutation(500)[: asked.frames]
    train, test = read("train_300K.extxyz.xz"), read("test_MD_300K.extxyz.xz")
    train, test = [train[i] for i in some], test[:: max(1, len(test) // asked.test)][: asked.test]
    sums = metric_sums(bare.apply, TERMS)
    common = {"model": asked.model, "frames": asked.frames, "steps": asked.steps}
    common |= {"device": jax.devices()[0].device_kind, "jax": jax.__version__, "dtype": "float32"}

    def told(params, judged):
        buckets = make_buckets(judged, n_buckets=1, max_atoms=75)
        return {"test_frames": len(judged), **summary(add_up(sums, params, judged, buckets))}

    _, judged = with_own_references(card, params, train, test)
    print(json.dumps({"mode": "start", **common, **told(params, judged)}), flush=True)
    for mode in asked.modes:
        update, rate = MODES[mode]
        begin = params
        if mode == "scratch":
            begin = jax.jit(bare.init)(jax.random.key(1), train[0][0])
        learnt, judged = with_own_references(card, begin, train, test)
        buckets = make_buckets(learnt, n_buckets=1, max_atoms=75)
        tuned = transfer(bare, begin, update=update)
        options = {"steps": asked.steps, "rate": rate, "key": jax.random.key(0)}
        trained, seconds, first = run(tuned, learnt, buckets, **options)
        line = {"mode": mode, "trained": size(trained), "of": size(params), "rate": rate}
        line |= {"step_cpu_s": round(seconds, 3), "first_step_cpu_s": round(first, 1)}
        print(json.dumps({**line, **common, **told(tuned.merge(trained), judged)}), flush=True)


if __name__ == "__main__":
    main()
