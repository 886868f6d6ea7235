"""A block of steps as one program: steps while the list serves, a search, steps again; and records.

Nothing here reaches the host. What overflows or is not finite ends the block early and is told in
its `Health`.
"""

from dataclasses import replace
from functools import partial
from math import gcd
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxmlip import units
from jaxmlip.derivatives.first import predict, with_forces
from jaxmlip.md.listing import fits, fresh, healthy, renewed, seen
from jaxmlip.md.recording import Measured, rows_for, written


class Goal(NamedTuple):
    """How far a block goes and what it records; values, so that no change compiles again."""

    until: int  # step
    origin: int  # step from which intervals of records are counted
    first: bool  # whether the start of a new motion is recorded


@partial(
    jax.jit,
    static_argnames=(
        "apply",
        "integrator",
        "neighbors",
        "observe",
        "keep",
        "field",
        "every",
        "sizes",
    ),
)
def stepped(
    params,
    system,
    bodies,
    motion,
    goal,
    *,
    apply,
    integrator,
    neighbors,
    observe,
    keep,
    field,
    every,
    sizes,
):
    """(motion, [(how many, records)], health) at `goal.until`, or where something broke.

    apply: of the potential. The other arguments are those of a `Run`; every: steps between two
    records of each function of `observe`; sizes: room for that many.
    """
    at_step = partial(fielded, system, field, integrator.dt)
    evaluate = partial(evaluated, apply, params, at_step, integrator.needs_stress, neighbors, keep)
    before = lambda motion: _unless_new(motion, integrator.before, bodies, system)
    after = lambda motion: _unless_new(motion, integrator.after, bodies, system)

    def step(motion, target, health):
        return (motion.step < target) & health.finite & fits(health, neighbors)

    def steps(target, carry):
        """Steps until the list is stale, the target is reached, or something broke."""
        motion, health = carry
        proposal = before(motion)
        listed, health = renewed(proposal, motion.list, health, system, neighbors)

        def go_on(carry):
            now, proposal, health = carry
            # the first step always: its list was renewed, and each round must come further
            served = (now.step == motion.step) | fresh(proposal, listed, system, neighbors)
            return step(now, target, health) & served

        def once(carry):
            _, proposal, health = carry
            motion, health = evaluate(proposal, listed, health)
            motion = after(motion)
            motion = replace(motion, step=motion.step + 1)
            return motion, before(motion), health

        bare = lambda motion: replace(motion, list=())
        carry = bare(motion), bare(proposal), health
        motion, _, health = jax.lax.while_loop(go_on, once, carry)
        return replace(motion, list=listed), health

    base = gcd(*every)
    origin, begin = goal.origin, jnp.maximum(motion.step, 0)

    def until_record(carry):
        motion, health, records = carry
        target = jnp.minimum(origin + ((motion.step - origin) // base + 1) * base, goal.until)
        motion, health = jax.lax.while_loop(
            lambda carry: step(carry[0], target, carry[1]), partial(steps, target), (motion, health)
        )
        at = motion
        if measures and integrator.exchanges:  # atoms may be elsewhere than their list was made for
            listed, health = renewed(motion, motion.list, health, system, neighbors)
            at = replace(motion, list=listed)
        return motion, health, tuple(map(recorded(at), looks, every, records))

    def recorded(motion):
        def one(look, interval, found):
            count, rows = found
            due = ((motion.step - origin) % interval == 0) & (goal.first | (motion.step > begin))
            return count + due, written(rows, count, due, partial(look, motion))

        return one

    measures = any(isinstance(f, Measured) for f in observe)
    looks = [partial(looked, params, at_step, bodies, integrator, neighbors, f) for f in observe]
    found = tuple(
        (jnp.zeros((), jnp.int32), rows_for(partial(look, motion), size))
        for look, size in zip(looks, sizes, strict=True)
    )
    motion, health, records = jax.lax.while_loop(
        lambda carry: step(carry[0], goal.until, carry[1]),
        until_record,
        (motion, healthy(), found),
    )
    return motion, records, health


def looked(params, at_step, bodies, integrator, neighbors, observe, motion):
    """What `observe` sees of the motion."""
    system = at_step(jnp.maximum(motion.step, 0))
    if not isinstance(observe, Measured):
        return observe(motion, bodies, system, integrator)
    system, _ = seen(system, motion, motion.list, neighbors)
    return observe.of(params, motion, bodies, system, integrator)


def _unless_new(motion, part, bodies, system):
    """Part of a step; nothing for a motion that has no forces yet: its first evaluation."""
    moved = part(motion, bodies, system)
    new = motion.step < 0
    keep = lambda a, b: jax.lax.select(jnp.broadcast_to(new, jnp.shape(a)), a, b)
    return jax.tree.map(keep, motion, moved)


def fielded(system, field, dt, step):
    """The system in the field of that step."""
    if field is None:
        return system
    now = jnp.asarray(field(step * (dt / units.fs)), system.field.dtype)
    return replace(system, field=jnp.broadcast_to(now, system.field.shape))


def evaluated(apply, params, at_step, needs_stress, neighbors, keep, motion, listed, health):
    """The motion with energy, forces and (if needed) stress where it is."""
    still = jax.lax.stop_gradient((motion.positions, motion.cell))  # which pairs: no slope
    still = replace(motion, positions=still[0], cell=still[1])
    system, most = seen(at_step(motion.step + 1), still, listed, neighbors)
    system = replace(system, positions=motion.positions, cell=motion.cell)
    health = replace(health, in_cutoff=jnp.maximum(health.in_cutoff, most))
    out = (predict if needs_stress else with_forces)(apply)(params, system)
    forces = out["forces"].astype(motion.forces.dtype)
    finite = jnp.isfinite(out["energy"]).all() & jnp.isfinite(forces).all()
    stress = out["stress"].astype(motion.stress.dtype) if needs_stress else motion.stress
    energy = out["energy"].astype(motion.energy.dtype)
    extra = {name: out[name] for name in keep}
    motion = replace(motion, forces=forces, energy=energy, stress=stress, extra=extra)
    return motion, replace(health, finite=health.finite & finite)
