"""Responses of crystals and molecules to field and strain: exact sums, differences, both routes."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ase import Atoms
from ase.calculators.fd import calculate_numerical_forces
from numpy.testing import assert_allclose
from structures import toy, triclinic

import jaxmlip
from jaxmlip import derivatives, md
from jaxmlip.derivatives.bloch.supercell import repeated
from jaxmlip.electrostatics import pme
from jaxmlip.errors import UsageError
from jaxmlip.interfaces.ase import from_ase
from jaxmlip.interfaces.calculator import PotentialCalculator
from jaxmlip.potential import Potential, add_electrostatics, add_field
from jaxmlip.system import (
    at_receivers,
    edge_vectors,
    strain,
    sum_atoms,
    sum_edges,
    sum_energies,
    to_edges,
)
from jaxmlip.vibrations import dielectric as light
from jaxmlip.vibrations import normal_modes


def transfers(*, bonds, cutoff=2.6, messages=True):
    """Charges that flow along bonds, by what both ends know of their neighbours' neighbours.

    bonds: the dipole is the sum over bonds of charge times vector; else that of charges times
    positions. In an infinite crystal they are the same; the cell's sum of charges is not.
    """

    def apply(params, system):
        v = edge_vectors(system)
        square = (v**2).sum(-1)
        smooth = jnp.where(square < cutoff**2, (1 - jnp.minimum(square / cutoff**2, 1)) ** 4, 0)
        z = system.numbers.astype(v.dtype) / 8
        density = sum_edges(system, smooth * to_edges(system, z))
        if messages:
            density = density + sum_edges(system, smooth * to_edges(system, jnp.sin(density)))
        chi = jnp.where(system.atom_mask, jnp.tanh(z + density), 0)
        moved = 2 * smooth * (to_edges(system, chi) - at_receivers(system, chi))
        charges = jnp.where(system.atom_mask, sum_edges(system, moved), 0)
        if bonds:
            dipoles = sum_edges(system, moved[..., None] * v) / 2
        else:
            dipoles = charges[:, None] * system.positions
        alpha = sum_atoms(system, density[:, None, None] * jnp.eye(3, dtype=v.dtype))
        return {
            "energy": sum_energies(system, jnp.where(system.atom_mask, (density - 2) ** 2, 0)),
            "charges": charges,
            "dipole": sum_atoms(system, dipoles),
            "polarizability": alpha,
        }

    return add_field(Potential(lambda key, system: {}, apply, cutoff))


POINTS, BONDS = transfers(bonds=False), transfers(bonds=True)


def crystal():
    """Three atoms, no symmetry, bonds to several images of the same neighbour."""
    cell = [[2.3, 0.2, 0.1], [-0.4, 2.5, 0.3], [0.3, -0.2, 3.1]]
    scaled = [[0.02, 0.1, 0.0], [0.45, 0.6, 0.4], [0.9, 0.3, 0.7]]
    return Atoms("OCN", scaled_positions=scaled, cell=cell, pbc=True)


SYSTEM = from_ase(crystal(), BONDS.cutoff)


def slope_of_dipole(model):
    """d(dipole of the cell)/dr as it stands, [n_atoms, 3, 3]."""
    dipole = lambda r: model.apply({}, replace(SYSTEM, positions=r))["dipole"][0]
    slope = jax.jit(jax.jacrev(dipole))(jnp.asarray(SYSTEM.positions))
    return np.moveaxis(np.asarray(slope), 0, -1)


@pytest.fixture(scope="module")
def charges_of_bonds():
    return slope_of_dipole(BONDS)


def test_born_charges_of_point_charges_are_those_of_bonds_whatever_images_are_listed(
    charges_of_bonds,
):
    """Exact at any reach: here charges flow over many cells, far beyond half of one."""
    from jaxmlip.derivatives.response.images import other_images

    born = jaxmlip.born_charges(POINTS.apply)
    found = born({}, SYSTEM)
    assert_allclose(found, charges_of_bonds, atol=1e-12)
    assert_allclose(born({}, other_images(SYSTEM)[0]), found, atol=1e-12)
    assert np.abs(found.sum(0)).max() < 1e-12 < 0.05 < np.abs(found).max()
    naive = slope_of_dipole(POINTS)
    assert np.abs(naive - found).max() > 0.05  # what the cell alone would say


@pytest.mark.slow
def test_born_charges_do_not_ask_how_the_charges_are_summed(charges_of_bonds):
    """A mesh cannot follow a wave, and need not: only charges follow it. D(q) is refused."""
    solver = pme(SYSTEM, POINTS.cutoff, 1e-2, order=4)
    meshed = add_electrostatics(POINTS, solver)
    found = jaxmlip.born_charges(meshed.apply)({}, SYSTEM)
    assert_allclose(found, charges_of_bonds, atol=1e-12)
    with pytest.raises(UsageError, match="wavevector"):
        derivatives.dynamical_matrix(meshed.apply)({}, SYSTEM, np.zeros((1, 3)))


FORMAL = jnp.zeros(120).at[jnp.array([6, 7, 8])].set(jnp.array([1.0, 1.5, -2.0]))


def with_formal_charges(model, factor=1.0):
    """Formal charges, constants, beside those that flow; and of these but a part in the dipole."""

    def apply(params, system):
        out = model.apply(params, system)
        formal = FORMAL[system.numbers]
        moment = sum_atoms(system, formal[:, None] * system.positions)
        energy = factor * out["energy"] - (moment * system.field).sum(-1)
        return {"energy": energy, "charges": out["charges"] + formal}

    return Potential(model.init, apply, model.cutoff)


def test_formal_charges_beside_bonds_are_added_to_their_born_charges(charges_of_bonds):
    """Their dipole jumps from image to image by a constant, which has no derivative."""
    found = jaxmlip.born_charges(with_formal_charges(BONDS).apply)({}, SYSTEM)
    formal = FORMAL[SYSTEM.numbers][:, None, None] * np.eye(3)
    assert_allclose(found, charges_of_bonds + formal, atol=1e-12)


@pytest.mark.slow
def test_half_of_the_flowing_charges_in_a_dipole_have_no_born_charges():
    with pytest.raises(UsageError, match="JM110.*nor as the charges"):
        jaxmlip.born_charges(with_formal_charges(POINTS, 0.5).apply)({}, SYSTEM)


@pytest.mark.slow
def test_born_charges_are_the_dipole_of_a_supercell_in_which_one_atom_moves(charges_of_bonds):
    """Charges times positions that are not wrapped, all of them within the supercell."""
    n, repeats = SYSTEM.n_atoms, 9
    large = repeated(SYSTEM, (repeats,) * 3)
    middle = n * np.ravel_multi_index((repeats // 2,) * 3, (repeats,) * 3) + 1
    charges = jax.jit(lambda r: POINTS.apply({}, replace(large, positions=r))["charges"])
    for axis in range(3):
        moment = []
        for step in (1e-4, -1e-4):
            r = np.array(large.positions)
            r[middle, axis] += step
            moment.append(np.asarray(charges(r)) @ r)
        slope = (moment[0] - moment[1]) / 2e-4
        assert_allclose(slope, charges_of_bonds[1, axis], atol=1e-6)  # h², and differences of sums


def test_charges_that_all_atoms_alike_make_up_for_have_no_dipole_in_a_crystal():
    system = from_ase(triclinic(), 4.0)
    with pytest.raises(UsageError, match="JM110.*all atoms alike"):
        jaxmlip.born_charges(add_field(toy()).apply)({}, system)


@pytest.mark.slow
def test_the_current_is_the_sum_of_born_charges_times_velocities(charges_of_bonds):
    found = jax.jit(derivatives.periodic_born_charges(BONDS.apply))({}, SYSTEM)
    assert_allclose(found, charges_of_bonds, atol=1e-12)  # nothing to add to those
    v = np.random.default_rng(0).normal(size=(3, 3))
    found = jax.jit(derivatives.current(POINTS.apply))({}, SYSTEM, v)
    assert_allclose(found[0], np.einsum("na,nab->b", v, charges_of_bonds), atol=1e-12)


def test_a_dipole_is_brought_to_the_branch_of_another():
    reference = np.array([[0.3, -0.2, 0.9]])
    jumped = reference + 0.01 + np.array([1, -2, 1]) @ SYSTEM.cell[0]
    found = derivatives.same_branch(jumped, reference, SYSTEM)
    assert_allclose(found, reference + 0.01, atol=1e-13)
    slab = replace(SYSTEM, pbc=np.array([[True, True, False]]))
    assert not np.allclose(derivatives.same_branch(jumped, reference, slab), reference + 0.01)


# --- in a field ----------------------------------------------------------------------------------

FIELD = np.array([[0.04, -0.03, 0.05]])


@jax.jit
def in_field(positions, epsilon, field):
    moved = replace(SYSTEM, positions=positions, field=field)
    out = jaxmlip.predict(BONDS.apply)({}, strain(moved, epsilon))
    return {k: out[k] for k in ("energy", "forces", "stress", "dipole")}


REST = np.asarray(SYSTEM.positions)
NONE = np.zeros((1, 3, 3))


def test_forces_and_stress_in_a_field_are_slopes_of_the_energy_in_that_field():
    rng, h = np.random.default_rng(1), 1e-4
    d, e = rng.normal(size=(3, 3)), rng.normal(size=(1, 3, 3))
    e = (e + e.swapaxes(1, 2)) / 2
    out = in_field(REST, NONE, FIELD)
    energy = lambda s, t: in_field(REST + s * d, t * e, FIELD)["energy"][0]
    along = (energy(h, 0) - energy(-h, 0)) / (2 * h)
    assert_allclose(along, -(out["forces"] * d).sum(), atol=1e-7)  # h² of a smooth energy
    along = (energy(0, h) - energy(0, -h)) / (2 * h)
    volume = abs(np.linalg.det(SYSTEM.cell[0]))
    assert_allclose(along, volume * (out["stress"] * e).sum(), atol=1e-6)
    assert np.abs(out["forces"] - in_field(REST, NONE, 0 * FIELD)["forces"]).max() > 1e-3


IN_FIELD = replace(SYSTEM, field=FIELD)


def test_forces_in_a_field_do_not_ask_at_which_images_atoms_are_listed():
    """Those of bonds; what point charges say depends on it, so nobody is told it."""
    from jaxmlip.derivatives.response.images import other_images

    at = lambda model, system: jax.jit(jaxmlip.forces(model.apply))({}, system)
    elsewhere = other_images(IN_FIELD)[0]
    assert_allclose(at(BONDS, elsewhere), at(BONDS, IN_FIELD), atol=1e-12)
    assert np.abs(at(POINTS, elsewhere) - at(POINTS, IN_FIELD)).max() > 0.05
    derivatives.check_field(BONDS.apply, {}, IN_FIELD, strained=True)
    derivatives.check_field(POINTS.apply, {}, SYSTEM)  # without a field nothing is asked


@pytest.mark.parametrize("model", [POINTS, add_field(toy())], ids=["transfer", "toy"])
def test_a_field_along_a_crystal_of_point_charges_is_refused_before_anything_is_computed(model):
    atoms, refused = crystal(), pytest.raises(UsageError, match="JM110.*images at which atoms")
    atoms.info["field"] = FIELD[0]
    system = from_ase(atoms, model.cutoff)
    atoms.calc = PotentialCalculator(model, {})
    for ask in (
        atoms.get_forces,
        lambda: atoms.calc.get_hessian(atoms),
        lambda: md.relax(model, {}, system),
        lambda: md.relax_cell(model, {}, system),
        lambda: md.relax_batch(model, {}, system),
        lambda: md.prepare(model, {}, system, md.nve(dt=1.0), masses=atoms.get_masses()),
    ):
        with refused:
            ask()
    field = lambda t: 0.1 * jnp.sin(t) * jnp.array([1.0, 0, 0])  # none at the start
    with refused:
        masses, still = atoms.get_masses(), replace(system, field=0 * FIELD)
        md.prepare(model, {}, still, md.nve(dt=1.0), masses=masses, field=field)


def test_a_field_across_a_slab_of_point_charges_has_forces():
    """Open axes have no images: there charges times positions are a dipole like any other."""
    slab = Atoms("OCN", crystal().positions, cell=np.diag([2.7, 2.9, 9.0]), pbc=(1, 1, 0))
    slab.info["field"] = [0, 0, 0.1]
    slab.calc = PotentialCalculator(POINTS, {})
    numerical = calculate_numerical_forces(slab, eps=1e-4)
    assert_allclose(slab.get_forces(), numerical, atol=1e-7)  # h² of a smooth energy
    slab.info["field"] = [0, 0.01, 0.1]
    with pytest.raises(UsageError, match="JM110"):
        slab.get_forces()


def test_constant_charges_have_forces_in_a_field_and_no_stress():
    """The force is q F wherever the ion is listed; the stress is not: -F sum q r / V."""
    model = with_formal_charges(BONDS)
    derivatives.check_field(model.apply, {}, IN_FIELD)
    with pytest.raises(UsageError, match="JM110.*stress"):
        derivatives.check_field(model.apply, {}, IN_FIELD, strained=True)


def test_dynamics_and_relaxation_in_a_field_are_those_of_one_energy():
    run = md.prepare(BONDS, {}, IN_FIELD, md.nve(dt=0.1), masses=crystal().get_masses())
    motion = md.thermal_motion(run.system, run.bodies, jax.random.key(0), temperature=100.0)
    *_, end = md.trajectory(run, motion, steps=200, block=200, record=1)
    spread = {k: np.ptp(end.records[k]) for k in ("energy", "conserved_energy")}
    assert spread["conserved_energy"] < 1e-4 * spread["energy"]  # (omega dt)² / 8 of Verlet
    relaxed, info = md.relax(BONDS, {}, IN_FIELD, fmax=1e-4)
    assert info.converged
    pull = jax.jit(jaxmlip.forces(BONDS.apply))
    assert np.abs(pull({}, relaxed)).max() <= 1e-4
    assert np.abs(pull({}, replace(relaxed, field=0 * FIELD))).max() > 1e-3


def test_born_charges_are_forces_of_a_field_and_dipoles_of_a_displacement(charges_of_bonds):
    h = 1e-4
    for axis in range(3):
        field = h * np.eye(3)[axis : axis + 1]
        up, down = (in_field(REST, NONE, s * field)["forces"] for s in (1, -1))
        # linear in the field but for the polarisability, which is even in it
        assert_allclose((up - down) / (2 * h), charges_of_bonds[:, :, axis], atol=1e-8)
    d = np.zeros((3, 3))
    d[2, 1] = h
    up, down = (in_field(REST + s * d, NONE, 0 * FIELD)["dipole"][0] for s in (1, -1))
    assert_allclose((up - down) / (2 * h), charges_of_bonds[2, 1], atol=1e-6)


@pytest.fixture(scope="module")
def response():
    return jax.device_get(jax.jit(derivatives.crystal_response(BONDS.apply))({}, SYSTEM))


@pytest.mark.slow
def test_dielectric_tensors_are_sums_over_modes(response):
    masses = crystal().get_masses()
    modes = normal_modes(response.hessian, masses, REST, pbc=True, project=True)
    found = light.oscillators(response.born_charges, modes, response.dielectric, response.volume)
    squares = np.sign(modes.frequencies_cm1) * modes.frequencies_cm1**2
    summed = response.dielectric + (found.strengths / squares[:, None, None]).sum(0)
    assert_allclose(response.dielectric_static, summed, rtol=1e-6)
    alpha = BONDS.apply({}, SYSTEM)["polarizability"][0]
    expected = np.eye(3) + light.FULL * alpha / response.volume
    assert_allclose(response.dielectric, expected, rtol=1e-12)


@pytest.mark.slow
def test_the_piezoelectric_tensor_is_the_slope_of_the_dipole_in_the_strained_cell(response):
    h = 1e-4
    for i, j in ((0, 0), (1, 2)):
        e = np.zeros((1, 3, 3))
        e[0, i, j] += h / 2
        e[0, j, i] += h / 2
        reduced = [
            np.linalg.solve(np.eye(3) + s * e[0], in_field(REST, s * e, 0 * FIELD)["dipole"][0])
            for s in (1, -1)
        ]
        slope = (reduced[0] - reduced[1]) / (2 * h) / response.volume
        assert_allclose(response.piezoelectric_clamped[:, i, j], slope, atol=1e-7)
    # atoms follow: what strain does to them, through their charges
    inner = np.einsum("naf,naij->fij", response.born_charges, response.internal_strain)
    relaxed = response.piezoelectric_clamped + inner / response.volume
    assert_allclose(response.piezoelectric, relaxed, atol=1e-12)
    free = response.dielectric_free - response.dielectric_static
    d, e = response.piezoelectric_strain, response.piezoelectric
    assert_allclose(free, light.FULL * np.einsum("ajk,bjk->ab", e, d), rtol=1e-9)


@pytest.mark.slow
def test_a_piezoelectric_tensor_that_depends_on_images_is_not_given():
    found = jax.jit(derivatives.piezoelectric(POINTS.apply))({}, SYSTEM)
    assert np.isnan(found).all()


@pytest.mark.slow
def test_a_molecule_in_a_box_answers_as_it_does_in_the_open():
    atoms = Atoms("OCN", [[0, 0, 0], [1.1, 0.3, 0], [1.9, -0.8, 0.4]])
    alone = jaxmlip.born_charges(POINTS.apply)({}, from_ase(atoms, POINTS.cutoff))
    atoms.set_cell(np.diag([11.0, 12.0, 13.0]))
    atoms.pbc = True
    boxed = jaxmlip.born_charges(POINTS.apply)({}, from_ase(atoms, POINTS.cutoff))
    assert_allclose(boxed, alone, atol=1e-12)


def test_a_traced_crystal_of_point_charges_is_nan_and_not_wrong():
    plain = transfers(bonds=False, messages=False)
    found = jax.jit(jaxmlip.born_charges(plain.apply))({}, SYSTEM)
    assert found.shape == (3, 3, 3) and np.isnan(found).all()
