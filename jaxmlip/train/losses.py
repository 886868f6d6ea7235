"""What is minimised: a weighted sum of masked means, one term a label.

A label that is NaN counts nowhere, neither in the value nor in the gradient. Beside the loss come
sums of |d|, d², the term and the count, which add up over batches to exact means.

The dipole of a periodic cell is defined modulo e times its lattice vectors, and different codes
and images of atoms choose different branches. A deviation is therefore taken to the nearest one.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from jaxmlip.system import Array, System, sum_atoms

UNITS = {  # factor from eV, Å, e and name of what is reported
    "energy": (1e3, "meV_per_atom"),
    "forces": (1e3, "meV_per_A"),
    "stress": (1e3, "meV_per_A3"),
    "dipole": (1.0, "eA"),
    "polarizability": (1.0, "e2A2_per_eV"),
    "charges": (1.0, "e"),
    "born_charges": (1.0, "e"),
}


class Term(NamedTuple):
    """One label of the loss: its weight and a function of the deviation."""

    weight: float
    function: Callable


def squared(d: Array) -> Array:
    """d²."""
    return d * d


def huber(delta: float) -> Callable:
    """d² up to |d| = delta, linear with the same slope beyond."""

    def function(d):
        size = jnp.abs(d)
        return jnp.where(size < delta, d * d, delta * (2 * size - delta))

    return function


def loss(prediction: dict, labels: dict, system: System, *, terms: dict[str, Term]):
    """(scalar, {label: [sum |d|, sum d², sum of the function, count]}); energies are per atom."""
    total, sums = 0.0, {}
    for name, term in terms.items():
        d, known = deviation(prediction, labels, system, name)
        value = jnp.where(known, term.function(d), 0).sum()
        count = known.sum().astype(d.dtype)
        total += term.weight * value / jnp.maximum(count, 1)
        sums[name] = jnp.stack([jnp.abs(d).sum(), (d * d).sum(), value, count])
    return total, sums


def deviation(prediction: dict, labels: dict, system: System, name: str):
    """(prediction - label, where it is known); 0 where it is not."""
    label = jnp.asarray(labels[name])
    known = ~jnp.isnan(label)
    # both sides are masked before the difference: NaN x 0 is NaN in the gradient
    value = jnp.where(known, prediction[name].astype(label.dtype), 0)
    d = value - jnp.where(known, label, 0)
    if name == "energy":
        d = d / jnp.maximum(sum_atoms(system, jnp.ones(system.n_atoms, d.dtype)), 1)
    if name == "dipole":
        d = nearest_branch(d, system)
    return d, known


def nearest_branch(d, system: System):
    """Differences of dipoles [n_graphs, 3] less the nearest e x lattice vector (periodic axes)."""
    cell = jnp.asarray(system.cell, d.dtype)
    quanta = jnp.round(jnp.einsum("ga,gab->gb", d, jnp.linalg.inv(cell)))
    return d - jnp.einsum("gb,gba->ga", jnp.where(system.pbc, quanta, 0), cell)


def add_sums(total: dict | None, sums: dict) -> dict:
    """Metric sums of more batches, in float64 on the host."""
    sums = {k: np.asarray(v, np.float64) for k, v in sums.items()}
    return sums if not total else {k: np.asarray(total[k]) + v for k, v in sums.items()}


def mean_loss(sums: dict, terms: dict[str, Term]) -> float:
    """The loss over all batches that were added up."""
    return float(sum(t.weight * sums[k][2] / max(sums[k][3], 1) for k, t in terms.items()))


def summary(sums: dict) -> dict[str, float]:
    """{'energy_mae_meV_per_atom': ..., 'energy_rmse_...': ...}; NaN for a label without values."""
    out = {}
    for name, (absolute, square, _, count) in sums.items():
        factor, unit = UNITS.get(name, (1.0, ""))
        mean = lambda x, n=count: x / n if n else np.nan
        out[f"{name}_mae_{unit}"] = float(factor * mean(absolute))
        out[f"{name}_rmse_{unit}"] = float(factor * np.sqrt(mean(square)))
    return out
