"""System: the doors agree in both layouts, and padding, batching and strain keep their laws."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from structures import STRUCTURES, ethanol, toy, triclinic

import jaxmlip
from jaxmlip.errors import DataError, PrecisionError
from jaxmlip.interfaces.ase import from_ase, to_ase
from jaxmlip.system import (
    FAR,
    concatenate,
    edge_vectors,
    ladder,
    pad,
    strain,
    sum_atoms,
    sum_edges,
    sum_energies,
    supercell,
    to_edges,
)

TOY = toy()


def find(system, cutoff=4.0):
    return from_ase(to_ase(system)[0], cutoff)


@pytest.mark.parametrize("name", STRUCTURES)
def test_flat_and_per_receiver_edges_sum_to_the_same(name):
    atoms = STRUCTURES[name]()
    rows, flat = from_ase(atoms, 4.0), from_ase(atoms, 4.0, flat=True)
    for system in (rows, flat):
        system.positions.setflags(write=False)
    sums = []
    for system in (rows, flat):
        v = edge_vectors(system)
        h = to_edges(system, jnp.asarray(system.numbers, float))
        plain = sum_edges(system, v * h[..., None])
        product = sum_edges(system, (v * h[..., None])[..., None, :], v[..., None, :])
        sums.append((plain, product))
    assert_allclose(sums[0][0], sums[1][0], atol=1e-11)  # order of summation only
    assert_allclose(sums[0][1], sums[1][1], atol=1e-10)


def test_an_edge_points_from_sender_to_receiver_as_ase_says():
    from ase.neighborlist import neighbor_list

    atoms = triclinic()
    i, j, d = neighbor_list("ijD", atoms, 3.0)
    expected = np.zeros((4, 4, 3))
    np.add.at(expected, (i, j), d)
    system = from_ase(atoms, 3.0, flat=True)
    found = np.zeros((4, 4, 3))
    mask = system.edges.mask
    np.add.at(
        found,
        (system.edges.senders[mask], system.edges.receivers[mask]),
        np.asarray(edge_vectors(system))[mask],
    )
    assert_allclose(found, expected, atol=1e-12)


def test_padded_edges_point_far_away_and_have_no_gradient():
    system = pad(from_ase(ethanol(), 4.0), n_atoms=12, n_neighbors=16)
    vectors = edge_vectors(system)
    assert (np.asarray(vectors)[~system.edges.mask] == FAR).all()
    norm = lambda r: jnp.linalg.norm(edge_vectors(replace(system, positions=r)), axis=-1).sum()
    gradient = jax.grad(norm)(jnp.asarray(system.positions))
    assert np.isfinite(gradient).all() and (np.asarray(gradient)[9:] == 0).all()


@pytest.mark.parametrize("flat", [False, True])
def test_padding_and_batch_mates_change_nothing(flat):
    one, two = from_ase(ethanol(), 4.0, flat=flat), from_ase(triclinic(), 4.0, flat=flat)
    batch = concatenate([one, two])
    grow = dict(n_edges=batch.edges.senders.size + 7) if flat else dict(n_neighbors=60)
    batch = pad(batch, n_atoms=20, n_graphs=4, **grow)
    predict = jax.jit(jaxmlip.predict(TOY.apply))
    alone = [predict({}, s) for s in (one, two)]
    together = predict({}, batch)
    for g, out in enumerate(alone):
        rows = slice(0, 9) if g == 0 else slice(9, 13)
        assert_allclose(together["energy"][g], out["energy"][0], rtol=1e-13)
        assert_allclose(together["forces"][rows], out["forces"], atol=1e-13)
        assert_allclose(together["dipole"][g], out["dipole"][0], atol=1e-13)
    assert_allclose(together["stress"][1], alone[1]["stress"][0], atol=1e-13)
    assert (np.asarray(together["forces"])[13:] == 0).all()
    assert (np.asarray(together["energy"])[2:] == 0).all()


def test_a_supercell_has_the_energy_of_its_copies():
    atoms = triclinic()
    one = from_ase(atoms, 4.0)
    many = find(supercell(one, (2, 1, 3)))
    assert_allclose(TOY.apply({}, many)["energy"], 6 * TOY.apply({}, one)["energy"], rtol=1e-12)
    from ase.build import make_supercell

    reference = make_supercell(atoms, np.diag([2, 1, 3]))
    assert_allclose(
        TOY.apply({}, many)["energy"], TOY.apply({}, from_ase(reference, 4.0))["energy"], rtol=1e-12
    )


def test_open_axes_cannot_be_repeated():
    with pytest.raises(ValueError, match="open axes"):
        supercell(from_ase(ethanol(), None), (2, 1, 1))


def test_strain_moves_atoms_and_cell_alike():
    system = from_ase(triclinic(), None)
    epsilon = np.array([[[0.01, 0.02, 0.0], [0.02, -0.03, 0.01], [0.0, 0.01, 0.02]]])
    moved = strain(system, epsilon)
    scaled = np.linalg.solve(system.cell[0].T, system.positions.T)
    assert_allclose(
        np.linalg.solve(np.asarray(moved.cell[0]).T, np.asarray(moved.positions).T),
        scaled,
        atol=1e-12,
    )


def test_sizes_come_from_a_ladder():
    sizes = [ladder(n) for n in range(1, 1000)]
    assert all(s >= n for n, s in enumerate(sizes, 1))
    assert max(s / n for n, s in enumerate(sizes, 1)) <= 1.5
    assert len(set(sizes)) < 32


def test_what_is_larger_than_the_capacity_is_refused_not_clipped():
    with pytest.raises(DataError, match="capacity is 3"):
        from_ase(ethanol(), 4.0, capacity=3)


def test_padding_cannot_shrink():
    with pytest.raises(ValueError, match="cannot pad 9 atoms"):
        pad(from_ase(ethanol(), 4.0), n_atoms=8)
    with pytest.raises(ValueError, match="cannot pad edges"):
        pad(from_ase(ethanol(), 4.0), n_neighbors=2)
    with pytest.raises(ValueError, match="cannot pad edges"):
        pad(from_ase(ethanol(), 4.0, flat=True), n_edges=10)


@pytest.mark.parametrize("x64", [True, False])
def test_one_broken_structure_does_not_break_its_batch_mates(x64):
    with jax.enable_x64(x64):
        system = concatenate([from_ase(ethanol(), 4.0), from_ase(triclinic(), 4.0)])
        energies = jnp.ones(13).at[2].set(jnp.nan)
        found = sum_energies(system, energies)
        assert np.isnan(found[0]) and found[1] == 4.0
        slope = jax.grad(lambda e: sum_energies(system, e)[1])(energies)
        assert_array_equal(slope[9:], 1.0)
        infinite = sum_atoms(system, jnp.ones((13, 3)).at[12, 1].set(jnp.inf))
        assert not np.isfinite(infinite[1, 1]) and np.isfinite(infinite).sum() == 5


def test_a_slope_that_is_nan_stays_in_its_structure():
    system = concatenate([from_ase(ethanol(), 4.0), from_ase(triclinic(), 4.0)])
    # the root of a negative sum has neither value nor slope
    root = lambda values: jnp.sqrt(sum_atoms(system, values)).sum()
    slope = jax.grad(root)(jnp.where(jnp.arange(13) < 9, -1.0, 1.0))
    assert np.isnan(slope[:9]).all()
    assert_array_equal(slope[9:], 0.25)


@pytest.mark.parametrize("n_graphs", [1, 3])
def test_energies_of_many_atoms_sum_safely_in_float32(n_graphs):
    rng = np.random.default_rng(0)
    energies = rng.normal(-1000.0, 1.0, 6000).astype(np.float32)
    one = from_ase(ethanol(), None)
    system = replace(
        one,
        positions=np.zeros((6000, 3), np.float32),
        numbers=np.ones(6000, int),
        graph=np.sort(np.arange(6000) % n_graphs),
        cell=np.tile(one.cell, (n_graphs, 1, 1)),
    )
    exact = [energies[system.graph == g].astype(float).sum() for g in range(n_graphs)]
    with jax.enable_x64(False):
        found = sum_energies(system, jnp.asarray(energies))
        assert found.dtype == np.float32
        plain = sum_atoms(system, jnp.asarray(energies))
    # half a unit in the last place of a float32 of this size, and the rounding of the remainders
    assert_allclose(found, exact, rtol=1.5 * np.finfo(np.float32).eps)
    assert (
        np.abs(np.asarray(found, float) - exact).max()
        <= np.abs(np.asarray(plain, float) - exact).max()
    )


def test_float64_without_x64_is_refused():
    with jax.enable_x64(False), pytest.raises(PrecisionError, match="jax_enable_x64"):
        jaxmlip.cast({"a": np.ones(2, np.float32)}, np.float64)


def test_cast_leaves_integers_alone():
    system = jaxmlip.cast(from_ase(ethanol(), 4.0), jnp.float32)
    assert system.positions.dtype == np.float32 and system.cell.dtype == np.float32
    assert_array_equal(system.numbers, ethanol().numbers)


def test_one_compilation_for_each_padded_shape():
    traces = []

    @jax.jit
    def energy(system):
        traces.append(1)
        return TOY.apply({}, system)["energy"]

    for n in range(4):
        atoms = ethanol()
        atoms.rattle(0.05, seed=n)
        energy(pad(from_ase(atoms, 4.0), n_atoms=12, n_neighbors=12))
    assert len(traces) == 1
    energy(pad(from_ase(ethanol(), 4.0), n_atoms=13, n_neighbors=12))
    assert len(traces) == 2
