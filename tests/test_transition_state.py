"""Saddle points and reaction paths: a surface with known saddles, a cluster, a molecule."""

import json

import jax.numpy as jnp
import numpy as np
import pytest
from ase import Atoms
from ase.build import molecule
from ase.io import read
from numpy.testing import assert_allclose
from scipy.optimize import minimize

import jaxmlip
from jaxmlip import pretrained, units
from jaxmlip.cli.main import main
from jaxmlip.errors import NumericalError, UsageError
from jaxmlip.models import LennardJones, checkpoint
from jaxmlip.potential import Potential
from jaxmlip.vibrations.reactions import surface
from jaxmlip.vibrations.reactions.quadratic import informed, lowest, rational_step, updated
from jaxmlip.vibrations.reactions.reaction_path import reaction_path
from jaxmlip.vibrations.reactions.transition_state import (
    exact_hessian,
    hessian_products,
    minimum,
    transition_state,
)

# Stationary points (x, y, energy) of the surface of Müller and Brown, 1979, 10.1007/BF00547608.
SADDLES = {
    "upper": (-0.822001558732732, 0.624312802814871, -40.66484351),
    "lower": (0.212486582000662, 0.292988325107368, -72.24894011),
}
MINIMA = {
    "A": (-0.558223634633024, 1.441725841804669, -146.69951721),
    "B": (0.623499404930877, 0.028037758528686, -108.16672412),
    "C": (-0.050010822998206, 0.466694104871972, -80.76781813),
}
HEIGHT = jnp.array([-200.0, -100, -170, 15])
A, B, C = jnp.array([[-1, -1, -6.5, 0.7], [0, 0, 11, 0.6], [-10, -10, -6.5, 0.7]])
X, Y = jnp.array([[1, 0, -0.5, -1], [0, 0.5, 1.5, 1]])


def valleys(params, system):
    """One atom in the plane; a stiff spring keeps it there."""
    x, y, z = system.positions[:, :1], system.positions[:, 1:2], system.positions[:, 2]
    exponent = A * (x - X) ** 2 + B * (x - X) * (y - Y) + C * (y - Y) ** 2
    energies = (HEIGHT * jnp.exp(exponent)).sum(-1) + 5e3 * z**2
    return {"energy": energies.sum()[None]}


PLANE = Potential(lambda key, system: {}, valleys, 1.0)
ARGON = LennardJones(elements=(18,), epsilon=1.0, sigma=1.0, cutoff=20.0, onset=1.0)
ROUTES = {
    "Hessian in every step": exact_hessian(),
    "Hessian in every fourth": exact_hessian(4),
    "Hessian-vector products": hessian_products(),
}


def in_plane(x, y):
    return jaxmlip.from_ase(Atoms("H", [(x, y, 0.05)]), 1.0)


def cluster(positions):
    return jaxmlip.from_ase(Atoms(f"Ar{len(positions)}", positions), 20.0)


def bent_rhombus():
    h, w = 1.12, 0.97
    return np.array([[h / 2, 0, 0.1], [-h / 2, 0, 0.06], [0.03, w, -0.1], [0, -w, 0.02]])


def rhombus_energy():
    """Four atoms in a plane, two distances free: the saddle of the smallest cluster that has one.

    -5.0734 epsilon; the tetrahedron has -6.
    """
    pair = lambda r: 4 * (r**-12 - r**-6)
    energy = lambda x: 4 * pair(np.hypot(*x) / 2) + pair(x[0]) + pair(x[1])
    return minimize(energy, [1.12, 1.9], tol=1e-14).fun


def saddle_of_argon(route=None, **options):
    return transition_state(
        ARGON,
        {},
        cluster(bent_rhombus()),
        masses=[39.948] * 4,
        fmax=1e-7,
        curvature=route,
        **options,
    )


# --- saddle points -------------------------------------------------------------------------------


@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize("name, start", [("upper", (-0.6, 0.7)), ("lower", (0.2, 0.4))])
def test_the_saddles_of_a_known_surface_are_found(name, start, route):
    system, found = transition_state(
        PLANE,
        {},
        in_plane(*start),
        masses=[1.0],
        fmax=1e-6,
        project=False,
        curvature=ROUTES[route],
    )
    x, y, energy = SADDLES[name]
    assert found.converged and found.n_imaginary == 1
    assert_allclose(system.positions[0], [x, y, 0], atol=1e-8)  # fmax over the curvature
    assert_allclose(found.energy, energy, atol=1e-8)  # digits above


@pytest.mark.parametrize("route", ROUTES)
def test_the_saddle_of_four_argon_atoms_is_a_flat_rhombus(route):
    system, found = saddle_of_argon(ROUTES[route])
    assert found.converged and found.n_imaginary == 1, found.reason
    assert_allclose(found.energy, rhombus_energy(), atol=1e-7)  # the shift of the cutoff: 6e-8
    flat = np.linalg.svd(system.positions - system.positions.mean(0))[1]
    assert flat[2] < 1e-5 and found.n_steps < 30


def test_a_second_search_compiles_nothing():
    saddle_of_argon()
    programs = surface._slope, surface._rows
    before = [p._cache_size() for p in programs]
    saddle_of_argon(follow=1)
    assert [p._cache_size() for p in programs] == before


def test_a_direction_can_be_followed_as_well_as_a_number():
    fold = np.zeros((4, 3))
    fold[:, 2] = [-1, -1, 1, 1]
    _, found = saddle_of_argon(follow=fold)
    assert found.converged
    assert_allclose(found.energy, rhombus_energy(), atol=1e-7)


def test_a_held_atom_stays_and_the_saddle_is_the_same():
    held = np.array([True, False, False, False])
    system, found = saddle_of_argon(fixed=held)
    assert (system.positions[0] == bent_rhombus()[0]).all()
    assert found.converged and found.mode[0].any() == 0
    assert_allclose(found.energy, rhombus_energy(), atol=1e-7)


def test_a_square_is_left_for_a_point_of_the_order_asked_for():
    """The square is a stationary point by symmetry, with more than one way down."""
    square = 0.8 * np.array([[1.0, 0, 0], [0, 1, 0], [-1, 0, 0], [0, -1, 0]])
    masses = [39.948] * 4
    _, saddle = transition_state(ARGON, {}, cluster(square), masses=masses, follow=1)
    assert saddle.converged
    assert_allclose(saddle.energy, rhombus_energy(), atol=1e-6)  # fmax² over the curvature
    system, lowest_point = minimum(ARGON, {}, cluster(square), masses=masses)
    assert lowest_point.converged and lowest_point.n_imaginary == 0
    assert_allclose(lowest_point.energy, -6, atol=1e-6)  # six pairs at their minimum
    assert np.linalg.matrix_rank(system.positions - system.positions[0], tol=0.1) == 3


def test_a_search_that_fails_says_so_and_ends():
    _, short = saddle_of_argon(steps=3)
    assert not short.converged and short.n_steps == 3 and "3 evaluations, fmax" in short.reason
    _, endless = transition_state(  # the softest direction of this valley has no pass
        PLANE, {}, in_plane(-0.56, 1.44), masses=[1.0], project=False
    )
    assert not endless.converged and "no end" in endless.reason
    with pytest.raises(UsageError, match="no mode 6; there are 6"):
        saddle_of_argon(follow=6)
    with pytest.raises(NumericalError, match="not finite"):
        collapsed = np.zeros((4, 3))
        transition_state(ARGON, {}, cluster_without_checks(collapsed), masses=[39.948] * 4)


def test_a_minimum_whose_lowest_modes_are_not_resolved_is_not_called_one():
    """No mode is known to be wrong, so there is nowhere to go: the search ends and says why."""
    exact = exact_hessian()
    vague = exact._replace(modes=lambda *args: exact.modes(*args)._replace(certain=False))
    corners = np.array([[1, 1, 1], [1, -1, -1], [-1, 1, -1], [-1, -1, 1]])
    start, masses = cluster(0.4 * corners), [39.948] * 4
    _, found = minimum(ARGON, {}, start, masses=masses, curvature=vague)
    assert not found.converged and found.n_imaginary == 0 and found.fmax < 1e-4
    assert "lowest modes not resolved" in found.reason
    _, saddle = saddle_of_argon(vague)
    assert not saddle.converged and "lowest modes not resolved" in saddle.reason


def cluster_without_checks(positions):
    from dataclasses import replace

    return replace(cluster(bent_rhombus()), positions=positions)


# --- the path ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def path():
    x, y, _ = SADDLES["upper"]
    system = jaxmlip.from_ase(Atoms("H", [(x, y, 0)]), 1.0)
    return reaction_path(PLANE, {}, system, masses=[1.0], step=0.05, project=False)


def test_a_path_goes_down_both_ways_to_the_minima_it_joins(path):
    top = int(np.flatnonzero(path.distance == 0)[0])
    assert (np.diff(path.energies[: top + 1]) > 0).all()
    assert (np.diff(path.energies[top:]) < 0).all()
    ends = sorted(e.energy for e in path.ends)
    assert all(e.converged for e in path.ends)
    assert_allclose(ends, [MINIMA["A"][2], MINIMA["C"][2]], atol=1e-8)
    order = np.argsort([e.energy for e in path.ends])
    assert_allclose(path.end_positions[order[0], 0, :2], MINIMA["A"][:2], atol=1e-6)
    assert_allclose(sorted(path.barriers)[0], SADDLES["upper"][2] - MINIMA["C"][2], atol=1e-8)


def test_a_path_runs_along_the_gradient(path):
    """Half way between two points, where a circle through both has the slope of their chord."""
    half = (path.positions[1:] + path.positions[:-1])[:, 0] / 2
    chord = np.diff(path.positions[:, 0], axis=0)
    at = surface.surface(PLANE, {}, in_plane(0, 0), [1.0], project=False)
    for r, along in list(zip(half, chord, strict=True))[2:-2]:
        _, slope = surface.slope(surface.moved(at, r - at.positions[0]))
        cosine = abs(slope @ along) / np.linalg.norm(slope) / np.linalg.norm(along)
        assert cosine > 0.99  # sin² of the angle over a step that is a tenth of a bend


def test_a_path_is_measured_in_mass_weighted_length(path):
    x, y, _ = SADDLES["upper"]
    system = jaxmlip.from_ase(Atoms("H", [(x, y, 0)]), 1.0)
    heavy = reaction_path(PLANE, {}, system, masses=[4.0], step=0.1, project=False, relax=False)
    assert heavy.ends is None
    assert_allclose(heavy.distance, 2 * path.distance, atol=1e-6)  # sqrt(4); bisection, 12 tries
    assert_allclose(heavy.energies, path.energies, atol=1e-4)


def test_a_rhombus_folds_to_a_tetrahedron_either_way():
    system, found = saddle_of_argon()
    both = reaction_path(ARGON, {}, system, masses=[39.948] * 4, mode=found.mode, step=0.4)
    assert_allclose([e.energy for e in both.ends], -6, atol=1e-6)
    assert_allclose(both.barriers, rhombus_energy() + 6, atol=1e-6)
    handed = [np.linalg.det(p[1:] - p[0]) for p in both.end_positions]
    assert handed[0] * handed[1] < 0  # mirror images


def test_a_path_starts_only_from_a_saddle():
    masses = [39.948] * 4
    with pytest.raises(UsageError, match="find the transition state first"):
        reaction_path(ARGON, {}, cluster(bent_rhombus()), masses=masses)
    system, _ = minimum(ARGON, {}, cluster(bent_rhombus()), masses=masses)
    with pytest.raises(NumericalError, match="no saddle"):
        reaction_path(ARGON, {}, system, masses=masses)


# --- the quadratic model -------------------------------------------------------------------------


@pytest.fixture
def operator():
    q = np.linalg.qr(np.random.default_rng(0).normal(size=(30, 30)))[0]
    return q @ np.diag([-3.0, -0.4, 0.2, *np.linspace(1, 80, 27)]) @ q.T


def test_the_lowest_modes_come_from_products_alone(operator):
    random = np.random.default_rng(1).normal(size=(30, 1))
    values, vectors, tried, images, done = lowest(
        lambda v: operator @ v, 20 * np.eye(30), random, count=2, tolerance=1e-6
    )
    assert done
    assert_allclose(values, [-3, -0.4], atol=1e-11)  # residual² over the gap
    assert_allclose(operator @ vectors, vectors * values, atol=1e-6)
    assert_allclose(tried.T @ tried, np.eye(tried.shape[1]), atol=1e-10)
    assert_allclose(operator @ tried, images, atol=1e-10)


def test_what_products_teach_is_kept_and_stays_symmetric(operator):
    basis = np.linalg.qr(np.random.default_rng(2).normal(size=(30, 4)))[0]
    model = informed(np.eye(30), basis, operator @ basis)
    assert_allclose(model @ basis, operator @ basis, atol=1e-11)
    assert_allclose(model, model.T, atol=1e-12)
    step, change = basis[:, 0] * 0.1 + basis[:, 1], np.arange(30.0)
    newer = updated(model, step, change)
    assert_allclose(newer @ step, change, atol=1e-10)  # the secant condition
    assert_allclose(newer, newer.T, atol=1e-10)


def test_a_rational_step_goes_up_one_way_and_down_all_others():
    values, slopes = np.array([-2.0, 0.5, 3.0]), np.array([0.3, -0.2, 0.1])
    step = rational_step(values, slopes, up=[0])
    assert (step * slopes > 0).tolist() == [True, False, False]
    near = rational_step(values, 1e-6 * slopes, up=[0])
    assert_allclose(near, -1e-6 * slopes / values, rtol=1e-9)  # Newton's, near the end
    wrong = rational_step(np.array([2.0, -0.5]), np.array([0.1, 0.1]), up=[0])
    assert wrong[0] > 0 > wrong[1]  # curvature of the wrong sign does not turn it round


# --- the command ---------------------------------------------------------------------------------


@pytest.fixture
def argon(tmp_path, monkeypatch):
    """A model file and a guess, in a folder of their own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    fields = {"elements": (18,), "epsilon": 1.0, "sigma": 1.0, "cutoff": 20.0, "onset": 1.0}
    card = {
        "architecture": "LennardJones",
        "fields": {k: list(v) if isinstance(v, tuple) else v for k, v in fields.items()},
        "elements": [18],
        "cutoff": 20.0,
        "level_of_theory": "none",
        "name": "argon",
    }
    checkpoint.save(tmp_path / "argon.safetensors", card, {"params": {}})
    Atoms("Ar4", bent_rhombus()).write("guess.xyz")
    return ["guess.xyz", "--model", "argon.safetensors"]


def test_the_command_finds_the_saddle_and_both_ends(argon, capsys):
    assert main(["ts", *argon, "--irc", "--step", "0.4", "--json", "-"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["converged"] and found["n_imaginary"] == 1 and found["frequencies_cm1"][0] < 0
    assert_allclose(found["energy_eV"], rhombus_energy(), atol=1e-6)
    assert_allclose(found["irc_barriers_eV"], rhombus_energy() + 6, atol=1e-5)  # fmax 1e-4
    frames = read("guess_irc.xyz", ":")
    assert len(frames) == len(found["irc_energies_eV"]) + 2
    energies = [a.get_potential_energy() for a in frames]
    assert max(energies) == pytest.approx(found["energy_eV"], abs=1e-7)
    assert_allclose(read("guess_ts.xyz").positions, found["positions_A"], atol=1e-7)


def test_a_command_that_finds_no_saddle_is_4_and_writes_what_it_has(argon, capsys):
    assert main(["ts", *argon, "--steps", "2", "--irc"]) == 4
    err = capsys.readouterr().err
    assert "JM304" in err and "no reaction path" in err
    assert len(read("guess_ts.xyz")) == 4


def test_a_path_by_products_never_builds_the_hessian(argon, capsys, monkeypatch):
    def refused(at):
        raise AssertionError("the whole Hessian")

    monkeypatch.setattr(surface, "curvature", refused)
    assert main(["ts", *argon, "--irc", "--step", "0.4", "--products", "--json", "-"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert_allclose(found["irc_barriers_eV"], rhombus_energy() + 6, atol=1e-5)  # fmax 1e-4


def test_one_atom_is_refused(argon, capsys):
    Atoms("Ar").write("one.xyz")
    for extra in ([], ["--products"]):
        assert main(["ts", "one.xyz", *argon[1:], "--overwrite", *extra]) == 3
        assert "no motions but those of the whole" in capsys.readouterr().err


def test_a_path_that_fails_does_not_lose_the_saddle(argon, capsys):
    """The energy rises on a first step that is far too long."""
    assert main(["ts", *argon, "--irc", "--step", "40", "--json", "-"]) == 4
    said = capsys.readouterr()
    assert "rises" in said.err
    found = json.loads(said.out)
    assert found["converged"] and "irc_energies_eV" not in found


def test_modes_of_chosen_atoms_hold_the_others(argon, capsys):
    command = ["modes", *argon, "--no-relax", "--json", "-", "--ignore-imaginary-below", "500"]
    assert main([*command, "--atoms", "1-3"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["fixed_atoms"] == [0] and len(found["frequencies_cm1"]) == 6
    assert "rotation_entropy_eV_per_K" not in found
    assert found["gibbs_energy_eV"] == pytest.approx(
        found["internal_energy_eV"] - 298.15 * found["entropy_eV_per_K"]
    )
    assert main([*command, "--atoms", "1-4", "--overwrite"]) == 2
    assert "no atom 4" in capsys.readouterr().err


def test_an_isotope_changes_masses_and_a_concentration_the_pressure_and_nothing_else(argon, capsys):
    corners = np.array([[1, 1, 1], [1, -1, -1], [-1, 1, -1], [-1, -1, 1]])
    Atoms("Ar4", 2 ** (1 / 6) / np.sqrt(8) * corners).write("tetrahedron.xyz")
    found = []
    for extra in ([], ["--isotope", "0=40", "--isotope", "Ar=36"], ["--concentration", "1"]):
        command = ["modes", "tetrahedron.xyz", *argon[1:], "--no-relax", "--json", "-", *extra]
        assert main(command) == 0
        found.append(json.loads(capsys.readouterr().out))
    ratio = np.array(found[1]["frequencies_cm1"]) / found[0]["frequencies_cm1"]
    assert_allclose(ratio, np.sqrt(39.948 / 35.96754626), rtol=1e-9)  # rounding, degenerate
    assert [f["symmetry_number"] for f in found] == [12, 12, 12]
    assert found[0]["energy_eV"] == found[1]["energy_eV"]
    work = found[2]["gibbs_energy_eV"] - found[0]["gibbs_energy_eV"]
    assert_allclose(work, units.kB * 298.15 * np.log(24.78957), rtol=1e-6)  # R T mol/L in bar


@pytest.mark.slow
@pytest.mark.skipif("organic" not in pretrained.names(), reason="no packaged model 'organic'")
@pytest.mark.parametrize("products", [[], ["--products"]])
def test_ethane_eclipses_between_two_staggered_minima(tmp_path, monkeypatch, capsys, products):
    monkeypatch.chdir(tmp_path)
    ethane = molecule("C2H6")
    axis = ethane.positions[1] - ethane.positions[0]
    top = [i for i in range(2, 8) if ethane.get_distance(0, i) < 1.3]
    part = Atoms(positions=ethane.positions[top])
    part.rotate(50, axis, center=ethane.positions[0])
    ethane.positions[top] = part.positions
    ethane.write("eclipsed.xyz")
    assert main(["ts", "eclipsed.xyz", "--irc", "--json", "-", *products]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["n_imaginary"] == 1
    ends = found["irc_end_energies_eV"]
    assert_allclose(ends[0], ends[1], atol=1e-7)  # fmax² over the curvature
    assert 0.05 < found["irc_barriers_eV"][0] < 0.15  # experiment 0.126
    other = next(i for i in range(2, 8) if i not in top)
    angles = [
        abs(Atoms("C2H6", p).get_dihedral(top[0], 0, 1, other))
        for p in found["irc_end_positions_A"]
    ]
    assert_allclose(np.mod(angles, 120), 60, atol=0.5)  # staggered


@pytest.mark.slow
@pytest.mark.skipif("organic" not in pretrained.names(), reason="no packaged model 'organic'")
def test_ammonia_turns_inside_out_over_a_plane(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    ammonia = molecule("NH3")
    ammonia.positions[0, 2] -= 0.3
    ammonia.write("flat.xyz")
    assert main(["ts", "flat.xyz", "--irc", "--json", "-"]) == 0
    found = json.loads(capsys.readouterr().out)
    r = np.array(found["positions_A"])
    assert np.linalg.svd(r - r.mean(0))[1][2] < 1e-4 and found["n_imaginary"] == 1
    ends = found["irc_end_energies_eV"]
    assert_allclose(ends[0], ends[1], atol=1e-7)
