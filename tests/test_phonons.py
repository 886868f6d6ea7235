"""Phonons: known dispersions, what symmetry and sums demand, an interpolation that is measured."""

import json
from dataclasses import replace
from functools import cache
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk
from crystals import SIGMA, argon, pair_sum, save_argon, skewed  # noqa: F401
from numpy.testing import assert_allclose
from scipy.optimize import brentq
from test_bloch import LJ, MASSES, TINY, network

import jaxmlip
from jaxmlip import units
from jaxmlip.cli.main import main
from jaxmlip.derivatives.bloch.matrix import dynamical_matrix
from jaxmlip.errors import DataError, NumericalError, UsageError
from jaxmlip.interfaces.ase import from_ase
from jaxmlip.models import MACE
from jaxmlip.models.pair import Morse
from jaxmlip.potential import Potential, scale
from jaxmlip.vibrations.phonons.bands import (
    phonons,
    points_path,
    standard_path,
)
from jaxmlip.vibrations.phonons.certified import (
    SAFETY,
    certified_mesh,
    certified_points,
    measured,
    raise_unless_certified,
    remembered,
)
from jaxmlip.vibrations.phonons.dispersion import (
    acoustic_sum,
    connected,
    crystal,
    frequencies_THz,
    imaginary,
    modes,
    raise_if_imaginary,
    with_acoustic_sum,
)
from jaxmlip.vibrations.phonons.grids import q_grid, rotated, star, star_matrices, unfolded
from jaxmlip.vibrations.phonons.interpolation import (
    FourierSum,
    from_grid,
    from_points,
    in_supercell,
    prior,
)
from jaxmlip.vibrations.phonons.reduced import little_group, symmetric_matrices
from jaxmlip.vibrations.phonons.velocities import slopes

SHARED = Path(__file__).parents[2] / "shared" / "data" / "vibrations" / "phonopy_examples"
CM1 = units.THz / units.invcm
ARGON_MASS = 39.948
RNG = np.random.default_rng(5)


def bloch(model, atoms):
    """D(q) of a potential as a function of q alone."""
    system = from_ase(atoms, model.cutoff)
    matrix = dynamical_matrix(model.apply)
    return lambda q: np.asarray(matrix({}, system, np.asarray(q, float)))


def fcc(a=5.25053):
    return bulk("Ar", "fcc", a=a)


def hcp():
    return bulk("Ar", "hcp", a=3.713, c=6.063)


def low_symmetry():
    """Two atoms in a skewed cell: the identity alone, and no two bands alike."""
    atoms = skewed(hcp(), 0.02)
    atoms.set_masses([40.0, 30.0])
    return atoms


@cache
def short_argon():
    """(atoms, D(q), one entry for each time its program was traced) at its lattice constant."""
    atoms, model, traces = fcc(5.27640), argon(2.5), []

    def apply(params, system):
        traces.append(1)
        return model.apply(params, system)

    return atoms, bloch(Potential(model.init, apply, model.cutoff), atoms), traces


# --- numbers from outside ------------------------------------------------------------------------


def check_argon(D, expected):
    # the reference gives three decimals of a wavenumber, and of a lattice constant five
    found = frequencies_THz(D(list(expected)), [ARGON_MASS]) * CM1
    assert_allclose(found, list(expected.values()), atol=2e-3)


def test_argon_has_the_frequencies_of_its_lattice_sums():
    expected = {
        (0.5, 0.5, 0): [45.315, 45.315, 66.238],
        (0.5, 0.5, 0.5): [30.137, 30.137, 66.145],
    }
    check_argon(short_argon()[1], expected)


@pytest.mark.slow
def test_argon_of_long_reach_has_the_frequencies_of_its_lattice_sums():
    expected = {
        (0.5, 0.5, 0): [47.237, 47.237, 69.282],
        (0.5, 0.5, 0.5): [31.316, 31.316, 69.249],
        (0.5, 0.75, 0.25): [46.719, 59.421, 59.421],
    }
    check_argon(bloch(argon(8.0), fcc()), expected)


def test_a_diatomic_chain_has_its_analytic_dispersion():
    r0, depth, a = 2.0, 0.7, 1.3
    light, heavy, spring = 10.0, 40.0, 2 * depth * a**2  # curvature of a Morse bond at r0
    atoms = Atoms("NeAr", [[0, 0, 0], [0, 0, r0]], cell=[20, 20, 2 * r0], pbc=True)
    model = Morse(elements=(10, 18), depth=depth, a=a, r0=r0, cutoff=1.5 * r0, onset=0.9)
    q = np.array([[0, 0, x] for x in (0.0, 0.1, 0.25, 0.37, 0.5)])
    found = frequencies_THz(bloch(model, atoms)(q), [light, heavy])
    mean = spring * (1 / light + 1 / heavy)
    root = np.sqrt(mean**2 - 4 * spring**2 / light / heavy * np.sin(np.pi * q[:, 2]) ** 2)
    expected = np.sqrt(np.stack([mean - root, mean + root], 1)) * units.hbar / units.THz
    assert_allclose(found[:, -2:], expected, atol=1e-7)  # at Gamma sqrt(1e-16) of rounding
    assert_allclose(found[1:, -2:], expected[1:], rtol=1e-8)
    assert_allclose(found[:, :4], 0, atol=1e-6)  # bonds at rest have no stiffness across


def test_cold_crystals_follow_debye_and_hot_ones_dulong_and_petit():
    """Springs along x, y and z for which omega² = w² sum (2 - 2 cos): sound of speed w a."""
    atoms, mass, stiffness = bulk("Po", "sc", a=3.0), 100.0, 2.0
    steps = np.concatenate([np.zeros((1, 3), int), np.eye(3, dtype=int), -np.eye(3, dtype=int)])
    blocks = stiffness * np.array([6.0] + [-1.0] * 6)[:, None, None] * np.eye(3)
    D = FourierSum(lattice=steps, blocks=blocks)
    quantum = units.hbar * np.sqrt(stiffness / mass)  # eV
    debye = quantum * (6 * np.pi**2) ** (1 / 3) / units.kB  # K; all three branches have speed w a
    found = phonons(
        D, atoms, mesh=(36, 36, 36), temperatures=[debye / 40, 100 * debye], tolerance=None,
        masses=[mass], path=points_path([[0, 0, 0]], atoms),
    )  # fmt: skip
    cold, hot = found.thermal.heat_capacity / (3 * units.kB / units.kJ_mol * 1000)
    assert_allclose(cold, 4 * np.pi**4 / 5 / 40**3, rtol=0.03)  # the dispersion's T^5 is 2 %
    assert_allclose(hot, 1, rtol=1e-4)  # (debye/T)²/20
    speed = 2 * np.pi * quantum / units.THz * 3.0 * 0.1  # w a, km/s
    slow = found.frequencies_THz[:, 0] < 0.1 * found.frequencies_THz.max()
    slow &= np.abs(found.mesh.q).max(1) > 0
    assert_allclose(np.linalg.norm(found.group_velocities[slow], axis=-1), speed, rtol=0.02)


def test_sodium_chloride_splits_and_has_the_heat_capacity_of_phonopy():
    if not SHARED.exists():
        pytest.skip("no shared data beside this checkout")
    from jaxmlip.interfaces.phonons.phonopy_files import primitive_atoms, read_phonopy
    from jaxmlip.vibrations.phonons.nonanalytic import polar_sum

    constants, polar = read_phonopy(SHARED / "NaCl" / "phonopy_disp.yaml")
    atoms, D = primitive_atoms(constants), polar_sum(constants, polar)
    path = points_path([[0, 0, 0], [0, 0, 0]], atoms)
    path = replace(path, direction=np.array([[0, 0, 0], [1.0, 0, 0]]))
    found = phonons(
        D.short, atoms, mesh=(20, 20, 20), temperatures=[300.0], tolerance=None,
        nonanalytic=D.dipoles, path=path,
    )  # fmt: skip
    transverse, longitudinal = found.bands.frequencies_THz * CM1
    assert_allclose(transverse[3:], 154.0, atol=0.05)
    assert_allclose(longitudinal[3:], [154.0, 154.0, 246.7], atol=0.05)
    thermal = found.thermal
    values = [thermal.free_energy[0], thermal.entropy[0], thermal.heat_capacity[0]]
    assert_allclose(values, [-6.942, 74.916, 48.034], rtol=1e-3)


# --- symmetry ------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [fcc, hcp])
def test_a_rotated_wave_has_the_rotated_matrix(make):
    atoms = make()
    D, lattice, q = pair_sum(atoms), crystal(atoms), RNG.uniform(-1, 1, (2, 3))
    for o in range(lattice.group.n_ops):
        after = q @ np.linalg.inv(lattice.group.rotations[o])
        assert_allclose(rotated(lattice, o, q, D(q)), D(after), atol=1e-12)


def test_the_columns_that_symmetry_leaves_give_the_whole_matrix():
    atoms, model = hcp(), argon(2.0)
    group, system = crystal(atoms).group, from_ase(atoms, model.cutoff)
    # Gamma, a line, M, K, and a q that only inversion with time reversal keeps
    q = np.array([[0, 0, 0], [0, 0, 0.3], [0.5, 0, 0], [1 / 3, 1 / 3, 0], [0.11, -0.23, 0.37]])
    matrices = symmetric_matrices(model.apply, {}, system, group)(q)
    assert_allclose(matrices, dynamical_matrix(model.apply)({}, system, q), atol=1e-14)
    orders = [little_group(group, x)[0].n_ops for x in q]
    assert orders == [24, 24, 8, 24, 2] and group.n_ops == 24


def test_columns_by_symmetry_are_as_good_as_the_symmetry_of_the_potential():
    """A field that no operation keeps, as a sum that was cut has one: 1e-5 of the springs."""
    atoms, model = hcp(), argon(2.0)
    group, system = crystal(atoms).group, from_ase(atoms, model.cutoff)
    tilt = np.random.default_rng(3).normal(size=(2, 3, 3))
    q = np.array([[0.11, 0, 0.25], [0.5, 0.0, 0.0]])

    def apply(params, s):
        out, x = model.apply({}, s), s.positions - system.positions
        return out | {"energy": out["energy"] + params * jnp.einsum("ai,aij,aj->", x, tilt, x)}

    whole = dynamical_matrix(apply)(1e-5, system, q)
    largest = np.abs(whole).max()
    by = lambda tolerance: symmetric_matrices(apply, 1e-5, system, group, tolerance=tolerance)(q)
    raw = by(0.0)
    assert np.abs(raw - raw.conj().swapaxes(1, 2)).max() > 1e-6 * largest
    found = by(1e-3)
    assert_allclose(found, found.conj().swapaxes(1, 2), rtol=0, atol=1e-16)
    assert_allclose(found, whole, atol=1e-4)  # eV/Å², ten times the field
    frequencies_THz(found, [ARGON_MASS] * 2)
    with pytest.raises(NumericalError, match="JM301.*limit 1e-09, the tolerance of the long"):
        by(1e-9)


@pytest.mark.parametrize("shape", [(4, 4, 4), (3, 4, 2), (1, 1, 1)])
def test_irreducible_points_give_the_whole_grid(shape):
    atoms = hcp()
    D, lattice = pair_sum(atoms), crystal(atoms)
    grid = q_grid(lattice, shape)
    points = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), -1).reshape(-1, 3)
    assert grid.weights.sum() == len(points) and len(grid.q) <= (len(points) + 8) // 2
    assert_allclose(unfolded(lattice, grid, D(grid.q)), D(points / shape), atol=1e-12)
    with pytest.raises(UsageError):
        q_grid(lattice, (4, 0, 4))


def test_an_interpolation_is_exact_where_it_knows_and_symmetric_everywhere():
    atoms = hcp()
    D, lattice = pair_sum(atoms), crystal(atoms)
    grid = q_grid(lattice, (3, 3, 2))
    known = RNG.uniform(-0.5, 0.5, (4, 3))
    stars = [star_matrices(lattice, q, D(q)[0]) for q in known]
    from_stars = from_points(
        prior(lattice, length=1.5, power=4),
        np.concatenate([q for q, _ in stars]),
        np.concatenate([m for _, m in stars]),
    )
    regular = from_grid(lattice, grid, D(grid.q))
    size = np.abs(D(grid.q)).max()
    assert_allclose(regular(grid.q), D(grid.q), atol=1e-12 * size)
    assert_allclose(from_stars(known), D(known), atol=1e-6 * size)  # as firm as the prior's noise
    q = RNG.uniform(-0.5, 0.5, 3)
    for found in (regular, from_stars):
        values = frequencies_THz(found(star(lattice, q)), lattice.masses)
        assert_allclose(values, np.broadcast_to(values[0], values.shape), atol=1e-6)
        assert not np.allclose(found(q), D(q), atol=1e-6 * size)


# --- sums ----------------------------------------------------------------------------------------


def test_translations_are_free_and_a_violation_is_told_before_it_is_corrected():
    atoms, exact, _ = short_argon()
    found = acoustic_sum(exact(np.zeros((1, 3)))[0], [ARGON_MASS])
    assert np.abs(found.frequencies_THz).max() < 1e-3 and found.violation < 1e-12
    broken = lambda q: exact(q) + 0.01 * np.eye(3)
    told = phonons(
        broken,
        atoms,
        correct=with_acoustic_sum,
        path=points_path([[0, 0, 0]], atoms),
        mesh=(4, 4, 4),
    )
    assert_allclose(told.acoustic.violation, 0.01, rtol=1e-9)
    assert np.abs(told.bands.frequencies_THz).max() < 1e-3 < told.acoustic.frequencies_THz[0]


MANY_BODY = [
    pytest.param(scale(network(), 0.1), id="messages"),
    pytest.param(MACE(**TINY, hidden_l=1, correlation=2), id="mace", marks=pytest.mark.slow),
]


@pytest.mark.parametrize("messages", MANY_BODY)
def test_a_relaxed_crystal_of_many_body_forces_has_three_acoustic_modes_at_zero(messages):
    """Messages and a repulsion of pairs, at the lattice constant without stress."""
    model = jaxmlip.add(LJ, messages)
    at = lambda a: from_ase(bulk("CO", "rocksalt", a=a), model.cutoff, capacity=64)
    params = jax.jit(model.init)(jax.random.key(0), at(4.2))
    stress = jax.jit(jaxmlip.stress(model.apply))
    tension = lambda a: float(np.trace(stress(params, at(a))[0]))  # cubic: no force on an atom
    a = brentq(tension, 3.6, 4.6, xtol=1e-12)
    assert abs(tension(a)) < 1e-10 < 1e-2 < -tension(3.6)  # eV/Å³
    gamma = np.asarray(dynamical_matrix(model.apply)(params, at(a), np.zeros((1, 3))))
    every, found = frequencies_THz(gamma, MASSES)[0], acoustic_sum(gamma[0], MASSES)
    assert np.abs(found.frequencies_THz).max() < 1e-3 < 1 < np.abs(every).max()
    assert (np.abs(every) < 1e-3).sum() == 3  # and no other mode with them
    silent = jax.tree.map(np.zeros_like, params)
    assert abs(np.trace(stress(silent, at(a))[0])) > 1e-4  # messages are heard


def test_states_add_up_to_three_for_each_atom():
    atoms = low_symmetry()
    D = pair_sum(atoms)
    found = phonons(D, atoms, mesh=(7, 7, 7), tolerance=None, on_imaginary=lambda f, q: None)
    # the density is sampled at 401 points and has kinks: trapezia are good to some 1e-3
    assert_allclose(np.trapezoid(found.dos, found.dos_THz), 6, rtol=1e-2)
    assert_allclose(found.projected_dos.sum(0), found.dos, atol=1e-9 * found.dos.max())
    assert_allclose(np.trapezoid(found.projected_dos, found.dos_THz), [3] * 2, rtol=2e-2)


def test_group_velocities_are_slopes_of_the_frequencies():
    atoms = low_symmetry()
    D, lattice, q = pair_sum(atoms), crystal(atoms), np.array([[0.13, 0.31, -0.22]])
    path = points_path(q, atoms)
    found = phonons(
        D, atoms, mesh=(2, 2, 2), tolerance=None, path=path, on_imaginary=lambda f, q: None
    )
    step = 1e-4  # 1/Å; the error of central differences is its square
    for axis in range(3):
        dq = step * np.linalg.solve(lattice.reciprocal.T, np.eye(3)[axis])
        up, down = (frequencies_THz(D(q + s * dq), lattice.masses) for s in (1, -1))
        slope = (up - down) / (2 * step) * 0.1  # Å THz to km/s
        assert_allclose(found.bands.group_velocities[0, :, axis], slope[0], atol=1e-4)
    numeric = slopes(lambda q: D(q), q, lattice.cell)
    # (2 pi R step)²/6 for the second neighbours, and less for all others
    assert_allclose(slopes(D, q, lattice.cell), numeric, atol=1e-5 * np.abs(numeric).max())


def test_branches_are_followed_through_their_crossings():
    q = np.linspace(0, 1, 30)[:, None]
    rising, falling = np.array([1.0, 0, 0]), np.array([0, 1.0, 0])
    matrices = np.array(
        [x * np.outer(rising, rising) + (1 - x) * np.outer(falling, falling) for (x,) in q]
    ) + 2 * np.diag([0, 0, 1.0])
    frequencies, vectors = modes(matrices.astype(complex), [1.0])
    order = connected(frequencies, vectors)
    branches = np.take_along_axis(frequencies, order, 1)
    slopes = np.sign(np.diff(branches[1:-1] ** 2, axis=0).round(12))
    assert sorted(map(tuple, slopes.T.tolist())) == [(-1,) * 27, (0,) * 27, (1,) * 27]


# --- the measured interpolation ------------------------------------------------------------------


@pytest.mark.parametrize("make", [fcc, hcp, low_symmetry])
def test_the_certified_error_holds_at_q_that_it_never_saw(make):
    atoms = make()
    counted, lattice = Counted(pair_sum(atoms)), crystal(atoms)
    path = standard_path(atoms).q
    mesh = certified_mesh(counted, lattice, tolerance=0.02)
    assert mesh.certified and mesh.n_exact == counted.n
    line = certified_points(counted, lattice, path, tolerance=0.02)
    assert line.certified and line.n_exact + mesh.n_exact == counted.n
    elsewhere = np.random.default_rng(0).uniform(-0.5, 0.5, (300, 3))
    assert measured(mesh.D, counted.D, lattice, elsewhere) < 0.02
    assert measured(line.D, counted.D, lattice, path) < 0.02
    assert line.n_exact < len(path) / 4  # it is worth its trouble


def test_a_grid_that_would_cost_more_than_the_budget_is_not_certified():
    atoms = low_symmetry()
    counted, lattice = Counted(pair_sum(atoms)), crystal(atoms)
    for function, target in ((certified_mesh, ()), (certified_points, (standard_path(atoms).q,))):
        counted.n = 0
        found = function(counted, lattice, *target, tolerance=1e-7, budget=30)
        assert not found.certified and SAFETY * found.error_THz > 1e-7
        assert counted.n == found.n_exact <= 30
        with pytest.raises(NumericalError, match="JM307.*tolerance 1e-07"):
            raise_unless_certified(found)


def test_a_path_of_which_every_point_is_exact_has_no_error():
    atoms = hcp()
    D, lattice, path = pair_sum(atoms), crystal(atoms), standard_path(atoms).q[::6]
    found = certified_points(D, lattice, path, tolerance=1e-9)
    assert found.certified and found.error_THz == 0
    assert measured(found.D, D, lattice, path) < 1e-4  # as firm as the prior's noise


class Counted:
    """D that counts its matrices."""

    def __init__(self, D):
        self.D, self.n = D, 0

    def __call__(self, q):
        self.n += len(q)
        return self.D(q)


def test_no_matrix_is_computed_twice():
    counted = Counted(pair_sum(hcp()))
    exact, table = remembered(counted)
    q = np.array([[0.1, 0.2, 0.3], [-0.1, -0.2, -0.3], [1.1, 0.2, -0.7], [0.5, 0, 0], [-0.5, 0, 0]])
    assert_allclose(exact(q), counted.D(q), atol=1e-12)
    assert counted.n == len(table) == 2


def test_one_program_serves_every_mesh_and_path():
    atoms, D, traces = short_argon()
    phonons(D, atoms, mesh=(4, 4, 4), masses=[ARGON_MASS])
    once = len(traces)
    phonons(D, atoms, mesh=(6, 6, 6), masses=[ARGON_MASS], tolerance=0.01)
    assert len(traces) == once


def test_what_lies_beyond_a_supercell_is_nothing_at_its_own_points():
    atoms = bulk("NaCl", "rocksalt", a=5.6)
    from jaxmlip.interfaces.phonons.phonopy_files import Polar
    from jaxmlip.vibrations.phonons.nonanalytic import beyond_supercell, dipole_sum

    lattice, charges = crystal(atoms), np.array([np.eye(3), -np.eye(3)])
    nothing = FourierSum(lattice=np.zeros((1, 3), int), blocks=np.zeros((1, 6, 6)))
    constants = in_supercell(lattice, atoms.numbers, nothing, (1, 1, 1))
    dipoles = dipole_sum(constants, Polar(born_charges=charges, dielectric=2.3 * np.eye(3)))
    extra = beyond_supercell(dipoles, lattice, 6.0)
    q = q_grid(lattice, (2, 2, 2)).q
    assert_allclose(extra(q), 0, atol=1e-6)  # the reciprocal sum ends at 1e-8
    # at Gamma, along any direction, the splitting is 4 pi k Z² / (eps V) for the relative motion
    limit = extra(np.zeros((1, 3)), np.array([1.0, 0, 0]))[0]
    along = np.linalg.inv(atoms.cell.array).T[0]
    along /= np.linalg.norm(along)
    strength = 4 * np.pi * units.coulomb_constant / 2.3 / atoms.get_volume()
    expected = strength * np.einsum("a,b,i,j->aibj", [1, -1], [1, -1], along, along)
    assert_allclose(limit, expected.reshape(6, 6), atol=1e-6)


# --- mistakes ------------------------------------------------------------------------------------


def test_imaginary_modes_are_found_and_refused():
    frequencies = np.array([[0.0, 1.0], [-0.3, 2.0]])
    count, lowest, where = imaginary(frequencies, np.array([[0, 0, 0], [0.5, 0, 0]]))
    assert (count, lowest, where.tolist()) == (1, -0.3, [0.5, 0, 0])
    with pytest.raises(NumericalError, match="JM306.*lowest -0.300 THz at q = \\[0.5, 0.0, 0.0\\]"):
        raise_if_imaginary(frequencies, np.array([[0, 0, 0], [0.5, 0, 0]]))
    raise_if_imaginary(frequencies, np.zeros((2, 3)), limit=0.5)


def test_a_matrix_that_cannot_be_one_is_refused():
    with pytest.raises(NumericalError, match="not Hermitian"):
        frequencies_THz(np.triu(np.ones((1, 3, 3))), [1.0])
    with pytest.raises(NumericalError, match="not finite, first at q number 1"):
        frequencies_THz(np.array([np.eye(3), np.full((3, 3), np.nan)]), [1.0])
    with pytest.raises(DataError, match="shape"):
        frequencies_THz(np.eye(3), [1.0])
    with pytest.raises(DataError, match="pbc"):
        crystal(Atoms("Ar", cell=[5, 5, 5], pbc=[True, True, False]))


def test_atoms_with_four_decimals_have_path_and_mesh_of_the_crystal_they_are_meant_for():
    """Of atoms that nobody moves: 1e-4 Å away, frequencies are 1e-4 THz away at most."""
    ideal = hcp()
    rounded, options = ideal.copy(), {"mesh": (4, 4, 2), "temperatures": [50.0]}
    rounded.positions += [[0, 0, 0], [2e-4, -1e-4, 0]]
    assert crystal(rounded).group.number != crystal(ideal).group.number == 194
    found = phonons(pair_sum(rounded), rounded, symprec=1e-3, **options)
    whole = phonons(pair_sum(ideal), ideal, **options)
    assert found.crystal.group.number == 194
    assert found.bands.path.labels == whole.bands.path.labels
    assert_allclose(found.mesh.q, whole.mesh.q, atol=1e-12)
    assert_allclose(found.bands.frequencies_THz, whole.bands.frequencies_THz, atol=0.02)
    assert_allclose(found.frequencies_THz, whole.frequencies_THz, atol=0.02)


# --- the command ---------------------------------------------------------------------------------


@pytest.fixture
def argon_files(folder):  # noqa: F811
    model = save_argon(folder / "argon.safetensors")
    bulk("Ar", "fcc", a=5.3, cubic=True).write(folder / "ar.cif")
    return str(folder / "ar.cif"), model


def read_json(path):
    return json.loads(Path(path).read_text())


def test_the_command_relaxes_and_writes_what_phonopy_goes_on_from(argon_files, capsys):
    file, model = argon_files
    mesh = ["--mesh", "8", "8", "8"]
    run = ["phonons", file, "--model", model, *mesh, "--out", "out"]
    assert main([*run, "--temperatures", "0", "600", "300"]) == 0
    found = read_json("out/ar_phonons.json")
    n_q = len(found["qpoints"])
    assert np.shape(found["frequencies_THz"]) == (n_q, 3) and len(found["band_labels"]) == n_q
    assert found["temperatures_K"] == [0, 300, 600] and found["n_atoms"] == 1
    assert found["per"] == "mol of cells Ar" and found["space_group"] == "Fm-3m (225)"
    assert_allclose(
        np.linalg.det(found["cell_A"]) * 4, 5.27640**3, rtol=5e-5
    )  # stress / bulk modulus
    at_x = found["frequencies_THz"][found["band_labels"].index("X")]
    assert_allclose(
        np.array(at_x) * CM1, [45.315, 45.315, 66.238], atol=0.02
    )  # mass of the element
    assert SAFETY * found["mesh_interpolation_error_THz"] <= found["tolerance_THz"] == 0.02
    assert {"cv_J_per_K_mol", "free_energy_kJ_mol", "entropy_J_per_K_mol"} <= set(found)
    assert "acoustic modes at Γ" in capsys.readouterr().err
    _same_in_phonopy("out/ar_phonopy.yaml", found)
    assert main(run) == 2  # the files are there already
    again = ["phonons", file, "--force-constants", "out/ar_phonopy.yaml", "--no-relax"]
    assert main([*again, *mesh, "--json", "-"]) == 3  # FILE is not relaxed
    assert main(["phonons", "out/ar_phonopy.yaml", *again[2:], *mesh]) == 0
    other = read_json("ar_phonopy_phonons.json")
    assert_allclose(other["frequencies_THz"], found["frequencies_THz"], atol=0.02)


def _same_in_phonopy(path, found):
    import phonopy

    q = np.array(found["mesh_qpoints"])
    phonon = phonopy.load(path, log_level=0)
    phonon.run_qpoints(q)
    # the same force constants, at the same q
    assert_allclose(phonon.qpoints.frequencies, found["mesh_frequencies_THz"], atol=1e-4)


def test_points_are_exact_and_in_the_order_asked_for(argon_files):
    file, model = argon_files
    run = ["phonons", file, "--model", model, "--no-relax", "--mesh", "4", "4", "4", "--json", "f"]
    asked = [[0.5, 0.5, 0.5], [0, 0, 0], [1, 0, 0]]  # of the cubic cell of FILE: L, Gamma, X
    assert main([*run, "--qpoints", "0.5 0.5 0.5, 0 0 0, 1 0 0"]) == 0
    found = read_json("f")
    assert_allclose(found["qpoints_in_file_cell"], asked, atol=1e-12)
    assert found["band_labels"] == ["", "Γ", ""] and found["relaxed"] is False
    assert np.shape(found["frequencies_THz"]) == (3, 3) and found["n_exact_q"] >= 3
    k = np.array(asked) / 5.3  # 1/Å
    assert_allclose(np.array(found["qpoints"]) @ np.linalg.inv(found["cell_A"]).T, k, atol=1e-9)
    standard = k @ np.array(fcc(5.3).cell).T
    expected = pair_sum(fcc(5.3), 2.5 * SIGMA)(standard)
    expected = frequencies_THz(expected, found["masses_amu"])
    assert_allclose(found["frequencies_THz"], expected, atol=1e-6)
    assert found["per"] == "mol of cells Ar" and found["formula_unit"] == "Ar"
    assert (found["formula_units_per_cell"], found["cells_per_file_cell"]) == (1, 4)


def test_an_unstable_crystal_has_its_exit_status_and_its_files(folder, capsys):  # noqa: F811
    model = save_argon(folder / "argon.safetensors")
    bulk("Ar", "sc", a=3.6).write("sc.cif")  # simple cubic argon shears without resistance
    run = ["phonons", "sc.cif", "--model", model, "--no-relax", "--qpoints", "0.5 0 0"]
    run += ["--mesh", "3", "3", "3", "--overwrite"]
    assert main(run) == 4
    assert "JM306" in capsys.readouterr().err
    found = read_json("sc_phonons.json")
    assert found["n_imaginary"] > 0 > found["lowest_frequency_THz"]
    assert found["share_of_modes_left_out"] > 0 and found["warnings"] == []
    constants = ["--force-constants", "sc_phonopy.yaml", "--mesh", "3", "3", "3"]
    assert main(["phonons", "sc.cif", *constants, "--json", "f", "--imaginary", "warn"]) == 2
    again = ["phonons", "sc_phonopy.yaml", *constants, "--json", "f", "--out", "again"]
    assert main([*again, "--imaginary", "warn"]) == 0
    assert "imaginary" in read_json("f")["warnings"][0]


@pytest.mark.parametrize(
    ("extra", "status", "message"),
    [
        ([], 2, "phonons need a potential or force constants"),
        (["--model", "MODEL", "--qpoints", "0 0"], 2, "three numbers"),
        (["--model", "MODEL", "--temperatures", "300", "100", "10"], 2, "no temperatures"),
        (["--model", "MODEL", "--mesh", "0", "2", "2"], 2, "--mesh is 0 2 2"),
        (["--model", "MODEL", "--budget", "3"], 2, "or equal to 24"),
        (["--force-constants", "nowhere.yaml"], 2, "there is no file"),
        (["--model", "MODEL", "--born", "nowhere"], 2, "there is no file"),
    ],
)
def test_a_mistake_is_told_before_anything_is_written(argon_files, capsys, extra, status, message):
    file, model = argon_files
    extra = [model if e == "MODEL" else e for e in extra]
    assert main(["phonons", file, "--no-relax", *extra]) == status
    assert message in capsys.readouterr().err
    assert not list(Path().glob("ar_*"))


def test_a_molecule_is_refused(folder, capsys):  # noqa: F811
    model = save_argon(folder / "argon.safetensors")
    Atoms("Ar2", [[0, 0, 0], [0, 0, 3.8]]).write("ar2.xyz")
    assert main(["phonons", "ar2.xyz", "--model", model]) == 3
    assert "jaxmlip modes" in capsys.readouterr().err
