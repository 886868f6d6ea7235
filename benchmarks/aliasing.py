"""The picture of what supercells lose, from the lines of `benchmarks.phonons aliasing`.

    python -m benchmarks.aliasing aliasing.jsonl benchmarks/aliasing.png

One panel a crystal: largest and mean difference (THz) of frequencies from the force constants of a
supercell and of exact D(q), at q between its points, over the length of the supercell.
"""

import json
import sys
from pathlib import Path

NAMES = {"mgo": "MgO", "si": "Si", "nacl": "NaCl", "al": "Al", "argon": "Ar", "diamond": "C"}
WANTED = 0.02  # THz


def main(source, target):
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    lines = [json.loads(line) for line in Path(source).read_text().splitlines()]
    crystals = list(dict.fromkeys(line["crystal"] for line in lines))
    figure = Figure(figsize=(4.2 * len(crystals), 3.6), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(1, len(crystals), sharex=True, sharey=True, squeeze=False)[0]
    for axes, crystal in zip(panels, crystals, strict=True):
        panel(axes, [line for line in lines if line["crystal"] == crystal], crystal)
    panels[0].set_ylabel("error of frequencies (THz)")
    panels[-1].legend(frameon=False, fontsize=8)
    figure.savefig(target, format="png")


def panel(axes, lines, crystal):
    length = [line["supercell_length_A"] for line in lines]
    for key, style, label in (("max", "o-", "largest"), ("mean", "s--", "mean")):
        axes.semilogy(length, [x[f"{key}_error_THz"] for x in lines], style, ms=4, label=label)
    for line in lines:
        place = line["supercell_length_A"], line["max_error_THz"]
        how = {"textcoords": "offset points", "xytext": (4, 4), "fontsize": 7}
        axes.annotate(f"{line['supercell_atoms']}", place, **how)
    axes.axhline(WANTED, color="#888888", lw=0.8, ls=":", label=f"{WANTED:g} THz")
    model = Path(lines[0]["model"]).stem
    axes.set_title(
        f"{NAMES.get(crystal, crystal)}, {model}; numbers: atoms of the supercell", fontsize=9
    )
    axes.margins(x=0.12)
    axes.set_xlabel("length of the supercell (Å)")


if __name__ == "__main__":
    main(*sys.argv[1:])
