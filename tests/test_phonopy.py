"""Force constants of others: our D(q), bands and integrals beside phonopy's, and golden numbers.

Golden numbers are those of data/vibrations/README.md (phonopy 4.8, mesh 20 x 20 x 20 moved by half
a step, NAC from BORN), to the digits given there.
"""

import bz2
import gzip
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from ase.build import bulk
from ase.io import read
from numpy.testing import assert_allclose, assert_array_equal

from jaxmlip import units
from jaxmlip.errors import DataError, UsageError
from jaxmlip.interfaces.phonons.band_path import band_path
from jaxmlip.interfaces.phonons.phonopy import (
    dynamical_matrices,
    projected_dos,
    q_mesh,
    thermal_displacements,
    thermal_properties,
    total_dos,
)
from jaxmlip.interfaces.phonons.phonopy_files import (
    ForceConstants,
    column_of,
    primitive_atoms,
    read_force_sets,
    read_phonopy,
    symmetrized,
    symmetrized_polar,
    to_phonopy,
    write_born,
    write_force_constants,
    write_phonopy,
)
from jaxmlip.vibrations.phonons.dispersion import frequencies_THz, modes
from jaxmlip.vibrations.phonons.force_constants import fourier_sum
from jaxmlip.vibrations.phonons.gruneisen import mean_gruneisen, mode_gruneisen
from jaxmlip.vibrations.phonons.nonanalytic import charge_sum, commensurate, dipole_sum, polar_sum

pytest.importorskip("phonopy")
SHARED = Path(__file__).parents[2] / "shared" / "data" / "vibrations"  # beside a checkout
EXAMPLES = SHARED / "phonopy_examples"
CM1 = units.THz / units.invcm
needs_data = pytest.mark.skipif(not EXAMPLES.is_dir(), reason="no ../shared/data/vibrations")
slow = pytest.mark.slow


def example(name):
    """Force constants, Born charges (or None) and our D(q) of one of phonopy's examples."""
    constants, polar = read_phonopy(EXAMPLES / name / "phonopy_disp.yaml")
    return constants, polar, polar_sum(constants, polar) if polar else fourier_sum(constants)


@pytest.fixture(scope="module")
def salt():
    return example("NaCl")


def rough(salt, size=1e-3):
    """Force constants without any sum rule or symmetry."""
    constants = salt[0]
    noise = size * np.random.default_rng(0).normal(size=constants.values.shape)
    return replace(constants, values=constants.values + noise)


# --- D(q) ----------------------------------------------------------------------------------------


def along_path(constants):
    return band_path(primitive_atoms(constants), 0.4).q


def check_bands(name):
    """Bands with and without charges, within 1e-6 THz of phonopy's: rounding of its units."""
    constants, polar, ours = example(name)
    q = along_path(constants)
    assert np.abs(q).max() >= 0.5  # on the faces of the zone, and its edges, as well
    for one, theirs in (
        (fourier_sum(constants), dynamical_matrices(constants, None, q)),
        (ours, dynamical_matrices(constants, polar, q)),
    ):
        expected = frequencies_THz(theirs, constants.masses)
        assert_allclose(frequencies_THz(one(q), constants.masses), expected, atol=2e-6)
        assert_allclose(one(q), theirs, atol=1e-5)  # eV/Å²: phases and order, too


@needs_data
def test_edges_of_the_zone_are_those_of_phonopy_with_charges(salt):
    """W, K and points beside them that no supercell holds: |q| = |q - G| for a G or more."""
    constants, polar, ours = salt
    q = [[0.5, 0.25, 0.75], [0.375, 0.375, 0.75], [0.5, 0.2, 0.7], [0.5, 0.5, 0.13]]
    theirs = dynamical_matrices(constants, polar, q)
    assert np.abs(theirs - fourier_sum(constants)(q)).max() > 1e-3  # dipoles matter here
    # phonopy's ball of G is not the same for every q: 1e-10 of its Gaussian, 3e-7 eV/Å²
    assert_allclose(ours(q), theirs, atol=1e-6)
    expected = frequencies_THz(theirs, constants.masses)
    assert_allclose(frequencies_THz(ours(q), constants.masses), expected, atol=1e-6)


@needs_data
@pytest.mark.parametrize(
    "name", ["NaCl", *(pytest.param(n, marks=slow) for n in ("MgO", "SnO2", "SiO2-HP", "MgB2"))]
)
def test_bands_are_those_of_phonopy(name):
    check_bands(name)


@needs_data
@pytest.mark.parametrize(
    "name, transverse, longitudinal",
    [("NaCl", 154.0, 246.7), pytest.param("MgO", 373.5, 666.3, marks=slow)],
)
def test_longitudinal_and_transverse_modes_split_at_the_centre(name, transverse, longitudinal):
    constants, polar, ours = example(name)
    for direction in ([1, 0, 0], [1.0, 2.0, -0.5]):
        found = frequencies_THz(ours([[0, 0, 0]], np.array(direction)), constants.masses)[0]
        assert_allclose(found[3:] * CM1, [transverse, transverse, longitudinal], atol=0.05)
    theirs = dynamical_matrices(constants, polar, [[0, 0, 0]], direction=direction)
    assert_allclose(frequencies_THz(theirs, constants.masses)[0], found, atol=2e-6)
    # the limit of small q, and without a direction no splitting
    near = frequencies_THz(ours([[1e-4, 2e-4, -0.5e-4]]), constants.masses)[0]
    assert_allclose(near[3:] * CM1, found[3:] * CM1, atol=0.01)
    bare = frequencies_THz(ours([[0, 0, 0]]), constants.masses)[0]
    assert_allclose(bare[3:] * CM1, transverse, atol=0.05)


@needs_data
def test_dipoles_change_nothing_at_the_points_of_the_supercell(salt):
    # the same sum is taken out and put back there: force constants with or without charges agree
    constants, polar, ours = salt
    q = commensurate(constants.matrix)[1:]
    assert len(q) == 31
    # the Gaussian ends at 1e-10 of its height, a little earlier on one side of the zone's faces
    assert_allclose(ours(q), fourier_sum(constants)(q), atol=1e-6)
    # ... and between them the two ways to interpolate differ, both ours and phonopy's
    wang = dynamical_matrices(constants, polar, [[0.1, 0.05, 0]], wang=True)
    assert np.abs(wang - ours([[0.1, 0.05, 0]])).max() > 1e-3


@needs_data
def test_the_slope_of_d_is_its_derivative(salt):
    constants, _, ours = salt
    q, step = np.array([[0.11, 0.02, 0.2], [0.3, -0.1, 0.05]]), 1e-5
    slopes = ours.gradient(q, constants.cell)
    for axis in range(3):
        move = step * constants.cell[:, axis]  # of q for a step along k, without 2 pi
        difference = (ours(q + move) - ours(q - move)) / (2 * step)
        # a second difference: step² d³D/dk³ and rounding 1e-15/step
        assert_allclose(slopes[:, axis], difference, atol=1e-7 * np.abs(difference).max())


@needs_data
def test_charges_that_do_not_sum_to_zero_leave_acoustic_modes_at_zero(salt):
    constants, polar, ours = salt
    charged = replace(polar, born_charges=polar.born_charges + 0.05 * np.eye(3))
    assert charge_sum(charged) > 0.09
    found = polar_sum(constants, charged)([[0, 0, 0]], np.array([1, 0, 0]))
    assert np.abs(frequencies_THz(found, constants.masses)[0, :3]).max() < 1e-5
    assert_allclose(found, ours([[0, 0, 0]], np.array([1, 0, 0])), atol=1e-12)
    with pytest.raises(UsageError, match=r"\(3, 3, 3\).*expected \(2, 3, 3\)"):
        dipole_sum(constants, replace(polar, born_charges=np.zeros((3, 3, 3))))


# --- integrals over the zone ---------------------------------------------------------------------


def frequencies_on(mesh, ours, masses):
    return frequencies_THz(ours(mesh.q), masses)


GOLDEN = [  # top of the optical modes (cm-1), F kJ/mol, S and Cv J/K/mol at 300 K
    ("NaCl", 246.7, -6.942, 74.916, 48.034),
    pytest.param("MgO", 666.3, 10.463, 28.978, 37.769, marks=slow),
    pytest.param("SnO2", 733.2, 24.821, 112.382, 112.917, marks=slow),
    pytest.param("SiO2-HP", 1140.2, 64.821, 43.052, 75.190, marks=slow),
]


@needs_data
@pytest.mark.parametrize("name, top, free_energy, entropy, capacity", GOLDEN)
def test_thermal_properties_at_300_K(name, top, free_energy, entropy, capacity):
    constants, _, ours = example(name)
    centre = frequencies_THz(ours([[0, 0, 0]], np.array([1.0, 0, 0])), constants.masses)
    assert_allclose(centre.max() * CM1, top, atol=0.051)
    mesh = q_mesh(primitive_atoms(constants), (20, 20, 20), shift=(1, 1, 1))
    assert mesh.weights.sum() == 8000
    found = thermal_properties(mesh, frequencies_on(mesh, ours, constants.masses), [300.0])
    values = found.free_energy[0], found.entropy[0], found.heat_capacity[0]
    assert_allclose(values, [free_energy, entropy, capacity], atol=6e-4)  # half a digit
    assert found.left_out == 0


def phonopys_mesh(constants, polar, shift, symmetric):
    """phonopy itself after a mesh of 6 x 6 x 6, its density of states and displacements."""
    phonon = to_phonopy(constants, polar)
    options = {"with_eigenvectors": True, "is_gamma_center": True, "shift": np.array(shift) / 2}
    phonon.run_mesh([6, 6, 6], is_mesh_symmetry=symmetric, **options)
    phonon.run_total_dos(use_tetrahedron_method=True)
    if not symmetric:
        phonon.run_projected_dos(use_tetrahedron_method=True)
        phonon.run_thermal_displacement_matrices(temperatures=WARM, freq_min=0.1)
    return phonon


WARM = [0.0, 50.0, 300.0]


@needs_data
@pytest.mark.parametrize(
    "name, shift",
    [("NaCl", (0, 0, 0)), *(pytest.param("MgB2", (x, x, x), marks=slow) for x in (0, 1))],
)
def test_integrals_over_the_zone_are_those_of_phonopy(name, shift):
    constants, polar, ours = example(name)
    whole = phonopys_mesh(constants, polar, shift, False)
    points = whole.total_dos.frequency_points
    expected = whole.thermal_displacement_matrices.thermal_displacement_matrices
    for symmetric in (False, True):
        mesh = q_mesh(primitive_atoms(constants), (6, 6, 6), shift=shift, symmetric=symmetric)
        frequencies, vectors = modes(ours(mesh.q), constants.masses)
        assert len(mesh.q) < (216 / 3 if symmetric else 120) and mesh.weights.sum() == 216
        density = total_dos(mesh, frequencies, points=points)[1]
        shares = projected_dos(mesh, frequencies, vectors, points=points)[1]
        assert_allclose(shares.sum(0), density, atol=1e-10)
        u = thermal_displacements(mesh, frequencies, vectors, constants.masses, WARM)
        assert_allclose(u, expected, atol=1e-5 * expected.max())  # natural constants: 1e-7
        if symmetric and name == "MgB2":
            continue  # see below
        # frequencies differ at 1e-7 THz and edges are steep
        size = 1e-3 * density.max()
        assert_allclose(density, whole.total_dos.dos, atol=size)
        # of each kind: which mode of a degenerate pair is on which of two equal atoms is anyone's
        theirs = whole.projected_dos.projected_dos
        for kind in constants.numbers == np.unique(constants.numbers)[:, None]:
            assert_allclose(shares[kind].mean(0), theirs[kind].mean(0), atol=size)


@slow
@needs_data
def test_a_coarse_hexagonal_mesh_has_two_densities_of_states_in_phonopy_and_here():
    """Tetrahedra along one diagonal lack the symmetry of the mesh: it matters to the sum which of
    equivalent points they are taken around (6.6 % of the maximum on 6 x 6 x 6). Both are equal to
    phonopy's own two.
    """
    constants, polar, ours = example("MgB2")
    own = [phonopys_mesh(constants, polar, (0, 0, 0), s).total_dos for s in (False, True)]
    assert_allclose(own[0].frequency_points, own[1].frequency_points, rtol=1e-12)
    points, size = own[0].frequency_points, own[0].dos.max()
    assert 0.05 < np.abs(own[0].dos - own[1].dos).max() / size < 0.08
    for symmetric, theirs in zip((False, True), own, strict=True):
        mesh = q_mesh(primitive_atoms(constants), (6, 6, 6), symmetric=symmetric)
        found = total_dos(mesh, frequencies_on(mesh, ours, constants.masses), points=points)[1]
        assert_allclose(found, theirs.dos, atol=1e-4 * size)  # 1.5e-5: units, as above


@needs_data
def test_the_density_of_states_holds_every_mode_once(salt):
    constants, _, ours = salt
    mesh = q_mesh(primitive_atoms(constants), (8, 8, 8))
    points, density = total_dos(mesh, frequencies_on(mesh, ours, constants.masses), n_points=2001)
    assert_allclose(np.trapezoid(density, points), 6, rtol=1e-3)  # the rule on a fine grid
    # every way to reduce the mesh gives the same sums
    sums = []
    for options in ({}, {"symmetric": False}):
        mesh = q_mesh(primitive_atoms(constants), (4, 4, 6), **options)
        thermal = thermal_properties(mesh, frequencies_on(mesh, ours, constants.masses), [300.0])
        sums.append([thermal.free_energy[0], thermal.entropy[0], thermal.heat_capacity[0]])
        assert mesh.gamma is not None
    assert_allclose(*sums, rtol=1e-9)


@needs_data
def test_imaginary_modes_are_left_out_of_sums_and_counted(salt):
    constants, _, ours = salt
    mesh = q_mesh(primitive_atoms(constants), (3, 3, 3))
    frequencies = frequencies_on(mesh, ours, constants.masses)
    full = thermal_properties(mesh, frequencies, [300.0])
    assert full.left_out == 0  # translations are neither counted nor missing
    frequencies[1, 0] *= -1
    found = thermal_properties(mesh, frequencies, [300.0])
    assert_allclose(found.left_out, mesh.weights[1] / (27 * 6))
    assert found.entropy[0] < full.entropy[0]
    frequencies[2] = np.nan
    with pytest.raises(DataError, match="not finite"):
        total_dos(mesh, frequencies)
    with pytest.raises(DataError, match="mesh has"):
        thermal_properties(mesh, frequencies[:2], [300.0])
    with pytest.raises(UsageError, match="divisions"):
        q_mesh(primitive_atoms(constants), (0, 2, 2))


@slow
@needs_data
@pytest.mark.parametrize(
    "name, points, thermal",
    [
        (
            "mp-149_Si_PBE.yaml.xz",
            {
                (0, 0, 0): [503.9] * 3,
                (0.5, 0.5, 0): [145.7, 145.7, 401.5, 401.5, 447.0, 447.0],
                (0.5, 0.5, 0.5): [111.1, 111.1, 371.5, 400.1, 477.6, 477.6],
            },
            [6.522, 39.326, 40.068],
        ),
        (
            "mp-1000.yaml.bz2",
            {(0, 0, 0): [70.9] * 3, (0.5, 0.5, 0.5): [69.2, 69.2, 79.9, 79.9, 97.6, 114.8]},
            [-16.098, 104.133, 49.304],
        ),
    ],
)
def test_files_of_the_phonon_database(name, points, thermal):
    constants, polar = read_phonopy(SHARED / "mdr" / name)
    assert polar is None
    ours = fourier_sum(constants)
    for q, expected in points.items():
        found = frequencies_THz(ours([q]), constants.masses)[0] * CM1
        assert_allclose(found[-len(expected) :], expected, atol=0.051)
    mesh = q_mesh(primitive_atoms(constants), (20, 20, 20), shift=(1, 1, 1))
    sums = thermal_properties(mesh, frequencies_on(mesh, ours, constants.masses), [300.0])
    found = sums.free_energy[0], sums.entropy[0], sums.heat_capacity[0]
    assert_allclose(found, thermal, atol=6e-4)


@needs_data
@pytest.mark.parametrize(
    "name, folders, mean, least, most",
    [
        ("Si", ("orig", "plus", "minus"), 0.4651, -1.766, 1.575),
        pytest.param(
            "NaCl", ("NaCl-1.00", "NaCl-1.005", "NaCl-0.995"), 1.7801, 0.104, 3.085, marks=slow
        ),
    ],
)
def test_gruneisen_parameters_from_three_volumes(name, folders, mean, least, most):
    crystals = []
    for folder in (EXAMPLES / f"{name}-gruneisen" / f for f in folders):
        cell = read(folder / "POSCAR-unitcell", format="vasp")
        born = folder / "BORN"
        born = born if born.exists() else None
        constants, polar = read_force_sets(cell, folder / "FORCE_SETS", (2, 2, 2), born=born)
        crystals.append(
            (constants, polar_sum(constants, polar) if polar else fourier_sum(constants))
        )
    first = crystals[0][0]
    mesh = q_mesh(primitive_atoms(first), (12, 12, 12), shift=(1, 1, 1))
    parameters, frequencies = mode_gruneisen(
        *(ours(mesh.q) for _, ours in crystals),
        first.masses,
        [np.linalg.det(c.cell) for c, _ in crystals],
    )
    assert_allclose(mean_gruneisen(parameters, frequencies, mesh.weights, 300.0), mean, atol=1e-4)
    assert_allclose([parameters.min(), parameters.max()], [least, most], atol=2e-3)


# --- files ---------------------------------------------------------------------------------------


@needs_data
@pytest.mark.parametrize("name", [pytest.param("phonopy.yaml", marks=slow), "phonopy.yaml.xz"])
def test_what_is_written_is_read_back(salt, tmp_path, name):
    constants, polar, _ = salt
    write_phonopy(tmp_path / name, constants, polar)
    assert (tmp_path / name).stat().st_size > 1000
    back, charges = read_phonopy(tmp_path / name)
    order = column_of(constants, back.atoms, back.shifts)
    assert_allclose(back.values, constants.values[:, order], atol=1e-12)
    assert_array_equal(back.numbers, constants.numbers)
    assert_allclose(charges.born_charges, polar.born_charges, atol=1e-10)
    assert_allclose(charges.coulomb, 14.4)  # what BORN says, not the rounding of ours


@needs_data
def test_force_constants_beside_a_yaml_are_found_in_every_form(salt, tmp_path, monkeypatch):
    constants, polar, _ = salt
    write_phonopy(tmp_path / "phonopy.yaml", constants)
    text = (tmp_path / "phonopy.yaml").read_text()
    (tmp_path / "phonopy.yaml").write_text(text[: text.index("force_constants:\n")])
    monkeypatch.chdir(tmp_path.parent)
    with pytest.raises(DataError, match="no force constants"):
        read_phonopy(tmp_path / "phonopy.yaml")
    write_born(tmp_path / "BORN", constants, polar)
    plain = tmp_path / "FORCE_CONSTANTS"
    for full, ending, module in ((False, ".gz", gzip), (True, ".bz2", bz2)):
        write_force_constants(plain, constants, full=full)
        other = plain.with_name(plain.name + ending)
        other.write_bytes(module.compress(plain.read_bytes()))
        plain.unlink()
        back, charges = read_phonopy(tmp_path / "phonopy.yaml")
        order = column_of(constants, back.atoms, back.shifts)
        assert_allclose(back.values, constants.values[:, order], atol=1e-12)
        other.unlink()
    assert_allclose(charges.dielectric, polar.dielectric, atol=1e-7)
    with pytest.raises(UsageError, match="no file"):
        read_phonopy(tmp_path / "phonopy.yaml", born=tmp_path / "born")


def springs(repeats=(2, 2, 2)):
    """Force constants without data: each atom is tied to its place alone."""
    crystal = bulk("NaCl", "rocksalt", a=5.6)
    cells = np.stack(np.meshgrid(*map(np.arange, repeats), indexing="ij"), -1).reshape(-1, 3)
    n = len(crystal)
    values = np.zeros((n, n * len(cells), 3, 3))
    values[range(n), range(n)] = 3 * np.eye(3)
    return ForceConstants(
        values=values,
        cell=np.array(crystal.cell),
        positions=crystal.positions,
        numbers=crystal.numbers,
        masses=crystal.get_masses(),
        matrix=np.diag(repeats),
        atoms=np.tile(np.arange(n), len(cells)),
        shifts=np.repeat(cells, n, axis=0),
    )


def cut_short(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def without_constants(path):
    text = path.read_text()
    path.write_text(text[: text.index("force_constants:\n")])


def spoiled(folder, what):
    """(a yaml and its files of which one is not what it should be, the name of that one)."""
    yaml, other = folder / "phonopy.yaml", springs(repeats=(2, 2, 1))
    write_phonopy(yaml, springs())
    if what == "no yaml":
        yaml.write_text("{[")
        return yaml, yaml.name
    if what == "another yaml":
        yaml.write_text("- 1\n- 2\n")
        return yaml, yaml.name
    if what == "cut yaml":
        cut_short(yaml)
        return yaml, yaml.name
    if what == "BORN":
        (folder / "BORN").write_text("14.4\n1 0 0 0 1 0 0 0 1\n1 0 0\n")
        return yaml, "BORN"
    without_constants(yaml)
    name, _, kind = what.partition(" ")
    file = folder / name
    if name == "FORCE_SETS":
        text = {"words": "no numbers\n", "of others": "8\n1\n\n1\n0.01 0 0\n" + "0 0 0\n" * 8}
        file.write_text(text[kind])
        return yaml, name
    write_force_constants(file, other if kind == "of others" else springs())
    if kind == "nan":
        file.write_text(file.read_text().replace("3.0", "nan"))
    elif kind == "cut":
        cut_short(file)
    elif kind == "compressed":
        file.with_name(name + ".xz").write_bytes(b"not what its name says")
        file.unlink()
        return yaml, name + ".xz"
    return yaml, name


@pytest.mark.parametrize(
    "what",
    [
        *("no yaml", "another yaml", "cut yaml", "BORN", "FORCE_SETS words"),
        *("FORCE_SETS of others", "FORCE_CONSTANTS of others", "FORCE_CONSTANTS cut"),
        *("FORCE_CONSTANTS nan", "FORCE_CONSTANTS compressed"),
        *("force_constants.hdf5 of others", "force_constants.hdf5 cut"),
    ],
)
def test_a_file_that_is_not_what_it_should_be_is_named(tmp_path, what):
    yaml, name = spoiled(tmp_path, what)
    with pytest.raises(DataError) as told:
        read_phonopy(yaml)
    assert name in told.value.where and told.value.exit_code == 3


@needs_data
def test_a_primitive_cell_that_phonopy_lists_in_its_own_way_is_the_same_crystal(salt):
    # atoms outside the cell, and another order of columns: nothing but names changes
    constants, _, ours = salt
    order = np.random.default_rng(0).permutation(constants.values.shape[1])
    moved = np.array([[1, 0, -2], [0, 3, 0]])
    other = replace(
        constants,
        values=constants.values[:, order],
        atoms=constants.atoms[order],
        shifts=(constants.shifts - moved[constants.atoms])[order],
        positions=constants.positions + moved @ constants.cell,
    )
    # column k of row a: relative to the moved atom a
    rows = np.arange(2)[:, None]
    true = other.shifts + moved[other.atoms] - moved[rows]
    columns = column_of(constants, np.tile(other.atoms, (2, 1)), true)
    other = replace(other, values=constants.values[rows, columns], shifts=other.shifts)
    plain = fourier_sum(constants)
    q = np.array([[0.1, 0.2, 0.3]])
    expected = frequencies_THz(plain(q), constants.masses)
    phonon = to_phonopy(other)
    phonon.run_qpoints(q)
    assert_allclose(phonon.qpoints.frequencies, expected, atol=1e-5)


@needs_data
def test_symmetrised_force_constants_obey_the_sum_rules(salt):
    broken = rough(salt)
    assert broken.acoustic_sum > 1e-3 and broken.asymmetry > 1e-3
    found = symmetrized(broken)
    assert found.acoustic_sum < 1e-12 and found.asymmetry < 1e-12
    # a projection: nearer to the true ones, and it changes nothing twice
    error = lambda c: np.linalg.norm(c.values - salt[0].values)
    assert error(found) < 0.5 * error(broken)
    assert_allclose(symmetrized(found).values, found.values, atol=1e-12)
    simple = symmetrized(broken, project=False)
    assert simple.asymmetry < 1e-12 and simple.acoustic_sum < 0.1 * broken.acoustic_sum


@needs_data
def test_symmetrised_charges_are_neutral_and_cubic(salt):
    constants, polar, _ = salt
    noise = 0.02 * np.random.default_rng(0).normal(size=(2, 3, 3))
    found = symmetrized_polar(constants, replace(polar, born_charges=polar.born_charges + noise))
    assert charge_sum(found) < 1e-12
    one = found.born_charges[0]
    assert_allclose(one, np.trace(one) / 3 * np.eye(3), atol=1e-12)


@needs_data
def test_born_charges_are_stored_atom_first(salt):
    # ours: [atom, displacement, field], as `born_charges`; phonopy's tensors are transposed
    constants, polar, _ = salt
    turn = np.array([[0, 0.01, 0], [-0.01, 0, 0], [0, 0, 0]]) * [[[1]], [[-1]]]
    phonon = to_phonopy(constants, replace(polar, born_charges=polar.born_charges + turn))
    born = phonon.nac_params["born"]
    assert_allclose(born, (polar.born_charges + turn).swapaxes(1, 2), atol=1e-12)
    assert abs(born[0, 0, 1] + 0.01) < 1e-12
