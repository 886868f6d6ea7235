"""Space groups, displacements they save, band paths: in the cell that is given, not in another."""

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk, fcc111, molecule
from ase.spacegroup import crystal
from numpy.testing import assert_allclose, assert_array_equal

from jaxmlip.errors import DataError, UsageError
from jaxmlip.interfaces.phonons.band_path import band_path
from jaxmlip.interfaces.phonons.same_crystal import common_cell
from jaxmlip.interfaces.phonons.symmetry import (
    displacement_directions,
    primitive,
    site_symmetry,
    symmetrized,
    symmetry,
)


def rutile():
    cell = [4.6, 4.6, 2.96, 90, 90, 90]
    return crystal(["Ti", "O"], [(0, 0, 0), (0.305, 0.305, 0)], spacegroup=136, cellpar=cell)


def quartz():
    cell = [4.916, 4.916, 5.405, 90, 90, 120]
    basis = [(0.4697, 0, 2 / 3), (0.4135, 0.2669, 0.7858)]
    return crystal(["Si", "O"], basis, spacegroup=154, cellpar=cell)


def turned(atoms, seed=0):
    """The same crystal in another orientation and another basis of the same lattice."""
    rotation = np.linalg.qr(np.random.default_rng(seed).normal(size=(3, 3)))[0]
    basis = np.array([[1, 1, 0], [0, 1, 0], [0, 1, 1]])
    cell = basis @ np.asarray(atoms.cell) @ rotation
    return Atoms(atoms.numbers, atoms.positions @ rotation, cell=cell, pbc=True), rotation


CRYSTALS = {
    "diamond": (lambda: bulk("Si"), 227, 48),
    "rutile": (rutile, 136, 16),
    "quartz": (quartz, 154, 6),
    "turned quartz": (lambda: turned(quartz())[0], 154, 6),
    "cubic cell": (lambda: bulk("NaCl", "rocksalt", a=5.64, cubic=True), 225, 192),
}


@pytest.mark.parametrize("name", CRYSTALS)
def test_every_operation_takes_every_atom_to_an_equal_one(name):
    make, number, n_ops = CRYSTALS[name]
    atoms = make()
    group = symmetry(atoms)
    assert (group.number, group.n_ops) == (number, n_ops)
    cell = np.asarray(atoms.cell)
    origin = group.translations @ cell
    moved = np.einsum("oij,aj->oai", group.cartesian, atoms.positions) + origin[:, None]
    landed = atoms.positions[group.permutations] + group.shifts @ cell
    assert_allclose(moved, landed, atol=1e-5)  # Å, the tolerance of the search
    assert_array_equal(atoms.numbers[group.permutations], np.tile(atoms.numbers, (n_ops, 1)))
    product = group.cartesian @ group.cartesian.swapaxes(1, 2)
    assert_allclose(product, np.tile(np.eye(3), (n_ops, 1, 1)), atol=1e-9)


def test_a_molecule_has_the_identity_and_a_slab_no_operation_across_its_vacuum():
    assert symmetry(molecule("CH4")).n_ops == 1
    slab = fcc111("Al", (1, 1, 3), a=4.05, vacuum=6.0)
    assert symmetry(slab).n_ops == 12  # D3d of three layers
    assert not symmetry(slab).shifts[:, :, 2].any()
    slab.positions[0, 2] -= 0.3  # the two faces differ now: C3v
    group = symmetry(slab)
    assert group.n_ops == 6 and len(group.irreducible) == 3
    # a slab in a box as high as wide is a cubic crystal to a search that ignores open axes
    cube = Atoms("Ar", cell=[4.0, 4.0, 4.0], pbc=[True, True, False])
    assert symmetry(cube).n_ops == 16  # D4h, not Oh


@pytest.mark.parametrize(
    "make, atom, n",
    [
        (lambda: bulk("Si"), 0, 1),  # Td: x, y and z belong together
        (rutile, 0, 1),  # D2h: one general vector has a part in each of three representations
        (quartz, 0, 2),  # C2: two of x, y, z are antisymmetric
        (quartz, 3, 3),  # no symmetry
    ],
)
def test_images_of_the_chosen_displacements_span_space(make, atom, n):
    group = symmetry(make())
    directions = displacement_directions(group, atom)
    images = group.cartesian[site_symmetry(group, atom)] @ directions.T
    values = np.linalg.svd(images.swapaxes(1, 2).reshape(-1, 3), compute_uv=False)
    assert len(directions) == n
    assert values[-1] > 0.2 * values[0]  # well conditioned: errors grow less than fivefold


def test_the_symmetrised_crystal_has_the_group_exactly_and_is_not_rotated():
    exact, rng = turned(rutile())[0], np.random.default_rng(1)
    atoms = exact.copy()
    atoms.set_cell(exact.cell.array @ (np.eye(3) + 1e-4 * rng.normal(size=(3, 3))), True)
    atoms.positions += 1e-3 * rng.normal(size=(6, 3))
    assert symmetry(atoms).n_ops < 16
    found = symmetrized(atoms, tolerance=0.02)
    assert symmetry(found, tolerance=1e-8).n_ops == 16
    assert_allclose(found.positions.mean(0), atoms.positions.mean(0), atol=1e-3)
    stretch = np.linalg.solve(np.asarray(atoms.cell), np.asarray(found.cell))
    assert_allclose(stretch, stretch.T, atol=1e-12)  # a pure strain
    assert_allclose(symmetrized(exact).positions, exact.positions, atol=1e-12)


def test_the_primitive_cell_keeps_orientation_and_masses():
    atoms = bulk("NaCl", "rocksalt", a=5.6, cubic=True) * (1, 2, 1)
    atoms.set_masses(np.where(atoms.numbers == 11, 23.0, 37.0))
    atoms.rotate(20, (1, 2, 3), rotate_cell=True)
    found = primitive(atoms)
    assert_allclose(found.cell.volume, atoms.cell.volume / 8, rtol=1e-12)
    assert sorted(found.get_masses()) == [23.0, 37.0]
    # vectors of the primitive cell are translations of the crystal, not those of a rotated one
    whole = np.asarray(atoms.cell) @ np.linalg.inv(np.asarray(found.cell))
    assert_allclose(whole, np.rint(whole), atol=1e-9)
    assert_array_equal(primitive(bulk("Si")).positions, bulk("Si").positions)


def test_atoms_of_other_masses_are_other_atoms_of_a_primitive_cell():
    atoms = bulk("NaCl", "rocksalt", a=5.6, cubic=True)
    masses = np.where(atoms.numbers == 11, 23.0, 35.0)
    masses[np.flatnonzero(atoms.numbers == 17)[0]] = 37.0
    atoms.set_masses(masses)
    found = primitive(atoms * (2, 1, 1))
    assert_allclose(np.sort(found.get_masses()), np.sort(masses))
    assert_allclose(found.get_volume(), atoms.get_volume())


def test_a_primitive_cell_has_its_share_of_charge_and_unpaired_electrons():
    cube = bulk("Ar", "fcc", a=5.3, cubic=True)  # four primitive cells
    cube.info |= {"charge": 2.0, "spin": 5, "name": "argon"}
    assert primitive(cube).info == {"charge": 0.5, "spin": 2, "name": "argon"}
    assert primitive(primitive(cube)).info["charge"] == 0.5
    cube.info["spin"] = 3
    with pytest.raises(DataError, match="2 unpaired electrons"):
        primitive(cube)


@pytest.mark.parametrize("make", [lambda: bulk("Si", cubic=True), rutile, quartz])
def test_cells_of_one_crystal_are_told_in_one_anothers_vectors(make):
    one, rng = make(), np.random.default_rng(2)
    # another basis, larger, rotated, elsewhere, its atoms in another order and not quite there
    other = turned(one)[0] * (1, 2, 1)
    other.positions += [0.4, 0.1, -0.7] + 0.003 * rng.normal(size=(len(other), 3))
    other = other[rng.permutation(len(other))]
    found = common_cell(one, other)
    assert_allclose(found, np.rint(found * len(one)) / len(one), atol=1e-12)
    metric = lambda cell: np.array(cell) @ np.array(cell).T
    assert_allclose(metric(found @ np.array(one.cell)), metric(other.cell), atol=1e-9)
    assert_allclose(common_cell(one, one), np.eye(3))  # not an image of it
    moved = one.copy()
    moved.positions[0] += [0.2, 0.05, 0]
    assert common_cell(one, moved) is None
    changed = other.copy()
    changed.set_cell(changed.cell.array * 1.05, True)
    assert common_cell(one, changed) is None


def test_a_band_path_runs_through_the_same_cartesian_points_in_any_cell():
    plain = bulk("Si")
    atoms, rotation = turned(plain)
    one, other = band_path(plain, 0.1), band_path(atoms, 0.1)
    assert [name for _, name in one.labels] == ["Γ", "X", "U", "K", "Γ", "L", "W", "X"]
    assert one.labels == other.labels and one.segments == other.segments
    k = lambda path, a: 2 * np.pi * path.q @ np.linalg.inv(np.asarray(a.cell)).T
    # the points themselves: those of the other cell, turned back, are images under the group
    images = k(one, plain) @ symmetry(plain).cartesian
    back = k(other, atoms) @ rotation.T
    assert (np.abs(images - back).max((1, 2)) < 1e-9).any()
    assert_allclose(np.diff(one.distance).max(), 0.1, rtol=0.06)
    conventional = band_path(bulk("Si", cubic=True), 0.1)
    assert_allclose(conventional.distance, one.distance, atol=1e-12)


def test_paths_of_slabs_stay_in_the_plane_and_molecules_have_one_point():
    path = band_path(fcc111("Al", (1, 1, 3), a=4.05, vacuum=6.0), 0.3)
    assert [name for _, name in path.labels] == ["Γ", "M", "K", "Γ"]
    assert not path.q[:, 2].any()
    assert band_path(molecule("H2O")).labels == ((0, "Γ"),)


def test_what_cannot_be_meant_is_refused():
    doubled = Atoms("Ar2", [[0, 0, 0], [0, 0, 1e-7]], cell=[4, 4, 4], pbc=True)
    with pytest.raises(DataError, match="no space group|misses an atom"):
        symmetry(doubled)
    with pytest.raises(UsageError, match="spacing"):
        band_path(bulk("Si"), 0)
    with pytest.raises(UsageError, match="crystal"):
        primitive(molecule("H2O"))
