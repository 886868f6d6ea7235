"""Last-layer uncertainties: the algebra, the fit, and the file that carries them."""

import sys
from dataclasses import replace
from functools import partial

import jax
import numpy as np
import pytest
from numpy.testing import assert_allclose
from structures import KEY, card
from toy_model import CUTOFF, ToyModel, frames

from jaxmlip import Calculator, models
from jaxmlip.data.batching import batch, make_buckets
from jaxmlip.derivatives.first import with_forces
from jaxmlip.errors import DataError, ModelError
from jaxmlip.interfaces.ase import to_ase
from jaxmlip.models import checkpoint
from jaxmlip.models.last_layer import (
    add_uncertainty,
    features,
    forces_uncertainty,
    last_layer,
)
from jaxmlip.train.evaluation.uncertainty import (
    curvature,
    energy_errors,
    fit_uncertainty,
    most_likely,
    save_uncertainty,
    with_uncertainty,
)

MODEL, TRAIN = ToyModel(), frames(12)
LEAVES = ("params/energy_0/out", "params/energy_1/out")
WEIGHTS = {"energy": 1.0, "forces": 10.0}


KNOWN = jax.jit(add_uncertainty(MODEL, LEAVES).apply)
SEEN = jax.jit(features(MODEL.apply, LEAVES))


@pytest.fixture(scope="module")
def params():
    return jax.jit(MODEL.init)(KEY, TRAIN[1][0])


@pytest.fixture(scope="module")
def fitted(params):
    return fit_uncertainty(MODEL, params, TRAIN, frames(40, seed=5))


@pytest.fixture(scope="module")
def C(params):
    return curvature(MODEL, params, TRAIN, LEAVES, weights=WEIGHTS)


def together(some):
    bucket = make_buckets(some, n_buckets=1, max_atoms=1000)[0]
    return batch(some, bucket, range(len(some)))[0]


def test_features_are_what_the_energy_is_linear_in(params):
    assert last_layer(params) == LEAVES
    system = together(TRAIN)
    out, phi = SEEN(params, system)
    w = np.concatenate([params["params"][f"energy_{i}"]["out"].ravel() for i in (0, 1)])
    assert_allclose(phi @ w, out["energy"], rtol=1e-12, atol=1e-14)
    assert phi.shape == (system.n_graphs, 6 + 4)
    assert not phi[-1].any()  # the empty structure that owns the padding
    assert_allclose(out["energy"], jax.jit(MODEL.apply)(params, system)["energy"], rtol=1e-13)


@jax.jit
def jacobian(params, system):
    """dphi/dr of one structure, [n_features, n_atoms, 3]."""
    phi = lambda r: features(MODEL.apply, LEAVES)(params, replace(system, positions=r))[1][0]
    return jax.jacfwd(phi)(jax.numpy.asarray(system.positions))


@pytest.mark.slow
def test_curvature_is_that_of_the_loss_on_energies_and_forces(params):
    """Random displacements give the mean, off by 1 / sqrt(400 probes x 4 structures) or so."""
    some = TRAIN[1:3] + TRAIN[4:6]  # of one shape
    rows, squares, count = [], np.zeros((10, 10)), 0
    for system, _ in some:
        rows.append(SEEN(params, system)[1][0] / system.n_atoms)
        J = np.asarray(jacobian(params, system)).reshape(10, -1)
        squares, count = squares + J @ J.T, count + J.shape[1]
    energies = np.mean([np.outer(r, r) for r in rows], axis=0)
    find = partial(curvature, MODEL, params, some, LEAVES, probes=400)
    alone = find(weights={"energy": 1.0, "forces": 0.0})
    assert_allclose(alone, energies, rtol=1e-10, atol=1e-14)
    expected = energies + 10 * squares / count
    found = find(weights=WEIGHTS)
    assert np.linalg.norm(found - expected) < 8e-2 * np.linalg.norm(expected)


def test_variance_is_alpha_squared_phi_inverse_phi(params, fitted, C):
    system = together(TRAIN)
    out = KNOWN(with_uncertainty(params, fitted), system)
    _, phi = SEEN(params, system)
    inverse = np.linalg.inv(C + fitted.sigma**2 * np.eye(10))
    variance = fitted.alpha**2 * np.einsum("gi,ij,gj->g", phi, inverse, phi)
    # the inverse of C loses the digits of its condition number, the factor only their root
    assert_allclose(out["energy_uncertainty"], np.sqrt(np.maximum(variance, 0)), rtol=1e-3)


def test_scale_is_the_most_likely_one(fitted):
    """In closed form: on the data of the calibration mean (error / uncertainty)² is 1."""
    assert_allclose(fitted.calibration["recalibration_factor"], 1, rtol=1e-9)
    found = fitted.calibration
    assert_allclose(found["best_negative_log_likelihood"], found["negative_log_likelihood"])


def test_errors_that_follow_the_formula_are_recovered(params, C):
    """Labels off by normal errors of variance a² phi (C + s²)^-1 phi, and what is found of them.

    Of 40 structures ln s has an sd of 1 / sqrt(80) at least, and twice that where hydroxyls and
    waters need different scales; the mean of 20 repeats is within three of those.
    """
    valid, a, rng, found = frames(40, seed=5), 0.02, np.random.default_rng(0), []
    values, vectors = np.linalg.eigh(C)
    values, shift = np.maximum(values, 0), 1e-3 * values.max()
    phi, _ = energy_errors(MODEL, params, valid, LEAVES)
    squares = (phi @ vectors) ** 2
    spread = a * np.sqrt(squares @ (1 / (values + shift)))
    for _ in range(20):
        alpha, again = most_likely(spread * rng.normal(size=40), squares, values)
        found.append(np.log(alpha * np.sqrt(squares @ (1 / (values + again))) / spread))
    assert abs(np.mean(found)) < 3 * 2 / np.sqrt(80 * 20)


@pytest.mark.slow
def test_what_is_in_the_training_set_becomes_more_certain(params):
    """Variances of waters beside those of hydroxyls, with and without waters in the data."""
    phi, _ = energy_errors(MODEL, params, frames(40, seed=5), LEAVES)
    waters = np.arange(40) % 3 > 0

    def ratio(train):
        C = curvature(MODEL, params, train, LEAVES, weights=WEIGHTS)
        C += 1e-6 * np.trace(C) * np.eye(10)
        q = np.einsum("gi,ij,gj->g", phi, np.linalg.inv(C), phi)
        return q[waters].mean() / q[~waters].mean()

    hydroxyls = [TRAIN[i] for i in range(0, 12, 3)]
    assert ratio(TRAIN) < 0.8 * ratio(hydroxyls)


@pytest.mark.slow
def test_forces_have_the_uncertainty_of_their_features(params, fitted):
    system, known = TRAIN[1][0], with_uncertainty(params, fitted)
    factor = np.asarray(known["uncertainty"]["factor"], float)  # as stored, float32
    AJ = np.einsum("ki,ina->kna", factor, jacobian(params, system))
    expected = np.sqrt((AJ**2).sum(0).mean(-1))
    exact = jax.jit(forces_uncertainty(MODEL, LEAVES))(known, system)
    assert_allclose(exact, expected, rtol=1e-9)
    some = jax.jit(forces_uncertainty(MODEL, LEAVES, probes=300))(known, system)
    assert_allclose(some, expected, rtol=4 / np.sqrt(2 * 300))  # one component may carry it all


@pytest.mark.slow
def test_a_model_file_carries_it(params, fitted, tmp_path, monkeypatch):
    monkeypatch.setattr(models, "_HOME", {"ToyModel": "toy_model"})
    monkeypatch.setitem(sys.modules, "jaxmlip.models.toy_model", sys.modules["toy_model"])
    about = card("ToyModel", {"elements": [1, 8], "cutoff": CUTOFF})
    save_uncertainty(tmp_path / "m.safetensors", about, params, fitted)
    potential, loaded, known = checkpoint.load(tmp_path / "m.safetensors")
    system = together(TRAIN)
    out = jax.jit(with_forces(potential.apply))(loaded, system)
    expected = jax.jit(with_forces(MODEL.apply))(params, system)
    assert_allclose(out["forces"], expected["forces"], rtol=1e-10, atol=1e-12)
    direct = KNOWN(with_uncertainty(params, fitted), system)
    assert_allclose(out["energy_uncertainty"], direct["energy_uncertainty"], rtol=1e-10)
    atoms = to_ase(TRAIN[1][0])[0]
    atoms.calc = Calculator(tmp_path / "m.safetensors", dtype="float64")
    atoms.get_potential_energy()
    assert_allclose(atoms.calc.results["energy_uncertainty"], direct["energy_uncertainty"][1])
    assert "forces_uncertainty" not in atoms.calc.results
    assert known["uncertainty"]["calibration"]["n"] == 40


def test_what_cannot_be_fitted_is_refused(params):
    bare = [(system, {"forces": labels["forces"]}) for system, labels in TRAIN]
    with pytest.raises(DataError, match="0 energies|have 0"):
        fit_uncertainty(MODEL, params, TRAIN, bare)
    with pytest.raises(ModelError, match="no uncertainty"):
        add_uncertainty(MODEL, LEAVES).apply(params, TRAIN[0][0])
    with pytest.raises(ModelError, match="last layer"):
        last_layer({"params": {"dense": {"kernel": np.ones(2)}}})
