"""Second and third derivatives of any size: laws, plans, and sums over modes without a Hessian.

That the Hessian of every model is the slope of its forces, symmetric and free of translations is
held in test_models.py; here are rotations and third derivatives of every model, and the engine.
Crystals are Morse copper with light atoms, whose vibrations are quantum at 300 K.
"""

import json
import re
import subprocess
import sys
from dataclasses import replace
from functools import cache
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ase.build import bulk, molecule
from numpy.testing import assert_allclose
from structures import KEY, ethanol, toy, triclinic
from test_models import MODELS, evaluate, potential, system_of

from jaxmlip import units
from jaxmlip.derivatives.first import forces
from jaxmlip.derivatives.lanczos import nodes_and_weights, spectral_density, sum_over_modes
from jaxmlip.derivatives.lowest import lowest_modes
from jaxmlip.derivatives.plan import plan_hessian
from jaxmlip.derivatives.quality import symmetrised
from jaxmlip.derivatives.second import hessian, hessian_vector_product
from jaxmlip.derivatives.sparse import colouring, dense, neighbourhoods, sparse_hessian
from jaxmlip.derivatives.third import (
    cubic_along,
    cubic_force_constants,
    hessian_slope,
    third_derivative_product,
)
from jaxmlip.errors import NumericalError, ResourceError, UsageError
from jaxmlip.interfaces.ase import from_ase
from jaxmlip.models import LennardJones, Morse
from jaxmlip.system import cast, concatenate, edge_vectors, pad, sum_edges, sum_energies
from jaxmlip.vibrations.modes import mass_weighted, normal_modes
from jaxmlip.vibrations.spectral_density import density_of_states, thermal
from jaxmlip.vibrations.thermodynamics import harmonic

TOY = toy()
MOLECULE = from_ase(ethanol(), TOY.cutoff)
MASSES = ethanol().get_masses()
MORSE = Morse(cutoff=4.5)
LIGHT = 20.0  # amu
ROOT = Path(__file__).parent.parent

all_models = pytest.mark.parametrize("name", MODELS)


def pairs(params, system):
    """(1 - r²/16)^4 for every pair within 4 Å: the least that has a Hessian."""
    square = (edge_vectors(system) ** 2).sum(-1)
    energies = sum_edges(system, jnp.maximum(1 - square / 16, 0) ** 4)
    return {"energy": sum_energies(system, energies), "energies": energies}


@cache
def exact_pairs():
    return np.asarray(jax.jit(hessian(pairs))({}, MOLECULE))


@cache
def exact():
    return np.asarray(jax.jit(hessian(TOY.apply))({}, MOLECULE))


@cache
def crystal(rattle=0.0):
    """108 atoms of the fcc crystal, near its minimum."""
    atoms = bulk("Cu", "fcc", a=3.75, cubic=True).repeat(3)
    atoms.rattle(rattle, seed=1)
    return from_ase(atoms, MORSE.cutoff)


@cache
def crystal_eigenvalues():
    """Of the whole mass-weighted Hessian of the crystal, without the translations."""
    values = eigenvalues_of(crystal())
    assert np.abs(values[:3]).max() < 1e-10 < values[3]  # a minimum, but for the translations
    return values[3:]


def eigenvalues_of(system):
    found = np.asarray(jax.jit(hessian(MORSE.apply))({}, system))
    return np.linalg.eigvalsh(mass_weighted(found, np.full(system.n_atoms, LIGHT)))


def random(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape)


# --- laws ----------------------------------------------------------------------------------------


@all_models
def test_turning_a_molecule_turns_its_forces_and_the_card_says_so(name):
    """H (w x r) = w x dE/dr at any geometry; 1e-9 as for the other exact sums."""
    system = system_of("ethanol")
    found, f = evaluate(name, system, hessian), evaluate(name, system)["forces"]
    symmetric, card = symmetrised(found, system, forces=f)
    assert card.dtype == "float64"
    assert card.relative_asymmetry < 1e-10 and card.relative_translation < 1e-9
    assert card.relative_rotation < 1e-9
    assert_allclose(symmetric, found, atol=1e-10 * card.largest)
    without = symmetrised(found, system)[1]
    assert without.rotation > 1e-3 * np.abs(f).max()  # forces are not zero here, and it shows


@pytest.mark.parametrize("structure", ["ethanol", "triclinic"])
@all_models
def test_third_derivatives_are_the_slope_of_the_hessian(name, structure):
    """Central differences of H u along v; truncation and round-off are below 1e-6 of it."""
    apply, params = potential(name)
    system = system_of(structure)
    u, v = random(2, system.n_atoms, 3) * system.atom_mask[:, None]
    third = third_products(name)
    product = lambda h: hessian_products(name)(
        params, replace(system, positions=system.positions + h * v), u
    )
    h = 2e-4
    slope = (8 * (product(h) - product(-h)) - product(2 * h) + product(-2 * h)) / (12 * h)
    found = third(params, system, u, v)
    assert np.isfinite(found).all()
    scale = np.abs(slope).max()
    assert_allclose(found, slope, atol=1e-6 * scale)
    assert_allclose(third(params, system, v, u), found, atol=1e-9 * scale)


@cache
def third_products(name):
    return jax.jit(third_derivative_product(potential(name)[0]))


@cache
def hessian_products(name):
    return jax.jit(hessian_vector_product(potential(name)[0]))


def test_the_card_measures_what_is_broken():
    broken = exact().copy()
    broken[0, 0, 1, 2] += 0.25
    symmetric, card = symmetrised(broken.astype(np.float32), MOLECULE)
    assert card.dtype == "float32" and symmetric.dtype == np.float64
    assert_allclose([card.asymmetry, card.translation], 0.25, rtol=1e-6)
    assert_allclose(symmetric, symmetric.transpose(2, 3, 0, 1), rtol=0, atol=0)
    broken[4, 1] = np.nan
    with pytest.raises(NumericalError, match="first atom 4"):
        symmetrised(broken, MOLECULE)


def test_a_crystal_has_no_law_of_rotations_and_padding_breaks_none():
    periodic = from_ase(triclinic(), TOY.cutoff)
    found = jax.jit(hessian(pairs))({}, periodic)
    assert symmetrised(found, periodic)[1].rotation is None
    wide = pad(MOLECULE, n_atoms=12)
    found = np.asarray(jax.jit(hessian(pairs))({}, wide))
    assert (found[9:] == 0).all() and (found[:, :, 9:] == 0).all()
    assert_allclose(found[:9, :, :9], exact_pairs(), atol=1e-13)
    card = symmetrised(found, wide, forces=forces(pairs)({}, wide))[1]
    assert card.relative_rotation < 1e-12 and card.relative_translation < 1e-12


# --- the engine ----------------------------------------------------------------------------------


def squared(params, system):
    """Something to train: the energy of the pairs times k²."""
    return {"energy": params["k"] ** 2 * pairs({}, system)["energy"]}


def test_hessians_of_replicas_are_a_vmap_over_positions():
    moves = MOLECULE.positions + 0.05 * random(2, 9, 3)
    one = jax.jit(lambda r: hessian(pairs)({}, replace(MOLECULE, positions=r)))
    many = jax.jit(jax.vmap(one))(moves)
    for r, found in zip(moves, many, strict=True):
        assert_allclose(found, one(r), atol=1e-12)


def test_the_hessian_can_be_trained_on():
    """d/dk of |H|² for an energy k² E: 4 |H|² / k."""
    loss = lambda params: (hessian(squared)(params, MOLECULE) ** 2).sum()
    k = 1.3
    slope = jax.jit(jax.grad(loss))({"k": k})["k"]
    assert_allclose(slope, 4 * k**3 * (exact_pairs() ** 2).sum(), rtol=1e-12)


def test_single_precision_is_good_to_single_precision():
    found = jax.jit(hessian(pairs))({}, cast(MOLECULE, jnp.float32))
    assert found.dtype == np.float32
    assert_allclose(found, exact_pairs(), atol=1e-5 * np.abs(exact_pairs()).max())


def traced(apply):
    """apply, and a list that grows whenever it is traced."""
    traces = []

    def counted(params, system):
        traces.append(1)
        return apply(params, system)

    return counted, traces


# --- plans ---------------------------------------------------------------------------------------


def test_a_plan_compiles_once_and_computes_the_hessian():
    plan = plan_hessian(pairs, {}, MOLECULE)
    assert plan.n_compilations == 1 and plan.n_columns == 27
    assert_allclose(plan.run({}, MOLECULE), exact_pairs(), atol=1e-13)
    assert plan.result_bytes == 27 * 27 * 8 and plan.peak_bytes < plan.memory
    some = plan_hessian(pairs, {}, MOLECULE, atoms=[7, 2])
    assert_allclose(some.run({}, MOLECULE), exact_pairs()[[7, 2]], atol=1e-13)
    assert "27 columns" in str(plan)


def test_a_plan_stays_within_the_memory_it_is_given():
    greedy = plan_hessian(pairs, {}, MOLECULE, chunk=27, memory=1e9)
    least = plan_hessian(pairs, {}, MOLECULE, chunk=1, memory=1e9).peak_bytes
    assert greedy.chunk == 27 and least < greedy.peak_bytes
    limit = (least + greedy.peak_bytes) / 2
    plan = plan_hessian(pairs, {}, MOLECULE, chunk=27, memory=limit)
    assert 1 <= plan.chunk < 27 and plan.peak_bytes <= limit and plan.n_compilations <= 3
    assert_allclose(plan.run({}, MOLECULE), exact_pairs(), atol=1e-13)
    tight = plan_hessian(pairs, {}, MOLECULE, memory=least)  # what the refusal will name
    assert tight.chunk == 1 and tight.peak_bytes <= least


def test_a_limit_that_cannot_be_kept_is_refused_with_the_least_that_is_needed():
    least = plan_hessian(pairs, {}, MOLECULE, chunk=1, memory=1e9).peak_bytes
    with pytest.raises(ResourceError, match=re.escape(f"memory={least:.3g}")) as refused:
        plan_hessian(pairs, {}, MOLECULE, memory=0.9 * least)
    assert refused.value.exit_code == 5
    apply, traces = traced(pairs)
    with pytest.raises(ResourceError, match="alone needs"):
        plan_hessian(apply, {}, MOLECULE, memory=5000)
    assert not traces  # before minutes of compiling


def test_a_plan_cannot_be_made_inside_jit():
    with pytest.raises(UsageError, match="inside jit"):
        jax.jit(lambda s: plan_hessian(pairs, {}, s))(MOLECULE)


@pytest.mark.slow
@pytest.mark.parametrize("limit", [5e8])
def test_the_process_holds_what_was_planned(limit):
    """A child process measures its own peak: within 10 % of the plan, and below the limit."""
    code = f"from benchmarks.hessian import memory_of_crystal; memory_of_crystal({limit})"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT
    )
    line = json.loads(done.stdout.splitlines()[-1])
    assert line["planned_mb"] <= limit / 1e6
    assert 0.9 < line["measured_mb"] / line["planned_mb"] < 1.1


# --- modes without a Hessian ---------------------------------------------------------------------


@pytest.mark.parametrize("dtype, digits", [(jnp.float64, 1e-6), (jnp.float32, 0.05)])
def test_the_lowest_modes_are_those_of_the_whole_hessian(dtype, digits):
    """cm⁻¹; in float32 the modes below 200 cm⁻¹ carry errors of 1e-6 of the stiffest."""
    modes = normal_modes(exact(), MASSES, MOLECULE.positions)
    found = lowest_modes(TOY.apply, n_modes=5)({}, cast(MOLECULE, dtype), MASSES)
    assert found.converged.all() and found.n_products <= 21  # there are no more dimensions
    assert_allclose(found.frequencies_cm1, modes.frequencies_cm1[:5], atol=digits)
    overlap = np.einsum("kia,kia->k", found.vectors, modes.vectors[:5])
    assert_allclose(np.abs(overlap), 1, atol=1e-3)


def test_the_lowest_modes_of_a_crystal_need_fewer_products_than_it_has_columns():
    """The lowest of 321 are twelve-fold degenerate, and the space is restarted on the way."""
    values = crystal_eigenvalues()
    find = lowest_modes(MORSE.apply, n_modes=4, block=6, tolerance=1e-5, max_subspace=60)
    found = find({}, crystal(), np.full(108, LIGHT))
    assert_allclose(found.eigenvalues, values[:4], rtol=1e-8)  # of second order in the residual
    assert (np.abs(found.eigenvalues - values[0]) <= found.residuals).all()
    assert 60 < found.n_products < 200
    again = find({}, crystal(), np.full(108, LIGHT), guess=found.vectors)
    assert again.n_products <= 12


def test_modes_that_do_not_converge_are_not_passed_off_as_modes():
    find = lambda **options: lowest_modes(TOY.apply, max_products=4, **options)
    with pytest.raises(NumericalError, match="did not converge"):
        find()({}, MOLECULE, MASSES)
    rough = find(strict=False)({}, MOLECULE, MASSES)
    values = normal_modes(exact(), MASSES, MOLECULE.positions).frequencies_cm1
    assert not rough.converged.any()
    assert values[0] < rough.frequencies_cm1[0]  # Rayleigh quotients lie above
    with pytest.raises(UsageError, match="21 vibrations"):
        lowest_modes(TOY.apply, n_modes=22)({}, MOLECULE, MASSES)


@pytest.mark.parametrize("name, n_modes", [("CO2", 4), ("H2", 1), ("CH4", 9)])
def test_molecules_have_the_vibrations_that_their_shape_gives(name, n_modes):
    atoms = molecule(name)
    density = spectral_density(TOY.apply, n_probes=1, n_steps=2)
    system = from_ase(atoms, TOY.cutoff)
    assert density({}, system, atoms.get_masses(), KEY).n_modes == n_modes


def test_a_lanczos_run_through_the_whole_space_finds_every_eigenvalue():
    values = lowest_modes(TOY.apply, n_modes=21)({}, MOLECULE, MASSES).eigenvalues
    density = spectral_density(TOY.apply, n_probes=1, n_steps=25)({}, MOLECULE, MASSES, KEY)
    nodes, weights = nodes_and_weights(density)
    assert_allclose(nodes[weights > 1e-20], values, atol=1e-8)
    assert_allclose(weights.sum(), 1, rtol=1e-12)


def heat_capacity(eigenvalues, temperature=300.0):
    frequencies = np.sqrt(eigenvalues) * units.hbar / units.invcm
    return harmonic(frequencies, temperature)


def test_error_bars_of_sums_over_modes_are_right():
    """48 estimates of each sum are off by their own bars, rms; chi² of 48 lies in 0.5 .. 1.6."""
    values = crystal_eigenvalues()
    run = spectral_density(MORSE.apply, n_probes=2, n_steps=12)
    true = heat_capacity(values)
    off = []
    for key in jax.random.split(KEY, 24):
        density = run({}, crystal(), np.full(108, LIGHT), key)
        assert density.n_products == 24 and density.n_modes == 321
        found = thermal(density, 300.0)
        for estimate, expected in (
            (found.heat_capacity, true.heat_capacity),
            (found.free_energy, true.energy - 300 * true.entropy),
        ):
            assert estimate.truncation < estimate.error
            off.append((estimate.value - expected) / estimate.error)
    assert 0.5 < np.mean(np.square(off)) < 1.6
    assert 0.6 < true.heat_capacity / (321 * units.kB) < 0.9  # far from the classical limit


def test_the_density_of_states_counts_every_mode():
    density = spectral_density(MORSE.apply, n_probes=4, n_steps=15)(
        {}, crystal(), [LIGHT] * 108, KEY
    )
    grid = np.linspace(-200, 1500, 2000)
    dos = density_of_states(density, grid, width=30.0)
    assert_allclose(np.trapezoid(dos.value, grid), 321, rtol=1e-9)
    values = crystal_eigenvalues()
    assert dos.value[grid < -150].max() < 1e-3 * dos.value.max()
    found = sum_over_modes(density, lambda x: x)
    assert abs(found.value - values.sum()) < 4 * found.error
    assert found.truncation < 1e-9 * values.sum()  # two steps are exact for the trace


def test_imaginary_modes_are_not_summed_in_silence():
    density = spectral_density(TOY.apply, n_probes=4, n_steps=21)({}, MOLECULE, MASSES, KEY)
    with pytest.raises(NumericalError, match="not at a minimum"):
        thermal(density, 300.0)
    n_imaginary = normal_modes(exact(), MASSES, MOLECULE.positions).n_imaginary
    counted = thermal(density, 300.0, ignore_imaginary_below_cm1=2000).n_imaginary
    assert abs(counted - n_imaginary) < 6  # 4 directions of 21 dimensions


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [jnp.float64, jnp.float32])
def test_heat_capacity_of_a_large_cell_from_a_twentieth_of_its_columns(dtype):
    """1000 atoms: 128 products instead of 3000; within 0.5 %."""
    atoms = bulk("Cu", "fcc", a=3.75).repeat(10)
    atoms.rattle(0.02, seed=1)  # no eigenvalue is degenerate, none is imaginary
    system, masses = from_ase(atoms, MORSE.cutoff), np.full(1000, LIGHT)
    expected = heat_capacity(eigenvalues_of(system)[3:]).heat_capacity
    run = spectral_density(MORSE.apply, n_probes=8, n_steps=16)
    for seed in range(3):
        density = run({}, cast(system, dtype), masses, jax.random.key(seed))
        assert density.n_products <= 3000 / 20
        found = thermal(density, 300.0).heat_capacity
        assert abs(found.value / expected - 1) < 5e-3
        assert found.error < 2.5e-3 * expected


# --- sparse --------------------------------------------------------------------------------------


def test_colouring_gives_the_hessian_of_a_pair_potential_from_few_products():
    near_only = LennardJones((29,), epsilon=0.2, sigma=2.3, cutoff=3.2)
    atoms = bulk("Cu", "fcc", a=3.75, cubic=True).repeat(4)
    atoms.rattle(0.02, seed=0)
    system = from_ase(atoms, near_only.cutoff)
    found = sparse_hessian(near_only.apply, hops=1)({}, system)
    assert found.pays and found.n_products < 0.4 * found.n_columns
    expected = np.asarray(jax.jit(hessian(near_only.apply))({}, system))
    assert_allclose(dense(found), expected, atol=1e-12 * np.abs(expected).max())
    assert found.residual < 1e-14
    assert (dense(found) == expected)[expected == 0].all()


def test_where_colouring_does_not_pay_it_is_the_dense_hessian_and_says_so():
    wide = pad(MOLECULE, n_atoms=11)
    found = sparse_hessian(TOY.apply, hops=2)({}, wide)
    assert not found.pays and found.n_colours == 9 and "does not pay" in str(found)
    assert_allclose(dense(found)[:9, :, :9], exact(), atol=1e-12)


def test_a_range_that_is_too_short_is_found_out():
    """A one-layer potential in a long cell: atoms feel one another two edges apart."""
    chain = bulk("C", "sc", a=3.0).repeat((1, 1, 12))
    chain.rattle(0.05, seed=0)
    system = from_ase(chain, 4.0)
    apply = lambda params, system: {"energy": pairs(params, system)["energies"] ** 2}
    right = sparse_hessian(apply, hops=2)({}, system)
    assert right.pays
    expected = np.asarray(jax.jit(hessian(apply))({}, system))
    assert_allclose(dense(right), expected, atol=1e-12)
    with pytest.raises(NumericalError, match="more than 1 edges apart"):
        sparse_hessian(apply, hops=1)({}, system)


def test_atoms_of_one_colour_share_no_row():
    near = neighbourhoods(crystal(rattle=0.05), 1)
    colours = colouring(near)
    for atoms in near:
        assert len(set(colours[atoms])) == len(atoms)


# --- third derivatives ---------------------------------------------------------------------------


def test_cubic_force_constants_are_symmetric_in_all_three_places():
    system = from_ase(molecule("H2O"), TOY.cutoff)
    cubic = np.asarray(jax.jit(cubic_force_constants(pairs))({}, system))
    assert cubic.shape == (9, 3, 3, 3, 3)
    flat = cubic.reshape(9, 9, 9)
    scale = np.abs(flat).max()
    for order in ((1, 0, 2), (0, 2, 1), (2, 1, 0)):
        assert_allclose(flat, flat.transpose(order), atol=1e-12 * scale)
    assert_allclose(flat.reshape(3, 3, 9, 9).sum(0), 0, atol=1e-12 * scale)  # moving all atoms
    columns = [(2, 1), (0, 0)]
    some = jax.jit(cubic_force_constants(pairs, columns=columns, atoms=[1]))({}, system)
    assert_allclose(some, cubic[[7, 0]][:, [1]], atol=1e-12 * scale)
    slope = jax.jit(hessian_slope(pairs))({}, system, np.eye(9)[7].reshape(3, 3))
    assert_allclose(slope, cubic[7], atol=1e-12 * scale)
    directions = random(3, 3, 3)
    turned = np.einsum("abc,ia,jb,kc->ijk", flat, *[directions.reshape(3, 9)] * 3)
    along = jax.jit(cubic_along(pairs))({}, system, directions)
    assert_allclose(along, turned, atol=1e-12 * np.abs(turned).max())


def test_the_slope_of_the_hessian_is_a_finite_difference_of_hessians():
    u, h = random(9, 3), 1e-4
    of = jax.jit(hessian(pairs))
    at = lambda s: np.asarray(of({}, replace(MOLECULE, positions=MOLECULE.positions + s * u)))
    difference = (at(h) - at(-h)) / (2 * h)
    found = jax.jit(hessian_slope(pairs))({}, MOLECULE, u)
    assert_allclose(found, difference, atol=1e-6 * np.abs(difference).max())


def test_axes_and_atoms_of_cubic_columns_are_checked():
    with pytest.raises(UsageError, match="axes"):
        cubic_force_constants(pairs, columns=[(0, 3)])({}, MOLECULE)
    with pytest.raises(IndexError, match="atom 9"):
        cubic_force_constants(pairs, columns=[(9, 0)])({}, MOLECULE)


def test_batches_are_refused_where_one_structure_is_meant():
    with pytest.raises(UsageError, match="batch of 2"):
        lowest_modes(pairs)({}, concatenate([MOLECULE, MOLECULE]), MASSES)
