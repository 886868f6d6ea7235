"""Labels, reference energies, splits and padded batches."""

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk
from ase.io import write

from jaxmlip.data.batching import batch, batches, make_buckets, plan, waste
from jaxmlip.data.splits import load_split, save_split, split
from jaxmlip.data.statistics import (
    average_neighbors,
    fit_reference_energies,
    remove_reference_energies,
    rms,
)
from jaxmlip.errors import DataError, UsageError
from jaxmlip.interfaces.labels import read_labelled
from jaxmlip.system import concatenate


def water(rng, **info):
    positions = [[0, 0, 0], [0.76, 0, 0.59], [-0.76, 0, 0.59]] + 0.05 * rng.normal(size=(3, 3))
    return Atoms("OH2", positions, info=info)


def chain(n, rng):
    return Atoms("C" * n, np.arange(n)[:, None] * [1.4, 0, 0] + 0.05 * rng.normal(size=(n, 3)))


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def written(tmp_path, frames):
    path = tmp_path / "data.extxyz"
    write(path, frames)
    return path


def labelled_chains(tmp_path, rng, sizes):
    frames = [chain(n, rng) for n in sizes]
    for i, frame in enumerate(frames):
        frame.info["REF_energy"] = float(i)
        frame.arrays["REF_forces"] = rng.normal(size=(len(frame), 3))
    return read_labelled(written(tmp_path, frames), 3.0)


# --- labels --------------------------------------------------------------------------------------


def test_labels_are_read_and_missing_ones_are_nan(tmp_path, rng):
    first, second = water(rng, REF_energy=-3.0, REF_dipole=np.array([0.0, 0.1, 0.2])), water(rng)
    second.arrays["REF_forces"] = rng.normal(size=(3, 3))
    (system, a), (_, b) = read_labelled(written(tmp_path, [first, second]), 4.0)
    assert system.n_atoms == 3 and system.edges.mask.sum() == 6
    assert a["energy"] == [-3.0] and a["energy"].dtype == np.float64
    np.testing.assert_allclose(a["dipole"], [[0.0, 0.1, 0.2]])
    assert np.isnan(a["forces"]).all() and a["forces"].shape == (3, 3)
    assert np.isnan(b["energy"]).all() and np.isnan(b["dipole"]).all()
    np.testing.assert_allclose(b["forces"], second.arrays["REF_forces"], atol=1e-8)
    assert "stress" not in a


def test_keys_that_ase_keeps_for_itself_can_be_labels(tmp_path):
    path = tmp_path / "plain.extxyz"
    path.write_text(
        '2\nProperties=species:S:1:pos:R:3:forces:R:3 energy=-3.0 pbc="F F F"\n'
        "H 0 0 0 1 2 3\nH 0 0 0.8 -1 -2 -3\n"
    )
    keys = {"energy": "energy", "forces": "forces"}
    ((_, labels),) = read_labelled(path, 3.0, keys=keys, needed=("energy", "forces"))
    assert labels["energy"] == [-3.0]
    np.testing.assert_array_equal(labels["forces"], [[1, 2, 3], [-1, -2, -3]])


def test_voigt_and_full_stress_are_the_same(tmp_path):
    full = np.array([[1.0, 6, 5], [6, 2, 4], [5, 4, 3]]) / 100
    voigt = np.array([1.0, 2, 3, 4, 5, 6]) / 100
    frames = []
    for stress in (full, voigt):
        crystal = bulk("Cu")
        crystal.info["REF_stress"] = stress
        frames.append(crystal)
    (_, a), (_, b) = read_labelled(written(tmp_path, frames), 3.0)
    np.testing.assert_allclose(a["stress"][0], full)
    np.testing.assert_allclose(b["stress"][0], full)


def test_units_and_layouts_of_a_file_are_converted(tmp_path, rng):
    """1 Debye is 0.20819434 e Å, 1 Å^3 of polarisability 1/14.399645 e² Å²/eV."""
    born = rng.normal(size=(3, 3, 3))
    frame = water(rng, REF_dipole=np.array([1.0, 0, 0]), REF_polarizability=np.eye(3).ravel())
    frame.arrays["REF_born_charges"] = born.reshape(3, 9)
    path = written(tmp_path, [frame])
    units = {"dipole": "D", "polarizability": "A3", "born_charges": "e field_first"}
    ((_, plain),), ((_, turned),) = (read_labelled(path, 4.0, units=u) for u in ({}, units))
    np.testing.assert_allclose(plain["born_charges"], born, atol=1e-7)  # as the file rounds
    np.testing.assert_allclose(turned["born_charges"], born.swapaxes(1, 2), atol=1e-7)
    np.testing.assert_allclose(turned["dipole"], [[0.20819434, 0, 0]], rtol=1e-7)
    np.testing.assert_allclose(turned["polarizability"][0], np.eye(3) / 14.399645, rtol=1e-7)
    with pytest.raises(UsageError, match="Did you mean 'A3'"):
        read_labelled(path, 4.0, units={"polarizability": "A33"})
    with pytest.raises(UsageError, match="Did you mean 'dipole'"):
        read_labelled(path, 4.0, units={"dipol": "D"})


def test_a_missing_label_names_the_keys_that_are_there(tmp_path, rng):
    path = written(tmp_path, [water(rng, REF_energies=1.0), water(rng, DFT=2.0)])
    with pytest.raises(DataError, match=r"REF_energies \(1\)") as error:
        read_labelled(path, 4.0, needed=("energy",))
    assert "Did you mean 'REF_energies'" in str(error.value)
    with pytest.raises(UsageError, match="Did you mean 'dipole'"):
        read_labelled(path, 4.0, keys={"dipol": "DFT"})


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("REF_energy", np.nan, "not finite"),
        ("REF_dipole", np.ones(4), "shape"),
        ("REF_stress", np.arange(9.0).reshape(3, 3), "not symmetric"),
        ("REF_energy", "high", "not numeric"),
    ],
)
def test_wrong_labels_are_refused_with_their_frame(tmp_path, rng, name, value, message):
    good, bad = bulk("Cu"), bulk("Cu")
    bad.info[name] = value
    with pytest.raises(DataError, match=message) as error:
        read_labelled(written(tmp_path, [good, bad]), 3.0)
    assert "frame 1" in str(error.value)


def test_a_molecule_has_no_stress(tmp_path, rng):
    path = written(tmp_path, [water(rng, REF_stress=np.zeros(6))])
    with pytest.raises(DataError, match="without a periodic axis"):
        read_labelled(path, 3.0)


# --- statistics ----------------------------------------------------------------------------------


def test_reference_energies_of_an_additive_law_are_exact(rng):
    law = {1: -13.6, 6: -1030.5, 8: -2041.25}
    numbers = [rng.choice(list(law), size=rng.integers(2, 9)) for _ in range(30)]
    energies = [sum(law[z] for z in n) for n in numbers]
    fitted = fit_reference_energies(numbers, [*energies[:-1], np.nan])
    assert fitted == pytest.approx(law, abs=1e-9)
    rest = remove_reference_energies(numbers, energies, fitted)
    np.testing.assert_allclose(rest, 0, atol=1e-8)


def test_free_atoms_are_used_exactly_and_only_the_rest_is_fitted():
    fitted = fit_reference_energies([[1], [8, 1, 1], [8, 1]], [-10.0, -100.0, -85.0])
    assert fitted[1] == -10.0
    assert fitted[8] == pytest.approx((-80.0 - 75.0) / 2)


def test_undetermined_compositions_get_the_smallest_reference_energies():
    fitted = fit_reference_energies([[8, 1, 1], [8, 1, 1]], [-10.0, -10.0])
    assert fitted == pytest.approx({1: -4.0, 8: -2.0})


def test_an_element_without_an_energy_is_an_error():
    with pytest.raises(DataError, match=r"\[6\]"):
        fit_reference_energies([[1, 1], [6]], [-1.0, np.nan])
    with pytest.raises(DataError, match=r"\[6\]"):
        remove_reference_energies([[6]], [1.0], {1: 0.0})


def test_scales(tmp_path, rng):
    frames = labelled_chains(tmp_path, rng, [2, 3])
    assert average_neighbors([s for s, _ in frames]) == pytest.approx((2 * 1 + 3 * 2) / 5)
    assert rms([np.array([3.0, np.nan]), np.array([4.0])]) == pytest.approx(np.sqrt(12.5))


# --- batches -------------------------------------------------------------------------------------


def test_every_frame_comes_once_an_epoch_in_few_shapes(tmp_path, rng):
    frames = labelled_chains(tmp_path, rng, rng.integers(1, 12, size=60))
    buckets = make_buckets(frames, n_buckets=3, max_atoms=40)
    assert sorted(i for b in buckets for i in b.frames) == list(range(60))
    shapes, energies = set(), []
    for system, labels in batches(frames, buckets, seed=1, epoch=2):
        shapes.add((*system.edges.mask.shape, system.n_graphs))
        energies += labels["energy"][~np.isnan(labels["energy"])].tolist()
        assert np.isnan(labels["energy"][-1]) and (np.diff(system.graph) >= 0).all()
        assert (system.graph[~system.atom_mask] == system.n_graphs - 1).all()
        assert np.isnan(labels["forces"][~system.atom_mask]).all()
    assert len(shapes) <= 3
    assert sorted(energies) == list(range(60))


def test_a_batch_is_the_concatenation_of_its_frames(tmp_path, rng):
    frames = labelled_chains(tmp_path, rng, [5, 1, 3])
    (bucket,) = make_buckets(frames, n_buckets=1, max_atoms=12)
    system, labels = batch(frames, bucket, [2, 0, 1])
    expected = concatenate([frames[i][0] for i in (2, 0, 1)])
    np.testing.assert_array_equal(system.positions[:9], expected.positions)
    np.testing.assert_array_equal(system.graph[:9], expected.graph)
    mask = system.edges.mask[:9]
    other = expected.edges.mask
    np.testing.assert_array_equal(system.edges.senders[:9][mask], expected.edges.senders[other])
    np.testing.assert_array_equal(labels["forces"][:3], frames[2][1]["forces"].astype(np.float32))


def test_the_plan_depends_on_seed_and_epoch_alone(tmp_path, rng):
    frames = labelled_chains(tmp_path, rng, rng.integers(1, 9, size=40))
    atoms = [s.n_atoms for s, _ in frames]
    buckets = make_buckets(frames, n_buckets=2, max_atoms=30)
    same = [plan(buckets, atoms, seed=3, epoch=1) for _ in range(2)]
    assert same[0] == same[1] != plan(buckets, atoms, seed=3, epoch=2)
    assert waste(buckets, same[0], atoms) < 0.3


def test_splits_are_disjoint_reproducible_and_kept(tmp_path):
    parts = split(100, {"valid": 0.1, "test": 0.2}, seed=5)
    assert {k: len(v) for k, v in parts.items()} == {"valid": 10, "test": 20, "train": 70}
    assert sorted(sum(parts.values(), [])) == list(range(100))
    save_split(tmp_path / "split.json", parts)
    assert (
        load_split(tmp_path / "split.json")
        == parts
        == split(100, {"valid": 0.1, "test": 0.2}, seed=5)
    )
    with pytest.raises(UsageError):
        split(1, {"valid": 0.5})
