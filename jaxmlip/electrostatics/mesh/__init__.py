"""Particle-mesh Ewald: what thousands of charges cost grows as n log n.

`pme` and `p3m` plan a solver on the host, `prolate` and `gaussian` split 1/r in two.
"""

from jaxmlip.electrostatics.mesh.solver import p3m, pme
from jaxmlip.electrostatics.mesh.splits import gaussian, prolate

__all__ = ["gaussian", "p3m", "pme", "prolate"]
