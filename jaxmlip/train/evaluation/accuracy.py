"""Accuracy on labelled data: exact mean absolute and root mean square errors over all frames."""

from collections.abc import Callable

import jax
import numpy as np

from jaxmlip.data.batching import atoms_of, batch, make_buckets, plan
from jaxmlip.errors import DataError
from jaxmlip.interfaces.labels import read_labelled
from jaxmlip.models.heads import given
from jaxmlip.potential import bind
from jaxmlip.train.frames.references import without_references
from jaxmlip.train.objective.losses import Term, add_sums, loss, squared, summary
from jaxmlip.train.objective.prediction import labelled_prediction

PREDICTED = (
    *("energy", "forces", "stress"),
    *("dipole", "polarizability", "charges", "born_charges"),
)


def metric_sums(apply: Callable, terms: dict[str, Term]) -> Callable:
    """`sums = f(params, system, labels)`, compiled once per padded shape."""
    prediction = labelled_prediction(apply, terms)

    def sums(params, system, labels):
        out = prediction(given(params, labels), system, None, labels.get("directions"))
        return loss(out, labels, system, terms=terms)[1]

    return jax.jit(sums)


def add_up(sums_of: Callable, params, frames, buckets, *, make: Callable | None = None) -> dict:
    """The metric sums of all frames.

    make: (System, labels) = make(bucket, members), instead of `batch` (see `feed.made`).
    """
    make = make or (lambda b, members: batch(frames, buckets[b], members))
    total = None
    for b, members in plan(buckets, atoms_of(frames), seed=None):
        total = add_sums(total, jax.device_get(sums_of(params, *make(b, members))))
    return total


def evaluate(
    potential,
    params,
    frames,
    *,
    labels=None,
    reference_energies=None,
    batch_atoms: int = 512,
    n_buckets: int = 1,
) -> dict[str, float]:
    """{'forces_mae_meV_per_A': ..., 'n_frames': ...} of [(System, labels)].

    labels: which to compare (default: all that the frames have and the potential predicts).
    reference_energies: removed from the labels in float64 for a potential that is without them.
    """
    frames = without_references(frames, reference_energies)
    terms = {name: Term(1.0, squared) for name in labels or _comparable(potential, params, frames)}
    frames = [(s, {k: v for k, v in known.items() if k in terms}) for s, known in frames]
    buckets = make_buckets(frames, n_buckets=n_buckets, max_atoms=batch_atoms)
    sums = add_up(metric_sums(potential.apply, terms), params, frames, buckets)
    return summary(sums) | {"n_frames": len(frames), "n_atoms": sum(s.n_atoms for s, _ in frames)}


def evaluate_model(
    path, data, *, keys=None, units=None, labels=None, batch_atoms: int = 512
) -> dict:
    """Accuracy of a model file on a data file; keys and units as of `interfaces.labels`."""
    from jaxmlip.models import checkpoint

    _, params, card = checkpoint.load(path)
    reference = {int(z): float(e) for z, e in (card.get("reference_energies") or {}).items()}
    bare = checkpoint.potential_of(card | {"reference_energies": {}})
    frames = read_labelled(
        data,
        bare.cutoff,
        keys=keys,
        units=units,
        needed=labels or (),
        dtype=np.dtype(card.get("dtype", "float32")),
    )
    bare = bind(bare, [system for system, _ in frames])
    return evaluate(
        bare, params, frames, labels=labels, reference_energies=reference, batch_atoms=batch_atoms
    )


def _comparable(potential, params, frames):
    out = jax.eval_shape(potential.apply, params, frames[0][0])
    able = {*out, "forces", "stress"} | ({"born_charges"} if "dipole" in out else set())
    chosen = [name for name in PREDICTED if name in frames[0][1] and name in able]
    if not chosen:
        raise DataError(
            f"the frames have labels {sorted(frames[0][1])}, the potential predicts "
            f"{sorted(able)}: nothing to compare",
            code="JM220",
            fix="name the keys of the labels",
        )
    return chosen
