"""jax-pme: Ewald, PME (order 4) and P3M (orders 4 and 5), by its own `energy_forces`.

It has no planner, so its settings are scanned: the cutoff, a Gaussian whose real-space error is
half of the target, and ever finer meshes (powers of two, as it makes them).
"""

import jax
import numpy as np
from ase import Atoms

from benchmarks.charges import cutoffs_of, scanned
from benchmarks.peers.jax_program import environment

METHODS = ("ewald", "pme4", "p3m4", "p3m5")


def facts():
    import jaxpme

    return environment() | {"version": jaxpme.__version__}


def settings(method, tolerance, cell, cutoffs=None):
    """The settings to try, coarse to fine, one list for each cutoff."""
    return scanned(method, tolerance, cell, cutoffs or cutoffs_of(method))


def prepare(method, given, dtype, positions, charges, cell, numbers):
    """(call -> {"energy" eV, "forces" eV/Å}, facts of the plan)."""
    if dtype == "float64":
        jax.config.update("jax_enable_x64", True)
    from jaxpme import P3M, PME, Ewald, prefactors

    constant = {"prefactor": prefactors.eV_A}
    calculator = {
        "ewald": lambda: Ewald(**constant),
        "pme4": lambda: PME(interpolation_nodes=4, **constant),
        "p3m4": lambda: P3M(interpolation_nodes=4, **constant),
        "p3m5": lambda: P3M(interpolation_nodes=5, **constant),
    }[method]()
    atoms = Atoms(numbers, positions, cell=cell, pbc=True)
    inputs = calculator.prepare(atoms, charges, given["cutoff"], given["grid"], given["smearing"])
    grid = inputs[6]
    shape, cast = grid.shape, lambda x: jax.numpy.asarray(x, dtype)
    if method == "ewald":
        inputs = inputs[:8]
    program = jax.jit(
        lambda q, cell, positions, i, j, shifts: calculator.energy_forces(
            q, cell, positions, i, j, shifts, np.ones(shape, dtype), given["smearing"]
        )
    )
    q, cell, positions, i, j, shifts = inputs[:6]
    arguments = cast(q), cast(cell), cast(positions), *map(jax.numpy.asarray, (i, j, shifts))

    def call():
        energy, forces = jax.block_until_ready(program(*arguments))
        return {"energy": energy, "forces": forces}

    return call, {"shape": shape, "n_pairs": len(i)}
