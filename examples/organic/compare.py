"""How good is `organic`? Against GFN2-xTB on molecules that it has never seen.

    python examples/organic/compare.py --data data/organic/test.extxyz --molecules 60

First energies, forces and dipoles of all held-out structures. Then, for as many held-out molecules
as asked, harmonic frequencies and infrared intensities, each method at its own minimum: GFN2 by
central differences of its forces and dipoles, the model by automatic differentiation. Modes are
compared in order of frequency; intensities between modes that overlap most, which order alone
would mix up where frequencies nearly coincide. Prints a table and writes JSON.
"""

import argparse
import json
from dataclasses import dataclass
from pathlib import Path

import gfn2
import jax
import numpy as np
from ase.io import read
from ase.optimize import BFGS
from scipy.optimize import linear_sum_assignment

jax.config.update("jax_enable_x64", True)

import jaxmlip  # noqa: E402
from jaxmlip.md.relax import relax  # noqa: E402
from jaxmlip.pretrained import card, path_of  # noqa: E402
from jaxmlip.system import pad  # noqa: E402
from jaxmlip.train import evaluate_model  # noqa: E402
from jaxmlip.vibrations.infrared import intensities  # noqa: E402
from jaxmlip.vibrations.modes import normal_modes  # noqa: E402

STEP = 0.005  # Å; halving it moves nitromethane by up to 1.2, acetamide by 0.7 cm⁻¹


@dataclass
class Vibrations:
    """One molecule at one method's minimum."""

    frequencies_cm1: np.ndarray
    vectors: np.ndarray
    intensities_km_mol: np.ndarray


def gfn2_vibrations(atoms):
    """(relaxed atoms, Vibrations) with GFN2-xTB, all by central differences."""
    atoms = atoms.copy()
    atoms.calc = gfn2.Gfn2()
    BFGS(atoms, logfile=None).run(fmax=5e-4, steps=500)
    n, born, rows = len(atoms), [], []
    for i in range(3 * n):
        shift = np.zeros(3 * n)
        shift[i] = STEP
        ahead, behind = (
            gfn2.label(atoms.numbers, atoms.positions + s.reshape(n, 3)) for s in (shift, -shift)
        )
        rows.append((behind[1] - ahead[1]).ravel() / (2 * STEP))
        born.append((ahead[2] - behind[2]) / (2 * STEP))
    hessian = (np.array(rows) + np.array(rows).T).reshape(n, 3, n, 3) / 2
    return atoms, vibrations(hessian, np.reshape(born, (n, 3, 3)), atoms)


def vibrations(hessian, born, atoms):
    modes = normal_modes(hessian, atoms.get_masses(), atoms.positions)
    return Vibrations(modes.frequencies_cm1, modes.vectors, intensities(born, modes))


def model_vibrations(potential, params, functions, atoms, size):
    """(Vibrations, RelaxInfo) of the model, from the given start; `size` atoms for one compile."""
    n, atoms = len(atoms), atoms.copy()
    padded = lambda: pad(jaxmlip.from_ase(atoms, potential.cutoff), n_atoms=size, n_neighbors=size)
    system, info = relax(potential, params, padded())
    atoms.positions = np.asarray(system.positions)[:n]
    hessian, born = (np.asarray(f(params, padded())) for f in functions)
    return vibrations(hessian[:n, :, :n], born[:n], atoms), info


def compare(reference, found):
    """Errors of one molecule: by order for frequencies, by overlap for intensities."""
    overlap = np.abs(np.einsum("iab,jab->ij", reference.vectors, found.vectors))
    rows, columns = linear_sum_assignment(-overlap)
    by_order = found.frequencies_cm1 - reference.frequencies_cm1
    return {
        "frequency_errors_cm1": by_order.tolist(),
        "frequency_errors_by_overlap_cm1": (
            found.frequencies_cm1[columns] - reference.frequencies_cm1[rows]
        ).tolist(),
        "reference_cm1": reference.frequencies_cm1.tolist(),
        "reference_km_mol": reference.intensities_km_mol[rows].tolist(),
        "found_km_mol": found.intensities_km_mol[columns].tolist(),
    }


def held_out_minima(path, count, largest):
    """The first minimum of each molecule of at most `largest` atoms, spread over the file."""
    first = {}
    for frame in read(path, ":"):
        if frame.info["config_type"] == "minimum" and len(frame) <= largest:
            first.setdefault(frame.info["name"], frame)
    chosen = np.linspace(0, len(first) - 1, min(count, len(first))).round().astype(int)
    return [list(first.items())[i] for i in chosen]


def frequencies(potential, params, molecules, *, size):
    """(results, {name: why it was left out}) of all molecules."""
    functions = [jax.jit(f(potential.apply)) for f in (jaxmlip.hessian, jaxmlip.born_charges)]
    out, left_out = [], {}
    for name, start in molecules:
        atoms, reference = gfn2_vibrations(start)
        lowest = reference.frequencies_cm1.min(initial=0)
        if lowest < -20:
            left_out[name] = f"the GFN2 structure is a saddle ({lowest:.0f} cm⁻¹)"
            continue
        found, info = model_vibrations(potential, params, functions, atoms, size)
        counts = [len(v.frequencies_cm1) for v in (reference, found)]
        if counts[0] != counts[1]:  # one of the two is linear
            left_out[name] = f"{counts[0]} modes in GFN2, {counts[1]} in the model"
            continue
        result = {"name": name, "n_atoms": len(atoms), "converged": info.converged}
        out.append(result | compare(reference, found))
        print(line(out[-1]), flush=True)
    return out, left_out


def line(result):
    d = np.abs(result["frequency_errors_cm1"])
    return (
        f"{result['name']:28s} {result['n_atoms']:3d} atoms  MAE {d.mean():6.1f}  "
        f"max {d.max():6.1f} cm⁻¹  r(intensity) {correlation([result]):.3f}"
    )


def correlation(results):
    """Pearson correlation of intensities over all modes."""
    pairs = [np.concatenate([r[k] for r in results]) for k in ("reference_km_mol", "found_km_mol")]
    return float(np.corrcoef(*pairs)[0, 1])


def summary(results):
    gather = lambda key: np.concatenate([r[key] for r in results])
    error, by_overlap = gather("frequency_errors_cm1"), gather("frequency_errors_by_overlap_cm1")
    reference, found = gather("reference_km_mol"), gather("found_km_mol")
    return {
        "molecules": len(results),
        "modes": len(error),
        "frequency_mae_cm1": float(np.abs(error).mean()),
        "frequency_rmse_cm1": float(np.sqrt((error**2).mean())),
        "frequency_bias_cm1": float(error.mean()),
        "frequency_mae_by_overlap_cm1": float(np.abs(by_overlap).mean()),
        "intensity_correlation": correlation(results),
        "intensity_mae_km_mol": float(np.abs(reference - found).mean()),
        "intensity_mean_km_mol": float(reference.mean()),
        "imaginary_modes": int((error + gather("reference_cm1") < 0).sum()),
        "not_converged": sum(not r["converged"] for r in results),
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="organic", help="packaged name or path")
    parser.add_argument("--data", default="data/organic/test.extxyz")
    parser.add_argument("--molecules", type=int, default=60)
    parser.add_argument("--largest", type=int, default=16, help="atoms")
    parser.add_argument("--json", type=Path, default=Path("organic_accuracy.json"))
    args = parser.parse_args()
    potential, params = jaxmlip.load(args.model)
    single = evaluate_model(path_of(args.model), args.data, labels=("energy", "forces", "dipole"))
    for key, value in single.items():
        print(f"{key:32s} {value:.4g}")
    results, left_out = frequencies(
        potential,
        jaxmlip.cast(params, np.float64),
        held_out_minima(args.data, args.molecules, args.largest),
        size=args.largest,
    )
    total = summary(results) | {"left_out": len(left_out)}
    for name, reason in left_out.items():
        print(f"{name:28s} left out: {reason}")
    for key, value in total.items():
        print(f"{key:32s} {value:.4g}")
    digest = card(args.model)["sha256"]
    args.json.write_text(
        json.dumps(
            {
                "model_sha256": digest,
                "held_out_structures": single,
                "vibrations": total,
                "per_molecule": results,
                "left_out": left_out,
            },
            indent=1,
        )
    )


if __name__ == "__main__":
    main()
