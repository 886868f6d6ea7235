"""Ewald sums of crystals, slabs and molecules, in one call for a batch of different ones.

The short-range part runs over the edges that the model already has, the smooth part over a fixed
box of integer wavevectors (`waves`), so that energies stay smooth functions of the cell. Slabs
are exact: their smooth part has a period along the normal that is longer than its range, with the
kernel truncated so that no image is felt (`slab`). Molecules are sums over all pairs.
"""

from dataclasses import dataclass
from math import inf, pi

import jax
import jax.numpy as jnp

from jaxmlip import units
from jaxmlip.electrostatics import planning
from jaxmlip.electrostatics.coulomb import all_pairs, most_atoms, spoiled
from jaxmlip.electrostatics.kernels import InversePower, bare, interaction, less_window
from jaxmlip.electrostatics.slab import slab_cell, slab_transform, too_thick
from jaxmlip.electrostatics.solver import as_arrays, blocks, sources, too_large, within
from jaxmlip.electrostatics.waves import structure_factors, wave_response, wavevectors
from jaxmlip.errors import UsageError
from jaxmlip.system import (
    Array,
    System,
    at_receivers,
    edge_vectors,
    sum_atoms,
    sum_edges,
    sum_energies,
    to_edges,
)

GROWN = 10  # times the tolerance, in cells that have grown since the plan: more is refused


def ewald(
    system: System, cutoff: float, tolerance: float = 1e-5, *, exclude: float | None = None
) -> "Ewald":
    """Coulomb energy of crystals, slabs and molecules, planned for the structures of a batch.

    system: the batch, or a sequence of batches, with all kinds of structures to come (edges,
    cells and numbers of atoms are read). cutoff, Å: that of its edges. tolerance: relative error
    of forces, with respect to those in a liquid or a hot crystal (near equilibrium, where forces
    vanish, it is an absolute one). exclude: radius, Å, at most the cutoff, of a smooth window
    whose pairs are left to a short-range model.

    Crystals with a total charge have a neutralising background; slabs have none, and no dipole
    term (vacuum on both sides, infinitely far). Energies of slabs do not depend on the cell
    vector of the open axis; they may get thicker by one cutoff before another plan is owed.
    Raises `UsageError` where edges are missing or shorter than told, and for wires;
    `ResourceError` where the cutoff is too short for the tolerance.
    """
    return _planned(system, cutoff, tolerance, 1, units.coulomb_constant, exclude)


def inverse_power(
    system: System,
    cutoff: float,
    power: int,
    tolerance: float = 1e-5,
    *,
    exclude: float | None = None,
) -> "Ewald":
    """Sum over pairs of w_i w_j / r^power, power 1 ... 6, of crystals and molecules, as `ewald`.

    No constant in front: the unit is that of w² / Å^power. Dispersion with C6_ij = c_i c_j is
    -inverse_power(system, cutoff, 6)(system, c). Powers up to 3 have a background where the sum
    of w is not zero; for 3 the energy is then defined only up to a multiple of that sum squared.
    Slabs: `UsageError`, except for power 1.
    """
    if power not in range(1, 7):
        raise UsageError(f"power is {power!r}, must be 1, 2 ... 6", where="inverse_power")
    return _planned(system, cutoff, tolerance, power, 1.0, exclude)


@dataclass(frozen=True)
class Ewald:
    """The solver of `ewald` and `inverse_power`."""

    kernel: InversePower
    cutoff: float  # Å
    box: tuple[int, int, int]  # largest integer of a wavevector, each axis
    error: float  # of forces, relative, as estimated
    prefactor: float = 1.0
    exclude: float | None = None
    height: float = 0.0  # Å, period of slabs along their normal
    kinds: tuple[int, ...] = (3,)  # numbers of periodic axes that were planned for
    largest: int = 1  # atoms of a structure, in batches
    longest: tuple[float, ...] = (inf, inf, inf)  # Å, lattice vectors that the box serves

    def __call__(self, system: System, charges: Array, dipoles: Array | None = None) -> jax.Array:
        """[n_graphs] eV."""
        system = as_arrays(system)
        charges, dipoles = sources(system, charges, dipoles, "ewald")
        axes = system.pbc.sum(1)
        broken = _not_planned(self, system, axes)
        system = spoiled(system, broken)
        energy = jnp.zeros(system.n_graphs, charges.dtype)
        if self.kinds != (0,):
            energy = _short_range(self, system, charges, dipoles, axes > 0)
            energy = energy + _smooth(self, system, charges, dipoles, axes)
        if 0 in self.kinds:
            pairs = bare(self.kernel.power, self.exclude)
            energy = energy + all_pairs(
                system, charges, dipoles, pairs, self.largest, wanted=axes == 0
            )
        return self.prefactor * jnp.where(broken, jnp.nan, energy)


def _not_planned(plan, system, axes):
    """[n_graphs] True where the sums would be wrong; empty structures are always right."""
    full = sum_atoms(system, jnp.ones_like(system.positions[:, 0])) > 0
    unknown = full & ~jnp.stack([axes == k for k in plan.kinds]).any(0)
    if plan.kinds == (0,):
        return unknown
    index, real = blocks(system, plan.largest)
    broken = unknown | ~within(system, plan.longest, "ewald") | too_large(system, real)
    if 2 in plan.kinds:
        sites, cell = system.positions[index], _cells(plan, system, axes)[0]
        broken |= too_thick(sites, real, cell, system.pbc, axes, plan.cutoff, plan.height)
    return broken & (axes > 0) | unknown


def _planned(system, cutoff, tolerance, power, prefactor, exclude):
    batches = system if isinstance(system, list | tuple) else [system]
    _check_numbers(cutoff, tolerance, exclude)
    kinds, structures = set(), []
    for batch in batches:
        planning.check_concrete(batch, "ewald")
        axes = planning.kinds_of(batch)
        kinds |= {int(k) for k in axes[planning.occupied(batch)]}
        if axes.any():
            planning.check_edges(batch, cutoff)
            structures += planning.periodic_structures(batch, cutoff)
    if power != 1 and 2 in kinds:
        raise UsageError(f"slabs with 1/r^{power} have no exact sum here", where="inverse_power")
    return Ewald(
        prefactor=prefactor,
        exclude=exclude,
        kinds=tuple(sorted(kinds)) or (0,),
        largest=max(most_atoms(batch) for batch in batches),
        cutoff=float(cutoff),
        **_splitting(structures, float(cutoff), tolerance, power),
    )


def _splitting(structures, cutoff, tolerance, power):
    if not structures:
        return {"kernel": InversePower(power, 1.0), "box": (1, 1, 1), "error": 0.0}
    target = {"power": power, "tolerance": tolerance / 2}
    alpha = planning.splitting(structures, cutoff=cutoff, **target)
    longest = planning.longest_wave(structures, alpha=alpha, **target)
    least = planning.longest_wave(
        structures, power=power, alpha=alpha, tolerance=GROWN * tolerance / 2
    )
    open_heights = [s.height for s in structures if s.open_axis is not None]
    height = 2 * (max(open_heights) + 2 * cutoff) if open_heights else 0.0
    box = planning.wave_box(structures, longest, height)
    return {
        "kernel": InversePower(power, alpha),
        "box": box,
        "longest": tuple(2 * pi * (n + 1) / least for n in box),
        "error": tolerance / 2**0.5,
        "height": height,
    }


def _check_numbers(cutoff, tolerance, exclude):
    for name, value, limits in (
        ("cutoff", cutoff, (0, float("inf"))),
        ("tolerance", tolerance, (1e-15, 0.1)),
        ("exclude", cutoff if exclude is None else exclude, (0, cutoff)),
    ):
        if not limits[0] < value <= limits[1]:
            raise UsageError(
                f"{name} is {value}, must be in {limits[0]} ... {limits[1]}", where="ewald"
            )


# --- the two parts -------------------------------------------------------------------------------


def _short_range(plan, system, charges, dipoles, periodic):
    """Edges within the cutoff, less what the smooth part adds to atoms where they are."""
    kernel = plan.kernel
    energies = edge_energies(
        system,
        charges,
        dipoles,
        less_window(kernel.short, kernel.power, plan.exclude),
        plan.cutoff,
    )
    energies = energies - kernel.self_charge / 2 * charges**2
    if dipoles is not None:
        energies = energies - kernel.self_dipole / 2 * (dipoles**2).sum(-1)
    return sum_energies(system, jnp.where(periodic[system.graph], energies, 0))


def edge_energies(system: System, charges, dipoles, kernel, cutoff: float) -> jax.Array:
    """Half of each pair within the cutoff to each of its atoms, [n_atoms].

    kernel: a function of r² (Å²). `system` as from `as_arrays`, charges as from `sources`.
    """
    vectors = edge_vectors(system)
    site = lambda take: (take(charges), None if dipoles is None else take(dipoles))
    senders = site(lambda x: to_edges(system, x))
    receivers = site(lambda x: at_receivers(system, x))
    energy = interaction(kernel, vectors, senders, receivers)
    near = (vectors**2).sum(-1) < cutoff**2
    return sum_edges(system, jnp.where(near, energy, 0)) / 2


def _smooth(plan, system, charges, dipoles, axes):
    """The rest of the kernel over wavevectors, and its value at k = 0."""
    index, real = blocks(system, plan.largest)
    real = real & (axes > 0)[:, None]
    take = lambda x: None if x is None else jnp.where(_wide(real, x[index]), x[index], 0)
    cell, volume = _cells(plan, system, axes)
    sites = take(system.positions), take(charges), take(dipoles)
    transform = _transform(plan, system, cell, volume, axes)
    cosines, sines = structure_factors(system, *sites, cell, plan.box)
    m, often = wavevectors(cell, plan.box)
    weights = often * transform(m)
    energy = _sum_waves(weights * (cosines**2 + sines**2))
    if system.wave is not None:
        energy = energy + wave_response(system, *sites, cell, plan.box, transform)
    total = sum_atoms(system, charges)
    background = plan.kernel.background / 2 * jnp.where(axes == 3, total**2 / volume, 0)
    return energy + jnp.where(axes > 0, background, 0)


def _wide(mask, x):
    return mask.reshape(mask.shape + (1,) * (x.ndim - mask.ndim))


def _cells(plan, system, axes):
    """Cells with a volume for every structure, and that volume."""
    cell = jnp.where((axes > 0)[:, None, None], system.cell, jnp.eye(3, dtype=system.cell.dtype))
    if 2 in plan.kinds:
        cell = slab_cell(cell, system.pbc, axes, plan.height)
    return cell, jnp.abs(jnp.linalg.det(cell))


def _transform(plan, system, cell, volume, axes):
    """A function of integer wavevectors [..., 3]: transform of the kernel / volume, 0 at k = 0.

    -> [n_graphs, ...]
    """
    reciprocal = 2 * jnp.pi * jnp.linalg.inv(cell).swapaxes(-1, -2)

    def transform(m):
        k = jnp.einsum("...a,gab->g...b", m, reciprocal, precision=jax.lax.Precision.HIGHEST)
        k2 = (k**2).sum(-1)
        zero = (m == 0).all(-1)
        value = plan.kernel.smooth(jnp.where(zero, 1.0, k2))
        if 2 in plan.kinds:
            slab = slab_transform(plan.kernel.alpha, m, k, system.pbc, plan.height)
            value = jnp.where(_wide(axes == 2, value), slab, jnp.where(zero, 0, value))
        else:
            value = jnp.where(zero, 0, value)
        value = jnp.where(_wide(axes > 0, value), value, 0)
        return value / _wide(volume, value)

    return transform


def _sum_waves(values):
    """[n_graphs, ...] -> [n_graphs], one axis after the other: short sums round less."""
    wide = jnp.float64 if jax.config.jax_enable_x64 else values.dtype
    while values.ndim > 2:
        values = values.sum(-1)
    return values.astype(wide).sum(-1)
