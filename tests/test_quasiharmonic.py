"""Quasi-harmonic approximation: phonopy's numbers, exact thermodynamics, argon to the end."""

import json
import lzma
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk
from crystals import argon, save_argon, system_of  # noqa: F401
from numpy.testing import assert_allclose

from jaxmlip import units
from jaxmlip.cli.crystal import qha as command
from jaxmlip.cli.crystal import qha_span
from jaxmlip.cli.crystal.qha import qha
from jaxmlip.derivatives.elastic import elastic_constants, full_tensor, voigt_matrix
from jaxmlip.errors import NumericalError, UsageError
from jaxmlip.interfaces.ase import from_ase
from jaxmlip.interfaces.phonons.phonopy import q_mesh
from jaxmlip.md.cell import relax_cell
from jaxmlip.md.relax import relax
from jaxmlip.system import strain
from jaxmlip.vibrations.crystals.axial_expansion import axial_expansion, expansion_tensor
from jaxmlip.vibrations.crystals.equation_of_state import (
    BIRCH_MURNAGHAN,
    VINET,
    bulk_modulus,
    fit,
    values,
    volume_at,
)
from jaxmlip.vibrations.crystals.quasiharmonic import (
    expansion_from_gruneisen,
    oscillator_capacity,
    quasiharmonic,
)
from jaxmlip.vibrations.crystals.volumes import (
    HarmonicVolumes,
    harmonic_volumes,
    scaled,
    volume_gruneisen,
)

DATA = Path(__file__).parents[2] / "shared/data/vibrations/phonopy_examples"
needs_data = pytest.mark.skipif(not DATA.is_dir(), reason=f"needs {DATA}")
MOLAR = units.kJ_mol / 1000  # eV/K of 1 J/K/mol
SCALES = (units.kJ_mol, MOLAR, MOLAR)


def phonopy_tables(name):
    """(volumes, energies, temperatures, free energies, entropies, Cv) as phonopy has written."""
    place = DATA / f"{name}-QHA"
    volumes, energies = np.loadtxt(place / "e-v.dat").T
    order = lambda path: int(re.search(r"yaml-(-?\d+)", path.name).group(1))
    tables = []
    for path in sorted(place.glob("thermal_properties.yaml*"), key=order):
        text = lzma.open(path, "rt").read().split("thermal_properties:")[1]
        column = lambda key, text=text: re.findall(rf"\b{key}:\s+([-\d.]+)", text)
        keys = ("temperature", "free_energy", "entropy", "heat_capacity")
        tables.append(np.array([column(key) for key in keys], float))
    tables = np.stack(tables, axis=1)
    tables = tables[..., tables[0, 0] <= 400]  # K; beyond, some volumes end
    return volumes, energies, tables[0, 0], *(tables[1:] * np.array(SCALES)[:, None, None])


# expansion 1/K, bulk modulus GPa, Cp J/K/mol at 300 K, Vinet: data/vibrations/README.md
@needs_data
@pytest.mark.parametrize(
    ("name", "alpha", "b", "cp"),
    [
        ("Al", 7.3452e-5, 68.592, 96.743),
        ("Si", 9.6751e-6, 85.586, 161.002),
        ("Cu", 4.5583e-5, 154.154, 96.744),
    ],
)
def test_phonopys_numbers_are_reproduced(name, alpha, b, cp):
    found = quasiharmonic(*phonopy_tables(name))
    at = np.argmin(np.abs(found.temperatures - 300))
    assert_allclose(found.expansion[at], alpha, rtol=2e-5)  # the digits given
    assert_allclose(found.bulk_modulus[at] / units.GPa, b, atol=6e-4)
    # a second difference of G, which their fits leave open by more than their decimals: see below
    assert_allclose(found.cp_from_gibbs[at] / MOLAR, cp, atol=4e-3)
    assert_allclose(found.cp[at], found.cp_from_gibbs[at], rtol=1e-4)  # Cv + T V alpha² B
    assert not found.outside.any()


def fitted_to_the_end(curve, volumes, energies, start):
    """Parameters at the minimum of the squares, by Gauss-Newton with central differences."""
    for _ in range(5):
        moves = np.diag(1e-5 * np.abs(start))
        rows = [
            (curve(volumes, start + d) - curve(volumes, start - d)) / 2 / d.sum() for d in moves
        ]
        off = curve(volumes, start) - energies
        start = start - np.linalg.lstsq(np.stack(rows, 1), off, rcond=None)[0]
    return start


@needs_data
@pytest.mark.parametrize("name", ["Al", "Si", "Cu"])
def test_cp_is_that_of_phonopys_curve_once_its_fit_has_ended(name):
    """Its own fits end 1e-10 to 1e-8 eV before the minimum, which moves Cp by 5e-4 to 4e-3."""
    from phonopy.qha.eos import fit_to_eos, get_eos

    vinet, (volumes, energies, temperatures, free, *rest) = get_eos("vinet"), phonopy_tables(name)
    ours = quasiharmonic(volumes, energies, temperatures, free, *rest)
    at = np.argmin(np.abs(temperatures - 300))
    three = slice(at - 1, at + 2)
    total = (energies[:, None] + free)[:, three].T
    early = [fit_to_eos(volumes, f, vinet) for f in total]
    fitted = [fitted_to_the_end(vinet, volumes, *p) for p in zip(total, early, strict=True)]
    x = temperatures[three] - 300
    cp = lambda fits: -600 * np.polyfit(x, [p[0] for p in fits], 2)[0] / MOLAR
    assert_allclose(ours.cp_from_gibbs[at] / MOLAR, cp(fitted), atol=2e-5)
    assert abs(cp(early) - cp(fitted)) < 6e-3


# --- equations of state --------------------------------------------------------------------------


@pytest.mark.parametrize("equation", [VINET, BIRCH_MURNAGHAN], ids=["vinet", "birch"])
def test_a_fit_finds_what_made_the_energies(equation):
    p = np.array([[-3.0, 0.5, 4.8, 40.0], [1.0, 0.05, 6.1, 37.0]])
    v = np.linspace(33, 45, 9)
    energies = values(equation.energy, v, p)
    assert_allclose(fit(v, energies, equation), p, rtol=1e-8)
    slope = (values(equation.energy, v + 1e-4, p) - values(equation.energy, v - 1e-4, p)) / 2e-4
    assert_allclose(values(equation.pressure, v, p), -slope, atol=1e-9)
    assert_allclose(bulk_modulus(p[:, 3], p, equation), p[:, 1])
    step = 1e-4
    b = [bulk_modulus(volume_at(x, p, equation), p, equation) for x in (step, -step)]
    assert_allclose((b[0] - b[1]) / (2 * step), p[:, 2], rtol=1e-3)  # B' = dB/dP
    reached = values(equation.pressure, volume_at(0.02, p, equation)[:, None], p)
    assert_allclose(reached, 0.02, rtol=1e-10)


def test_energies_without_a_minimum_are_nan_or_refused():
    v = np.linspace(30, 40, 7)
    bowl = values(VINET.energy, v, np.array([0.0, 0.4, 5.0, 35.0]))
    hill = -bowl
    found = fit(v, np.stack([bowl, hill]))
    assert np.isfinite(found[0]).all() and np.isnan(found[1]).all()
    with pytest.raises(NumericalError, match="no minimum"):
        fit(v, hill)
    with pytest.raises(UsageError, match="four parameters"):
        fit(v[:4], bowl[:4])


# --- exact thermodynamics ------------------------------------------------------------------------


def debye_like(volumes, temperatures, *, gamma=2.0):
    """Oscillators with one Grüneisen parameter: F, S and Cv in closed form."""
    frequencies = np.linspace(1.0, 6.0, 6)[:, None, None] * (volumes / 40)[:, None] ** -gamma
    energy = frequencies * units.THz
    x = energy / (units.kB * temperatures)
    free = energy / 2 + units.kB * temperatures * np.log1p(-np.exp(-x))
    capacity = units.kB * (x / 2 / np.sinh(x / 2)) ** 2
    entropy = units.kB * (x / np.expm1(x) - np.log1p(-np.exp(-x)))
    return free.sum(0), entropy.sum(0), capacity.sum(0)


def test_one_gruneisen_parameter_gives_itself_and_the_expansion():
    v, t = np.linspace(37, 45, 11), np.arange(100.0, 320.0, 2.0)
    static = values(VINET.energy, v, np.array([0.0, 0.4, 5.0, 40.0]))
    found = quasiharmonic(v, static, t, *debye_like(v, t))
    inner = slice(1, -1)
    assert_allclose(found.gruneisen[inner], 2.0, rtol=2e-3)  # what a Vinet curve cannot follow
    at = 50
    frequencies = np.linspace(1.0, 6.0, 6)[None] * (found.volume[at] / 40) ** -2.0
    cheap = expansion_from_gruneisen(
        t,
        frequencies,
        np.full((1, 6), 2.0),
        [1.0],
        volume=found.volume[at],
        bulk_modulus=found.bulk_modulus[at],
    )
    assert_allclose(cheap[at], found.expansion[at], rtol=2e-3)


def test_gibbs_energies_obey_thermodynamics():
    """S = -dG/dT, V = dG/dP, Cp = T dS/dT along the pressure."""
    v, t = np.linspace(36, 45, 11), np.arange(100.0, 320.0, 2.0)
    static = values(VINET.energy, v, np.array([0.0, 0.4, 5.0, 40.0]))
    at = lambda p: quasiharmonic(v, static, t, *debye_like(v, t), pressure=p)
    found, step = at(0.01), 1e-5
    inner = slice(2, -2)
    assert_allclose(-np.gradient(found.gibbs, t)[inner], found.entropy[inner], rtol=2e-3)
    slope = (at(0.01 + step).gibbs - at(0.01 - step).gibbs) / (2 * step)
    assert_allclose(slope, found.volume, rtol=1e-6)
    cp = t * np.gradient(found.entropy, t)
    assert_allclose(cp[inner], found.cp[inner], rtol=2e-3)
    assert_allclose(found.cp_from_gibbs[inner], found.cp[inner], rtol=2e-3)
    assert (found.volume < at(0.0).volume).all()
    assert (found.adiabatic_bulk_modulus > found.bulk_modulus).all()


def test_volumes_beyond_those_computed_are_nan():
    v, t = np.linspace(39, 40.6, 7), np.arange(10.0, 900.0, 10.0)
    static = values(VINET.energy, v, np.array([0.0, 0.4, 5.0, 40.0]))
    found = quasiharmonic(v, static, t, *debye_like(v, t))
    assert found.outside.any() and not found.outside.all()
    assert np.isnan(found.volume[found.outside]).all()
    with pytest.raises(UsageError, match="tables"):
        quasiharmonic(v, static, t, *(x.T for x in debye_like(v, t)))


# --- argon ---------------------------------------------------------------------------------------

MODEL = argon(2.5, onset=0.6, smoothness=3)
TRACES = []


def counted(params, system):
    TRACES.append(1)
    return MODEL.apply({}, system)


@pytest.fixture(scope="module")
def argon_volumes():
    atoms = bulk("Ar", "fcc", a=5.32)
    start = system_of(atoms, MODEL)
    cells = [system_of_cell(scaled(start, f)) for f in np.linspace(0.97, 1.13, 7)]
    temperatures = np.arange(0.0, 61.0, 4.0)
    return harmonic_volumes(counted, {}, cells, atoms, mesh=(4, 4, 4), temperatures=temperatures)


def system_of_cell(system):
    from ase import Atoms

    return system_of(Atoms(system.numbers, system.positions, cell=system.cell[0], pbc=True), MODEL)


def test_argon_expands_as_its_gruneisen_parameters_say(argon_volumes):
    """Two routes: free energies at seven volumes, and strain derivatives of D(q) at one."""
    found = quasiharmonic(
        argon_volumes.volumes,
        argon_volumes.energies,
        argon_volumes.temperatures,
        *argon_volumes.tables,
    )
    at = 10  # 40 K
    atoms = bulk("Ar", "fcc", a=np.cbrt(4 * found.volume[at]))
    mesh = q_mesh(atoms, (4, 4, 4))
    parameters, frequencies = volume_gruneisen(
        MODEL.apply, {}, system_of(atoms, MODEL), atoms, mesh.q
    )
    assert np.isnan(parameters[mesh.gamma]).all()  # translations, whatever rounding makes of them
    assert np.isfinite(np.delete(parameters, mesh.gamma, 0)).all()
    cheap = expansion_from_gruneisen(
        found.temperatures,
        frequencies,
        parameters,
        mesh.weights,
        volume=found.volume[at],
        bulk_modulus=found.bulk_modulus[at],
    )
    # central difference over 8 K and what a Vinet curve cannot follow
    assert_allclose(cheap[at], found.expansion[at], rtol=0.01)
    assert 2 < np.nanmean(parameters) < 4  # 2.7 for argon by experiment


def test_a_cubic_tensor_is_a_third_of_the_volume_along_each_axis():
    rng, t = np.random.default_rng(0), [10.0, 300.0]
    frequencies, gamma = rng.uniform(1, 6, (2, 4)), rng.normal(2, 1, (2, 4))
    constants = np.zeros((3, 3, 3, 3))
    for i, j in np.ndindex(3, 3):
        constants[i, i, j, j] += 0.4
        constants[i, j, i, j] += 0.2 + 0.3 * (i == j)
        constants[i, j, j, i] += 0.2
    options = {"volume": 40.0, "weights": [1, 3]}
    found = expansion_tensor(
        t, frequencies, gamma[..., None, None] * np.eye(3), constants=constants, **options
    )
    bulk_modulus = np.einsum("iijj", constants) / 9
    volume = expansion_from_gruneisen(t, frequencies, gamma, bulk_modulus=bulk_modulus, **options)
    assert_allclose(found, volume[:, None, None] / 3 * np.eye(3), atol=1e-15)


def test_an_expansion_gives_the_push_of_the_modes_back_through_all_constants():
    """C : alpha V = sum of gamma c, over all 81 components of a triclinic crystal."""
    rng, t = np.random.default_rng(1), [40.0, 300.0]
    frequencies, gamma = rng.uniform(1, 6, (2, 4)), rng.normal(1, 1, (2, 4, 3, 3))
    gamma += gamma.swapaxes(2, 3)
    rough = rng.normal(size=(6, 6))
    constants = full_tensor(rough @ rough.T + np.eye(6))
    found = expansion_tensor(t, frequencies, gamma, [1, 3], constants=constants, volume=40.0)
    heat = np.array([oscillator_capacity(frequencies, x) for x in t])
    push = np.einsum("tqm,qmij,q->tij", heat, gamma, [0.25, 0.75])
    assert_allclose(40 * np.einsum("ijkl,tkl->tij", constants, found), push, atol=1e-12)
    assert_allclose(found, found.swapaxes(1, 2), atol=1e-15)


@pytest.mark.slow
def test_a_hexagonal_crystal_expands_along_each_axis_as_its_free_energy_asks():
    """d(dF/de)/dT over strained cells, their atoms relaxed, and elastic constants."""
    start = bulk("Ar", "hcp", a=3.72, c=6.08)
    start.set_masses([40.0, 40.0])
    system, info = relax_cell(MODEL, {}, from_ase(start, 9.2), fmax=1e-9, stress=1e-10)
    assert info.converged
    atoms, t, h = start.copy(), np.array([30.0]), 2e-3
    atoms.set_cell(system.cell[0])
    atoms.positions = np.asarray(system.positions)
    still = system_of(atoms, MODEL)
    found = axial_expansion(MODEL.apply, {}, still, atoms, mesh=(3, 3, 2), temperatures=t)[0]
    push = np.zeros((3, 3))
    for along, count in ((np.diag([1.0, 1, 0]), 2), (np.diag([0.0, 0, 1]), 1)):
        cells = [strain(still, h * sign * along[None]) for sign in (1, -1)]
        free = lambda s: from_ase(
            Atoms("Ar2", s.positions, cell=s.cell[0], pbc=True), MODEL.cutoff + 0.5
        )
        cells = [relax(MODEL, {}, free(s), fmax=1e-9)[0] for s in cells]
        cells = [system_of_cell(s) for s in cells]
        two = harmonic_volumes(MODEL.apply, {}, cells, atoms, mesh=(3, 3, 2), temperatures=t)
        push += along / count * (two.entropies[0, 0] - two.entropies[1, 0]) / (2 * h)
    constants = elastic_constants(MODEL.apply)({}, still)
    c, v = np.asarray(voigt_matrix(constants.relaxed)), float(constants.volume)
    expected = np.linalg.solve(c[:3, :3], np.diag(push) / v)
    assert_allclose(np.diag(found), expected, rtol=2e-3)  # h² of third derivatives of F
    assert_allclose(found - np.diag(np.diag(found)), 0, atol=1e-10)
    assert abs(found[2, 2] / found[0, 0] - 1) > 1e-3  # not cubic


def test_argon_holds_its_volume_at_zero_kelvin_by_zero_point_motion(argon_volumes):
    found = quasiharmonic(
        argon_volumes.volumes,
        argon_volumes.energies,
        argon_volumes.temperatures,
        *argon_volumes.tables,
    )
    assert found.volume[0] > 1.02 * found.static[3]
    assert found.cp[0] == 0 and found.cp[-1] > found.cv[-1]
    assert (np.diff(found.volume) > 0)[1:].all()


def test_all_volumes_share_one_compilation(argon_volumes):
    """A compilation for each would trace the potential once for each, at the least."""
    assert 0 < len(TRACES) < len(argon_volumes.volumes)


@pytest.mark.slow
def test_the_command_line_gives_expansions(folder, capsys):  # noqa: F811
    model = save_argon("argon.safetensors", onset=0.6, smoothness=3)
    bulk("Ar", "fcc", a=5.3, cubic=True).write("ar.xyz")
    options = {"mesh": (3, 3, 3), "temperatures": (0.0, 40.0, 5.0), "span": (0.97, 1.12)}
    qha("ar.xyz", model=model, json="-", volumes=6, axes=True, **options)
    found = json.loads(capsys.readouterr().out)
    assert found["n_atoms_of_cell"] == 1 and len(found["temperatures_K"]) == 9
    assert 1e-4 < found["thermal_expansion_per_K"][4] < 1e-3
    assert 1 < found["bulk_modulus_GPa"][0] < found["static_bulk_modulus_GPa"] < 4
    tensor = np.array(found["expansion_tensor_of_static_minimum_per_K"])
    assert_allclose(tensor, tensor[:, :1, :1] * np.eye(3), atol=1e-9)
    # at the static minimum argon is stiffer than where zero-point motion has brought it
    assert 0.3 < 3 * tensor[4, 0, 0] / found["thermal_expansion_per_K"][4] < 1
    with pytest.raises(UsageError, match="--span"):
        qha("ar.xyz", model=model, json="-", span=(1.01, 1.1))


@pytest.mark.parametrize(
    "wrong",
    [
        {"temperatures": (0.0, np.inf, 10.0)},
        {"temperatures": (0.0, 100.0, np.nan)},
        {"temperatures": (0.0, 100.0, 100.0)},  # two: no second difference
        {"mesh": (0, 2, 2)},
        {"pressure": np.inf},
        {"pressure": 1.0, "axes": True},  # elastic constants and modes are those without pressure
    ],
)
def test_what_cannot_be_meant_is_refused_before_anything_is_read(wrong):
    with pytest.raises(UsageError, match=f"--{next(iter(wrong))}"):
        qha("there_is_no_such_file.cif", **wrong)


def murnaghan(pressure=0.0):
    """Volumes of 0.95 to 1.05, static energies of a bulk modulus of 0.5 eV/Å³, no vibrations."""
    volumes = 40.0 * np.linspace(0.95, 1.05, 7)
    energies = values(VINET.energy, volumes, np.array([-1.0, 0.5, 4.0, 40.0]))
    mesh, zeros = q_mesh(bulk("Ar", "fcc", a=5.4), (1, 1, 1)), np.zeros((7, 3))
    return HarmonicVolumes(
        volumes=volumes, energies=energies, frequencies_THz=np.ones((7, 1, 3)), mesh=mesh,
        temperatures=np.array([0.0, 10.0, 20.0]), free_energies=zeros, entropies=zeros,
        heat_capacities=zeros, left_out=np.zeros(7),
    )  # fmt: skip


def test_a_pressure_beyond_the_volumes_is_told_before_any_matrix():
    found = murnaghan()
    check = lambda p: qha_span.check_pressure(found.volumes, found.energies, p, VINET)
    check(0.02)  # 0.5 x 4 % and more
    with pytest.raises(UsageError, match="(?s)0.9.. of the static minimum.*smaller first") as error:
        check(0.04)
    assert "38.000 to 42.000" in str(error.value)
    with pytest.raises(UsageError, match="larger second"):
        check(-0.04)


def test_imaginary_modes_name_their_volume_and_what_to_do():
    found = murnaghan()
    qha_span.check_real(found, 40.0)
    found.frequencies_THz[-2:] = [[[-0.3, 1, 1]], [[-0.4, 1, 1]]]
    with pytest.raises(NumericalError, match=r"(?s)at 42.000 Å³ \(1.050.*2 of 7.*below 1.033"):
        qha_span.check_real(found, 40.0)
    found.frequencies_THz[0] = -0.1
    with pytest.raises(NumericalError, match="unstable at or below its own volume"):
        qha_span.check_real(found, 40.0)


def test_which_end_of_the_volumes_is_too_near_is_told():
    found = murnaghan()
    away = found.volumes - 40.0
    for pull, end in ((-0.2, qha_span.LARGER), (0.2, qha_span.SMALLER)):
        pulled = replace(found, free_energies=np.outer(pull * away, [0, 0, 1]))
        assert qha_span.wider(pulled, 0.0, 2) == end


def test_what_was_computed_is_written_before_the_error(folder, capsys, monkeypatch):  # noqa: F811
    found = murnaghan()
    away = (found.volumes - 40.0)[:, None]
    pulled = replace(found, free_energies=np.repeat(-0.05 * away, 3, 1))
    imaginary = replace(found, frequencies_THz=-np.ones((7, 1, 3)))
    model = save_argon("argon.safetensors", onset=0.6, smoothness=3)
    bulk("Ar", "fcc", a=5.3).write("ar.xyz")
    cell = from_ase(bulk("Ar", "fcc", a=5.4), 3.0)
    cells = [scaled(cell, s) for s in np.linspace(0.95, 1.05, 7)]
    planned = lambda atoms, model, *_: (cells, found.energies, cell, model)
    monkeypatch.setattr(command, "_cells", planned)
    for computed, message in ((pulled, "no temperature has"), (imaginary, "JM306")):
        monkeypatch.setattr(command, "_harmonic", lambda *_, computed=computed: computed)
        with pytest.raises(NumericalError, match=message):
            qha("ar.xyz", model=model, json="-", temperatures=(0.0, 20.0, 10.0))
        written = json.loads(capsys.readouterr().out)
        assert_allclose(written["volumes_A3"], found.volumes)


@pytest.mark.slow
def test_volumes_are_told_though_the_axes_fail(folder, capsys, monkeypatch):  # noqa: F811
    def failing(*_):
        raise NumericalError("imaginary")

    model = save_argon("argon.safetensors", onset=0.6, smoothness=3)
    bulk("Ar", "fcc", a=5.3).write("ar.xyz")
    monkeypatch.setattr(command, "_axes", failing)
    with pytest.raises(NumericalError, match="imaginary"):
        options = {"mesh": (2, 2, 2), "temperatures": (0.0, 20.0, 5.0), "span": (0.97, 1.12)}
        qha("ar.xyz", model=model, json="-", volumes=5, axes=True, **options)
    assert json.loads(capsys.readouterr().out)["static_volume_A3"] > 30
