"""Neighbours inside the loop of a trajectory: kept while they are surely complete, else made anew.

A list holds the pairs within cutoff + skin of where it was made. It is exact as long as no pair
that is not listed can have come within the cutoff, however atoms and cells have moved since.
"""

from dataclasses import dataclass, replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from jaxmlip.bins import ListPlan, table_rows
from jaxmlip.cell_list import plan_list, search
from jaxmlip.errors import UsageError
from jaxmlip.images import Images, edges_of, narrowed
from jaxmlip.system import Array, Edges

GROWTH = 1.25  # of what overflows
LITTLE = 1.05  # of what overflows by no more than twice as much: empty room costs time, too
PATIENCE = 3  # times that a block may overflow by little, before that is taken for a rise
CROWDED = 2  # times as many atoms in a bin as there was room for: the bins do not suit any more
SHRINK = 0.05  # part by which heights of cells that move may fall before bins are made anew


@dataclass(frozen=True, kw_only=True)
class Neighbors:
    """How the loop keeps its neighbours; static."""

    plan: ListPlan  # within cutoff + skin
    cutoff: float  # Å, of the potential
    width: int | None  # slots of the edges that the potential sees; None: those of the plan
    moving_cell: bool = False


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class Listed:
    """A neighbour list inside the loop, and where it was made."""

    images: Images  # the pairs within `reach`
    reach: Array  # Å, cutoff + skin when it was made
    positions: Array  # [n_atoms, 3] Å
    cell: Array  # [n_graphs, 3, 3] Å

    @property
    def edges(self) -> Edges:
        """All pairs of the list."""
        return edges_of(self.images)


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


# --- sizes, on the host --------------------------------------------------------------------------


def plan_neighbors(system, cutoff, *, skin, narrow, moving_cell, room) -> Neighbors:
    """Sizes for the batch as it is; arguments as in `run.prepare`."""
    if skin <= 0:
        raise UsageError(f"the skin is {skin} Å; it must be above zero", where="prepare")
    shrink = SHRINK if moving_cell else 0.0
    plan = plan_list(system, cutoff + skin, room=room, shrink=shrink)
    cutoff = float(cutoff)
    width = fours(int(_most_within(plan, system, cutoff)) * room) if narrow else None
    return Neighbors(plan=plan, cutoff=cutoff, width=width, moving_cell=moving_cell)


@partial(jax.jit, static_argnums=(0, 2))
def _most_within(plan, system, cutoff):
    return narrowed(system, search(plan, system).images, cutoff, 4)[1]


def fours(size: float) -> int:
    """The multiple of four that holds so many neighbours."""
    return -(-max(int(np.ceil(size)), 1) // 4) * 4


def widened(
    neighbors: Neighbors, system, health: Health, *, again: int = 0
) -> tuple[Neighbors, list[str]]:
    """Sizes that hold what a block needed, and what was widened; the same ones if all did fit.

    system: at the end of the block. again: how often the block has overflowed before.
    """
    plan, width, told = neighbors.plan, neighbors.width, []
    if not health.covered:
        return replace(neighbors, plan=_anew(plan, system)), ["cells shrank: bins made anew"]
    if health.finite and health.in_bin > CROWDED * plan.per_bin:
        new = plan_list(system, plan.cutoff, room=GROWTH, shrink=SHRINK)
        if new.bins != plan.bins:  # an atom that goes away takes the bins of the others with it
            plan = _holding(new, plan)
            return replace(neighbors, plan=plan), ["atoms gather in few bins: bins made anew"]
    more = partial(_more, again=again)
    if health.in_bin > plan.per_bin:
        size = int(np.ceil(more(health.in_bin, plan.per_bin)))
        told.append(f"atoms of a bin: {plan.per_bin} -> {size}")
        plan = replace(plan, per_bin=size)
    if health.in_list > plan.width:
        size = fours(more(health.in_list, plan.width))
        told.append(f"neighbours within {plan.cutoff:.2f} Å: {plan.width} -> {size}")
        plan = replace(plan, width=size)
    if width is not None and health.in_cutoff > width:
        size = fours(more(health.in_cutoff, width))
        told.append(f"neighbours within {neighbors.cutoff:.2f} Å: {width} -> {size}")
        width = size
    return (replace(neighbors, plan=plan, width=width) if told else neighbors), told


def _anew(plan, system):
    """Bins that cover the cells and extents of now, and those that the plan was made for."""
    anew = partial(plan_list, system, plan.cutoff, room=GROWTH, shrink=SHRINK)
    new = anew(also=plan)
    if (new.bins, new.reach) == (plan.bins, plan.reach):  # it shrank within the block alone
        fewer = tuple(tuple(max(n - 1, 1) for n in bins) for bins in plan.bins)
        new = anew(also=replace(plan, bins=fewer))
    return _holding(new, plan)


def _holding(new, plan):
    """A new plan with a place for the list that is kept."""
    return replace(new, width=max(new.width, plan.width), rows=table_rows(plan))


def _more(needed, had, *, again):
    """Room to make for what was needed where there was less.

    What fluctuates is a little more at first; what goes on rising is so again and again.
    """
    little = again < PATIENCE and needed <= had * (2 * LITTLE - 1)
    return int(needed) * (LITTLE if little else GROWTH)


# --- on the device -------------------------------------------------------------------------------


def no_list(neighbors: Neighbors, system) -> Listed:
    """A list that is stale wherever the atoms are."""
    n, plan = system.n_atoms, neighbors.plan
    none = lambda *shape: jnp.zeros(shape, jnp.int32)
    rows = table_rows(plan)
    images = Images(
        index=none(n, plan.width), atoms=none(rows), shifts=none(rows, 3), home=none(n, 3)
    )
    nowhere = jnp.full_like(system.positions, jnp.inf)
    return _made(images, nowhere, system.cell, neighbors)


def resized(listed: Listed, neighbors: Neighbors) -> Listed:
    """The list in arrays of another plan, at least as large: it is as fresh as it was."""
    images, plan = listed.images, neighbors.plan
    more = table_rows(plan) - len(images.atoms)
    images = replace(
        images,
        index=jnp.pad(images.index, [(0, 0), (0, plan.width - images.index.shape[1])]),
        atoms=jnp.pad(images.atoms, (0, more)),
        shifts=jnp.pad(images.shifts, [(0, more), (0, 0)]),
    )
    return replace(listed, images=images)


def _made(images, positions, cell, neighbors):
    reach = jnp.asarray(neighbors.plan.cutoff, positions.dtype)
    return Listed(images=images, reach=reach, positions=positions, cell=cell)


def healthy() -> Health:
    """Nothing needed yet."""
    none = jnp.zeros((), jnp.int32)
    yes = jnp.asarray(True)
    return Health(in_bin=none, in_list=none, in_cutoff=none, covered=yes, finite=yes, searches=none)


def fits(health: Health, neighbors: Neighbors) -> Array:
    """Whether everything that was needed had a place."""
    plan = neighbors.plan
    fits = (health.in_bin <= plan.per_bin) & (health.in_list <= plan.width) & health.covered
    return fits if neighbors.width is None else fits & (health.in_cutoff <= neighbors.width)


def renewed(motion, listed: Listed, health: Health, system, neighbors: Neighbors):
    """(list, health): the list, searched anew if it could lack a pair of the motion."""

    def anew():
        at = replace(system, positions=motion.positions, cell=motion.cell)
        found = search(neighbors.plan, at)
        listed = _made(found.images, motion.positions, motion.cell, neighbors)
        needed = replace(
            health,
            in_bin=jnp.maximum(health.in_bin, found.most_in_bin),
            in_list=jnp.maximum(health.in_list, found.most_neighbors),
            covered=health.covered & found.covered,
            searches=health.searches + 1,
        )
        # a place that is not finite would never have a fresh list: it must stop the loop
        lost = replace(health, finite=jnp.asarray(False))
        finite = jnp.isfinite(motion.positions).all() & jnp.isfinite(motion.cell).all()
        return listed, jax.tree.map(lambda a, b: jnp.where(finite, a, b), needed, lost)

    return jax.lax.cond(fresh(motion, listed, system, neighbors), lambda: (listed, health), anew)


def fresh(motion, listed: Listed, system, neighbors: Neighbors) -> Array:
    """Whether no pair within the cutoff can be missing from the list; False for NaN.

    With a cell that changed by F, a pair that was not listed is now at least
    reach x (smallest stretch of F) apart, less twice the largest motion beyond F.
    """
    reach, start, same = listed.reach, listed.positions, (listed.cell == motion.cell).all()
    if neighbors.moving_cell:
        change = jnp.linalg.solve(listed.cell, motion.cell)
        start = jnp.einsum("na,nab->nb", start, change[system.graph])
        square = change @ change.swapaxes(-1, -2)
        reach, same = reach * jnp.sqrt(jnp.linalg.eigvalsh(square)[:, 0].min()), True
    moved2 = sum((motion.positions[:, i] - start[:, i]) ** 2 for i in range(3))
    moved2 = jnp.where(system.atom_mask, moved2, 0)
    return same & (reach - neighbors.cutoff - 2 * jnp.sqrt(moved2.max()) >= 0)


def seen(system, motion, listed: Listed, neighbors: Neighbors):
    """The system at the motion with the edges that a potential sees; and the most that an atom
    has, to be compared with `neighbors.width`.
    """
    at = replace(system, positions=motion.positions, cell=motion.cell)
    if neighbors.width is None:
        return replace(at, edges=listed.edges), jnp.zeros((), jnp.int32)
    edges, most = narrowed(at, listed.images, neighbors.cutoff, neighbors.width)
    return replace(at, edges=edges), most
