"""Motion: relaxation of positions (dynamics is to come)."""

from jaxmlip.md.minimizers import Minimizer, fire, lbfgs
from jaxmlip.md.relax import RelaxInfo, relax

__all__ = ["Minimizer", "RelaxInfo", "fire", "lbfgs", "relax"]
