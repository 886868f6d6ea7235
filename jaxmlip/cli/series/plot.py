"""The picture of `jaxmlip spectra`: one panel a kind, error bars as bands."""

import numpy as np

from jaxmlip.cli.plot import CURVE, INK, STICK
from jaxmlip.cli.series.results import Curve

PARTS = (STICK, "#3a7d44", "#7b4fa3", "#b58900", "#5f6b73")


def draw(path, found, *, title: str, quantum: str, compare=None) -> None:
    """A PNG of curves and coefficients; quantum: the correction of ir and raman; compare:
    (wavenumbers, intensities) laid over the first.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 0.6 + 2.8 * len(found)), dpi=160, layout="constrained")
    FigureCanvasAgg(figure)
    for i, result in enumerate(found):
        axes = figure.add_subplot(len(found), 1, i + 1)
        if isinstance(result, Curve):
            _spectrum(axes, result, quantum, compare)
            compare = None
        else:
            _transport(axes, result)
        axes.minorticks_on()
        for side in ("top", "right"):
            axes.spines[side].set_visible(False)
        if i == 0:
            axes.set_title(title, loc="left", fontsize=11, color=INK)
    figure.savefig(path, format="png")


def _spectrum(axes, result, quantum, compare):
    from jaxmlip.cli.compare import scaled

    x, y, e = (
        result.spectrum.wavenumbers_cm1,
        result.spectrum.values,
        np.nan_to_num(result.spectrum.errors),
    )
    axes.fill_between(x, y - e, y + e, color=CURVE, alpha=0.3, lw=0)
    axes.plot(x, y, color=CURVE, lw=1.3, label="total")
    for color, (name, part) in zip(PARTS, result.parts.items(), strict=False):
        axes.plot(x, part.values, color=color, lw=0.9, label=name)
    if compare is not None:
        axes.plot(compare[0], scaled(compare, x, y), color=INK, lw=0.9, label="compared (scaled)")
    if result.parts or compare is not None:
        axes.legend(frameon=False, fontsize=8)
    axes.set(xlabel="wavenumber (cm⁻¹)", ylabel=result.label, ylim=(0, None))
    axes.set_xlim((x[-1], 0) if result.kind == "ir" else (0, x[-1]))
    motion = "classical" if result.kind == "vdos" else f"quantum correction: {quantum}"
    small = f"{motion}, FWHM {result.spectrum.width_cm1:g} cm⁻¹"
    axes.set_title(small, loc="right", fontsize=9, color="#666666")


def _transport(axes, result):
    from jaxmlip.vibrations.spectra.correlation import standard_error

    factor = result.factor
    for color, (name, c) in zip((CURVE, *PARTS), result.found.items(), strict=False):
        curve, error = factor * c.curve, factor * np.nan_to_num(standard_error(c.curves))
        text = f"{name}: {factor * c.value:.3g} ± {factor * c.error:.1g}"
        axes.fill_between(c.times, curve - error, curve + error, color=color, alpha=0.2, lw=0)
        axes.plot(c.times, curve, color=color, lw=1.2, label=text)
    axes.legend(frameon=False, fontsize=8, title=result.label, title_fontsize=8)
    axes.set(xlabel="lag (fs)", ylabel=result.curve, xlim=(0, None))
