"""What is minimised: a weighted sum of masked means, one term a label.

A label that is NaN counts nowhere, neither in the value nor in the gradient. Beside the loss come
sums of |d|, d², the term and the count, which add up over batches to exact means.

The dipole of a periodic cell is defined modulo e times its lattice vectors, and different codes
and images of atoms choose different branches. A deviation is therefore taken to the nearest one.

Frames may carry weights: labels `weight` and `weight:<label>`, [n_graphs] (NaN: 1). They multiply
the terms of their frame, while means are still over all known entries, so a frame of weight two
counts as two. A label of weight zero is no label, in the loss as in the reported errors.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from jaxmlip.potential import PER_ATOM
from jaxmlip.system import Array, System, sum_atoms

UNITS = {  # factor from eV, Å, e and name of what is reported
    "energy": (1e3, "meV_per_atom"),
    "forces": (1e3, "meV_per_A"),
    "stress": (1e3, "meV_per_A3"),
    "dipole": (1.0, "eA"),
    "polarizability": (1.0, "e2A2_per_eV"),
    "charges": (1.0, "e"),
    "born_charges": (1.0, "e"),
    "hessian": (1.0, "eV_per_A2"),
}
STEPS = ((100.0, 0.7), (200.0, 0.4), (300.0, 0.1))  # from this force in eV/Å on: share of delta


class Term(NamedTuple):
    """One label of the loss: its weight, and a function of the deviation and the label."""

    weight: float
    function: Callable  # f(d, label)
    measure: Callable | None = None  # of (d, system): in what the function sees the deviation


def squared(d: Array, label=None) -> Array:
    """d²."""
    return d * d


def absolute(d: Array, label=None) -> Array:
    """|d|."""
    return jnp.abs(d)


def huber(delta: float) -> Callable:
    """d² up to |d| = delta, linear with the same slope beyond (twice torch's huber_loss)."""

    def function(d, label=None):
        size = jnp.abs(d)
        return jnp.where(size < delta, d * d, delta * (2 * size - delta))

    return function


def conditional_huber(delta: float) -> Callable:
    """Huber whose delta is a share of `delta` where the labelled vector is long, see `STEPS`.

    For forces [n_atoms, 3]: delta below 100 eV/Å, then 0.7, 0.4 and 0.1 of it from 100, 200 and
    300 eV/Å on. With `huber` for energies per atom and stress this is the universal loss of the
    MACE foundation models (Batatia et al., 2023, arXiv:2401.00096), times two.
    """

    def function(d, label):
        length = jnp.linalg.norm(jnp.nan_to_num(label), axis=-1, keepdims=True)
        limit = delta
        for force, share in STEPS:
            limit = jnp.where(length >= force, share * delta, limit)
        size = jnp.abs(d)
        return jnp.where(size < limit, d * d, limit * (2 * size - limit))

    return function


def of_structure(d: Array, system: System) -> Array:
    """Measure of energies: that of the structure, eV, instead of eV per atom (MACE's paper)."""
    return d * _sizes(system, d.dtype)


def virial_per_atom(d: Array, system: System) -> Array:
    """Measure of stress [n_graphs, 3, 3] in eV/Å³: that of the virial -V stress, eV per atom."""
    volume = jnp.abs(jnp.linalg.det(jnp.asarray(system.cell, d.dtype)))
    return -d * (volume / _sizes(system, d.dtype))[:, None, None]


def loss(prediction: dict, labels: dict, system: System, *, terms: dict[str, Term], weights=None):
    """(scalar, {label: [sum |d|, sum d², sum of the function, count]}); energies are per atom.

    weights: {label: weight} instead of those of the terms; traced, so that a schedule of them
    compiles nothing. A term whose label the batch does not have at all is left out.
    """
    total, sums = 0.0, {}
    for name, term in terms.items():
        if name not in labels:
            sums[name] = jnp.zeros(4, prediction["energy"].dtype)
            continue
        d, known = deviation(prediction, labels, system, name)
        share = frame_weights(labels, system, name, d)
        if share is not None:
            known, share = known & (share > 0), jnp.where(share > 0, share, 0)
            d = jnp.where(known, d, 0)
        seen = d if term.measure is None else term.measure(d, system)
        value = term.function(seen, jnp.asarray(labels[name]))
        value = jnp.where(known, value if share is None else share * value, 0).sum()
        count = known.sum().astype(d.dtype)
        weight = term.weight if weights is None else weights[name]
        total += weight * value / jnp.maximum(count, 1)
        sums[name] = jnp.stack([jnp.abs(d).sum(), (d * d).sum(), value, count])
    return total, sums


def frame_weights(labels: dict, system: System, name: str, like):
    """The weight of every entry of a label, in a shape that fits `like`; None if all are 1."""
    given = [labels[key] for key in ("weight", f"weight:{name}") if key in labels]
    if not given:
        return None
    share = jnp.ones(system.n_graphs, like.dtype)
    for weight in given:
        share = share * jnp.where(jnp.isnan(weight), 1, weight).astype(like.dtype)
    if name in PER_ATOM or name == "hessian":
        share = share[system.graph]
    return share.reshape(-1, *(1,) * (like.ndim - 1))


def deviation(prediction: dict, labels: dict, system: System, name: str):
    """(prediction - label, where it is known); 0 where it is not."""
    label = jnp.asarray(labels[name])
    known = ~jnp.isnan(label)
    # both sides are masked before the difference: NaN x 0 is NaN in the gradient
    value = jnp.where(known, prediction[name].astype(label.dtype), 0)
    d = value - jnp.where(known, label, 0)
    if name == "energy":
        d = d / _sizes(system, d.dtype)
    if name == "dipole":
        d = nearest_branch(d, system)
    return d, known


def _sizes(system, dtype):
    """Numbers of atoms [n_graphs]; at least 1."""
    return jnp.maximum(sum_atoms(system, jnp.ones(system.n_atoms, dtype)), 1)


def nearest_branch(d, system: System):
    """Differences of dipoles [n_graphs, 3] less the nearest e x lattice vector (periodic axes)."""
    cell = jnp.asarray(system.cell, d.dtype)
    quanta = jnp.round(jnp.einsum("ga,gab->gb", d, jnp.linalg.inv(cell)))
    return d - jnp.einsum("gb,gba->ga", jnp.where(system.pbc, quanta, 0), cell)


def add_sums(total: dict | None, sums: dict) -> dict:
    """Metric sums of more batches, in float64 on the host."""
    sums = {k: np.asarray(v, np.float64) for k, v in sums.items()}
    return sums if not total else {k: np.asarray(total[k]) + v for k, v in sums.items()}


def mean_loss(sums: dict, terms: dict[str, Term], weights=None) -> float:
    """The loss over all batches that were added up; weights: {label: weight} for the terms' own."""
    weights = {k: t.weight for k, t in terms.items()} if weights is None else weights
    return float(sum(weights[k] * sums[k][2] / max(sums[k][3], 1) for k in terms))


def summary(sums: dict) -> dict[str, float]:
    """{'energy_mae_meV_per_atom': ..., 'energy_rmse_...': ...}; NaN for a label without values."""
    out = {}
    for name, (absolute, square, _, count) in sums.items():
        factor, unit = UNITS.get(name, (1.0, "own_unit"))
        mean = lambda x, n=count: x / n if n else np.nan
        out[f"{name}_mae_{unit}"] = float(factor * mean(absolute))
        out[f"{name}_rmse_{unit}"] = float(factor * np.sqrt(mean(square)))
    return out
