"""One training step as a pure function over explicit state: `(init, step) = training(...)`.

The learning rate is an argument, so the schedule stays with the loop, which alone knows how much
of the planned time has passed. A step whose loss or gradient is not finite changes nothing and is
counted.
"""

import math
from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp
import optax

from jaxmlip.system import cast
from jaxmlip.train.losses import Term, loss
from jaxmlip.train.prediction import along, labelled_prediction, random_directions


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class TrainState:
    """All that a step changes."""

    params: dict
    average: dict  # running sum of the exponential moving average, biased towards zero
    optimizer: tuple
    updates: jax.Array  # steps that changed the parameters
    bad: jax.Array  # steps since the last finite one


def adam(*, clip: float, weight_decay: float, amsgrad: bool) -> optax.GradientTransformation:
    """Adam or AMSGrad with decoupled decay of matrices, without a learning rate."""
    matrices = lambda params: jax.tree.map(lambda x: x.ndim >= 2, params)
    return optax.chain(
        optax.clip_by_global_norm(clip),
        optax.scale_by_amsgrad() if amsgrad else optax.scale_by_adam(),
        optax.add_decayed_weights(weight_decay, mask=matrices),
    )


def training(potential, terms: dict[str, Term], *, optimizer, ema: float):
    """`state = init(key, system)`; `state, metrics = step(state, system, labels, learning_rate)`.

    metrics: loss, gradient norm, bad (steps in a row that were skipped) and the sums of
    `losses.loss`. The state given to `step` is consumed.

    Born charges are compared along one random direction of the field a structure and a step, which
    costs one backward pass instead of three and gives the same loss on average.
    """
    prediction = labelled_prediction(potential.apply, terms)

    def init(key, system) -> TrainState:
        params = cast(potential.init(key, system), system.positions.dtype)
        return TrainState(
            params=params,
            average=jax.tree.map(jnp.zeros_like, params),
            optimizer=optimizer.init(params),
            updates=jnp.zeros((), jnp.int32),
            bad=jnp.zeros((), jnp.int32),
        )

    def step(state, system, labels, learning_rate):
        directions = random_directions(state.updates + state.bad, system)
        known = along(labels, directions, system)
        objective = lambda params: loss(
            prediction(params, system, directions), known, system, terms=terms
        )
        (value, sums), slope = jax.value_and_grad(objective, has_aux=True)(state.params)
        norm = optax.global_norm(slope)
        ok = jnp.isfinite(value) & jnp.isfinite(norm)
        new = _updated(state, slope, learning_rate, optimizer, ema)
        state = jax.tree.map(
            lambda a, b: jnp.where(ok, a, b), new, replace(state, bad=state.bad + 1)
        )
        sums = jax.tree.map(lambda x: jnp.where(ok, x, 0), sums)
        return state, {"loss": value, "gradient": norm, "bad": state.bad, "sums": sums}

    return jax.jit(init), jax.jit(step, donate_argnums=0)


def _updated(state, slope, learning_rate, optimizer, ema):
    updates, memory = optimizer.update(slope, state.optimizer, state.params)
    move = lambda p, u: p - (learning_rate * u).astype(p.dtype)
    params = jax.tree.map(move, state.params, updates)
    average = jax.tree.map(lambda a, p: ema * a + (1 - ema) * p, state.average, params)
    return TrainState(
        params=params,
        average=average,
        optimizer=memory,
        updates=state.updates + 1,
        bad=jnp.zeros_like(state.bad),
    )


def averaged(state: TrainState, *, ema: float) -> dict:
    """The moving average of the parameters without its start-up bias."""
    weight = 1 - ema ** int(state.updates)
    if weight == 0:
        return state.params
    return jax.tree.map(lambda x: x / jnp.asarray(weight, x.dtype), state.average)


def learning_rate(step: int, fraction: float, *, peak: float, warmup: int, floor: float) -> float:
    """Linear warm-up over `warmup` steps times a cosine in the fraction of the plan, 1 to floor."""
    rise = min(1.0, (step + 1) / max(warmup, 1))
    fall = floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * min(max(fraction, 0.0), 1.0)))
    return peak * rise * fall
