"""The same configuration trained several times: on k folds of its data, with several seeds.

Each run has a folder of its own below the output of the configuration; a stopped driver that is
called again goes on where it stopped, and runs that are done are not done again.
"""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np

from jaxmlip.errors import UsageError
from jaxmlip.models import checkpoint
from jaxmlip.models.checkpoint import whole_file
from jaxmlip.train.config.read import read_config
from jaxmlip.train.frames.reading import write_folds
from jaxmlip.train.loop import train

REPORT = "cross_validation.json"


def cross_validate(
    config_path,
    k: int = 5,
    *,
    seeds=(0,),
    overrides: dict | None = None,
    progress: Callable[[dict], None] | None = None,
    **options,
) -> dict:
    """Trains k x len(seeds) models, each validated on the fold of the frames it has not seen.

    Every frame of `data.train` is in one fold of k; the seed of the configuration decides which,
    `seeds` are those of weights and order. Returns, and writes to cross_validation.json in the
    output folder, {"runs": [{fold, seed, model, metrics ...}], "mean": {metric: ...}, "std": ...},
    std being that over runs. options: of `train`. Raises `UsageError` for fewer frames (or groups
    of them) than folds.
    """
    config = read_config(config_path, overrides=(overrides or {}) | {"data.valid": None})
    output = Path(config.output)
    folders = {f: output / f"fold-{f}" for f in range(k)}
    write_folds(config, [folders[f] / f"seed-{s}" for f in range(k) for s in seeds], k)
    cases = [({"fold": f, "seed": s}, folders[f] / f"seed-{s}") for f in range(k) for s in seeds]
    given = (overrides or {}) | {"data.valid": None}
    return _all(config_path, cases, output, given, progress, options)


def repeat(
    config_path,
    seeds,
    *,
    overrides: dict | None = None,
    progress: Callable[[dict], None] | None = None,
    **options,
) -> dict:
    """Trains the same configuration with several seeds on one split: as `cross_validate`."""
    output = Path(read_config(config_path, overrides=overrides).output)
    cases = [({"seed": s}, output / f"seed-{s}") for s in seeds]
    return _all(config_path, cases, output, overrides or {}, progress, options)


def _all(config_path, cases, output, overrides, progress, options):
    if not cases:
        raise UsageError("no seeds to train with", where="seeds")
    runs = []
    for case, folder in cases:
        own = overrides | {"output": str(folder), "seed": case["seed"]}
        told = None if progress is None else lambda e, case=case: progress(e | {"run": case})
        path = train(config_path, overrides=own, progress=told, **options)
        accuracy = checkpoint.read(path)[0]["accuracy"]
        runs.append(case | {"model": str(path)} | accuracy)
    names = [name for name in runs[0] if name not in ("fold", "seed", "model")]
    values = {name: [run[name] for run in runs] for name in names}
    report = {
        "runs": runs,
        "mean": {name: float(np.mean(v)) for name, v in values.items()},
        "std": {name: float(np.std(v, ddof=len(v) > 1)) for name, v in values.items()},
    }
    with whole_file(output / REPORT) as partial:
        partial.write_text(json.dumps(report, indent=1) + "\n")
    return report
