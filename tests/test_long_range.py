"""Long-range terms inside models: charges are conserved, all derivatives are of one energy."""

from dataclasses import replace
from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk
from numpy.testing import assert_allclose
from structures import KEY, ethanol, rattled, toy, triclinic

import jaxmlip
from jaxmlip import models, units
from jaxmlip.derivatives import dynamical_matrix_supercell
from jaxmlip.derivatives.first import total_energy
from jaxmlip.electrostatics import bonded_fragments, coulomb, ewald, inverse_power, pme
from jaxmlip.electrostatics.equilibration import equilibration
from jaxmlip.errors import ModelError, NumericalError, UsageError
from jaxmlip.interfaces.ase import from_ase
from jaxmlip.interfaces.calculator import PotentialCalculator
from jaxmlip.models import checkpoint, plans
from jaxmlip.neighbors import edges_within
from jaxmlip.nn.charges import Transfers, flow, share_charge
from jaxmlip.nn.readout import conserve_charge
from jaxmlip.potential import (
    Potential,
    add_dispersion,
    add_electrostatics,
    add_equilibration,
    add_field,
    bind,
    conserve_fragments,
)
from jaxmlip.system import (
    concatenate,
    edge_vectors,
    pad,
    strain,
    sum_atoms,
    sum_edges,
    sum_energies,
    to_edges,
)

STEP = 2e-5  # Å; differences then err by 1e-10 of third derivatives, and by 1e-9 of rounding
SALT = {
    "elements": [11, 17],
    "cutoff": 4.0,
    "channels": 4,
    "l_max": 1,
    "correlation": 2,
    "radial_widths": [4],
    "smoothness": 4,  # derivatives are compared across the cutoff
}
WIDTHS = {1: 0.4, 6: 0.6, 8: 0.5}


def salt():
    """Rock salt, distorted: two atoms, each the other's neighbour many times."""
    atoms = bulk("NaCl", "rocksalt", a=5.2)
    atoms.set_cell(np.asarray(atoms.cell) @ (np.eye(3) + 0.03 * np.arange(9).reshape(3, 3) / 8))
    return rattled(atoms, 0.1)


def on_device(system):
    return jax.tree.map(jnp.asarray, system)


def energy_of(potential, params, system):
    return jax.jit(potential.apply)(params, system)["energy"]


def derivative_errors(apply, params, system):
    """Largest deviations of the slope and of the curvature along one random direction.

    Positions and strain move together; one compiled program for all.
    """
    rng = np.random.default_rng(0)
    along = on_device((rng.normal(size=(system.n_atoms, 3)), 0.1 * rng.normal(size=(3, 3))[None]))

    @jax.jit
    def slope(x):
        def energy(shift, epsilon):
            moved = replace(system, positions=system.positions + shift)
            return apply(params, strain(moved, epsilon))["energy"].sum()

        at = jax.value_and_grad(lambda x: energy(*x))
        return jax.jvp(at, (x,), (along,))

    def dot(tree):
        return sum(float((a * b).sum()) for a, b in zip(tree, along, strict=True))

    zero = jax.tree.map(jnp.zeros_like, along)
    move = lambda h: slope(jax.tree.map(lambda x: h * x, along))
    (_, gradient), (_, curvature) = slope(zero)
    (after, g1), _ = move(STEP)
    (before, g0), _ = move(-STEP)
    difference = jax.tree.map(lambda a, b: (a - b) / (2 * STEP), g1, g0)
    errors = jax.tree.map(lambda a, b: float(jnp.abs(a - b).max()), curvature, difference)
    return abs(dot(gradient) - float(after - before) / (2 * STEP)), max(errors)


# --- charges -------------------------------------------------------------------------------------


def test_electrostatics_adds_the_energy_of_the_charges_and_nothing_else():
    system, model = from_ase(ethanol(), 4.0), toy()
    sum_of = add_electrostatics(model, coulomb())
    before, after = jax.jit(lambda s: (model.apply({}, s), sum_of.apply({}, s)))(system)
    q, r = np.asarray(before["charges"]), system.positions
    i, j = np.triu_indices(len(q), 1)
    expected = units.coulomb_constant * (q[i] * q[j] / np.linalg.norm(r[i] - r[j], axis=1)).sum()
    assert_allclose(after["energy"] - before["energy"], expected, rtol=1e-12)
    assert_allclose(after["energies"], before["energies"], rtol=0)


def test_a_potential_without_charges_is_refused_by_name():
    model = models.LennardJones()
    system = from_ase(Atoms("Ar2", [[0, 0, 0], [0, 0, 3.8]]), model.cutoff)
    with pytest.raises(UsageError, match="charges"):
        jax.eval_shape(add_electrostatics(model, coulomb()).apply, {}, system)
    with pytest.raises(UsageError, match="electronegativities"):
        jax.eval_shape(add_equilibration(model, equilibration(coulomb())).apply, {}, system)


def test_dispersion_is_the_sum_over_pairs_beyond_the_window():
    system = from_ase(Atoms("Ar3", [[0, 0, 0], [0, 0, 5.0], [0, 0, 12.0]]), 4.0)
    roots = jnp.array([2.0, 3.0, 5.0])
    nothing = lambda params, s: {"energy": jnp.zeros(1), "dispersion_coefficients": roots}
    model = Potential(lambda key, s: {}, nothing, 4.0)
    tail = inverse_power(system, 4.0, 6, 1e-4, exclude=4.0)
    energy = energy_of(add_dispersion(model, tail), {}, system)
    assert_allclose(energy, -(6 / 5.0**6 + 15 / 7.0**6 + 10 / 12.0**6), rtol=1e-12)


def test_shared_charge_goes_by_weights_and_structures_keep_theirs():
    one = from_ase(Atoms("HF", [[0, 0, 0], [0, 0, 0.9]], info={"charge": 1.0}), 3.0)
    batch = on_device(pad(concatenate([one, from_ase(ethanol(), 3.0)]), n_atoms=14, n_graphs=3))
    weights = jnp.arange(1.0, 15.0)
    q = jax.jit(share_charge)(batch, jnp.full(14, 0.3), weights)
    assert_allclose([q[:2].sum(), q[2:11].sum()], [1, 0], atol=1e-14)
    assert_allclose((q - 0.3)[:2], 0.4 * weights[:2] / 3, atol=1e-14)
    assert not q[11:].any()


def ion_pair(distance):
    """OH- and H3O+ that far apart, on purpose not in the order of the ions, and each alone."""
    hydroxide = Atoms("OH", [[0, 0, 0], [0, 0.1, 0.96]], info={"charge": -1})
    hydronium = Atoms("OH3", [[0, 0, 0.1], [0.9, 0.1, -0.2], [-0.5, 0.8, -0.2], [-0.5, -0.8, -0.2]])
    hydronium.info["charge"] = 1
    far = hydronium.copy()
    far.translate([distance, 0, 0])
    both = (hydroxide + far)[[0, 2, 1, 3, 4, 5]]
    both.info["charge"] = 0
    return both, hydroxide, hydronium


def neighbourly(params, system):
    """Charges of an atom's surroundings, brought to the sum of the structure as a readout does."""
    close = (edge_vectors(system) ** 2).sum(-1)
    seen = sum_edges(system, jnp.exp(-close) * to_edges(system, system.numbers / 8.0))
    q = conserve_charge(system, jnp.sin(seen + system.numbers))
    dipole = sum_atoms(system, q[:, None] * system.positions)
    return {"energy": sum_energies(system, jnp.cos(seen)), "charges": q, "dipole": dipole}


def test_ions_that_are_apart_keep_their_charges_and_have_the_energy_of_each_alone():
    distance = 9000.0
    batch = on_device(concatenate([from_ase(a, 2.0) for a in ion_pair(distance)]))
    plain = Potential(lambda key, s: {}, neighbourly, 2.0)
    fragments = bonded_fragments(batch, 1.3)
    assert fragments.tolist() == [0, 1, 0, 1, 1, 1, 2, 2, 3, 3, 3, 3]
    kept = conserve_fragments(plain, fragments, [-1, 1, -1, 1])
    model = add_electrostatics(kept, coulomb())
    found, shared = jax.jit(lambda s: (model.apply({}, s), plain.apply({}, s)["charges"]))(batch)
    assert_allclose(np.bincount(fragments, found["charges"]), [-1, 1, -1, 1], atol=1e-14)
    assert_allclose(found["dipole"][0], found["charges"][:6] @ batch.positions[:6], rtol=1e-12)
    assert np.abs(np.bincount(fragments, shared)[:2] - [-1, 1]).max() > 0.1
    # nothing is left but the attraction of two charges, to the size of an ion over the distance
    left = found["energy"] @ np.array([1, -1, -1])
    assert_allclose(left, -units.coulomb_constant / distance, rtol=5e-4)


@pytest.mark.slow
def test_the_slope_of_charges_of_fragments_is_that_of_the_energy():
    both = on_device(from_ase(ion_pair(3.0)[0], 2.0))
    plain = Potential(lambda key, s: {}, neighbourly, 2.0)
    fragments = np.array([0, 1, 0, 1, 1, 1])
    model = add_electrostatics(conserve_fragments(plain, fragments, [-1, 1]), coulomb())
    slope, curvature = derivative_errors(model.apply, {}, both)
    assert slope < 1e-6 and curvature < 1e-6
    wrong = conserve_fragments(plain, fragments, [-1, 2])
    assert np.isnan(wrong.apply({}, both)["charges"]).all()


@cache
def flowing():
    """(system, base charges) -> charges and dipole, with transfers that know the species."""
    head, example = Transfers(3, 3.0), from_ase(ethanol(), 3.0)
    scalars = lambda s: jnp.stack([s.numbers / 8, (s.numbers / 8) ** 2], -1).astype(float)
    params = jax.jit(lambda s: head.init(KEY, s, scalars(s)))(example)
    return jax.jit(lambda s, base: flow(s, base, head.apply(params, s, scalars(s))))


def test_transferred_charge_stays_in_its_fragment():
    near, far = ethanol(), ethanol()
    far.translate([50.0, 0, 0])
    alone, both = (on_device(from_ase(a, 3.0)) for a in (near, near + far))
    base = jnp.zeros(9)
    q, dipole = flowing()(alone, base)
    assert np.abs(q).max() > 0.01 and abs(q.sum()) < 1e-14
    assert_allclose(dipole[0], q @ alone.positions, atol=1e-14)
    assert_allclose(flowing()(both, jnp.zeros(18))[0], [*q, *q], atol=1e-13)


def test_the_dipole_of_transfers_has_a_derivative_in_a_crystal():
    atoms, charges_and_dipole = triclinic(), flowing()
    base = jnp.array([-1.0, 1.5, -1.0, 1.5])

    @jax.jit
    def born(system):
        dipole = lambda r: charges_and_dipole(replace(system, positions=r), base)[1][0]
        return jnp.moveaxis(jax.jacrev(dipole)(system.positions), 0, -1)

    here = on_device(from_ase(atoms, 3.0))
    found = born(here)
    assert np.abs(found - base[:, None, None] * np.eye(3)).max() > 0.01  # charge does flow
    assert_allclose(found.sum(0), np.eye(3), atol=1e-12)  # base charges sum to 1 e
    atoms.positions[1] += np.asarray(atoms.cell)[0]  # listed at another image
    assert_allclose(born(on_device(from_ase(atoms, 3.0))), found, atol=1e-12)


# --- equilibration -------------------------------------------------------------------------------


@jax.jit
def two_atoms(system):
    """Sodium and chlorine that attract each other at any distance."""
    return equilibration(coulomb())(system, jnp.array([2.8, 8.5]), jnp.array([9.2, 9.8]))


def test_two_equilibrated_atoms_have_the_charges_of_the_formula():
    system = from_ase(Atoms("NaCl", [[0, 0, 0], [0, 0, 2.4]], info={"charge": 0.5}), 3.0)
    out, chi = two_atoms(system), np.array([2.8, 8.5])
    a = np.array([[9.2, units.coulomb_constant / 2.4, 1], [units.coulomb_constant / 2.4, 9.8, 1]])
    saddle = np.vstack([a, [1, 1, 0]])
    q = np.linalg.solve(saddle, [-2.8, -8.5, 0.5])[:2]
    assert_allclose(out["charges"], q, rtol=1e-13)
    assert_allclose(out["energy"], q @ chi + 0.5 * q @ a[:, :2] @ q, rtol=1e-13)
    assert out["charge_residual"] < 1e-12


def test_charges_without_a_minimum_are_nan():
    system = from_ase(Atoms("NaCl", [[0, 0, 0], [0, 0, 0.5]]), 3.0)
    out = two_atoms(system)
    assert np.isnan(out["energy"]).all() and np.isnan(out["charges"]).all()


def environment(solver_options, system):
    """Equilibrated charges with electronegativities that feel the neighbours."""
    r2 = (edge_vectors(system) ** 2).sum(-1)
    near = jnp.where(r2 < 16, (1 - jnp.minimum(r2 / 16, 1)) ** 4, 0)
    chi = system.numbers + sum_edges(system, near * to_edges(system, 0.3 * system.numbers))
    hardness = jnp.where(system.numbers == 1, 13.0, 10.0)
    return equilibration(coulomb(), widths=WIDTHS, **solver_options)(system, chi, hardness)


@pytest.mark.parametrize("direct", [256, pytest.param(0, marks=pytest.mark.slow)])
def test_equilibration_is_conservative_and_conserves_charge(direct):
    system = from_ase(ethanol(), 6.0)
    batch = on_device(pad(concatenate([system, system]), n_atoms=20, n_graphs=3))
    charge = jnp.array([1.0, 0.0, 0.0])
    batch = replace(
        batch, charge=charge, field=jnp.array([[0.0, 0, 0], [0.2, 0.1, -0.3], [0, 0, 0]])
    )
    solve = partial(environment, {"direct": direct})

    @jax.jit
    def everything(r, field, charge):
        energy = lambda r, field, charge: solve(
            replace(batch, positions=r, field=field, charge=charge)
        )["energy"].sum()
        return jax.grad(energy, (0, 1, 2))(r, field, charge), solve(
            replace(batch, positions=r, field=field, charge=charge)
        )

    r, h = batch.positions, 1e-4
    (by_r, by_field, by_charge), out = everything(r, batch.field, charge)
    assert_allclose(sum_atoms(batch, out["charges"]), charge, atol=1e-12)
    assert_allclose(-by_field[:2], out["dipole"][:2], atol=1e-10)
    total = lambda *x: everything(*x)[1]["energy"].sum()
    up, down = (total(r.at[3, 1].add(s * h), batch.field, charge) for s in (1, -1))
    assert_allclose(by_r[3, 1], (up - down) / (2 * h), atol=1e-7)
    up, down = (total(r, batch.field, charge.at[0].add(s * h)) for s in (1, -1))
    assert_allclose(by_charge[0], (up - down) / (2 * h), atol=1e-7)


@pytest.mark.slow
def test_equilibrated_charges_are_those_of_the_direct_solve_and_of_single_structures():
    one, other = from_ase(ethanol(), 6.0), from_ase(ethanol()[:5], 6.0)
    alone = jax.jit(partial(environment, {}))(on_device(one))
    batch = on_device(pad(concatenate([one, other]), n_atoms=17, n_graphs=3))
    for direct in (256, 0):
        out = jax.jit(partial(environment, {"direct": direct}))(batch)
        assert_allclose(out["charges"][:9], alone["charges"], atol=1e-10)
        assert_allclose(out["energy"][0], alone["energy"][0], atol=1e-10)


@pytest.mark.slow
def test_too_few_steps_are_never_silent():
    few = jax.jit(partial(environment, {"direct": 0, "steps": 2}))
    out = few(from_ase(ethanol(), 6.0))
    assert out["charge_residual"] > 1e-6 and np.isnan(out["energy"]).all()


@pytest.mark.slow
def test_third_derivatives_of_equilibration_are_differences_of_second_ones():
    system = on_device(from_ase(Atoms("OHH", [[0, 0, 0], [0, 0.8, 0.6], [0, -0.7, 0.6]]), 6.0))
    energy = lambda r: environment({}, replace(system, positions=r))["energy"].sum()
    hessian = jax.jit(jax.hessian(energy))
    along, h = jnp.zeros((3, 3)).at[1, 2].set(1.0), 1e-4
    r = system.positions
    third = jax.jit(lambda r: jax.jvp(hessian, (r,), (along,))[1])(r)
    assert_allclose(third, (hessian(r + h * along) - hessian(r - h * along)) / (2 * h), atol=1e-5)


# --- whole models --------------------------------------------------------------------------------


def small(model=models.MACE, **fields):
    return model(**{k: tuple(v) if isinstance(v, list) else v for k, v in (SALT | fields).items()})


POLAR = {"n_layers": 1, "dipole": True, "formal_charges": (1.0, -1.0), "charge_transfer": 2}


@cache
def polar_salt():
    """MACE with flowing charges and atomic dipoles in an Ewald sum."""
    model = small(**POLAR)
    system = from_ase(salt(), model.cutoff)
    potential = add_electrostatics(model, ewald(system, model.cutoff, 1e-4))
    return potential, jax.jit(model.init)(KEY, system), on_device(system)


@pytest.mark.slow
def test_slope_and_curvature_of_mace_with_ewald_are_those_of_its_energy():
    potential, params, system = polar_salt()
    slope, curvature = derivative_errors(potential.apply, params, system)
    assert slope < 1e-6 and curvature < 1e-6


@pytest.mark.slow
@pytest.mark.parametrize("order", [6, 8, None], ids=["pme 6", "pme 8", "equilibration"])
def test_slope_and_curvature_of_other_long_range_models(order):
    """Splines of order 6 have four continuous derivatives."""
    mesh = order is not None
    model = small(dipole=mesh, equilibration=not mesh, formal_charges=(1.0, -1.0))
    system = from_ase(salt(), model.cutoff)
    params = jax.jit(model.init)(KEY, system)
    if mesh:
        potential = add_electrostatics(model, pme(system, model.cutoff, 1e-4, order=order))
    else:
        solver = ewald(system, model.cutoff, 1e-4)
        widths = {11: 0.4, 17: 0.45}
        potential = add_equilibration(model, equilibration(solver, widths=widths))
    slope, curvature = derivative_errors(potential.apply, params, on_device(system))
    assert slope < 1e-6 and curvature < 1e-6


@pytest.mark.slow
def test_dynamical_matrices_with_ewald_are_those_of_the_supercell():
    potential, params, system = polar_salt()
    host, repeats, tolerance = jax.tree.map(np.asarray, system), (3, 1, 1), 1e-10
    large = edges_within(jaxmlip.supercell(host, repeats), cutoff=potential.cutoff)
    both = add_electrostatics(small(**POLAR), ewald([host, large], potential.cutoff, tolerance))
    q = np.array([[1 / 3, 0, 0]])
    found = jaxmlip.dynamical_matrix(both.apply)(params, system, q)
    expected = dynamical_matrix_supercell(both.apply, repeats)(params, host, q)
    assert np.abs(found.imag).max() > 0.1
    # Their sums end at other waves: planned so closely that what is left out is less than this
    assert_allclose(found, expected, rtol=0, atol=1e-8)


def test_a_supercell_that_sums_are_not_planned_for_is_an_error():
    ions = from_ase(bulk("NaCl", "rocksalt", 5.64), 3.0)
    solver = ewald(ions, 3.0, 1e-3)
    charges = lambda system: jnp.where(system.numbers == 11, 1.0, -1.0)
    apply = lambda params, system: {"energy": solver(system, charges(system))}
    with pytest.raises(NumericalError, match="supercell is not finite"):
        dynamical_matrix_supercell(apply, (8, 1, 1))({}, ions, [[0.125, 0, 0]])


@pytest.mark.slow
def test_born_charges_of_a_crystal_sum_to_its_charge():
    potential, params, system = polar_salt()

    @jax.jit
    def born(params, system):
        dipole = lambda r: potential.apply(params, replace(system, positions=r))["dipole"][0]
        return jnp.moveaxis(jax.jacrev(dipole)(system.positions), 0, -1)

    found = born(params, system)
    assert np.abs(found[0] - np.eye(3)).max() > 1e-3
    assert_allclose(found.sum(0), np.zeros((3, 3)), atol=1e-8)


@pytest.mark.slow
@pytest.mark.parametrize("charge, periodic", [(-1.0, False), (2.0, True)])
def test_born_charges_sum_to_the_charge_of_molecules_and_of_charged_cells(charge, periodic):
    """All atoms moved alike carry the charge with them, in the open and with a background."""
    model, atoms = small(**POLAR), salt().repeat((1, 1, 2))
    atoms.pbc, atoms.info["charge"] = periodic, charge
    system = from_ase(atoms, model.cutoff)
    potential = add_electrostatics(model, ewald(system, model.cutoff, 1e-3))
    params = jax.jit(model.init)(KEY, system)
    found = jaxmlip.born_charges(add_field(potential).apply)(params, system)
    assert np.abs(found[0] - charge / 4 * np.eye(3)).max() > 1e-3
    assert_allclose(found.sum(0), charge * np.eye(3), atol=1e-10)


@cache
def far_sighted():
    model = small(models.LongRangeMACE, correlation=1, sources=2)
    atoms = Atoms("NaClNaCl", [[0, 0, 0], [0, 0, 2.4], [5.5, 0, 0], [5.6, 0.3, 2.4]])
    system = from_ase(atoms, model.cutoff)
    return model, jax.jit(model.init)(KEY, system), system


@pytest.mark.slow
def test_far_charges_are_felt_and_not_without_a_plan():
    model, params, system = far_sighted()
    with pytest.raises(ModelError, match="JM530"):
        jax.eval_shape(model.apply, params, system)
    of = jax.jit(total_energy(bind(model, system).apply))
    at = lambda r: float(of(jnp.asarray(r), params, on_device(system)))
    r, turn = system.positions, np.linalg.qr(np.random.default_rng(0).normal(size=(3, 3)))[0]
    assert_allclose(at(r @ turn + 3.0), at(r), atol=1e-12)
    further, much_further = (r + d * np.array([[0, 0, 0]] * 2 + [[1, 0, 0]] * 2) for d in (1, 1e6))
    apart = at(much_further)
    assert abs(at(further) - apart) > 1e-4 and abs(at(r) - at(further)) > 1e-4


@pytest.mark.slow
def test_slope_and_curvature_of_long_range_features():
    model, params, _ = far_sighted()
    system = from_ase(salt(), model.cutoff)
    slope, curvature = derivative_errors(bind(model, system).apply, params, on_device(system))
    assert slope < 1e-6 and curvature < 1e-6


@pytest.mark.parametrize("plan", [ewald, pme])
def test_a_cell_that_outgrew_its_plan_is_refused_and_never_summed_coarsely(plan):
    system = from_ase(salt().repeat(2), 4.0)
    charges = np.where(system.numbers == 11, 1.0, -1.0)
    solver = plan(system, 4.0, 1e-3)
    energy = jax.jit(solver)
    grown = lambda x: on_device(strain(system, x * np.eye(3)[None]))
    assert np.isfinite(energy(grown(0.05), charges)).all()
    slope = jax.jit(jax.grad(lambda s: solver(s, charges).sum(), allow_int=True))(grown(1.0))
    assert np.isnan(energy(grown(1.0), charges)).all() and np.isnan(slope.positions).all()
    with pytest.raises(UsageError, match="JM532.*planned for other cells"):
        solver(grown(1.0), charges)


def ions_of_a_layer(lift=0.0):
    """A square layer of rock salt; one ion lifted, Å."""
    layer = Atoms("NaClNaCl", [[0, 0, 0], [2.6, 0, 0], [2.6, 2.6, 0], [0, 2.6, 0]], pbc=(1, 1, 0))
    layer.set_cell([5.2, 5.2, 30])
    layer.positions[1, 2] += lift
    return layer


def test_a_slab_may_grow_by_a_cutoff_and_no_further():
    cutoff, of = 4.0, lambda lift: from_ase(ions_of_a_layer(lift), 4.0)
    charges = np.array([1.0, -1.0, 1.0, -1.0])
    solver = ewald(of(0.0), cutoff, 1e-5)
    energy = jax.jit(solver)
    again = ewald(of(3.9), cutoff, 1e-5)
    assert_allclose(energy(of(3.9), charges), again(of(3.9), charges), rtol=1e-5)
    assert np.isnan(energy(of(4.1), charges)).all()
    with pytest.raises(UsageError, match="JM532.*4.10 Å along its open axis.*up to 4.00"):
        solver(of(4.1), charges)


def test_the_calculator_plans_anew_for_a_slab_that_has_grown():
    def plan(system):
        charges = lambda s: jnp.where(s.numbers == 11, 1.0, -1.0)
        solver = ewald(system, 4.0, 1e-5)
        return Potential(None, lambda p, s: {"energy": solver(s, charges(s))}, 4.0)

    planned = plans.planned_later(plan, None, 4.0)
    calculator = PotentialCalculator(planned, {})
    calculator.get_potential_energy(ions_of_a_layer())
    grown = ions_of_a_layer(9.0)
    fresh = PotentialCalculator(planned, {}).get_potential_energy(grown)
    assert calculator.get_potential_energy(grown) == fresh


# --- files ---------------------------------------------------------------------------------------


CHARGED = {"n_layers": 1, "dipole": True, "formal_charges": [0.7, -0.7], "atomic_dipoles": False}


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    card = {
        "architecture": "MACE",
        "fields": SALT | CHARGED,
        "electrostatics": {"method": "ewald", "tolerance": 1e-4, "cutoff": 5.0},
        "reference_energies": {"11": -1.5, "17": -2.5},
    }
    system = from_ase(salt(), 5.0)
    params = jax.jit(checkpoint.build(card).init)(KEY, system)
    path = tmp_path_factory.mktemp("models") / "salt.safetensors"
    checkpoint.save(path, card, params)
    return path, card, params, system


def test_a_long_range_model_comes_back_from_its_file(saved):
    path, card, params, system = saved
    potential, found = jaxmlip.load(path)
    assert potential.cutoff == 5.0 and checkpoint.read(path)[0]["cutoff"] == 5.0
    with pytest.raises(ModelError, match="JM530"):
        potential.apply(found, system)
    loaded = energy_of(bind(potential, system), found, system)
    bare = small(**CHARGED)
    by_hand = energy_of(add_electrostatics(bare, ewald(system, 5.0, 1e-4)), params, system)
    assert_allclose(loaded, by_hand - 4.0, atol=1e-6)  # weights in the file are float32


def test_the_calculator_plans_by_itself_and_again_for_another_cell(saved):
    path, _, _, system = saved
    calculator, atoms = jaxmlip.Calculator(path), salt()
    potential, params = jaxmlip.load(path)
    small_cell = calculator.get_potential_energy(atoms)
    assert_allclose(small_cell, energy_of(bind(potential, system), params, system)[0], atol=1e-6)
    large = calculator.get_potential_energy(atoms.repeat((1, 1, 2)))
    assert_allclose(large, 2 * small_cell, atol=2e-4)  # the tolerance of the sum


@pytest.mark.parametrize("dipoles", [True, False])
def test_a_mesh_of_a_card_meets_its_tolerance_for_the_dipoles_that_its_model_has(dipoles):
    """As long as the card says, or as dipoles beside unit charges are."""
    system, tolerance = from_ase(rattled(salt().repeat(2), 0.25), 4.0), 1e-3
    moments = np.random.default_rng(0).normal(0, 0.5 / 3**0.5, (16, 3))
    out = {"energy": jnp.zeros(1), "charges": jnp.where(system.numbers == 11, 1.0, -1.0)}
    out |= {"atomic_dipoles": jnp.asarray(moments)} if dipoles else {}
    model = Potential(lambda key, s: {}, lambda params, s: out, 4.0)

    def forces(**entry):
        card = {"electrostatics": {"method": "pme", "tolerance": tolerance} | entry}
        bound = bind(plans.add_long_range(model, card), system)
        energy = lambda r: bound.apply({}, replace(system, positions=r))["energy"].sum()
        return np.asarray(jax.jit(jax.grad(energy))(jnp.asarray(system.positions)))

    exact = forces(method="ewald", tolerance=1e-8)
    error = lambda **entry: np.linalg.norm(forces(**entry) - exact) / np.linalg.norm(exact)
    usual = error()
    assert usual < 2 * tolerance
    if dipoles:
        assert error(dipoles=0.5) == usual < error(dipoles=0.0)
    else:
        assert error(dipoles=0.0) == usual


def test_an_unknown_method_on_a_card_is_refused(saved):
    _, card, _, _ = saved
    wrong = card | {"electrostatics": {"method": "ewold"}}
    with pytest.raises(ModelError, match="Did you mean 'ewald'"):
        checkpoint.potential_of(wrong)


MESH, CHARGES = {"method": "pme"}, {"method": "coulomb"}


@pytest.mark.parametrize(
    "term, entry, said",
    [
        ("electrostatics", "ewald", "'electrostatics' is 'ewald'"),
        ("electrostatics", {"tolerance": 1e-4}, "unknown 'None'"),
        ("electrostatics", MESH | {"tolerance": "x"}, "'tolerance' of electrostatics is 'x'"),
        ("electrostatics", MESH | {"tolerance": None}, "'tolerance' of electrostatics is None"),
        ("electrostatics", MESH | {"tolerance": -1e-4}, "a number above 0"),
        ("electrostatics", MESH | {"cutoff": "z"}, "'cutoff' of electrostatics is 'z'"),
        ("electrostatics", MESH | {"cutoff": True}, "'cutoff' of electrostatics is True"),
        ("electrostatics", MESH | {"cutoff": float("nan")}, "'cutoff' of electrostatics is nan"),
        ("electrostatics", MESH | {"dipoles": "abc"}, "'dipoles' of electrostatics is 'abc'"),
        ("electrostatics", MESH | {"dipoles": None}, "'dipoles' of electrostatics is None"),
        ("electrostatics", MESH | {"dipoles": -0.1}, "a number of at least 0"),
        ("electrostatics", CHARGES | {"equilibration": [1]}, r"'equilibration' is \[1\]"),
        ("electrostatics", CHARGES | {"equilibration": {"width": 1}}, "Did you mean 'widths'"),
        ("electrostatics", CHARGES | {"equilibration": {"widths": 1.0}}, "'widths' is 1.0"),
        ("electrostatics", CHARGES | {"equilibration": {"widths": {"Na": 1}}}, "'element' of wid"),
        ("electrostatics", CHARGES | {"equilibration": {"widths": {"11": "a"}}}, "'11' of widths"),
        ("electrostatics", CHARGES | {"equilibration": {"steps": 1.5}}, "a whole number of at"),
        ("electrostatics", CHARGES | {"equilibration": {"direct": []}}, "'direct' of equilibr"),
        ("dispersion", {"tolerance": {}}, "'tolerance' of dispersion"),
        ("dispersion", {"cutof": 6.0}, "Did you mean 'cutoff'"),
    ],
)
def test_a_card_whose_values_are_none_is_refused_where_it_is_read(term, entry, said):
    model = Potential(lambda key, s: {}, lambda params, s: {"energy": jnp.zeros(1)}, 4.0)
    with pytest.raises(ModelError, match=f"(?s)JM531.*{said}"):
        plans.add_long_range(model, {term: entry})


def test_numbers_of_a_card_may_be_text_and_elements_are():
    entry = {"method": "coulomb", "tolerance": "1e-4", "equilibration": {"widths": {"11": "1"}}}
    found = plans._electrostatics(entry | {"equilibration": {"widths": {"11": "1"}, "steps": 9}})
    assert found["tolerance"] == 1e-4
    assert found["equilibration"] == {"widths": {11: 1.0}, "steps": 9}


@pytest.mark.slow
def test_sums_and_scales_are_planned_as_their_parts(saved):
    _, card, params, system = saved
    potential = checkpoint.potential_of(card)
    twice = jaxmlip.add(potential, jaxmlip.scale(potential, -1.0))
    assert isinstance(twice, Potential) and twice.plan is not None
    energy = energy_of(bind(twice, system), (params, params), system)
    assert_allclose(energy, 0, atol=1e-12)
