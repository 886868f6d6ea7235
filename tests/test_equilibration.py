"""Equilibration in batches, and plans that are made more than once."""

import re
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ase import Atoms
from numpy.testing import assert_allclose
from scipy.special import erfc

from jaxmlip import units
from jaxmlip.electrostatics import coulomb, equilibration, ewald, potential
from jaxmlip.errors import UsageError
from jaxmlip.interfaces.ase import from_ase
from jaxmlip.models.plans import add_long_range
from jaxmlip.potential import Potential, add_equilibration, bind
from jaxmlip.system import concatenate

DATA = Path(__file__).parents[2] / "shared" / "data" / "longrange"  # beside a checkout, if at all
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


# --- electrodes at constant potential: MetalWalls, by way of the tests of OpenMM -----------------


def table(name):
    """The numbers behind the equals signs of a file of OpenMM's."""
    lines = (DATA / f"openmm_conp_{name}.dat").read_text().splitlines()
    number = r"[-+]?\d+\.\d+(?:e[-+]\d+)?"
    return np.array([[float(x) for x in re.findall(number, line.split("=")[1])] for line in lines])


@pytest.mark.skipif(not DATA.is_dir(), reason="no ../shared/data/longrange")
@pytest.mark.parametrize(
    "name, screening, field",
    [
        ("ref_charges_tf", (0.50625, 0.225), (0, 0, 0)),
        pytest.param("ref_charges", (0, 0), (100, 50, 25), marks=pytest.mark.slow),
    ],
    ids=["thomas-fermi", "field"],
)
def test_charges_of_electrodes_beside_water_are_those_of_another_code(name, screening, field):
    """Two electrodes of 150 Gaussian charges at 100 and 200 kJ/mol/e, 222 molecules between them.

    What water, potentials and field do to a charge is its electronegativity; the Thomas-Fermi
    length squared times the density, 1/nm, is a hardness over 4 pi k. Gaussians go as
    exp(-r²/w²), w = 0.05 and 0.1 nm. The reference has 16 digits, the sums here 1e-8 of forces.
    """
    k, n, r = units.coulomb_constant, 300, 10 * table("positions")
    cell, per_mol = np.diag([30.0, 20.0, 20.0]), k / 1389.3545764  # kJ/mol by the same constant
    left, water = r[:n, 0] < 15, np.tile([-0.8476, 0.4238, 0.4238], 222)
    of = lambda first, second: np.where(left, first, second)
    whole = from_ase(Atoms("H" * len(r), r, cell=cell, pbc=True), 8.0)
    charges = np.concatenate([np.zeros(n), water])
    acting = jax.jit(potential(ewald(whole, 8.0, 1e-8)))(whole, charges)[:n]
    apart = r[:n, None] - r[n:]
    apart = np.linalg.norm(apart - np.round(apart @ np.linalg.inv(cell)) @ cell, axis=-1)
    acting = acting - k * erfc(apart / of(0.5, 1.0)[:, None]) / apart @ water  # not of points
    electrodes = Atoms(of("H", "He").tolist(), r[:n], cell=cell, pbc=True)
    system = from_ase(electrodes, 8.0)
    widths = {1: 0.5 / 2**0.5, 2: 1.0 / 2**0.5}
    solve = equilibration(ewald(system, 8.0, 1e-8), widths=widths, direct=n)
    pull = acting - per_mol * (of(100, 200) + r[:n] @ np.array(field) / 10)
    out = jax.jit(solve)(system, pull, 4 * np.pi * k * of(*screening) / 10)
    assert_allclose(out["charges"], table(name)[:, 0], atol=1e-8)
