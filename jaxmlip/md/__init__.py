"""Motion: relaxation of positions and cell (dynamics is to come)."""

from jaxmlip.md.cell import fixed_cell, fixed_volume, hydrostatic, relax_cell
from jaxmlip.md.minimizers import Minimizer, fire, lbfgs
from jaxmlip.md.relax import RelaxInfo, relax

__all__ = [
    "Minimizer",
    "RelaxInfo",
    "fire",
    "fixed_cell",
    "fixed_volume",
    "hydrostatic",
    "lbfgs",
    "relax",
    "relax_cell",
]
