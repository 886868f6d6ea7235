"""The figure of `jaxmlip conductivity`: tensors over temperature."""

import numpy as np

from jaxmlip.cli.plot import CURVE, INK, STICK


def draw(path, found, *, title: str) -> None:
    """Diagonal elements by relaxation times (lines) and of the direct solution (dots); PNG."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 4.2), dpi=160, layout="constrained")
    FigureCanvasAgg(figure)
    axes, colors = figure.add_subplot(), (CURVE, STICK, INK)
    for i, (name, color) in enumerate(zip(("xx", "yy", "zz"), colors, strict=True)):
        style = {"color": color, "marker": "." if len(found.temperatures) == 1 else None}
        axes.plot(found.temperatures, found.kappa[:, i, i], label=name, **style)
        if found.direct is not None:
            axes.plot(found.temperatures, found.direct[:, i, i], "o", ms=4, color=color)
    if (np.diagonal(found.kappa, axis1=1, axis2=2) > 0).all():
        axes.set(xscale="log", yscale="log")
    axes.set(xlabel="temperature (K)", ylabel="thermal conductivity (W m⁻¹ K⁻¹)")
    axes.legend(frameon=False, fontsize=8)
    axes.set_title(title, loc="left", fontsize=11, color=INK)
    axes.set_title(f"mesh {found.mesh}", loc="right", fontsize=8, color="#666666")
    figure.savefig(path, format="png")
