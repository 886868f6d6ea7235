"""Molecular dynamics: blocks of steps compiled as one program, neighbours renewed inside it.

A step never uses a list that could lack a pair: before every evaluation the farthest atom is
compared with half the skin, and the list is searched anew where that is passed. What does not fit
into its arrays stops the block; the host throws the block away, widens the list and repeats it from
its kept start. What is not finite stops the block, too, and is raised with the step and the atoms.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxmlip import units
from jaxmlip.cell_list import ListPlan, narrowed, plan_list, search, whole_words
from jaxmlip.derivatives.first import predict, with_forces
from jaxmlip.errors import NumericalError, ResourceError, UsageError
from jaxmlip.md.motion import Bodies, Integrator, Motion, bodies_of
from jaxmlip.md.observables import standard
from jaxmlip.system import Array, Edges, System

GROWTH = 1.25  # of what overflows
REPEATS = 20  # widenings of one block before it is given up


@dataclass(frozen=True, kw_only=True)
class Neighbors:
    """How the loop keeps its neighbours; static."""

    plan: ListPlan  # within cutoff + skin
    cutoff: float  # Å, of the potential
    width: int | None  # slots of the edges that the potential sees; None: those of the plan


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class Listed:
    """A neighbour list inside the loop, and where it was made."""

    edges: Edges  # within cutoff + skin
    positions: Array  # [n_atoms, 3] Å
    cell: Array  # [n_graphs, 3, 3] Å


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class Health:
    """The most that a block needed, and whether all went well."""

    in_bin: Array
    in_list: Array
    in_cutoff: Array
    covered: Array
    finite: Array
    searches: Array


@dataclass(frozen=True, kw_only=True)
class Run:
    """What a trajectory needs beside its motion; made by `prepare`."""

    potential: Any
    params: Any
    system: System  # without edges
    bodies: Bodies
    integrator: Integrator
    neighbors: Neighbors
    observe: Callable


class Block(NamedTuple):
    """What a block of steps gives."""

    motion: Motion  # at its end
    records: dict  # {name: [n_records, ...]}, at the end of every `record` steps
    run: Run  # with wider lists if they overflowed
    searches: int  # neighbour searches
    widened: tuple[str, ...]  # what overflowed, and how far it was widened


def prepare(
    potential,
    params,
    system: System,
    integrator: Integrator,
    *,
    masses,
    fixed=None,
    skin: float = 0.5,
    narrow: bool = True,
    observe: Callable | None = None,
    room: float = 1.1,
) -> Run:
    """A run of a batch of structures (host; edges of the system are not used).

    masses: [n_atoms] amu. fixed: [n_atoms] True for held atoms. skin: Å beyond the cutoff of the
    potential: larger lists are searched less often. narrow: the potential gets only the pairs
    within its cutoff, sorted out before every call; pays for all but pair potentials. observe:
    (motion, bodies, system, integrator) -> {name: array} to be recorded, default
    `observables.standard`. room: space for more neighbours than there are now.
    """
    if skin <= 0:
        raise UsageError(f"the skin is {skin} Å; it must be above zero", where="prepare")
    bare = jax.tree.map(jnp.asarray, replace(system, edges=None))
    plan = plan_list(bare, potential.cutoff + skin, room=room)
    width = _width(plan, bare, potential.cutoff, room) if narrow else None
    bodies = bodies_of(system, masses, fixed=fixed, keeps_momentum=integrator.keeps_momentum)
    return Run(
        potential=potential,
        params=params,
        system=bare,
        bodies=jax.tree.map(jnp.asarray, bodies),
        integrator=integrator,
        neighbors=Neighbors(plan=plan, cutoff=float(potential.cutoff), width=width),
        observe=observe or standard,
    )


def _width(plan, system, cutoff, room):
    def most(system):
        return narrowed(replace(system, edges=search(plan, system).edges), cutoff, 4)[1]

    return fours(int(jax.jit(most)(system)) * room)


def fours(size: float) -> int:
    """The multiple of four that holds so many neighbours."""
    return -(-max(int(np.ceil(size)), 1) // 4) * 4


def trajectory(
    run: Run, motion: Motion, *, steps: int, block: int = 100, record: int = 10
) -> Iterator[Block]:
    """Blocks of a trajectory of `steps` steps that goes on from `motion`.

    motion: from `motion.thermal_motion`, `motion.at_rest`, or the end of another trajectory: from
    there it goes on bit for bit (on CPU). block: steps between two returns to the host. record:
    steps between two records; divides `block` and `steps`. Raises `NumericalError` where energies
    or forces are not finite, and gives nothing of that block.
    """
    for name, value in (("block", block), ("steps", steps)):
        if record < 1 or value < record or value % record:
            raise UsageError(f"record = {record} must divide {name} = {value}", where="trajectory")
    motion = started(run, motion)
    while steps > 0:
        done = advance(run, motion, n_records=min(block, steps) // record, record=record)
        run, motion, steps = done.run, done.motion, steps - min(block, steps)
        yield done


def started(run: Run, motion: Motion) -> Motion:
    """The motion with a bath, and a place for a list, if it has none."""
    bath = run.integrator.init(motion, run.bodies) if motion.step < 0 else motion.bath
    return replace(motion, bath=bath, list=motion.list or _no_list(run))


def _no_list(run):
    n, k = run.system.n_atoms, run.neighbors.plan.width
    edges = Edges(
        senders=jnp.zeros((n, k), jnp.int32),
        receivers=None,
        shifts=jnp.zeros((n, k, 3), jnp.int32),
        mask=jnp.zeros((n, k), bool),
    )
    nowhere = jnp.full_like(run.system.positions, jnp.inf)
    return Listed(edges=edges, positions=nowhere, cell=run.system.cell)


def advance(run: Run, motion: Motion, *, n_records: int, record: int) -> Block:
    """n_records x record steps, repeated with wider lists until everything fits."""
    widened = []
    for _ in range(REPEATS):
        end, records, health = _block(
            run.params,
            run.system,
            run.bodies,
            motion,
            apply=run.potential.apply,
            integrator=run.integrator,
            neighbors=run.neighbors,
            observe=run.observe,
            n_records=n_records,
            record=record,
        )
        wider, told = _wider(run, end, health)
        if wider is run:
            _raise_if_broken(run, end, health)
            records = jax.tree.map(np.asarray, records)
            return Block(end, records, run, int(health.searches), tuple(widened))
        widened.append(told)
        run, motion = wider, replace(motion, list=_no_list(wider))
    raise ResourceError(f"neighbour lists overflow after {REPEATS} widenings: {widened[-1]}")


def _wider(run, motion, health):
    """The run with lists that hold what was needed; the same run if all did fit."""
    plan, neighbors = run.neighbors.plan, run.neighbors
    if not health.covered:
        system = replace(run.system, positions=motion.positions, cell=motion.cell)
        plan = plan_list(system, plan.cutoff, room=GROWTH, shrink=0.05)
        return _with(run, plan, neighbors.width), "cells shrank: bins made anew"
    if health.in_bin > plan.per_bin:
        size = whole_words(int(np.ceil(int(health.in_bin) * GROWTH)))
        told = f"atoms of a bin: {plan.per_bin} -> {size}"
        return _with(run, replace(plan, per_bin=size), neighbors.width), told
    if health.in_list > plan.width:
        size = fours(int(health.in_list) * GROWTH)
        told = f"neighbours within {plan.cutoff:.2f} Å: {plan.width} -> {size}"
        return _with(run, replace(plan, width=size), neighbors.width), told
    if neighbors.width is not None and health.in_cutoff > neighbors.width:
        size = fours(int(health.in_cutoff) * GROWTH)
        told = f"neighbours within {neighbors.cutoff:.2f} Å: {neighbors.width} -> {size}"
        return _with(run, plan, size), told
    return run, ""


def _with(run, plan, width):
    return replace(run, neighbors=replace(run.neighbors, plan=plan, width=width))


def _raise_if_broken(run, motion, health):
    if health.finite:
        return
    bad = np.flatnonzero(~np.isfinite(np.asarray(motion.forces)).all(-1))
    first = f"; first atoms without finite forces: {bad[:5].tolist()}" if len(bad) else ""
    time = int(motion.step) * run.integrator.dt / units.fs
    raise NumericalError(
        f"energy or forces are not finite after step {int(motion.step)} ({time:.1f} fs){first}",
        where="trajectory",
        fix="a shorter time step, a relaxed start, or a potential that knows such structures",
    )


# --- on the device -------------------------------------------------------------------------------


@partial(
    jax.jit,
    static_argnames=("apply", "integrator", "neighbors", "observe", "n_records", "record"),
)
def _block(
    params, system, bodies, motion, *, apply, integrator, neighbors, observe, n_records, record
):
    """(motion, records, health) after n_records x record steps, or where something broke."""
    evaluate = partial(_evaluated, apply, params, system, integrator.needs_stress, neighbors)
    before = lambda motion: _unless_new(motion, integrator.before, bodies, system)
    after = lambda motion: _unless_new(motion, integrator.after, bodies, system)

    def step(motion, target, health):
        return (motion.step < target) & health.finite & _fits(health, neighbors)

    def steps(target, carry):
        """Steps until the list is stale, the target is reached, or something broke."""
        motion, health = carry
        proposal = before(motion)
        listed, health = _renewed(proposal, motion.list, health, system, neighbors)

        def go_on(carry):
            motion, proposal, health = carry
            fresh = _slack(proposal, listed, neighbors, system) >= 0
            return step(motion, target, health) & fresh

        def once(carry):
            _, proposal, health = carry
            motion, health = evaluate(proposal, listed.edges, health)
            motion = after(motion)
            motion = replace(motion, step=motion.step + 1)
            return motion, before(motion), health

        bare = lambda motion: replace(motion, list=())
        carry = bare(motion), bare(proposal), health
        motion, _, health = jax.lax.while_loop(go_on, once, carry)
        return replace(motion, list=listed), health

    def until_record(carry, _):
        motion, health = carry
        target = jnp.maximum(motion.step, 0) + record
        motion, health = jax.lax.while_loop(
            lambda carry: step(carry[0], target, carry[1]), partial(steps, target), carry
        )
        return (motion, health), observe(motion, bodies, system, integrator)

    carry = motion, _healthy()
    (motion, health), records = jax.lax.scan(until_record, carry, None, length=n_records)
    return motion, records, health


def _unless_new(motion, part, bodies, system):
    """Part of a step; nothing for a motion that has no forces yet: its first evaluation."""
    moved = part(motion, bodies, system)
    new = motion.step < 0
    keep = lambda a, b: jax.lax.select(jnp.broadcast_to(new, jnp.shape(a)), a, b)
    return jax.tree.map(keep, motion, moved)


def _evaluated(apply, params, system, needs_stress, neighbors, motion, edges, health):
    """The motion with energy, forces and (if needed) stress where it is."""
    system = replace(system, positions=motion.positions, cell=motion.cell, edges=edges)
    if neighbors.width is not None:
        system, most = narrowed(system, neighbors.cutoff, neighbors.width)
        health = replace(health, in_cutoff=jnp.maximum(health.in_cutoff, most))
    out = (predict if needs_stress else with_forces)(apply)(params, system)
    forces = out["forces"].astype(motion.forces.dtype)
    finite = jnp.isfinite(out["energy"]).all() & jnp.isfinite(forces).all()
    stress = out["stress"].astype(motion.stress.dtype) if needs_stress else motion.stress
    energy = out["energy"].astype(motion.energy.dtype)
    motion = replace(motion, forces=forces, energy=energy, stress=stress)
    return motion, replace(health, finite=health.finite & finite)


def _renewed(motion, listed, health, system, neighbors):
    """The list, searched anew if it could lack a pair of the motion."""

    def anew():
        at = replace(system, positions=motion.positions, cell=motion.cell)
        found = search(neighbors.plan, at)
        listed = Listed(edges=found.edges, positions=motion.positions, cell=motion.cell)
        return listed, replace(
            health,
            in_bin=jnp.maximum(health.in_bin, found.most_in_bin),
            in_list=jnp.maximum(health.in_list, found.most_neighbors),
            covered=health.covered & found.covered,
            searches=health.searches + 1,
        )

    fresh = _slack(motion, listed, neighbors, system) >= 0
    return jax.lax.cond(fresh, lambda: (listed, health), anew)


def _slack(motion, listed, neighbors, system):
    """Å that are left before a pair within the cutoff could be missing from the list.

    With a cell that changed by F, a pair that was not listed is now at least
    (cutoff + skin) x (smallest stretch of F) apart, less twice the largest motion beyond F.
    """
    change = jnp.linalg.solve(listed.cell, motion.cell)
    affine = jnp.einsum("na,nab->nb", listed.positions, change[system.graph])
    moved2 = jnp.where(system.atom_mask, ((motion.positions - affine) ** 2).sum(-1), 0)
    stretch = jnp.sqrt(jnp.linalg.eigvalsh(change @ change.swapaxes(-1, -2))[:, 0].min())
    slack = neighbors.plan.cutoff * stretch - neighbors.cutoff - 2 * jnp.sqrt(moved2.max())
    return jnp.where(jnp.isnan(slack), -1.0, slack)


def _fits(health, neighbors):
    plan = neighbors.plan
    fits = (health.in_bin <= plan.per_bin) & (health.in_list <= plan.width) & health.covered
    return fits if neighbors.width is None else fits & (health.in_cutoff <= neighbors.width)


def _healthy():
    none = jnp.zeros((), jnp.int32)
    yes = jnp.asarray(True)
    return Health(in_bin=none, in_list=none, in_cutoff=none, covered=yes, finite=yes, searches=none)
