"""The figure of `jaxmlip ir` for crystals: absorption, and the dielectric function under it."""

import numpy as np

from jaxmlip.cli import plot
from jaxmlip.cli.plot import CURVE, INK, STICK
from jaxmlip.vibrations import dielectric as light

COLORS = (CURVE, STICK, "#5a9e4b", "#8d5fa8", "#c7a327")


def grid_of(frequencies, split, width) -> np.ndarray:
    """Wavenumbers from 0 to somewhat beyond the highest mode, cm⁻¹."""
    top = max(np.max(frequencies, initial=0), 0 if split is None else np.max(split, initial=0))
    top = max(100.0, 50 * np.ceil((1.1 * top + 4 * width) / 50))
    return np.arange(0.0, top + 0.25, min(0.5, width / 10))


def curves(frequencies, strengths, oscillators, directions, split, *, width) -> dict:
    """{heading: column}: molar absorption, and for each direction eps, reflectivity, absorption."""
    from jaxmlip.vibrations import spectrum

    x = grid_of(frequencies, split, width)
    out = {
        "wavenumber_cm1": x,
        "molar_absorption_L_per_mol_cm": plot.MOLAR
        * spectrum(frequencies, strengths, x, width=width),
    }
    if oscillators is None:
        return out
    eps = light.dielectric_function(oscillators, x, width=width)
    for i, n in enumerate(directions):
        one = light.along(eps, n)
        out |= {
            f"epsilon_real_{i}": one.real,
            f"epsilon_imaginary_{i}": one.imag,
            f"reflectivity_{i}": light.reflectivity(one),
            f"absorption_{i}_per_cm": light.absorption_per_cm(one, x),
        }
    return out


def infrared(
    path, frequencies, strengths, oscillators, directions, split, *, width, title, compare=None
) -> None:
    """Absorption of a powder, and eps(omega) along the directions; PNG."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    data = curves(frequencies, strengths, oscillators, directions, split, width=width)
    x, y = data["wavenumber_cm1"], data["molar_absorption_L_per_mol_cm"]
    rows = 1 if oscillators is None else 2
    figure = Figure(figsize=(9, 3.6 * rows), dpi=160, layout="constrained")
    FigureCanvasAgg(figure)
    axes = np.atleast_1d(figure.subplots(rows, 1, sharex=True))
    plot.absorption(axes[0], x, y, frequencies, strengths, compare=compare)
    axes[0].set_title(title, loc="left", fontsize=11, color=INK)
    small = f"harmonic, Γ, transverse; FWHM {width:g} cm⁻¹"
    axes[0].set_title(small, loc="right", fontsize=9, color="#666666")
    if oscillators is not None:
        _dielectric(axes[1], data, directions)
    axes[-1].set_xlabel("wavenumber (cm⁻¹)")
    axes[-1].set_xlim(x[-1], 0)
    figure.savefig(path, format="png")


def _dielectric(axes, data, directions):
    x, drawn = data["wavenumber_cm1"], []
    for i, n in enumerate(directions):
        real, imaginary = data[f"epsilon_real_{i}"], data[f"epsilon_imaginary_{i}"]
        if any(np.allclose(imaginary, other, rtol=1e-3, atol=1e-3) for other in drawn):
            continue  # the same by symmetry
        drawn.append(imaginary)
        color, name = COLORS[i % len(COLORS)], " ".join(f"{v:g}" for v in n.round(3) + 0.0)
        axes.plot(x, imaginary, color=color, lw=1.3, label=f"Im ε, {name}")
        axes.plot(x, real, color=color, lw=0.9, ls="--", label=f"Re ε, {name}")
    largest = max(d.max() for d in drawn)
    axes.set_ylim(-0.6 * largest, 1.1 * largest)
    axes.axhline(0, color="#bbbbbb", lw=0.6, zorder=0)
    axes.set_ylabel("dielectric function")
    axes.legend(frameon=False, fontsize=8, ncols=2)
