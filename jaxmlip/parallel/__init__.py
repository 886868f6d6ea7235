"""One system over several devices: domains of atoms, and halos exchanged in the doors of System.

parts = decompose(system, 4)
mesh = device_mesh(4)
program = jax.jit(predict(distributed(potential.apply, mesh)))
prediction = restore(parts, program(params, place(parts.system, mesh)))

`processes` is how several programs of one run find each other and agree.
"""

from jaxmlip.parallel.decompose import (
    Decomposition,
    balance,
    decompose,
    from_domains,
    restore,
    to_domains,
)
from jaxmlip.parallel.distributed import device_mesh, distributed, place
from jaxmlip.parallel.halo import Halo

__all__ = [
    "Decomposition",
    "Halo",
    "balance",
    "decompose",
    "device_mesh",
    "distributed",
    "from_domains",
    "place",
    "restore",
    "to_domains",
]
