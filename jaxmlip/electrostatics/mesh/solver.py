"""The solvers: `pme` and `p3m` plan on the host, `Mesh` is the pure function that they return."""

from collections.abc import Callable
from dataclasses import dataclass
from math import inf

import jax
import jax.numpy as jnp

from jaxmlip import units
from jaxmlip.electrostatics.coulomb import spoiled
from jaxmlip.electrostatics.ewald import GROWN, edge_energies
from jaxmlip.electrostatics.kernels import inverse_power, window
from jaxmlip.electrostatics.mesh import planning
from jaxmlip.electrostatics.mesh.reciprocal import mesh_energy, reciprocal_cell
from jaxmlip.electrostatics.mesh.short_range import pair_energy
from jaxmlip.electrostatics.mesh.splines import optimal_factors, smooth_factors
from jaxmlip.electrostatics.mesh.splits import Split, prolate
from jaxmlip.electrostatics.solver import as_arrays, sources, within
from jaxmlip.errors import UsageError
from jaxmlip.system import Array, System, sum_atoms, sum_energies


@dataclass(frozen=True)
class Mesh:
    """A planned particle-mesh Ewald sum; static under `jit`."""

    split: Split
    shape: tuple[int, int, int]  # mesh points along the cell vectors, for every structure
    order: int  # of the splines: order - 2 continuous derivatives
    factors: Callable  # (n, order) -> [n], what undoes the spreading along one axis
    error: float  # relative, as estimated: of forces, or of the worse of them and Hessians
    exclude: float | None = None
    longest: tuple[float, ...] = (inf, inf, inf)  # Å, lattice vectors that the mesh serves

    @property
    def cutoff(self) -> float:
        """Å"""
        return self.split.cutoff

    def __call__(self, system: System, charges: Array, dipoles: Array | None = None) -> jax.Array:
        """[n_graphs] eV; NaN for structures with atoms and an open axis.

        Displacements with a wavevector do not fit on the mesh: `UsageError`, or NaN where only
        charges are asked for (Born charges).
        """
        _check_whole(system)
        if system.wave is not None:
            return _nowhere(as_arrays(system), charges, dipoles)
        system = as_arrays(system)
        charges, dipoles = sources(system, charges, dipoles, "mesh")
        full = sum_atoms(system, jnp.ones_like(charges)) > 0
        open_ = full & ~system.pbc.all(1)
        broken = open_ | ~within(system, self.longest, "mesh")
        system = spoiled(system, broken)
        energy = self._edges(system, charges, dipoles)
        energy = energy + mesh_energy(self, system, charges, dipoles)
        energy = energy + self._at_atoms(system, charges, dipoles)
        return units.coulomb_constant * jnp.where(broken, jnp.nan, energy)

    def short(self, r2):
        """(value, derivative) of the pair term with respect to r² in Å²."""
        value, slope = self.split.short(r2)
        if self.exclude is None:
            return value, slope
        inside = r2 < self.exclude**2
        r2 = jnp.where(inside, r2, self.exclude**2)
        left_out = lambda x: window(x, self.exclude) * inverse_power(x, 1)
        less, less_slope = jax.jvp(left_out, (r2,), (jnp.ones_like(r2),))
        return value - jnp.where(inside, less, 0), slope - jnp.where(inside, less_slope, 0)

    def _edges(self, system, charges, dipoles):
        if dipoles is None:
            return pair_energy(self.short, system, charges)
        kernel = lambda r2: self.short(r2)[0]
        return sum_energies(system, edge_energies(system, charges, dipoles, kernel, self.cutoff))

    def _at_atoms(self, system, charges, dipoles):
        """What the mesh adds to an atom where it is, and the background of charged cells."""
        own = -0.5 * self.split.at_zero * charges**2
        if dipoles is not None:
            own = own + self.split.curvature * (dipoles**2).sum(-1)
        volume = reciprocal_cell(system.cell)[1]
        total = sum_atoms(system, charges)
        return sum_energies(system, own) - 0.5 * self.split.volume * total**2 / volume


def pme(
    system: System,
    cutoff: float,
    tolerance: float = 1e-4,
    *,
    charges: Array | None = None,
    dipoles: Array | float | None = None,
    order: int | None = None,
    exclude: float | None = None,
    split: Callable = prolate,
    derivatives: int = 1,
) -> Mesh:
    """Smooth particle-mesh Ewald for crystals and liquids, planned for the structures of a batch.

    system: the batch, or a sequence of batches, with all kinds of structures to come. cutoff, Å:
    that of its edges. tolerance: relative error of forces, |F - F_exact| / |F_exact| over a
    structure; where forces nearly vanish (a crystal at rest), relative to those of a hot one.
    charges, e: representative ones for `system`, which tell the size of forces better; without
    them they are guessed from the elements. dipoles, e Å: representative ones [n_atoms, 3], or
    how long they are, which need a finer mesh; without them the plan is for charges. order: 4, 6 or
    8 of the splines (default: the cheaper of 6 and 8); second derivatives want 6, third ones 8.
    exclude: radius, Å, of a smooth window whose pairs are left to a short-range model. split:
    `prolate` or `gaussian`. derivatives: 2 for a Hessian, too, within the tolerance of its own
    size; else its relative error is up to ten times that of forces, for what is wrong on a mesh
    are its shortest waves.

    Charged cells have a neutralising background. All structures share one mesh, so a batch should
    hold cells of similar size. Raises `UsageError` for slabs, wires and molecules, and where edges
    are missing; `ResourceError` where the mesh would be too large.
    """
    options = {"order": order, "exclude": exclude, "split": split}
    options |= {"charges": charges, "dipoles": dipoles, "derivatives": derivatives}
    return _planned(system, cutoff, tolerance, "pme", smooth_factors, **options)


def p3m(
    system: System,
    cutoff: float,
    tolerance: float = 1e-4,
    *,
    charges: Array | None = None,
    dipoles: Array | float | None = None,
    order: int | None = None,
    exclude: float | None = None,
    split: Callable = prolate,
    derivatives: int = 1,
) -> Mesh:
    """`pme` with the influence function of least error; arguments and errors are the same.

    Forces differ by a few per cent of their error, energies are closer by one or two digits.
    """
    options = {"order": order, "exclude": exclude, "split": split}
    options |= {"charges": charges, "dipoles": dipoles, "derivatives": derivatives}
    return _planned(system, cutoff, tolerance, "p3m", optimal_factors, **options)


def _planned(
    system,
    cutoff,
    tolerance,
    where,
    factors,
    *,
    charges,
    dipoles,
    order,
    exclude,
    split,
    derivatives,
):
    planning.check_options(cutoff, tolerance, order, exclude, split, derivatives, where)
    structures = planning.structures(system, cutoff, charges, where, dipoles, derivatives)
    order, shape, width, error = planning.cheapest(
        structures,
        cutoff=float(cutoff),
        tolerance=tolerance,
        orders=(order,) if order else (6, 8),
        split=split,
        where=where,
    )
    spacing = max(float((s.lengths / shape).max()) for s in structures)
    spacing *= GROWN ** (1 / order)  # errors go with its power `order`
    # of the tables: two more derivatives, those of dipoles, lose two digits
    share = 1e-6 if any(s.pair_dipoles for s in structures) else 1e-4
    return Mesh(
        longest=tuple(n * spacing for n in shape),
        split=split(width, float(cutoff), accuracy=max(share * tolerance, 1e-13)),
        shape=shape,
        order=order,
        factors=factors,
        error=error,
        exclude=exclude,
    )


def _nowhere(system, charges, dipoles):
    """NaN [n_graphs] that depends on all: the slopes of a constant would be zero, and wrong."""
    charges, dipoles = sources(system, charges, dipoles, "mesh")
    given = charges if dipoles is None else charges + dipoles.sum(-1)
    return jnp.nan * sum_atoms(system, (given * system.positions.sum(-1)) ** 2)


def _check_whole(system):
    if system.wave is not None and not getattr(system.wave, "only_charges", False):
        raise UsageError(
            "displacements with a wavevector do not fit on the mesh",
            where="pme",
            fix="electrostatics.ewald(system, cutoff)",
        )
    if system.edges is not None and system.edges.halo is not None:
        raise UsageError(
            "the mesh is not spread over devices",
            where="pme",
            fix="electrostatics.ewald(system, cutoff), or one device",
        )
