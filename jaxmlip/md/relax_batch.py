"""Relaxation of many structures at once, each to its own minimum; one program for all sizes.

The minimisers are those of one structure, mapped over the batch: rows of atoms are brought to equal
lengths, and energies and forces of all structures are one evaluation. A structure that has arrived,
or is stuck or broken, stays where it is while others go on, so each ends as it would alone.
Neighbours are renewed inside the loop; what overflows ends a block, which is repeated with room.
"""

from dataclasses import dataclass, replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from jaxmlip.cell_list import with_edges
from jaxmlip.errors import NumericalError, ResourceError, UsageError
from jaxmlip.md.cell import as_function, exponential, free_strains, stiffness_length
from jaxmlip.md.fields import check_forces
from jaxmlip.md.listing import (
    fits,
    healthy,
    no_list,
    plan_neighbors,
    renewed,
    resized,
    seen,
    widened,
)
from jaxmlip.md.minimizers import Minimizer, lbfgs
from jaxmlip.md.outcome import RelaxInfo, info_of
from jaxmlip.md.relax import Aim, better, finite, held_atoms, nothing_yet
from jaxmlip.md.run import REPEATS
from jaxmlip.system import Array, System, strain, sum_atoms

BLOCK = 100  # evaluations between two looks of the host


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class Places:
    """Where atoms are among the rows [n_graphs, most atoms + 3] that are moved, and their cells."""

    graph: Array  # [n_atoms]
    row: Array  # [n_atoms]
    held: Array  # [n_graphs, rows] bool: no atom, or one that is held
    cell: Array  # [n_graphs, 3, 3] Å, at no strain
    scale: Array  # [n_graphs] Å, length of a unit of strain
    free: Array  # [n_graphs, 3, 3, 3, 3] projectors on the strains that are free
    pressure: Array  # eV/Å³


def relax_batch(
    potential,
    params,
    system: System,
    *,
    pressure: float | None = None,
    fmax: float = 1e-4,
    stress: float = 1e-6,
    free=None,
    fixed=None,
    steps: int = 2000,
    method: Minimizer | None = None,
    skin: float = 0.5,
    patience: int = 60,
) -> tuple[System, list[RelaxInfo]]:
    """All structures of a batch relaxed, as `relax` or, with a pressure, `relax_cell` does one.

    pressure: eV/Å³; None keeps the cells. steps: most evaluations, of any structure. A structure
    whose energy, forces or next step are not finite ends there, and its `reason` says so; the
    others go on. Padding is allowed; edges are not used, those of the result are all within the
    cutoff. Other arguments and units as in `relax_cell`; L-BFGS keeps 200 times the positions of
    the batch, all structures as large as its largest. Symmetry is not kept beyond what forces keep.
    """
    if steps < 1:
        raise UsageError(f"steps = {steps}; it must be at least 1", where="relax_batch")
    _check(system, pressure)
    method, bare = method or lbfgs(), jax.tree.map(jnp.asarray, replace(system, edges=None))
    places = _places(system, pressure, free, fixed)
    aim = Aim(
        fmax=fmax,
        stress=np.inf if pressure is None else stress,
        patience=patience,
        cutoff=potential.cutoff,
        skin=skin,
        held=np.zeros(0, bool),
    )
    moving = pressure is not None
    check_forces(potential, params, bare, strained=moving, where="relax_batch")
    neighbors = plan_neighbors(
        bare, potential.cutoff, skin=skin, narrow=True, moving_cell=moving, room=1.1
    )
    trial = _rows(system.positions, places)
    carry = jax.vmap(method.init)(trial), jax.vmap(nothing_yet)(trial)
    listed, n, tried = no_list(neighbors, bare), 0, 0
    while n < steps:
        (*end, found), health = _block(
            params,
            bare,
            places,
            aim,
            (*carry, listed),
            min(n + BLOCK, steps),
            apply=potential.apply,
            step=method.step,
            neighbors=neighbors,
        )
        at = _moved(bare, end[0].trial, places)
        neighbors, told = widened(neighbors, at, health, again=tried)
        if told:
            tried += 1
            if tried > REPEATS:
                raise ResourceError(f"neighbour lists overflow, {REPEATS} times: {told[-1]}")
            listed = resized(listed, neighbors)
            continue
        if not health.finite:
            raise NumericalError("positions or cells are not finite", where="relax_batch")
        carry, listed, n, tried = tuple(end), found, n + BLOCK, 0
        if not np.asarray(_active(carry[1], aim)).any():
            break
    best = _moved(bare, carry[1].trial, places)
    return with_edges(best, potential.cutoff), _infos(carry[1], aim, system.n_graphs)


def _check(system, pressure):
    where = "relax_batch"
    positions = np.asarray(system.positions)[np.asarray(system.atom_mask)]
    graph = np.asarray(system.graph)[np.asarray(system.atom_mask)]
    wrong = np.unique(graph[~np.isfinite(positions).all(1)])
    if len(wrong):
        raise UsageError(f"positions of structure {wrong[0]} are not finite", where=where)
    open_ = ~np.asarray(system.pbc)[np.unique(graph)].any(1)
    if pressure is not None and open_.any():
        raise UsageError(
            f"structure {np.unique(graph)[open_][0]} has no periodic axis and so no volume",
            where=where,
            fix="relax molecules in a batch of their own, with pressure=None",
        )


def _infos(progress, aim, n):
    progress = jax.device_get(progress)
    one = lambda i: jax.tree.map(lambda x: x[i], progress)
    infos = [info_of(one(i), aim) for i in range(n)]
    broken = "energy, forces or the next step are not finite"
    return [
        info if progress.finite[i] else replace(info, converged=False, reason=broken)
        for i, info in enumerate(infos)
    ]


def _places(system, pressure, free, fixed) -> Places:
    """Host."""
    graph, n = np.asarray(system.graph), system.n_graphs
    first = np.searchsorted(graph, np.arange(n))
    row = np.arange(len(graph)) - first[graph]
    held = np.ones((n, row.max(initial=-1) + 4), bool)
    held[graph, row] = held_atoms(system, fixed)
    held[:, -3:] = False
    real = np.asarray(system.atom_mask)
    count = np.maximum(np.bincount(graph[real], minlength=n), 1)
    dtype, cells = np.asarray(system.positions).dtype, np.asarray(system.cell, float)
    pbc = np.asarray(system.pbc)
    none = np.zeros((n, 3, 3, 3, 3))
    projectors = none if pressure is None else _projectors(cells, pbc, as_function(free))
    scale = np.array([stiffness_length(c, k) for c, k in zip(cells, count, strict=True)])
    return Places(
        graph=graph,
        row=row,
        held=held,
        cell=cells.astype(dtype),
        scale=np.where(scale > 0, scale, 1).astype(dtype),
        free=projectors.astype(dtype),
        pressure=np.asarray(pressure or 0.0, dtype),
    )


def _projectors(cells, pbc, free):
    """Of the strains that are free, within the space of the periodic vectors of each structure."""
    known, out = {}, []
    for cell, periodic in zip(cells, pbc, strict=True):
        vectors = cell[periodic]
        space = np.eye(3) if periodic.all() else np.linalg.pinv(vectors) @ vectors
        name = space.round(12).tobytes()
        if name not in known:
            within = lambda e, space=space: space @ e @ space
            known[name] = free_strains(free, within) if len(vectors) else np.zeros((3, 3, 3, 3))
        out.append(known[name])
    return np.stack(out)


def _rows(positions, places):
    """[n_graphs, rows, 3]: atoms, what fills up, and no strain."""
    zero = jnp.zeros((*places.held.shape, 3), np.asarray(positions).dtype)
    return zero.at[places.graph, places.row].set(jnp.asarray(positions))


# --- on the device -------------------------------------------------------------------------------


def _active(progress, aim):
    """Which structures still move, [n_graphs]."""
    return progress.finite & (progress.distance > 1) & (progress.idle < aim.patience)


@partial(jax.jit, static_argnames=("apply", "step", "neighbors"))
def _block(params, system, places, aim, carry, until, *, apply, step, neighbors):
    """((state, progress, list), health) at `until` evaluations, or where all has ended."""

    def go_on(carry):
        (_, progress, _), health = carry
        active = _active(progress, aim) & (progress.n_steps < until)
        return active.any() & health.finite & fits(health, neighbors)

    def once(carry):
        (state, progress, listed), health = carry
        at = _moved(system, state.trial, places)
        listed, health = renewed(at, listed, health, system, neighbors)
        at, most = seen(system, at, listed, neighbors)
        health = replace(health, in_cutoff=jnp.maximum(health.in_cutoff, most))
        energy, forces, fmax, stress = _evaluate(apply, params, at, state.trial, places)
        now = jax.vmap(finite)(progress, energy, forces)
        now = jax.vmap(partial(better, aim=aim))(now, state.trial, energy, fmax, stress)
        moved = jax.vmap(step)(state, energy, forces)
        now = replace(now, finite=now.finite & _placed(system, moved.trial, places))
        active = _active(progress, aim)
        keep = lambda new, old: jnp.where(active.reshape(-1, *[1] * (old.ndim - 1)), new, old)
        state = jax.tree.map(partial(_unless_lost, now.finite), moved, state)
        return jax.tree.map(keep, (state, now), carry[0][:2]) + (listed,), health

    return jax.lax.while_loop(go_on, once, (carry, healthy()))


def _placed(system, trial, places):
    """Which structures can be where their trial is: a force may be finite and its square not."""
    at = _moved(system, trial, places)
    lost = sum_atoms(at, (~jnp.isfinite(at.positions)).any(-1).astype(jnp.float32)) > 0
    return ~lost & jnp.isfinite(at.cell).all((1, 2))


def _unless_lost(finite, new, old):
    """A structure that is not finite stays where it was: the list must not see its next place."""
    return jnp.where(finite.reshape(-1, *[1] * (old.ndim - 1)), new, old)


def _stretch(trial, places, sign=1):
    strains = jnp.einsum(
        "gijkl,gkl->gij",
        places.free,
        trial[:, -3:] / places.scale[:, None, None],
        precision=jax.lax.Precision.HIGHEST,
    )
    return jax.vmap(exponential)(sign * strains)


@jax.jit
def _moved(system, trial, places):
    """The structures at trial."""
    stretch, x = _stretch(trial, places), trial[places.graph, places.row]
    product = partial(jnp.einsum, precision=jax.lax.Precision.HIGHEST)
    positions = product("na,nab->nb", x, stretch[places.graph])
    return replace(system, positions=positions, cell=product("gab,gbc->gac", places.cell, stretch))


def _evaluate(apply, params, system, trial, places):
    """Enthalpies, forces on trial, the largest true force and stress, of each structure."""

    def enthalpy(trial, epsilon):
        moved = strain(_moved(system, trial, places), (epsilon + epsilon.swapaxes(1, 2)) / 2)
        volume = jnp.abs(jnp.linalg.det(moved.cell))
        each = apply(params, moved)["energy"] + places.pressure * volume
        return each.sum(), (each, volume)

    zero = jnp.zeros_like(jnp.asarray(places.cell))
    slope = jax.value_and_grad(enthalpy, (0, 1), has_aux=True)
    (_, (energy, volume)), (by_trial, by_strain) = slope(trial, zero)
    rows = jnp.where(places.held[..., None], 0, -by_trial)
    product = partial(jnp.einsum, precision=jax.lax.Precision.HIGHEST)
    actual = product("gra,gab->grb", rows[:, :-3], _stretch(trial, places, -1))
    left = product("gijkl,gkl->gij", places.free, by_strain)
    fmax = jnp.linalg.norm(actual, axis=-1).max(1)
    return energy, rows, fmax, jnp.abs(left).max((1, 2)) / volume
