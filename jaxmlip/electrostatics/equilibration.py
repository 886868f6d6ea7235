"""Charge equilibration: the charges that make the energy of a structure least.

    E(q) = sum chi q + 1/2 J q² + electrostatic energy of q - field . sum q r,   sum q = Q

with electronegativities chi and hardnesses J > 0 of the atoms (Rappé and Goddard 1991,
10.1021/j100161a070). Any solver gives the electrostatic energy: it is quadratic in the charges, so
its gradient at q is the matrix A of the interactions times q, and A is never needed otherwise.

The energy is the least one, so its slope is the slope at fixed charges (Hellmann and Feynman):
forces cost no second solve. Derivatives of the charges, and with them second and higher ones of
the energy, are implicit (`lax.custom_linear_solve`), to any order.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from math import pi, sqrt

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import erfc

from jaxmlip import units
from jaxmlip.electrostatics.linear import conjugate_gradients, factorised
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

WIDE = 5.5  # Gaussians so many sqrt(2) widths apart are points, to 4e-8 of 1/r


def equilibration(
    solver: Callable,
    *,
    widths: dict[int, float] | None = None,
    tolerance: float = 1e-10,
    steps: int = 200,
    direct: int = 256,
) -> "Equilibration":
    """(system, electronegativities, hardnesses) -> charges of least energy.

    widths: {atomic number: Å}, standard deviations of Gaussian charges; without them charges are
    points, which needs hardnesses that hold against their attraction; other elements then give NaN.
    tolerance: of the slopes, relative to those of even charges. Batches of up to `direct` atoms are
    solved by a Cholesky factorisation, larger ones by conjugate gradients with at most `steps`
    steps. Edges of the system: within `.cutoff` of the result, which `add_equilibration` sees to.

    The result has `energy` [n_graphs] eV (all terms above), `charges`, `dipole` = -dE/dfield (NaN
    along periodic axes, where charges that flow across the cell have none) and `charge_residual`
    [n_graphs] eV/e. Where the energy has no minimum (J + A is not positive), or `steps` were too
    few, energy and charges are NaN.
    """
    pairs = None if widths is None else tuple(sorted((int(z), float(w)) for z, w in widths.items()))
    found = Equilibration(solver, pairs, float(tolerance), int(steps), int(direct))
    _check(found)
    return found


@dataclass(frozen=True)
class Equilibration:
    """Made by `equilibration`; hashable, so it may be static under `jit`."""

    solver: Callable
    widths: tuple[tuple[int, float], ...] | None
    tolerance: float
    steps: int
    direct: int

    @property
    def cutoff(self) -> float:
        """Of the edges, Å: those of the solver, and all pairs of charges that overlap."""
        widest = 0.0 if self.widths is None else max(w for _, w in self.widths)
        return max(getattr(self.solver, "cutoff", None) or 0.0, WIDE * sqrt(2) * widest)

    def __call__(self, system: System, electronegativities: Array, hardnesses: Array) -> dict:
        """`energy`, `charges`, `dipole`, `charge_residual`."""
        _check_system(system, self.widths)
        mask = jnp.asarray(system.atom_mask)
        real = lambda x, other: jnp.where(mask, jnp.asarray(x), other)
        given = jax.tree.map(jnp.asarray, system), real(electronegativities, 0), real(hardnesses, 1)
        charges, residual, sound = _least_charges(self, given)
        # NaN charges: energy and forces are then NaN in their structure, and in no other
        charges = charges * jnp.where(sound, 1.0, jnp.nan).astype(charges.dtype)[given[0].graph]
        return {
            "energy": _least_energy(self, given, charges),
            "charges": jnp.where(mask, charges, 0),
            "dipole": _dipole(given[0], charges),
            "charge_residual": residual,
        }


def _check(e: Equilibration):
    where = "equilibration"
    if not (0 < e.tolerance < 1 and e.steps > 0):
        what = f"tolerance is {e.tolerance} and steps {e.steps}"
        raise UsageError(what, where=where, fix="0 < tolerance < 1 and steps > 0")
    if e.widths is None:
        return
    if min(w for _, w in e.widths) <= 0:
        raise UsageError(f"widths must be above 0, got {dict(e.widths)}", where=where)


def _check_system(system, widths):
    if system.wave is not None:
        raise UsageError(
            "equilibrated charges follow a wave through all cells, which the doors of one "
            "primitive cell cannot carry",
            where="equilibration",
            fix="for D(q) derivatives.dynamical_matrix_supercell; crystals of charges that flow to "
            "anywhere have no Born charges and no current",
        )
    if system.edges is not None and system.edges.halo is not None:
        raise UsageError("the system is spread over devices", where="equilibration")
    if system.edges is None and widths is not None:
        raise UsageError(
            "the system has no edges: Gaussian charges that overlap are found along them",
            where="equilibration",
            fix="jaxmlip.from_ase(atoms, cutoff) with the result's .cutoff",
        )


# --- the energy as a function of charges; given = (system, electronegativities, hardnesses) ------


def _energy(e: Equilibration, given, q):
    """E(q), [n_graphs] eV."""
    system, chi, _ = given
    linear = sum_energies(system, chi * q)
    work = (jnp.where(system.pbc, 0, system.field) * _moment(system, q)).sum(-1)
    unknown = _unknown_along_cell(system.field, system.pbc).sum(-1)
    return linear - work + unknown + _quadratic(e, given, q)


def _quadratic(e: Equilibration, given, q):
    """1/2 q (J + A) q, [n_graphs] eV."""
    system, _, hardness = given
    own = 0.5 * hardness * q * q
    if e.widths is not None:
        own = own + _spread(system, e.widths, q)
    energy = e.solver(system, q)
    return sum_energies(system, own).astype(energy.dtype) + energy


def _spread(system, widths, q):
    """What Gaussian charges have more than points, [n_atoms]: their own energy, less overlap."""
    table = np.full(120, np.nan)
    table[0] = 1.0
    for number, width in widths:
        table[number] = width
    width = jnp.asarray(table, q.dtype)[system.numbers]
    own = q * q / (2 * sqrt(pi) * width)
    r = jnp.linalg.norm(edge_vectors(system), axis=-1)
    both = jnp.sqrt(2 * (to_edges(system, width) ** 2 + at_receivers(system, width) ** 2))
    overlap = sum_edges(system, to_edges(system, q) * erfc(r / both) / r)
    return units.coulomb_constant * (own - 0.5 * q * overlap)


def _moment(system, q):
    return sum_atoms(system, q[:, None] * system.positions)


def _dipole(system, q):
    return _moment(system, q) * jnp.where(system.pbc, jnp.nan, 1.0).astype(q.dtype)


@jax.custom_jvp
def _unknown_along_cell(field, pbc):
    """0; along periodic axes NaN with a field, and NaN slopes: its work is not known, not zero."""
    return jnp.where(pbc & (field != 0), jnp.nan, 0).astype(field.dtype)


@_unknown_along_cell.defjvp
def _(primals, tangents):
    slope = jnp.where(primals[1], jnp.nan, 0).astype(primals[0].dtype)
    return _unknown_along_cell(*primals), tangents[0] * slope


# --- the minimum ---------------------------------------------------------------------------------


def _least_charges(e: Equilibration, given):
    """q of least E, [n_atoms], its residual [n_graphs] eV/e, and whether q is what it should be.

    Even charges, and a change whose sum is zero: the matrix is J + A between two projections,
    and the unit matrix on what they take away, so that it is positive where J + A is.
    """
    system = given[0]
    start = _even(system)
    change = lambda x: _without_mean(system, x)
    matrix = partial(_product, e)
    held = lambda given: lambda x: change(matrix(given, change(x))) + (x - change(x))
    pull = -change(_slope_of_linear(given) + matrix(given, start))
    fixed = jax.lax.stop_gradient(given)
    solve, positive = _solve(e, fixed, held(fixed), change)
    moved = jax.lax.custom_linear_solve(held(given), pull, solve, symmetric=True)
    rest = jax.lax.stop_gradient(pull) - held(fixed)(jax.lax.stop_gradient(moved))
    residual, small = _soundness(e, fixed, pull, moved, rest)
    return start + change(moved), residual, small & positive


def _slope_of_linear(given):
    """chi - field . r, [n_atoms] V; a field along a periodic axis does not act."""
    system, chi, _ = given
    field = jnp.where(system.pbc, 0, system.field)[system.graph]
    return jnp.where(system.atom_mask, chi - (field * system.positions).sum(-1), 0)


@partial(jax.jit, static_argnums=0)
def _product(e: Equilibration, given, q):
    """(J + A) q, [n_atoms]; traced once for all its uses."""
    return jax.grad(lambda q: _quadratic(e, given, q).sum())(q)


def _solve(e: Equilibration, fixed, product, change):
    """(product, b) -> x for `custom_linear_solve`, which asks for no derivatives of it.

    And where J + A was seen to be positive: conjugate gradients do not look.
    """
    system, _, hardness = fixed
    if system.n_atoms <= e.direct:
        solve, positive = factorised(system, product)
        return lambda _, b: solve(b), positive
    solve = lambda product, b: conjugate_gradients(
        product,
        b,
        sums=lambda x: sum_atoms(system, x),
        spread=lambda x: x[system.graph],
        precondition=lambda x: change(change(x) / hardness) + (x - change(x)),
        tolerance=_tolerance(e, b.dtype),
        steps=e.steps,
    )
    return solve, True


def _soundness(e: Equilibration, fixed, pull, moved, rest):
    """(residual [n_graphs] eV/e: rms of dE/dq without its mean, whether it is small)."""
    system, _, hardness = fixed
    count = jnp.maximum(sum_atoms(system, jnp.ones_like(rest)), 1)
    rms = lambda x: jnp.sqrt(sum_atoms(system, jax.lax.stop_gradient(x) ** 2) / count)
    residual = rms(rest)
    scale = 1 + rms(pull) + rms(hardness * moved)
    return residual, residual <= 100 * _tolerance(e, rest.dtype) * scale


def _tolerance(e, dtype) -> float:
    return max(e.tolerance, 20 * float(jnp.finfo(dtype).eps))


def _even(system):
    """The charge of each structure, spread evenly."""
    ones = jnp.where(system.atom_mask, 1, 0).astype(system.positions.dtype)
    share = system.charge / jnp.maximum(sum_atoms(system, ones), 1)
    return ones * share[system.graph].astype(ones.dtype)


def _without_mean(system, x):
    ones = jnp.where(system.atom_mask, 1, 0).astype(x.dtype)
    mean = sum_atoms(system, x) / jnp.maximum(sum_atoms(system, ones), 1)
    return ones * (x - mean[system.graph])


# --- the least energy, whose slope is that at fixed charges --------------------------------------


def _least_energy(e: Equilibration, given, q):
    @jax.custom_jvp
    def least(given, q):
        return _energy(e, given, q)

    def slope(primals, tangents):
        (given, q), (change, _) = primals, tangents
        _, out = _jvp_of_moving(lambda g: _energy(e, g, q), given, change)
        if not _is_zero(change[0].charge):
            # charge that comes to a structure brings dE/dq
            out = out + (_level(e, given, q) * change[0].charge).astype(out.dtype)
        return least(given, q), out

    least.defjvp(slope, symbolic_zeros=True)
    return least(given, q)


def _level(e: Equilibration, given, q):
    """dE/dQ of each structure: dE/dq, which is the same for all of its atoms."""
    system = given[0]
    count = jnp.maximum(sum_atoms(system, jnp.ones_like(q)), 1)
    return sum_atoms(system, _slope_of_linear(given) + _product(e, given, q)) / count


def _is_zero(tangent):
    return isinstance(tangent, jax.custom_derivatives.SymbolicZero)


def _jvp_of_moving(function, tree, tangents):
    """`jax.jvp` along the leaves that do move: a slope that is NaN times zero would be NaN."""
    leaves, shape = jax.tree.flatten(tree)
    along = jax.tree.leaves(tangents, is_leaf=_is_zero)
    moving = [i for i, t in enumerate(along) if not _is_zero(t)]

    def of_moving(*values):
        new = dict(zip(moving, values, strict=True))
        return function(shape.unflatten([new.get(i, x) for i, x in enumerate(leaves)]))

    pick = lambda x: tuple(x[i] for i in moving)
    if not moving:  # only the charge of a structure, which has a slope of its own
        value = function(tree)
        return value, jnp.zeros_like(value)
    return jax.jvp(of_moving, pick(leaves), pick(along))
