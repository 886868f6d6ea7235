"""Equilibration in batches, and plans that are made more than once."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ase import Atoms
from numpy.testing import assert_allclose

from jaxmlip import units
from jaxmlip.electrostatics import coulomb, equilibration
from jaxmlip.errors import UsageError
from jaxmlip.interfaces.ase import from_ase
from jaxmlip.models.plans import add_long_range
from jaxmlip.potential import Potential, add_equilibration, bind
from jaxmlip.system import concatenate

CHI, HARDNESS = jnp.array([2.8, 8.5] * 3), jnp.array([9.2, 9.8] * 3)


def pair(distance, element="Cl"):
    return Atoms(f"Na{element}", [[0, 0, 0], [0, 0, distance]])


@pytest.mark.parametrize("direct", [256, pytest.param(0, marks=pytest.mark.slow)])
def test_a_structure_without_a_minimum_is_nan_and_leaves_the_others_alone(direct):
    near = 2.4
    batch = concatenate([from_ase(pair(d), 3.0) for d in (near, 0.5, near)])
    solve = equilibration(coulomb(batch), direct=direct)

    @jax.jit
    def slope(r):
        def energy(r):
            out = solve(replace(jax.tree.map(jnp.asarray, batch), positions=r), CHI, HARDNESS)
            return out["energy"].sum(), out

        return jax.grad(energy, has_aux=True)(r)

    by_r, out = slope(jnp.asarray(batch.positions))
    a = units.coulomb_constant / near
    q = (8.5 - 2.8) / (9.2 + 9.8 - 2 * a)  # least of (chi1 - chi2) q + (J1 + J2) q²/2 - a q²
    energy, force = -0.5 * (8.5 - 2.8) * q, a / near * q**2
    assert_allclose(out["energy"], [energy, np.nan, energy], rtol=1e-12)
    assert_allclose(out["charges"], [q, -q, np.nan, np.nan, q, -q], rtol=1e-12)
    assert_allclose(by_r[:, 2], [-force, force, np.nan, np.nan, -force, force], rtol=1e-12)


def test_equal_atoms_at_a_saddle_are_refused_though_nothing_pulls_at_them():
    solve = jax.jit(equilibration(coulomb()))
    out = solve(from_ase(pair(0.5, "Na"), 3.0), jnp.full(2, 2.8), jnp.full(2, 9.2))
    assert np.isnan(out["energy"]).all() and np.isnan(out["charges"]).all()


def test_gaussian_charges_without_edges_are_refused():
    system = replace(from_ase(pair(2.4), 3.0), edges=None)
    with pytest.raises(UsageError, match="no edges"):
        equilibration(coulomb(), widths={11: 1.0, 17: 1.0})(system, CHI[:2], HARDNESS[:2])


def test_a_dipole_beside_equilibrated_charges_is_refused_and_not_coupled_twice():
    out = {"energy": jnp.zeros(1), "electronegativities": CHI[:2], "hardnesses": HARDNESS[:2]}
    model = Potential(None, lambda params, system: out | {"dipole": jnp.zeros((1, 3))}, 3.0)
    with pytest.raises(UsageError, match="dipole of its own"):
        add_equilibration(model, equilibration(coulomb())).apply({}, from_ase(pair(2.4), 3.0))


@pytest.mark.parametrize("method", ["ewald", "pme", "coulomb"])
def test_a_bound_potential_can_be_bound_to_other_cells(method):
    bare = Potential(lambda key, system: {}, lambda params, system: {}, 4.0)
    potential = add_long_range(bare, {"electrostatics": {"method": method, "tolerance": 1e-3}})
    atoms, copies = pair(2.4), 1
    if method != "coulomb":
        atoms, copies = Atoms(atoms, cell=[5, 5, 5], pbc=True), 3
    small, large = (from_ase(atoms.repeat(n), 4.0) for n in (1, copies))
    bound = bind(potential, small)
    assert bound.plan is not None
    again, fresh = bind(bound, large), bind(potential, large)
    solver_of = lambda p: next(
        c.cell_contents for c in p.apply.__closure__ if hasattr(c.cell_contents, "exclude")
    )
    assert solver_of(again) == solver_of(fresh)
