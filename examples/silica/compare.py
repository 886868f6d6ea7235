"""How good is `silica`? On held-out frames, and alpha-quartz beside experiment.

    python examples/silica/compare.py --model silica --data data/silica/test.extxyz

First the errors of all that the frames are labelled with. Then the primitive cell of quartz with
the lattice of experiment and its atoms relaxed: high-frequency and static dielectric constants and
transverse optical modes, from the model's own Born charges. Prints figures and writes JSON.
"""

import argparse
import json
from pathlib import Path

import jax
import numpy as np
from ase.io import read

jax.config.update("jax_enable_x64", True)

import jaxmlip  # noqa: E402
from jaxmlip.derivatives.response import dielectric, periodic_born_charges  # noqa: E402
from jaxmlip.md.relax import relax  # noqa: E402
from jaxmlip.pretrained import card, path_of  # noqa: E402
from jaxmlip.train import evaluate_model  # noqa: E402
from jaxmlip.vibrations.dielectric import oscillators, static_dielectric  # noqa: E402
from jaxmlip.vibrations.modes import normal_modes  # noqa: E402

QUARTZ = Path(__file__).parent / "quartz.cif"


def quartz_figures(model) -> dict:
    """Born charges, dielectric constants and optical modes of quartz."""
    potential, params = jaxmlip.load(model)
    params = jaxmlip.cast(params, np.float64)
    atoms = read(QUARTZ)
    system, info = relax(potential, params, jaxmlip.from_ase(atoms, potential.cutoff), fmax=1e-4)
    born = np.asarray(jax.jit(periodic_born_charges(potential.apply))(params, system))
    fast = np.asarray(jax.jit(dielectric(potential.apply))(params, system))[0]
    hessian = np.asarray(jax.jit(jaxmlip.hessian(potential.apply))(params, system))
    modes = normal_modes(hessian, atoms.get_masses(), np.asarray(system.positions), pbc=True)
    slow = np.full((3, 3), np.nan)  # a soft mode has no finite answer
    if not modes.n_imaginary:
        slow = static_dielectric(oscillators(born, modes, fast, atoms.get_volume()))
    moved = np.asarray(system.positions) - atoms.positions
    text = lambda values: ", ".join(f"{v:.0f}" for v in values)
    return {
        "relaxed": bool(info.converged),
        "largest_move_A": float(np.abs(moved - moved.mean(0)).max()),
        "epsilon_infinity_xx": float(fast[0, 0]),
        "epsilon_infinity_zz": float(fast[2, 2]),
        "epsilon_static_xx": float(slow[0, 0]),
        "epsilon_static_zz": float(slow[2, 2]),
        "mean_born_charge_Si_e": float(np.trace(born[atoms.numbers == 14].mean(0)) / 3),
        "sum_of_born_charges_e": float(np.abs(born.sum(0)).max()),
        "transverse_modes_cm1": text(modes.frequencies_cm1),
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="silica", help="packaged name or path")
    parser.add_argument("--data", default="data/silica/test.extxyz")
    parser.add_argument("--json", type=Path, default=Path("silica_accuracy.json"))
    args = parser.parse_args()
    out = {}
    for title, figures_of in (
        (
            "Accuracy on frames that were held out",
            lambda: evaluate_model(path_of(args.model), args.data, batch_atoms=72),
        ),
        (
            "Alpha-quartz, lattice of experiment, atoms relaxed",
            lambda: quartz_figures(args.model),
        ),
    ):
        out[title] = figures_of()
        for key, value in out[title].items():
            text = f"{value:.4g}" if isinstance(value, float) else value
            print(f"{key:34s} {text}", flush=True)
    digest = card(args.model)["sha256"]
    args.json.write_text(json.dumps({"model_sha256": digest} | out, indent=1, ensure_ascii=False))


if __name__ == "__main__":
    main()
