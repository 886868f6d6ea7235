"""Pictures of a training run: how it learnt, and its predictions beside the labels."""

import json
from functools import partial
from pathlib import Path

import numpy as np

from jaxmlip.cli.output import write
from jaxmlip.cli.plot import CURVE, INK, STICK

AXES = {  # label: (factor from eV, Å, e; what stands at the axes)
    "energy": (1e3, "energy less free atoms (meV/atom)"),
    "forces": (1.0, "forces (eV/Å)"),
    "stress": (1e3, "stress (meV/Å³)"),
    "dipole": (1.0, "dipole (e Å)"),
    "charges": (1.0, "charges (e)"),
    "born_charges": (1.0, "Born charges (e)"),
    "polarizability": (1.0, "polarisability (e²Å²/eV)"),
}
MOST = 20_000  # points of one panel


def curves(path: Path, metrics: Path) -> None:
    """Errors of training and validation frames over the epochs, and the learning rate; PNG."""
    lines = [json.loads(line) for line in metrics.read_text().splitlines()]
    names = [k for k in lines[-1]["valid"] if "_mae_" in k]
    figure, panels = _panels(len(names) + 1)
    epochs = [line["epoch"] for line in lines]
    for panel, name in zip(panels, names, strict=False):
        label, _, unit = name.partition("_mae_")
        for part, color in (("train", INK), ("valid", CURVE)):
            panel.plot(epochs, [line[part].get(name) for line in lines], color=color, label=part)
        panel.set_title(f"{label.replace('_', ' ')}, MAE ({unit.replace('_per_', '/')})", **SMALL)
        panel.set_yscale("log")
    panels[0].legend(frameon=False, fontsize=8)
    panels[len(names)].plot(epochs, [line["learning_rate"] for line in lines], color=STICK)
    panels[len(names)].set_title("learning rate", **SMALL)
    panels[len(names)].set_yscale("log")
    for panel in panels:
        panel.set_xlabel("epoch", fontsize=8)
    write(path, lambda partial: figure.savefig(partial, format="png"))


def parity(path: Path, settings) -> None:
    """Predictions of the best model on the validation frames against their labels; PNG."""
    from jaxmlip import pretrained
    from jaxmlip.models import checkpoint
    from jaxmlip.potential import bind
    from jaxmlip.train.evaluation.parity import parity as values
    from jaxmlip.train.saving import MODEL
    from jaxmlip.train.setup import prepare

    run = prepare(
        settings, load=partial(pretrained.load, needs_energy=True), find=pretrained.path_of
    )
    _, params, card = checkpoint.load(Path(settings.output) / MODEL)
    bare = card | {"reference_energies": {}, "head_reference_energies": {}}
    potential = bind(checkpoint.potential_of(bare), [system for system, _ in run.valid])
    terms = {name: term for name, term in run.terms.items() if name in AXES}
    found = values(potential, params, run.valid, run.valid_buckets, terms=terms)
    draw_parity(path, found, title=f"{len(run.valid)} validation structures")


def draw_parity(path: Path, found: dict, *, title: str) -> None:
    """One panel a label of {label: (labels, predictions)}; PNG."""
    found = {name: pair for name, pair in found.items() if len(pair[0])}
    figure, panels = _panels(max(len(found), 1))
    for panel, (name, pair) in zip(panels, found.items(), strict=False):
        factor, words = AXES[name]
        every = max(1, len(pair[0]) // MOST)
        label, value = (factor * x[::every] for x in pair)
        low, high = min(label.min(), value.min()), max(label.max(), value.max())
        panel.plot([low, high], [low, high], color=STICK, lw=0.8)
        panel.plot(label, value, ".", ms=2, alpha=0.4, color=CURVE, rasterized=True)
        error = factor * np.sqrt(np.mean((pair[1] - pair[0]) ** 2))
        panel.set_title(f"{words}\nRMSE {error:.3g}", **SMALL)
        panel.set_xlabel("label", fontsize=8)
    panels[0].set_ylabel("prediction", fontsize=8)
    figure.suptitle(title, x=0.01, ha="left", fontsize=10, color=INK)
    write(path, lambda partial: figure.savefig(partial, format="png"))


SMALL = {"loc": "left", "fontsize": 8, "color": INK}


def _panels(n: int):
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    columns = min(n, 4)
    rows = -(-n // columns)
    figure = Figure(figsize=(3.1 * columns, 2.9 * rows), dpi=160, layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(rows, columns, squeeze=False).ravel()
    for panel in panels[n:]:
        panel.set_axis_off()
    for panel in panels:
        panel.tick_params(labelsize=7)
    return figure, panels[:n]
