"""Neighbour search finds what a brute-force sum over images finds, in any cell."""

import numpy as np
import pytest
from ase.build import bulk
from structures import STRUCTURES

from jaxmlip.errors import UsageError
from jaxmlip.neighbors import find_edges, neighbor_pairs, width


def brute_force(atoms, cutoff):
    cell = np.asarray(atoms.cell.complete())
    reach = np.where(
        atoms.pbc, np.ceil(cutoff * np.linalg.norm(np.linalg.inv(cell), axis=0)) + 1, 0
    )
    ranges = [np.arange(-n, n + 1) for n in reach.astype(int)]
    shifts = np.stack(np.meshgrid(*ranges, indexing="ij"), -1).reshape(-1, 3)
    found = set()
    for i, a in enumerate(atoms.positions):
        for j, b in enumerate(atoms.positions):
            d = np.linalg.norm(b + shifts @ cell - a, axis=1)
            hits = shifts[(d < cutoff) & ((i != j) | shifts.any(1))]
            found |= {(i, j, *map(int, s)) for s in hits}
    return found


@pytest.mark.parametrize("cutoff", [2.7, 6.1])
@pytest.mark.parametrize("name", STRUCTURES)
def test_all_images_are_found(name, cutoff):
    atoms = STRUCTURES[name]()
    i, j, s = neighbor_pairs(atoms.positions, atoms.cell.complete(), atoms.pbc, cutoff)
    found = [
        (a, b, *map(int, shift)) for a, b, shift in zip(i.tolist(), j.tolist(), s, strict=True)
    ]
    assert len(found) == len(set(found))
    assert set(found) == brute_force(atoms, cutoff)


@pytest.mark.parametrize("n", [1, 2, 5])
def test_beyond_the_size_of_a_molecule_the_cutoff_changes_and_costs_nothing(n):
    """Every pair, in the same order; a search that grew with the cutoff would not end at 1e6 Å."""
    positions = np.random.default_rng(n).normal(size=(n, 3)) * 3 + 50
    whole = neighbor_pairs(positions, np.eye(3), False, 40.0)
    assert len(whole[0]) == n * (n - 1)
    for cutoff in (1e3, 1e6):
        found = neighbor_pairs(positions, np.eye(3), False, cutoff)
        for a, b in zip(found, whole, strict=True):
            np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("cutoff", [0.0, -5.0, np.nan, np.inf])
def test_a_cutoff_that_is_no_length_is_refused(cutoff):
    with pytest.raises(UsageError, match=f"the cutoff is {cutoff} Å"):
        neighbor_pairs(np.zeros((2, 3)), np.eye(3), False, cutoff)


def test_a_search_of_a_crystal_that_would_not_end_is_refused_before_it_begins():
    silicon = bulk("Si")
    with pytest.raises(UsageError, match="within 10000 Å there are about .e.* pairs"):
        neighbor_pairs(silicon.positions, silicon.cell.array, True, 1e4)


@pytest.mark.parametrize("name", STRUCTURES)
def test_unwrapped_atoms_have_the_same_edges(name):
    atoms = STRUCTURES[name]()
    moved = atoms.copy()
    moved.positions += np.where(atoms.pbc, 1.0, 0.0) @ np.asarray(atoms.cell.complete()) * 3
    moved.positions[0] -= 2 * np.where(atoms.pbc, 1.0, 0.0) @ np.asarray(atoms.cell.complete())
    lengths = []
    for a in (atoms, moved):
        cell = np.asarray(a.cell.complete())
        i, j, s = neighbor_pairs(a.positions, cell, a.pbc, 4.0)
        lengths.append(np.sort(np.linalg.norm(a.positions[j] + s @ cell - a.positions[i], axis=1)))
    np.testing.assert_allclose(lengths[0], lengths[1], atol=1e-12)


def test_no_atoms_and_no_edges_have_right_shapes():
    empty = find_edges(np.zeros((0, 3)), np.eye(3), [False] * 3, 5.0)
    assert empty.senders.shape == (0, 1) and empty.shifts.shape == (0, 1, 3)
    lone = find_edges(np.zeros((1, 3)), np.eye(3), [False] * 3, 5.0)
    assert lone.senders.shape == (1, 1) and not lone.mask.any()


def test_few_slots_are_wasted_on_neighbours_that_do_not_exist():
    assert max(width(n) / n for n in range(13, 5000)) <= 1.25
    assert len({width(n) for n in range(1, 500)}) <= 40
    silicon = bulk("Si", cubic=True)
    crystal = find_edges(silicon.positions, silicon.cell.array, silicon.pbc, 5.0)
    assert crystal.senders.shape == (8, 28)  # 4 + 12 + 12 neighbours, all slots used
    molecule = find_edges(np.eye(3), np.zeros((3, 3)), [False] * 3, 5.0)
    assert molecule.senders.shape == (3, 2)  # never more than the other atoms
