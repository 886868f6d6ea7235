"""Ewald sums and all-pairs Coulomb: constants of crystals, references from outside, exact laws."""

import gzip
import json
import re
import xml.etree.ElementTree as ElementTree
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ase import Atoms
from numpy.testing import assert_allclose

from jaxmlip import units
from jaxmlip.derivatives import born_charges, dynamical_matrix, dynamical_matrix_supercell
from jaxmlip.electrostatics import coulomb, ewald, field, inverse_power, pme, potential
from jaxmlip.errors import ResourceError, UsageError
from jaxmlip.interfaces.ase import from_ase
from jaxmlip.neighbors import find_edges
from jaxmlip.parallel import decompose
from jaxmlip.potential import Potential, add_field
from jaxmlip.system import (
    System,
    cast,
    concatenate,
    edge_vectors,
    pad,
    strain,
    sum_atoms,
    sum_edges,
    sum_energies,
    to_edges,
)
from jaxmlip.vibrations.dielectric import longitudinal_hessian

DATA = Path(__file__).parents[2] / "shared" / "data" / "longrange"  # beside a checkout, if at all
needs_data = pytest.mark.skipif(not DATA.is_dir(), reason="no ../shared/data/longrange")
K = units.coulomb_constant
CRYSTAL, SLAB, MOLECULE = (True,) * 3, (True, True, False), (False,) * 3


def build(positions, cell, cutoff, pbc=CRYSTAL, flat=False):
    n, cell = len(positions), np.asarray(cell, float)
    positions = np.array(positions, float)
    return System(
        positions=positions,
        numbers=np.ones(n, np.int32),
        graph=np.zeros(n, np.int32),
        cell=cell[None],
        pbc=np.array([pbc]),
        charge=np.zeros(1),
        spin=np.ones(1),
        field=np.zeros((1, 3)),
        edges=find_edges(positions, cell, pbc, cutoff, flat=flat),
    )


def _energy(solver, system, r, q, epsilon, dipoles):
    return solver(strain(replace(system, positions=r), epsilon), q, dipoles).sum() / K


_slopes = jax.jit(jax.value_and_grad(_energy, (2, 3, 4)), static_argnums=0)
_solve = jax.jit(lambda solver, *arguments: solver(*arguments), static_argnums=0)


def slopes(solver, system, charges, dipoles=None):
    """Energy and its derivatives by positions, charges and strain, in units of e²/Å."""
    zero = jnp.zeros_like(jnp.asarray(system.cell))
    return _slopes(solver, system, system.positions, np.asarray(charges, float), zero, dipoles)


def energies(solver, system, charges, dipoles=None):
    """[n_graphs] e²/Å."""
    return _solve(solver, system, np.asarray(charges, float), dipoles) / K


def ions(n, edge, seed=0, cutoff=None, pbc=CRYSTAL):
    """Random ions, no two nearer than 0.7 of the mean distance, in a triclinic cell."""
    rng = np.random.default_rng(seed)
    cell = edge * np.array([[1, 0.05, -0.1], [0.2, 1.1, 0], [-0.1, 0.15, 0.9]])
    least, found = 0.7 * (abs(np.linalg.det(cell)) / n) ** (1 / 3), []
    while len(found) < n:
        f = rng.uniform(size=3)
        d = np.array([f - g for g in found]).reshape(-1, 3)
        if (np.linalg.norm((d - np.round(d) * np.array(pbc)) @ cell, axis=1) > least).all():
            found.append(f)
    charges = np.where(np.arange(n) % 2, 1.0, -1.0) * rng.uniform(0.5, 1.5, n)
    return build(np.array(found) @ cell, cell, cutoff or edge / 2, pbc), charges - charges.mean()


# --- numbers from outside ------------------------------------------------------------------------

FCC = np.array([[0, 1, 1], [1, 0, 1], [1, 1, 0]]) / 2
CUBE = np.eye(3)
HALF, QUARTER = np.full(3, 0.5), np.full(3, 0.25)
COPPER = np.array([[1, 1, 1], [1, 3, 3], [3, 1, 3], [3, 3, 1]]) / 4
FACES = np.array([[1, 1, 0], [1, 0, 1], [0, 1, 1]]) / 2
HEXAGON, TALL = np.sqrt(3) / 2, np.sqrt(8 / 3)
WURTZITE = np.array([[0.5, -HEXAGON, 0], [0.5, HEXAGON, 0], [0, 0, TALL]])
W = 1 / (2 * np.sqrt(3))
WURTZITE_SITES = np.array(
    [[0.5, W, 0], [0.5, W, 3 / 8 * TALL], [0.5, -W, TALL / 2], [0.5, -W, 7 / 8 * TALL]]
)

# energies of the cell in e²/Å for lattice parameter 1 (NaCl: neighbours at 1)
CRYSTALS = {
    "NaCl": (2 * FCC, [[0, 0, 0], [1, 0, 0]], [1, -1], -1.747564594633182),
    "CsCl": (CUBE, [[0, 0, 0], HALF], [1, -1], -2.035361509452595),
    "zincblende": (FCC, [[0, 0, 0], QUARTER], [1, -1], -3.782926104085778),
    "wurtzite": (WURTZITE, WURTZITE_SITES, [1, -1, 1, -1], -2 * 2.680266993903856),
    "fluorite": (FCC, [[0, 0, 0], QUARTER, 3 * QUARTER], [2, -1, -1], -11.636575227076746),
    "cuprite": (CUBE, [[0, 0, 0], HALF, *COPPER], [-2, -2, 1, 1, 1, 1], -2 * 10.25945703307504),
    "perovskite": (CUBE, [[0, 0, 0], HALF, *FACES], [2, 4, -2, -2, -2], -49.50987211335880),
    "Wigner sc": (CUBE, [[0, 0, 0]], [1], -1.4186487397403097),
    "Wigner bcc": (np.array([[1, 0, 0], [0, 1, 0], HALF]), [[0, 0, 0]], [1], -1.8196167247543218),
    "Wigner fcc": (FCC, [[0, 0, 0]], [1], -2.2924310370569008),
}
KEYS = ["NaCl_nn1", "CsCl_a1", "ZnS_zincblende_a1", "ZnS_wurtzite_ideal_a1", "CaF2_fluorite_a1"]
KEYS += [
    "Cu2O_cuprite_a1",
    "SrTiO3_perovskite_a1",
    "Wigner_sc_a1",
    "Wigner_bcc_a1",
    "Wigner_fcc_a1",
]


def test_madelung_constants_of_ten_crystals_in_one_batch():
    size = 4.0  # Å
    batch = concatenate(
        [build(size * np.array(x), size * cell, 6.0) for cell, x, *_ in CRYSTALS.values()]
    )
    charges = np.concatenate([np.array(q, float) for *_, q, _ in CRYSTALS.values()])
    found = energies(ewald(batch, 6.0, 1e-13), batch, charges) * size
    assert_allclose(found, [e for *_, e in CRYSTALS.values()], rtol=1e-12)  # digits written above


@needs_data
def test_the_constants_above_are_those_of_34_digits():
    reference = json.loads((DATA / "reference_constants.json").read_text())
    formulas = {"ZnS_wurtzite_ideal_a1": 2, "Cu2O_cuprite_a1": 2}
    for key, (*_, energy) in zip(KEYS, CRYSTALS.values(), strict=True):
        expected = formulas.get(key, 1) * float(reference[key]["energy_per_fu"])
        assert_allclose(energy, expected, rtol=1e-14)


def reference_system(name, cutoff, pbc=CRYSTAL):
    archive = np.load(DATA / "reference_random.npz")
    values = {k.split("/")[1]: archive[k] for k in archive.files if k.startswith(name + "/")}
    return build(values["positions"], values["cell"], cutoff, pbc), values


@needs_data
@pytest.mark.parametrize("name", ["tric8_neutral", "tric8_charged"])
def test_triclinic_cells_to_rounding(name):
    system, expected = reference_system(name, 3.0)
    energy, (dr, dq, de) = slopes(ewald(system, 3.0, 1e-13), system, expected["charges"])
    assert_allclose(energy, expected["energy"], atol=1e-11)
    assert_allclose(-dr, expected["forces"], atol=1e-11)
    assert_allclose(dq, expected["dEdq"], atol=1e-11)
    assert_allclose(de[0], expected["virial"], atol=1e-11)


@needs_data
@pytest.mark.slow
def test_second_derivatives_of_a_charged_triclinic_cell():
    system, expected = reference_system("tric8_charged", 3.0)
    solver = ewald(system, 3.0, 1e-13)

    def energy(r, q, epsilon):
        return solver(strain(replace(system, positions=r), epsilon), q).sum() / K

    point = jnp.asarray(system.positions), jnp.asarray(expected["charges"]), jnp.zeros((1, 3, 3))
    rows = jax.jit(jax.hessian(energy, (0, 1, 2)))(*point)
    assert_allclose(rows[0][0], expected["hessian"], atol=1e-10)
    assert_allclose(rows[1][1], expected["charge_hessian"], atol=1e-10)
    assert_allclose(rows[2][2][0][:, :, 0], expected["strain_hessian"], atol=1e-10)


@needs_data
@pytest.mark.parametrize(
    "name", ["slab12_neutral", pytest.param("slab_nacl_layer", marks=pytest.mark.slow)]
)
def test_slabs_are_sums_in_two_dimensions(name):
    system, expected = reference_system(name, 6.0, SLAB)
    energy, (dr, dq, _) = slopes(ewald(system, 6.0, 1e-13), system, expected["charges"])
    assert_allclose(energy, expected["energy"], atol=1e-11)
    assert_allclose(-dr, expected["forces"], atol=1e-11)
    assert_allclose(dq, expected["dEdq"], atol=1e-11)


def scafacos(name):
    """positions, charges, cell, pbc, potentials and fields of a reference configuration."""
    root = ElementTree.fromstring(gzip.open(DATA / f"scafacos_{name}.xml.gz").read())
    configuration = root.find("configuration")
    vector = lambda text: [float(x) for x in text.split()]
    cell = np.array([vector(configuration.get(f"box_{x}")) for x in "abc"])
    pbc = tuple(x == "1" for x in configuration.get("periodicity").split())
    rows = list(configuration.iter("particle"))
    columns = [
        np.array([vector(p.get(key)) for p in rows])
        for key in ("position", "q", "potential", "field")
    ]
    positions, charges, potentials, fields = columns
    return positions, charges[:, 0], cell, pbc, potentials[:, 0], fields


# name, cutoff, tolerance, agreement of potentials and fields (relative to their mean size): the
# errors that the files state, or the digits that they hold
SCAFACOS = [
    ("3d-periodic_triclinic_6_neutral_tricl", 4.0, 1e-12, 1e-6),
    ("3d-periodic_triclinic_sparse_triclinic", 4.0, 1e-13, 1e-12),
    ("3d-periodic_triclinic_cloud_wall_300", 5.0, 1e-12, 1e-11),
    ("3d-periodic_triclinic_cloud_wall_300_2", 5.0, 1e-12, 1e-11),
    ("3d-periodic_triclinic_cloud_wall_300_3", 5.0, 1e-12, 1e-11),
    ("3d-periodic_triclinic_cloud_wall_600", 5.0, 1e-12, 1e-11),
    ("2d-periodic_triclinic_cloud_wall_300", 5.0, 1e-12, 1e-11),
    ("3d-periodic_silica_melt_12960", 8.0, 1e-8, 1e-7),
    ("2d-periodic_silica_melt_12960", 8.0, 1e-8, 1e-7),
    ("3d-periodic_dna_water_15543", 0.8, 1e-6, 1e-5),
]


@needs_data
@pytest.mark.slow
@pytest.mark.parametrize("name, cutoff, tolerance, agreement", SCAFACOS)
def test_potentials_and_fields_of_the_scafacos_systems(name, cutoff, tolerance, agreement):
    positions, charges, cell, pbc, potentials, fields = scafacos(name)
    system = build(positions, cell, cutoff, pbc)
    _, (dr, dq, _) = slopes(ewald(system, cutoff, tolerance), system, charges)
    near = lambda x, y: np.linalg.norm(x - y) / np.linalg.norm(y)
    if abs(charges.sum()) > 1e-9:  # a background: potentials are defined up to a constant
        dq, potentials = (x - np.mean(x) for x in (dq, potentials))
    assert near(dq, potentials) < agreement
    assert near(-dr / charges[:, None], fields) < agreement


def test_two_layers_of_rock_salt():
    # the potential of one layer, and of a second one in its plane waves at the distance 1
    one = 1.61554262671282472  # e.g. the data of ScaFaCoS
    odd = [(m, n) for m in range(-9, 10) for n in range(-9, 10) if (m + n) % 2]
    k = np.sqrt(2) * np.pi * np.array([np.hypot(m, n) for m, n in odd])
    other = (2 * np.pi / k * np.exp(-k)).sum()
    layer = np.array([[0, 0, 0], [1, 0, 0.0]])
    positions = np.concatenate([layer, layer + [0, 0, 1]])
    cell = np.array([[1, 1, 0], [1, -1, 0], [0, 0, 1.0]])
    system = build(positions, cell, 4.0, (True, True, False))
    charges = np.array([1.0, -1.0, -1.0, 1.0])
    found = energies(ewald(system, 4.0, 1e-12), system, charges)[0]
    assert_allclose(found, -(one + other) / 2 * 4, rtol=1e-11)


@needs_data
@pytest.mark.slow
def test_open_silica_melt_of_12960_charges():
    positions, charges, cell, pbc, potentials, fields = scafacos("nonperiodic_silica_melt_12960")
    system = replace(build(positions[:2], cell, 1.0, pbc), edges=None)
    n = len(positions)
    system = replace(
        system, positions=positions, numbers=np.ones(n, int), graph=np.zeros(n, np.int32)
    )
    energy = lambda r, q: coulomb()(replace(system, positions=r), q)[0] / K
    dr, dq = jax.jit(jax.grad(energy, (0, 1)))(positions, charges)
    assert_allclose(dq, potentials, atol=1e-11)
    assert_allclose(-dr / charges[:, None], fields, atol=1e-11)


def frames(name):
    """Header and rows of each frame of an extended XYZ file, numbers only."""
    lines = iter((DATA / name).read_text().splitlines())
    for count in lines:
        header = next(lines)
        rows = np.array([[float(x) for x in next(lines).split()[1:]] for _ in range(int(count))])
        lattice = re.search('Lattice="([^"]*)"', header).group(1)
        energy = float(re.search(" energy=([^ ]*)", header).group(1))
        yield np.array(lattice.split(), float).reshape(3, 3), energy, rows


MADELUNG = 1.7475645946331821906  # of rock salt, e.g. the data of ScaFaCoS


@needs_data
def test_a_thousand_ions_of_openmm_are_rock_salt():
    text = (DATA / "openmm_nacl_crystal.dat").read_text()
    positions = 10 * np.array(re.findall(r"-?\d+\.\d+", text), float).reshape(-1, 3)
    charges = np.repeat([1.0, -1.0], 500)
    system = build(positions, np.eye(3) * 28.2, 9.0)
    found = energies(ewald(system, 9.0, 1e-8), system, charges)[0]
    assert_allclose(found, -500 * MADELUNG / 2.82, rtol=1e-9)


@needs_data
@pytest.mark.slow
def test_every_one_of_10648_ions_has_the_madelung_potential():
    """The file tells how to make them: 22³ on a grid, charges that alternate, what each feels."""
    root = ElementTree.fromstring(gzip.open(DATA / "scafacos_3d-periodic_nacl_10648.xml.gz").read())
    expected = float(next(root.iter("potentials")).get("value").split()[1])
    grid = np.stack(np.meshgrid(*[np.arange(22)] * 3, indexing="ij"), -1).reshape(-1, 3)
    charges, system = 1.0 - 2 * (grid.sum(1) % 2), build(grid + 0.5, 22 * np.eye(3), 4.0)
    solver = pme(system, 4.0, 1e-5, charges=charges)
    _, (dr, dq, _) = slopes(solver, system, charges)
    assert_allclose(dq, -charges * expected, atol=1e-5)
    assert np.abs(dr).max() < 1e-5


@needs_data
@pytest.mark.slow
def test_slabs_are_crystals_with_much_vacuum_and_the_term_of_yeh_and_berkowitz():
    """Five slabs with charges that somebody else has given them: + 2 pi M²/V, 10.1063/1.479595,
    where waves along the slab have died away, exp(-2 pi (c - h)/a)."""
    lines = iter((DATA / "jaxpme_mad15_2d_slabs.xyz").read_text().splitlines())
    for count in lines:
        header = next(lines)
        rows = np.array([[float(x) for x in next(lines).split()[1:5]] for _ in range(int(count))])
        cell = np.array(re.search('Lattice="([^"]*)"', header).group(1).split(), float)
        cell, positions = cell.reshape(3, 3), rows[:, :3]
        charges = rows[:, 3] - rows[:, 3].mean()
        systems = [build(positions, cell, 6.0, pbc) for pbc in (SLAB, CRYSTAL)]
        slab, deep = (energies(ewald(s, 6.0, 1e-9), s, charges)[0] for s in systems)
        term = 2 * np.pi * (charges @ positions[:, 2]) ** 2 / np.linalg.det(cell)
        assert abs(term) > 1e-4
        assert_allclose(slab, deep + term, atol=1e-10)


@needs_data
@pytest.mark.slow
def test_gromacs_and_espresso_frames():
    # charges of GROMACS (single precision), dipoles of ESPResSo (its mesh)
    for name, agreement in (
        ("torchpme_gromacs_nacl8_frames.xyz", 1e-3),
        ("torchpme_espresso_dipole_frames.xyz", 1e-3),
    ):
        for cell, energy, rows in frames(name):
            system = build(rows[:, :3], cell, 6.0)
            solver, n = ewald(system, 6.0, 1e-9), len(rows)
            dipoles = rows[:, 3:6] if rows.shape[1] == 9 else None
            charges = rows[:, 3] if dipoles is None else np.zeros(n)
            found, (dr, *_) = slopes(solver, system, charges, dipoles)
            assert_allclose(K * found, energy, rtol=agreement)
            error = np.linalg.norm(-K * dr - rows[:, -3:])
            assert error < agreement * np.linalg.norm(rows[:, -3:]) + 1e-4


@needs_data
@pytest.mark.slow
def test_amorphous_nacl_of_openmm():
    text = (DATA / "openmm_nacl_amorph.dat").read_text()
    positions = 10 * np.array([row.split(",") for row in re.findall(r"Vec3\((.*)\)", text)], float)
    system = build(positions, 30.0646 * np.eye(3), 9.0)
    charges = np.repeat([1.0, -1.0], len(positions) // 2)
    energy = K * energies(ewald(system, 9.0, 1e-6), system, charges)[0]
    assert_allclose(energy, -3.82047e5 * units.kJ_mol, rtol=1e-5)  # GROMACS, by OpenMM's test


# --- laws ----------------------------------------------------------------------------------------


def test_energy_does_not_depend_on_splitting_cell_choice_or_handedness():
    system, charges = ions(6, 5.0, cutoff=5.0)
    charges, cell = charges + 0.2, system.cell[0]  # a charged cell
    reduced = np.array([[1, 0, 0], [2, 1, 0], [-1, 1, 1]])
    far = system.positions + np.array([2, -3, 1]) @ cell
    double = np.concatenate([system.positions, system.positions + cell[1]])
    batch = concatenate(
        [
            system,
            build(system.positions, cell[[1, 0, 2]], 5.0),  # left-handed
            build(far, reduced @ -cell, 5.0),
            build(double, cell * [[1], [2], [1]], 5.0),
        ]
    )
    found = energies(ewald(batch, 5.0, 1e-12), batch, np.tile(charges, 5))
    longer = system_at(system, 7.0)
    expected = energies(ewald(longer, 7.0, 1e-12), longer, charges)[0]
    assert_allclose(found, expected * np.array([1, 1, 1, 2]), rtol=1e-10)


def system_at(system, cutoff):
    return build(system.positions, system.cell[0], cutoff, tuple(system.pbc[0]))


@pytest.fixture(scope="module")
def mixed():
    """A crystal, a slab along another axis, a molecule and padding, in one batch, with dipoles."""
    crystal, q0 = ions(7, 6.0, seed=1, cutoff=5.0)
    slab, q1 = ions(5, 6.0, seed=2, cutoff=5.0, pbc=(True, False, True))
    molecule, q2 = ions(4, 5.0, seed=3, cutoff=5.0, pbc=MOLECULE)
    alone = [(crystal, q0 + 0.1), (slab, q1), (molecule, q2 - 0.3)]
    batch = pad(concatenate([s for s, _ in alone]), n_atoms=20, n_graphs=5)
    charges = np.pad(np.concatenate([q for _, q in alone]), (0, 4), constant_values=9.0)
    dipoles = np.random.default_rng(4).normal(size=(20, 3)) / 3
    return alone, batch, charges, dipoles


def test_a_batch_of_different_structures_is_each_alone(mixed):
    alone, batch, charges, dipoles = mixed
    solver = ewald(batch, 5.0, 1e-9)
    found, (dr, dq, _) = slopes(solver, batch, charges, dipoles)
    at, single = 0, []
    for system, q in alone:
        part = dipoles[at : at + len(q)]
        single.append(energies(ewald(system, 5.0, 1e-9), system, q, part)[0])
        at += len(q)
    assert_allclose(energies(solver, batch, charges, dipoles), [*single, 0, 0], atol=1e-7)
    assert_allclose(found, sum(single), atol=1e-7)
    for derivative in (dr, dq):
        assert np.isfinite(derivative).all() and np.abs(derivative[at:]).max() == 0
    molecule, q = alone[2]
    assert_allclose(
        energies(coulomb(), molecule, q, part), energies(solver, batch, charges, dipoles)[2:3]
    )


@pytest.mark.slow
def test_three_derivatives_of_a_padded_batch_are_those_of_differences(mixed):
    _, batch, charges, dipoles = mixed
    solver = ewald(batch, 5.0, 1e-6)
    rng = np.random.default_rng(5)
    shapes = [batch.positions.shape, charges.shape, dipoles.shape, batch.cell.shape]
    r, q, mu, e = (0.1 * rng.normal(size=s) for s in shapes)

    def energy(step):
        moved = strain(replace(batch, positions=batch.positions + step * r), step * e)
        return solver(moved, charges + step * q, dipoles + step * mu).sum()

    orders = [energy]
    for _ in range(3):
        orders.append(jax.grad(orders[-1]))
    orders, h = [jax.jit(f) for f in orders], 1e-3
    for function, derivative in zip(orders, orders[1:], strict=False):
        difference = (function(h) - function(-h)) / (2 * h)
        assert_allclose(derivative(0.0), difference, rtol=1e-4)  # h² x higher derivatives


def test_virial_and_forces_sum_as_they_must():
    system, charges = ions(8, 6.0, seed=6, cutoff=5.0)
    charges = charges + 0.25
    energy, (dr, dq, de) = slopes(ewald(system, 5.0, 1e-12), system, charges)
    assert_allclose(np.trace(de[0]), -energy, rtol=1e-10)  # homogeneous of degree -1
    assert_allclose(dq @ charges, 2 * energy, rtol=1e-12)  # quadratic in the charges
    assert_allclose(dr.sum(0), 0, atol=1e-12)
    assert_allclose(de[0], de[0].T, atol=1e-11)  # no torque on the crystal


@pytest.mark.slow
def test_dipoles_are_pairs_of_near_charges():
    system, charges = ions(4, 5.0, seed=7, cutoff=5.0)
    dipoles = np.random.default_rng(8).normal(size=(4, 3))
    solver = ewald(system, 5.0, 1e-12)
    size = np.linalg.norm(dipoles, axis=1)

    def of_charges(h):
        """With two charges +-1/(2h) at +-h times each dipole, less what they have of their own."""
        ends = [system.positions + s * h * dipoles for s in (-1, 0, 1)]
        whole = build(np.concatenate(ends), system.cell[0], 5.0)
        pairs = np.concatenate([np.full(4, -0.5 / h), charges, np.full(4, 0.5 / h)])
        own = -((0.5 / h) ** 2) / (2 * h * size)
        return energies(ewald(whole, 5.0, 1e-12), whole, pairs)[0] - own.sum()

    expected = (4 * of_charges(4e-3) - of_charges(8e-3)) / 3  # h² of finite dipoles falls out
    found = energies(solver, system, charges, dipoles)[0]
    assert_allclose(found, expected, rtol=1e-5)  # rounding of charges of 100 e, h⁴


def test_potential_and_field_at_the_atoms():
    molecule = replace(build([[0, 0, 0], [0, 0, 2.0]], np.eye(3), 1.0, MOLECULE), edges=None)
    charges = np.array([1.0, -0.5])
    assert_allclose(jax.jit(potential(coulomb()))(molecule, charges), K * np.array([-0.25, 0.5]))
    expected = [[0, 0, K * 0.5 / 4], [0, 0, K * 1 / 4]]
    assert_allclose(jax.jit(field(coulomb()))(molecule, charges), expected)


def test_inverse_powers_of_lattices():
    # Lennard-Jones and Ingham, Proc. R. Soc. A 107, 636 (1925): sums of r^-4 and r^-6
    system = build([[0, 0, 0.0]], 2.0 * np.eye(3), 5.0)
    for power, expected in ((4, 8.266157979880835), (6, 4.200961987413770)):
        energy = K * energies(inverse_power(system, 5.0, power, 1e-12), system, np.ones(1))[0]
        assert_allclose(energy * 2.0**power, expected, rtol=1e-10)


@pytest.mark.slow
@pytest.mark.parametrize("power", [1, 2, 3, 4, 5, 6])
def test_every_power_is_homogeneous_and_independent_of_the_splitting(power):
    system, charges = ions(6, 5.0, seed=9)
    found = []
    for cutoff in (5.0, 6.0):
        at = system_at(system, cutoff)
        solver = inverse_power(at, cutoff, power, 1e-12)
        energy, (dr, _, de) = slopes(solver, at, charges)
        assert_allclose(np.trace(de[0]), -power * energy, rtol=1e-9)
        found.append(np.concatenate([[energy], np.ravel(dr)]))
    assert_allclose(*found, rtol=1e-8, atol=1e-12)


@pytest.mark.slow
def test_a_window_leaves_its_pairs_to_the_short_range_model():
    system, charges = ions(6, 5.0, seed=10, cutoff=5.0)
    solvers = (ewald(system, 5.0, 1e-6, exclude=x) for x in (None, 4.0))
    whole, outside = (energies(solver, system, charges)[0] for solver in solvers)
    r = np.linalg.norm(edge_vectors(system), axis=-1)
    x = np.minimum(r / 4.0, 1)
    smooth = 1 - 35 * x**4 + 84 * x**5 - 70 * x**6 + 20 * x**7
    inside = 0.5 * (charges[:, None] * charges[system.edges.senders] * smooth / r)
    assert_allclose(whole - outside, inside[system.edges.mask].sum(), rtol=1e-12)


@pytest.mark.slow
def test_the_requested_error_of_forces_is_met():
    system, charges = ions(100, 12.0, seed=11, cutoff=6.0)
    _, (reference, *_) = slopes(ewald(system, 6.0, 1e-10), system, charges)
    for tolerance in (1e-3, 1e-4, 1e-5, 1e-6):
        _, (dr, *_) = slopes(ewald(system, 6.0, tolerance), system, charges)
        error = np.linalg.norm(dr - reference) / np.linalg.norm(reference)
        assert error < 2 * tolerance


def alone(system, edge):
    """The atoms of a cell, not their images, in a cube with vacuum around them."""
    return build(system.positions, edge * np.eye(3), 6.0)


@pytest.mark.parametrize("power", [1, 6])
def test_vacuum_does_not_ask_for_a_closer_sum(power):
    system, _ = ions(100, 12.0, seed=11, cutoff=6.0)
    plan = lambda s: inverse_power(s, 6.0, power, 1e-4)
    near, far = (plan(alone(system, edge)).kernel.alpha for edge in (20.0, 80.0))
    assert near == far < 1.1 * plan(system).kernel.alpha


@pytest.mark.slow
@pytest.mark.parametrize("power", [1, 6])
def test_the_requested_error_is_met_in_vacuum(power):
    system, charges = ions(100, 12.0, seed=11, cutoff=6.0)
    system, weights = alone(system, 40.0), charges if power == 1 else np.abs(charges)
    sum_of = lambda tolerance: inverse_power(system, 6.0, power, tolerance)
    _, (reference, *_) = slopes(sum_of(1e-8), system, weights)
    for tolerance in (1e-2, 1e-4):
        _, (dr, *_) = slopes(sum_of(tolerance), system, weights)
        assert np.linalg.norm(dr - reference) < 2 * tolerance * np.linalg.norm(reference)


@pytest.mark.slow
def test_float32_forces_and_no_new_compilation_for_new_positions():
    system, charges = ions(100, 12.0, seed=11, cutoff=6.0)
    system = jax.tree.map(jnp.asarray, cast(system, jnp.float32))
    solver = ewald(system, 6.0, 1e-6)
    count = []

    @jax.jit
    def force(system, charges):
        count.append(1)
        return jax.grad(lambda r: solver(replace(system, positions=r), charges).sum())(
            system.positions
        )

    single = force(system, charges.astype(np.float32))
    moved = replace(system, positions=system.positions + 0.01)
    assert_allclose(force(moved, charges.astype(np.float32)), single, atol=1e-3)
    assert len(count) == 1
    double = force(cast(system, jnp.float64), charges)
    assert single.dtype == jnp.float32
    assert np.linalg.norm(single - double) < 2e-6 * np.linalg.norm(double)  # 2^-23 = 1.2e-7


def test_what_cannot_be_planned_is_refused():
    system, charges = ions(20, 6.0, seed=1, cutoff=5.0)
    with pytest.raises(UsageError, match="neighbours within 6.0"):
        ewald(system, 6.0)
    with pytest.raises(UsageError, match="no edges"):
        ewald(replace(system, edges=None), 6.0)
    with pytest.raises(UsageError, match="wires"):
        ewald(replace(system, pbc=np.array([[True, False, False]])), 5.0)
    with pytest.raises(UsageError, match="traced"):
        jax.jit(lambda s: ewald(s, 5.0)(s, charges))(system)
    with pytest.raises(UsageError, match="open boundaries"):
        coulomb()(system, charges)
    with pytest.raises(UsageError, match="charges have shape"):
        ewald(system, 5.0)(system, charges[:-1])
    with pytest.raises(UsageError, match="power is 7"):
        inverse_power(system, 5.0, 7)
    tiny = build(system.positions * 100, system.cell[0] * 100, 1.0)
    with pytest.raises(ResourceError, match="wavevectors"):
        ewald(tiny, 1.0, 1e-10)
    molecule = replace(system, pbc=np.array([MOLECULE]))
    assert np.isnan(energies(ewald(system, 5.0), molecule, charges)[0])  # not what was planned


def test_what_is_not_planned_has_nan_forces_and_leaves_the_others_alone():
    pair = build([[0, 0, 0], [0, 0, 2.0]], np.eye(3), 3.0, MOLECULE)
    four = build([[0, 0, 0], [0, 0, 2.0], [0, 3, 0], [2, 0, 0]], np.eye(3), 3.0, MOLECULE)
    batch = concatenate([pair, four, pair])
    batch = replace(batch, pbc=np.array([MOLECULE, MOLECULE, CRYSTAL]))
    solver, charges = coulomb(concatenate([pair, pair])), jnp.array([1.0, -1.0] * 4)
    energy = lambda r, system: solver(replace(system, positions=r), charges).sum()
    slope = jax.jit(jax.grad(energy))(batch.positions, jax.tree.map(jnp.asarray, batch))
    assert_allclose(slope[:2, 2], [-K / 4, K / 4])  # of -K / d
    assert np.isnan(slope[2:]).all()


def test_pairs_of_a_molecule_are_refused_on_several_devices():
    pair = build([[0, 0, 0], [0, 0, 2.0]], np.eye(3), 3.0, MOLECULE)
    with pytest.raises(UsageError, match="not spread over devices"):
        coulomb()(decompose(pair, 2, grid=(1, 1, 2)).system, np.zeros(2))


def test_equal_plans_are_equal_and_share_a_compiled_program():
    system, _ = ions(4, 5.0, cutoff=4.0)
    solver = ewald(system, 4.0)
    assert solver == ewald(system, 4.0) and hash(solver) == hash(ewald(system, 4.0))


# --- phonons -------------------------------------------------------------------------------------


def polar_model(solver, cutoff, *, flow, moment):
    """A repulsion and charges; flow: charges that the neighbours change, moment: dipoles too."""

    def apply(params, system):
        r = jnp.linalg.norm(edge_vectors(system), axis=-1)
        repulsion = sum_edges(system, jnp.exp(-3 * (r - 1.5)) * (r < cutoff))
        charges = jnp.where(system.numbers == 11, 1.0, -1.0)
        near = jnp.exp(-r) * jnp.maximum(1 - (r / cutoff) ** 2, 0) ** 3
        sent = near * to_edges(system, charges)
        flowing = charges + flow * (sum_edges(system, near) + sum_edges(system, sent) / 2)
        count = sum_atoms(system, jnp.ones_like(r[..., 0]))
        mean = sum_atoms(system, flowing) / count
        charges = flowing - jnp.where(flow == 0, 0, mean)[system.graph]
        dipoles = None
        if moment:
            arms = near[..., None] * edge_vectors(system) * to_edges(system, charges)[..., None]
            dipoles = moment * sum_edges(system, arms)
        energy = sum_energies(system, repulsion) + solver(system, charges, dipoles)
        dipole = charges[:, None] * system.positions
        dipole = sum_atoms(system, dipole if dipoles is None else dipole + dipoles)
        return {"energy": energy, "charges": charges, "dipole": dipole}

    return apply


@pytest.mark.slow
@pytest.mark.parametrize("flow, moment", [(0.0, 0.0), (0.2, 0.0), (0.2, 0.1)])
def test_dynamical_matrix_is_that_of_a_supercell(flow, moment):
    cell = np.array([[3.0, 0.1, 0.0], [0.7, 3.2, 0.2], [-0.4, 0.5, 3.4]])
    positions = np.array([[0.1, 0, 0.2], [1.6, 1.7, 1.9]])
    numbers = np.array([11, 17])
    system = replace(build(positions, cell, 5.0), numbers=numbers)
    repeats = np.array([2, 3, 1])
    shifts = np.array([[i, j, 0] for i in range(2) for j in range(3)]) @ cell
    large = np.concatenate([positions + s for s in shifts])
    large = build(large, cell * repeats[:, None], 5.0)
    solver = ewald([system, large], 5.0, 1e-12)
    model = polar_model(solver, 5.0, flow=flow, moment=moment)
    q = np.array([[0.5, 1 / 3, 0], [0, -1 / 3, 0], [0.5, 0, 0], [0, 0, 0], [1.5, 2 / 3, 1]])
    found = dynamical_matrix(model)({}, system, q)
    expected = dynamical_matrix_supercell(model, (2, 3, 1))({}, system, q)
    assert_allclose(found, expected, atol=1e-8)
    assert_allclose(found, found.conj().swapaxes(1, 2), atol=1e-10)


@pytest.mark.slow
def test_longitudinal_optical_modes_of_rigid_ions_are_split_from_transverse_ones():
    # rigid ions have eps_infinity = 1: mu (w_LO² - w_TO²) = 4 pi Z² / V, for any short range
    a = 5.64
    system = replace(build([[0, 0, 0], [a / 2, 0, 0]], a * FCC, 5.0), numbers=np.array([11, 17]))
    model = polar_model(ewald(system, 5.0, 1e-12), 5.0, flow=0.0, moment=0.0)
    small = 1e-4 * np.array([[0.0, 0.5, 0.5]])  # along x
    matrix = np.asarray(dynamical_matrix(model)({}, system, small))[0].real
    reduced = 22.99 * 35.45 / (22.99 + 35.45)
    against = np.kron(np.array([1 / 22.99, -1 / 35.45]) * reduced, np.eye(3))  # at rest as a whole
    squares = np.linalg.eigvalsh(against @ matrix @ against.T)  # reduced mass x frequency²
    volume = a**3 / 4
    assert_allclose(squares[0], squares[1], rtol=1e-6)
    splitting = squares[2] - squares[0]
    assert_allclose(splitting, 4 * np.pi * K / volume, rtol=1e-6)  # q² x dispersion


@pytest.mark.parametrize("moment", [0.0, pytest.param(0.1, marks=pytest.mark.slow)])
def test_longitudinal_modes_of_ir_are_those_of_the_dynamical_matrix_next_to_gamma(moment):
    """The field of `ir` (Born charges, eps 1) on the Hessian, and D(q -> 0) of `phonons`.

    moment: of dipoles that neighbours induce, whose Born charges are not the charges of the ions.
    """
    cell = np.array([[3.0, 0.1, 0.0], [0.7, 3.2, 0.2], [-0.4, 0.5, 3.4]])
    system = build([[0.1, 0, 0.2], [1.6, 1.7, 1.9]], cell, 4.0)
    system = replace(system, numbers=np.array([11, 17]))
    model = polar_model(ewald(system, 4.0, 1e-9), 4.0, flow=0.0, moment=moment)
    q = 1e-4 * np.array([0.3, -0.2, 0.5])
    matrices = np.asarray(dynamical_matrix(model)({}, system, np.stack([0 * q, q])))
    charges = np.array([1.0, -1.0])[:, None, None] * np.eye(3)
    if moment:
        field = add_field(Potential(lambda key, system: {}, model, 4.0))
        charges = np.asarray(born_charges(field.apply)({}, system))
        assert np.abs(charges[0] - np.eye(3)).max() > 0.01
    gamma, volume = matrices[0].real.reshape(2, 3, 2, 3), np.linalg.det(cell)
    found = longitudinal_hessian(gamma, charges, np.eye(3), volume, np.linalg.solve(cell, q))
    jump = matrices[1].real - matrices[0].real
    assert_allclose(found.reshape(6, 6) - matrices[0].real, jump, atol=2e-3)  # q x dispersion
    assert np.abs(jump).max() > 1.0


@pytest.mark.slow
def test_float32_forces_of_ten_thousand_charges():
    system, charges = ions(200, 16.0, seed=12, cutoff=6.0)
    rng = np.random.default_rng(13)
    copies = np.stack(np.meshgrid(*[np.arange(n) for n in (5, 5, 2)], indexing="ij"), -1)
    shifts = copies.reshape(-1, 3) @ system.cell[0]
    positions = np.concatenate([system.positions + s for s in shifts])
    positions += rng.normal(scale=0.1, size=positions.shape)
    large = build(positions, system.cell[0] * np.array([[5], [5], [2]]), 6.0)
    large = cast(large, jnp.float32)
    charges = np.tile(charges, len(shifts)).astype(np.float32)
    solver = ewald(large, 6.0, 1e-4)
    _, (single, *_) = slopes32(solver, large, charges)
    _, (double, *_) = slopes32(solver, cast(large, jnp.float64), charges.astype(float))
    assert len(charges) == 10_000
    assert np.linalg.norm(single - double) < 1e-5 * np.linalg.norm(double)


def slopes32(solver, system, charges):
    zero = jnp.zeros_like(jnp.asarray(system.cell))
    return _slopes(solver, system, jnp.asarray(system.positions), charges, zero, None)


@pytest.mark.parametrize("plan", [ewald, pme])
def test_what_is_not_planned_is_nan_with_all_derivatives_and_the_others_are_not(plan):
    cell = [[4.0, 0.1, 0], [0.3, 4.2, 0], [0, 0.2, 4.4]]
    one = from_ase(Atoms("NaCl", [[0, 0, 0], [2.1, 2.0, 2.2]], cell=cell, pbc=True), 4.0)
    grown, open_ = strain(one, 1.5 * np.eye(3)[None]), replace(one, pbc=np.zeros((1, 3), bool))
    batch = pad(concatenate([one, grown, open_, one]), n_atoms=10, n_graphs=5)
    solver = plan(one, 4.0, 1e-3)
    if plan is ewald:
        solver = replace(solver, largest=2)

    @jax.jit
    def slopes(system):
        def energy(r, epsilon, charges):
            out = solver(strain(replace(system, positions=r), epsilon), charges)
            return out.sum(), out

        charges, still = jnp.array([1.0, -1.0] * 5), jnp.zeros((5, 3, 3))
        return jax.grad(energy, (0, 1, 2), has_aux=True)(system.positions, still, charges)

    (by_r, by_strain, by_charge), energy = slopes(jax.tree.map(jnp.asarray, batch))
    bad = np.array([0, 1, 1, 0, 0], bool)
    atoms = np.repeat(bad, 2)
    assert (np.isnan(energy) == bad).all() and (np.isnan(by_charge) == atoms).all()
    assert (np.isnan(by_r).all(1) == atoms).all() and (np.isnan(by_r).any(1) == atoms).all()
    assert np.isfinite(by_strain[~bad]).all()
    assert_allclose(energy[::4], [energy[3], 0])
