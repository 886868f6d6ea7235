"""Figures. Drawn on a canvas of their own, so that no display and no global state is touched."""

import numpy as np

MOLAR = 43.43  # L/(mol cm) of 1 km/mol per cm⁻¹, decadic: 1e5 / (1000 ln 10)
INK, CURVE, STICK = "#222222", "#1f5f8b", "#d1603d"
LABEL = (0.036, 0.045)  # width and height of a wavenumber in a figure, of the axes


def curve(frequencies_cm1, intensities, *, width: float):
    """(wavenumbers cm⁻¹, decadic molar absorption coefficient L/(mol cm)) of broadened lines."""
    from jaxmlip.vibrations import spectrum

    top = max(4000.0, 100 * np.ceil((np.max(frequencies_cm1, initial=0) + 20 * width) / 100))
    grid = np.arange(0.0, top + 0.5, min(1.0, width / 8))
    return grid, MOLAR * spectrum(frequencies_cm1, intensities, grid, width=width)


def infrared(path, frequencies_cm1, intensities, *, width: float, title: str, compare=None) -> None:
    """A spectrum as spectroscopists draw it, wavenumbers falling to the right; PNG.

    compare: (wavenumbers, intensities) of another one, laid over it.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 4.2), dpi=160, layout="constrained")
    FigureCanvasAgg(figure)
    left = figure.add_subplot()
    x, y = curve(frequencies_cm1, intensities, width=width)
    absorption(left, x, y, frequencies_cm1, intensities, compare=compare)
    left.set(xlabel="wavenumber (cm⁻¹)")
    left.set_title(title, loc="left", fontsize=11, color=INK)
    left.set_title(
        f"harmonic, Lorentzian lines, FWHM {width:g} cm⁻¹", loc="right", fontsize=9, color="#666666"
    )
    figure.savefig(path, format="png")


def absorption(left, x, y, frequencies_cm1, intensities, *, compare=None) -> None:
    """The curve, the lines that make it, and another spectrum over them."""
    right = left.twinx()
    shifted(left, x, y, compare=compare)
    right.vlines(frequencies_cm1, 0, intensities, color=STICK, lw=1.2)
    _limits(left, right, x, y, intensities)
    _labels(left, frequencies_cm1, intensities, x, y)
    left.set_ylabel("molar absorption coefficient (L mol⁻¹ cm⁻¹)")
    right.set_ylabel("intensity (km mol⁻¹)", color=STICK)


def shifted(axes, x, y, *, compare=None) -> None:
    """A curve, filled, and under it another one scaled to its height."""
    from jaxmlip.cli.compare import scaled

    axes.plot(x, y, color=CURVE, lw=1.4, label="this model")
    axes.fill_between(x, y, color=CURVE, alpha=0.12, lw=0)
    if compare is not None:
        axes.plot(compare[0], scaled(compare, x, y), color=INK, lw=0.9, label="compared (scaled)")
        axes.legend(frameon=False, fontsize=8, loc="upper left")


def raman(
    path, frequencies_cm1, heights, sections, x, y, *, title: str, small: str, compare=None
) -> None:
    """Raman scattering against the shift, rising to the right; PNG.

    heights: of the sticks, activities; sections: cross-sections, which make the curve.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 4.2), dpi=160, layout="constrained")
    FigureCanvasAgg(figure)
    left = figure.add_subplot()
    right = left.twinx()
    shifted(left, x, y, compare=compare)
    right.vlines(frequencies_cm1, 0, heights, color=STICK, lw=1.2)
    _limits(left, right, x, y, heights)
    left.set_xlim(0, x[-1])
    _labels(left, frequencies_cm1, heights, x, y, areas=sections)
    left.set(xlabel="Raman shift (cm⁻¹)", ylabel="dσ/dΩ (10⁻³⁰ cm² sr⁻¹ per cm⁻¹)")
    right.set_ylabel("activity (Å⁴ amu⁻¹)", color=STICK)
    left.set_title(title, loc="left", fontsize=11, color=INK)
    left.set_title(small, loc="right", fontsize=9, color="#666666")
    figure.savefig(path, format="png")


def _limits(left, right, x, y, intensities):
    left.set_xlim(x[-1], 0)
    left.set_ylim(0, 1.18 * max(y.max(initial=0), 1e-6))
    right.set_ylim(0, 1.18 * max(np.max(intensities, initial=0), 1e-6))
    right.tick_params(axis="y", colors=STICK)
    for axes in (left, right):
        axes.spines["top"].set_visible(False)
        axes.minorticks_on()


def _labels(axes, frequencies, intensities, x, y, *, areas=None, most=8):
    """Wavenumbers over the strongest lines, as many as have room; over curve and stick.

    areas: of the lines in the curve, if they are others than those of the sticks.
    """
    share = lambda v: np.asarray(v) / max(np.max(v, initial=0), 1e-300)
    sticks, top, named = share(intensities), np.max(y, initial=1e-300), []
    strengths = sticks if areas is None else np.maximum(sticks, share(areas))
    for i in np.argsort(-strengths):
        f = frequencies[i]
        if strengths[i] <= 0.03 or len(named) == most:
            break
        place = f / (x[-1] - x[0]), max(np.interp(f, x, y) / top, sticks[i])
        if f < 0 or any(np.all(np.abs(np.subtract(place, n)) < LABEL) for n in named):
            continue
        named.append(place)
        axes.annotate(
            f"{f:.0f}",
            (f, top * place[1]),
            (0, 4),
            ha="center",
            fontsize=8,
            textcoords="offset points",
            color=INK,
        )
