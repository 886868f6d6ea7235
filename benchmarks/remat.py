"""What does `remat` (jax.checkpoint of the energy) save in a training step, and what does it cost?

    python -m benchmarks.remat --channels 64 --structures 3

A training step of MACE (energy and forces, AMSGrad, moving average, float32) on a batch of
aspirins, with each policy of the configuration. Memory is what the compiler plans for temporary
arrays; the compiled steps take turns in one process and the CPU times are those of the fastest
calls. `max_difference` is the largest relative difference of loss and gradient norm from `none`.
One JSON line a policy.
"""

import argparse
import json

import jax
import numpy as np

from benchmarks.ensembles import TERMS, batch_of
from benchmarks.systems import ELEMENTS
from benchmarks.timing import Stopwatch, once
from jaxmlip.models import MACE
from jaxmlip.train.config.settings import CHOICES, Config, Data
from jaxmlip.train.steps.optimizers import adam
from jaxmlip.train.steps.step import make_remat, training


def compiled(model, system, labels, remat):
    """(step that keeps its state, its first metrics, temporary MB, CPU seconds to compile)."""
    policy = make_remat(Config(data=Data(train=""), remat=remat))
    optimizer = adam(clip=10.0, weight_decay=1e-6, amsgrad=True)
    init, step = training(model, TERMS, optimizer=optimizer, ema=0.99, remat=policy)
    state = init(jax.random.key(0), system)
    clock = Stopwatch()
    program = step.lower(state, system, labels, np.float32(1e-3)).compile()
    seconds = clock.cpu()
    memory = program.memory_analysis().temp_size_in_bytes / 1e6
    kept = [state]

    def call():
        kept[0], metrics = program(kept[0], system, labels, np.float32(1e-3))
        return jax.block_until_ready(metrics)

    metrics = call()
    return call, [float(metrics[k]) for k in ("loss", "gradient")], memory, seconds


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--channels", type=int, default=64)
    parser.add_argument("--structures", type=int, default=3)
    parser.add_argument("--repeats", type=int, default=5)
    given = parser.parse_args()
    model = MACE(elements=tuple(ELEMENTS[:3]), channels=given.channels, avg_num_neighbors=15.0)
    system, labels = batch_of(given.structures, model.cutoff)
    steps = {name: compiled(model, system, labels, name) for name in CHOICES["remat"]}
    best = dict.fromkeys(steps, np.inf)
    for _ in range(given.repeats):
        for name, (call, *_) in steps.items():
            best[name] = min(best[name], 1e3 * once(call)["cpu"])
    for name, (_, found, memory, seconds) in steps.items():
        apart = np.abs(np.array(found) / steps["none"][1] - 1).max()
        line = {"remat": name, **vars(given), "n_atoms": int(system.n_atoms)}
        line |= {"temporary_MB": round(memory, 1), "step_cpu_ms": round(best[name], 1)}
        line |= {"memory_ratio": round(memory / steps["none"][2], 3)}
        line |= {"time_ratio": round(best[name] / best["none"], 3)}
        print(json.dumps(line | {"compile_cpu_s": round(seconds, 1), "max_difference": apart}))


if __name__ == "__main__":
    main()
