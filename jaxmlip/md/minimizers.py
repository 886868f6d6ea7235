"""Minimisers of a function of positions, as `(init, step)` pairs that ask and are told.

`state.trial` is where energy and forces are wanted next; `step(state, energy, forces)` takes them
and returns the next state. So a minimiser never calls a potential, costs one evaluation a step
(a refused step too), and the loop around it decides when neighbours are renewed. Forces of
held atoms are given as zero, and then these atoms keep their positions to the last bit.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.scipy.linalg import solve_triangular

from jaxmlip.system import Array


class Minimizer(NamedTuple):
    """`init(positions) -> state` and `step(state, energy, forces) -> state`."""

    init: Callable
    step: Callable


def energy_noise(energy, dtype):
    """How far an energy of this size (eV) may be off by rounding in `dtype`."""
    return 4 * jnp.finfo(dtype).eps * jnp.maximum(jnp.abs(energy), 1.0)


def limit_step(step, largest):
    """The step scaled down, if needed, so that no atom moves farther than `largest` (Å)."""
    length = jnp.linalg.norm(step, axis=-1).max()
    return step * jnp.minimum(1, largest / jnp.maximum(length, 1e-30))


# --- L-BFGS --------------------------------------------------------------------------------------


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class LBFGSState:
    positions: Array  # [n_atoms, 3] the last accepted
    energy: Array  # eV, inf before the first evaluation
    forces: Array  # [n_atoms, 3]
    trial: Array  # [n_atoms, 3] where to evaluate next
    steps: Array  # [memory, n_atoms, 3] differences of positions, newest last
    changes: Array  # [memory, n_atoms, 3] differences of gradients
    radius: Array  # Å, the farthest an atom may move in the next step


@lru_cache
def lbfgs(*, memory: int = 100, max_step: float = 0.2, softness: float = 0.1) -> Minimizer:
    """Limited-memory BFGS (Nocedal, 1980, 10.1090/S0025-5718-1980-0572855-7).

    max_step: Å, for any atom. softness: Å²/eV, the first guess of the inverse Hessian: 1/70 suits
    bonds, but torsions set the number of steps, and too long a step is refused at little cost.
    A step that raises the energy is refused and the next one is shorter, by a parabola through
    what is known; pairs without positive curvature are not learned from, so the direction
    always goes downhill. Where energies cannot tell (rounding), forces along the step do
    (Hager and Zhang, 2005, 10.1137/030601880).
    """

    def init(positions):
        positions = jnp.asarray(positions)
        history = jnp.zeros((memory, *positions.shape), positions.dtype)
        return LBFGSState(
            positions=positions,
            energy=_wide(jnp.inf),
            forces=jnp.zeros_like(positions),
            trial=positions,
            steps=history,
            changes=history,
            radius=jnp.asarray(max_step, positions.dtype),
        )

    def step(state, energy, forces):
        move, energy = state.trial - state.positions, _wide(energy)
        accepted = _downhill(state, energy, forces, move)
        state = _learn(state, move, state.forces - forces)
        radius = jnp.where(
            accepted, jnp.minimum(2 * state.radius, max_step), _shorter(state, energy, move)
        )
        keep = lambda new, old: jnp.where(accepted, new, old)
        state = replace(
            state,
            positions=keep(state.trial, state.positions),
            radius=radius,
            energy=keep(energy, state.energy),
            forces=keep(forces, state.forces),
        )
        move = limit_step(_direction(state, softness), radius)
        return replace(state, trial=state.positions + move)

    return Minimizer(init, step)


def _downhill(state, energy, forces, move):
    """Whether the trial is taken: a lower energy, or one equal within rounding and less slope."""
    first = jnp.isinf(state.energy)
    noise = energy_noise(jnp.where(first, energy, state.energy), move.dtype)
    close = jnp.abs(energy - state.energy) <= noise
    falling = -(forces * move).sum() <= 0.8 * (state.forces * move).sum()
    return first | jnp.where(close, falling, energy < state.energy)


def _learn(state, move, change):
    """The state with one more pair, if its curvature is positive and not lost in rounding."""
    product = (move * change).sum()
    scale = jnp.sqrt((move**2).sum() * (change**2).sum())
    useful = jnp.isfinite(state.energy) & (product > 1e-4 * scale) & (scale > 0)
    append = lambda old, new: jnp.where(useful, jnp.roll(old, -1, 0).at[-1].set(new), old)
    return replace(state, steps=append(state.steps, move), changes=append(state.changes, change))


def _shorter(state, energy, move):
    """Radius after a refused step: to the minimum of a parabola, within 0.1 and 0.5 of it."""
    slope = -(state.forces * move).sum()
    rise = (energy - state.energy).astype(move.dtype)
    part = -slope / jnp.maximum(2 * (rise - slope), 1e-30)
    return jnp.clip(part, 0.1, 0.5) * jnp.linalg.norm(move, axis=-1).max()


def _direction(state, softness):
    """Inverse Hessian times forces, in the compact form (Byrd, Nocedal and Schnabel, 1994,
    10.1007/BF01582063): a few products with all pairs at once, where two loops would be hundreds
    of small steps, each a launch on a GPU.
    """
    rows = lambda x: x.reshape(x.shape[0], -1)
    dot = partial(jnp.matmul, precision=jax.lax.Precision.HIGHEST)
    s, y, f = rows(state.steps), rows(state.changes), state.forces.reshape(-1)
    sy = dot(s, y.T)
    diagonal = jnp.diagonal(sy)
    upper = jnp.triu(sy) + jnp.diag(jnp.where(diagonal > 0, 0, 1))  # empty pairs: a unit row
    u = solve_triangular(upper, dot(s, f))
    inner = diagonal * u + softness * dot(y, dot(u, y) - f)
    v = solve_triangular(upper, inner, trans=1)
    out = softness * (f - dot(u, y)) + dot(v, s)
    out = jnp.where(dot(out, f) > 0, out, softness * f)  # downhill, whatever rounding has done
    return out.reshape(state.forces.shape)


# --- FIRE ----------------------------------------------------------------------------------------


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class FIREState:
    positions: Array  # [n_atoms, 3] the last evaluated
    energy: Array  # eV
    forces: Array  # [n_atoms, 3]
    trial: Array  # [n_atoms, 3] where to evaluate next
    velocities: Array  # [n_atoms, 3] of particles of mass 1 amu
    dt: Array  # Å sqrt(amu/eV)
    mixing: Array  # share of the velocity that is turned along the force
    downhill: Array  # steps since the power was last negative


@lru_cache
def fire(*, dt: float = 0.1, max_dt: float = 1.0, max_step: float = 0.2) -> Minimizer:
    """Fast inertial relaxation engine (Bitzek et al., 2006, 10.1103/PhysRevLett.97.170201).

    Dynamics of equal masses that stops whenever it goes uphill. dt in Å sqrt(amu/eV), max_step
    in Å for any atom. Slower than `lbfgs`, but content with noisy or kinked forces.
    """

    def init(positions):
        positions = jnp.asarray(positions)
        number = lambda x: jnp.asarray(x, positions.dtype)
        zero = jnp.zeros_like(positions)
        return FIREState(
            positions=positions,
            energy=_wide(jnp.inf),
            forces=zero,
            trial=positions,
            velocities=zero,
            dt=number(dt),
            mixing=number(0.1),
            downhill=jnp.asarray(0, jnp.int32),
        )

    def step(state, energy, forces):
        forward = (forces * state.velocities).sum() >= 0
        faster = forward & (state.downhill > 5)
        time = jnp.where(
            forward,
            jnp.where(faster, jnp.minimum(1.1 * state.dt, max_dt), state.dt),
            0.5 * state.dt,
        )
        along = forces * jnp.linalg.norm(state.velocities)
        along = along / jnp.maximum(jnp.linalg.norm(forces), 1e-30)
        mixed = (1 - state.mixing) * state.velocities + state.mixing * along
        velocities = jnp.where(forward, mixed, 0) + time * forces
        return FIREState(
            positions=state.trial,
            energy=_wide(energy),
            forces=forces,
            velocities=velocities,
            trial=state.trial + limit_step(time * velocities, max_step),
            dt=time,
            mixing=jnp.where(forward, jnp.where(faster, 0.99, 1) * state.mixing, 0.1),
            downhill=jnp.where(forward, state.downhill + 1, 0),
        )

    return Minimizer(init, step)


def _wide(energy):
    """An energy in the widest float there is: differences of totals are what counts."""
    return jnp.asarray(energy, jnp.result_type(float))
