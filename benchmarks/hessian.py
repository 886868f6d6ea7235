"""What does a Hessian cost, in force calls and in memory, and how exact is it in float32?

    python -m benchmarks.hessian --peer-python mace-torch/bin/python --cores 1
    python -m benchmarks.hessian --questions precision --systems ethanol aspirin

`columns`: ms of a column (1/3N of a Hessian) against energy and forces in the same process; with
`--peer-python` beside mace-torch's own `compute_hessian`. Random weights, slightly rattled
structures. `memory`: what was planned against what the process came to hold while it ran, under
limits given in MB. `precision`: float32 by derivatives and by finite differences against float64,
eV/Å² and cm⁻¹, with the packaged potential `organic` at its own minimum. One process a measurement.
"""

import argparse
import ctypes
import json
import subprocess
import sys
import time
from pathlib import Path

from benchmarks import drive, timing

QUESTIONS = ("columns", "memory", "precision")
STEPS = (1e-3, 3e-3, 1e-2, 3e-2)  # Å


def main():
    parser = argparse.ArgumentParser(prog="benchmarks.hessian", description=__doc__.splitlines()[0])
    parser.add_argument("--questions", nargs="+", default=QUESTIONS, choices=QUESTIONS)
    parser.add_argument("--systems", nargs="+", metavar="NAME", help="if not each question's own")
    parser.add_argument("--models", nargs="+", default=["mace"], choices=drive.MODELS)
    parser.add_argument("--limits", nargs="+", type=float, default=[500.0], metavar="MB")
    parser.add_argument("--peer-python", metavar="PYTHON", help="of an environment with mace-torch")
    parser.add_argument("--atoms", type=int, help="rows of so many atoms only; default all")
    drive.add_options(parser)
    given = parser.parse_args()
    for question in given.questions:
        for line in globals()[f"ask_{question}"](given):
            drive.keep(line, given.output)


def ask_columns(given):
    for system in given.systems or ("ethanol", "aspirin", "si64"):
        for name in given.models:
            for dtype in given.dtypes:
                task = {"model": name, **drive.MODELS[name], "system": system, "dtype": dtype}
                task |= drive.settings(given) | {"n_rows": given.atoms}
                yield child("columns", task)
                if given.peer_python:
                    yield peer(task, given.peer_python)


def ask_memory(given):
    for system in given.systems or ("si200",):
        for name in given.models:
            for limit in given.limits:
                task = {"model": name, **drive.MODELS[name], "system": system, "dtype": "float32"}
                task |= drive.settings(given) | {"limit_mb": limit, "n_rows": given.atoms}
                yield child("memory", task)


def ask_precision(given):
    for system in given.systems or ("ethanol", "aspirin", "quartz72"):
        yield child("precision", {"system": system} | drive.settings(given))


def child(question, task):
    """The answer of a process of its own, or why there is none."""
    task = {"task": question, "peer": "jaxmlip", **task}
    command = [sys.executable, "-m", "benchmarks.hessian", "--child", json.dumps(task)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=drive.ROOT)
    if done.returncode == 0:
        return json.loads(done.stdout.splitlines()[-1])
    said = done.stderr.strip().splitlines() or [f"exit status {done.returncode}"]
    return {**task, "skipped": f"failed: {said[-1][:300]}"}


def peer(task, python):
    """mace-torch on the same task: a Hessian, and energy and forces."""
    task = {"peer": "mace-torch", "allocator": "default", **task}
    both = [drive.work(task | {"task": t}, python) for t in ("energy", "hessian")]
    if any("skipped" in line for line in both):
        return next(line for line in both if "skipped" in line)
    force, whole = (line["cpu_ms"] for line in both)
    return both[1] | per_column(force, whole, 3 * both[1]["n_atoms"])


def per_column(force_ms, hessian_ms, n_columns):
    column = hessian_ms / n_columns
    return {
        "force_ms": force_ms,
        "hessian_ms": hessian_ms,
        "n_columns": n_columns,
        "column_ms": column,
        "column_in_force_calls": column / force_ms,
    }


# --- in the child -------------------------------------------------------------------------------


def columns(task):
    """Energy and forces before and after the Hessian, so that the load is that of the same time."""
    import jax

    from jaxmlip.derivatives.second.plan import plan_hessian

    apply, params, system, facts = random_model(task)
    call, force_s = force_call(apply, params, system)
    compiling = timing.Stopwatch()
    plan = plan_hessian(apply, params, system, atoms=task["n_rows"] and range(task["n_rows"]))
    facts |= {"compile_cpu_s": compiling.cpu()}
    run = lambda: jax.block_until_ready(plan.run(params, system))
    run(), call()
    budget, least = task["budget"], task["least"]
    force = [timing.measure(call, budget=budget / 2, least=least)]
    whole = timing.measure(run, budget=budget, least=1)
    force.append(timing.measure(call, budget=budget / 2, least=least))
    force_ms = min(f["cpu_ms"] for f in force)
    facts |= per_column(force_ms, whole["cpu_ms"], plan.n_columns)
    return facts | described(plan) | {"force_compile_s": force_s, "repeats": whole["repeats"]}


def memory(task):
    from jaxmlip.derivatives.second.plan import plan_hessian

    apply, params, system, facts = random_model(task)
    atoms = task["n_rows"] and range(task["n_rows"])
    plan = plan_hessian(apply, params, system, atoms=atoms, memory=1e6 * task["limit_mb"])
    return facts | described(plan) | held(plan, params, system)


def memory_of_crystal(limit):
    """Prints what a Hessian of 864 atoms was planned to need, and needed, MB of 10^6 bytes."""
    import jax
    from ase.build import bulk

    import jaxmlip
    from jaxmlip.derivatives.second.plan import plan_hessian
    from jaxmlip.models import Morse

    model = Morse(cutoff=6.0)
    atoms = bulk("Cu", cubic=True).repeat(6)
    atoms.rattle(0.05, seed=0)
    system = jax.device_put(jaxmlip.from_ase(atoms, model.cutoff, dtype="float32"))
    plan = plan_hessian(model.apply, {}, system, memory=limit, chunk=512)
    print(json.dumps(described(plan) | held(plan, {}, system)))


def held(plan, params, system):
    """Peak of resident memory during one call, above what was held before it, and arguments."""
    import jax

    ctypes.CDLL(None).malloc_trim(0)  # what the compiler freed would be used again, unseen
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    before = timing.memory_mb()["rss_mb"]
    jax.block_until_ready(plan.run(params, system))
    grown = 2**20 * (timing.memory_mb()["peak_rss_mb"] - before)
    measured = (grown + plan.argument_bytes) / 1e6
    return {"measured_mb": measured, "measured_of_planned": 1e6 * measured / plan.peak_bytes}


def precision(task):
    """AD and central differences in float32, differences in float64, against AD in float64."""
    import jax
    import numpy as np

    import jaxmlip
    from benchmarks.systems import MOLECULES, quartz
    from jaxmlip.derivatives.second.quality import symmetrised
    from jaxmlip.md import relax
    from jaxmlip.potential import bind
    from jaxmlip.system import cast
    from jaxmlip.vibrations import normal_modes

    jax.config.update("jax_enable_x64", True)
    crystal = task["system"] == "quartz72"
    potential, params = jaxmlip.load("silica" if crystal else "organic")
    atoms = quartz().repeat(2) if crystal else MOLECULES[task["system"]]()
    system = jaxmlip.from_ase(atoms, potential.cutoff)
    potential = bind(potential, system)
    system, info = relax(potential, params, system, fmax=1e-6, steps=2000)
    hessian, forces = (jax.jit(f(potential.apply)) for f in (jaxmlip.hessian, jaxmlip.forces))
    n, masses = len(atoms), atoms.get_masses()
    positions = np.asarray(system.positions)[:n]
    inputs = {np.dtype(d).name: (cast(params, d), cast(system, d)) for d in ("float32", "float64")}
    exact, card = symmetrised(hessian(*inputs["float64"]), inputs["float64"][1])
    frequencies = lambda h: (
        normal_modes(h, masses, positions, pbc=crystal, symmetry_tolerance=np.inf).frequencies_cm1
    )
    reference = frequencies(exact)

    def line(found):
        largest = np.abs(frequencies(found) - reference).max()
        return {"hessian_eV_per_A2": np.abs(found - exact).max(), "frequency_cm1": largest}

    single, single_card = symmetrised(hessian(*inputs["float32"]), inputs["float32"][1])
    errors = {"AD float32": line(single)}
    for dtype, at in inputs.items():
        for step in STEPS:
            found = differences(forces, *at, step)
            errors[f"FD {dtype} {step:g} A"] = line(symmetrised(found, at[1])[0])
    return {
        "n_atoms": n,
        "fmax": info.fmax,
        "asymmetry_float32": single_card.asymmetry,
        "translation_float32": single_card.translation,
        "translation_float64": card.translation,
        "lowest_cm1": reference[0],
        "highest_cm1": reference[-1],
        "errors": errors,
    }


def differences(forces, params, system, step):
    """Central differences of forces, the usual route: [n, 3, n, 3], float64 on the host."""
    from dataclasses import replace

    import numpy as np

    positions = np.asarray(system.positions)
    out = np.zeros((positions.size, positions.size))
    for k in range(positions.size):
        move = np.zeros(positions.size)
        move[k] = step
        moved = [
            (positions + s * move.reshape(positions.shape)).astype(positions.dtype) for s in (-1, 1)
        ]
        ends = [np.asarray(forces(params, replace(system, positions=r)), float) for r in moved]
        out[k] = ((ends[0] - ends[1]) / (2 * step)).reshape(-1)
    return out.reshape(*positions.shape, *positions.shape)


def random_model(task):
    """(apply, params, system on the device, facts) of the structure with random weights."""
    import jax

    import jaxmlip
    from benchmarks.peers.jax_program import environment
    from benchmarks.peers.jaxmlip import model_of
    from benchmarks.systems import structure

    if task["dtype"] == "float64":
        jax.config.update("jax_enable_x64", True)
    atoms = structure(task["system"])
    system = jaxmlip.from_ase(atoms, task["cutoff"], dtype=task["dtype"])
    model, params = model_of(task, system)
    facts = environment() | {"version": jaxmlip.__version__, "n_atoms": len(atoms)}
    facts |= {"n_edges": int(system.edges.mask.sum()), "cores": timing.cores()}
    return model.apply, jax.device_put(params), jax.device_put(system), facts


def force_call(apply, params, system):
    """Energy and forces, and seconds to compile them."""
    import jax

    from jaxmlip.derivatives.first import with_forces

    keep = lambda out: {k: out[k] for k in ("energy", "forces")}
    begun = time.perf_counter()
    program = jax.jit(lambda p, s: keep(with_forces(apply)(p, s))).lower(params, system).compile()
    return lambda: jax.block_until_ready(program(params, system)), time.perf_counter() - begun


def described(plan):
    return {
        "chunk": plan.chunk,
        "n_compilations": plan.n_compilations,
        "compile_s": plan.compile_seconds,
        "planned_mb": plan.peak_bytes / 1e6,
        "temporary_mb": plan.temporary_bytes / 1e6,
    }


def answer(task):
    timing.pin(task.get("cores"))
    out = globals()[task["task"]](task)
    print(json.dumps(timing.rounded(task | out | timing.memory_mb())))


if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]:
        answer(json.loads(sys.argv[2]))
    else:
        main()
