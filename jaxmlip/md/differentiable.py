"""Gradients of what a trajectory shows, with respect to the potential and to where it began.

Two ways. `sensitivity` goes back through every step: exact for the trajectory that was run; but
trajectories of liquids are chaotic, and beyond some hundred femtoseconds the gradient of one is
large noise. `reweighted` takes averages over frames of a long run and asks how the frames' weights
change with the potential (Thaler and Zavadlav, 2021, 10.1038/s41467-021-27241-4): right for
averages of an ensemble, however long the run.
"""

from collections.abc import Callable
from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp

from jaxmlip import units
from jaxmlip.errors import ResourceError, UsageError
from jaxmlip.md.listing import healthy, renewed, resized, widened
from jaxmlip.md.motion import Motion
from jaxmlip.md.run import REPEATS, Run, check_finite, started
from jaxmlip.md.stepping import evaluated, fielded, looked
from jaxmlip.system import sum_atoms


def sensitivity(loss: Callable, run: Run, motion: Motion, *, steps: int, record: int = 1):
    """(value, gradient by params, gradient by the start, motion at the end).

    loss: of the records of `run.observe` (one function), {name: [n_records, ...]}, of every
    `record` steps without the start; gives a number. The gradient by the start is a dict of
    `positions` (1/Å) and `velocities` [n_atoms, 3]. Of a step only the motion and its list
    of neighbours are stored, and of these about the square root of the number of records (if it has
    such a divisor), at the price of three evaluations a step beside the derivative. Neighbour lists
    that overflow are widened and all is repeated. Raises `NumericalError` where the motion at the
    end is not finite: nothing stops it before.
    """
    if record < 1 or steps < record or steps % record:
        raise UsageError(f"record = {record} must divide steps = {steps}", where="sensitivity")
    if run.integrator.exchanges:
        raise UsageError(
            "exchanges have no slope: the gradient would be that of another average",
            where="sensitivity",
            fix="reweighted, on frames of the ladder",
        )
    if len(run.observe) != 1:
        raise UsageError(f"{len(run.observe)} functions observe, not one", where="sensitivity")
    motion = started(run, motion)
    for again in range(REPEATS):
        value, slopes, end, health = _sensitivity(
            run.params,
            run.system,
            run.bodies,
            motion,
            loss=loss,
            apply=run.potential.apply,
            integrator=run.integrator,
            neighbors=run.neighbors,
            observe=run.observe[0],
            keep=run.keep,
            field=run.field,
            counts=(steps // record, record),
        )
        at = replace(run.system, positions=end.positions, cell=end.cell)
        neighbors, told = widened(run.neighbors, at, health, again=again)
        if not told:
            check_finite(run, end, health)
            return value, *slopes, end
        run = replace(run, neighbors=neighbors)
        motion = replace(motion, list=resized(motion.list, neighbors))
    raise ResourceError(f"neighbour lists overflow after {REPEATS} widenings: {told[-1]}")


def reweighted(apply: Callable, observe: Callable, *, temperature: float) -> Callable:
    """(params, frames, energies) -> (averages, effective number of frames), to be differentiated.

    frames: a batch with edges, of the canonical ensemble at `temperature` (K), or of constant
    pressure, of a potential that gave them `energies` [n_frames] (eV). observe: (params, frames) ->
    {name: [n_frames, ...]}. The averages are those of the ensemble of `apply` at `params`; they say
    little where the effective number, the exponential of the weights' entropy, is a small part of
    all: then run again. Structures of padding do not count.
    """
    kT = units.kB * temperature

    def average(params, frames, energies):
        change = apply(params, frames)["energy"] - energies
        there = sum_atoms(frames, jnp.ones(frames.n_atoms, change.dtype)) > 0
        weights = jax.nn.softmax(jnp.where(there, -change / kT, -jnp.inf))
        mean = lambda x: jnp.tensordot(weights, jnp.where(_like(there, x), x, 0), 1)
        safe = jnp.where(weights > 0, weights, 1)
        return jax.tree.map(mean, observe(params, frames)), jnp.exp(-(safe * jnp.log(safe)).sum())

    return average


def _like(mask, x):
    return mask.reshape(-1, *[1] * (x.ndim - 1))


# --- on the device -------------------------------------------------------------------------------


@partial(
    jax.jit,
    static_argnames=(
        "loss",
        "apply",
        "integrator",
        "neighbors",
        "observe",
        "keep",
        "field",
        "counts",
    ),
)
def _sensitivity(params, system, bodies, motion, *, loss, observe, counts, **parts):
    """(loss, its slopes by params and by the start, motion at the end, health)."""

    def of(params, start):
        begun = replace(motion, **start)
        end, records, health = unrolled(
            params, system, bodies, begun, observe=observe, counts=counts, **parts
        )
        return loss(records), (jax.lax.stop_gradient(end), health)

    start = {"positions": motion.positions, "velocities": motion.velocities}
    slope = jax.value_and_grad(of, argnums=(0, 1), has_aux=True)
    (value, (end, health)), slopes = slope(params, start)
    return value, slopes, end, health


def unrolled(
    params,
    system,
    bodies,
    motion,
    *,
    apply,
    integrator,
    neighbors,
    observe,
    keep,
    field,
    counts,
):
    """(motion, records, health) after counts[0] times counts[1] steps; pure, may be differentiated.

    Records are there even where `health` says that they are not to be trusted.
    """
    at_step = partial(fielded, system, field, integrator.dt)
    evaluate = partial(evaluated, apply, params, at_step, integrator.needs_stress, neighbors, keep)
    look = partial(looked, params, at_step, bodies, integrator, neighbors, observe)
    bare = lambda motion: replace(motion, list=())

    def moved(motion, listed, health):
        """The motion with forces where it is, and the list and health of that."""
        still = jax.lax.stop_gradient(motion)
        listed, health = renewed(still, listed, health, system, neighbors)
        motion, health = evaluate(motion, listed, health)
        return motion, listed, health

    further = lambda motion: replace(motion, step=motion.step + 1)

    @jax.checkpoint
    def step(carry, _):
        motion, listed, health = carry
        motion, *rest = moved(integrator.before(motion, bodies, system), listed, health)
        return (further(integrator.after(motion, bodies, system)), *rest), None

    @jax.checkpoint
    def recorded(carry, _):
        carry, _ = jax.lax.scan(step, carry, length=counts[1])
        return carry, look(replace(carry[0], list=carry[1]))

    @jax.checkpoint
    def several(carry, _):
        return jax.lax.scan(recorded, carry, length=inner)

    inner = _divisor(counts[0])
    # forces at the start depend on params and positions, too: they are computed, not taken over
    begun = replace(bare(motion), step=jnp.maximum(motion.step, 0) - 1)
    started, *rest = moved(begun, motion.list, healthy())
    carry = further(started), *rest
    (motion, listed, health), records = jax.lax.scan(several, carry, length=counts[0] // inner)
    joined = jax.tree.map(lambda x: x.reshape(counts[0], *x.shape[2:]), records)
    return replace(motion, list=listed), joined, health


def _divisor(n: int) -> int:
    """The largest divisor of n that is not above its square root."""
    return max(k for k in range(1, int(n**0.5) + 1) if n % k == 0)
