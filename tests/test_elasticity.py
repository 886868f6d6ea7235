"""Elastic constants: strained cells that relax, central forces, turned crystals, sound."""

import json
from dataclasses import replace

import jax
import numpy as np
import pytest
from ase.build import bulk
from ase.data import atomic_masses
from crystals import SIGMA, argon, save_argon, skewed, system_of  # noqa: F401
from numpy.testing import assert_allclose

from jaxmlip import units
from jaxmlip.cli import session
from jaxmlip.cli.crystal.elastic import elastic
from jaxmlip.derivatives.bloch.matrix import dynamical_matrix
from jaxmlip.derivatives.elastic import elastic_constants, full_tensor, voigt_matrix
from jaxmlip.derivatives.first import predict
from jaxmlip.errors import DataError, NumericalError, UsageError
from jaxmlip.md import relax, relax_cell
from jaxmlip.system import pad, strain
from jaxmlip.vibrations.crystals.elasticity import (
    KELVIN,
    METRES_PER_SECOND,
    _sphere,
    check_relaxed,
    christoffel,
    debye_temperature,
    density_of,
    elasticity,
    hill_velocities,
    sound_velocities,
)

MODEL = argon(2.5, onset=0.6, smoothness=3)  # third derivatives are continuous too
ARGON = atomic_masses[18]
TIGHT = {"fmax": 1e-9, "stress": 1e-10, "steps": 500}
CONSTANTS = jax.jit(elastic_constants(MODEL.apply))
PREDICT = jax.jit(predict(MODEL.apply))
MATRIX = jax.jit(dynamical_matrix(MODEL.apply))


def relaxed(atoms, **options):
    end, info = relax_cell(MODEL, {}, system_of(atoms, MODEL), **TIGHT | options)
    assert info.converged, info.reason
    return end


@pytest.fixture(scope="module")
def fcc():
    return relaxed(bulk("Ar", "fcc", a=5.25) * (2, 1, 1))  # of the shape of hcp: one program


@pytest.fixture(scope="module")
def hcp():
    """Two atoms that move apart under most strains, under a pressure, turned and not symmetric."""
    start = skewed(bulk("Ar", "hcp", a=3.7, c=6.1), 0.03)
    return relaxed(start, pressure=units.GPa)


def symmetric(kind):
    """Unit strain along Voigt component `kind`."""
    out = np.zeros(6)
    out[kind] = 1 if kind < 3 else 0.5
    return out[[[0, 5, 4], [5, 1, 3], [4, 3, 2]]]


@pytest.mark.parametrize("kind", [0, 5])
def test_constants_are_the_slope_of_the_stress_of_strained_and_relaxed_cells(hcp, kind):
    """Under 1 GPa: the terms of the stress are right too."""
    found, step = CONSTANTS({}, hcp), 1e-4
    ends = []
    for sign in (1, -1):
        moved = strain(hcp, sign * step * symmetric(kind)[None])
        moved = jax.tree.map(np.asarray, moved)
        clamped = PREDICT({}, moved)["stress"][0]
        follow, info = relax(MODEL, {}, moved, fmax=1e-9)
        assert info.converged
        ends.append((clamped, PREDICT({}, follow)["stress"][0], follow.positions - moved.positions))
    slopes = [(a - b) / (2 * step) for a, b in zip(*ends, strict=True)]
    # error of the difference: third derivatives, step² x a hundred times the constant
    tolerance = 2e-6 * np.abs(found.clamped).max()
    along = lambda c: np.einsum("ijkl,kl->ij", c, symmetric(kind))
    assert_allclose(along(found.clamped), slopes[0], atol=tolerance)
    assert_allclose(along(found.relaxed), slopes[1], atol=tolerance)
    assert np.abs(found.relaxed - found.clamped).max() > 1e3 * tolerance
    away = slopes[2] - slopes[2].mean(0)  # a relaxation may shift all atoms
    internal = np.einsum("naij,ij->na", found.internal, symmetric(kind))
    assert_allclose(internal, away, atol=1e-4)  # fmax over curvature over step, 1e-9 / 0.1 / 1e-4


def test_under_a_pressure_the_constants_keep_the_symmetries_of_elasticity(hcp):
    c = np.asarray(CONSTANTS({}, hcp).relaxed)
    for order in [(1, 0, 2, 3), (0, 1, 3, 2), (2, 3, 0, 1)]:
        assert_allclose(c, c.transpose(order), atol=1e-9 * c.max())


def test_central_forces_obey_cauchy_and_cubic_symmetry(fcc):
    """C12 = C44 where every atom is a centre of inversion and there is no stress."""
    c = voigt_matrix(np.asarray(CONSTANTS({}, fcc).relaxed))
    axial, cross, shear = c[0, 0], c[0, 1], c[3, 3]
    cubic = np.diag([axial - cross] * 3 + [shear] * 3)
    cubic[:3, :3] += cross
    assert_allclose(c, cubic, atol=1e-8 * axial)
    assert_allclose(cross, shear, rtol=1e-6)  # of the stress that is left
    # argon at 0 K: 4.2, 2.5 and 2.2 GPa by experiment (Keeler and Batchelder, 1970); a model
    assert 3 < axial / units.GPa < 5


def test_the_bulk_modulus_is_the_slope_of_the_pressure(fcc):
    found = elasticity(CONSTANTS({}, fcc).relaxed, density=1.0)
    step, volume = 1e-4, abs(np.linalg.det(fcc.cell[0]))
    sides = [strain(fcc, s * step * np.eye(3)[None]) for s in (1, -1)]
    pressures = [-np.trace(PREDICT({}, s)["stress"][0]) / 3 for s in sides]
    volumes = [abs(np.linalg.det(s.cell[0])) for s in sides]
    slope = -volume * (pressures[0] - pressures[1]) / (volumes[0] - volumes[1])
    for kind in ("voigt", "reuss", "hill"):  # equal for cubic crystals
        assert_allclose(found.bulk[kind], slope, rtol=1e-6)


def test_a_turned_crystal_has_turned_constants_and_the_same_averages(fcc):
    turn = np.linalg.qr(np.random.default_rng(0).normal(size=(3, 3)))[0]
    turned = replace(fcc, positions=fcc.positions @ turn, cell=fcc.cell @ turn)
    c, t = (np.asarray(CONSTANTS({}, s).relaxed) for s in (fcc, turned))
    expected = np.einsum("ijkl,ia,jb,kc,ld->abcd", c, turn, turn, turn, turn)
    assert_allclose(t, expected, atol=1e-12 * c.max() * 100)
    a, b = elasticity(c, density=1.0), elasticity(t, density=1.0)
    assert_allclose(a.eigenvalues, b.eigenvalues, rtol=1e-10)
    for name in ("universal_anisotropy", "young", "poisson", "pugh"):
        assert_allclose(getattr(a, name), getattr(b, name), rtol=1e-10)
    debye = [debye_temperature(x, 1.0, [ARGON]) for x in (c, t)]
    assert_allclose(*debye, rtol=1e-5)  # of the quadrature


def test_sound_is_the_slope_of_the_acoustic_branches(fcc, hcp):
    """Christoffel's velocities and D(q) near the centre; under pressure too."""
    for system in (fcc, hcp):
        found = CONSTANTS({}, system)
        volume = float(found.volume)
        density = density_of([ARGON] * system.n_atoms, volume)
        q = 1e-3 * np.random.default_rng(1).normal(size=(2, 3))
        wave = 2 * np.pi * q @ np.linalg.inv(system.cell[0]).T
        d = np.asarray(MATRIX({}, system, q)) / ARGON
        squares = np.linalg.eigvalsh(d)[:, :3]
        slopes = np.sqrt(squares) / np.linalg.norm(wave, axis=1)[:, None] * METRES_PER_SECOND
        for stress in (None, found.stress):  # hydrostatic: the same
            velocities = sound_velocities(found.relaxed, density, wave, stress=stress)
            assert_allclose(velocities, slopes, rtol=3e-5)  # dispersion, (q a)² / 24


def test_the_debye_temperature_is_that_of_the_acoustic_branches_under_any_stress(fcc):
    """Mean of v⁻³ from D(q) near the centre of a crystal that is pulled along z by 3 %."""
    system = strain(fcc, np.diag([0, 0, 0.03])[None])
    found = CONSTANTS({}, system)
    density = density_of([ARGON] * system.n_atoms, float(found.volume))
    directions, weights = _sphere(4)
    wave = 1e-3 * directions
    q = wave @ system.cell[0].T / (2 * np.pi)
    squares = np.linalg.eigvalsh(np.asarray(MATRIX({}, system, q)))[:, :3] / ARGON
    mean = (weights @ (np.sqrt(squares) / 1e-3) ** -3.0).mean() ** (-1 / 3)
    expected = units.hbar / units.kB * np.cbrt(6 * np.pi**2 * density / ARGON) * mean
    debye = lambda **how: debye_temperature(found.relaxed, density, [ARGON], order=4, **how)
    assert_allclose(debye(stress=found.stress), expected, rtol=1e-5)  # dispersion, (q a)² / 24
    assert abs(debye() / expected - 1) > 1e-3


def test_padding_changes_nothing(hcp):
    a, b = CONSTANTS({}, hcp), CONSTANTS({}, pad(hcp, n_atoms=4))
    assert_allclose(b.relaxed, a.relaxed, rtol=1e-9, atol=1e-12)
    assert_allclose(b.internal[:2], a.internal, atol=1e-9)
    assert_allclose(b.internal[2:], 0)


# --- what is derived from constants --------------------------------------------------------------


def cubic(c11, c12, c44):
    out = np.diag([c11 - c12] * 3 + [c44] * 3).astype(float)
    out[:3, :3] += c12
    return out


def test_copper_has_the_averages_of_the_literature():
    """C11, C12, C44 = 168.4, 121.4, 75.4 GPa: closed forms of a cubic crystal, and A_U = 1.82."""
    found = elasticity(cubic(168.4, 121.4, 75.4), density=1.0)
    assert_allclose(found.bulk["hill"], (168.4 + 2 * 121.4) / 3)
    assert_allclose(found.shear["voigt"], (47.0 + 3 * 75.4) / 5)
    assert_allclose(found.shear["reuss"], 5 * 47.0 * 75.4 / (4 * 75.4 + 3 * 47.0))
    zener = 2 * 75.4 / 47.0
    assert_allclose(found.universal_anisotropy, 6 / 5 * (zener**0.5 - zener**-0.5) ** 2)
    assert found.stable and 0.3 < found.poisson < 0.4


def test_an_isotropic_solid_has_equal_bounds_and_closed_velocities():
    k, g, density = 0.5, 0.3, 2.0
    c = cubic(k + 4 / 3 * g, k - 2 / 3 * g, g)
    found = elasticity(c, density=density)
    assert_allclose([*found.bulk.values()], k)
    assert_allclose([*found.shear.values()], g)
    assert_allclose(found.universal_anisotropy, 0, atol=1e-12)
    assert_allclose(found.young, 9 * k * g / (3 * k + g))
    expected = np.sqrt(np.array([g, g, k + 4 / 3 * g]) / density) * METRES_PER_SECOND
    directions = np.random.default_rng(0).normal(size=(4, 3))
    assert_allclose(sound_velocities(c, density, directions), [expected] * 4)
    hill = hill_velocities(found)
    assert_allclose([hill["transverse"], hill["longitudinal"]], expected[1:])
    theta = units.hbar / units.kB * np.cbrt(6 * np.pi**2 * density / ARGON) * hill["mean"]
    assert_allclose(debye_temperature(c, density, [ARGON]), theta / METRES_PER_SECOND)


def test_copper_has_its_debye_temperature():
    """344 K from low-temperature elastic constants (Kittel: 343 K), 176.2, 124.9, 81.8 GPa."""
    c = cubic(176.2, 124.9, 81.8) * units.GPa
    density = density_of([63.546] * 4, 3.603**3)
    assert_allclose(debye_temperature(c, density, [63.546]), 344, atol=2)


def test_instability_is_found_whatever_the_axes():
    soft = cubic(1.0, 1.2, 0.5)  # C11 < C12
    found = elasticity(soft, density=1.0)
    assert not found.stable and found.eigenvalues[0] == pytest.approx(-0.2)
    with pytest.raises(NumericalError, match="unstable"):
        debye_temperature(soft, 1.0, [1.0])
    squares = np.linalg.eigvalsh(christoffel(soft, [[1, 1, 0]]))[0]
    assert squares[0] == pytest.approx(-0.1)  # (C11 - C12) / 2


def test_voigt_and_full_tensors_are_the_same_numbers():
    c = np.random.default_rng(0).normal(size=(6, 6))
    assert_allclose(voigt_matrix(full_tensor(c)), c)
    assert_allclose(KELVIN**2, [1, 1, 1, 2, 2, 2])


def test_what_cannot_have_constants_is_refused():
    slab = bulk("Ar", "fcc", a=5.3, cubic=True)
    slab.pbc = [True, True, False]
    with pytest.raises(DataError, match="open axis"):
        elastic_constants(MODEL.apply)({}, system_of(slab, MODEL))
    with pytest.raises(UsageError, match="shape"):
        elasticity(np.eye(3), density=1.0)
    shaken = skewed(bulk("Ar", "hcp", a=3.7, c=6.1), 0.05)
    with pytest.raises(NumericalError, match="forces of up to"):
        check_relaxed(CONSTANTS({}, system_of(shaken, MODEL)))


def test_constants_that_are_no_numbers_are_refused(fcc):
    found = CONSTANTS({}, fcc)
    check_relaxed(found)
    for name in ("forces", "hessian", "relaxed"):
        bad = np.array(getattr(found, name))
        bad.flat[0] = np.nan
        with pytest.raises(NumericalError, match="JM303"):
            check_relaxed(replace(found, **{name: bad}))


def test_long_range_sums_are_planned_for_the_cell_that_is_computed(folder, monkeypatch):  # noqa: F811
    """The primitive cell, not that of the file: plans hold for cells that are much alike."""

    def planned(model, atoms):
        raise NumericalError(f"planned for {len(atoms)} atoms")

    monkeypatch.setattr(session, "bound", planned)
    bulk("Ar", "fcc", a=5.3, cubic=True).write("ar.xyz")
    with pytest.raises(NumericalError, match="planned for 1 atoms"):
        elastic("ar.xyz", model=save_argon("argon.safetensors"))


@pytest.mark.slow
def test_the_command_line_gives_constants_of_the_primitive_cell(folder, capsys):  # noqa: F811
    model = save_argon("argon.safetensors", onset=0.6, smoothness=3)
    bulk("Ar", "fcc", a=5.3, cubic=True).write("ar.xyz")
    elastic("ar.xyz", model=model, json="-")
    found = json.loads(capsys.readouterr().out)
    c = np.array(found["elastic_constants_GPa"])
    assert_allclose(c[0, 1], c[3, 3], rtol=1e-3)  # Cauchy, at a stress of 1e-6 eV/Å³
    assert_allclose(found["bulk_modulus_hill_GPa"], (c[0, 0] + 2 * c[0, 1]) / 3, rtol=1e-6)
    assert found["stable"] and found["n_atoms_of_cell"] == 1


@pytest.mark.slow
def test_a_crystal_that_is_not_relaxed_has_a_stress_and_no_pressure_to_be_relaxed_to(
    folder,  # noqa: F811
    capsys,
):
    model = save_argon("argon.safetensors", onset=0.6, smoothness=3)
    crystal = bulk("Ar", "fcc", a=5.3, cubic=True)
    crystal.set_cell(crystal.cell.array * [1, 1, 1.03], True)
    crystal.write("pulled.xyz")
    with pytest.raises(UsageError, match="--pressure"):
        elastic("pulled.xyz", model=model, relax=False, pressure=1.0)
    capsys.readouterr()
    elastic("pulled.xyz", model=model, relax=False, json="-")
    shown = json.loads(capsys.readouterr().out)
    primitive = bulk("Ar", "fcc", a=5.3)
    primitive.set_cell(primitive.cell.array * [1, 1, 1.03], True)
    found = CONSTANTS({}, system_of(primitive, MODEL))
    density = density_of([ARGON], float(found.volume))
    expected = debye_temperature(found.relaxed, density, [ARGON], stress=found.stress)
    assert_allclose(shown["debye_temperature_K"], expected, rtol=1e-6)
