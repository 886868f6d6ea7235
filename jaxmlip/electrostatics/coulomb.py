"""Open boundaries: all pairs of a structure, in blocks of rows."""

from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp
import numpy as np

from jaxmlip import units
from jaxmlip.electrostatics.kernels import bare, interaction
from jaxmlip.electrostatics.solver import as_arrays, blocks, sources, too_large
from jaxmlip.errors import UsageError
from jaxmlip.system import Array, System

PAIRS = 2**21  # at once


def coulomb(system: System | None = None, *, exclude: float | None = None) -> "Coulomb":
    """Coulomb energy of molecules, all pairs; needs no edges.

    system: any batch with the largest molecules to come; without it every structure is given
    the room of the whole batch, which is what one molecule needs and many small ones waste.
    exclude: radius, Å, of a smooth window whose pairs are left to a short-range model.
    Raises `UsageError` for a structure with a periodic axis (where that is known; NaN else).
    """
    largest = None if system is None else int(most_atoms(system))
    return Coulomb(largest=largest, exclude=exclude)


@dataclass(frozen=True)
class Coulomb:
    """The solver of `coulomb`."""

    largest: int | None = None
    exclude: float | None = None

    def __call__(self, system: System, charges: Array, dipoles: Array | None = None) -> jax.Array:
        """[n_graphs] eV."""
        _refuse_periodic(system)
        system = as_arrays(system)
        charges, dipoles = sources(system, charges, dipoles, "coulomb")
        kernel, largest = bare(1, self.exclude), self.largest or system.n_atoms
        open_ = ~system.pbc.any(1)
        return units.coulomb_constant * all_pairs(
            system, charges, dipoles, kernel, largest, allowed=open_
        )


def _refuse_periodic(system):
    if isinstance(system.pbc, jax.core.Tracer) or not np.asarray(system.pbc).any():
        return
    raise UsageError(
        f"pbc is {np.asarray(system.pbc).tolist()}; coulomb() is for open boundaries",
        where="coulomb",
        fix="electrostatics.ewald(system, cutoff)",
    )


def most_atoms(system: System) -> int:
    """The real atoms of the largest structure (host)."""
    graph = np.asarray(system.graph)[np.asarray(system.numbers) > 0]
    return max(int(np.bincount(graph, minlength=1).max()), 1)


def all_pairs(
    system: System, charges, dipoles, kernel, largest: int, wanted=None, allowed=True
) -> jax.Array:
    """Sum over the pairs of each structure, [n_graphs]; kernel: a function of r².

    wanted [n_graphs]: structures to count, the others are zero. allowed [n_graphs]: where it is
    not so, and where there are more than `largest` atoms, the sum and its derivatives are NaN.
    """
    _refuse_domains(system)
    index, real = blocks(system, largest)
    broken = ~jnp.asarray(allowed) | too_large(system, real)
    if wanted is not None:
        real, broken = real & wanted[:, None], broken & wanted
    system = spoiled(system, broken)
    mine = lambda x: jnp.where(real.reshape(*real.shape, *[1] * (x.ndim - 1)), x[index], 0)
    positions, charges, dipoles = jax.tree.map(mine, (system.positions, charges, dipoles))
    n = index.shape[1]
    rows = max(1, min(n, PAIRS // max(n * len(index), 1)))
    energies = _by_rows(kernel, positions, charges, dipoles, real, rows)
    wide = jnp.float64 if jax.config.jax_enable_x64 else energies.dtype
    return jnp.where(broken, jnp.nan, energies.astype(wide).sum(1))


def spoiled(system: System, broken) -> System:
    """The system with NaN positions where `broken` [n_graphs].

    Derivatives are then NaN, too, in those structures and in no other; of an energy that is NaN
    because it was selected they would be finite, and wrong.
    """
    r = system.positions
    factor = jnp.where(broken, jnp.nan, 1.0).astype(r.dtype)
    return replace(system, positions=r * factor[system.graph][:, None])


def _refuse_domains(system):
    if system.edges is not None and system.edges.halo is not None:
        raise UsageError(
            "the pairs of a molecule are not spread over devices", where="coulomb", fix="one device"
        )


def _by_rows(kernel, positions, charges, dipoles, real, rows):
    """Energies of the atoms [n_graphs, n], a few rows of the pair matrix at a time."""
    n = positions.shape[1]

    @jax.checkpoint
    def some(first):
        index = first + jnp.arange(rows)
        place = jnp.minimum(index, n - 1)
        take = lambda x: None if x is None else x[:, place, None]
        vectors = positions[:, None] - take(positions)
        pair = real[:, place, None] & real[:, None] & (place[:, None] != jnp.arange(n))
        pair = pair & (index < n)[:, None]
        vectors = jnp.where(pair[..., None], vectors, 1)
        other = (charges[:, None], None if dipoles is None else dipoles[:, None])
        energy = interaction(kernel, vectors, (take(charges), take(dipoles)), other)
        return jnp.where(pair, energy, 0).sum(-1) / 2

    if rows == n:
        return some(0)
    energies = jax.lax.map(some, jnp.arange(0, n, rows))
    return jnp.moveaxis(energies, 0, 1).reshape(len(positions), -1)
