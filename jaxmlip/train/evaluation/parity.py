"""Labels beside predictions, value by value: what parity pictures and calibration are made of."""

import jax
import numpy as np

from jaxmlip.data.batching import batches
from jaxmlip.models.heads import given
from jaxmlip.train.objective.prediction import labelled_prediction


def parity(potential, params, frames, buckets, *, terms) -> dict[str, tuple]:
    """{label: (labels, predictions)}, flat float64 arrays of all values that are known.

    Units are those of the labels; energies are per atom and without reference energies.
    """
    predict = jax.jit(labelled_prediction(potential.apply, terms))
    found = {name: ([], []) for name in terms}
    for system, labels in batches(frames, buckets, seed=None):
        out = jax.device_get(predict(given(params, labels), system))
        atoms = np.maximum(
            np.bincount(system.graph[system.numbers > 0], minlength=system.n_graphs), 1
        )
        for name, (reference, predicted) in found.items():
            label, value = np.float64(labels[name]), np.float64(out[name])
            if name == "energy":
                label, value = label / atoms, value / atoms
            known = np.isfinite(label)
            reference.append(label[known])
            predicted.append(value[known])
    return {k: (np.concatenate(a), np.concatenate(b)) for k, (a, b) in found.items()}
