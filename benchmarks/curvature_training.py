"""Do vibrations get better when steps also look at one product of a Hessian, at what cost?

    python -m benchmarks.curvature_training --data SHARED/hessian_horm_t1x --out runs/curvature
    python -m benchmarks.curvature_training --data g2 --out runs/curvature_g2
    python -m benchmarks.curvature_training --data SHARED/hessian_horm_t1x --cost

The same small MACE is trained three times on energies and forces: alone, with products of the
Hessians of the training molecules along a random direction in every second step, and alone again
for so many more steps that it takes the CPU time of the second. Molecules are held out by a hash;
reported are errors of their harmonic frequencies (mean absolute, cm⁻¹, sorted, rigid motions
projected out, negative where imaginary) and of their Hessians (eV/Å²).

`--data` with a folder: DFT Hessians of reactive molecules (HORM, ωB97X/6-31G*). `--data g2`: the
H, C, N, O molecules of ASE's G2 set, displaced by 0.05 Å, with energies, forces and Hessians of
the packaged potential `organic`, which is the teacher of the second run. `--cost`: only the CPU
times of a step with and without the product, one after the other on the same batch.
"""

import argparse
import hashlib
import json
import time
from pathlib import Path

import jax
import numpy as np
import yaml
from ase import Atoms
from ase.build import molecule
from ase.collections import g2
from ase.data import atomic_masses
from ase.io import write

from benchmarks.timing import measure
from jaxmlip import pretrained
from jaxmlip.data.batching import batch, make_buckets, plan
from jaxmlip.derivatives.first import with_forces
from jaxmlip.interfaces.ase import from_ase
from jaxmlip.interfaces.extxyz import read_frames
from jaxmlip.models import checkpoint
from jaxmlip.system import cast
from jaxmlip.train.config.read import read_config
from jaxmlip.train.frames.second_derivatives import of_teacher
from jaxmlip.train.loop import batches_from, train
from jaxmlip.train.objective.terms import weights_at
from jaxmlip.train.saving import LAST, Position
from jaxmlip.train.setup import prepare
from jaxmlip.vibrations.modes import normal_modes

MODEL = {"channels": 16, "l_max": 2, "hidden_l": 1, "correlation": 2}
MODEL |= {"n_radial": 8, "envelope_p": 5, "smoothness": 3, "radial_widths": [32, 32]}
PARTS = ("train", "valid", "held_out")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", required=True, metavar="FOLDER|g2")
    parser.add_argument("--out", type=Path, default=Path("runs/curvature"))
    parser.add_argument("--epochs", type=int, default=150)
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--cutoff", type=float, default=4.0, help="Å")
    parser.add_argument("--weight", type=float, default=0.02, help="of the Hessian in the loss")
    parser.add_argument("--every", type=int, default=2, help="steps from one product to the next")
    parser.add_argument("--remat", default="none")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--cost", action="store_true", help="times of steps only")
    given = parser.parse_args()
    jax.config.update("jax_enable_x64", True)  # frequencies; training is in float32
    given.out.mkdir(parents=True, exist_ok=True)
    parts = write_data(given)
    if given.cost:
        return say(cost(given))
    report, spent, epochs = {}, {}, given.epochs
    for name in ("forces", "hessians", "forces_as_long"):
        if name == "forces_as_long":
            epochs = round(epochs * spent["hessians"] / spent["forces"])
        path, spent[name] = run(given, name, epochs)
        report[name] = accuracy(path, parts["held_out"])
        report[name] |= {"epochs": epochs, "cpu_minutes": round(spent[name] / 60, 2)}
        say({"run": name, **report[name]})
    say({"data": str(given.data), "frames": {k: len(v) for k, v in parts.items()}, **gain(report)})


def say(line):
    print(json.dumps(line), flush=True)


def gain(report):
    """Share of the error without Hessians that is gone with them."""
    error = {k: v["frequency_mae_cm1"] for k, v in report.items()}
    fall = lambda name: round(1 - error["hessians"] / error[name], 3)
    return {"fall_same_steps": fall("forces"), "fall_same_cpu_time": fall("forces_as_long")}


# --- data ----------------------------------------------------------------------------------------


def write_data(given):
    """{part: [(Atoms, Hessian)]}, written as files that a configuration can name."""
    labelled = of_g2() if given.data == "g2" else of_folder(Path(given.data))
    parts = {name: [] for name in PARTS}
    for key, atoms, hessian in labelled:
        number = int(hashlib.sha256(key).hexdigest(), 16) % 10
        parts["held_out" if number < 2 else "valid" if number < 3 else "train"].append(
            (atoms, hessian)
        )
    for name, frames in parts.items():
        write(given.out / f"{name}.extxyz", [atoms for atoms, _ in frames])
        arrays = {f"h{i:03d}": hessian for i, (_, hessian) in enumerate(frames)}
        np.savez(given.out / f"{name}.npz", **arrays)
    return parts


def of_folder(folder):
    """(key, Atoms with labels, Hessian [3n, 3n] eV/Å²)."""
    hessians = np.load(folder / "hessians.npz")
    for i, atoms in enumerate(read_frames(folder / "sample100.extxyz.xz")):
        yield atoms.positions.tobytes(), atoms, np.float64(hessians[f"h{i:03d}"])


def of_g2():
    """Displaced molecules, all copies of one in the same part of the split."""
    rng, names, moved = np.random.default_rng(0), [], []
    for name in sorted(g2.names):
        atoms = molecule(name)
        radical = atoms.get_initial_magnetic_moments().any()
        if len(atoms) < 4 or radical or not set(atoms.numbers) <= {1, 6, 7, 8}:
            continue
        for _ in range(2):
            names.append(name.encode())
            moved.append(Atoms(atoms.numbers, atoms.positions))
            moved[-1].positions += 0.05 * rng.normal(size=atoms.positions.shape)
    hessians, told = hessians_of("organic", moved), forces_of("organic", moved)
    for key, atoms, hessian, (energy, forces) in zip(names, moved, hessians, told, strict=True):
        atoms.info["REF_energy"], atoms.arrays["REF_forces"] = energy, forces
        yield key, atoms, hessian


def frames_of(model, atoms):
    """(potential, params in float64, frames with its edges)."""
    potential, params = pretrained.load(model)
    frames = [(from_ase(a, potential.cutoff, dtype=np.float64), {}) for a in atoms]
    return potential, cast(params, np.float64), frames


def hessians_of(model, atoms):
    """[3n, 3n] of each structure, eV/Å²."""
    found = of_teacher(*frames_of(model, atoms), max_atoms=128)
    return [known.products.reshape(3 * len(a), -1) for known, a in zip(found, atoms, strict=True)]


def forces_of(model, atoms):
    """(energy, forces) of each structure, eV and eV/Å."""
    potential, params, frames = frames_of(model, atoms)
    buckets, out = make_buckets(frames, n_buckets=1, max_atoms=128), [None] * len(frames)
    predict = jax.jit(with_forces(potential.apply))
    for b, members in plan(buckets, [len(a) for a in atoms], seed=None):
        system, _ = batch(frames, buckets[b], members)
        found = jax.device_get(predict(params, system))
        for g, i in enumerate(members):
            rows = (system.graph == g) & (system.numbers > 0)
            out[i] = float(found["energy"][g]), found["forces"][rows]
    return out


# --- training ------------------------------------------------------------------------------------


def configuration(given, name, epochs=None):
    """The YAML of a run, in a file."""
    hessians = {"hessians": "train.npz", "valid_hessians": "valid.npz"}
    with_them = name == "hessians"
    if given.data == "g2" and with_them:
        hessians = {"teacher": "organic"}
    values = {
        "model": {
            "architecture": "MACE",
            "fields": {"cutoff": given.cutoff, "n_layers": given.layers, **MODEL},
        },
        "data": {"train": "train.extxyz", "valid": "valid.extxyz", "checks": False},
        "loss": {"energy": 10.0, "forces": 10.0, "hessian": given.weight if with_them else 0.0},
        "curvature": hessians | {"every": given.every} if with_them else {},
        "optimizer": {"learning_rate": 0.01, "warmup_steps": 50, "ema": 0.99},
        "epochs": epochs or given.epochs,
        "batch_atoms": 128,
        "buckets": 1,
        "seed": given.seed,
        "remat": given.remat,
        "output": name,
    }
    path = given.out / f"{name}.yaml"
    path.write_text(yaml.safe_dump(values))
    return path


def run(given, name, epochs):
    """(model, CPU seconds of its steps; those that compile count as others do)."""
    clock = []

    def watch(event):
        if event["event"] == "step":
            clock.append(time.process_time())
        elif event["event"] == "epoch" and event["epoch"] % 25 == 0:
            say({k: event[k] for k in ("epoch", "train_loss", "valid_loss", "seconds")})

    path = configuration(given, name, epochs)
    model = train(path, resume=False, load=pretrained.load, progress=watch)
    model = model.with_name(LAST)  # not the best of validation, which means other things in each
    steps = np.diff(clock)
    return model, len(clock) * steps[steps < 20 * np.median(steps)].mean()


def accuracy(model, held_out):
    """Errors of forces, Hessians and frequencies of the held-out molecules."""
    structures = [atoms for atoms, _ in held_out]
    found, told = hessians_of(model, structures), forces_of(model, structures)
    forces, rows, lines = [], [], []
    for (atoms, hessian), ours, (_, ours_f) in zip(held_out, found, told, strict=True):
        forces.append(np.abs(ours_f - atoms.arrays["REF_forces"]).ravel())
        rows.append(np.abs(ours - hessian).ravel())
        lines.append(np.abs(frequencies(ours, atoms) - frequencies(hessian, atoms)))
    mean = lambda values: float(np.concatenate(values).mean())
    return {
        "frequency_mae_cm1": round(mean(lines), 2),
        "hessian_mae_eV_per_A2": round(mean(rows), 4),
        "forces_mae_meV_per_A": round(1e3 * mean(forces), 1),
        "sha256": checkpoint.read(model)[0]["sha256"][:12],
    }


def frequencies(hessian, atoms):
    """Sorted, cm⁻¹."""
    n = len(atoms)
    shape = ((hessian + hessian.T) / 2).reshape(n, 3, n, 3)
    found = normal_modes(shape, atomic_masses[atoms.numbers], atoms.positions)
    return np.sort(found.frequencies_cm1)


# --- cost ----------------------------------------------------------------------------------------


def cost(given):
    """Smallest CPU times of a step, with and without the product, on the same batch."""
    out, rate = {}, np.float32(1e-3)
    for name in ("forces", "hessians"):
        path = configuration(given, name)
        ready = prepare(read_config(path), load=pretrained.load)
        _, system, labels = next(batches_from(ready, Position()))
        state = ready.init(jax.random.key(0), system)
        weights = weights_at(ready.config, 1, ready.terms)
        begun = time.monotonic()
        compiled = ready.step.lower(state, system, labels, rate, weights).compile()
        out[f"{name}_compile_s"] = round(time.monotonic() - begun, 1)
        out[f"{name}_temporary_MB"] = round(compiled.memory_analysis().temp_size_in_bytes / 1e6, 1)
        box = [state]

        def call(box=box, compiled=compiled, system=system, labels=labels, weights=weights):
            box[0], metrics = compiled(box[0], system, labels, rate, weights)
            jax.block_until_ready(metrics)

        call()
        out[name] = call
    times = {name: [] for name in ("forces", "hessians")}
    for _ in range(3):
        for name, found in times.items():
            found.append(measure(out[name], budget=6.0)["cpu_ms"])
    for name, found in times.items():
        out[name] = {"cpu_ms": round(min(found), 1)}
    return out | {"ratio": round(min(times["hessians"]) / min(times["forces"]), 2)}


if __name__ == "__main__":
    main()
