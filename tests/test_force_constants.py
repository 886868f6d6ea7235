"""Force constants by automatic differentiation, against formulas, Hessians and each other."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk
from crystals import SIGMA, argon, pair_sum, skewed, switched_slopes
from numpy.testing import assert_allclose
from structures import toy, triclinic
from test_symmetry import quartz, rutile

import jaxmlip
from jaxmlip import units
from jaxmlip.derivatives.bloch.matrix import dynamical_matrix
from jaxmlip.errors import NumericalError, UsageError
from jaxmlip.interfaces.ase import from_ase
from jaxmlip.interfaces.phonons.phonopy_files import column_of
from jaxmlip.interfaces.phonons.symmetry import displacement_directions, symmetry
from jaxmlip.models import LennardJones
from jaxmlip.neighbors import find_edges
from jaxmlip.potential import Potential
from jaxmlip.system import edge_vectors, supercell
from jaxmlip.vibrations.phonons.dispersion import frequencies_THz
from jaxmlip.vibrations.phonons.force_constants import (
    compatible,
    displacements,
    enough_repeats,
    force_constants,
    fourier_sum,
    truncation,
)
from jaxmlip.vibrations.phonons.interpolation import nearest_images

CM1 = units.THz / units.invcm


def constants(atoms, model, repeats, group=None):
    """Force constants of the crystal; one potential serves every element."""
    apply = lambda params, system: model.apply(params, system)
    return force_constants(apply, model.cutoff, repeats=repeats, group=group)(
        {}, from_ase(atoms, None)
    )


def alike(atoms):
    """A crystal of some structure with atoms that a potential of argon knows."""
    return LennardJones(elements=tuple(sorted(set(atoms.numbers))), sigma=2.0, cutoff=4.5)


def test_force_constants_are_rows_of_the_hessian_of_the_supercell():
    atoms, model = triclinic(), toy()
    found = constants(atoms, model, (2, 1, 1))
    large = supercell(from_ase(atoms, None), (2, 1, 1))
    edges = find_edges(large.positions, large.cell[0], True, model.cutoff)
    whole = jax.jit(jaxmlip.hessian(model.apply, atoms=range(4)))({}, replace(large, edges=edges))
    assert_allclose(found.values, np.asarray(whole).transpose(0, 2, 1, 3), atol=1e-12)
    assert found.acoustic_sum < 1e-12 and found.asymmetry < 1e-12


@pytest.mark.parametrize(
    "make, repeats, n_columns",
    [
        (lambda: bulk("Ar", a=5.3), (2, 2, 2), 1),
        (lambda: bulk("Ar", a=5.3), (1, 2, 3), 2),  # the supercell is only monoclinic
        (rutile, (1, 1, 2), 2),
        (quartz, (2, 2, 1), 5),  # a site of symmetry 2 and a general one, of 27 columns
    ],
    ids=["fcc", "fcc in a skewed supercell", "rutile", "quartz"],
)
def test_irreducible_displacements_give_all_force_constants(make, repeats, n_columns):
    atoms = make()
    group, model = symmetry(atoms), alike(atoms)
    full, reduced = constants(atoms, model, repeats), constants(atoms, model, repeats, group)
    assert len(displacements(len(atoms), compatible(group, full.matrix))[0]) == n_columns
    assert len(displacements(len(atoms))[0]) == 3 * len(atoms)
    # the positions have the symmetry to 1e-9 Å or better; the bar is 1e-8 of the largest
    assert_allclose(reduced.values, full.values, atol=1e-8 * np.abs(full.values).max())


def test_a_broken_symmetry_is_seen_in_the_reduced_force_constants():
    atoms = rutile()
    group, model = symmetry(atoms), alike(atoms)
    atoms.positions[3] += 0.05
    full, wrong = constants(atoms, model, (1, 1, 1)), constants(atoms, model, (1, 1, 1), group)
    assert np.abs(full.values - wrong.values).max() > 1e-3


def test_lennard_jones_argon_has_the_frequencies_of_its_lattice_sums():
    # README of the reference data, cutoff 2.5 and 8 sigma: X, L and W in cm-1 to three digits.
    # D(q) is exact at the q that a supercell holds, however far the potential reaches.
    x, l, w = [0.5, 0.5, 0.0], [0.5, 0.5, 0.5], [0.5, 0.25, 0.75]
    short = {"X": [45.315, 45.315, 66.238], "L": [30.137, 30.137, 66.145]}
    long = {
        "X": [47.237, 47.237, 69.282],
        "L": [31.316, 31.316, 69.249],
        "W": [46.719, 59.421, 59.421],
    }
    for reach, a, repeats, expected in (
        (2.5, 5.27640, (2, 2, 2), short),
        (8.0, 5.25053, (4, 4, 4), long),
    ):
        atoms = bulk("Ar", a=a)
        found = constants(atoms, argon(reach), repeats, symmetry(atoms))
        q = [{"X": x, "L": l, "W": w}[name] for name in expected]
        frequencies = frequencies_THz(fourier_sum(found)(q), [39.948]) * CM1
        # half a digit, and a0 rounded at 5e-6 Å moves a mode by 1e-3
        assert_allclose(frequencies, list(expected.values()), atol=2.5e-3)


@pytest.mark.parametrize("onset", [1.0, 0.6], ids=["cut", "switched"])
def test_argon_has_its_analytic_dispersion_to_1e_8(onset):
    """Second derivatives of the curve by hand, summed over shells in numpy, at general q."""
    model, atoms = argon(1.7, onset=onset), bulk("Ar", a=5.3)  # the second shell is switched
    shells = (lambda r: switched_slopes(r, 1.7 * SIGMA, onset),) if onset < 1 else ()
    q = np.random.default_rng(1).uniform(-0.5, 0.5, (6, 3))
    expected = frequencies_THz(pair_sum(atoms, 1.7 * SIGMA, *shells)(q), [39.948])
    system = from_ase(atoms, model.cutoff)
    repeats = enough_repeats(np.asarray(atoms.cell), model.cutoff)
    supercells = fourier_sum(constants(atoms, model, repeats, symmetry(atoms)))(q)
    for D in (dynamical_matrix(model.apply)({}, system, q), supercells):
        assert_allclose(frequencies_THz(D, [39.948]), expected, rtol=1e-8)
    assert expected.min() > 0.2  # THz: no q is near Gamma, where nothing would be asked


@pytest.mark.slow
def test_exact_matrices_of_one_atom_have_the_lattice_sums_of_20_sigma():
    """README of the reference data: 36 000 pairs of one atom, no supercell."""
    model, atoms = argon(20.0), bulk("Ar", a=5.24967)
    system = from_ase(atoms, model.cutoff)
    found = dynamical_matrix(model.apply)({}, system, [[0.5, 0.5, 0], [0.5, 0.5, 0.5]])
    expected = [[47.304, 47.304, 69.386], [31.358, 31.358, 69.356]]
    assert_allclose(frequencies_THz(found, [39.948]) * CM1, expected, atol=2.5e-3)


def springs(stiffness, length):
    """Neighbours within 1.5 lengths held by springs at rest."""

    def apply(params, system):
        vectors = edge_vectors(system)
        distance = jnp.linalg.norm(vectors, axis=-1)
        stretch = jnp.where(system.edges.mask, distance - length, 0)
        return {"energy": 0.25 * stiffness * (stretch**2).sum()[None]}

    return Potential(lambda key, system: {}, apply, 1.5 * length)


def test_the_diatomic_chain_of_springs_to_1e_8():
    k, a, masses = 3.0, 2.0, np.array([10.0, 25.0])
    atoms = Atoms("HO", [[0, 0, 0], [a, 0, 0]], cell=[2 * a, 0, 0], pbc=[True, False, False])
    apply = springs(k, a)
    found = force_constants(apply.apply, apply.cutoff, repeats=(4, 1, 1), masses=masses)(
        {}, from_ase(atoms, None)
    )
    q = np.array([0.0, 0.1, 0.25, 0.37, 0.5])  # not only those of the supercell: springs end
    mean, product = k * (1 / masses).sum(), 4 * k**2 / masses.prod() * np.sin(np.pi * q) ** 2
    root = np.sqrt(mean**2 - product)
    optical, acoustic = np.sqrt(mean + root), np.sqrt(np.maximum(mean - root, 0))
    matrices = fourier_sum(found)(q[:, None] * [1, 0, 0])
    frequencies = frequencies_THz(matrices, found.masses) * units.THz / units.hbar
    assert_allclose(frequencies[:, -1], optical, atol=1e-8)
    assert_allclose(frequencies[1:, -2], acoustic[1:], atol=1e-8)
    assert np.abs(frequencies[:, :4]).max() < 1e-6  # nothing holds it sideways


def test_a_supercell_twice_the_reach_of_the_potential_leaves_nothing_to_converge():
    atoms, model = bulk("Ar", a=5.3), argon(1.7)  # two shells
    group = symmetry(atoms)
    repeats = enough_repeats(np.asarray(atoms.cell), model.cutoff)
    larger = constants(atoms, model, repeats + 1, group)
    enough = constants(atoms, model, repeats, group)
    small = constants(atoms, model, (2, 2, 2), group)
    q = np.random.default_rng(0).uniform(-1, 1, (10, 3))
    exact = fourier_sum(larger)(q)
    assert_allclose(fourier_sum(enough)(q), exact, atol=1e-12)
    assert np.abs(fourier_sum(small)(q) - exact).max() > 1e-4
    assert truncation(enough) < 1e-12 < 1e-4 < truncation(small)


def test_the_sum_over_a_skewed_supercell_is_hermitian_periodic_and_shares_images_fairly():
    atoms = skewed(bulk("Si"), 0.05)
    found = constants(atoms, alike(atoms), (2, 3, 1))
    total, q = fourier_sum(found), np.random.default_rng(0).uniform(-1, 1, (5, 3))
    matrices = total(q)
    largest = np.abs(matrices).max()
    assert_allclose(matrices, matrices.conj().swapaxes(1, 2), atol=1e-12 * largest)
    assert_allclose(total(q + [1, -2, 3]), matrices, atol=1e-12 * largest)
    ends = found.positions[found.atoms] + found.shifts @ found.cell
    for start in found.positions:
        column, moved, share = nearest_images(
            ends - start, found.matrix @ found.cell, tolerance=1e-5
        )
        assert_allclose(np.bincount(column, share), 1)
        lattice = found.shifts[column] + moved @ found.matrix
        assert (column_of(found, found.atoms[column], lattice) == column).all()


def test_the_nearest_images_are_found_in_any_basis_of_the_lattice():
    cell, sheared = 4.0 * np.eye(3), np.array([[1, 0, 0], [5, 1, 0], [-4, 7, 1]])
    vectors = np.random.default_rng(0).uniform(-9, 9, (20, 3)).round() / 2
    expected = [nearest_images(v[None], cell, tolerance=1e-5) for v in vectors]
    for v, (_, moved, share) in zip(vectors, expected, strict=True):
        _, other, shares = nearest_images(v[None], sheared @ cell, tolerance=1e-5)
        ends = {tuple(np.round(v + m, 9)) for m in moved @ cell}
        assert ends == {tuple(np.round(v + m, 9)) for m in other @ sheared @ cell}
        assert len(shares) == len(share) and np.abs(list(ends)).max() <= 2


def test_what_is_not_finite_gives_no_force_constants():
    """As long-range sums of a plan for another cell."""
    apply = lambda params, system: {"energy": jnp.nan * jnp.square(system.positions).sum()[None]}
    with pytest.raises(NumericalError, match="bind"):
        force_constants(apply, 4.0, repeats=(2, 1, 1))({}, from_ase(bulk("Ar", a=5.3), None))


def test_padding_and_batches_are_refused():
    system = jaxmlip.pad(from_ase(bulk("Ar"), None), n_atoms=3)
    with pytest.raises(UsageError, match="2 padded"):
        force_constants(argon(1.5).apply, 5.0, repeats=(1, 1, 1))({}, system)


def test_the_axes_are_used_where_a_site_has_no_symmetry():
    assert_allclose(displacement_directions(symmetry(triclinic()), 0), np.eye(3))
