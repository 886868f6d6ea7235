"""Soft modes, symmetry numbers, isotopes and held atoms: limits, exact rules, numbers of others."""

import json
from pathlib import Path

import numpy as np
import pytest
from ase import Atoms
from ase.build import molecule
from numpy.testing import assert_allclose

from jaxmlip import units
from jaxmlip.errors import DataError, NumericalError, UsageError
from jaxmlip.vibrations import damped_rotor, harmonic, ideal_gas, normal_modes
from jaxmlip.vibrations.molecules.internal_rotation import (
    hindered_rotor,
    internal_rotations,
    rotatable_bonds,
    turning,
    warning,
)
from jaxmlip.vibrations.molecules.isotopes import (
    bell,
    equilibrium_ratio,
    isotope_mass,
    isotopologues,
    kinetic_isotope_effect,
    partition_ratio,
    substituted,
    wigner,
)
from jaxmlip.vibrations.molecules.point_group import symmetry_number
from jaxmlip.vibrations.thermodynamics import held_in_place, raised, standard_pressure

SHARED = Path(__file__).parents[2] / "shared"  # beside a checkout, if at all
NIST = SHARED / "data" / "vibrations" / "molecules" / "nist_fundamentals.json"
J = units.kJ_mol / 1000  # J/(mol K) in eV/K


def springs(positions, pairs, constants):
    """Hessian of harmonic springs at their lengths."""
    n = len(positions)
    out = np.zeros((n, 3, n, 3))
    for (i, j), k in zip(pairs, constants, strict=True):
        d = positions[j] - positions[i]
        block = k * np.outer(d, d) / (d @ d)
        for a, b, sign in ((i, i, 1), (j, j, 1), (i, j, -1), (j, i, -1)):
            out[a, :, b, :] += sign * block
    return out


def by_distance(atoms):
    """All pairs, the stiffer the nearer: a Hessian with the symmetry of the molecule."""
    pairs = [(i, j) for i in range(len(atoms)) for j in range(i)]
    lengths = [atoms.get_distance(*p) for p in pairs]
    return springs(atoms.positions, pairs, [40 * np.exp(-2.2 * (r - 1)) for r in lengths])


def turned(positions, seed=3):
    q = np.linalg.qr(np.random.default_rng(seed).normal(size=(3, 3)))[0]
    return positions @ (q * np.linalg.det(q)).T + 5.0


# --- soft modes ----------------------------------------------------------------------------------


@pytest.mark.skipif(not NIST.is_file(), reason="no shared data of NSRDS-NBS 39 beside the checkout")
def test_gases_have_the_entropies_heat_capacities_and_symmetry_numbers_of_the_table():
    for name, row in json.loads(NIST.read_text())["molecules"].items():
        atoms = molecule(name)
        found = symmetry_number(atoms.positions, atoms.numbers)
        assert found == row["symmetry_number"], name
        frequencies = [f for f, degeneracy in row["fundamentals_cm1"] for _ in range(degeneracy)]
        gas = ideal_gas(frequencies, atoms.get_masses(), atoms.positions, symmetry_number=found)
        assert_allclose(gas.entropy / J, row["S298_RRHO_G2geom"], atol=0.0051)  # digits given
        assert_allclose(gas.heat_capacity_p / J, row["Cp298_RRHO"], atol=0.00051)
        assert_allclose(gas.zero_point_energy / units.invcm, row["ZPE_from_fundamentals_cm1"])


@pytest.mark.parametrize("vibration", [damped_rotor(energies=True), raised(), harmonic])
def test_heat_is_temperature_times_entropy(vibration):
    """dU = T dS at constant volume, for every treatment of soft modes that changes energies."""
    at = lambda t: vibration([15.0, 80.0, 130.0, 900.0], t)
    step = 0.01
    central = lambda f: (f(300 + step) - f(300 - step)) / (2 * step)
    by_entropy = 300 * central(lambda t: at(t).entropy)
    assert_allclose(central(lambda t: at(t).energy), by_entropy, rtol=1e-7)  # step², rounding
    assert_allclose(at(300).heat_capacity, by_entropy, rtol=1e-7)


@pytest.mark.parametrize("energies", [False, True])
def test_damped_rotors_are_oscillators_where_the_crossover_is_far_below(energies):
    frequencies = [30.0, 500.0, 3000.0]
    found = damped_rotor(crossover=1e-3, energies=energies)(frequencies, 300.0)
    assert_allclose(found, harmonic(frequencies, 300.0), rtol=1e-12)


def test_a_mode_without_a_force_has_the_energy_of_a_free_rotor():
    found = damped_rotor(energies=True)([1e-4], 300.0)
    assert_allclose(found.energy, units.kB * 150, rtol=1e-9)
    assert_allclose(found.heat_capacity, units.kB / 2, rtol=1e-9)


def test_raised_frequencies_leave_stiff_modes_and_the_zero_point_energy():
    assert raised()([100.0, 800.0], 300.0) == harmonic([100.0, 800.0], 300.0)
    soft, floor = raised()([20.0], 300.0), harmonic([100.0], 300.0)
    assert soft.entropy == floor.entropy and soft.heat_capacity == floor.heat_capacity
    assert_allclose(floor.energy - soft.energy, 40 * units.invcm, rtol=1e-9)


def test_one_mole_a_litre_has_a_pressure_of_25_bar():
    assert_allclose(standard_pressure(1.0, 298.15) / units.bar, 24.79, atol=0.005)
    atoms, frequencies = molecule("H2O"), [1595.0, 3657.0, 3756.0]
    gibbs = lambda p: (
        ideal_gas(frequencies, atoms.get_masses(), atoms.positions, pressure=p).gibbs_energy
    )
    change = gibbs(standard_pressure(1.0, 298.15)) - gibbs(1.01325 * units.bar)
    assert_allclose(change / units.kcal_mol, 1.894, atol=0.001)  # RT ln 24.46, every textbook


# --- symmetry numbers ----------------------------------------------------------------------------

ROTATIONS = {"HCl": 1, "CO2": 2, "NH3": 3, "C2H6": 6, "CH4": 12, "C6H6": 12, "CH3CH2OH": 1}
ROTATIONS |= {"cyclobutane": 4, "SiF4": 12, "AlF3": 6, "C2H4": 4, "C60": 60}


@pytest.mark.parametrize("name", ROTATIONS)
def test_symmetry_numbers_are_those_of_the_point_group(name):
    atoms = molecule(name)
    atoms.rattle(0.004, seed=1)  # as a relaxation leaves it
    assert symmetry_number(turned(atoms.positions), atoms.numbers) == ROTATIONS[name]


def test_an_octahedron_has_24_rotations_and_isotopes_break_them():
    octahedron = np.concatenate([np.eye(3), -np.eye(3)]) * 1.56
    numbers = [16, *[9] * 6]
    assert symmetry_number([[0, 0, 0], *octahedron], numbers) == 24
    methane = molecule("CH4")
    for deuteriums, expected in ((1, 3), (2, 2), (3, 3), (4, 12)):
        masses = methane.get_masses()
        masses[1 : 1 + deuteriums] = 2.014
        assert symmetry_number(methane.positions, masses) == expected


def test_a_nearly_symmetric_structure_has_the_rotations_of_a_group():
    """Of an equilateral triangle drawn out by a little more than half the tolerance."""
    atoms = molecule("NH3")
    atoms.positions[1] += [0.0, 0.06, 0.0]
    assert symmetry_number(atoms.positions, atoms.numbers) in (1, 3)
    assert symmetry_number(atoms.positions, atoms.numbers, tolerance=1e-3) == 1


# --- held atoms ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def ethanol():
    atoms = molecule("CH3CH2OH")
    return atoms, by_distance(atoms)


def test_an_atom_on_a_spring_that_is_held_vibrates_at_the_root_of_k_over_m():
    positions = np.array([[0.0, 0, 0], [1, 0, 0]])
    modes = normal_modes(
        springs(positions, [(0, 1)], [30.0]), [16.0, 1.0], positions, fixed=[True, False]
    )
    expected = np.sqrt(30.0) * units.hbar / units.invcm
    assert_allclose(modes.frequencies_cm1, [expected], rtol=1e-12)
    assert modes.rigid_frequencies_cm1.shape == (2,)  # it still turns about the held atom
    assert not modes.vectors[:, 0].any()


@pytest.mark.parametrize("held, n_rigid", [([0], 3), ([0, 2], 1), ([0, 1, 2], 0), ([3], 3)])
def test_to_hold_an_atom_is_to_make_it_infinitely_heavy(ethanol, held, n_rigid):
    atoms, hessian = ethanol
    fixed = np.isin(np.arange(9), held)
    masses = atoms.get_masses()
    part = normal_modes(hessian, masses, atoms.positions, fixed=fixed)
    assert len(part.rigid_frequencies_cm1) == n_rigid
    assert len(part.frequencies_cm1) == 3 * (9 - len(held)) - n_rigid
    assert_allclose(part.rigid_frequencies_cm1, 0, atol=1e-3)  # sqrt of rounding
    heavy = normal_modes(hessian, np.where(fixed, 1e14, masses), atoms.positions, project=False)
    n = len(part.frequencies_cm1)
    assert_allclose(heavy.frequencies_cm1[-n:], part.frequencies_cm1, rtol=1e-6)  # 1 / 1e14, root


def test_the_rows_of_the_free_atoms_are_enough(ethanol):
    atoms, hessian = ethanol
    fixed = np.arange(9) > 4
    args = atoms.get_masses(), atoms.positions
    whole = normal_modes(hessian, *args, fixed=fixed)
    rows = normal_modes(hessian[~fixed], *args, fixed=fixed)
    assert_allclose(rows.frequencies_cm1, whole.frequencies_cm1, rtol=1e-14)
    assert rows.acoustic_sum < 1e-12  # seen from the rows alone
    flat = rows.vectors.reshape(len(rows.vectors), -1)
    assert_allclose(flat @ flat.T, np.eye(len(flat)), atol=1e-12)
    with pytest.raises(DataError, match="all atoms are held"):
        normal_modes(hessian, *args, fixed=np.ones(9, bool))
    with pytest.raises(DataError, match=r"\(5, 3, 9, 3\)"):
        normal_modes(hessian[:3], *args, fixed=fixed)


def test_a_held_atom_in_a_crystal_leaves_nothing_rigid(ethanol):
    atoms, hessian = ethanol
    modes = normal_modes(
        hessian, atoms.get_masses(), atoms.positions, pbc=True, fixed=np.arange(9) == 0
    )
    assert len(modes.frequencies_cm1) == 24 and len(modes.rigid_frequencies_cm1) == 0


def test_what_is_held_has_only_the_vibrations_of_a_gas():
    frequencies, atoms = [200.0, 1595.0, 3700.0], molecule("H2O")
    held = held_in_place(frequencies, potential_energy=-2.0, spin=2, temperature=400.0)
    gas = ideal_gas(frequencies, atoms.get_masses(), atoms.positions, spin=2, temperature=400.0)
    assert held.parts == {k: gas.parts[k] for k in ("vibration", "electronic")}
    assert held.enthalpy == held.internal_energy and held.heat_capacity_p == held.heat_capacity_v
    assert_allclose(held.gibbs_energy, held.internal_energy - 400 * held.entropy, rtol=1e-14)
    with pytest.raises(NumericalError, match="imaginary"):
        held_in_place([-300.0, 1595.0])


# --- isotopes ------------------------------------------------------------------------------------


def test_every_isotopologue_obeys_the_product_rule(ethanol):
    """Teller-Redlich, for any masses: it is the determinant of the mass-weighted Hessian."""
    atoms, hessian = ethanol
    numbers, masses = atoms.numbers, atoms.get_masses()
    sets = [substituted(masses, numbers, s) for s in ({3: 2}, {0: 13, 2: 18}, {3: 3, 5: 2})]
    light, *others = isotopologues(hessian, [masses, *sets], atoms.positions)
    for found, heavy in zip(others, sets, strict=True):
        moments = lambda m: Atoms(numbers, atoms.positions, masses=m).get_moments_of_inertia()
        expected = (
            np.prod(heavy / masses) ** -3
            * (heavy.sum() / masses.sum()) ** 3
            * np.prod(moments(heavy) / moments(masses))
        )
        assert_allclose(np.prod(found / light) ** 2, expected, rtol=1e-9)  # rounding of 21 factors


def test_masses_of_isotopes_average_to_the_atomic_weight():
    chlorine = 0.7576 * isotope_mass(17, 35) + 0.2424 * isotope_mass(17, 37)
    assert_allclose(
        chlorine, Atoms("Cl").get_masses()[0], atol=4e-3
    )  # given to 0.01, and abundances vary
    assert_allclose(isotope_mass(1, 2), 2.01410178, atol=1e-8)
    with pytest.raises(UsageError, match=r"one of \[12, 13, 14\]"):
        isotope_mass(6, 11)
    with pytest.raises(IndexError, match="no atom 7"):
        substituted([1.0], [1], {7: 2})


def test_hydrogen_and_deuterium_mix_less_than_by_chance():
    """H2 + D2 = 2 HD: K = 3.27 at 298 K (Urey and Rittenberg, 1933)."""
    h2, hd, d2 = [4401.21], [3813.15], [3115.50]  # Huber and Herzberg, 1979
    ratio = partition_ratio(h2, hd, 298.15) ** 2 / partition_ratio(h2, d2, 298.15)
    assert_allclose(4 * ratio, 3.27, rtol=0.02)  # 4 from symmetry; anharmonicity


def test_equilibria_of_isotopes_equal_those_of_free_energies(ethanol):
    """The masses that ln K leaves out cancel between both sides, by the product rule."""
    atoms, hessian = ethanol
    water = molecule("H2O")
    t, ratios, gibbs = 350.0, [], []
    for a, h, where in ((water, by_distance(water), {0: 18}), (atoms, hessian, {2: 18})):
        masses = a.get_masses()
        pair = [masses, substituted(masses, a.numbers, where)]
        pair[0] = substituted(masses, a.numbers, {k: 16 for k in where})
        frequencies = isotopologues(h, pair, a.positions)
        ratios.append(frequencies)
        g = [
            ideal_gas(f, m, a.positions, temperature=t).gibbs_energy
            for f, m in zip(frequencies, pair, strict=True)
        ]
        gibbs.append(g[1] - g[0])
    expected = np.exp(-(gibbs[1] - gibbs[0]) / (units.kB * t))
    assert_allclose(equilibrium_ratio(*ratios, t), expected, rtol=1e-9)
    assert_allclose(equilibrium_ratio(*ratios, 1e7), 1, atol=1e-6)  # hot: isotopes do not matter


def test_the_stretch_that_breaks_makes_hydrogen_seven_times_faster_than_deuterium():
    """Loss of the zero-point energy of C-H (2900) against C-D (2100 cm⁻¹) at 298 K."""
    reactant, state = ([2900.0], [2100.0]), ([-1450.0], [-1050.0])
    effect = kinetic_isotope_effect(reactant, state, 298.15)
    zero_point = np.exp(400 * units.invcm / (units.kB * 298.15))
    assert_allclose(effect, zero_point, rtol=1e-4)  # e^-u of the C-D stretch is 4e-5
    assert_allclose(effect, 6.9, atol=0.1)


def test_hot_rates_differ_by_the_imaginary_frequencies_alone():
    reactant = [200.0, 1000.0, 3000.0], [150.0, 900.0, 2200.0]
    state = [-1500.0, 900.0, 1100.0], [-1100.0, 800.0, 1000.0]
    hot = kinetic_isotope_effect(reactant, state, 1e8)
    assert_allclose(hot, 15 / 11, rtol=1e-6)
    with pytest.raises(DataError, match="0 imaginary"):
        kinetic_isotope_effect(reactant, reactant, 300.0)
    with pytest.raises(DataError, match="not isotopologues"):
        partition_ratio(*state[:1], reactant[0], 300.0)


def test_tunnelling_corrections_agree_for_a_flat_barrier():
    flat = 300.0  # u = 1.45: Bell's series is 1 + u²/24 + 7 u⁴/5760
    u = flat * units.invcm / (units.kB * 298.15)
    assert_allclose(bell(flat, 298.15) - wigner(flat, 298.15), 7 * u**4 / 5760, rtol=0.1)
    with pytest.raises(NumericalError, match="too steep"):
        bell(1500.0, 298.15)


# --- internal rotation ---------------------------------------------------------------------------


@pytest.mark.parametrize("fold", [1, 3])
def test_a_rotor_goes_from_free_to_harmonic_with_its_barrier(fold):
    moment, t = 1.57, 298.15
    free = hindered_rotor(0.0, moment, fold, t)
    states = np.sqrt(2 * np.pi * moment * units.kB * t) / units.hbar / fold
    classical = units.kB * (0.5 + np.log(states))
    assert_allclose(free.entropy, classical, rtol=1e-6)  # Poisson: e^(-pi² kT / B), nothing
    assert_allclose(free.energy, units.kB * t / 2, rtol=1e-6)
    high = 40.0  # eV; anharmonicity is quantum / (8 barrier), for fold 3 2.2e-3
    quantum = units.hbar * fold * np.sqrt(high / 2 / moment)
    bound, oscillator = (
        hindered_rotor(high, moment, fold, t),
        harmonic([quantum / units.invcm], t),
    )
    assert_allclose(bound, oscillator, rtol=3e-3, atol=3e-3 * units.kB)


def test_the_hindered_methyl_group_explains_the_entropy_of_ethane():
    """Fundamentals of Shimanouchi 1972, barrier 12.1 kJ/mol; S(298 K, 1 bar) is 229.2 J/mol/K."""
    single = [2954, 1388, 995, 2896, 1379]
    double = [2969, 1468, 1190, 2985, 1469, 822]
    ethane = molecule("C2H6")
    args = ethane.get_masses(), ethane.positions
    gas = ideal_gas([289.0, *single, *double, *double], *args, symmetry_number=6)
    bond, top = rotatable_bonds(ethane.positions, [(0, 1), *_bonds_to_hydrogen(ethane)])[0]
    _, moment = turning(*args, bond, top)
    rotor = hindered_rotor(12.1 * units.kJ_mol, moment, 3, 298.15)
    corrected = gas.entropy - harmonic([289.0], 298.15).entropy + rotor.entropy
    assert_allclose(corrected / J, 229.2, atol=0.5)
    assert gas.entropy / J < 228.5  # the oscillator alone


def _bonds_to_hydrogen(atoms):
    return [
        (i, j)
        for i in range(len(atoms))
        for j in range(len(atoms))
        if atoms.numbers[i] > 1 and atoms.numbers[j] == 1 and atoms.get_distance(i, j) < 1.3
    ]


def test_the_twist_of_ethane_is_recognised_and_its_moment_is_half_a_methyl_group(ethanol):
    ethane = molecule("C2H6")
    masses = ethane.get_masses()
    modes = normal_modes(by_distance(ethane), masses, ethane.positions)
    bonds = [(0, 1), *_bonds_to_hydrogen(ethane)]
    found = internal_rotations(modes, masses, ethane.positions, ethane.numbers, bonds, quanta=5.0)
    assert [(r.bond, r.mode, r.fold) for r in found] == [((0, 1), 0, 3)]
    twist = found[0]
    assert_allclose(twist.overlap, 1, atol=1e-9)  # alone in its representation, A1u
    axis = ethane.positions[1] - ethane.positions[0]
    radius = np.linalg.norm(np.cross(axis / np.linalg.norm(axis), ethane.positions[2]))
    assert_allclose(twist.moment, 3 * masses[2] * radius**2 / 2, rtol=1e-6)
    assert twist.entropy_error < 0 and "internal rotation about C0-C1" in warning(twist, "CC")


def test_rings_double_ends_and_straight_chains_do_not_rotate():
    benzene = molecule("C6H6")
    ring = [(i, (i + 1) % 6) for i in range(6)] + _bonds_to_hydrogen(benzene)
    assert rotatable_bonds(benzene.positions, ring) == []
    acetylene = molecule("C2H2")
    assert rotatable_bonds(acetylene.positions, [(0, 1), (0, 2), (1, 3)]) == []
