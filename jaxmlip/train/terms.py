"""From the words of a configuration to functions: the terms of the loss, the optimiser, memory."""

import jax

from jaxmlip.errors import UsageError
from jaxmlip.train.losses import (
    Term,
    absolute,
    conditional_huber,
    huber,
    of_structure,
    squared,
    virial_per_atom,
)
from jaxmlip.train.optimizers import adam, muon, schedule_free
from jaxmlip.train.settings import Config, stage_weights, weights


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


def make_optimizer(config: Config):
    """The `Rule` or optax transformation that the configuration names."""
    o = config.optimizer
    if o.method == "muon":
        return muon(clip=o.clip, weight_decay=o.weight_decay)
    if o.method == "schedule_free":
        return schedule_free(clip=o.clip, weight_decay=o.weight_decay)
    return adam(clip=o.clip, weight_decay=o.weight_decay, amsgrad=o.amsgrad)


def make_remat(config: Config):
    """The policy of `jax.checkpoint` that the configuration names, or None."""
    return {
        "none": None,
        "dots": jax.checkpoint_policies.dots_saveable,
        "all": jax.checkpoint_policies.nothing_saveable,
    }[config.remat]


def weights_at(config: Config, stage: int, terms) -> dict:
    """{label: weight} of the terms in a stage, of the dtype of the run."""
    given = stage_weights(config, stage)
    return {name: jax.numpy.asarray(given[name], config.dtype) for name in terms}
