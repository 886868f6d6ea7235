"""What a solver is, and what follows from every one: potential and field at the atoms.

A solver is a frozen, hashable object, planned on the host for the cells and the cutoff of a batch:

    energy = solver(system, charges, dipoles=None)      # [n_graphs] eV, the whole energy

with charges [n_atoms] in e and dipoles [n_atoms, 3] in e Å. It is pure: `jit`, `vmap` and `grad` of
any order, with respect to positions, strain, charges and dipoles. Where a structure is not what
was planned (more atoms, another periodicity, a cell grown so large that forces err by ten times
what was planned, a slab grown as thick as its images allow), its energy and all derivatives are
NaN, and those of no other structure of the batch; outside of `jit` what has grown raises
`UsageError`.
"""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np

from jaxmlip.errors import UsageError
from jaxmlip.system import Array, System


def potential(solver):
    """(system, charges, dipoles=None) -> potential at the atoms, [n_atoms] V.

    That of all other charges and of an atom's own images: the derivative of the energy with
    respect to charges, so that charges . potential is twice the energy.
    """

    def at_atoms(system: System, charges: Array, dipoles: Array | None = None):
        return jax.grad(lambda q: solver(system, q, dipoles).sum())(jnp.asarray(charges))

    return at_atoms


def field(solver):
    """(system, charges, dipoles=None) -> electric field at the atoms, [n_atoms, 3] V/Å."""

    def at_atoms(system: System, charges: Array, dipoles: Array | None = None):
        if dipoles is None:
            dipoles = jnp.zeros_like(system.positions)
        return -jax.grad(lambda mu: solver(system, charges, mu).sum())(jnp.asarray(dipoles))

    return at_atoms


def sources(system: System, charges, dipoles, where: str):
    """Charges and dipoles as arrays of the system's dtype, zero where an atom is padding."""
    dtype = jnp.asarray(system.positions).dtype
    charges = jnp.asarray(charges)
    if charges.shape != (system.n_atoms,):
        raise UsageError(
            f"charges have shape {charges.shape}, expected [n_atoms] = ({system.n_atoms},)",
            where=where,
        )
    mask = jnp.asarray(system.atom_mask)
    charges = jnp.where(mask, charges.astype(dtype), 0)
    if dipoles is None:
        return charges, None
    dipoles = jnp.asarray(dipoles)
    if dipoles.shape != (system.n_atoms, 3):
        raise UsageError(
            f"dipoles have shape {dipoles.shape}, expected [n_atoms, 3] = ({system.n_atoms}, 3)",
            where=where,
        )
    return charges, jnp.where(mask[:, None], dipoles.astype(dtype), 0)


def as_arrays(system: System) -> System:
    """The system with jax arrays: numpy arrays indexed by traced ones fail."""
    edges = jax.tree.map(jnp.asarray, replace(system, wave=None))
    return replace(edges, wave=system.wave)


# --- cells that a plan reaches -------------------------------------------------------------------


def within(system: System, longest: tuple[float, ...], where: str) -> jax.Array:
    """[n_graphs] whether no lattice vector is longer than `longest` [3] Å.

    Raises `UsageError` JM532 where the cells are known.
    """
    if not any(isinstance(x, jax.core.Tracer) for x in (system.cell, system.pbc)):
        _check_cells(system, longest, where)
    lengths = jnp.linalg.norm(jax.lax.stop_gradient(system.cell), axis=-1)
    return ~(system.pbc & (lengths > jnp.asarray(longest, lengths.dtype))).any(-1)


def _check_cells(system, longest, where):
    lengths = np.linalg.norm(np.asarray(system.cell), axis=-1)
    found = np.argwhere(np.asarray(system.pbc) & (lengths > longest))
    if not len(found):
        return
    graph, axis = (int(i) for i in found[0])
    raise UsageError(
        f"lattice vector {axis} of structure {graph} is {lengths[graph, axis]:.2f} Å long; the sum "
        f"was planned for other cells and holds its tolerance up to {longest[axis]:.2f} Å",
        where=where,
        fix="plan it for these cells: jaxmlip.bind(potential, system), or a new solver",
        code="JM532",
    )


# --- atoms of a structure, as blocks -------------------------------------------------------------


def blocks(system: System, largest: int):
    """Indices of the atoms of each structure [n_graphs, n], and which are real.

    n: `largest`, or all atoms where there is one structure.
    """
    mask = system.atom_mask
    if system.n_graphs == 1:
        return jnp.arange(system.n_atoms)[None], mask[None]
    graphs = jnp.arange(system.n_graphs)
    start = jnp.searchsorted(system.graph, graphs)
    index = start[:, None] + jnp.arange(largest)
    inside = index < system.n_atoms
    index = jnp.minimum(index, system.n_atoms - 1)
    return index, inside & mask[index] & (system.graph[index] == graphs[:, None])


def too_large(system: System, real) -> jax.Array:
    """[n_graphs] True where a structure has real atoms outside of its block."""
    if system.n_graphs == 1:
        return jnp.zeros(1, bool)
    ones = system.atom_mask.astype(jnp.int32)
    count = jax.ops.segment_sum(ones, system.graph, system.n_graphs, indices_are_sorted=True)
    return count != real.sum(1)
