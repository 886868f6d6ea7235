"""Raman scattering: analytic molecules, selection rules, units, and the derivative it rests on."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ase import Atoms
from numpy.testing import assert_allclose

import jaxmlip
from jaxmlip import units
from jaxmlip.errors import DataError
from jaxmlip.interfaces.ase import from_ase
from jaxmlip.potential import Potential, add_field
from jaxmlip.system import edge_vectors, sum_atoms, sum_edges, sum_energies, to_edges
from jaxmlip.vibrations import dielectric as light
from jaxmlip.vibrations import intensities, normal_modes
from jaxmlip.vibrations import raman as scattering

R0, SPRING = 1.2, 40.0  # Å, eV/Å²
ALONG, ACROSS = (1.1, 0.9), (0.4, -0.2)  # polarisability of a bond and its slope, e² Å²/eV, per Å


def bonds(cutoff=1.9):
    """Springs whose ends carry charges by species and whose polarisability is that of bonds."""

    def apply(params, system):
        v = edge_vectors(system)
        r = jnp.sqrt((v**2).sum(-1))
        near = jnp.where(r < cutoff, 0.5, 0.0)  # each bond has two edges
        stretch = jnp.where(r < cutoff, r - R0, 0.0)
        energies = sum_edges(system, near * SPRING / 2 * stretch**2)
        axis = v / r[..., None]
        along, across = (near * (a + b * stretch) for a, b in (ALONG, ACROSS))
        one = jnp.eye(3, dtype=v.dtype)
        alpha = (along - across)[..., None, None] * axis[..., :, None] * axis[..., None, :]
        alpha = alpha + across[..., None, None] * one
        alpha = sum_edges(system, alpha.reshape(*r.shape, 9)).reshape(-1, 3, 3)
        kind = system.numbers.astype(v.dtype)
        bond_dipoles = (0.1 * near * to_edges(system, kind))[..., None] * v
        return {
            "energy": sum_energies(system, energies),
            "dipole": sum_atoms(system, sum_edges(system, bond_dipoles)),
            "polarizability": sum_atoms(system, alpha),
        }

    return add_field(Potential(lambda key, system: {}, apply, cutoff))


MODEL = bonds()


@jax.jit
def responses(system):
    apply = MODEL.apply
    return {
        "hessian": jaxmlip.hessian(apply)({}, system),
        "born": jaxmlip.born_charges(apply)({}, system),
        "raman": jaxmlip.derivatives.raman_tensors(apply)({}, system),
        "alpha": jaxmlip.polarizability(apply)({}, system),
    }


def turned(atoms, seed=0):
    q = np.linalg.qr(np.random.default_rng(seed).normal(size=(3, 3)))[0]
    atoms.positions = atoms.positions @ q.T
    return atoms


@pytest.fixture(scope="module")
def symmetric():
    """CO2-like, in a direction of no symmetry: system, modes and responses."""
    atoms = turned(Atoms("OCO", [[0, 0, -R0], [0, 0, 0], [0, 0, R0]]))
    system = from_ase(atoms, MODEL.cutoff, capacity=2)
    out = jax.device_get(responses(system))
    modes = normal_modes(out["hessian"], atoms.get_masses(), atoms.positions)
    return system, modes, out


def test_what_has_a_centre_is_seen_by_infrared_or_raman_and_by_none_twice(symmetric):
    _, modes, out = symmetric
    stretches = modes.frequencies_cm1 > 1
    assert stretches.sum() == 2  # the symmetric one lies below
    seen = intensities(out["born"], modes)[stretches]
    scattered = scattering.activities(out["raman"], modes)[stretches]
    assert seen[0] < 1e-12 * seen[1] and scattered[1] < 1e-12 * scattered[0]
    assert min(seen[1], scattered[0]) > 1


def test_the_activity_of_a_stretch_is_that_of_its_bonds(symmetric):
    _, modes, out = symmetric
    # both bonds grow by Q / sqrt(2 m): alpha' = 2 (a, b) / sqrt(2 m)
    m = 15.999
    along, across = (2 * units.coulomb_constant * s[1] / np.sqrt(2 * m) for s in (ALONG, ACROSS))
    mean, gamma = (along + 2 * across) / 3, along - across
    which = int(np.argmax(scattering.activities(out["raman"], modes)))
    expected = 45 * mean**2 + 7 * gamma**2
    assert_allclose(scattering.activities(out["raman"], modes)[which], expected, rtol=1e-10)
    ratio = 3 * gamma**2 / (45 * mean**2 + 4 * gamma**2)
    assert_allclose(scattering.depolarization(out["raman"], modes)[which], ratio, rtol=1e-9)
    assert_allclose(modes.frequencies_cm1[which], np.sqrt(SPRING / m) * 521.47, rtol=1e-4)


def test_raman_tensors_are_the_slope_of_the_polarisability_and_no_translation_scatters(symmetric):
    system, _, out = symmetric
    h, atom, axis = 1e-4, 0, 1

    def alpha(step):
        r = np.array(system.positions)
        r[atom, axis] += step
        return np.asarray(responses(replace(system, positions=r))["alpha"][0])

    slope = (alpha(h) - alpha(-h)) / (2 * h)
    assert_allclose(out["raman"][atom, axis], slope, atol=1e-7)  # h² of a smooth function
    assert np.abs(out["raman"].sum(0)).max() < 1e-12
    assert_allclose(out["raman"], out["raman"].swapaxes(-1, -2), atol=1e-13)


def test_invariants_do_not_turn():
    t = np.random.default_rng(1).normal(size=(5, 3, 3))
    t = t + t.swapaxes(1, 2)
    q = np.linalg.qr(np.random.default_rng(2).normal(size=(3, 3)))[0]
    for a, b in zip(scattering.invariants(t), scattering.invariants(q @ t @ q.T), strict=True):
        assert_allclose(a, b, rtol=1e-12, atol=1e-12)
    uniaxial = np.diag([1.0, 1.0, 4.0])[None]
    assert_allclose(np.concatenate(scattering.invariants(uniaxial)), [2, 9])


def test_cross_sections_are_those_of_the_formula_in_si():
    """Long (2002), eq. 5.7 in SI, from the constants of nature; S of one in Å⁴/amu."""
    nu, laser, temperature = 2331.0e2, 1e9 / 488.0, 500.0  # 1/m, 1/m, K
    h, c, k, eps0 = 6.62607015e-34, 299792458.0, 1.380649e-23, 8.8541878128e-12
    amu = 1.66053906660e-27
    activity = 20.0 * (4 * np.pi * eps0 * 1e-30 / 1e-10) ** 2 / amu  # (C m²/V / m)² / kg
    expected = np.pi**2 / eps0**2 * (laser - nu) ** 4 * h / (8 * np.pi**2 * c * nu) * activity / 45
    expected /= 1 - np.exp(-h * c * nu / (k * temperature))
    found = scattering.cross_sections([2331.0], [20.0], laser=laser / 100, temperature=temperature)
    assert_allclose(found * 1e-34, expected, rtol=1e-7)  # m²; of the constants' two sets


def test_hot_modes_scatter_more_and_imaginary_ones_not_at_all():
    cold, warm = (scattering.cross_sections([500.0], [1.0], temperature=t) for t in (0, 300))
    share = 1 - np.exp(-500 * units.invcm / (units.kB * 300))
    assert_allclose(cold / warm, share, rtol=1e-12)
    assert (scattering.cross_sections([-500.0, 2e6], [1.0, 1.0]) == 0).all()
    with pytest.raises(DataError, match="temperature"):
        scattering.cross_sections([500.0], [1.0], temperature=-1)
    with pytest.raises(DataError, match="not \\(2, 3, 3, 3\\)"):
        modes = normal_modes(np.zeros((2, 3, 2, 3)), [1, 1], np.eye(3)[:2])
        scattering.activities(np.zeros((2, 3, 3)), modes)


def test_a_spectrum_holds_the_area_of_its_lines():
    grid = np.arange(-2000, 6000, 0.5)
    found = scattering.spectrum([800.0, 1500.0], [3.0, 5.0], grid, width=4.0)
    total = scattering.cross_sections([800.0, 1500.0], [3.0, 5.0]).sum()
    assert_allclose(found.sum() * 0.5, total, rtol=2e-3)  # tails of Lorentzians


# --- crystals: what is known in closed form ------------------------------------------------------

Z, EPS, VOLUME, MASSES, K = 1.1, 2.4, 45.0, np.array([22.99, 35.45]), 3.0
MU = 1 / (1 / MASSES).sum()


def rock_salt(eps=EPS):
    """Two ions on a spring of three equal constants: hessian, charges, eps, modes."""
    hessian = K * np.einsum("ij,ab->iajb", [[1, -1], [-1, 1]], np.eye(3))
    charges = Z * np.array([1, -1])[:, None, None] * np.eye(3)
    positions = np.array([[0, 0, 0], [0, 0, 2.8]])
    modes = normal_modes(hessian, MASSES, positions, pbc=True)
    return hessian, charges, eps * np.eye(3), modes, positions


def test_two_ions_split_by_their_plasma_frequency_and_obey_lyddane_sachs_and_teller():
    hessian, charges, eps, modes, positions = rock_salt()
    split = light.longitudinal_modes(
        hessian, charges, eps, VOLUME, [1, 2, -1], masses=MASSES, positions=positions
    )
    squared = lambda f: (f * units.invcm / units.hbar) ** 2  # eV/(Å² amu)
    to, lo = squared(modes.frequencies_cm1), squared(split.frequencies_cm1)
    assert_allclose(to, K / MU, rtol=1e-12)
    plasma = 4 * np.pi * units.coulomb_constant * Z**2 / (MU * VOLUME * EPS)
    assert_allclose(lo - K / MU, [0, 0, plasma], rtol=1e-10, atol=1e-12)
    found = light.oscillators(charges, modes, eps, VOLUME)
    static = light.static_dielectric(found)
    assert_allclose(static, EPS * lo[2] / to[2] * np.eye(3), rtol=1e-12, atol=1e-12)
    relaxed = eps + 4 * np.pi * units.coulomb_constant / VOLUME * Z**2 / K * np.eye(3)
    assert_allclose(static, relaxed, rtol=1e-12, atol=1e-12)
    assert_allclose(light.zeros_along(found, [0, 1, 1]), split.frequencies_cm1[2:], rtol=1e-10)


def anisotropic(seed=3, n=4):
    """A random stable crystal of no symmetry whose charges sum to zero."""
    rng = np.random.default_rng(seed)
    half = rng.normal(size=(3 * n, 3 * n))
    away = np.eye(3 * n) - np.kron(np.full((n, n), 1 / n), np.eye(3))
    hessian = (away @ (half @ half.T + np.eye(3 * n)) @ away).reshape(n, 3, n, 3)
    charges = rng.normal(size=(n, 3, 3))
    eps = 2 * np.eye(3) + 0.1 * rng.normal(size=(3, 3))
    masses, positions = rng.uniform(5, 50, n), rng.uniform(0, 5, (n, 3))
    return hessian, charges - charges.mean(0), (eps + eps.T) / 2, masses, positions


def test_longitudinal_modes_are_the_zeros_of_the_dielectric_function_in_any_crystal():
    hessian, charges, eps, masses, positions = anisotropic()
    modes = normal_modes(hessian, masses, positions, pbc=True)
    found = light.oscillators(charges, modes, eps, 80.0)
    for n in ([1, 0, 0], [0.3, -0.5, 0.8]):
        split = light.longitudinal_modes(
            hessian, charges, eps, 80.0, n, masses=masses, positions=positions
        ).frequencies_cm1
        assert_allclose(light.zeros_along(found, n), split, rtol=1e-8)
        static = light.along(light.static_dielectric(found), n) / light.along(eps, n)
        assert_allclose(static, np.prod((split / modes.frequencies_cm1) ** 2), rtol=1e-9)
    inverse = np.linalg.pinv(hessian.reshape(12, 12), rcond=1e-10)
    flat = charges.reshape(12, 3)
    expected = eps + light.FULL / 80.0 * flat.T @ inverse @ flat
    assert_allclose(light.static_dielectric(found), expected, rtol=1e-9, atol=1e-9)


def test_the_split_is_that_of_the_dynamical_matrix_with_its_non_analytic_term():
    """The same dipoles as `phonons` adds next to Gamma, direction in fractions there."""
    from jaxmlip.interfaces.phonons.force_constants import ForceConstants, Polar
    from jaxmlip.vibrations.phonons.nonanalytic import dipole_sum

    hessian, charges, eps, masses, positions = anisotropic()
    cell = np.array([[4.0, 0.3, 0], [0, 4.5, 0.2], [0.5, 0, 4.4]])
    constants = ForceConstants(
        values=hessian.transpose(0, 2, 1, 3),
        cell=cell,
        positions=positions,
        numbers=np.arange(1, 5),
        masses=masses,
        matrix=np.eye(3, dtype=int),
        atoms=np.arange(4),
        shifts=np.zeros((4, 3), int),
    )
    dipoles = dipole_sum(constants, Polar(born_charges=charges, dielectric=eps))
    q, zero = np.array([0.2, -0.1, 0.4]), np.zeros((1, 3))
    term = (dipoles(zero, q) - dipoles(zero))[0].reshape(4, 3, 4, 3)
    along = q @ np.linalg.inv(cell).T
    split = light.longitudinal_hessian(hessian, charges, eps, np.linalg.det(cell), along)
    assert_allclose(split - hessian, term.real, atol=1e-9)
    assert np.abs(term).max() > 0.1


def test_light_obeys_kramers_and_kronig_and_is_thrown_back_between_to_and_lo():
    hessian, charges, eps, modes, positions = rock_salt()
    found = light.oscillators(charges, modes, eps, VOLUME)
    step, width = 0.25, 4.0
    grid = np.arange(step / 2, 6000, step)
    values = light.along(light.dielectric_function(found, grid, width=width), [0, 0, 1])
    assert (values.imag > 0).all()
    static = light.along(light.static_dielectric(found), [0, 0, 1])
    sum_rule = EPS + 2 / np.pi * (values.imag / grid).sum() * step
    assert_allclose(sum_rule, static, rtol=1e-4)  # of the midpoint rule and the tail
    to, lo = modes.frequencies_cm1[0], light.zeros_along(found, [0, 0, 1])[0]
    peak = grid[np.argmax(light.loss(values))]
    assert abs(peak - lo) < 2 * step
    inside = np.searchsorted(grid, (to + lo) / 2)
    thrown = light.reflectivity(values)
    assert thrown[inside] > 0.9 > 0.2 > thrown[-1]
    assert_allclose(thrown[-1], ((np.sqrt(EPS) - 1) / (np.sqrt(EPS) + 1)) ** 2, rtol=0.02)
    assert light.absorption_per_cm(values, grid).min() > 0


def test_what_has_no_dielectric_function_is_refused():
    hessian, charges, eps, modes, positions = rock_salt()
    with pytest.raises(DataError, match="direction"):
        light.longitudinal_hessian(hessian, charges, eps, VOLUME, [0, 0, 0])
    with pytest.raises(ArithmeticError, match="eigenvalue"):
        light.oscillators(charges, modes, -eps, VOLUME)
    soft = normal_modes(-hessian, MASSES, positions, pbc=True)
    with pytest.raises(ArithmeticError, match="imaginary"):
        light.static_dielectric(light.oscillators(charges, soft, eps, VOLUME))
