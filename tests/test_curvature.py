"""Training on second derivatives through random directions: products, labels, sources, learning."""

from dataclasses import replace

import h5py
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk
from crystals import argon

from jaxmlip.data.batching import batch, make_buckets
from jaxmlip.derivatives.second.hessian import hessian
from jaxmlip.errors import DataError
from jaxmlip.interfaces.ase import from_ase
from jaxmlip.interfaces.hdf5 import write_frames
from jaxmlip.interfaces.hessians import read_hessians, supercell_hessian
from jaxmlip.interfaces.phonons.force_constants import ForceConstants
from jaxmlip.interfaces.phonons.phonopy_files import write_phonopy
from jaxmlip.potential import Potential
from jaxmlip.system import edge_vectors, sum_edges, sum_energies, to_edges
from jaxmlip.train.frames.second_derivatives import of_teacher, phonopy_frames, taken
from jaxmlip.train.objective.curvature import Known, drawn, from_hessian, with_directions
from jaxmlip.train.objective.losses import Term, loss, squared, summary
from jaxmlip.train.objective.prediction import labelled_prediction
from jaxmlip.train.steps.optimizers import adam
from jaxmlip.train.steps.step import training


def springs(stiffness=2.0, length=1.2):
    """Springs between all neighbours that differ by pairs of elements; two parameters."""

    def init(key, system):
        return {"stiffness": jnp.asarray(stiffness), "length": jnp.asarray(length)}

    def apply(params, system):
        r = jnp.linalg.norm(edge_vectors(system), axis=-1)
        pair = jnp.sqrt(system.numbers[:, None] * to_edges(system, system.numbers) / 8.0)
        curve = params["stiffness"] * pair * (r - params["length"]) ** 2
        inside = jnp.where(r < 3.0, (1 - (r / 3.0) ** 2) ** 3, 0)
        energies = 0.5 * sum_edges(system, (curve * inside)[..., None])[:, 0]
        return {"energy": sum_energies(system, energies), "energies": energies}

    return Potential(init, apply, 3.0)


def molecules():
    """Three frames of 3, 2 and 4 atoms [(System, labels)]."""
    rng, out = np.random.default_rng(3), []
    for symbols in ("OH2", "OH", "OH3"):
        n = len(Atoms(symbols))
        positions = np.array([[0, 0, 0], [0.9, 0.1, 0.4], [-0.8, 0.2, 0.5], [0.1, 1.0, -0.3]])[:n]
        atoms = Atoms(symbols, positions + 0.1 * rng.normal(size=(n, 3)))
        out.append((from_ase(atoms, 3.0), {"forces": np.zeros((n, 3))}))
    return out


@pytest.fixture(scope="module")
def made():
    """(potential, its params, frames, whole Hessians, bucket of all frames)."""
    potential, frames = springs(), molecules()
    params = potential.init(None, None)
    whole = jax.jit(hessian(potential.apply))
    hessians = [np.asarray(whole(params, system)) for system, _ in frames]
    (bucket,) = make_buckets(frames, n_buckets=1, max_atoms=12)
    return potential, params, frames, hessians, bucket


# --- what a step computes ------------------------------------------------------------------------


def test_one_pass_gives_forces_and_products_that_are_their_differences(made):
    potential, params, frames, _, bucket = made
    system, _ = batch(frames, bucket, [0, 1, 2])
    moves = np.random.default_rng(0).normal(size=(system.n_atoms, 3, 3))
    moves = moves.swapaxes(1, 2)  # three directions
    prediction = labelled_prediction(potential.apply, ("forces", "hessian"))
    forces = jax.jit(lambda s: prediction(params, s)["forces"])
    out = jax.jit(lambda v: prediction(params, system, None, v))(moves)
    np.testing.assert_allclose(out["forces"], forces(system), atol=1e-12)
    h = 1e-5
    for k in range(3):
        ahead, behind = (
            forces(replace(system, positions=system.positions + s * moves[:, k])) for s in (h, -h)
        )
        change = -(ahead - behind) / (2 * h)
        np.testing.assert_allclose(out["hessian"][:, k], change, atol=1e-7)  # second order in h
    one = jax.jit(lambda v: prediction(params, system, None, v))(moves[:, :1])
    np.testing.assert_allclose(one["hessian"], out["hessian"][:, :1], atol=1e-12)


def test_random_signs_see_every_element_of_a_hessian_equally(made):
    """The mean over all signs of |ΔH v|² per component is |ΔH|² / 3n (Hutchinson)."""
    error = made[3][1] + 0.1 * np.arange(36).reshape(2, 3, 2, 3)
    known = Known(None, error.reshape(6, 2, 3))

    class AllSigns:
        def choice(self, values, size):
            return np.array(np.meshgrid(*[[-1.0, 1.0]] * 6)).reshape(6, -1).T

    v, products = drawn(known, AllSigns(), n=64)
    assert v.shape == products.shape == (2, 64, 3)
    np.testing.assert_allclose((v**2).mean((0, 2)), 1)
    transposed = error.reshape(6, 6)  # rows are what is combined
    assert (products**2).mean() == pytest.approx((transposed**2).sum() / 6)


@pytest.mark.parametrize("draw", ["rademacher", "normal", "single"])
def test_a_drawn_product_is_the_hessian_times_its_direction(made, draw):
    h = made[3][2]
    h = (h + h.transpose(2, 3, 0, 1)) / 2
    modes = np.random.default_rng(1).normal(size=(5, 4, 3))
    products = np.einsum("iajb,kjb->kia", h, modes)
    for known in (from_hessian(h, dtype=np.float64), Known(modes, products)):
        v, found = drawn(known, np.random.default_rng(2), n=3, draw=draw)
        np.testing.assert_allclose(found, np.einsum("iajb,jkb->ika", h, v), atol=1e-10)
        np.testing.assert_allclose((v**2).mean((0, 2)), 1)


def test_rows_that_are_not_known_are_never_asked_for(made):
    h = made[3][2].copy()
    h[1:3] = np.nan
    known = from_hessian(h, dtype=np.float64)
    assert known.products.shape == (6, 4, 3)
    v, found = drawn(known, np.random.default_rng(0), n=4)
    assert (v[1:3] == 0).all() and np.isfinite(found).all()
    assert from_hessian(np.full_like(h, np.nan)) is None
    with pytest.raises(DataError, match="not symmetric"):
        from_hessian(made[3][2].transpose(0, 1, 3, 2), where="frame 2")


def test_directions_depend_on_seed_step_and_frame_alone(made):
    _, _, frames, hessians, bucket = made
    known = [from_hessian(hessians[0]), None, from_hessian(hessians[2])]
    draw = lambda members, step, seed=0: with_directions(
        {}, batch(frames, bucket, members)[0], known, members, step=step, seed=seed, n=2
    )
    both, other = draw([0, 1, 2], 7), draw([2, 0], 7)
    np.testing.assert_array_equal(both["hessian"][:3], other["hessian"][4:7])
    np.testing.assert_array_equal(both["directions"][5:9], other["directions"][:4])
    assert np.isnan(both["hessian"][3:5]).all() and (both["directions"][3:5] == 0).all()
    assert np.isnan(both["hessian"][9:]).all()  # padding
    assert (draw([0], 8)["directions"] != draw([0], 7)["directions"]).any()
    assert (draw([0], 7, seed=1)["directions"] != draw([0], 7)["directions"]).any()
    assert draw([1], 7) == {}


# --- learning ------------------------------------------------------------------------------------


def test_springs_are_learnt_from_products_alone_and_frames_without_them_count_nothing(made):
    """Stiffness and length of the springs behind two of three Hessians; no forces, no energies."""
    _, true, frames, hessians, bucket = made
    known = [from_hessian(h, dtype=np.float64) for h in hessians[:2]] + [None]
    init, step = training(
        springs(1.0, 1.5),
        {"hessian": Term(1.0, squared)},
        optimizer=adam(clip=10.0, weight_decay=0.0, amsgrad=False),
        ema=0.9,
        remat=jax.checkpoint_policies.nothing_saveable,
    )
    system, labels = batch(frames, bucket, [0, 1, 2])
    state = init(jax.random.key(0), system)
    for i in range(600):
        given = with_directions({}, system, known, [0, 1, 2], step=i)
        state, metrics = step(state, system, given, np.float64(0.02 if i < 450 else 0.002))
    assert metrics["sums"]["hessian"][3] == 3 * (3 + 2)  # one direction of a water, a hydroxyl
    for name in true:
        assert float(state.params[name]) == pytest.approx(float(true[name]), rel=1e-3)
    assert summary(metrics["sums"])["hessian_rmse_eV_per_A2"] < 0.01
    assert step._cache_size() == 1


def test_a_batch_without_curvature_costs_no_product_and_changes_no_other_term(made):
    potential, params, frames, _, bucket = made
    system, labels = batch(frames, bucket, [0, 1])
    terms = {"forces": Term(1.0, squared), "hessian": Term(5.0, squared)}
    prediction = jax.jit(labelled_prediction(potential.apply, terms))(params, system)
    assert "hessian" not in prediction
    value, sums = loss(prediction, labels, system, terms=terms)
    alone, _ = loss(prediction, labels, system, terms={"forces": terms["forces"]})
    assert float(value) == float(alone) and (np.asarray(sums["hessian"]) == 0).all()


# --- sources -------------------------------------------------------------------------------------


def test_a_teacher_tells_whole_hessians_and_products_of_all_structures_of_a_batch(made):
    potential, params, frames, hessians, _ = made
    for known, expected in zip(of_teacher(potential, params, frames), hessians, strict=True):
        np.testing.assert_allclose(known.products.reshape(expected.shape), expected, atol=1e-10)
    for known, h in zip(
        of_teacher(potential, params, frames, n_directions=4), hessians, strict=True
    ):
        assert known.directions.shape == (4, *h.shape[:2])
        expected = np.einsum("iajb,kjb->kia", h, known.directions)
        np.testing.assert_allclose(known.products, expected, atol=1e-10)


def test_hessians_of_frames_are_read_by_number(made, tmp_path):
    path = tmp_path / "h.npz"
    np.savez(path, h000=made[3][0].reshape(9, 9), h002=made[3][2])
    found = read_hessians(path, [3, 2, 4])
    np.testing.assert_array_equal(found[0], made[3][0])
    assert found[1] is None and found[2].shape == (4, 3, 4, 3)
    with pytest.raises(DataError, match=r"frame 2.*\[6, 6\]"):
        read_hessians(path, [3, 2, 2])
    with pytest.raises(DataError, match="2 frames"):
        read_hessians(path, [3, 2])
    np.savez(path, hessian=made[3][0])
    with pytest.raises(DataError, match="number of a frame"):
        read_hessians(path, [3])
    with h5py.File(tmp_path / "h.h5", "w") as file:
        file["frame_2"] = made[3][2]
    assert [h is None for h in read_hessians(tmp_path / "h.h5", [3, 2, 4])] == [True, True, False]
    every = [Atoms("OH", info={"REF_hessian": made[3][1].reshape(-1) + i}) for i in range(3)]
    del every[1].info["REF_hessian"]
    write_frames(tmp_path / "set.h5", every)
    first, none, last = read_hessians(tmp_path / "set.h5", [2, 2, 2])
    np.testing.assert_array_equal(last, made[3][1] + 2)
    assert none is None and first.shape == (2, 3, 2, 3)
    (tmp_path / "set.h5").write_bytes(b"not HDF5")
    with pytest.raises(DataError, match="cannot be read as HDF5"):
        read_hessians(tmp_path / "set.h5", [2, 2, 2])
    labelled = [
        (s, labels | {"hessian": h}) for (s, labels), h in zip(made[2], made[3], strict=True)
    ]
    frames, known = taken([*labelled[:2], made[2][2]])
    assert all("hessian" not in labels for _, labels in frames)
    assert [one is None for one in known] == [False, False, True]


def test_force_constants_of_phonopy_become_the_hessian_of_their_supercell(tmp_path):
    """Argon in a cell of 8 atoms: Φ of phonopy's file is the second derivative of that cell."""
    model = argon(1.5)
    atoms = bulk("Ar", a=5.3)
    matrix = np.array([[2, 0, 0], [0, 2, 0], [0, 0, 2]])
    shifts = np.array([[i, j, k] for i in range(2) for j in range(2) for k in range(2)])
    cell = np.asarray(atoms.cell)
    whole = Atoms("Ar8", shifts @ cell, cell=matrix @ cell, pbc=True)
    expected = np.asarray(jax.jit(hessian(model.apply))({}, from_ase(whole, model.cutoff)))
    constants = ForceConstants(
        values=expected[0].transpose(1, 0, 2)[None],
        cell=cell,
        positions=np.zeros((1, 3)),
        numbers=np.array([18]),
        masses=np.array([39.948]),
        matrix=matrix,
        atoms=np.zeros(8, int),
        shifts=shifts,
    )
    supercell, found = supercell_hessian(constants)
    np.testing.assert_allclose(supercell.positions, whole.positions, atol=1e-12)
    np.testing.assert_allclose(found, expected, atol=1e-10)
    write_phonopy(tmp_path / "phonopy.yaml", constants)
    ((system, labels),) = phonopy_frames(
        [tmp_path / "phonopy.yaml"], 5.0, like={"energy": np.zeros(1)}, dtype=np.float64
    )
    assert system.n_atoms == 8 and np.isnan(labels["energy"]).all()
    ((system, labels),) = phonopy_frames(
        [tmp_path / "phonopy.yaml"], 5.0, like={}, dtype=np.float64, modes=5
    )
    _, (known,) = taken([(system, labels)])
    moves, square = known.directions.reshape(5, 24), labels["hessian"].reshape(24, 24)
    # of one element a mode is an eigenvector of the Hessian: H d = m w² d, the five lowest
    values = np.linalg.eigvalsh(square)
    stiffness = np.einsum("ki,ki->k", moves, known.products.reshape(5, 24))
    np.testing.assert_allclose(stiffness, values[np.abs(values) > 1e-6][:5], atol=1e-8)
    np.testing.assert_allclose(moves @ square, stiffness[:, None] * moves, atol=1e-8)
    np.testing.assert_allclose(known.directions.sum(1), 0, atol=1e-8)  # no translation
    order = np.sort(np.linalg.eigvalsh(labels["hessian"].reshape(24, 24)))
    np.testing.assert_allclose(order, np.linalg.eigvalsh(expected.reshape(24, 24)), atol=1e-8)
