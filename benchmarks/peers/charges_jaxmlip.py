"""jaxmlip's own solvers: what it takes for a tolerance is planned, nothing is scanned."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np

import jaxmlip
from benchmarks.charges import cutoffs_of
from benchmarks.peers.jax_program import environment
from jaxmlip.electrostatics import ewald
from jaxmlip.electrostatics.mesh import gaussian, p3m, pme
from jaxmlip.neighbors import find_edges
from jaxmlip.system import System

METHODS = {
    "pme": pme,
    "p3m": p3m,
    "p3m-gaussian": lambda system, cutoff, tolerance, **options: p3m(
        system, cutoff, tolerance, split=gaussian, **options
    ),
    "ewald": lambda system, cutoff, tolerance, charges=None: ewald(system, cutoff, tolerance),
}


def facts():
    return environment() | {"version": jaxmlip.__version__}


def settings(method, tolerance, cell, cutoffs=None):
    """The settings to try, coarse to fine, one list for each cutoff."""
    return [[{"cutoff": c, "tolerance": tolerance}] for c in cutoffs or cutoffs_of(method)]


def prepare(method, given, dtype, positions, charges, cell, numbers):
    """(call -> {"energy" eV, "forces" eV/Å}, facts of the plan)."""
    if dtype == "float64":
        jax.config.update("jax_enable_x64", True)
    system = as_system(positions, cell, numbers, given["cutoff"], dtype)
    q = jnp.asarray(charges, dtype)
    solver = METHODS[method](system, given["cutoff"], given["tolerance"], charges=charges)
    system = jax.device_put(system)

    @jax.jit
    def program(system, q):
        energy = lambda positions: solver(replace(system, positions=positions), q)[0]
        value, slope = jax.value_and_grad(energy)(system.positions)
        return {"energy": value, "forces": -slope}

    plan = {k: getattr(solver, k) for k in ("shape", "order", "box", "error") if hasattr(solver, k)}
    return lambda: jax.block_until_ready(program(system, q)), plan


def as_system(positions, cell, numbers, cutoff, dtype="float64"):
    """One crystal as a `System` with edges."""
    return System(
        positions=positions.astype(dtype),
        numbers=np.asarray(numbers, np.int32),
        graph=np.zeros(len(positions), np.int32),
        cell=cell[None].astype(dtype),
        pbc=np.ones((1, 3), bool),
        charge=np.zeros(1, dtype),
        spin=np.ones(1, dtype),
        field=np.zeros((1, 3), dtype),
        edges=find_edges(positions, cell, True, cutoff),
    )
