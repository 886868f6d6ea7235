"""Second and third derivatives of any size: laws, plans, and sums over modes without a Hessian.

That the Hessian of every model is the slope of its forces, symmetric and free of translations is
held in test_models.py (test_other_hessians.py: of those that do not fit its padded shape); here are
rotations and third derivatives of every model, and the engine.
Crystals are Morse copper with light atoms, whose vibrations are quantum at 300 K.
"""

import json
import re
import subprocess
import sys
from dataclasses import replace
from functools import cache
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ase.build import bulk, molecule
from numpy.testing import assert_allclose
from structures import KEY, ethanol
from test_models import MODELS, evaluate, potential, system_of

from jaxmlip import units
from jaxmlip.derivatives.first import forces
from jaxmlip.derivatives.second import free_memory as memory_of
from jaxmlip.derivatives.second.free_memory import free_memory, host_memory
from jaxmlip.derivatives.second.hessian import hessian, hessian_vector_product
from jaxmlip.derivatives.second.lanczos import nodes_and_weights, spectral_density, sum_over_modes
from jaxmlip.derivatives.second.lowest import lowest_modes
from jaxmlip.derivatives.second.mass_weighted import inverse_roots, rigid_motions
from jaxmlip.derivatives.second.plan import plan_hessian
from jaxmlip.derivatives.second.quality import symmetrised
from jaxmlip.derivatives.second.sparse import colouring, dense, neighbourhoods, sparse_hessian
from jaxmlip.derivatives.third import (
    cubic_along,
    cubic_force_constants,
    hessian_slope,
    third_derivative_product,
)
from jaxmlip.errors import NumericalError, ResourceError, UsageError
from jaxmlip.interfaces.ase import from_ase
from jaxmlip.models import Morse
from jaxmlip.system import cast, concatenate, edge_vectors, pad, sum_edges, sum_energies
from jaxmlip.vibrations.crystals.spectral_density import density_of_states, thermal
from jaxmlip.vibrations.modes import frequencies_cm1, mass_weighted, normal_modes
from jaxmlip.vibrations.thermodynamics import harmonic

MOLECULE = from_ase(ethanol(), 4.0)
MASSES = ethanol().get_masses()
MORSE = Morse(cutoff=4.5)
LIGHT = 20.0  # amu
ROOT = Path(__file__).parent.parent

all_models = pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[] if n == "Morse" else pytest.mark.slow) for n in MODELS]
)


def pairs(params, system):
    """(1 - r²/16)^4 for every pair within 4 Å: the least that has a Hessian."""
    square = (edge_vectors(system) ** 2).sum(-1)
    energies = sum_edges(system, jnp.maximum(1 - square / 16, 0) ** 4)
    return {"energy": sum_energies(system, energies), "energies": energies}


PAIR_HESSIAN = jax.jit(hessian(pairs))


@cache
def exact_pairs():
    return np.asarray(PAIR_HESSIAN({}, MOLECULE))


@cache
def crystal(rattle=0.0):
    """108 atoms of the fcc crystal, near its minimum."""
    atoms = bulk("Cu", "fcc", a=3.75, cubic=True).repeat(3)
    atoms.rattle(rattle, seed=1)
    return from_ase(atoms, MORSE.cutoff)


@cache
def crystal_hessian():
    return np.asarray(jax.jit(hessian(MORSE.apply))({}, crystal()))


@cache
def crystal_eigenvalues():
    """Of the whole mass-weighted Hessian of the crystal, without the translations."""
    values = eigenvalues_of(crystal_hessian())
    assert np.abs(values[:3]).max() < 1e-10 < values[3]  # a minimum, but for the translations
    return values[3:]


def eigenvalues_of(found):
    return np.linalg.eigvalsh(mass_weighted(found, np.full(len(found), LIGHT)))


CRYSTAL_DENSITY = spectral_density(MORSE.apply, n_probes=2, n_steps=12)


@cache
def molecule_density():
    """Four Lanczos runs through the whole space of 21 vibrations."""
    run = spectral_density(pairs, n_probes=4, n_steps=25)
    return run({}, MOLECULE, MASSES, KEY)


@cache
def pair_plan(chunk):
    """What a chunk of columns needs when nothing limits it."""
    return plan_hessian(pairs, {}, MOLECULE, chunk=chunk, memory=1e9)


def random(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape)


# --- laws ----------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_turning_a_molecule_turns_its_forces_and_the_card_says_so(name):
    """H (w x r) = w x dE/dr at any geometry; 1e-9 as for the other exact sums."""
    system = system_of("ethanol")
    found, f = evaluate(name, system, hessian), evaluate(name, system)["forces"]
    symmetric, card = symmetrised(found, system, forces=f)
    assert card.dtype == "float64"
    assert card.relative_asymmetry < 1e-10 and card.relative_translation < 1e-9
    assert card.relative_rotation < 1e-9
    assert_allclose(symmetric, found, atol=1e-10 * card.largest)


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
    broken = exact_pairs().copy()
    broken[0, 0, 1, 2] += 0.25
    symmetric, card = symmetrised(broken.astype(np.float32), MOLECULE)
    assert card.dtype == "float32" and symmetric.dtype == np.float64
    assert_allclose([card.asymmetry, card.translation], 0.25, rtol=1e-6)
    assert_allclose(symmetric, symmetric.transpose(2, 3, 0, 1), rtol=0, atol=0)
    broken[4, 1] = np.nan
    with pytest.raises(NumericalError, match="first atom 4"):
        symmetrised(broken, MOLECULE)


def test_a_crystal_has_no_law_of_rotations_and_padding_breaks_none():
    assert symmetrised(crystal_hessian(), crystal())[1].rotation is None
    wide = pad(MOLECULE, n_atoms=12)
    found = np.asarray(PAIR_HESSIAN({}, wide))
    assert (found[9:] == 0).all() and (found[:, :, 9:] == 0).all()
    assert_allclose(found[:9, :, :9], exact_pairs(), atol=1e-13)
    f = np.asarray(jax.jit(forces(pairs))({}, wide))
    card = symmetrised(found, wide, forces=f)[1]
    assert card.relative_rotation < 1e-12 and card.relative_translation < 1e-12
    without = symmetrised(found, wide)[1]
    assert without.rotation > 1e-3 * np.abs(f).max()  # forces are not zero here, and it shows


# --- the engine ----------------------------------------------------------------------------------


def squared(params, system):
    """Something to train: the energy of the pairs times k²."""
    return {"energy": params["k"] ** 2 * pairs({}, system)["energy"]}


def test_hessians_of_replicas_are_a_vmap_over_positions():
    moves = MOLECULE.positions + 0.05 * random(2, 9, 3)
    at = lambda r: replace(MOLECULE, positions=r)
    many = jax.jit(jax.vmap(lambda r: hessian(pairs)({}, at(r))))(moves)
    for r, found in zip(moves, many, strict=True):
        assert_allclose(found, PAIR_HESSIAN({}, at(r)), atol=1e-12)


def test_the_hessian_can_be_trained_on():
    """d/dk of |H|² for an energy k² E: 4 |H|² / k."""
    loss = lambda params: (hessian(squared)(params, MOLECULE) ** 2).sum()
    k = 1.3
    slope = jax.jit(jax.grad(loss))({"k": k})["k"]
    assert_allclose(slope, 4 * k**3 * (exact_pairs() ** 2).sum(), rtol=1e-12)


def test_single_precision_is_good_to_single_precision():
    found = PAIR_HESSIAN({}, cast(MOLECULE, jnp.float32))
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
    apply, traces = traced(pairs)
    plan = plan_hessian(apply, {}, MOLECULE, atoms=[7, 2])
    assert plan.n_compilations == 1 and plan.n_columns == 6 and "6 columns" in str(plan)
    before = len(traces)
    for _ in range(2):
        assert_allclose(plan.run({}, MOLECULE), exact_pairs()[[7, 2]], atol=1e-13)
    assert len(traces) == before
    assert plan.result_bytes == 6 * 27 * 8 and plan.peak_bytes < plan.memory


def test_a_plan_stays_within_the_memory_it_is_given():
    greedy, least = pair_plan(27), pair_plan(1).peak_bytes
    assert greedy.chunk == 27 and least < greedy.peak_bytes
    limit = (least + greedy.peak_bytes) / 2
    plan = plan_hessian(pairs, {}, MOLECULE, chunk=27, memory=limit)
    assert 1 <= plan.chunk < 27 and plan.peak_bytes <= limit and plan.n_compilations <= 3
    assert_allclose(plan.run({}, MOLECULE), exact_pairs(), atol=1e-13)


def test_a_limit_that_cannot_be_kept_is_refused_with_the_least_that_is_needed():
    least = pair_plan(1).peak_bytes
    with pytest.raises(ResourceError, match="one column at a time") as refused:
        plan_hessian(pairs, {}, MOLECULE, memory=0.9 * least)
    assert refused.value.exit_code == 5
    named = float(re.search("memory=([0-9.e+]*[0-9])", str(refused.value))[1])
    assert least <= named < 1.01 * least  # rounded up: what is named is enough
    tight = plan_hessian(pairs, {}, MOLECULE, memory=named)
    assert tight.chunk == 1 and tight.peak_bytes <= named
    apply, traces = traced(pairs)
    with pytest.raises(ResourceError, match="alone needs"):
        plan_hessian(apply, {}, MOLECULE, memory=5000)
    assert not traces  # before minutes of compiling


GROUPS = {  # of cgroups, version 2 and 1: the limit of each and of all it is in, less what it holds
    "0::/pod/job": {
        "pod/job/memory.max": "max",
        "pod/memory.max": "3000",
        "pod/memory.current": "1500",
        "pod/memory.stat": "anon 700\ninactive_file 500\n",
    },
    "4:memory:/pod": {
        "memory/pod/memory.limit_in_bytes": "3000",
        "memory/pod/memory.usage_in_bytes": "1500",
        "memory/pod/memory.stat": "inactive_file 100\ntotal_inactive_file 500\n",
        "memory/memory.limit_in_bytes": "9223372036854771712",
        "memory/memory.usage_in_bytes": "5000",
    },
    "4:cpu,memory:/seen/outside": {  # a container: its own group is the root here
        "memory/memory.limit_in_bytes": "2500",
        "memory/memory.usage_in_bytes": "500",
    },
}


@pytest.mark.parametrize("group", GROUPS)
def test_free_memory_is_what_the_container_leaves_of_that_of_the_host(tmp_path, group):
    """Bytes; files that nobody reads at the moment (inactive) are given up when asked for."""
    files = {f"sys/fs/cgroup/{name}": text for name, text in GROUPS[group].items()}
    files |= {"proc/self/cgroup": f"9:pids:/\n{group}\n"}
    host = {"proc/meminfo": "MemTotal: 90 kB\nMemAvailable: 40 kB\n"}
    for name, text in (files | host).items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    assert host_memory(tmp_path) == 2000
    (tmp_path / "proc/meminfo").write_text("MemAvailable: 1 kB\n")
    assert host_memory(tmp_path) == 1024
    assert host_memory(tmp_path / "nobody") == np.inf
    if sys.platform == "linux":
        assert 0 <= host_memory() < np.inf


def test_free_memory_is_what_the_device_tells_or_else_that_of_the_host(monkeypatch):
    """Two readings of the real machine differ, for others work there: fixed figures instead."""
    device = lambda figures: SimpleNamespace(memory_stats=lambda: figures)
    monkeypatch.setattr(memory_of, "host_memory", lambda: 700.0)
    assert free_memory(device({"bytes_limit": 500, "bytes_in_use": 100})) == 400.0
    assert free_memory(device(None)) == free_memory(device({})) == 700.0


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
    modes = normal_modes(exact_pairs(), MASSES, MOLECULE.positions)
    found = lowest_modes(pairs, n_modes=5)({}, cast(MOLECULE, dtype), MASSES)
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
    find = lambda **options: lowest_modes(pairs, max_products=4, **options)
    with pytest.raises(NumericalError, match="did not converge"):
        find()({}, MOLECULE, MASSES)
    rough = find(strict=False)({}, MOLECULE, MASSES)
    values = normal_modes(exact_pairs(), MASSES, MOLECULE.positions).frequencies_cm1
    assert not rough.converged.any()
    assert values[0] < rough.frequencies_cm1[0]  # Rayleigh quotients lie above
    with pytest.raises(UsageError, match="21 vibrations"):
        lowest_modes(pairs, n_modes=22)({}, MOLECULE, MASSES)


@pytest.mark.parametrize("name, n_rigid", [("CO2", 5), ("H2", 5), ("CH4", 6), ("H", 3)])
def test_rigid_motions_are_as_many_as_the_shape_allows(name, n_rigid):
    atoms = molecule(name)
    system = from_ase(atoms, 4.0)
    found = rigid_motions(system, inverse_roots(system, atoms.get_masses())).reshape(n_rigid, -1)
    assert_allclose(found @ found.T, np.eye(n_rigid), atol=1e-12)


def test_a_lanczos_run_through_the_whole_space_finds_every_eigenvalue():
    """In cm⁻¹, as the lowest modes; degenerate ones would be found once."""
    modes = normal_modes(exact_pairs(), MASSES, MOLECULE.positions)
    for nodes, weights in zip(*nodes_and_weights(molecule_density()), strict=True):
        found = frequencies_cm1(np.sort(nodes[weights > 1e-20]))
        assert_allclose(found, modes.frequencies_cm1, atol=1e-6)
        assert_allclose(weights.sum(), 1, rtol=1e-12)


def heat_capacity(eigenvalues, temperature=300.0):
    frequencies = np.sqrt(eigenvalues) * units.hbar / units.invcm
    return harmonic(frequencies, temperature)


def test_error_bars_of_sums_over_modes_are_right():
    """Two sums of 12 runs, off by their own bars, rms; chi² of 24 lies in 0.36 .. 1.9 (99 %)."""
    values = crystal_eigenvalues()
    true = heat_capacity(values)
    off = []
    for key in jax.random.split(KEY, 12):
        density = CRYSTAL_DENSITY({}, crystal(), np.full(108, LIGHT), key)
        assert density.n_products == 24 and density.n_modes == 321
        found = thermal(density, 300.0)
        for estimate, expected in (
            (found.heat_capacity, true.heat_capacity),
            (found.free_energy, true.energy - 300 * true.entropy),
        ):
            assert estimate.truncation < estimate.error
            off.append((estimate.value - expected) / estimate.error)
    assert 0.36 < np.mean(np.square(off)) < 1.9
    assert 0.6 < true.heat_capacity / (321 * units.kB) < 0.9  # far from the classical limit


def test_the_density_of_states_counts_every_mode():
    density = CRYSTAL_DENSITY({}, crystal(), np.full(108, LIGHT), KEY)
    grid = np.linspace(-200, 1500, 2000)
    dos = density_of_states(density, grid, width=30.0)
    assert_allclose(np.trapezoid(dos.value, grid), 321, rtol=1e-9)
    values = crystal_eigenvalues()
    assert dos.value[grid < -150].max() < 1e-3 * dos.value.max()
    found = sum_over_modes(density, lambda x: x)
    assert abs(found.value - values.sum()) < 4 * found.error
    assert found.truncation < 1e-9 * values.sum()  # two steps are exact for the trace


def test_imaginary_modes_are_not_summed_in_silence():
    density = molecule_density()
    with pytest.raises(NumericalError, match="not at a minimum"):
        thermal(density, 300.0)
    n_imaginary = normal_modes(exact_pairs(), MASSES, MOLECULE.positions).n_imaginary
    counted = thermal(density, 300.0, ignore_imaginary_below_cm1=2000).n_imaginary
    assert abs(counted - n_imaginary) < 6  # 4 directions of 21 dimensions


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [jnp.float64, jnp.float32])
def test_heat_capacity_of_a_large_cell_from_a_twentieth_of_its_columns(dtype):
    """1000 atoms: 128 products instead of 3000; within 0.5 %."""
    atoms = bulk("Cu", "fcc", a=3.75).repeat(10)
    atoms.rattle(0.02, seed=1)  # no eigenvalue is degenerate, none is imaginary
    system, masses = from_ase(atoms, MORSE.cutoff), np.full(1000, LIGHT)
    found = np.asarray(jax.jit(hessian(MORSE.apply))({}, system))
    expected = heat_capacity(eigenvalues_of(found)[3:]).heat_capacity
    run = spectral_density(MORSE.apply, n_probes=8, n_steps=16)
    for seed in range(3):
        density = run({}, cast(system, dtype), masses, jax.random.key(seed))
        assert density.n_products <= 3000 / 20
        found = thermal(density, 300.0).heat_capacity
        assert abs(found.value / expected - 1) < 5e-3
        assert found.error < 2.5e-3 * expected


# --- sparse --------------------------------------------------------------------------------------


def test_colouring_gives_the_hessian_of_a_pair_potential_from_few_products():
    atoms = bulk("Cu", "fcc", a=5.0, cubic=True).repeat(4)  # twelve neighbours are within 4 Å
    atoms.rattle(0.02, seed=0)
    system = from_ase(atoms, 4.0)
    found = sparse_hessian(pairs, hops=1)({}, system)
    assert found.pays and found.n_products < 0.4 * found.n_columns
    rows = [0, 100]
    expected = np.asarray(jax.jit(hessian(pairs, atoms=rows))({}, system))
    assert_allclose(dense(found)[rows], expected, atol=1e-12 * np.abs(expected).max())
    assert (dense(found)[rows] == expected)[expected == 0].all()
    assert found.residual < 1e-14  # and all other rows, along a random vector


def test_where_colouring_does_not_pay_it_is_the_dense_hessian_and_says_so():
    wide = pad(MOLECULE, n_atoms=11)
    found = sparse_hessian(pairs, hops=1)({}, wide)
    assert not found.pays and found.n_colours == 9 and "does not pay" in str(found)
    assert_allclose(dense(found)[:9, :, :9], exact_pairs(), atol=1e-12)


def test_a_range_that_is_too_short_is_found_out():
    """A one-layer potential in a long cell: atoms feel one another two edges apart."""
    chain = bulk("C", "sc", a=3.0).repeat((1, 1, 12))
    chain.rattle(0.05, seed=0)
    system = from_ase(chain, 4.0)
    apply = lambda params, system: {"energy": pairs(params, system)["energies"] ** 2}
    right = sparse_hessian(apply, hops=2)({}, system)
    assert right.pays and right.residual < 1e-13
    with pytest.raises(NumericalError, match="more than 1 edges apart"):
        sparse_hessian(apply, hops=1)({}, system)


def test_how_far_atoms_feel_one_another_is_found_by_trying():
    """1, 2, 4 ... edges; a range that no edges have, or a molecule of one piece, is left dense."""
    chain = bulk("C", "sc", a=3.0).repeat((1, 1, 15))
    chain.rattle(0.05, seed=0)
    system = from_ase(chain, 4.0)
    layer = lambda params, system: {"energy": pairs(params, system)["energies"] ** 2}
    given, found = sparse_hessian(layer, hops=2)({}, system), sparse_hessian(layer)({}, system)
    assert (given.hops, found.hops) == (2, 2) and found.pays
    assert_allclose(found.blocks, given.blocks, atol=1e-14)
    wasted = 1 + int(colouring(neighbourhoods(system, 1)).max())
    assert found.n_products == given.n_products + 3 * wasted

    everyone = lambda params, system: {"energy": pairs(params, system)["energy"] ** 2}
    expected = np.asarray(jax.jit(hessian(everyone))({}, system))
    whole = sparse_hessian(everyone)({}, system)
    assert whole.hops is None and not whole.pays and whole.n_products < 2 * whole.n_columns
    assert_allclose(dense(whole), expected, atol=1e-12 * np.abs(expected).max())
    whole = sparse_hessian(pairs)({}, pad(MOLECULE, n_atoms=11))
    assert whole.hops is None and whole.n_products == 28 and "does not pay" in str(whole)
    assert_allclose(dense(whole)[:9, :, :9], exact_pairs(), atol=1e-12)
    broken = lambda params, system: {"energy": np.nan * pairs(params, system)["energy"]}
    with pytest.raises(NumericalError, match="not those of a Hessian"):
        sparse_hessian(broken)({}, MOLECULE)


def test_atoms_of_one_colour_share_no_row():
    near = neighbourhoods(crystal(rattle=0.05), 1)
    colours = colouring(near)
    for atoms in near:
        assert len(set(colours[atoms])) == len(atoms)


# --- third derivatives ---------------------------------------------------------------------------


def test_cubic_force_constants_are_symmetric_in_all_three_places():
    system = from_ase(molecule("H2O"), 4.0)
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
    directions = random(3, 3, 3)
    turned = np.einsum("abc,ia,jb,kc->ijk", flat, *[directions.reshape(3, 9)] * 3)
    along = jax.jit(cubic_along(pairs))({}, system, directions)
    assert_allclose(along, turned, atol=1e-12 * np.abs(turned).max())


def test_the_slope_of_the_hessian_is_a_finite_difference_of_hessians():
    u, h = random(9, 3), 1e-4
    at = lambda s: np.asarray(
        PAIR_HESSIAN({}, replace(MOLECULE, positions=MOLECULE.positions + s * u))
    )
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
