"""Relaxation: a minimiser in compiled blocks, neighbours renewed between them.

A block runs on the device over one edge list that holds all pairs within cutoff + skin. It ends
before a pair that is not listed can have come within the cutoff, so no pair is ever missed. The
host then renews the list. What went wrong on the device is a flag, raised here. The loop does not
know what it moves: `Coordinates` say so, positions here, positions and cell in `md.cell`.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxmlip.derivatives.first import total_energy
from jaxmlip.derivatives.response import check_field
from jaxmlip.errors import UsageError
from jaxmlip.md.minimizers import Minimizer, energy_noise, lbfgs
from jaxmlip.md.outcome import RelaxInfo, info_of, raise_if_broken
from jaxmlip.neighbors import edges_within
from jaxmlip.system import Array, System


class Coordinates(NamedTuple):
    """What is moved, as pure functions of the minimiser's array [n, 3] and the system."""

    # (apply, params, system, trial, aim) -> energy, forces like trial, fmax, stress
    evaluate: Callable
    slack: Callable  # (trial, start, aim) -> Å that are left before a pair could be missed
    place: Callable  # (system, trial, aim) -> the system moved to trial


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class Aim:
    """Where a relaxation shall end, and the numbers that its coordinates need."""

    fmax: Array  # eV/Å
    stress: Array  # eV/Å³
    patience: Array
    cutoff: Array  # Å, of the potential
    skin: Array  # Å
    held: Array  # [n_atoms] bool
    data: Any = None


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class Progress:
    """What the loop knows: the best structure so far and whether anything broke."""

    n_steps: Array  # evaluations
    trial: Array  # [n, 3] coordinates of the best structure
    energy: Array  # eV, of the best structure
    lowest: Array  # eV, of all: equal to `energy` within rounding
    fmax: Array  # eV/Å, of the best structure
    stress: Array  # eV/Å³, of the best structure
    distance: Array  # the larger of fmax and stress as parts of what is aimed at
    idle: Array  # evaluations since it got better
    finite: Array  # False after an energy or force that is not finite
    broken: Array  # [n] rows whose force was not finite


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
    check_single(system)
    aim = Aim(
        fmax=fmax,
        stress=np.inf,
        patience=patience,
        cutoff=potential.cutoff,
        skin=skin,
        held=held_atoms(system, fixed),
    )
    return minimise(
        potential,
        params,
        system,
        jnp.asarray(system.positions),
        POSITIONS,
        aim,
        steps=steps,
        method=method,
        report=report,
        neighbors=neighbors,
        block=block,
    )


def minimise(
    potential,
    params,
    system,
    trial,
    coordinates: Coordinates,
    aim: Aim,
    *,
    steps: int,
    method: Minimizer | None,
    report: Callable | None,
    neighbors: Callable | None,
    block: int,
) -> tuple[System, RelaxInfo]:
    """The host loop of every relaxation, from `trial`: blocks, new edges, reports, the end."""
    method = method or lbfgs()
    neighbors = neighbors or partial(edges_within, cutoff=float(aim.cutoff + aim.skin))
    state, progress = method.init(trial), nothing_yet(trial)
    if np.any(system.field):
        strained, start = bool(np.isfinite(aim.stress)), coordinates.place(system, trial, aim)
        check_field(potential.apply, params, neighbors(start), strained=strained, where="relax")
    while True:
        system = neighbors(coordinates.place(system, state.trial, aim))
        until = min(int(progress.n_steps) + block, steps)
        state, progress = _run_block(
            params,
            system,
            state,
            progress,
            aim,
            until,
            apply=potential.apply,
            step=method.step,
            coordinates=coordinates,
        )
        info = info_of(progress, aim)
        raise_if_broken(progress, system.n_atoms, potential)
        if report is not None:
            report(info)
        if info.converged or info.n_steps >= steps or progress.idle >= aim.patience:
            return neighbors(coordinates.place(system, progress.trial, aim)), info


def check_single(system) -> None:
    if system.n_graphs != 1:
        raise UsageError(
            f"relax takes one structure, got a batch of {system.n_graphs}", fix="relax_batch"
        )


def held_atoms(system, fixed):
    """[n_atoms] True for padding and for atoms that are fixed."""
    held = ~np.asarray(system.atom_mask)
    return held if fixed is None else held | np.asarray(fixed, bool)


# --- positions alone -----------------------------------------------------------------------------


def _evaluate(apply, params, system, trial, aim):
    energy, gradient = jax.value_and_grad(total_energy(apply))(trial, params, system)
    forces = jnp.where(aim.held[:, None], 0, -gradient)
    return energy, forces, jnp.linalg.norm(forces, axis=-1).max(), jnp.zeros((), forces.dtype)


def _slack(trial, start, aim):
    return aim.skin / 2 - jnp.linalg.norm(trial - start, axis=-1).max()


def _place(system, trial, aim):
    return replace(system, positions=np.asarray(trial))


POSITIONS = Coordinates(_evaluate, _slack, _place)


# --- on the device -------------------------------------------------------------------------------


@partial(jax.jit, static_argnames=("apply", "step", "coordinates"))
def _run_block(params, system, state, progress, aim, until, *, apply, step, coordinates):
    """Steps until converged, stuck, broken, `until` evaluations, or a pair could be missed."""
    start = state.trial

    def go_on(carry):
        state, progress = carry
        return (
            progress.finite
            & (progress.distance > 1)
            & (progress.n_steps < until)
            & (progress.idle < aim.patience)
            & (coordinates.slack(state.trial, start, aim) >= 0)
        )

    def once(carry):
        state, progress = carry
        energy, forces, fmax, stress = coordinates.evaluate(apply, params, system, state.trial, aim)
        progress = finite(progress, energy, forces)
        progress = better(progress, state.trial, energy, fmax, stress, aim)
        return step(state, energy, forces), progress

    return jax.lax.while_loop(go_on, once, (state, progress))


def finite(progress, energy, forces):
    """One more evaluation, and whether all of it is finite."""
    broken = ~jnp.isfinite(forces).all(-1)
    return replace(
        progress,
        n_steps=progress.n_steps + 1,
        broken=broken,
        finite=jnp.isfinite(energy) & ~broken.any(),
    )


def better(progress, trial, energy, fmax, stress, aim):
    """The best structure: the lowest energy and, where energies are equal by rounding, forces."""
    energy = jnp.asarray(energy, progress.energy.dtype)
    distance = jnp.maximum(fmax / aim.fmax, stress / aim.stress).astype(progress.distance.dtype)
    first = jnp.isinf(progress.lowest)
    noise = energy_noise(energy, trial.dtype)
    lower = first | (energy < progress.lowest - noise)
    wins = lower | ((energy <= progress.lowest + noise) & (distance < progress.distance))
    keep = lambda new, old: jnp.where(wins, new, old)
    return replace(
        progress,
        trial=keep(trial, progress.trial),
        energy=keep(energy, progress.energy),
        lowest=jnp.minimum(energy, progress.lowest),
        fmax=keep(fmax, progress.fmax),
        stress=keep(stress, progress.stress),
        distance=keep(distance, progress.distance),
        idle=keep(0, progress.idle + 1),
    )


def nothing_yet(trial) -> Progress:
    """What is known before the first evaluation."""
    infinite = lambda dtype: jnp.asarray(jnp.inf, dtype)
    wide = jnp.result_type(float)
    return Progress(
        n_steps=jnp.asarray(0, jnp.int32),
        trial=trial,
        idle=jnp.asarray(0, jnp.int32),
        energy=infinite(wide),
        lowest=infinite(wide),
        fmax=infinite(trial.dtype),
        stress=infinite(trial.dtype),
        distance=infinite(trial.dtype),
        finite=jnp.asarray(True),
        broken=jnp.zeros(len(trial), bool),
    )
