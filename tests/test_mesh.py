"""Particle-mesh Ewald against the Ewald sum: errors that were asked for, and all derivatives."""

from dataclasses import replace
from functools import cache, partial
from itertools import product

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose

from jaxmlip import units
from jaxmlip.electrostatics import coulomb, ewald
from jaxmlip.electrostatics.mesh import (
    gaussian,
    p3m,
    planning,
    pme,
    prolate,
    reciprocal,
    short_range,
    splines,
)
from jaxmlip.electrostatics.planning import density, pairs_within
from jaxmlip.errors import ResourceError, UsageError
from jaxmlip.neighbors import find_edges
from jaxmlip.system import System, cast, concatenate, pad, strain

CUTOFF = 6.0


def crystal(positions, cell, numbers, cutoff=CUTOFF, pbc=(True,) * 3):
    n = len(positions)
    return System(
        positions=np.array(positions, float),
        numbers=np.asarray(numbers, np.int32),
        graph=np.zeros(n, np.int32),
        cell=np.asarray(cell, float)[None],
        pbc=np.array([pbc]),
        charge=np.zeros(1),
        spin=np.ones(1),
        field=np.zeros((1, 3)),
        edges=find_edges(positions, np.asarray(cell, float), pbc, cutoff),
    )


def salt(cells, noise=0.25, cutoff=CUTOFF):
    """Hot rock salt, and its charges."""
    grid = np.stack(np.meshgrid(*[np.arange(2 * cells)] * 3, indexing="ij"), -1).reshape(-1, 3)
    charges = 1.0 - 2.0 * (grid.sum(1) % 2)
    moved = grid * 2.82 + np.random.default_rng(0).normal(0, noise, grid.shape)
    numbers = np.where(charges > 0, 11, 17)
    return crystal(moved, np.eye(3) * cells * 5.64, numbers, cutoff), charges


def water(cells, cutoff=CUTOFF):
    """Rigid molecules, turned at random."""
    rng, a = np.random.default_rng(1), 0.0334 ** (-1 / 3)
    grid = np.stack(np.meshgrid(*[np.arange(cells)] * 3, indexing="ij"), -1).reshape(-1, 3)
    arms = np.array([[0, 0, 0], [0.757, 0, 0.586], [-0.757, 0, 0.586]])
    turns = np.linalg.qr(rng.normal(size=(len(grid), 3, 3)))[0]
    places = (grid * a)[:, None] + np.einsum("mij,hj->mhi", turns, arms)
    numbers, charges = np.tile([8, 1, 1], len(grid)), np.tile([-0.834, 0.417, 0.417], len(grid))
    return crystal(places.reshape(-1, 3), np.eye(3) * cells * a, numbers, cutoff), charges


def scattered(n, cell, seed=2, apart=1.8, cutoff=CUTOFF):
    """Charges of either sign (+1, -1, and one of them +2) anywhere, but not too close."""
    rng, kept = np.random.default_rng(seed), np.zeros((0, 3))
    while len(kept) < n:
        new = rng.random(3)
        offset = (kept - new - np.round(kept - new)) @ cell
        if (np.linalg.norm(offset, axis=1) > apart).all():
            kept = np.concatenate([kept, new[None]])
    charges = 1.0 - 2.0 * (np.arange(n) % 2)
    charges[0] = 2.0
    return crystal(kept @ cell, cell, np.full(n, 18), cutoff), charges


def in_vacuum(system, charges, cell):
    """The same atoms, not their images, in a larger cell."""
    return crystal(system.positions, cell, system.numbers), charges


SKEWED = np.array([[9.0, 0.3, 0.0], [2.5, 8.0, -0.4], [-1.0, 1.5, 10.0]])
LEFT_HANDED = SKEWED[[1, 0, 2]] * [1.0, 1.1, 0.9]


@partial(jax.jit, static_argnums=0)
def slopes(solver, system, charges, dipoles=None):
    """Energies, and derivatives with respect to positions, charges, strain (and dipoles)."""

    def total(r, q, epsilon, mu):
        energies = solver(strain(replace(system, positions=r), epsilon), q, mu)
        return energies.sum(), energies

    none = jnp.zeros((system.n_graphs, 3, 3))
    arguments = jnp.asarray(system.positions), jnp.asarray(charges), none, dipoles
    wanted = (0, 1, 2) if dipoles is None else (0, 1, 2, 3)
    return jax.grad(total, wanted, has_aux=True)(*arguments)


def error(found, exact):
    return np.linalg.norm(np.asarray(found) - exact) / np.linalg.norm(exact)


# --- the parts ---------------------------------------------------------------------------------


@pytest.mark.parametrize("split", [prolate, gaussian])
def test_short_and_smooth_parts_add_up_to_coulomb(split):
    # the Fourier transform of what the short part leaves of 1/r is the tabulated spectrum:
    # k² / 4 pi x transform = 1 - k x integral of r sin(k r) short(r)
    parts = split(9.0 if split is prolate else 3.6, CUTOFF, accuracy=1e-9)
    r, weight = np.polynomial.legendre.leggauss(80)
    r, weight = 0.5 * CUTOFF * (r + 1), 0.5 * CUTOFF * weight
    short, slope = parts.short(jnp.asarray(r**2))
    k = np.array([0.2, 0.7, 1.4, 2.0])
    short_waves = k * ((r * weight * short) @ np.sin(np.outer(r, k)))
    # Gaussians are cut at erfc(3.6) = 4e-7; tables hold 1e-9 of values of order one
    assert_allclose(parts.transform(jnp.asarray(k**2)), 1 - short_waves, atol=4e-6)
    assert_allclose(4 * np.pi * (weight * r**2) @ short, parts.volume, rtol=2e-5)
    tangent = jax.jvp(lambda x: parts.short(x)[0], (jnp.asarray(r**2),), (jnp.ones_like(r),))[1]
    assert_allclose(slope, tangent, rtol=1e-10)
    step = 1e-4
    near = [parts.at_zero + parts.curvature * x for x in (step, 2 * step)]
    bare = 1 / np.sqrt([step, 2 * step])
    assert_allclose(bare - parts.short(jnp.array([step, 2 * step]))[0], near, rtol=1e-6)
    assert parts.short(jnp.asarray((1.01 * CUTOFF) ** 2)) == (0.0, 0.0)


@pytest.mark.parametrize("order", [4, 6, 8])
def test_splines_share_out_the_charge_and_its_first_moment(order):
    u = jnp.linspace(0.0, 0.999, 7)
    shares = splines.weights(u, order)
    assert_allclose(shares.sum(-1), 1.0, rtol=1e-14)
    centre = shares @ (np.arange(order) - order + 1)
    assert_allclose(centre - u, centre[0], atol=1e-13)  # follows the charge
    for factors in (splines.smooth_factors, splines.optimal_factors):
        assert_allclose(factors(30, order)[0], 1.0, rtol=1e-12)


# --- forces, virial, potential, padding, batches -----------------------------------------------


def batch():
    """Two crystals of different shape and handedness, one charged, and empty room."""
    first, q1 = scattered(24, LEFT_HANDED)
    second, q2 = scattered(30, SKEWED * 1.1, seed=3)
    system = concatenate([first, second])
    n = system.n_atoms
    charges = np.concatenate([q1, q2 - q2.mean(), np.full(6, np.nan)])
    return pad(system, n_atoms=n + 6, n_graphs=3), charges, (np.arange(24), np.arange(24, n))


def test_a_batch_of_skewed_left_handed_and_charged_cells():
    tolerance, (system, charges, atoms) = 1e-5, batch()
    solver = p3m(system, CUTOFF, tolerance, charges=charges)
    exact = ewald(system, CUTOFF, 1e-10)
    (dr, dq, de), energy = slopes(solver, system, charges)
    (dr_exact, dq_exact, de_exact), energy_exact = slopes(exact, system, charges)
    for g, members in enumerate(atoms):
        assert error(dr[members], dr_exact[members]) < 2 * tolerance
        assert error(dq[members], dq_exact[members]) < tolerance
        assert error(de[g], de_exact[g]) < 10 * tolerance
        assert error(energy[g], energy_exact[g]) < tolerance
    assert energy[2] == 0
    assert not np.any(dr[-6:])
    compiled = slopes._cache_size()
    slopes(solver, replace(system, positions=system.positions + 0.1), charges)
    assert slopes._cache_size() == compiled


@pytest.mark.slow
def test_dipoles_and_an_excluded_core():
    tolerance, (system, charges) = 1e-5, scattered(24, SKEWED)
    dipoles = np.random.default_rng(4).normal(0, 0.3, (24, 3))
    sources = {"charges": charges, "dipoles": dipoles}
    solver = pme(system, CUTOFF, tolerance, order=8, exclude=3.0, **sources)
    (dr, dq, de, dmu), energy = slopes(solver, system, charges, dipoles)
    exact = ewald(system, CUTOFF, 1e-10, exclude=3.0)
    (dr_exact, dq_exact, de_exact, dmu_exact), energy_exact = slopes(
        exact, system, charges, dipoles
    )
    assert error(dr, dr_exact) < 2 * tolerance
    assert error(dmu, dmu_exact) < 2 * tolerance
    assert error(dq, dq_exact) < 2 * tolerance
    assert error(de, de_exact) < 2 * tolerance
    assert error(energy, energy_exact) < 2 * tolerance


@pytest.mark.slow
def test_energies_are_smooth_under_strain():
    system, charges = scattered(12, SKEWED)
    solver = pme(system, CUTOFF, 1e-4, charges=charges)

    def energy(x):
        shear = jnp.zeros((1, 3, 3)).at[0, 0, 1].set(x).at[0, 2, 2].set(2 * x)
        return solver(strain(system, shear), charges)[0]

    x = jnp.linspace(-0.03, 0.03, 61)
    values = jax.jit(lambda x: jax.lax.map(energy, x))(x)
    # a k vector or a mesh size that came or went would show as a step of the size of the error
    fit = np.polynomial.Polynomial.fit(x, values, 9)
    assert np.abs(fit(np.asarray(x)) - values).max() < 1e-7 * np.abs(values).max()


@pytest.fixture
def small_blocks(monkeypatch):
    """-> a function that from then on has pairs and atoms of 54 charges summed in many blocks."""

    def set_them():
        monkeypatch.setattr(short_range, "WHOLE", 700)
        monkeypatch.setattr(short_range, "BLOCK", 700)
        monkeypatch.setattr(reciprocal, "BLOCK", 11 * 4**3)
        monkeypatch.setattr(reciprocal, "EDGE", 2)

    return set_them


def test_sums_over_blocks_of_atoms_are_sums_over_all_and_keep_nan_to_its_structure(small_blocks):
    system, charges, _ = batch()
    charges = jnp.asarray(np.nan_to_num(charges))
    solver = pme(system, CUTOFF, 1e-2, charges=charges, order=4)
    system = jax.tree.map(jnp.asarray, system)
    terms = partial(short_range._slopes, solver.short, True)

    def parts(system):
        cells = reciprocal.reciprocal_cell(system.cell)[0]
        mesh = reciprocal.spread(solver, system, cells, charges)
        return short_range._sums(terms, system, charges), mesh

    whole = jax.jit(parts)(system)
    small_blocks()
    blocks = jax.jit(lambda s: parts(s))
    for a, b in zip(blocks(system), whole, strict=True):
        assert_allclose(a, b, atol=1e-13 * np.abs(b).max())
    lost = replace(system, positions=system.positions.at[3].set(jnp.nan))  # of the first
    (sums, mesh), others = blocks(lost), np.asarray(system.graph) > 0
    assert_allclose(sums[others], whole[0][others], atol=1e-13 * np.abs(whole[0]).max())
    assert_allclose(mesh[1], whole[1][1], atol=1e-13)
    assert np.isnan(sums[3]).any() and np.isnan(mesh[0]).any()


@pytest.mark.slow
def test_derivatives_of_blocks_of_atoms_are_those_of_all(small_blocks):
    system, charges, _ = batch()
    solver = pme(system, CUTOFF, 1e-2, charges=charges, order=4)
    direction = np.random.default_rng(7).normal(size=system.positions.shape)

    def found():
        total = lambda r, e: solver(strain(replace(system, positions=r), e), charges).sum()
        slope = jax.value_and_grad(total, (0, 1))
        point = jnp.asarray(system.positions), jnp.zeros((3, 3, 3))
        return jax.jit(lambda r, e: jax.jvp(slope, (r, e), (direction, e + 0.1)))(*point)

    whole = found()
    small_blocks()
    for a, b in zip(jax.tree.leaves(found()), jax.tree.leaves(whole), strict=True):
        assert_allclose(a, b, atol=1e-11 * np.abs(b).max())


# --- second and third derivatives --------------------------------------------------------------


@partial(jax.jit, static_argnums=0)
def curvature(solver, system, charges, direction):
    energy = lambda r: solver(replace(system, positions=r), charges).sum()
    return jax.jvp(jax.grad(energy), (jnp.asarray(system.positions),), (direction,))[1]


@pytest.mark.slow
@pytest.mark.parametrize("order", [6, 8])
def test_second_derivatives_are_those_of_ewald(order):
    # a derivative weighs short waves of the error more: 5.6 times here, ten are promised
    tolerance, (system, charges) = 1e-5, scattered(24, SKEWED)
    solver = p3m(system, CUTOFF, tolerance, charges=charges, order=order, exclude=2.5)
    direction = np.random.default_rng(5).normal(size=(24, 3))
    found = curvature(solver, system, charges, direction)
    exact = curvature(ewald(system, CUTOFF, 1e-10, exclude=2.5), system, charges, direction)
    assert error(found, exact) < 10 * tolerance


@pytest.mark.slow
@pytest.mark.parametrize("order, tolerance", [(6, 1e-3), (8, 1e-4)])
@pytest.mark.parametrize("kind", ["skewed", "salt", "water"])
def test_second_derivatives_meet_a_tolerance_that_is_asked_for_them(kind, order, tolerance):
    of = {"skewed": partial(scattered, 24, SKEWED), "salt": partial(salt, 2)}
    system, charges = of.get(kind, partial(water, 4))()
    direction = np.random.default_rng(5).normal(size=system.positions.shape)
    plan = partial(pme, system, CUTOFF, tolerance, charges=charges, order=order)
    found = lambda solver: curvature(solver, system, charges, direction)
    exact = found(ewald(system, CUTOFF, 1e-9))
    assert 0.05 < error(found(plan(derivatives=2)), exact) / tolerance < 2


def test_hessians_ask_for_a_finer_mesh_and_forces_do_not():
    system, charges = salt(2)
    plan = partial(pme, system, CUTOFF, 1e-3, charges=charges, order=6)
    assert plan(derivatives=1) == plan()
    assert np.prod(plan(derivatives=2).shape) > np.prod(plan().shape)
    with pytest.raises(UsageError, match="must be 1 or 2"):
        plan(derivatives=3)


@pytest.mark.slow
def test_third_derivatives_are_slopes_of_second_ones():
    system, charges = scattered(24, SKEWED)
    solver = pme(system, CUTOFF, 1e-5, charges=charges, order=8)
    u, v = np.random.default_rng(6).normal(size=(2, 24, 3))
    energy = lambda r: solver(replace(system, positions=r), charges).sum()
    second = jax.jit(lambda r: jax.jvp(jax.grad(energy), (r,), (u,))[1])
    r, step = jnp.asarray(system.positions), 1e-4
    third = jax.jit(lambda r: jax.jvp(second, (r,), (v,))[1])(r)
    slope = (second(r + step * v) - second(r - step * v)) / (2 * step)
    assert error(third, slope) < 1e-6  # central differences: step² times fifth derivatives


@pytest.mark.slow
def test_forward_and_reverse_derivatives_of_the_edges_agree():
    system, charges = scattered(12, SKEWED)
    solver = pme(system, CUTOFF, 1e-4, charges=charges)

    def energy(r, q, epsilon):
        return solver(strain(replace(system, positions=r), epsilon), q).sum()

    point = jnp.asarray(system.positions), jnp.asarray(charges), jnp.zeros((1, 3, 3))
    forward = jax.jit(jax.jacfwd(jax.grad(energy, (0, 1, 2)), (0, 1, 2)))(*point)
    reverse = jax.jit(jax.jacrev(jax.grad(energy, (0, 1, 2)), (0, 1, 2)))(*point)
    for a, b in zip(jax.tree.leaves(forward), jax.tree.leaves(reverse), strict=True):
        assert_allclose(a, b, atol=1e-9 * np.abs(b).max())


# --- precision ---------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("cells", [3, 11])  # 216 and 10 648 ions
def test_float32_forces_are_those_of_float64(cells):
    system, charges = salt(cells)
    solver = pme(system, CUTOFF, 1e-5, charges=charges)
    (exact, *_), _ = slopes(solver, system, charges)
    (found, *_), _ = slopes(solver, cast(system, jnp.float32), charges.astype(np.float32))
    assert found.dtype == jnp.float32
    assert error(found, exact) < 1e-5


# --- the planner -------------------------------------------------------------------------------

SYSTEMS = {
    "salt": lambda: salt(3),
    "water": lambda: water(5),
    "random": lambda: scattered(200, np.eye(3) * 17.0),
    "cluster": lambda: in_vacuum(*salt(2), np.eye(3) * 40.0),
    "slab": lambda: in_vacuum(*water(4), np.diag([12.42, 12.42, 50.0])),
}


@cache
def charged(kind):
    """A system, its charges, and the slopes of a sum much closer than any that is asked for."""
    system, charges = SYSTEMS[kind]()
    exact = ewald(system, CUTOFF, 1e-9)
    return system, charges, slope(exact, jnp.asarray(system.positions), system, charges)


@partial(jax.jit, static_argnums=0)
def slope(solver, r, system, charges):
    return jax.grad(lambda r: solver(replace(system, positions=r), charges).sum())(r)


def met(kind, solver_of, tolerance):
    system, charges, exact = charged(kind)
    solver = solver_of(system, CUTOFF, tolerance, charges=charges)
    return error(slope(solver, jnp.asarray(system.positions), system, charges), exact) / tolerance


@pytest.mark.slow
@pytest.mark.parametrize("tolerance", [1e-3, 1e-4, 1e-5, 1e-6])
@pytest.mark.parametrize("solver_of", [pme, p3m])
@pytest.mark.parametrize("kind", list(SYSTEMS))
def test_every_error_that_is_asked_for_is_met(kind, solver_of, tolerance):
    assert 0.05 < met(kind, solver_of, tolerance) < 2


DIPOLES = [(pme, prolate, 6), (p3m, prolate, 8), (p3m, prolate, 4), (pme, gaussian, 6)]
DIPOLES += [(p3m, gaussian, 8), (pme, gaussian, 4)]


@pytest.mark.slow
@pytest.mark.parametrize("charged", [1.0, 0.0])
def test_errors_that_are_asked_for_are_met_with_dipoles(charged):
    """Hot rock salt with dipoles of 0.5 e Å, and those dipoles alone."""
    system, charges = salt(2)
    charges, dipoles = charged * charges, np.random.default_rng(8).normal(0, 0.3, (64, 3))
    r = jnp.asarray(system.positions)
    forces = lambda solver: jax.grad(
        lambda r: solver(replace(system, positions=r), charges, dipoles).sum()
    )(r)
    exact = forces(ewald(system, CUTOFF, 1e-10))
    given = {"charges": charges, "dipoles": dipoles}
    for (solver_of, split, order), tolerance in product(DIPOLES, (1e-2, 1e-3, 1e-4)):
        try:
            solver = solver_of(system, CUTOFF, tolerance, **given, split=split, order=order)
        except ResourceError:  # no mesh is fine enough, and it says so
            assert tolerance < {4: 1e-2, 6: 1e-3, 8: 1e-4}[order]
            continue
        assert 0.05 < error(forces(solver), exact) / tolerance < 1.5


def test_the_force_that_errors_are_relative_to_is_that_of_charges_and_dipoles():
    system, charges = scattered(6, np.eye(3) * 30.0)
    dipoles = np.random.default_rng(8).normal(size=(6, 3))
    r = np.asarray(system.positions)
    near = crystal(r[:2] - r[0], np.eye(3) * 60.0, [18, 18], cutoff=59.0 / 2)
    q, mu, cutoff = charges[:2], dipoles[:2], 1e9  # nothing fades
    pairs = pairs_within(near, cutoff)
    of = lambda x: planning._force(pairs, np.arange(2), q, x, cutoff)
    (exact, *_), _ = slopes(coulomb(), replace(near, pbc=np.zeros((1, 3), bool)), q, mu)
    constant = units.coulomb_constant
    expected = np.sqrt((np.asarray(exact) ** 2).sum(1).mean()) / constant
    assert_allclose(of(mu), expected, rtol=1e-10)
    assert abs(of(0 * mu) / expected - 1) > 0.01


def test_dipoles_are_planned_for_with_a_finer_mesh():
    system, charges = salt(2)
    dipoles = np.full((64, 3), 0.3)
    plan = partial(pme, system, CUTOFF, 1e-3, charges=charges, order=6)
    assert np.prod(plan(dipoles=dipoles).shape) > np.prod(plan().shape)
    assert plan(dipoles=0 * dipoles) == plan()
    assert plan(dipoles=0.5).shape == plan(dipoles=dipoles).shape


def test_tighter_or_larger_costs_more_points():
    system, charges = salt(2)
    plans = [pme(system, CUTOFF, 10.0**-n, charges=charges, order=8) for n in range(3, 7)]
    points = [np.prod(p.shape) for p in plans]
    assert points == sorted(points) and points[0] < points[-1]
    assert all(p.error <= 10.0**-n for n, p in zip(range(3, 7), plans, strict=True))
    coarse = pme(system, CUTOFF, 1e-4, charges=charges, split=gaussian, order=8)
    assert np.prod(plans[1].shape) < np.prod(coarse.shape)
    assert all(n % p for n in plans[-1].shape for p in (11, 13, 17, 19))
    assert hash(plans[0]) == hash(pme(system, CUTOFF, 1e-3, charges=charges, order=8))


def test_vacuum_thins_out_no_errors():
    """The density that errors go with is that around the atoms, in dense cells that of the cell."""
    system, charges = salt(2)
    plan = lambda s: planning.structures(s, CUTOFF, charges, "pme")[0]
    boxes = [plan(in_vacuum(system, charges, np.eye(3) * a)[0]) for a in (25.0, 100.0)]
    assert boxes[0].pair == boxes[1].pair > 0.7 * plan(system).pair
    for kind in ("salt", "water", "random"):
        system, charges = SYSTEMS[kind]()
        n, volume, pairs = (
            system.n_atoms,
            np.linalg.det(system.cell[0]),
            pairs_within(system, CUTOFF),
        )
        assert_allclose(density(pairs, np.arange(n), np.nan, CUTOFF), n / volume, rtol=0.1)


def test_guessed_charges_are_neutral_and_alternate():
    assert_allclose(planning.guess_charges(np.array([8, 1, 1, 0])), [-4 / 3, 2 / 3, 2 / 3, 0])
    assert_allclose(planning.guess_charges(np.array([11, 17])), [1, -1])


def test_a_plan_for_a_structure_does_not_depend_on_the_others_of_its_batch():
    halite, _ = salt(1)
    halite = replace(halite, numbers=np.where(np.arange(8) % 2, 17, 11))
    periclase = replace(halite, numbers=np.where(np.arange(8) % 2, 8, 12))
    plan = lambda batch: planning.structures(batch, CUTOFF, None, "pme")
    (alone,), (beside, _) = plan(halite), plan(concatenate([halite, periclase]))
    assert_allclose([beside.pair, beside.self], [alone.pair, alone.self])


def test_what_a_mesh_cannot_do_is_refused():
    system, charges = salt(1)
    slab = replace(system, pbc=np.array([[True, True, False]]))
    bad = [
        (slab, CUTOFF, 1e-4, {}),
        (replace(system, edges=None), CUTOFF, 1e-4, {}),
        (system, 2 * CUTOFF, 1e-4, {}),
        (system, CUTOFF, 1.0, {}),
        (system, CUTOFF, 1e-4, {"order": 5}),
        (system, CUTOFF, 1e-4, {"exclude": 2 * CUTOFF}),
        (system, CUTOFF, 1e-4, {"split": lambda c, cutoff, accuracy: prolate(c, cutoff)}),
    ]
    for given, cutoff, tolerance, options in bad:
        with pytest.raises(UsageError):
            pme(given, cutoff, tolerance, **options)
    with pytest.raises(ResourceError):
        pme(system, CUTOFF, 1e-8, order=4)
    with pytest.raises(UsageError):
        jax.jit(lambda s: pme(s, CUTOFF)(s, charges))(system)
    with pytest.raises(UsageError, match="wavevector"):
        pme(system, CUTOFF, 1e-3)(replace(system, wave=object()), charges)
