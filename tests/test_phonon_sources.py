"""Phonons of what is given: masses, lone points, cells and files of others; and what is refused."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk
from crystals import SIGMA, argon, pair_sum
from numpy.testing import assert_allclose
from test_phonons import ARGON_MASS, Counted, fcc, low_symmetry, read_json

from jaxmlip.cli.main import main
from jaxmlip.errors import UsageError
from jaxmlip.interfaces.ase import from_ase
from jaxmlip.interfaces.phonons.phonopy import (
    q_mesh,
    share_not_displaced,
    thermal_displacements,
    thermal_properties,
)
from jaxmlip.vibrations.phonons.bands import bands_along, phonons, points_path, standard_path
from jaxmlip.vibrations.phonons.dispersion import crystal, frequencies_THz, modes
from jaxmlip.vibrations.phonons.grids import q_grid
from jaxmlip.vibrations.phonons.interpolation import FourierSum, from_grid, in_supercell
from jaxmlip.vibrations.phonons.velocities import Matrices, group_velocities, model_matrices, slopes

RNG = np.random.default_rng(7)


def test_a_potential_gives_the_slopes_of_its_own_matrices_and_no_more_matrices_are_taken():
    atoms, q = low_symmetry(), RNG.random((2, 3))
    sums, cell = pair_sum(atoms, 2 * SIGMA), np.array(atoms.cell)
    exact = model_matrices(argon(2.0).apply, {}, from_ase(atoms, 2 * SIGMA, dtype="float32"))
    expected = sums.gradient(q, cell)
    # 1e-7 of D in float32 are 1e-7 of its slopes; of a difference of neighbours they are more
    assert_allclose(exact.gradient(q, cell), expected, atol=2e-6 * np.abs(expected).max())
    counted = Counted(exact.values)
    D = Matrices(values=counted, slopes=exact.slopes)
    found = phonons(
        D, atoms, mesh=(1, 1, 1), path=points_path(q, atoms), on_imaginary=lambda f, q: None
    )
    assert counted.n == found.n_exact == 3  # two points and Gamma
    frequencies, vectors = modes(sums(q), found.crystal.masses)
    expected = group_velocities(expected, frequencies, vectors, found.crystal.masses)
    assert_allclose(found.bands.group_velocities, expected, atol=1e-4)  # km/s


def masses_of_their_own():
    """A cubic cell of one element: 192 operations exchange what three masses tell apart."""
    atoms = bulk("Ar", "fcc", a=5.25053, cubic=True)
    atoms.set_masses([10.0, 40.0, 40.0, 80.0])
    return atoms


def test_only_what_keeps_the_masses_reduces_a_mesh():
    atoms = masses_of_their_own()
    D, options = pair_sum(atoms), {"mesh": (2, 3, 3), "temperatures": [20.0], "tolerance": None}
    # the eigenvectors of equal frequencies are anyone's, sums over them are not
    whole = phonons(D, atoms, symmetric=False, **options)
    found = phonons(D, atoms, symmetric=True, **options)
    assert len(found.mesh.q) < len(whole.mesh.q)
    assert_allclose(found.displacements, whole.displacements, rtol=1e-9, atol=1e-12)
    for name in ("free_energy", "entropy", "heat_capacity"):
        assert_allclose(getattr(found.thermal, name), getattr(whole.thermal, name), rtol=1e-9)
    of_one = np.ptp(np.trace(found.displacements[0], axis1=1, axis2=2))
    assert of_one > 0.01 * found.displacements[0, 0, 0, 0]  # heavy atoms move less
    share = lambda of: np.trapezoid(of.projected_dos * of.dos_THz**2, of.dos_THz)
    # omega² of an atom: its own block of D over its mass; the tetrahedra of few points differ
    assert_allclose(share(found), share(whole), rtol=0.02)
    assert share(found)[0] > 3 * share(found)[1]
    alike = q_mesh(bulk("Ar", "fcc", a=5.25053, cubic=True), (2, 2, 2))
    frequencies, vectors = modes(D(alike.q), np.ones(4))
    with pytest.raises(UsageError, match="different mass"):
        thermal_displacements(alike, frequencies, vectors, atoms.get_masses(), [20.0])


def test_lone_points_are_exact_however_many():
    atoms = low_symmetry()
    counted, lattice = Counted(pair_sum(atoms)), crystal(atoms)
    q = RNG.uniform(-0.5, 0.5, (40, 3))
    path = points_path(q, atoms)
    D = Matrices(values=counted, slopes=counted.D.gradient)
    found = bands_along(D, lattice, path, tolerance=0.5)
    assert found.interpolation is None and counted.n == 40
    expected = frequencies_THz(counted.D(q), lattice.masses)
    assert_allclose(found.frequencies_THz, expected, atol=1e-12)
    # beside a line that is interpolated they are, too
    line = standard_path(atoms)
    both = replace(
        line,
        **{k: np.concatenate([getattr(line, k), getattr(path, k)]) for k in PER_POINT},
        labels=line.labels + path.labels,
        segments=line.segments + tuple((len(line.q) + i, len(line.q) + i + 1) for i in range(40)),
    )
    found = bands_along(D, lattice, both, tolerance=0.5)
    last = slice(len(line.q), None)
    assert_allclose(found.frequencies_THz[last], expected, atol=1e-12)
    assert found.interpolation.n_exact < len(line.q) / 4
    slope = slopes(counted.D, q, lattice.cell)
    vectors = found.eigenvectors[last]
    expected = group_velocities(slope, expected, vectors, lattice.masses)
    assert_allclose(found.group_velocities[last], expected, atol=1e-3)  # km/s


PER_POINT = ("q", "distance", "direction")


@pytest.mark.filterwarnings("ignore:Symmetry of Born")  # random charges have none
def test_charges_of_a_born_file_are_those_that_were_written(tmp_path):
    """Of C3 symmetry and not symmetric as matrices: which index is the field's can be told."""
    from jaxmlip.cli.crystal.phonon_sources import _polar
    from jaxmlip.interfaces.phonons.phonopy_files import Polar, symmetrized_polar, write_born

    # two atoms of one kind at sites of C3 on a polar axis, without mirrors
    cell = 4.0 * np.array([[1, 0, 0], [-0.5, 0.75**0.5, 0], [0, 0, 1.7]])
    shell = np.array([[0.31, 0.09, 0.2], [-0.09, 0.22, 0.2], [-0.22, -0.31, 0.2]])
    x = np.concatenate([[[0, 0, 0], [1 / 3, 2 / 3, 0.5]], shell % 1])
    atoms = Atoms("NaClO3", cell=cell, scaled_positions=x, pbc=True)
    lattice, n = crystal(atoms), len(atoms)
    assert lattice.group.n_ops == 3
    nothing = FourierSum(lattice=np.zeros((1, 3), int), blocks=np.zeros((1, 3 * n, 3 * n)))
    empty = in_supercell(lattice, atoms.numbers, nothing, (1, 1, 1))
    charges = RNG.normal(size=(n, 3, 3))
    polar = Polar(born_charges=charges, dielectric=np.diag([2.0, 2.0, 3.0]), coulomb=14.4)
    polar = symmetrized_polar(empty, polar)
    charges = polar.born_charges
    assert np.abs(charges - charges.swapaxes(1, 2)).max() > 0.1
    write_born(tmp_path / "BORN", empty, polar)
    found, extra = _polar(tmp_path / "BORN", atoms)
    assert_allclose(found.born_charges, charges, atol=1e-7)  # the file has eight decimals
    assert_allclose(found.dielectric, polar.dielectric, atol=1e-7)
    q = np.array([[0.1, 0.2, 0.3]])
    numeric = slopes(lambda q: extra(q), q, lattice.cell)
    size = np.abs(numeric).max()
    assert_allclose(extra.gradient(q, lattice.cell), numeric, atol=1e-4 * size)


@pytest.mark.parametrize("axis", range(3))
def test_dipoles_that_are_in_the_matrices_are_found_along_whichever_axis_they_lie(axis):
    """Charges of one axis make no field in waves along the two others."""
    from jaxmlip.cli.crystal.own_field import has_jump, without_forces
    from jaxmlip.interfaces.phonons.phonopy_files import Polar
    from jaxmlip.vibrations.phonons.nonanalytic import dipole_sum

    atoms = bulk("CsCl", "cesiumchloride", a=4.1)
    short, charges = pair_sum(atoms, 2 * SIGMA), np.zeros((2, 3, 3))
    charges[:, axis, axis] = 1.0, -1.0
    dipoles = dipole_sum(
        without_forces(atoms), Polar(born_charges=charges, dielectric=2.5 * np.eye(3))
    )
    assert has_jump(lambda q: short(q) + dipoles(q), dipoles)
    assert has_jump(lambda q: short(q) + 2.5 * dipoles(q), dipoles)  # charges that none screens
    assert not has_jump(short, dipoles)


def test_a_line_that_ends_at_gamma_has_the_longitudinal_mode_of_the_models_own_field():
    """As with the same field told apart as the non-analytic term."""
    from jaxmlip.cli.crystal.own_field import step_off_gamma, without_forces
    from jaxmlip.interfaces.phonons.phonopy_files import Polar
    from jaxmlip.vibrations.phonons.nonanalytic import dipole_sum

    atoms, card = bulk("CsCl", "cesiumchloride", a=4.1), {"electrostatics": {"method": "ewald"}}
    card |= {"architecture": "MACE", "fields": {"elements": (17, 55)}}
    short, charges = pair_sum(atoms, 2 * SIGMA), 0.3 * np.array([1.0, -1.0])[:, None, None]
    dipoles = dipole_sum(
        without_forces(atoms), Polar(born_charges=charges * np.eye(3), dielectric=np.eye(3))
    )
    whole = lambda q: short(q) + dipoles(q)
    near, path = step_off_gamma(whole, card), standard_path(atoms, spacing=0.4)
    assert step_off_gamma(short, card) is None
    assert step_off_gamma(whole, card | {"electrostatics": None}) is None
    options = {"tolerance": None}
    found = bands_along(whole, crystal(atoms), path, near=near, **options)
    apart = bands_along(short, crystal(atoms), path, nonanalytic=dipoles, **options)
    gamma = [i for i, name in enumerate(path.labels) if name == "Γ"]
    # sound over 1e-4 of the zone
    assert_allclose(found.frequencies_THz, apart.frequencies_THz, atol=2e-3)
    untold = bands_along(whole, crystal(atoms), path, **options)
    jump = found.frequencies_THz[gamma, -1] - untold.frequencies_THz[gamma, -1]
    assert (jump > 0.1).all()


def test_matrices_are_only_asked_for_dipoles_where_something_reaches_far():
    """Of the models that have any: what waves do not pass is refused or replaced before."""
    from types import SimpleNamespace

    from jaxmlip.cli.crystal import waves
    from jaxmlip.cli.crystal.own_field import in_matrices, tolerance_of_sums

    atoms, z = bulk("CsCl", "cesiumchloride", a=4.1), np.array([1.0, -1.0])[:, None, None]
    fields = {"elements": (17, 55)}
    short, response = pair_sum(atoms, 2 * SIGMA), {"charges": z * np.eye(3), "eps": np.eye(3)}
    mace, mesh = {"architecture": "MACE", "fields": fields}, {"method": "pme", "tolerance": 1e-3}
    ewald = waves.without_mesh(mace | {"electrostatics": mesh | {"dipoles": 0.1}})
    assert ewald["electrostatics"] == {"method": "ewald", "tolerance": 1e-3}
    for card, asked in ((mace, False), (ewald, True)):
        counted, model = Counted(short), SimpleNamespace(card=card)
        assert waves.follows(card) and not waves.meshed(card)
        assert not in_matrices(None, model, atoms, D=counted, **response)
        assert (counted.n > 0) == asked
    dual = {"architecture": "DualCutoff", "fields": fields}  # planned, but for near neighbours
    assert waves.follows(dual) and not waves.reaches_far(dual) and tolerance_of_sums(dual) == 0
    far = {"architecture": "LongRangeMACE", "fields": fields}
    assert waves.reaches_far(far) and tolerance_of_sums(far) > 0
    flows = mace | {"electrostatics": mesh | {"equilibration": {}}}
    for card in (far, flows):
        assert not waves.follows(card) and not waves.meshed(card)


def test_modes_too_slow_to_have_a_displacement_are_counted():
    mesh = q_mesh(fcc(), (2, 2, 2))
    frequencies = np.ones((len(mesh.q), 3))
    frequencies[mesh.gamma] = 0  # translations: known, not left out
    assert share_not_displaced(mesh, frequencies) == 0
    soft = int(np.flatnonzero(np.arange(len(mesh.q)) != mesh.gamma)[0])
    frequencies[soft, 0] = -2.0
    assert_allclose(share_not_displaced(mesh, frequencies), mesh.weights[soft] / (3 * 8))


@pytest.mark.parametrize("temperatures", [[300.0, -5.0], [np.nan], []])
def test_temperatures_below_zero_are_refused_before_anything_is_computed(temperatures):
    atoms, counted = fcc(), Counted(None)
    with pytest.raises(UsageError, match="below 0 K"):
        phonons(counted, atoms, temperatures=temperatures)
    with pytest.raises(UsageError, match="below 0 K"):
        thermal_properties(q_mesh(atoms, (1, 1, 1)), np.ones((1, 3)), temperatures)
    assert counted.n == 0


def save_springs(path, atoms, shape=(2, 2, 2)):
    """A phonopy.yaml of the pair sum of argon, whatever the elements are."""
    from jaxmlip.interfaces.phonons.phonopy_files import write_phonopy

    lattice = crystal(atoms)
    grid = q_grid(lattice, shape)
    D = from_grid(lattice, grid, pair_sum(atoms)(grid.q))
    write_phonopy(path, in_supercell(lattice, atoms.numbers, D, shape))
    return D


def test_points_of_another_cell_of_the_same_crystal_are_told_in_its_own_basis(folder, capsys):  # noqa: F811
    atoms = fcc()
    D = save_springs("ar.yaml", atoms)
    larger = bulk("Ar", "fcc", a=5.25053, cubic=True) * (1, 1, 2)
    larger.rotate(30, (1, 2, 3), rotate_cell=True)
    larger.positions += [0.3, -0.2, 0.1]
    larger.write("large.extxyz")
    run = ["phonons", "large.extxyz", "--force-constants", "ar.yaml", "--mesh", "2", "2", "2"]
    assert main([*run, "--qpoints", "0.3 0.1 0.4", "--json", "f", "--imaginary", "ignore"]) == 0
    found = read_json("f")
    k = np.array([0.3, 0.1, 0.2]) / 5.25053  # in the cubic axes of the yaml, or an image
    expected = frequencies_THz(D(k @ np.array(atoms.cell).T), [ARGON_MASS])
    assert_allclose(found["frequencies_THz"], expected, atol=1e-6)
    assert found["cells_per_file_cell"] == 8 and "tolerance_THz" not in found
    assert "q in FILE's cell" in capsys.readouterr().out


def test_force_constants_of_another_polymorph_of_equal_volume_are_refused(folder, capsys):  # noqa: F811
    a = 5.4093
    blende = bulk("ZnS", "zincblende", a=a)
    wurtzite = bulk("ZnS", "wurtzite", a=a / 2**0.5, c=a * (4 / 3) ** 0.5)
    assert_allclose(wurtzite.get_volume(), 2 * blende.get_volume())
    save_springs("zns.yaml", blende)
    wurtzite.write("wurtzite.cif")
    bulk("ZnS", "zincblende", a=a, cubic=True).write("blende.cif")
    run = ["--force-constants", "zns.yaml", "--mesh", "2", "2", "2", "--imaginary", "ignore"]
    assert main(["phonons", "wurtzite.cif", *run, "--qpoints", "0 0 0"]) == 3
    assert "JM217" in (told := capsys.readouterr().err) and "elsewhere" in told
    assert main(["phonons", "blende.cif", *run, "--qpoints", "0 0 0"]) == 0
    assert "mol of cells SZn" in capsys.readouterr().out


@pytest.mark.parametrize(
    "extra",
    [
        *(["--relax"], ["--fixed-cell"], ["--fmax", "0.1"], ["--stress", "0.1"], ["--steps", "9"]),
        *(["--tolerance", "0.1"], ["--budget", "99"], ["--dtype", "float64"], ["--as-given"]),
    ],
)
def test_what_force_constants_cannot_heed_is_refused(folder, capsys, extra):  # noqa: F811
    Path("ar.yaml").write_text("never read")
    assert main(["phonons", "ar.yaml", "--force-constants", "ar.yaml", *extra]) == 2
    assert extra[0] in (told := capsys.readouterr().err) and "leave out" in told
    assert main(["phonons", "ar.yaml", "--force-constants", "ar.yaml", "--no-relax"]) == 3
