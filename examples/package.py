"""Puts a trained potential into the package, with its measured accuracy in the card.

    python examples/package.py --model runs/silica/model.safetensors --accuracy silica_accuracy.json

Weights are not touched. The card gets the figures that the `compare.py` of the example wrote,
which must be of these very weights, and the same card is written for people as Markdown: its words
(level of theory, licence, limits, origin) come from the `card:` of the example's `train.yaml`.
"""

import argparse
import json
import textwrap
from pathlib import Path

import yaml
from ase.data import chemical_symbols
from jax.tree_util import tree_leaves

from jaxmlip.models import checkpoint
from jaxmlip.pretrained import FOLDER

HERE = Path(__file__).parent
UNITS = {
    "meV_per_atom": "meV/atom",
    "meV_per_A3": "meV/Å³",
    "meV_per_A": "meV/Å",
    "e2A2_per_eV": "e² Å²/eV",
    "eA": "e Å",
    "e": "e",
}


def rows(figures):
    """'| quantity, unit | MAE | RMSE |' of every '<quantity>_mae_<unit>'."""
    out = ["| quantity | MAE | RMSE |", "|---|---|---|"]
    for key, value in figures.items():
        name, is_mean, unit = key.partition("_mae_")
        if is_mean:
            root = figures[f"{name}_rmse_{unit}"]
            out.append(f"| {name.replace('_', ' ')}, {UNITS[unit]} | {value:.3g} | {root:.3g} |")
    return out


def section(title, figures):
    """A table of errors, and other numbers as a list."""
    errors = [k for k in figures if "_mae_" in k or "_rmse_" in k]
    others = [k for k in figures if k not in errors and not k.startswith("n_")]
    lines = [f"## {title}", ""]
    if "n_frames" in figures:
        lines += [f"{figures['n_frames']} structures:", ""]
    lines += [*rows(figures), ""] if errors else []
    for key in others:
        value = figures[key]
        text = f"{value:.4g}" if isinstance(value, float) else value
        lines += [f"- {key.replace('_', ' ')}: {text}"]
    return [*lines, ""] if others else lines


def runs(name):
    """The configurations of a model, in the order in which they are run."""
    files = [HERE / name / file for file in ("train.yaml", "refine.yaml")]
    return [f"`examples/{name}/{file.name}`" for file in files if file.exists()]


def markdown(card, params, sections):
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
        "electric field through a dipole that is a sum over atoms and through the polarisability:",
        "Born charges and the dielectric tensor are its derivatives, in crystals too.",
        "",
    ]
    for title, figures in sections.items():
        lines += section(title, figures)
    lines += ["## Known limits", "", *(f"- {limit}" for limit in card["limits"]), ""]
    lines += [f"## Data and training\n\n{card['origin']}", ""]
    lines += [
        f"{' and then '.join(runs(card['name']))} is the training run; these weights are of epoch "
        f"{card['epoch']} of the last.",
        *(
            f"SHA-256 of `{d.get('file', name)}`: `{d['sha256']}`."
            for name, d in card["data"].items()
        ),
        "",
    ]
    wrap = lambda s: s if s.startswith(("|", "#")) else textwrap.fill(s, 100, subsequent_indent="")
    return "\n".join(wrap(line) for text in lines for line in text.split("\n"))


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", required=True)
    parser.add_argument("--accuracy", type=Path, required=True)
    args = parser.parse_args()
    _, params, card = checkpoint.load(args.model)
    measured = json.loads(args.accuracy.read_text())
    if measured.pop("model_sha256") != card["sha256"]:
        raise SystemExit(f"{args.accuracy} was measured on other weights than {args.model}")
    card = {k: v for k, v in card.items() if k not in ("format", "sha256", "card_sha256")}
    figures = {f"held_out_{k}": v for s in measured.values() for k, v in s.items() if "mae" in k}
    roots = {f"held_out_{k}": v for s in measured.values() for k, v in s.items() if "rmse" in k}
    words = yaml.safe_load((HERE / card["name"] / "train.yaml").read_text())["card"]
    card |= words | {"accuracy": figures | roots}
    checkpoint.save(FOLDER / f"{card['name']}.safetensors", card, params)
    (FOLDER / f"{card['name']}.md").write_text(markdown(card, params, measured))


if __name__ == "__main__":
    main()
