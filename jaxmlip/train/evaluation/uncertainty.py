"""Fits the last-layer uncertainty of a trained model, and calibrates it on data held back.

The matrix C of `models.last_layer` is the curvature that the loss of the training has in the
weights w of the last layer (Gauss-Newton):

    C = w_E <phi phi^T / n_atoms²> + w_F <J J^T>,   phi = dE/dw, J = -dphi/dr

with means over structures and over force components. alpha and sigma maximise the likelihood of
the errors on validation data; alpha follows from sigma in closed form (Bigi, Chong, Ceriotti and
Grasselli, 2024, 10.1088/2632-2153/ad805f).
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain

import jax
import jax.numpy as jnp
import numpy as np

from jaxmlip.data.batching import batches, make_buckets
from jaxmlip.errors import DataError, UsageError
from jaxmlip.models import checkpoint
from jaxmlip.models.last_layer import ROOM, features, last_layer
from jaxmlip.system import System
from jaxmlip.train.evaluation.calibration import calibration
from jaxmlip.train.frames.stored import bind_to, mapped

SIGMAS = np.logspace(-14, 2, 97)  # sigma² tried, in units of the largest eigenvalue of C


@dataclass(frozen=True, kw_only=True)
class Uncertainty:
    """A fitted uncertainty: A^T A = alpha² (C + sigma²)^-1."""

    leaves: tuple[str, ...]  # the weights w
    factor: np.ndarray  # A, [n_features, n_features]
    alpha: float  # eV times the unit of sigma
    sigma: float  # root of what is added to C
    calibration: dict  # of energies per structure on the validation data: `train.calibration`


def fit_uncertainty(
    potential,
    params,
    train,
    valid,
    *,
    leaves: Sequence[str] | None = None,
    weights: dict[str, float] | None = None,
    probes: int = 1,
    batch_atoms: int = 512,
) -> Uncertainty:
    """The `Uncertainty` of a potential from its training and validation frames [(System, labels)].

    Energies in the labels are those that the potential predicts (free-atom energies removed where
    it is without them). Only the systems of `train` are used, and the energies of `valid`.
    leaves: the weights of the last layer (default `last_layer`). weights: w_E and w_F as 'energy'
    and 'forces', those of the training's loss (default 1 and 10). probes: random directions per
    batch along which J is seen; one leaves the mean right, since every frame has its own.
    Raises `DataError` for fewer than two validation energies.
    """
    leaves = tuple(leaves or last_layer(params))
    weights = {"energy": 1.0, "forces": 10.0} | (weights or {})
    phi, error = energy_errors(potential, params, valid, leaves, batch_atoms=batch_atoms)
    C = curvature(
        potential, params, train, leaves, weights=weights, probes=probes, batch_atoms=batch_atoms
    )
    values, vectors = np.linalg.eigh(C)
    values = np.maximum(values, 0)
    alpha, shift = most_likely(error, (phi @ vectors) ** 2, values)
    factor = (alpha / np.sqrt(values + shift))[:, None] * vectors.T
    return Uncertainty(
        leaves=leaves,
        factor=factor,
        alpha=float(alpha),
        sigma=float(np.sqrt(shift)),
        calibration=calibration(error, np.linalg.norm(phi @ factor.T, axis=1)),
    )


def with_uncertainty(params, fitted: Uncertainty):
    """The params with the matrix of a fitted uncertainty, as `add_uncertainty` takes them."""
    like = jax.tree.leaves(params)[0]
    return {**params, ROOM: {"factor": jnp.asarray(fitted.factor, like.dtype)}}


def save_uncertainty(path, card: dict, params, fitted: Uncertainty) -> None:
    """Writes a model file whose potential predicts `energy_uncertainty` (eV) too."""
    entry = {
        "leaves": list(fitted.leaves),
        "alpha": fitted.alpha,
        "sigma": fitted.sigma,
        "calibration": fitted.calibration,
    }
    checkpoint.save(path, card | {"uncertainty": entry}, with_uncertainty(params, fitted))


def write_uncertainty(path, train, valid, *, weights=None, batch_atoms: int = 512) -> Uncertainty:
    """Fits the uncertainty of a model file and writes it into the file; one that is there goes.

    Frames as of `fit_uncertainty`, with energies less those of the free atoms in the file's card.
    """
    _, params, card = checkpoint.load(path)
    if card.get("members") or card.get("head_names"):
        raise UsageError(
            "the uncertainty of a last layer is that of one model with one readout, this file has "
            + (
                f"{card['members']} members"
                if card.get("members")
                else f"heads {card['head_names']}"
            ),
            where=str(path),
            fix="uncertainty: false (members tell their own), or one head (models.heads)",
        )
    params = {k: v for k, v in params.items() if k != ROOM}
    bare = card | {"reference_energies": {}, "uncertainty": None}
    potential = bind_to(checkpoint.potential_of(bare), chain(train, valid))
    fitted = fit_uncertainty(
        potential, params, train, valid, weights=weights, batch_atoms=batch_atoms
    )
    save_uncertainty(path, card, params, fitted)
    return fitted


def curvature(potential, params, frames, leaves, *, weights, probes=1, batch_atoms=512):
    """C of the frames, [n_features, n_features], float64 (host)."""
    total, counts = 0.0, np.zeros(2)
    for i, (system, _) in enumerate(_batches(frames, batch_atoms)):
        key = jax.random.fold_in(jax.random.key(0), i)
        rows, moved = jax.device_get(
            _sums(params, system, key, apply=potential.apply, leaves=tuple(leaves), probes=probes)
        )
        rows, moved = (np.asarray(x, np.float64) for x in (rows, moved.reshape(-1, rows.shape[1])))
        real = np.bincount(system.graph[system.atom_mask], minlength=system.n_graphs)
        rows = rows[real > 0] / real[real > 0, None]
        total = total + np.stack([rows.T @ rows, moved.T @ moved / probes])
        counts += len(rows), 3 * real.sum()
    means = total / counts[:, None, None]
    return weights["energy"] * means[0] + weights["forces"] * means[1]


@partial(jax.jit, static_argnames=("apply", "leaves", "probes"))
def _sums(params, system, key, *, apply, leaves, probes):
    """phi [n_graphs, n_features], and its change along random displacements [probes, same].

    All atoms move by ±1 at once: since their signs are independent, the outer products of that
    change are, on average, J J^T summed over the components of each structure.
    """
    phi = lambda r: features(apply, leaves)(params, replace(system, positions=r))[1]
    positions = jnp.asarray(system.positions)
    signs = jax.random.rademacher(key, (probes, *positions.shape), positions.dtype)
    along = lambda v: jax.jvp(phi, (positions,), (v,))[1]
    return phi(positions), jax.lax.map(along, signs)


def energy_errors(potential, params, frames, leaves, *, batch_atoms=512):
    """(phi [n, n_features], predicted - labelled energies [n] eV) of frames with an energy."""
    all_rows, all_errors = [], []
    for system, labels in _batches(frames, batch_atoms):
        out, phi = jax.device_get(
            _predicted(params, system, apply=potential.apply, leaves=tuple(leaves))
        )
        error = np.asarray(out["energy"], np.float64) - labels.get("energy", np.nan)
        known = np.isfinite(error) & _occupied(system)
        all_rows.append(np.asarray(phi, np.float64)[known])
        all_errors.append(error[known])
    errors = np.concatenate(all_errors)
    if len(errors) < 2:
        raise DataError(
            f"an uncertainty is calibrated on energies; the validation data have {len(errors)}",
            where="fit_uncertainty",
            code="JM231",
        )
    return np.concatenate(all_rows), errors


@partial(jax.jit, static_argnames=("apply", "leaves"))
def _predicted(params, system, *, apply, leaves):
    return features(apply, leaves)(params, system)


def most_likely(errors, squares, values):
    """(alpha, sigma²) of the largest likelihood of normal errors [n].

    squares [n, n_features]: of phi along the eigenvectors of C, whose eigenvalues are `values`.
    Raises `DataError` where a phi is zero: nothing is uncertain there, and yet there is an error.
    """
    shifts = SIGMAS * max(values.max(), np.finfo(float).tiny)
    best = None
    for shift in shifts:
        q = squares @ (1 / (values + shift))
        if not (q > 0).all():
            continue
        alpha2 = max((errors**2 / q).mean(), np.finfo(float).tiny)
        loss = np.log(alpha2 * q).mean()  # twice the negative log-likelihood, less constants
        if best is None or loss < best[0]:
            best = loss, np.sqrt(alpha2), shift
    if best is None:
        raise DataError(
            "the features of a validation structure are zero", where="fit_uncertainty", code="JM231"
        )
    return best[1:]


def _batches(frames, batch_atoms):
    energies = lambda i, system, known: {k: v for k, v in known.items() if k == "energy"}
    frames = mapped(frames, energies)
    buckets = make_buckets(frames, n_buckets=1, max_atoms=batch_atoms)
    return batches(frames, buckets, seed=None)


def _occupied(system: System):
    return np.bincount(system.graph[system.atom_mask], minlength=system.n_graphs) > 0
