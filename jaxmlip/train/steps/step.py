"""One training step as a pure function over explicit state: `(init, step) = training(...)`.

The learning rate is an argument, so the schedule stays with the loop, which alone knows how much
of the planned time has passed. A step whose loss or gradient is not finite changes nothing and is
counted.
"""

from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxmlip.models.heads import given
from jaxmlip.system import cast
from jaxmlip.train.config.settings import Config
from jaxmlip.train.objective.losses import Term, loss
from jaxmlip.train.objective.prediction import along, labelled_prediction, random_directions
from jaxmlip.train.steps.optimizers import rule


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class TrainState:
    """All that a step changes."""

    params: dict
    average: dict  # running sum of the exponential moving average, biased towards zero
    optimizer: tuple
    updates: jax.Array  # steps that changed the parameters
    bad: jax.Array  # steps since the last finite one


def training(potential, terms: dict[str, Term], *, optimizer, ema: float, remat=None):
    """`init(key, system) -> state`; `step(state, system, labels, learning_rate) -> state, metrics`.

    optimizer: a `Rule`, or an optax transformation without a learning rate (`optimizers`).
    remat: see `labelled_prediction`. step takes {label: weight} as a last argument where a
    schedule changes the weights of the terms; they are traced.
    metrics: loss, gradient norm, bad (steps in a row that were skipped) and the sums of
    `losses.loss`. The state given to `step` is consumed.

    Born charges are compared along one random direction of the field a structure and a step, which
    costs one backward pass instead of three and gives the same loss on average. Hessians are
    compared along the `directions` [n_atoms, k, 3] of the labels (`curvature`); a batch without
    them is compared in everything else.
    """
    prediction = labelled_prediction(potential.apply, terms, remat=remat)
    optimizer = rule(optimizer)

    def init(key, system) -> TrainState:
        params = cast(potential.init(key, system), system.positions.dtype)
        return TrainState(
            params=params,
            average=jax.tree.map(jnp.zeros_like, params),
            optimizer=optimizer.init(params),
            updates=jnp.zeros((), jnp.int32),
            bad=jnp.zeros((), jnp.int32),
        )

    def step(state, system, labels, learning_rate, weights=None):
        directions = random_directions(state.updates + state.bad, system)
        known = along(labels, directions, system)
        objective = lambda params: loss(
            prediction(given(params, labels), system, directions, known.get("directions")),
            known,
            system,
            terms=terms,
            weights=weights,
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
    params, memory = optimizer.update(slope, state.optimizer, state.params, learning_rate)
    shown = optimizer.evaluated(memory, params)
    average = jax.tree.map(
        lambda a, p: (ema * a + (1 - ema) * p).astype(a.dtype), state.average, shown
    )
    return TrainState(
        params=params,
        average=average,
        optimizer=memory,
        updates=state.updates + 1,
        bad=jnp.zeros_like(state.bad),
    )


def averaged(state: TrainState, *, ema: float) -> dict:
    """The moving average of the parameters without its start-up bias; also of several members."""
    weight = 1 - ema ** np.asarray(state.updates, np.float64)  # [] or [n_members]
    if not weight.all():
        return state.params
    of = lambda x: weight.reshape(weight.shape + (1,) * (x.ndim - weight.ndim))
    return jax.tree.map(lambda x: x / np.asarray(of(x), x.dtype), state.average)


def make_remat(config: Config):
    """The policy of `jax.checkpoint` that the configuration names, or None."""
    return {
        "none": None,
        "dots": jax.checkpoint_policies.dots_saveable,
        "all": jax.checkpoint_policies.nothing_saveable,
    }[config.remat]
