"""Relaxation: known minima, held atoms, renewed neighbours, the floor of rounding, failures."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk, molecule
from numpy.testing import assert_allclose, assert_array_equal

from jaxmlip import units
from jaxmlip.derivatives import hessian
from jaxmlip.errors import NumericalError, UsageError
from jaxmlip.interfaces.ase import from_ase
from jaxmlip.md import fire, lbfgs, relax
from jaxmlip.potential import Potential, add_reference_energies
from jaxmlip.system import cast, concatenate, edge_vectors, pad, sum_edges, sum_energies
from jaxmlip.vibrations import normal_modes

METHODS = [lbfgs(), fire()]


def pair_potential(pair, cutoff):
    """Half the sum over directed edges of pair(r), r in Å."""

    def apply(params, system):
        r = jnp.linalg.norm(edge_vectors(system), axis=-1)
        energies = 0.5 * sum_edges(system, pair(params, r))
        return {"energy": sum_energies(system, energies), "energies": energies}

    return Potential(lambda key, system: {"depth": 1.0}, apply, cutoff)


def lennard_jones(params, r):
    return 4 * params["depth"] * (r**-12 - r**-6)


def smooth_lennard_jones(params, r, cutoff=2.5):
    return lennard_jones(params, r) * jnp.clip(1 - (r / cutoff) ** 2, 0) ** 3


OPEN = pair_potential(lennard_jones, cutoff=20.0)  # wider than any cluster here: no truncation
CUT = pair_potential(smooth_lennard_jones, cutoff=2.5)
PARAMS = {"depth": 1.0}


def icosahedron(seed=0, noise=0.1):
    golden = (1 + 5**0.5) / 2
    corners = [np.roll([0, a, b * golden], k) for k in range(3) for a in (1, -1) for b in (1, -1)]
    positions = np.vstack([np.zeros(3), 1.1 * np.array(corners) / np.hypot(1, golden)])
    positions += np.random.default_rng(seed).normal(0, noise, positions.shape)
    return Atoms("Ar13", positions=positions)


def traced(potential):
    """The potential, and a list that grows whenever it is traced."""
    traces = []

    def apply(params, system):
        traces.append(1)
        return potential.apply(params, system)

    return potential._replace(apply=apply), traces


@pytest.mark.parametrize("method", METHODS, ids=["lbfgs", "fire"])
@pytest.mark.parametrize("flat", [False, True], ids=["per_receiver", "flat"])
def test_thirteen_atoms_find_the_icosahedron(method, flat):
    """Cambridge Cluster Database: -44.326801 epsilon."""
    start = from_ase(icosahedron(), OPEN.cutoff, flat=flat)
    end, info = relax(OPEN, PARAMS, start, method=method)
    assert info.converged and info.fmax <= 1e-4
    assert_allclose(info.energy, -44.326801, atol=1e-6)  # digits of the reference
    assert_allclose(OPEN.apply(PARAMS, end)["energy"], info.energy, rtol=1e-12)


def test_three_morse_atoms_become_an_equilateral_triangle():
    morse = pair_potential(lambda p, r: (1 - jnp.exp(-1.5 * (r - 1.2))) ** 2 - 1, 20.0)
    start = Atoms("H3", positions=[[0, 0, 0], [1.5, 0.1, 0], [0.4, 1.0, 0.3]])
    end, info = relax(morse, {}, from_ase(start, 20.0), fmax=1e-9)
    assert_allclose(info.energy, -3.0, atol=1e-12)
    distances = np.linalg.norm(end.positions - np.roll(end.positions, 1, axis=0), axis=1)
    assert_allclose(distances, 1.2, atol=1e-8)  # fmax / curvature, 1e-9 / 4.5
    # X3 with bonds k = 2 D a²: breathing at sqrt(3k/m), a degenerate pair at sqrt(3k/2m)
    modes = normal_modes(jax.jit(hessian(morse.apply))({}, end), np.full(3, 1.008), end.positions)
    expected = np.sqrt(4.5 / 1.008 * np.array([1.5, 1.5, 3])) * units.hbar / units.invcm
    assert_allclose(modes.frequencies_cm1, expected, rtol=1e-7)
    assert np.abs(modes.rigid_frequencies_cm1).max() < 0.1  # cm⁻¹, of a well relaxed molecule


def test_a_molecule_converges_in_few_evaluations():
    """Springs between all atoms, stiff for bonds and soft for torsions, from a shaken start."""
    ethanol = molecule("CH3CH2OH")
    rest, n = ethanol.get_all_distances(), len(ethanol)
    stiff = np.where(rest < 1.6, 40.0, np.where(rest < 2.3, 3.0, 0.05))
    i, j = np.triu_indices(n, 1)

    def apply(params, system):
        r = jnp.linalg.norm(system.positions[i] - system.positions[j], axis=-1)
        return {"energy": 0.5 * (stiff[i, j] * (r - rest[i, j]) ** 2).sum()[None]}

    ethanol.rattle(0.1, seed=0)
    end, info = relax(Potential(None, apply, 1.0), {}, from_ase(ethanol, 1.0))
    assert info.converged and info.n_steps < 100
    distances = np.linalg.norm(end.positions[i] - end.positions[j], axis=-1)
    assert_allclose(distances, rest[i, j], atol=5e-3)  # fmax over the softest constant, 1e-4 / 0.05


@pytest.mark.parametrize("method", METHODS, ids=["lbfgs", "fire"])
def test_held_atoms_keep_their_positions_to_the_last_bit(method):
    start = from_ase(icosahedron(), OPEN.cutoff)
    fixed = np.arange(13) < 4
    end, info = relax(OPEN, PARAMS, start, method=method, fixed=fixed)
    assert info.converged
    assert_array_equal(end.positions[fixed], start.positions[fixed])
    assert np.abs(end.positions[~fixed] - start.positions[~fixed]).max() > 0.01


def test_padding_changes_nothing():
    start = from_ase(icosahedron(), OPEN.cutoff)
    both = start, pad(start, n_atoms=16, n_neighbors=20)
    (end, info), (padded, padded_info) = (relax(OPEN, PARAMS, s, fmax=1e-8) for s in both)
    assert abs(padded_info.n_steps - info.n_steps) <= 1  # sums of another order: 1e-10 Å there
    assert_allclose(padded.positions[:13], end.positions, atol=1e-9)
    assert_array_equal(padded.positions[13:], 0)


def test_no_pair_is_missed_however_wide_the_skin():
    """Atoms come together from afar; a list made anew for every evaluation is the reference."""
    positions = np.random.default_rng(3).uniform(0, 5.5, (10, 3))
    start = from_ase(Atoms("Ar10", positions=positions), CUT.cutoff, capacity=9)
    ends = [
        relax(CUT, PARAMS, start, skin=skin, steps=60, block=60)[0].positions
        for skin in (0.0, 0.3, 2.0)
    ]
    assert np.abs(ends[0] - positions).max() > 0.5
    assert_allclose(ends[1], ends[0], atol=1e-8)  # order of summation, grown over 60 steps
    assert_allclose(ends[2], ends[0], atol=1e-8)


def test_a_disturbed_crystal_goes_back_to_its_lattice():
    crystal = bulk("Ar", "fcc", a=1.56, cubic=True).repeat((2, 2, 2))
    perfect = CUT.apply(PARAMS, from_ase(crystal, CUT.cutoff))["energy"]
    crystal.rattle(0.03, seed=0)
    _, info = relax(CUT, PARAMS, from_ase(crystal, CUT.cutoff))
    assert info.converged
    assert_allclose(info.energy, perfect, rtol=1e-9)  # fmax² / curvature


def test_lbfgs_never_accepts_a_higher_energy():
    method = lbfgs(max_step=2.0, softness=1.0)  # steps far too long on purpose
    valley = lambda x: (100 * (x[:, 1] - x[:, 0] ** 2) ** 2 + (1 - x[:, 0]) ** 2).sum()
    energy_and_slope, step = jax.jit(jax.value_and_grad(valley)), jax.jit(method.step)
    state = method.init(jnp.array([[-1.2, 1.0, 0.0]]))
    energies = []
    for _ in range(150):
        energy, slope = energy_and_slope(state.trial)
        state = step(state, energy, -slope)
        energies.append(float(state.energy))
    assert (np.diff(energies) <= 1e-15).all()
    assert_allclose(state.positions[0, :2], 1, atol=1e-6)


def test_one_compilation_serves_all_steps_starts_and_params():
    potential, traces = traced(CUT)
    first = from_ase(icosahedron(0), CUT.cutoff + 0.5, capacity=12)
    second = from_ase(icosahedron(1), CUT.cutoff + 0.5, capacity=12)
    relax(potential, PARAMS, first, block=5)
    n = len(traces)
    _, info = relax(potential, {"depth": 2.0}, second, block=7, fmax=1e-3)
    assert info.converged and len(traces) == n


def test_reports_come_between_blocks():
    seen = []
    _, info = relax(OPEN, PARAMS, from_ase(icosahedron(), OPEN.cutoff), block=5, report=seen.append)
    lengths = np.diff([0] + [i.n_steps for i in seen])  # shorter where atoms leave the skin
    assert (lengths > 0).all() and lengths.max() == 5 and seen[-1] == info
    assert seen[-1].energy < seen[0].energy


def test_too_few_steps_are_told():
    _, info = relax(OPEN, PARAMS, from_ase(icosahedron(), OPEN.cutoff), steps=3)
    assert not info.converged and info.n_steps == 3
    assert info.reason.startswith("3 evaluations")


def test_single_precision_ends_at_its_floor_and_says_so():
    """Under total energies of 1e4 eV a float32 cannot see the last mEV, yet forces still lead."""
    heavy = add_reference_energies(OPEN, {18: -1000.0})
    start = cast(from_ase(icosahedron(), OPEN.cutoff), np.float32)
    end, info = relax(heavy, PARAMS, start, fmax=1e-9)
    assert not info.converged and "float32" in info.reason and info.n_steps < 400
    assert end.positions.dtype == np.float32
    assert info.fmax < 3e-4  # eps of positions times curvature, 1e-7 x 1000 eV/Å²
    exact = OPEN.apply(PARAMS, cast(end, np.float64))["energy"]
    assert_allclose(exact, -44.326801, atol=1e-5)


def test_what_is_not_finite_is_raised_with_step_and_atoms():
    wall = lambda p, x: jnp.where(x > 0.9, jnp.sqrt(0.9 - x), 0.0)

    def apply(params, system):
        x = system.positions[:, 0]
        return {"energy": ((x - 2.0) ** 2 + wall(params, x)).sum()[None]}

    start = from_ase(Atoms("Ar2", positions=[[0, 0, 0], [-3.0, 0, 0]]), 1.0)
    with pytest.raises(NumericalError, match=r"relax, step \d+.*forces on atoms \[0\]"):
        relax(Potential(None, apply, 1.0), {}, start)


def test_a_batch_is_refused():
    one = from_ase(icosahedron(), OPEN.cutoff)
    with pytest.raises(UsageError, match="batch of 2"):
        relax(OPEN, PARAMS, concatenate([one, one]))


def test_one_atom_is_relaxed_already():
    start = from_ase(Atoms("Ar"), CUT.cutoff)
    _, info = relax(CUT, PARAMS, start)
    assert info.converged and info.n_steps == 1 and info.energy == 0


def test_a_list_of_ones_own_is_used():
    calls = []

    def neighbors(system):
        calls.append(1)
        return replace(system, edges=start.edges)  # all pairs, always

    start = from_ase(icosahedron(), OPEN.cutoff)
    _, info = relax(OPEN, PARAMS, start, neighbors=neighbors, skin=50.0)
    assert info.converged and len(calls) <= 2 + info.n_steps // 50
