"""How long do energy + forces and a Hessian of any model take to compile?

    python -m benchmarks.first_call organic nequix-mp-1.nqx checkpoint_sevennet_0.pth

MODEL is a packaged name, a file of ours or a file of another code. CPU seconds of tracing, lowering
and compiling without any cache, of `with_forces` and of `hessian` (all columns), in the float64
that Hessians are asked in, for the ethanol that `jaxmlip doctor` uses (three atoms of the first
element for models that do not know it). One process and one line of JSON a model.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path

from benchmarks import drive


def main():
    parser = argparse.ArgumentParser(prog="benchmarks.first_call", description=__doc__)
    parser.add_argument("models", nargs="+", metavar="MODEL")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--output", help="append the lines to this file, too")
    given = parser.parse_args()
    if given.worker:
        print(json.dumps(measured(given.models[0])))
        return
    for model in given.models:
        drive.keep(child(model), given.output)


def child(model):
    command = [sys.executable, "-m", "benchmarks.first_call", model, "--worker"]
    hidden = {k: v for k, v in os.environ.items() if k != "JAX_COMPILATION_CACHE_DIR"}
    done = subprocess.run(command, capture_output=True, text=True, env=hidden)
    if done.returncode:
        return {
            "task": "first_call",
            "model": name_of(model),
            "skipped": done.stderr.strip()[-300:],
        }
    return json.loads(done.stdout.splitlines()[-1])


def name_of(model):
    """A file by its folder, too: publishers give several the same name."""
    return "/".join(Path(model).parts[-2:])


def measured(model):
    import jax

    jax.config.update("jax_enable_x64", True)
    import jaxmlip
    from jaxmlip.cli import cold_start
    from jaxmlip.derivatives.first import with_forces

    atoms = cold_start.structure(jaxmlip.pretrained.card(model))
    potential, params = jaxmlip.load(model, elements=sorted({*atoms.numbers.tolist()}))
    params, system = jaxmlip.cast(params, "float64"), jaxmlip.from_ase(atoms, potential.cutoff)
    potential = jaxmlip.bind(potential, system)
    out = {"task": "first_call", "model": name_of(model), "n_atoms": system.n_atoms}
    for name, function in (
        ("forces", with_forces(potential.apply)),
        ("hessian", jaxmlip.hessian(potential.apply)),
    ):
        begun = time.process_time()
        jax.jit(function).lower(params, system).compile()
        out[f"{name}_compile_cpu_s"] = time.process_time() - begun
    return out


if __name__ == "__main__":
    main()
