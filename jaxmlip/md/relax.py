"""Relaxation of positions: a minimiser in compiled blocks, neighbours renewed between them.

A block runs on the device over one edge list that holds all pairs within cutoff + skin. It ends
before an atom has moved more than skin / 2 from where the list was made, so no pair is ever missed.
The host then renews the list. What went wrong on the device is a flag, raised here.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from jaxmlip.derivatives.first import total_energy
from jaxmlip.errors import NumericalError, UsageError
from jaxmlip.md.minimizers import Minimizer, energy_noise, lbfgs
from jaxmlip.neighbors import find_edges
from jaxmlip.system import Array, System, pad


@dataclass(frozen=True, kw_only=True)
class RelaxInfo:
    """How a relaxation stands or ended."""

    converged: bool
    n_steps: int  # evaluations of energy and forces
    fmax: float  # eV/Å, largest norm of the force on a free atom
    energy: float  # eV
    reason: str  # why it ended, in words


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class Progress:
    """What the loop knows: the best structure so far and whether anything broke."""

    n_steps: Array  # evaluations
    positions: Array  # [n_atoms, 3] of the best structure
    energy: Array  # eV, of the best structure
    lowest: Array  # eV, of all: equal to `energy` within rounding
    fmax: Array  # eV/Å, of the best structure
    idle: Array  # evaluations since it got better
    finite: Array  # False after an energy or force that is not finite
    broken: Array  # [n_atoms] atoms whose force was not finite


def relax(
    potential,
    params,
    system: System,
    *,
    fmax: float = 1e-4,
    steps: int = 2000,
    method: Minimizer | None = None,
    fixed=None,
    report: Callable | None = None,
    neighbors: Callable | None = None,
    skin: float = 0.5,
    block: int = 50,
    patience: int = 60,
) -> tuple[System, RelaxInfo]:
    """The structure relaxed until no free atom feels more than `fmax` (eV/Å); the cell is kept.

    One structure; with edges of either layout. steps: most evaluations. method: default
    `lbfgs()`. fixed: [n_atoms] True for atoms that keep their positions exactly. report: called
    with a `RelaxInfo` after every block. neighbors: system -> system with all edges within
    cutoff + skin (Å), default `edges_within`. Ends unconverged, with the reason, after `patience`
    evaluations that lower neither the energy nor, at equal energy within rounding, fmax: in
    float32 that is the floor of rounding. Symmetric starts stay symmetric and may end at a
    saddle: look at the modes. Raises `NumericalError` for energies or forces that are not finite.
    """
    if system.n_graphs != 1:
        raise UsageError(f"relax takes one structure, got a batch of {system.n_graphs}")
    method = method or lbfgs()
    neighbors = neighbors or partial(edges_within, cutoff=potential.cutoff + skin)
    held = ~np.asarray(system.atom_mask)
    if fixed is not None:
        held = held | np.asarray(fixed, bool)
    state, progress = method.init(system.positions), _start(system)
    limits = {"fmax": fmax, "moved": skin / 2, "steps": steps, "patience": patience}
    while True:
        system = neighbors(replace(system, positions=np.asarray(state.trial)))
        until = min(int(progress.n_steps) + block, steps)
        state, progress = _run_block(
            params,
            system,
            state,
            progress,
            held,
            limits,
            until,
            apply=potential.apply,
            step=method.step,
        )
        info = _info(progress, limits)
        _raise_if_broken(progress)
        if report is not None:
            report(info)
        if info.converged or info.n_steps >= steps or progress.idle >= patience:
            return neighbors(replace(system, positions=np.asarray(progress.positions))), info


def edges_within(system: System, *, cutoff: float) -> System:
    """The system with new edges within `cutoff` (Å), host; arrays of edges never get smaller."""
    real = int(np.asarray(system.atom_mask).sum())
    old, flat = system.edges, system.edges is not None and system.edges.receivers is not None
    positions = np.asarray(system.positions)[:real]
    edges = find_edges(
        positions, np.asarray(system.cell)[0], np.asarray(system.pbc)[0], cutoff, flat=flat
    )
    bare = jax.tree.map(lambda x: np.asarray(x)[:real], (system.numbers, system.graph))
    found = replace(system, positions=positions, numbers=bare[0], graph=bare[1], edges=edges)
    width = max(edges.senders.shape[-1], 0 if old is None else old.senders.shape[-1])
    return pad(found, n_atoms=system.n_atoms, **{"n_edges" if flat else "n_neighbors": width})


@partial(jax.jit, static_argnames=("apply", "step"))
def _run_block(params, system, state, progress, held, limits, until, *, apply, step):
    """Steps until converged, stuck, broken, `until` evaluations, or atoms have left the skin."""
    evaluate = jax.value_and_grad(total_energy(apply))
    start = jnp.asarray(system.positions)

    def go_on(carry):
        state, progress = carry
        moved = jnp.linalg.norm(jnp.where(held[:, None], 0, state.trial - start), axis=-1).max()
        return (
            progress.finite
            & (progress.fmax > limits["fmax"])
            & (progress.n_steps < until)
            & (progress.idle < limits["patience"])
            & (moved <= limits["moved"])
        )

    def once(carry):
        state, progress = carry
        energy, gradient = evaluate(state.trial, params, system)
        forces = jnp.where(held[:, None], 0, -gradient)
        finite = _finite(progress, energy, forces)
        state = step(state, energy, forces)
        return state, _better(finite, state)

    return jax.lax.while_loop(go_on, once, (state, progress))


def _finite(progress, energy, forces):
    broken = ~jnp.isfinite(forces).all(-1)
    return replace(
        progress,
        n_steps=progress.n_steps + 1,
        broken=broken,
        finite=jnp.isfinite(energy) & ~broken.any(),
    )


def _better(progress, state):
    """The best structure: the lowest energy and, where energies are equal by rounding, forces."""
    fmax = jnp.linalg.norm(state.forces, axis=-1).max()
    first = jnp.isinf(progress.lowest)
    noise = energy_noise(state.energy, state.positions.dtype)
    lower = first | (state.energy < progress.lowest - noise)
    better = lower | ((state.energy <= progress.lowest + noise) & (fmax < progress.fmax))
    keep = lambda new, old: jnp.where(better, new, old)
    return replace(
        progress,
        positions=keep(state.positions, progress.positions),
        energy=keep(state.energy, progress.energy),
        lowest=jnp.minimum(state.energy, progress.lowest),
        fmax=keep(fmax, progress.fmax),
        idle=keep(0, progress.idle + 1),
    )


def _start(system):
    positions = jnp.asarray(system.positions)
    zero, infinite = jnp.asarray(0, jnp.int32), jnp.asarray(jnp.inf, jnp.result_type(float))
    return Progress(
        n_steps=zero,
        positions=positions,
        idle=zero,
        energy=infinite,
        lowest=infinite,
        fmax=jnp.asarray(jnp.inf, positions.dtype),
        finite=jnp.asarray(True),
        broken=jnp.zeros(system.n_atoms, bool),
    )


def _info(progress, limits) -> RelaxInfo:
    fmax, n_steps, idle = float(progress.fmax), int(progress.n_steps), int(progress.idle)
    converged = fmax <= limits["fmax"]
    if converged:
        reason = f"fmax {fmax:.3g} <= {limits['fmax']:g} eV/Å"
    elif idle >= limits["patience"]:
        reason = (
            f"no progress in {idle} evaluations in {progress.positions.dtype}: fmax stays "
            f"at {fmax:.3g} eV/Å; use float64 or a larger fmax"
        )
    else:
        reason = f"{n_steps} evaluations, fmax {fmax:.3g} > {limits['fmax']:g} eV/Å"
    return RelaxInfo(
        converged=converged,
        n_steps=n_steps,
        fmax=fmax,
        energy=float(progress.energy),
        reason=reason,
    )


def _raise_if_broken(progress):
    if progress.finite:
        return
    atoms = np.flatnonzero(np.asarray(progress.broken))
    what = f"the forces on atoms {atoms[:10].tolist()}" if len(atoms) else "the energy"
    raise NumericalError(
        f"{what} {'are' if len(atoms) else 'is'} not finite",
        fix="look for atoms on top of each other or elements the model does not know",
        where=f"relax, step {int(progress.n_steps)}",
    )
