"""Optimisers as rules of three functions; the learning rate is an argument of every update.

Adam and its kin give a direction, which is scaled by the learning rate. Schedule-free keeps two
sequences of parameters: gradients are taken at one, the other is what is evaluated.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import optax

from jaxmlip.train.config.settings import Config


class Rule(NamedTuple):
    """How parameters move. A frozen leaf of gradient zero stays, up to weight decay."""

    init: Callable  # memory = init(params)
    update: Callable  # params, memory = update(slope, memory, params, learning_rate)
    evaluated: Callable  # params = evaluated(memory, params): those that the model is made of


def adam(*, clip: float, weight_decay: float, amsgrad: bool) -> optax.GradientTransformation:
    """Adam or AMSGrad with decoupled decay of matrices (AdamW), without a learning rate."""
    return optax.chain(
        optax.clip_by_global_norm(clip),
        optax.scale_by_amsgrad() if amsgrad else optax.scale_by_adam(),
        optax.add_decayed_weights(weight_decay, mask=_matrices),
    )


def muon(*, clip: float, weight_decay: float) -> optax.GradientTransformation:
    """Muon for matrices, Adam for the rest, with decoupled decay; without a learning rate.

    The update of a matrix has the root mean square of one of Adam (0.2, Liu et al., 2025,
    arXiv:2502.16982), so that both share a learning rate.
    """
    return optax.chain(
        optax.clip_by_global_norm(clip),
        optax.contrib.muon(1.0, weight_decay=weight_decay, consistent_rms=0.2),
        optax.scale(-1.0),
    )


def schedule_free(*, clip: float, weight_decay: float, b1: float = 0.9) -> Rule:
    """AdamW without a schedule (Defazio et al., 2024, arXiv:2405.15682).

    To be used with a constant learning rate after a warm-up: the average of its iterates, which
    is what is evaluated, takes the place of a decay.
    """
    base = optax.chain(
        optax.clip_by_global_norm(clip),
        optax.scale_by_adam(b1=0.0),
        optax.add_decayed_weights(weight_decay, mask=_matrices),
    )
    with_rate = lambda rate: optax.contrib.schedule_free(
        optax.chain(base, optax.scale(-rate)), rate, b1=b1
    )

    def update(slope, memory, params, learning_rate):
        change, memory = with_rate(learning_rate).update(slope, memory, params)
        return optax.apply_updates(params, change), memory

    return Rule(with_rate(1.0).init, update, optax.contrib.schedule_free_eval_params)


def make_optimizer(config: Config):
    """The `Rule` or optax transformation that the configuration names."""
    o = config.optimizer
    if o.method == "muon":
        return muon(clip=o.clip, weight_decay=o.weight_decay)
    if o.method == "schedule_free":
        return schedule_free(clip=o.clip, weight_decay=o.weight_decay)
    return adam(clip=o.clip, weight_decay=o.weight_decay, amsgrad=o.amsgrad)


def rule(direction) -> Rule:
    """The rule params - learning_rate x direction of an optax transformation; a rule is itself."""
    if isinstance(direction, Rule):
        return direction

    def update(slope, memory, params, learning_rate):
        change, memory = direction.update(slope, memory, params)
        move = lambda p, u: p - (learning_rate * u).astype(p.dtype)
        return jax.tree.map(move, params, change), memory

    return Rule(direction.init, update, lambda memory, params: params)


def _matrices(params):
    return jax.tree.map(lambda x: x.ndim >= 2, params)
