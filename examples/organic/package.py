"""Puts the trained potential into the package, with its measured accuracy in the card.

    python examples/organic/package.py --model runs/organic/model.safetensors \\
        --accuracy organic_accuracy.json

Weights are not touched. The card gets the figures of `compare.py`, which must be of these very
weights, and the same card is written for people as Markdown.
"""

import argparse
import json
from pathlib import Path

from ase.data import chemical_symbols
from jax.tree_util import tree_leaves

from jaxmlip.models import checkpoint
from jaxmlip.pretrained import FOLDER

LIMITS = [
    "Closed-shell neutral molecules of H, C, N and O in the gas phase; trained on up to 9 heavy "
    "atoms. No ions, radicals, excited states, metals or crystals.",
    "As good as GFN2-xTB at best: frequencies and intensities carry the errors of that method "
    "against experiment, and are harmonic.",
    "The energy of an atom sees others up to 10 Å away (two steps of 5 Å): no long-range "
    "electrostatics. Only small dimers were seen, so liquids and clusters are extrapolation.",
    "Bonds were stretched to about 1.5 times their length; dissociation is extrapolation.",
]


def packaged_card(card, accuracy):
    """The card with held-out accuracy and limits instead of the validation figures."""
    figures = accuracy["held_out_structures"] | accuracy["vibrations"]
    return {k: v for k, v in card.items() if k not in ("format", "sha256", "card_sha256")} | {
        "accuracy": {f"held_out_{k}": v for k, v in figures.items()},
        "limits": LIMITS,
    }


def markdown(card, params):
    a = {k.removeprefix("held_out_"): v for k, v in card["accuracy"].items()}
    weights = sum(x.size for x in tree_leaves(params))
    symbols = ", ".join(chemical_symbols[z] for z in card["elements"])
    lines = [
        f"# {card['name']}",
        "",
        f"{card['architecture']}, {weights} weights, cutoff {card['cutoff']} Å.",
        f"Elements: {symbols}.",
        f"Level of theory: {card['level_of_theory']}. Licence: {card['licence']}.",
        "",
        "Energies are total energies in eV, forces eV/Å, dipoles e Å. The energy depends on the",
        "electric field through the predicted dipole, so Born charges are its derivatives.",
        "",
        "## Accuracy on molecules that were held out whole",
        "",
        f"{a['n_frames']} structures (minima, thermal and random displacements, stretched bonds), "
        "against GFN2-xTB:",
        "",
        "| quantity | MAE | RMSE |",
        "|---|---|---|",
        f"| energy, meV/atom | {a['energy_mae_meV_per_atom']:.2f} "
        f"| {a['energy_rmse_meV_per_atom']:.2f} |",
        f"| forces, meV/Å | {a['forces_mae_meV_per_A']:.1f} | {a['forces_rmse_meV_per_A']:.1f} |",
        f"| dipole, e Å | {a['dipole_mae_eA']:.4f} | {a['dipole_rmse_eA']:.4f} |",
        "",
        f"Harmonic vibrations of {a['molecules']} molecules, each method at its own minimum "
        f"({a['modes']} modes):",
        "",
        f"frequencies MAE {a['frequency_mae_cm1']:.1f} cm⁻¹, RMSE {a['frequency_rmse_cm1']:.1f}, "
        f"bias {a['frequency_bias_cm1']:+.1f} (MAE {a['frequency_mae_by_overlap_cm1']:.1f} with "
        "modes paired by overlap);",
        f"intensities: correlation {a['intensity_correlation']:.3f}, MAE "
        f"{a['intensity_mae_km_mol']:.1f} km/mol at a mean of {a['intensity_mean_km_mol']:.1f}.",
        "",
        "`examples/organic/compare.py` prints these figures.",
        "",
        "## Known limits",
        "",
        *(f"- {limit}" for limit in card["limits"]),
        "",
        "## Data and training",
        "",
        "`examples/organic/make_data.py` makes the data, `examples/organic/train.yaml` is the "
        f"training run; these weights are of its epoch {card['epoch']}.",
        *(f"SHA-256 of `{d['file']}`: `{d['sha256']}`." for d in card["data"].values()),
        "",
    ]
    return "\n".join(lines)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="runs/organic/model.safetensors")
    parser.add_argument("--accuracy", type=Path, default=Path("organic_accuracy.json"))
    args = parser.parse_args()
    _, params, card = checkpoint.load(args.model)
    accuracy = json.loads(args.accuracy.read_text())
    if accuracy["model_sha256"] != card["sha256"]:
        raise SystemExit(f"{args.accuracy} was measured on other weights than {args.model}")
    card = packaged_card(card, accuracy)
    checkpoint.save(FOLDER / f"{card['name']}.safetensors", card, params)
    (FOLDER / f"{card['name']}.md").write_text(markdown(card, params))


if __name__ == "__main__":
    main()
