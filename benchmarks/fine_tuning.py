"""How few frames does another level of theory need, beginning from a packaged potential?

`organic` (GFN2-xTB) goes on to PBE-D3 frames of acetylacetone (shared/data/acac): all parameters,
low ranks, the last layers, and the same network from random parameters, each for the same number of
steps on the same batches; errors of the force on held-out frames, before and after. One JSON line
each, with the seconds of a step and the sizes of what is trained.

    python benchmarks/fine_tuning.py --data ../shared/data/acac --frames 20 --steps 60
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
from jaxmlip.train.accuracy import add_up, metric_sums, without_references
from jaxmlip.train.losses import Term, huber, summary
from jaxmlip.train.optimizers import adam
from jaxmlip.train.references import bare_energies, energies_of, refit
from jaxmlip.train.schedules import cosine, warm
from jaxmlip.train.step import averaged, training
from jaxmlip.train.transfer import last_layers, low_rank, transfer, whole

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
    """(trained, seconds of a step, seconds of the first with its compilation)."""
    optimizer = adam(clip=10.0, weight_decay=0.0, amsgrad=True)
    init, step = training(tuned, TERMS, optimizer=optimizer, ema=EMA)
    state, n, times = init(key, next(batches(frames, buckets, seed=0))[0]), 0, []
    while n < steps:
        for system, labels in batches(frames, buckets, seed=0, epoch=n):
            now = warm(n, warmup=10) * cosine(n / steps, floor=0.01) * rate
            begun = time.perf_counter()
            state, metrics = step(state, system, labels, np.float32(now))
            jax.block_until_ready(metrics["loss"])
            times.append(time.perf_counter() - begun)
            n += 1
    return averaged(state, ema=EMA), float(np.median(times[1:])), times[0]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, default=Path("../shared/data/acac"))
    parser.add_argument("--frames", type=int, default=20)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--test", type=int, default=100)
    parser.add_argument("--modes", nargs="+", default=list(MODES), choices=list(MODES))
    asked = parser.parse_args()
    _, params, card = checkpoint.load(path_of("organic"))
    bare = checkpoint.potential_of({**card, "reference_energies": {}})
    read = lambda name: read_labelled(asked.data / name, bare.cutoff)
    some = np.random.default_rng(0).permutation(500)[: asked.frames]
    train, test = read("train_300K.extxyz.xz"), read("test_MD_300K.extxyz.xz")
    train, test = [train[i] for i in some], test[:: max(1, len(test) // asked.test)][: asked.test]
    old = {int(z): e for z, e in card["reference_energies"].items()}
    numbers, energies = [s.numbers for s, _ in train], energies_of(train)
    bare_train = bare_energies(card, params, train, batch_atoms=75, dtype="float32")
    new, _ = refit(numbers, energies, bare_train, old)
    train, test = (without_references(frames, new) for frames in (train, test))
    buckets = make_buckets(train, n_buckets=1, max_atoms=75)
    test_buckets = make_buckets(test, n_buckets=1, max_atoms=75)
    sums = metric_sums(bare.apply, TERMS)
    told = lambda p: summary(add_up(sums, p, test, test_buckets))
    common = {"frames": asked.frames, "steps": asked.steps, "test_frames": len(test)}
    common |= {"device": jax.devices()[0].device_kind, "jax": jax.__version__, "dtype": "float32"}
    print(json.dumps({"mode": "start", **common, **told(params)}), flush=True)
    for mode in asked.modes:
        update, rate = MODES[mode]
        begin = params
        if mode == "scratch":
            begin = jax.jit(bare.init)(jax.random.key(1), train[0][0])
        tuned = transfer(bare, begin, update=update)
        options = {"steps": asked.steps, "rate": rate, "key": jax.random.key(0)}
        trained, seconds, first = run(tuned, train, buckets, **options)
        line = {"mode": mode, "trained": size(trained), "of": size(params), "rate": rate}
        line |= {"step_s": round(seconds, 3), "first_step_s": round(first, 1)}
        print(json.dumps({**line, **common, **told(tuned.merge(trained))}), flush=True)


if __name__ == "__main__":
    main()
