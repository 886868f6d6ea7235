"""Motion: relaxation of positions and cells, and molecular dynamics, in compiled blocks."""

from jaxmlip.md.barostats import stochastic_cell
from jaxmlip.md.cell import fixed_cell, fixed_volume, hydrostatic, relax_cell
from jaxmlip.md.differentiable import reweighted, sensitivity
from jaxmlip.md.integrators import csvr, langevin, nose_hoover, nve
from jaxmlip.md.minimizers import Minimizer, fire, lbfgs
from jaxmlip.md.motion import Motion, at_rest, thermal_motion
from jaxmlip.md.relax import RelaxInfo, relax
from jaxmlip.md.relax_batch import relax_batch
from jaxmlip.md.replica_exchange import replica_exchange
from jaxmlip.md.ring_polymer import quantum, ring, ring_polymer
from jaxmlip.md.run import Block, Run, handed_over, prepare, trajectory
from jaxmlip.md.simulate import Plan, simulate

__all__ = [
    "Block",
    "Minimizer",
    "Motion",
    "Plan",
    "RelaxInfo",
    "Run",
    "at_rest",
    "csvr",
    "fire",
    "fixed_cell",
    "fixed_volume",
    "handed_over",
    "hydrostatic",
    "langevin",
    "lbfgs",
    "nose_hoover",
    "nve",
    "prepare",
    "quantum",
    "relax",
    "relax_batch",
    "relax_cell",
    "replica_exchange",
    "reweighted",
    "ring",
    "ring_polymer",
    "sensitivity",
    "simulate",
    "stochastic_cell",
    "thermal_motion",
    "trajectory",
]
