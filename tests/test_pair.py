"""Pair potentials against ASE and against their formulas."""

from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk
from numpy.testing import assert_allclose

import jaxmlip
from jaxmlip import units
from jaxmlip.cell_list import plan_list, search
from jaxmlip.errors import UsageError
from jaxmlip.images import edges_of
from jaxmlip.interfaces.ase import from_ase
from jaxmlip.models import ZBL, LennardJones, Morse
from jaxmlip.nn import pair_sums
from jaxmlip.nn.mutual import mutual_differences
from jaxmlip.system import concatenate, pad, strain


def curve(model, distances, numbers):
    """Energies of two atoms at each distance."""
    apply = jax.jit(model.apply)
    systems = [
        from_ase(Atoms(numbers, [[0, 0, 0], [0, 0, r]]), model.cutoff, capacity=1)
        for r in distances
    ]
    return np.array([apply({}, s)["energy"][0] for s in systems])


def test_truncated_and_shifted_lennard_jones_is_that_of_ase():
    from ase.calculators.lj import LennardJones as Reference

    atoms = bulk("Ar", a=5.3).repeat((2, 1, 1))
    atoms.rattle(0.1, seed=1)
    model = LennardJones(onset=1.0)
    out = jax.jit(jaxmlip.predict(model.apply))({}, from_ase(atoms, model.cutoff))
    atoms.calc = Reference(epsilon=model.epsilon, sigma=model.sigma, rc=model.cutoff)
    assert_allclose(out["energy"][0], atoms.get_potential_energy(), rtol=1e-12)
    assert_allclose(out["forces"], atoms.get_forces(), atol=1e-14)
    assert_allclose(out["stress"][0], atoms.get_stress(voigt=False), atol=1e-15)


def test_the_well_of_lennard_jones_and_of_morse():
    lj, morse = LennardJones(onset=0.5, cutoff=9.0), Morse(onset=0.5)
    assert_allclose(curve(lj, [3.4, 3.4 * 2 ** (1 / 6)], [18, 18]), [0, -lj.epsilon], atol=1e-15)
    assert_allclose(curve(morse, [morse.r0], [29, 29]), -morse.depth, rtol=1e-14)


def test_the_curve_is_exact_up_to_the_onset():
    model, r = Morse(onset=0.5), np.array([2.0, 3.0, 3.99])
    decay = np.exp(-model.a * (r - model.r0))
    assert_allclose(curve(model, r, [29, 29]), model.depth * (decay**2 - 2 * decay), rtol=1e-13)
    assert abs(curve(model, [5.0], [29, 29])[0]) < model.depth * 2 * np.exp(-model.a * 2.134)


@pytest.mark.parametrize("smoothness", [pytest.param(2, marks=pytest.mark.slow), 3])
def test_derivatives_are_continuous_at_the_onset(smoothness):
    model = LennardJones(onset=0.5, cutoff=8.0, smoothness=smoothness)
    system = from_ase(Atoms("Ar2", [[0, 0, 0], [0, 0, 1]]), model.cutoff)

    def energy(r):
        from dataclasses import replace

        positions = jax.numpy.zeros((2, 3)).at[1, 2].set(r)
        return model.apply({}, replace(system, positions=positions))["energy"][0]

    for _ in range(smoothness + 1):
        below, above = map(jax.jit(energy), (4.0 - 1e-7, 4.0 + 1e-7))
        assert_allclose(below, above, atol=1e-6 * max(abs(below), 1.0))
        energy = jax.grad(energy)


def test_zbl_is_bare_coulomb_at_contact():
    """phi(0) = 1; the slope -0.19 Z^... of the screening is first order in r / a, here 1e-4."""
    r = 1e-5
    system = from_ase(Atoms("CO", [[0, 0, 0], [0, 0, 1.0]]), 2.0)
    from dataclasses import replace

    system = replace(system, positions=np.array([[0, 0, 0], [0, 0, r]]))
    assert_allclose(ZBL().apply({}, system)["energy"], units.coulomb_constant * 48 / r, rtol=1e-3)


def test_zbl_has_the_published_screening():
    """Two carbon atoms at 0.5 Å, from the formula with a = 0.8854 bohr / (Z1^0.23 + Z2^0.23)."""
    a = 0.8854 * 0.529177 / (2 * 6**0.23)
    x = 0.5 / a
    phi = (
        0.1818 * np.exp(-3.2 * x)
        + 0.5099 * np.exp(-0.9423 * x)
        + 0.2802 * np.exp(-0.4028 * x)
        + 0.02817 * np.exp(-0.2016 * x)
    )
    # the published coefficients are rounded to three to four digits
    assert_allclose(curve(ZBL(), [0.5], [6, 6]), 14.39964 * 36 / 0.5 * phi, rtol=1e-3)


def test_parameters_are_taken_by_pair_of_elements():
    model = LennardJones((1, 8), epsilon=((0.1, 0.2), (0.2, 0.4)), sigma=2.0, onset=0.5)
    r = [2.0 * 2 ** (1 / 6)]
    for numbers, depth in [((1, 1), 0.1), ((1, 8), 0.2), ((8, 1), 0.2), ((8, 8), 0.4)]:
        assert_allclose(curve(model, r, numbers), -depth, rtol=1e-13)


def test_a_table_that_is_not_symmetric_is_refused():
    model = LennardJones((1, 8), epsilon=((0.1, 0.2), (0.3, 0.4)))
    with pytest.raises(UsageError, match="epsilon"):
        curve(model, [2.0], (1, 8))


def test_a_pair_potential_has_no_parameters():
    system = from_ase(Atoms("Ar"), 8.5)
    assert LennardJones().init(jax.random.key(0), system) == {}


def test_mutual_differences_have_the_derivatives_of_plain_ones():
    # a list of both directions, so every order and mode must agree with the scatter of plain
    # differences, also where only part of a derivative is taken further; a batch is one list
    rng = np.random.default_rng(0)
    points = rng.normal(size=(6, 3))
    senders = jnp.asarray([[j for j in range(6) if j != i] for i in range(6)])
    plain = lambda x, senders: x[:, None] - x[senders]

    def energy(difference, points, senders, width=1.0):
        axes = [difference(points[:, i], senders) for i in range(3)]
        return jnp.sum(jnp.exp(-width * sum(axis**2 for axis in axes)))

    def derivatives(difference, x, senders):
        of = partial(energy, difference, senders=senders)
        forward = lambda f: lambda x: jax.jvp(f, (x,), (jnp.cos(x),))[1]
        one = lambda x: jax.grad(jax.checkpoint(of))(x)[2, 1]  # of one atom, along one axis
        return {
            "first": jax.grad(of)(x),
            "second": jax.hessian(of)(x),
            "forward twice": forward(forward(of))(x),
            "of one force": jax.grad(one)(x),
            "third": jax.grad(forward(one))(x),
        }

    both = (mutual_differences, plain)
    ours, expected = (jax.jit(partial(derivatives, f))(points, senders) for f in both)
    for name, value in expected.items():
        assert_allclose(ours[name], value, atol=1e-12, err_msg=name)
    many = jnp.stack([points, 2 * points]), jnp.stack([senders, senders[:, ::-1]])
    slope = lambda difference: jax.vmap(jax.grad(partial(energy, difference)))
    assert_allclose(slope(mutual_differences)(*many), slope(plain)(*many), atol=1e-13)
    widths = jnp.array([0.5, 1.0, 2.0])  # an ensemble
    each = lambda f: jax.vmap(jax.grad(partial(energy, f)), (None, None, 0))(
        points, senders, widths
    )
    assert_allclose(each(mutual_differences), each(plain), atol=1e-13)


@pytest.mark.parametrize("at_once", [pytest.param(True, marks=pytest.mark.slow), False])
def test_a_structure_has_the_derivatives_of_the_sum_of_its_atoms(at_once, monkeypatch):
    # energies of atoms go the plain way, autodiff through all pairs; that of a structure does not
    if not at_once:
        monkeypatch.setattr(pair_sums, "BLOCK", 2**13)
    atoms = bulk("Ar", "fcc", 5.3).repeat(2)
    atoms.numbers[::3] = 10
    atoms.rattle(0.1, seed=0)
    system = from_ase(atoms, 5.0, dtype="float64")
    model = LennardJones((10, 18), ((0.01, 0.02), (0.02, 0.03)), 3.0, cutoff=5.0)
    u, v = np.random.default_rng(0).normal(size=(2, *system.positions.shape))

    def energy(name, x, epsilon):
        moved = strain(replace(system, positions=x), epsilon)
        return model.apply({}, moved)[name].sum()

    @partial(jax.jit, static_argnums=0)
    def derivatives(name, x, epsilon):
        slope = jax.grad(partial(energy, name), argnums=(0, 1))
        along = lambda x: jax.jvp(lambda x: slope(x, epsilon), (x,), (u,))[1]
        back = lambda x: jax.vjp(lambda x: slope(x, epsilon)[0], x)[1](v)[0]
        third = jax.grad(lambda x: (back(x) * u).sum())
        return energy(name, x, epsilon), slope(x, epsilon), along(x), third(x)

    point = jnp.asarray(system.positions), 0.01 * jnp.asarray(np.eye(3)[[1, 0, 2]])[None]
    found, expected = (jax.tree.leaves(derivatives(n, *point)) for n in ("energy", "energies"))
    for a, b in zip(found, expected, strict=True):
        assert_allclose(a, b, atol=1e-11 * float(jnp.abs(b).max()))


def test_energies_of_atoms_have_slopes_of_their_own():
    # the slope of one atom's energy is not antisymmetric in its pairs: it takes the plain way
    system = from_ase(bulk("Ar", "fcc", 5.3, cubic=True), 5.0, dtype="float64")
    model = LennardJones(cutoff=5.0)
    first = jax.jit(lambda r: model.apply({}, replace(system, positions=r))["energies"][0])
    numerical = [
        (first(system.positions + step) - first(system.positions - step)) / 2e-4
        for step in 1e-4 * np.eye(12).reshape(12, 4, 3)
    ]
    assert_allclose(jax.jit(jax.grad(first))(system.positions).reshape(-1), numerical, atol=1e-8)


def test_forces_add_up_to_zero_where_pairs_end_at_the_cutoff():
    # a truncated curve in float32, pairs at the cutoff within rounding: what i feels of j must be
    # what j feels of i, to the bit, or momentum would not be kept
    atoms = bulk("Ar", "fcc", 5.0, cubic=True).repeat(2)
    atoms.rattle(1e-6, seed=0)
    cutoff = 5.0 / np.sqrt(2)
    model = LennardJones(cutoff=cutoff, onset=1.0)
    system = from_ase(atoms, cutoff + 0.5, dtype="float32")
    forces = np.asarray(jax.jit(jaxmlip.forces(model.apply))({}, system), float)
    assert np.abs(forces).max() > 0.02  # of two opposite pairs of some atoms only one is cut
    assert_allclose(forces.sum(0), 0, atol=1e-6)  # eV/Å


def test_pairs_as_rows_of_a_table_of_images_have_the_derivatives_of_edges():
    # a dense batch of a triclinic crystal and a slab, some atoms far out of their cells
    crystal, slab = bulk("Ar", "fcc", 5.3).repeat(4), bulk("Ar", "fcc", 5.2, cubic=True).repeat(3)
    slab.pbc = [True, True, False]
    rng = np.random.default_rng(0)
    for atoms in (crystal, slab):
        atoms.rattle(0.1, seed=0)
        atoms.positions += (rng.integers(-3, 4, (len(atoms), 3)) * atoms.pbc) @ atoms.cell.array
    model = LennardJones(cutoff=7.0)
    batch = concatenate([from_ase(a, 0.1, dtype="float64") for a in (crystal, slab)])
    find = jax.jit(lambda plan, system: search(plan, system).edges, static_argnums=0)
    edges = find(plan_list(batch, 7.5), batch)
    assert len(edges.images.atoms) < edges.senders.size / 2
    assert edges_of(replace(edges.images, index=edges.images.index[:, :4])).images is None
    padded = pad(replace(batch, edges=edges), n_atoms=batch.n_atoms + 1)
    assert padded.edges.images is None  # its rows would be those of other atoms
    u = rng.normal(size=batch.positions.shape)

    @jax.jit
    def everything(edges):
        system = replace(batch, edges=edges)
        energy = lambda x: model.apply({}, replace(system, positions=x))["energy"].sum()
        curved = jax.jvp(jax.grad(energy), (jnp.asarray(batch.positions),), (u,))[1]
        out = jaxmlip.predict(model.apply)({}, system)
        return out["energy"], out["forces"], out["stress"], curved

    for a, b in zip(everything(edges), everything(replace(edges, images=None)), strict=True):
        # one sum, written twice: positions of some cells of 21 Å away lose two digits of sixteen
        assert_allclose(a, b, atol=1e-12 * np.abs(b).max())
