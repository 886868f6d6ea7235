"""How exact do potentials become that are trained here, beside published figures?

    python -m benchmarks.accuracy acac --data DIR [--work runs/accuracy] [--set KEY=VALUE ...]
    python -m benchmarks.accuracy --table runs/accuracy       # all that was measured, as Markdown

DIR holds the data sets (`sets.py` names their files). One command a set: frames are split and
written with their hashes, `configs/<set>.yaml` is trained, and the model is judged on every part
that it has not seen. Killed at any moment, the same command goes on. `--published` takes the width
of the papers instead of that of two cores (a GPU is wanted).
"""

import argparse
import json
import os
import sys
from dataclasses import asdict
from pathlib import Path

import yaml
from ase.io import write

from benchmarks.accuracy.report import table
from benchmarks.accuracy.sets import SETS, identity
from jaxmlip.errors import JaxmlipError
from jaxmlip.train import evaluate_model, train
from jaxmlip.train.config.read import read_config

HERE = Path(__file__).parent
PUBLISHED = {"model.fields.channels": 256, "model.fields.l_max": 3, "model.fields.hidden_l": 2}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("name", nargs="?", choices=SETS)
    parser.add_argument("--data", type=Path, help="folder of the data sets")
    parser.add_argument("--work", type=Path, default=Path("runs/accuracy"))
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--published", action="store_true", help="width of the papers")
    parser.add_argument("--table", type=Path, metavar="WORK", help="print what was measured")
    arguments = parser.parse_args()
    if arguments.table:
        print(table(arguments.table))
    elif arguments.name is None or arguments.data is None:
        parser.error("a set and --data, or --table")
    else:
        given = dict(pair.split("=", 1) for pair in arguments.set)
        given = {key: yaml.safe_load(value) for key, value in given.items()}
        given = (PUBLISHED if arguments.published else {}) | given
        try:
            print(json.dumps(measure(arguments.name, arguments.data, arguments.work, given)))
        except JaxmlipError as error:
            print(error, file=sys.stderr)
            sys.exit(error.exit_code)


def measure(name: str, data: Path, work: Path, given: dict) -> dict:
    """Trains and judges one set; what was found is also written to WORK/name/result.json."""
    folder = work / name
    files = make_parts(name, data, folder / "data")
    run = folder / "run"
    overrides = {
        "data.train": str(files["train"].resolve()),
        "data.valid": str(files["valid"].resolve()),
        "output": str(run.resolve()),
        **given,
    }
    config = HERE / "configs" / f"{SETS[name].config}.yaml"
    model = train(config, overrides=overrides)
    chosen = read_config(config, overrides=overrides)
    judge = lambda part: evaluate_model(
        model, files[part], keys=chosen.data.keys, units=chosen.data.units
    )
    log = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    found = {
        "set": name,
        "n_train": len(identities(files)["train"]),
        "config": asdict(chosen)["model"],
        "given": given,
        "epochs": log[-1]["epoch"],
        "steps": log[-1]["step"],
        "hours": round(log[-1]["seconds"] / 3600, 3),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None,
        "tests": {part: judge(part) for part in files if "test" in part},
    }
    (folder / "result.json").write_text(json.dumps(found, indent=1))
    return found


def make_parts(name: str, data: Path, folder: Path) -> dict[str, Path]:
    """{part: file}; made once, checked against the hashes of its frames ever after."""
    folder.mkdir(parents=True, exist_ok=True)
    index = folder / "split.json"
    parts = SETS[name].parts(data)
    hashes = {part: [identity(f) for f in frames] for part, frames in parts.items()}
    _check_disjoint(hashes)
    files = {part: folder / f"{part}.extxyz" for part in parts}
    if not index.is_file():
        for part, frames in parts.items():
            write(files[part], frames, format="extxyz")
        index.write_text(json.dumps(hashes, indent=0))
    if json.loads(index.read_text()) != hashes:
        sys.exit(f"{index}: the data are not those of this run; use another --work")
    return files


def identities(files) -> dict[str, list[str]]:
    """The hashes that `make_parts` wrote."""
    return json.loads((files["train"].parent / "split.json").read_text())


def _check_disjoint(hashes):
    tests = {h for part, found in hashes.items() if "test" in part for h in found}
    seen = tests.intersection(hashes["train"]) | tests.intersection(hashes["valid"])
    if seen:
        sys.exit(f"{len(seen)} frames are both in a test and in the training data")


if __name__ == "__main__":
    main()
