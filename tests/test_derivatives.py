"""Transforms of one energy, and the algebra of potentials, on a potential that compiles at once."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose
from structures import ethanol, toy, triclinic

import jaxmlip
from jaxmlip.derivatives.second.hessian import rows_at_once
from jaxmlip.errors import UsageError
from jaxmlip.interfaces.ase import from_ase
from jaxmlip.potential import Potential, add, add_field, add_reference_energies, scale

TOY = toy()
SYSTEM = from_ase(ethanol(), 4.0)
HESSIAN = np.asarray(jax.jit(jaxmlip.hessian(TOY.apply))({}, SYSTEM))


@pytest.mark.parametrize("memory", [1.0, 2e5, 1e9])
def test_the_hessian_does_not_depend_on_the_memory_it_may_use(memory):
    found = jax.jit(jaxmlip.hessian(TOY.apply, memory=memory))({}, SYSTEM)
    assert_allclose(found, HESSIAN, atol=1e-12)


def test_rows_of_chosen_atoms_are_rows_of_the_hessian():
    found = jax.jit(jaxmlip.hessian(TOY.apply, atoms=[7, 2]))({}, SYSTEM)
    assert found.shape == (2, 3, 9, 3)
    assert_allclose(found, HESSIAN[[7, 2]], atol=1e-12)


def test_a_row_that_does_not_exist_is_refused():
    with pytest.raises(IndexError, match="atom 9"):
        jaxmlip.hessian(TOY.apply, atoms=[9])({}, SYSTEM)


def test_a_mask_chooses_its_true_rows_and_no_other_array_passes_for_indices():
    mask = np.isin(np.arange(9), [2, 7])
    found = jax.jit(jaxmlip.hessian(TOY.apply, atoms=mask))({}, SYSTEM)
    assert_allclose(found, HESSIAN[mask], atol=1e-12)
    for wrong in (mask[:2], [1.0, 2.5], [[1, 2]]):
        with pytest.raises(UsageError, match="atoms"):
            jaxmlip.hessian(TOY.apply, atoms=wrong)({}, SYSTEM)
    with pytest.raises(UsageError, match="empty"):
        jaxmlip.hessian(TOY.apply, atoms=mask & False)({}, SYSTEM)


def test_hessian_vector_product_is_the_product_with_the_hessian():
    vector = np.random.default_rng(0).normal(size=(9, 3))
    found = jax.jit(jaxmlip.hessian_vector_product(TOY.apply))({}, SYSTEM, vector)
    assert_allclose(found, np.einsum("iajb,jb->ia", HESSIAN, vector), atol=1e-12)


def test_the_hessian_of_a_batch_is_block_diagonal():
    batch = jaxmlip.concatenate([SYSTEM, SYSTEM])
    found = jax.jit(jaxmlip.hessian(TOY.apply))({}, batch)
    assert_allclose(found[:9, :, :9], HESSIAN, atol=1e-12)
    assert (np.asarray(found[:9, :, 9:]) == 0).all()


def test_more_memory_allows_more_rows_but_never_more_than_there_are():
    function = lambda r: jnp.sin(r).sum() * r
    argument = jnp.ones((9, 3))
    chunks = [rows_at_once(function, argument, memory, 27) for memory in (0, 1e3, 1e4, 1e12)]
    assert chunks == sorted(chunks) and chunks[0] == 1 and chunks[-1] == 27


def constant(energy):
    def apply(params, system):
        return {"energy": jnp.full(system.n_graphs, energy) * params}

    return Potential(lambda key, system: jnp.ones(()), apply, 3.0)


def test_potentials_add_and_scale():
    both = add(constant(2.0), scale(TOY, 0.5))
    params = both.init(jax.random.key(0), SYSTEM)
    out, toy_out = both.apply(params, SYSTEM), TOY.apply({}, SYSTEM)
    assert both.cutoff == 4.0
    assert_allclose(out["energy"], 2.0 + 0.5 * toy_out["energy"])
    assert_allclose(out["dipole"], 0.5 * toy_out["dipole"])
    assert_allclose(out["charges"], 0.5 * toy_out["charges"])


def test_reference_energies_are_those_of_the_free_atoms():
    reference = {1: -13.5, 6: -57.25, 8: -110.0}
    batch = jaxmlip.concatenate([SYSTEM, from_ase(triclinic(), 4.0)])
    shifted = add_reference_energies(TOY, reference).apply({}, batch)
    plain = TOY.apply({}, batch)
    expected = [6 * -13.5 + 2 * -57.25 - 110.0, 2 * -57.25 - 2 * 110.0]
    assert_allclose(shifted["energy"] - plain["energy"], expected, rtol=1e-14)
    assert_allclose(shifted["energies"].sum(), shifted["energy"].sum(), rtol=1e-14)


def test_an_element_without_reference_energy_is_not_a_silent_zero():
    out = add_reference_energies(TOY, {1: -13.5, 6: -57.25}).apply({}, SYSTEM)
    assert np.isnan(out["energy"]).all()


def test_the_field_couples_to_dipole_and_polarisability():
    from dataclasses import replace

    field = np.array([[0.03, -0.02, 0.05]])
    inside = replace(SYSTEM, field=field)
    plain, coupled = TOY.apply({}, SYSTEM), add_field(TOY).apply({}, inside)
    alpha = plain["polarizability"][0]
    work = plain["dipole"][0] @ field[0] + 0.5 * field[0] @ alpha @ field[0]
    assert_allclose(coupled["energy"], plain["energy"] - work, rtol=1e-13)
    at = lambda transform: jax.jit(transform(add_field(TOY).apply))({}, inside)
    assert_allclose(at(jaxmlip.dipole), coupled["dipole"], atol=1e-14)
    assert_allclose(coupled["dipole"], plain["dipole"] + alpha @ field[0], atol=1e-14)
    assert_allclose(at(jaxmlip.polarizability)[0], alpha, atol=1e-13)


def test_forces_in_a_field_are_the_slope_of_the_energy_in_that_field():
    from dataclasses import replace

    apply = jax.jit(jaxmlip.predict(add_field(TOY).apply))
    inside = replace(SYSTEM, field=np.array([[0.3, -0.2, 0.5]]))
    d, h = np.random.default_rng(3).normal(size=(9, 3)), 1e-3
    at = lambda s: apply({}, replace(inside, positions=SYSTEM.positions + s * h * d))["energy"][0]
    slope = (at(-2) - 8 * at(-1) + 8 * at(1) - at(2)) / (12 * h)
    forces = np.asarray(apply({}, inside)["forces"])
    assert_allclose(slope, -(forces * d).sum(), rtol=1e-8)  # h^4 of a smooth energy
    assert np.abs(forces - apply({}, SYSTEM)["forces"]).max() > 1e-2


def test_born_charges_are_the_slope_of_the_dipole():
    from dataclasses import replace

    found = jax.jit(jaxmlip.born_charges(add_field(TOY).apply))({}, SYSTEM)
    dipole = lambda r: TOY.apply({}, replace(SYSTEM, positions=r))["dipole"][0]
    slope = jax.jit(jax.jacfwd(dipole))(jnp.asarray(SYSTEM.positions))  # [field, atom, cartesian]
    assert_allclose(found, slope.transpose(1, 2, 0), atol=1e-13)


def test_a_potential_without_a_dipole_cannot_be_coupled():
    with pytest.raises(UsageError, match="add_field: needs a potential that predicts dipole"):
        add_field(constant(1.0)).apply(jnp.ones(()), SYSTEM)


@pytest.mark.parametrize("response", [jaxmlip.dipole, jaxmlip.polarizability, jaxmlip.born_charges])
def test_a_response_that_could_only_be_zero_is_refused(response):
    with pytest.raises(UsageError, match="add_field"):
        response(TOY.apply)({}, SYSTEM)
    with pytest.raises(UsageError, match="add_field"):
        jax.jit(response(TOY.apply))({}, SYSTEM)


def test_ensembles_are_vmap_over_params():
    params = jnp.array([1.0, 2.0, 3.0])
    apply = add(constant(2.0), TOY).apply
    out = jax.vmap(apply, ((0, None), None))((params, {}), SYSTEM)
    assert_allclose(np.diff(out["energy"][:, 0]), 2.0)
