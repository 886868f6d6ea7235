"""Long range: solvers (system, charges, dipoles=None) -> energy [n_graphs] eV, and what they give.

`ewald`, `pme`, `p3m`, `inverse_power` and `coulomb` plan a solver on the host; a solver is a pure
function to be differentiated as often as wished. `potential` and `field` are such derivatives, at
the atoms; `equilibration` finds the charges of least energy, `bonded_fragments` the ions and
molecules that keep theirs (`jaxmlip.potential.conserve_fragments`).
"""

from jaxmlip.electrostatics.coulomb import coulomb
from jaxmlip.electrostatics.equilibration import equilibration
from jaxmlip.electrostatics.ewald import ewald, inverse_power
from jaxmlip.electrostatics.fragments import bonded_fragments
from jaxmlip.electrostatics.mesh import p3m, pme
from jaxmlip.electrostatics.solver import field, potential

__all__ = [
    "bonded_fragments",
    "coulomb",
    "equilibration",
    "ewald",
    "field",
    "inverse_power",
    "p3m",
    "pme",
    "potential",
]
