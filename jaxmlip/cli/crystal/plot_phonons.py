"""The figure of `jaxmlip phonons`: bands beside the density of states."""

import numpy as np

from jaxmlip.cli.plot import CURVE, INK, STICK


def draw(path, found, *, title: str) -> None:
    """Bands (or frequencies at given points) and total and projected densities; PNG."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 5), dpi=160, layout="constrained")
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2, sharey=True, width_ratios=(3, 1))
    _bands(left, found.bands)
    _density(right, found)
    left.set_ylabel("frequency (THz)")
    left.set_title(title, loc="left", fontsize=11, color=INK)
    right.set_title(_small_print(found), loc="right", fontsize=8, color="#666666")
    low = min(found.frequencies_THz.min(), found.bands.frequencies_THz.min())
    top = max(found.frequencies_THz.max(), found.bands.frequencies_THz.max())
    left.set_ylim(1.05 * low if low < -0.05 else 0, 1.05 * top)
    figure.savefig(path, format="png")


def _bands(axes, bands):
    lines = [s for s in bands.path.segments if s[1] - s[0] > 1]
    for first, last in lines:
        part = slice(first, last)
        x, y = bands.path.distance[part], bands.frequencies_THz[part]
        axes.plot(x, y, color=CURVE, lw=1.1)
    lone = [i for first, last in bands.path.segments if last - first == 1 for i in (first,)]
    axes.plot(bands.path.distance[lone], bands.frequencies_THz[lone], "o", color=CURVE, ms=3)
    ticks = _ticks(bands.path, lone)
    axes.set_xticks(list(ticks), list(ticks.values()))
    for x in ticks:
        axes.axvline(x, color="#bbbbbb", lw=0.6, zorder=0)
    axes.axhline(0, color="#bbbbbb", lw=0.6, zorder=0)
    if len(bands.path.q) > 1:
        axes.set_xlim(bands.path.distance[0], bands.path.distance[-1])


def _ticks(path, lone):
    """{distance: label}; two names where the path jumps."""
    ticks = {}
    for i, (x, label) in enumerate(zip(path.distance, path.labels, strict=True)):
        x = round(float(x), 9)
        label = label or ("(" + " ".join(f"{v:g}" for v in path.q[i]) + ")" if i in lone else "")
        if label and label not in ticks.get(x, "").split("|"):
            ticks[x] = f"{ticks[x]}|{label}" if x in ticks else label
    return ticks


def _density(axes, found):
    axes.plot(found.dos, found.dos_THz, color=INK, lw=1.1)
    symbols = np.asarray(found.symbols)
    colors = (STICK, CURVE, "#5a9e4b", "#8d5fa8", "#c7a327")
    for i, element in enumerate(dict.fromkeys(symbols)):
        part = found.projected_dos[symbols == element].sum(0)
        color = colors[i % len(colors)]
        axes.fill_betweenx(found.dos_THz, part, color=color, alpha=0.3, lw=0, label=element)
    axes.legend(frameon=False, fontsize=8)
    axes.set_xlabel("states / THz")
    axes.set_xlim(0, 1.05 * found.dos.max())


def _small_print(found):
    errors = [
        c.error_THz for c in (found.interpolation, found.bands.interpolation) if c is not None
    ]
    exact = f"{found.n_exact} exact q"
    return f"{exact}, measured error {max(errors):.1g} THz" if errors else exact
