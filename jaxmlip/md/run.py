"""Molecular dynamics: blocks of steps compiled as one program, neighbours renewed inside it.

A step never uses a list that could lack a pair: before every evaluation the farthest atom is
compared with half the skin, and the list is searched anew where that is passed. What does not fit
into its arrays stops the block; the host throws the block away, widens the list and repeats it from
its kept start. What is not finite stops the block, too, and is raised with the step and the atoms.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxmlip import units
from jaxmlip.errors import DataError, NumericalError, ResourceError, UsageError
from jaxmlip.md.fields import check_forces
from jaxmlip.md.listing import Neighbors, no_list, plan_neighbors, resized, widened
from jaxmlip.md.motion import Bodies, Integrator, Motion, bodies_of, without_drift
from jaxmlip.md.observables import standard
from jaxmlip.md.outcome import outgrown
from jaxmlip.md.stepping import Goal, stepped
from jaxmlip.system import System

REPEATS = 20  # widenings of one block before it is given up


@dataclass(frozen=True, kw_only=True)
class Run:
    """What a trajectory needs beside its motion; made by `prepare`."""

    potential: Any
    params: Any
    system: System  # without edges
    bodies: Bodies
    integrator: Integrator
    neighbors: Neighbors
    observe: tuple[Callable, ...]  # one for each interval of `trajectory`
    keep: tuple[str, ...] = ()  # what `motion.extra` holds of the prediction
    field: Callable | None = None  # time in fs -> V/Å


class Block(NamedTuple):
    """What a block of steps gives."""

    motion: Motion  # at its end
    records: Any  # {name: [n_records, ...]} of every `record` steps; a tuple where those are
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
    fixed_center: bool = False,
    field: Callable | None = None,
    skin: float = 0.5,
    narrow: bool = True,
    observe: Callable | tuple[Callable, ...] | None = None,
    keep: tuple[str, ...] = (),
    room: float = 1.1,
) -> Run:
    """A run of a batch of structures (host; edges of the system are not used).

    masses: [n_atoms] amu. fixed: [n_atoms] True for held atoms. fixed_center: nothing moves the
    centres of mass. field: an electric field that changes, V/Å: a function of the time in fs that
    gives [3] or [n_graphs, 3]; a constant one is that of the system. skin: Å beyond the cutoff of
    the potential: larger lists are searched less often. narrow: the potential gets only the pairs
    within its cutoff, sorted out before every call; pays for all but pair potentials. observe:
    (motion, bodies, system, integrator) -> {name: array} to be recorded, default
    `observables.standard`, or an `observables.Measured`; a tuple of them for records of several
    intervals. keep: names of the prediction, such as dipole, to be in `motion.extra` (and so in
    the records) at no cost. room: space for more neighbours than there are now. `UsageError` JM110
    for a field that has no forces in a crystal (`derivatives.check_field`).
    """
    _check_positions(system)
    bare = jax.tree.map(jnp.asarray, replace(system, edges=None))
    bodies = bodies_of(
        system,
        masses,
        fixed=fixed,
        fixed_center=fixed_center,
        keeps_momentum=integrator.keeps_momentum,
    )
    integrator.check(system, bodies)
    stress = integrator.needs_stress
    check_forces(potential, params, bare, field=field, strained=stress, where="prepare")
    neighbors = plan_neighbors(
        bare,
        potential.cutoff,
        skin=skin,
        narrow=narrow,
        moving_cell=integrator.moves_cell,
        room=room,
    )
    return Run(
        potential=potential,
        params=params,
        system=bare,
        bodies=jax.tree.map(jnp.asarray, bodies),
        integrator=integrator,
        neighbors=neighbors,
        field=field,
        observe=observe if type(observe) is tuple else (observe or standard,),  # Measured is none
        keep=tuple(keep),
    )


def _check_positions(system):
    wrong = ~np.isfinite(np.asarray(system.positions)).all(1) & np.asarray(system.atom_mask)
    if wrong.any():
        i = int(wrong.argmax())
        raise DataError(
            f"atom {i} is at {np.asarray(system.positions)[i].tolist()}; {int(wrong.sum())} "
            "atom(s) are nowhere",
            where="prepare",
            code="JM203",
            fix="mend the coordinates",
        )


def trajectory(
    run: Run,
    motion: Motion,
    *,
    steps: int,
    block: int = 100,
    record: int | tuple[int, ...] = 10,
    origin: int | None = None,
    first: bool = False,
) -> Iterator[Block]:
    """Blocks of a trajectory of `steps` steps that goes on from `motion`.

    motion: from `motion.thermal_motion`, `motion.at_rest`, or the end of another trajectory: from
    there it goes on bit for bit (on CPU). block: steps between two returns to the host. record:
    steps between two records, divides `steps`; a tuple gives each function of `run.observe` its
    own interval, and `records` are a tuple, too. origin: the step that intervals are counted from,
    default that of the motion. first: a new motion is recorded as it starts, too. Raises
    `NumericalError` where energies or forces are not finite, and gives nothing of that block.
    """
    every = record if isinstance(record, tuple) else (record,)
    if len(every) != len(run.observe):
        raise UsageError(
            f"{len(every)} intervals for {len(run.observe)} functions", where="trajectory"
        )
    start = max(int(motion.step), 0)
    end, origin = start + steps, start if origin is None else origin
    for value in every:
        if value < 1 or (end - origin) % value:
            raise UsageError(
                f"record = {value} must divide steps = {end - origin}", where="trajectory"
            )
    if block < 1:
        raise UsageError(f"block = {block}; it must be at least 1", where="trajectory")
    motion = started(run, motion)
    while int(motion.step) < end:
        until = min(max(int(motion.step), 0) + block, end)
        goal = Goal(until=until, origin=origin, first=first)
        done = _advanced(run, motion, goal, every=every, size=block)
        run, motion = done.run, done.motion
        yield done if isinstance(record, tuple) else done._replace(records=done.records[0])


def started(run: Run, motion: Motion) -> Motion:
    """The motion with a bath, a list and room for what is kept, where they are not there or not
    those of the run. Raises `UsageError` for a motion that another integrator has moved.
    """
    if motion.step < 0:
        motion = replace(motion, bath=run.integrator.init(motion, run.bodies))
    _check_bath(run, motion)
    empty = no_list(run.neighbors, run.system)
    listed = motion.list if _shapes(motion.list) == _shapes(empty) else empty
    known = set(motion.extra) == set(run.keep)
    extra = dict(motion.extra) if known else _no_extra(run, empty)
    return replace(motion, list=listed, extra=extra)


def handed_over(run: Run, motion: Motion) -> Motion:
    """A motion that another integrator has moved, for this run: it begins anew where it is.

    A bath that pushes centres of mass (Langevin) leaves them moving; where nothing pushes them any
    more they are brought to rest, for their motion has no share in the temperature.
    """
    motion = replace(motion, step=jnp.full((), -1, jnp.int32), list=())
    if run.integrator.keeps_momentum or run.bodies.center is not None:
        motion = without_drift(motion, run.bodies, run.system)
    return started(run, motion)


def _shapes(tree):
    leaves, structure = jax.tree.flatten(tree)
    return structure, [(x.shape, x.dtype) for x in leaves]


def _check_bath(run, motion):
    wanted = jax.eval_shape(run.integrator.init, motion, run.bodies)
    unknown = run.integrator.needs_stress and np.isnan(motion.stress).all()
    if _shapes(motion.bath) != _shapes(wanted) or (unknown and motion.step >= 0):
        raise UsageError(
            "another integrator has moved this motion: it lacks what this one remembers",
            where="trajectory",
            fix="handed_over(run, motion) begins anew where it is",
        )


def _no_extra(run, listed):
    """Room for what is kept of the prediction."""
    system = replace(run.system, edges=listed.edges)
    shapes = jax.eval_shape(run.potential.apply, run.params, system)
    missing = [name for name in run.keep if name not in shapes]
    if missing:
        raise UsageError(
            f"the potential does not predict {', '.join(missing)}",
            where="prepare",
            fix=f"it predicts {', '.join(sorted(shapes))}",
        )
    return {name: jnp.full(shapes[name].shape, jnp.nan, shapes[name].dtype) for name in run.keep}


def advance(run: Run, motion: Motion, *, n_records: int, record: int) -> Block:
    """n_records x record steps, repeated with wider lists until everything fits."""
    start, steps = max(int(motion.step), 0), n_records * record
    goal = Goal(until=start + steps, origin=start, first=False)
    done = _advanced(run, motion, goal, every=(record,), size=steps)
    return done._replace(records=done.records[0])


def _advanced(run, motion, goal, *, every, size):
    tried = []
    for again in range(REPEATS):
        end, records, health = stepped(
            run.params,
            run.system,
            run.bodies,
            motion,
            goal,
            apply=run.potential.apply,
            integrator=run.integrator,
            neighbors=run.neighbors,
            observe=run.observe,
            keep=run.keep,
            field=run.field,
            every=every,
            sizes=tuple(size // n + 1 for n in every),
        )
        at = replace(run.system, positions=end.positions, cell=end.cell)
        neighbors, told = widened(run.neighbors, at, health, again=again)
        if not told:
            check_finite(run, end, health)
            records = tuple(_recorded(*found) for found in jax.device_get(records))
            return Block(end, records, run, int(health.searches), tuple(tried))
        tried += told
        run = replace(run, neighbors=neighbors)
        motion = replace(motion, list=resized(motion.list, neighbors))
    raise ResourceError(f"neighbour lists overflow after {REPEATS} widenings: {tried[-1]}")


def _recorded(count, rows):
    return {name: np.asarray(value)[: int(count)] for name, value in rows.items()}


def check_finite(run, motion, health) -> None:
    """Raises `NumericalError`, with the step and atoms, where a run was stopped by what is not."""
    if health.finite:
        return
    bad = np.flatnonzero(~np.isfinite(np.asarray(motion.forces)).all(-1))
    first = f"; first atoms without finite forces: {bad[:5].tolist()}" if len(bad) else ""
    time = int(motion.step) * run.integrator.dt / units.fs
    raise NumericalError(
        f"energy or forces are not finite after step {int(motion.step)} ({time:.1f} fs){first}",
        where="trajectory",
        fix="a shorter time step, a relaxed start, or a potential that knows such structures"
        + outgrown(run.potential),
    )
