"""Normal modes, infrared intensities and thermochemistry against formulas and experiment."""

import numpy as np
import pytest
from ase import Atoms
from ase.build import molecule
from ase.thermochemistry import IdealGasThermo
from numpy.testing import assert_allclose

from jaxmlip import units
from jaxmlip.errors import DataError, NumericalError
from jaxmlip.vibrations import (
    animation,
    damped_rotor,
    harmonic,
    ideal_gas,
    intensities,
    label,
    moving_atoms,
    normal_modes,
    spectrum,
)
from jaxmlip.vibrations.infrared import charge_sum_error

# Fundamentals in cm⁻¹ with degeneracy (Shimanouchi, NSRDS-NBS 39, 1972), symmetry number,
# entropy at 298.15 K and 1 bar in J/mol/K (NIST-JANAF tables).
GASES = {
    "H2O": ([(3657, 1), (1595, 1), (3756, 1)], 2, 188.84),
    "CO2": ([(1333, 1), (667, 2), (2349, 1)], 2, 213.79),
    "NH3": ([(3337, 1), (950, 1), (3444, 2), (1627, 2)], 3, 192.77),
    "CH4": ([(2917, 1), (1534, 2), (3019, 3), (1306, 3)], 12, 186.25),
    "HCN": ([(3311, 1), (712, 2), (2097, 1)], 1, 201.83),
    "C2H2": ([(3374, 1), (1974, 1), (3289, 1), (612, 2), (730, 2)], 2, 200.93),
    "C6H6": (
        [
            (3062, 1),
            (992, 1),
            (1326, 1),
            (673, 1),
            (3068, 1),
            (1010, 1),
            (995, 1),
            (703, 1),
            (1310, 1),
            (1150, 1),
            (849, 2),
            (3063, 2),
            (1486, 2),
            (1038, 2),
            (3047, 2),
            (1596, 2),
            (1178, 2),
            (606, 2),
            (975, 2),
            (410, 2),
        ],
        12,
        269.20,
    ),
}


def gas(name):
    table, symmetry_number, entropy = GASES[name]
    frequencies = [f for f, degeneracy in table for _ in range(degeneracy)]
    return molecule(name), frequencies, symmetry_number, entropy


def springs(positions, pairs, constants, lengths=None):
    """Hessian of harmonic springs 1/2 k (|r| - length)²; stretched ones push sideways too."""
    n = len(positions)
    out = np.zeros((n, 3, n, 3))
    for number, ((i, j), k) in enumerate(zip(pairs, constants, strict=True)):
        d = positions[j] - positions[i]
        r = np.linalg.norm(d)
        along = np.outer(d, d) / r**2
        length = r if lengths is None else lengths[number]
        block = k * along + k * (1 - length / r) * (np.eye(3) - along)
        for a, b, sign in ((i, i, 1), (j, j, 1), (i, j, -1), (j, i, -1)):
            out[a, :, b, :] += sign * block
    return out


def wavenumber(k_over_m):
    return np.sqrt(k_over_m) * units.hbar / units.invcm


@pytest.fixture
def water():
    atoms = molecule("H2O")
    pairs, constants = [(0, 1), (0, 2), (1, 2)], [50.0, 50.0, 8.0]
    return atoms, springs(atoms.positions, pairs, constants)


# --- modes ---------------------------------------------------------------------------------------


def test_a_diatomic_vibrates_at_the_root_of_k_over_reduced_mass():
    masses, k = np.array([12.0, 15.995]), 118.0
    mu = masses.prod() / masses.sum()
    positions = np.array([[0.3, 0.1, 0.0], [0.9, 0.6, 0.8]])
    modes = normal_modes(springs(positions, [(0, 1)], [k]), masses, positions)
    assert_allclose(modes.frequencies_cm1, [wavenumber(k / mu)], rtol=1e-12)  # rounding only
    # every displacement is along the bond, so k of the mode is k (r1 + r2)² / (r1² + r2²)
    share = masses[::-1].sum() ** 2 / (masses**2).sum()
    assert_allclose(modes.force_constants, [k * share], rtol=1e-12)
    assert_allclose(modes.force_constants / modes.reduced_masses, [k / mu], rtol=1e-12)


def test_a_linear_triatomic_has_four_modes_with_textbook_frequencies():
    """O=C=O with bonds k and bend kappa, V = kappa/2 (y1 - 2 y2 + y3)²: Landau-Lifshitz I §24."""
    m_o, m_c, k, kappa = 15.995, 12.0, 97.0, 1.3
    positions = 1.16 * np.array([[-1.0, 0, 0], [0, 0, 0], [1, 0, 0]])
    hessian = springs(positions, [(0, 1), (1, 2)], [k, k])
    bend = np.outer([1, -2, 1], [1, -2, 1]) * kappa
    for axis in (1, 2):
        hessian[:, axis, :, axis] += bend
    modes = normal_modes(hessian, [m_o, m_c, m_o], positions)
    expected = [kappa * (2 / m_o + 4 / m_c)] * 2 + [k / m_o, k * (1 / m_o + 2 / m_c)]
    assert_allclose(modes.frequencies_cm1, [wavenumber(x) for x in expected], rtol=1e-10)
    assert_allclose(modes.rigid_frequencies_cm1, 0, atol=1e-3)  # sqrt of rounding, cm⁻¹
    assert len(modes.rigid_frequencies_cm1) == 5


def test_modes_are_orthonormal_and_free_of_translation_and_rotation(water):
    atoms, hessian = water
    masses = atoms.get_masses()
    modes = normal_modes(hessian, masses, atoms.positions)
    flat = modes.vectors.reshape(3, -1)
    assert_allclose(flat @ flat.T, np.eye(3), atol=1e-12)
    momentum = np.einsum("i,kia->ka", masses, modes.displacements)
    r = atoms.positions - atoms.get_center_of_mass()
    spin = np.einsum("i,kia->ka", masses, np.cross(r, modes.displacements))
    assert_allclose(momentum, 0, atol=1e-12)
    assert_allclose(spin, 0, atol=1e-12)


def test_rotations_are_projected_even_where_forces_do_not_vanish():
    atoms = molecule("H2O")
    lengths = [0.9, 0.9, 1.4]
    hessian = springs(atoms.positions, [(0, 1), (0, 2), (1, 2)], [50.0, 50.0, 8.0], lengths)
    modes = normal_modes(hessian, atoms.get_masses(), atoms.positions)
    assert len(modes.frequencies_cm1) == 3
    assert np.abs(modes.rigid_frequencies_cm1).max() > 10  # what the projection hid is told
    r = atoms.positions - atoms.get_center_of_mass()
    spin = np.einsum("i,kia->ka", atoms.get_masses(), np.cross(r, modes.displacements))
    assert_allclose(spin, 0, atol=1e-12)


def test_frequencies_do_not_change_when_the_molecule_turns_and_moves(water):
    atoms, hessian = water
    q = np.linalg.qr(np.random.default_rng(1).normal(size=(3, 3)))[0]
    turned = np.einsum("ab,ibjd,cd->iajc", q, hessian, q)
    masses = atoms.get_masses()
    before = normal_modes(hessian, masses, atoms.positions)
    after = normal_modes(turned, masses, atoms.positions @ q.T + 7.0)
    assert_allclose(after.frequencies_cm1, before.frequencies_cm1, rtol=1e-10)


def test_deuterium_lowers_frequencies_by_the_product_rule(water):
    """Teller-Redlich: prod (w'/w)² = prod_atoms (m/m')³ (M'/M)³ (I'_a I'_b I'_c / I_a I_b I_c)."""
    atoms, hessian = water
    heavy = atoms.copy()
    heavy.set_masses([atoms.get_masses()[0], 2.0141, 2.0141])
    light, deuterated = (
        normal_modes(hessian, a.get_masses(), a.positions).frequencies_cm1 for a in (atoms, heavy)
    )
    ratio = lambda f: np.prod(f(heavy) / f(atoms))
    expected = (
        ratio(lambda a: a.get_masses()) ** -3
        * ratio(lambda a: a.get_masses().sum()) ** 3
        * ratio(lambda a: a.get_moments_of_inertia())
    )
    assert_allclose(np.prod(deuterated / light) ** 2, expected, rtol=1e-10)


def test_an_atom_has_no_modes_and_a_crystal_loses_only_translations():
    one = normal_modes(np.zeros((1, 3, 1, 3)), [39.9], np.zeros((1, 3)))
    assert one.frequencies_cm1.shape == (0,) and one.vectors.shape == (0, 1, 3)
    atoms = molecule("H2O")
    hessian = springs(atoms.positions, [(0, 1), (0, 2), (1, 2)], [50.0, 50.0, 8.0])
    crystal = normal_modes(hessian, atoms.get_masses(), atoms.positions, pbc=(True, True, False))
    assert crystal.frequencies_cm1.shape == (6,)
    assert normal_modes(
        hessian, atoms.get_masses(), atoms.positions, project=False
    ).frequencies_cm1.shape == (9,)


def test_a_nearly_linear_molecule_is_linear_and_a_long_bent_one_is_not():
    count = lambda p: (
        normal_modes(np.zeros((len(p), 3, len(p), 3)), np.ones(len(p)), p).frequencies_cm1.size
    )
    line = np.stack([1.3 * np.arange(60.0), np.zeros(60), np.zeros(60)], axis=1)
    line[30, 1] = 0.005  # Å, as a relaxation to fmax 1e-4 may leave it
    assert count(line) == 3 * 60 - 5
    line[0, 1] = 0.5  # one atom off the axis of an 80 Å chain
    assert count(line) == 3 * 60 - 6


def test_an_imaginary_mode_is_a_negative_frequency_in_first_place():
    positions = np.array([[0.0, 0, 0], [1, 0, 0]])
    modes = normal_modes(springs(positions, [(0, 1)], [-3.0]), [1.0, 1.0], positions)
    assert_allclose(modes.frequencies_cm1, [-wavenumber(6.0)], rtol=1e-12)
    assert modes.n_imaginary == 1


def test_a_broken_hessian_is_refused_with_numbers(water):
    atoms, hessian = water
    args = atoms.get_masses(), atoms.positions
    skewed = hessian.copy()
    skewed[0, 0, 1, 0] += 1.0
    with pytest.raises(NumericalError, match="not symmetric.*= 1 eV"):
        normal_modes(skewed, *args)
    assert normal_modes(skewed, *args, symmetry_tolerance=1.0).asymmetry == pytest.approx(1.0)
    skewed[2, 0, 1, 0] = np.nan
    with pytest.raises(NumericalError, match="first atom 2"):
        normal_modes(skewed, *args)
    with pytest.raises(DataError, match="mass of atom 1"):
        normal_modes(hessian, [1.0, 0.0, 1.0], atoms.positions)


# --- infrared ------------------------------------------------------------------------------------


def test_a_diatomic_of_point_charges_absorbs_q_squared_over_mu():
    masses, q = np.array([1.008, 34.969]), 0.2
    positions = np.array([[0.0, 0, 0], [0, 0, 1.27]])
    modes = normal_modes(springs(positions, [(0, 1)], [32.0]), masses, positions)
    born = np.stack([q * np.eye(3), -q * np.eye(3)])
    mu = masses.prod() / masses.sum()
    assert_allclose(intensities(born, modes), [974.88 * q**2 / mu], rtol=1e-5)  # digits of 974.88
    assert charge_sum_error(born) == 0
    assert charge_sum_error(born, charge=1.0) == 1


def test_one_debye_squared_per_angstrom_squared_amu_is_42_km_mol():
    assert_allclose(units.infrared_intensity * units.debye**2, 42.2561, rtol=1e-5)


def test_the_symmetric_stretch_of_a_centrosymmetric_molecule_is_dark():
    positions = 1.16 * np.array([[-1.0, 0, 0], [0, 0, 0], [1, 0, 0]])
    modes = normal_modes(
        springs(positions, [(0, 1), (1, 2)], [97.0, 97.0]), [16.0, 12, 16], positions
    )
    born = np.array([-1.0, 2.0, -1.0])[:, None, None] * np.eye(3)
    dark, bright = intensities(born, modes)[-2:]
    assert dark < 1e-20 and bright > 100


def test_the_integral_of_a_spectrum_is_the_sum_of_the_intensities():
    grid = np.arange(-20000.0, 24000.0, 0.5)
    absorption = spectrum([1595.0, 3657.0], [53.6, 2.2], grid, width=10.0)
    lost = 2 / np.pi * 5.0 / 20000  # tails of a Lorentzian beyond the grid
    assert_allclose(absorption.sum() * 0.5, 55.8, rtol=2 * lost)
    line = spectrum([100.0], [1.0], np.array([95.0, 100.0, 105.0]), width=10.0)
    assert_allclose(line / line[1], [0.5, 1, 0.5], rtol=1e-12)


# --- thermochemistry -----------------------------------------------------------------------------


@pytest.mark.parametrize("name", GASES)
def test_entropies_of_gases_agree_with_experiment(name):
    atoms, frequencies, symmetry_number, experiment = gas(name)
    gas_of = ideal_gas(
        frequencies, atoms.get_masses(), atoms.positions, symmetry_number=symmetry_number
    )
    entropy = gas_of.entropy / units.kJ_mol * 1000
    assert_allclose(entropy, experiment, atol=0.3)  # J/mol/K: anharmonicity and geometry


def test_water_vapour_has_the_heat_capacity_of_the_tables():
    atoms, frequencies, symmetry_number, _ = gas("H2O")
    vapour = ideal_gas(
        frequencies, atoms.get_masses(), atoms.positions, symmetry_number=symmetry_number
    )
    assert_allclose(vapour.heat_capacity_p / units.kJ_mol * 1000, 33.59, atol=0.15)  # JANAF
    assert_allclose(vapour.zero_point_energy / units.invcm, 4504.0, rtol=1e-12)


@pytest.mark.parametrize("name, geometry", [("H2O", "nonlinear"), ("CO2", "linear")])
def test_free_energies_equal_those_of_ase(name, geometry):
    atoms, frequencies, symmetry_number, _ = gas(name)
    ours = ideal_gas(
        frequencies,
        atoms.get_masses(),
        atoms.positions,
        temperature=500.0,
        pressure=2 * units.bar,
        symmetry_number=symmetry_number,
        spin=3,
        potential_energy=-1.5,
    )
    theirs = IdealGasThermo(
        np.array(frequencies) * units.invcm,
        geometry,
        potentialenergy=-1.5,
        atoms=atoms,
        symmetrynumber=symmetry_number,
        spin=1,
    )
    assert_allclose(ours.enthalpy, theirs.get_enthalpy(500.0, verbose=False), atol=1e-9)
    # ASE uses CODATA constants of another year in its entropy: relative 1e-6 of 1 eV
    assert_allclose(
        ours.gibbs_energy, theirs.get_gibbs_energy(500.0, 2e5, verbose=False), atol=2e-6
    )


def test_an_atom_has_only_translation():
    """Sackur-Tetrode: argon at 298.15 K and 1 bar has 154.846 J/mol/K (CODATA key value)."""
    argon = ideal_gas([], [39.948], np.zeros((1, 3)))
    assert_allclose(argon.entropy / units.kJ_mol * 1000, 154.846, atol=2e-3)
    assert_allclose(argon.heat_capacity_p, 2.5 * units.kB, rtol=1e-12)


def test_einstein_heat_capacity_tends_to_k_hot_and_to_zero_cold():
    hot = harmonic([200.0, 900.0], 1e6)
    assert_allclose(hot.heat_capacity, 2 * units.kB, rtol=1e-6)  # 1 - x²/12, x = 1.3e-3
    cold = harmonic([3000.0], 1.0)
    assert cold.heat_capacity == 0 and cold.entropy == 0
    assert_allclose(cold.energy, 1500.0 * units.invcm, rtol=1e-12)


def test_entropy_and_heat_capacity_are_temperature_derivatives_of_free_energy():
    f, step = [30.0, 400.0, 1600.0], 0.01
    at = lambda t: harmonic(f, t)
    free = lambda t: at(t).energy - t * at(t).entropy
    central = lambda g: (g(300 + step) - g(300 - step)) / (2 * step)
    assert_allclose(at(300).entropy, -central(free), rtol=1e-8)  # step² and rounding
    assert_allclose(at(300).heat_capacity, central(lambda t: at(t).energy), rtol=1e-8)


def test_a_damped_rotor_ends_as_a_free_rotor_and_leaves_stiff_modes():
    """Grimme 2012: a mode of frequency zero is a one-dimensional rotor of moment 1e-44 kg m²."""
    rotor = damped_rotor()
    planck, boltzmann = 6.62607015e-34, 1.380649e-23
    states = np.sqrt(8 * np.pi**3 * 1e-44 * boltzmann * 300) / planck
    free = units.kB * (0.5 + np.log(states))
    assert_allclose(rotor([1e-6], 300.0).entropy, free, rtol=1e-5)  # digits of 602.2 amu Å²
    assert_allclose(
        rotor([1500.0], 300.0).entropy, harmonic([1500.0], 300.0).entropy, atol=1e-4 * units.kB * 5
    )  # weight (100/1500)^4 = 2e-5 of about 4 k
    assert rotor([20.0], 300.0).energy == harmonic([20.0], 300.0).energy


def test_imaginary_modes_are_refused_unless_allowed_and_always_counted():
    atoms, frequencies, _, _ = gas("H2O")
    structure = atoms.get_masses(), atoms.positions
    with pytest.raises(NumericalError, match="1 modes are imaginary.*-30"):
        ideal_gas([-30.0, *frequencies[1:]], *structure)
    allowed = ideal_gas([-30.0, *frequencies[1:]], *structure, ignore_imaginary_below_cm1=50.0)
    assert allowed.n_imaginary == 1
    with pytest.raises(NumericalError):
        ideal_gas([0.0, *frequencies[1:]], *structure)  # a zero mode is no vibration either
    with pytest.raises(DataError, match="got 9 frequencies"):
        ideal_gas([100.0] * 9, *structure)


# --- pictures ------------------------------------------------------------------------------------


def test_an_animation_swings_about_rest_with_the_amplitude_asked_for(water):
    atoms, hessian = water
    modes = normal_modes(hessian, atoms.get_masses(), atoms.positions)
    frames = animation(atoms.positions, modes.displacements[0], n_frames=20, amplitude=0.3)
    assert frames.shape == (20, 3, 3)
    assert_allclose(frames.mean(0), atoms.positions, atol=1e-12)
    moved = np.linalg.norm(frames - atoms.positions, axis=-1)
    assert_allclose(moved.max(), 0.3, rtol=1e-12)


def test_labels_name_the_atoms_and_bonds_that_move(water):
    atoms, hessian = water
    masses, symbols = atoms.get_masses(), atoms.get_chemical_symbols()
    modes = normal_modes(hessian, masses, atoms.positions)
    names = [label(v, masses, atoms.positions, symbols, [(0, 1), (0, 2)]) for v in modes.vectors]
    assert names == ["H1 H2", "O0-H1 O0-H2 stretch", "O0-H1 O0-H2 stretch"]
    chlorine = Atoms("HCl", positions=[[0, 0, 0], [0, 0, 1.27]])
    one = normal_modes(
        springs(chlorine.positions, [(0, 1)], [30.0]), chlorine.get_masses(), chlorine.positions
    )
    assert moving_atoms(one.vectors[0], ["H", "Cl"]) == "H0"
    assert moving_atoms(np.ones((8, 3)), ["H"] * 6 + ["C"] * 2) == "6 H, 2 C"
