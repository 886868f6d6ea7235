"""From the words of a configuration to the terms of the loss and their weights."""

import jax.numpy as jnp

from jaxmlip.errors import UsageError
from jaxmlip.train.config.settings import Config, stage_weights, weights
from jaxmlip.train.objective.losses import (
    Term,
    absolute,
    conditional_huber,
    huber,
    of_structure,
    squared,
    virial_per_atom,
)


def make_terms(config: Config) -> dict[str, Term]:
    """{label: Term} of the loss, of all labels that have a weight in any stage."""
    return {
        name: Term(weight, _function(config.loss, name), _measure(config.loss, name))
        for name, weight in weights(config).items()
    }


def _function(loss, name):
    kind = loss.function.get(name, "squared") if isinstance(loss.function, dict) else loss.function
    if kind in ("squared", "absolute"):
        return {"squared": squared, "absolute": absolute}[kind]
    if isinstance(loss.delta, dict) and name not in loss.delta:
        raise UsageError(f"'loss.delta' has no entry for {name}: {loss.delta}")
    delta = float(loss.delta[name] if isinstance(loss.delta, dict) else loss.delta)
    return conditional_huber(delta) if (kind, name) == ("universal", "forces") else huber(delta)


def _measure(loss, name):
    if name == "energy" and loss.energy_per == "structure":
        return of_structure
    return virial_per_atom if name == "stress" and loss.stress_as == "virial" else None


def weights_at(config: Config, stage: int, terms) -> dict:
    """{label: weight} of the terms in a stage, of the dtype of the run."""
    given = stage_weights(config, stage)
    return {name: jnp.asarray(given[name], config.dtype) for name in terms}
