"""Labels, reference energies, splits and padded batches."""

import gc
import gzip
import lzma
import threading
import time
import tracemalloc

import ase.db
import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk
from ase.calculators.singlepoint import SinglePointCalculator
from ase.io import write

from jaxmlip.data.batching import (
    batch,
    batches,
    choose_buckets,
    make_buckets,
    padding,
    plan,
    waste,
)
from jaxmlip.data.free_atoms import is_free_atom, names_free_atom
from jaxmlip.data.prefetch import prefetch
from jaxmlip.data.splits import load_split, save_split, split
from jaxmlip.data.statistics import (
    average_neighbors,
    fit_reference_energies,
    reference_energies,
    remove_reference_energies,
    rms,
)
from jaxmlip.errors import DataError, JaxmlipError, UsageError
from jaxmlip.interfaces import hdf5
from jaxmlip.interfaces.ase import from_ase
from jaxmlip.interfaces.datasets import iter_atoms
from jaxmlip.interfaces.extxyz import iter_frames
from jaxmlip.interfaces.guess_keys import guess_keys
from jaxmlip.interfaces.labels import iter_labelled, read_labelled
from jaxmlip.system import concatenate
from jaxmlip.train.config.read import read_config
from jaxmlip.train.frames.reading import read_data
from jaxmlip.train.setup import make_card


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


def test_rounding_of_a_small_stress_is_no_asymmetry(tmp_path):
    crystal = bulk("Cu")
    crystal.info["REF_stress"] = np.array([[1e-7, 3e-9, 0], [0, 1e-7, 0], [0, 0, -2e-7]])
    ((_, labels),) = read_labelled(written(tmp_path, [crystal]), 3.0)
    assert labels["stress"][0, 2, 2] == -2e-7


def test_a_molecule_has_no_stress(tmp_path, rng):
    path = written(tmp_path, [water(rng, REF_stress=np.zeros(6))])
    with pytest.raises(DataError, match="without a periodic axis"):
        read_labelled(path, 3.0)


# --- files ---------------------------------------------------------------------------------------


def mixed(rng):
    """Waters, some without forces, and a crystal with a stress; a name for each kind."""
    frames = [water(rng, REF_energy=float(i), config_type="liquid") for i in range(4)]
    for frame in frames[::2]:
        frame.arrays["REF_forces"] = rng.normal(size=(3, 3))
    crystal = bulk("Cu", cubic=True)
    crystal.info |= {"REF_stress": np.eye(3) / 100, "charge": 1.0, "config_type": "crystal"}
    return [*frames, crystal]


def described(path):
    return list(iter_labelled(path, 3.0, dtype=np.float64))


def in_database(tmp_path, frames):
    with ase.db.connect(tmp_path / "data.db") as db:
        for frame in frames:
            data = {k: v for k, v in frame.arrays.items() if k.startswith("REF")}
            in_data = lambda k, v: isinstance(v, np.ndarray) or k == "charge"  # a word of ASE's own
            data |= {k: v for k, v in frame.info.items() if in_data(k, v)}
            values = {k: v for k, v in frame.info.items() if k not in data}
            db.write(Atoms(frame), key_value_pairs=values, data=data)
    return tmp_path / "data.db"


def compressed(tmp_path, frames):
    text = written(tmp_path, frames).read_bytes()
    (tmp_path / "data.xyz.gz").write_bytes(gzip.compress(text))
    (tmp_path / "data.xyz.xz").write_bytes(lzma.compress(b"\xef\xbb\xbf" + text))
    windows = text.replace(b"\n", b"\r\n").replace(b"O  ", b"O\t")
    (tmp_path / "windows.xyz").write_bytes(b"\xef\xbb\xbf" + windows)
    return [tmp_path / name for name in ("data.xyz.gz", "data.xyz.xz", "windows.xyz")]


def test_every_format_holds_the_same_frames(tmp_path, rng):
    """Compressed, with the line ends of Windows, in a database, in HDF5: one data set."""
    frames = mixed(rng)
    for atoms in frames:
        atoms.positions = np.round(atoms.positions, 6)
        for name in {"REF_forces"} & set(atoms.arrays):
            atoms.arrays[name] = np.round(atoms.arrays[name], 6)
    expected = described(written(tmp_path, frames))
    hdf5.write_frames(tmp_path / "data.h5", frames)
    paths = [*compressed(tmp_path, frames), in_database(tmp_path, frames), tmp_path / "data.h5"]
    for path in paths:
        found = described(path)
        assert [f.kind for f in found] == [f.kind for f in expected], path
        for one, other in zip(found, expected, strict=True):
            assert one.labels.keys() == other.labels.keys()
            for name, value in one.labels.items():
                np.testing.assert_allclose(value, other.labels[name], atol=1e-12)
            for name in ("positions", "cell", "charge", "numbers", "pbc"):
                value = getattr(other.system, name)
                np.testing.assert_allclose(getattr(one.system, name), value, atol=1e-12)


def test_frames_of_hdf5_are_read_by_their_index_and_not_before(tmp_path, rng):
    frames = mixed(rng)
    assert hdf5.write_frames(tmp_path / "data.h5", iter(frames * 200)) == 1000
    with hdf5.open_frames(tmp_path / "data.h5") as stored:
        assert len(stored) == 1000
        for i in (0, 999, 504, -1):
            np.testing.assert_array_equal(stored[i].positions, frames[i % 5].positions)
        assert "REF_forces" not in stored[1].arrays and "REF_forces" in stored[2].arrays
        assert stored[4].info["config_type"] == "crystal"
        with pytest.raises(IndexError):
            stored[1000]


@pytest.mark.parametrize("suffix", ["extxyz", "h5"])
def test_a_stream_holds_one_block_however_long_the_file(tmp_path, rng, suffix, monkeypatch):
    """60 more frames of 100 atoms are 200 kB; what is held at the most does not grow by them."""
    monkeypatch.setattr(hdf5, "BLOCK", 8)
    peaks = []
    for n in (20, 80):
        path = tmp_path / f"{n}.{suffix}"
        frames = [chain(100, rng)] * n
        hdf5.write_frames(path, frames) if suffix == "h5" else write(path, frames)
        del frames
        next(iter_atoms(path))
        peaks.append(peak_of(iter_atoms(path), n))
    assert peaks[1] - peaks[0] < 60 * 100 * 32 / 4


def peak_of(frames, n):
    """The most bytes that Python holds while n frames pass by; without those of cycles before."""
    gc.collect()
    tracemalloc.start()
    assert sum(1 for _ in frames) == n
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return peak


def test_frames_that_were_read_leave_nothing_behind(tmp_path):
    """Lines are read ahead and put back: what that leaves would be passed through ever after.

    An iterator around an iterator for each frame holds 350 bytes of it; 72 are a tuple that Python
    keeps to use again.
    """
    peaks = []
    for n in (200, 1200):
        (tmp_path / f"{n}.xyz").write_text("1\n\nAr 0 0 0\n" * n)
        peaks.append(peak_of(iter_frames(tmp_path / f"{n}.xyz"), n))
    assert peaks[1] - peaks[0] < 1000 * 150


def test_what_is_no_data_set_is_refused(tmp_path, rng):
    for name, content in (("a.h5", b"no"), ("b.db", b"no"), ("c.extxyz", b""), ("d.h5", b"")):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(DataError):
            list(iter_atoms(tmp_path / name))
    with pytest.raises(DataError, match="no such file"):
        read_labelled(tmp_path / "none.extxyz", 3.0)
    hdf5.write_frames(tmp_path / "whole.h5", mixed(rng))
    text = (tmp_path / "whole.h5").read_bytes()
    (tmp_path / "cut.h5").write_bytes(text[: len(text) // 2])
    with pytest.raises(DataError, match="cannot be read as HDF5"):
        list(iter_atoms(tmp_path / "cut.h5"))


@pytest.mark.parametrize("name", ["data.extxyz", "data.h5", "data.db", "data.xyz.gz"])
def test_damaged_files_end_in_our_errors_alone(tmp_path, rng, name):
    """Bytes changed, cut and repeated at random: no other exception, and no frame with a NaN."""
    frames = mixed(rng)
    hdf5.write_frames(tmp_path / "data.h5", frames)
    in_database(tmp_path, frames), compressed(tmp_path, frames)
    whole = np.frombuffer((tmp_path / name).read_bytes(), np.uint8)
    (tmp_path / "bad").mkdir()
    for trial in range(40):
        (tmp_path / "bad" / name).write_bytes(damaged(whole, np.random.default_rng(trial)))
        begun = time.process_time()
        try:
            for frame in described(tmp_path / "bad" / name):
                assert all(np.isfinite(v).all() for v in frame.labels.values())
                assert np.isfinite(frame.system.positions).all()
        except JaxmlipError:
            pass
        assert time.process_time() - begun < 5


def damaged(whole, rng):
    out, size = whole.copy(), len(whole)
    for _ in range(rng.integers(1, 5)):
        at, n = rng.integers(size), rng.integers(1, 9)
        kind = rng.integers(4)
        if kind == 0:
            out[at : at + n] = rng.integers(0, 256, size=len(out[at : at + n]))
        elif kind == 1:
            out = np.delete(out, slice(at, at + n))
        elif kind == 2:
            out = np.insert(out, min(at, len(out)), out[:n])
        else:
            out = out[: max(at, 1)]
    return out.tobytes()


def test_keys_are_proposed_by_name_and_shape_and_never_read_unasked(tmp_path, rng):
    frame = bulk("Cu", cubic=True)
    frame.info |= {"dft_energy": -1.0, "virial": np.eye(3), "alpha": "none"}
    frame.arrays["dft_forces"] = np.zeros((4, 3))
    path = written(tmp_path, [frame])
    keys, units = guess_keys(path)
    assert keys == {"energy": "dft_energy", "forces": "dft_forces", "stress": "virial"}
    assert units == {"stress": "eV virial"}
    assert read_labelled(path, 3.0)[0][1] == {}
    ((system, labels),) = read_labelled(path, 3.0, keys=keys, units=units)
    np.testing.assert_allclose(labels["stress"][0], -np.eye(3) / 3.61**3, rtol=1e-6)


def test_a_reference_that_comes_late_in_a_file_is_not_passed_over(tmp_path, rng):
    """An isolated atom with its plain energy first, then frames with REF_energy."""
    frames = [Atoms("O", info={"dft_energy": -1.0}), water(rng, REF_energy=-3.0, dft_energy=-2.0)]
    assert guess_keys(written(tmp_path, frames)) == ({}, {})


def test_results_of_a_calculator_travel_in_hdf5_whatever_the_sizes(tmp_path, rng):
    frames = [chain(n, rng) for n in (2, 5)]
    for atoms in frames:
        results = {"energies": np.arange(len(atoms)) * 1.0, "energy": -1.0}
        atoms.calc = SinglePointCalculator(atoms, **results)
        atoms.info["ragged"] = [[1], [1, 2]]
    hdf5.write_frames(tmp_path / "data.h5", frames)
    found = list(iter_atoms(tmp_path / "data.h5"))
    np.testing.assert_array_equal(found[1].arrays["energies"], np.arange(5))
    assert found[0].info["energy"] == -1.0


# --- isolated atoms ------------------------------------------------------------------------------

NAMES = (
    *("IsolatedAtom", "isolated_atom", "isolated atom", "Isolated-Atoms", "ISOLATEDATOMS"),
    *("isoatom", "iso_atom", "free_atom", "single atom", "atom_isolated"),
)


def test_isolated_atoms_are_known_by_every_name_they_are_given():
    assert all(map(names_free_atom, NAMES))
    assert not any(map(names_free_atom, ("", "atom", "isolated_molecule", "Default", "diatom")))


def test_one_atom_of_a_crystal_is_no_isolated_atom():
    copper = bulk("Cu")
    assert not is_free_atom(from_ase(copper, 3.0))
    assert not is_free_atom(from_ase(copper, None))
    assert is_free_atom(from_ase(copper, 3.0), "IsolatedAtom")  # in a box that is too small
    copper.set_cell(copper.cell * 4, scale_atoms=True)
    assert is_free_atom(from_ase(copper, 3.0)) and is_free_atom(from_ase(copper, None))
    assert is_free_atom(from_ase(Atoms("H"), 3.0))
    expanded = bulk("Cu", a=5.0)  # of volumes that are scanned: 3.5 Å to the nearest
    assert not from_ase(expanded, 3.0).edges.mask.any()
    assert not is_free_atom(from_ase(expanded, 3.0))


def test_an_ion_is_no_reference():
    ion = Atoms("Na", info={"charge": 1.0})
    assert not is_free_atom(from_ase(ion, 3.0)) and not is_free_atom(
        from_ase(ion, 3.0), "IsolatedAtom"
    )
    assert reference_energies([1], [[1], [1]], [-13.0, -13.6]).values == {1: -13.6}  # two spins


def run_with_atoms(tmp_path, rng, data="valid_fraction: 0.2"):
    """A run on waters with an isolated oxygen, as far as its reference energies."""
    frames = [water(rng, REF_energy=-470.0 + 0.1 * rng.normal()) for _ in range(10)]
    frames.insert(3, Atoms("O", info={"REF_energy": -432.0, "config_type": "IsolatedAtom"}))
    written(tmp_path, frames)
    text = f"model: {{fields: {{cutoff: 3.0}}}}\ndata: {{train: data.extxyz, {data}}}\n"
    (tmp_path / "run.yaml").write_text(text + "loss: {forces: 0}\n")
    output = str(tmp_path / f"out{len(list(tmp_path.glob('out*')))}")
    config = read_config(tmp_path / "run.yaml", overrides={"output": output})
    found = read_data(config, needed=("energy",), tell=[].append)
    card = make_card(config, found.train, ("energy",), atoms=found.atoms)
    return found, card["reference_energies"]


def test_isolated_atoms_tell_reference_energies_and_are_not_trained_on(tmp_path, rng):
    found, energies = run_with_atoms(tmp_path, rng)
    assert len(found.train) == 8 and len(found.valid) == 2 and len(found.atoms) == 1
    assert all(s.n_atoms == 3 for s, _ in found.train + found.valid)
    assert energies[8] == -432.0 and energies[1] == pytest.approx(-19.0, abs=0.1)


def test_isolated_atoms_are_trained_on_where_that_is_asked_for(tmp_path, rng):
    data = "train_isolated_atoms: true, valid_fraction: 0.2"
    found, _ = run_with_atoms(tmp_path, rng, data)
    assert sorted(s.n_atoms for s, _ in found.train + found.valid) == [1] + 10 * [3]


def test_given_reference_energies_are_taken_and_completed(tmp_path, rng):
    data = "reference_energies: {H: -13.6}, valid_fraction: 0.2"
    _, energies = run_with_atoms(tmp_path, rng, data)
    assert energies == {1: -13.6, 8: -432.0}
    _, energies = run_with_atoms(tmp_path, rng, "reference_energies: {8: -440, h: -14.5}")
    assert energies == {1: -14.5, 8: -440.0}
    with pytest.raises(UsageError, match="'Hh' is not an element"):
        run_with_atoms(tmp_path, rng, "reference_energies: {Hh: -1.0}")


def test_reference_energies_of_another_level_of_theory_are_refused(tmp_path, rng):
    """All-electron energies for pseudopotential data, as in issue 581 of mace."""
    with pytest.raises(DataError, match="another level of theory") as error:
        run_with_atoms(tmp_path, rng, "reference_energies: {H: -13.6, O: -2041.0}")
    assert error.value.code == "JM234"


def test_the_condition_of_the_fit_tells_what_compositions_leave_open():
    one = reference_energies([1, 8], [[2, 1], [2, 1]], [-10.0, -10.0])
    assert np.isinf(one.condition) and one.source == {1: "fitted", 8: "fitted"}
    two = reference_energies([1, 8], [[2, 0], [0, 2]], [-2.0, -4.0])
    assert two.condition == pytest.approx(1) and two.values == pytest.approx({1: -1.0, 8: -2.0})
    assert two.binding == pytest.approx(0)


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


def test_groups_of_frames_are_not_torn_apart():
    groups = [f"run {i // 7}" for i in range(70)] + ["", "", ""]
    parts = split(73, {"valid": 0.2}, seed=1, groups=groups)
    valid = set(parts["valid"])
    for g in set(groups) - {""}:
        members = {i for i, name in enumerate(groups) if name == g}
        assert members <= valid or not members & valid
    assert 15 <= len(valid) <= 21 and sorted(valid | set(parts["train"])) == list(range(73))
    with pytest.raises(UsageError, match="too few"):
        split(10, {"valid": 0.1}, groups=["all"] * 10)
    for seed in range(10):  # the trajectory that is nearly all is trained on
        large = split(100, {"valid": 0.1}, seed=seed, groups=["a"] * 90 + ["b"] * 5 + ["c"] * 5)
        assert large["train"] == list(range(90))


def test_a_split_knows_the_frames_it_was_made_of(tmp_path):
    parts, hashes = split(4, {"valid": 0.25}), ["a", "b", "c", "d"]
    save_split(tmp_path / "split.json", parts, hashes=hashes)
    assert load_split(tmp_path / "split.json", hashes=hashes) == parts
    with pytest.raises(DataError, match=r"1 of 4 .* \(frames 2\)"):
        load_split(tmp_path / "split.json", hashes=["a", "b", "x", "d"])
    with pytest.raises(UsageError, match="of 4 frames, the data have 5"):
        load_split(tmp_path / "split.json", hashes=[*hashes, "e"])
    (tmp_path / "split.json").write_text("{")
    with pytest.raises(DataError, match="cannot be read as a split"):
        load_split(tmp_path / "split.json")


def test_buckets_bound_the_padding_of_a_mixed_set(tmp_path, rng):
    """From two atoms to crystals: one shape wastes most of its slots, six or fewer do not."""
    frames = labelled_chains(tmp_path, rng, rng.integers(2, 12, size=40))
    crystals = [bulk("Cu", a=a, cubic=True) for a in rng.uniform(3.4, 3.9, size=40)]
    frames += [(from_ase(c, 4.5), {}) for c in crystals]
    one = make_buckets(frames, n_buckets=1, max_atoms=40)
    chosen = choose_buckets(frames, target=0.25, max_atoms=40)
    assert padding(frames, one) > 0.4
    assert padding(frames, chosen) <= 0.25 and 1 < len(chosen) <= 6
    assert sorted(i for b in chosen for i in b.frames) == list(range(80))
    assert len(choose_buckets(frames, target=1.0, max_atoms=40)) == 1
    assert len(choose_buckets(frames, target=0.0, max_atoms=40)) <= 6


# --- the loader ----------------------------------------------------------------------------------


def test_batches_are_made_ahead_in_their_order():
    made = []

    def source():
        for i in range(20):
            made.append(i)
            yield i

    loader = prefetch(source(), 3)
    assert next(loader) == 0
    until = time.monotonic() + 120
    while len(made) < 5 and time.monotonic() < until:
        time.sleep(0.01)
    time.sleep(0.05)
    assert made == [0, 1, 2, 3, 4]  # one taken, three ready, one that waits for room
    assert list(loader) == list(range(1, 20))
    assert list(prefetch(range(5), 0)) == list(range(5))


def test_an_error_of_the_loader_comes_at_its_place_and_no_thread_is_left():
    def source():
        yield 1
        raise DataError("a bad batch")

    loader = prefetch(source())
    assert next(loader) == 1
    with pytest.raises(DataError, match="a bad batch"):
        next(loader)
    endless = prefetch(iter(int, 1))
    assert next(endless) == 0
    endless.close()
    assert not [t for t in threading.enumerate() if t.name == "prefetch"]
