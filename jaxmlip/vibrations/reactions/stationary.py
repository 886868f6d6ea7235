"""Points where no force is left, with a given number of directions downhill.

One loop for minima (none) and transition states (one): rational steps on a quadratic model of the
energy, whose curvature is exact (a Hessian by automatic differentiation) or learnt from
Hessian-vector products and changes of the gradient. Whatever was found is looked at with exact
curvature in the end: a point with another number of imaginary modes is left, or reported.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np

from jaxmlip.errors import DataError, UsageError
from jaxmlip.vibrations.reactions import surface as surfaces
from jaxmlip.vibrations.reactions.curvature import Curvature
from jaxmlip.vibrations.reactions.quadratic import rational_step, updated
from jaxmlip.vibrations.reactions.surface import Surface

LONGEST = 0.3  # Å; no step along the uphill mode, and none of the others together, is longer


@dataclass(frozen=True, kw_only=True)
class StationaryPoint:
    """How a search stands or ended; host numpy."""

    converged: bool  # forces below fmax and as many imaginary modes as asked for
    n_steps: int  # evaluations of energy and forces
    n_products: int  # Hessian-vector products; a Hessian of n free atoms counts 3 n
    fmax: float  # eV/Å, largest norm of the force on a free atom
    energy: float  # eV
    frequencies_cm1: np.ndarray  # all (exact Hessian) or the lowest; imaginary ones negative
    mode: np.ndarray  # [n_atoms, 3] mass-weighted unit vector of the lowest
    n_imaginary: int  # those beyond `soft_cm1`
    reason: str  # why it ended, in words


def search(
    at: Surface,
    *,
    order: int,
    curvature: Curvature,
    fmax: float,
    steps: int,
    follow=0,
    trust: float = 0.1,
    kicks: int = 3,
    kick: float = 0.1,
    soft_cm1: float = 1.0,
    ceiling: float = 100.0,
    report: Callable | None = None,
) -> tuple[Surface, StationaryPoint]:
    """The stationary point of `order` (0 minimum, 1 saddle) that rational steps lead to.

    follow: which mode goes uphill, by its number at the start (0 the lowest) or by a direction
    [n_atoms, 3]; then the mode most like it. trust, kick: Å. Where forces vanish at a point of
    another order (a symmetric start), atoms are moved by `kick` along the mode that is wrong and
    the search goes on, at most `kicks` times. soft_cm1: imaginary modes below it do not count.
    ceiling: eV above the start where a way uphill that has no end is given up. Raises `DataError`
    where the free atoms have no motions but rigid ones.
    """
    _check_inner(at)
    goal = _Goal(order, curvature, fmax, steps, follow, _direction(at, follow), soft_cm1, kick)
    state = _State(at, *surfaces.slope(at), n_steps=1, trust=trust)
    ceiling = state.energy + ceiling
    while True:
        info = _report(state, goal)
        if report is not None:
            report(info)
        over = state.n_steps >= steps or state.energy > ceiling
        if info.fmax > fmax and not over:
            state = _advanced(state, goal)
            continue
        found = goal.curvature.modes(state.at, state.model, state.guess(goal))
        state = replace(state, n_products=state.n_products + found.products)
        info = _report(state, goal, found)
        right = info.n_imaginary == order  # perhaps not for certain, but no mode is known as wrong
        if right or over or kicks <= 0:
            high = "the way uphill has no end: " if state.energy > ceiling else ""
            return state.at, replace(info, reason=high + info.reason)
        state, kicks = replace(_kicked(state, info, found, goal), trust=trust), kicks - 1


def _check_inner(at):
    if not surfaces.inner_motions(at).shape[1]:
        raise DataError(
            f"{len(at.free)} free atom(s) have no motions but those of the whole",
            where="search on the energy surface",
            fix="a structure of two atoms or more; one atom moves against others that are held",
        )


class _Goal(NamedTuple):
    order: int
    curvature: Curvature
    fmax: float
    steps: int
    follow: object
    direction: np.ndarray | None  # [3 n_free] of `follow`, where it is one
    soft_cm1: float
    kick: float


@dataclass(frozen=True)
class _State:
    at: Surface
    energy: float
    gradient: np.ndarray  # [3 n_free]
    model: np.ndarray | None = None
    mode: np.ndarray | None = None  # [3 n_free] the mode that goes uphill
    n_steps: int = 0
    n_products: int = 0
    age: int = 0
    trust: float = 0.1
    stale: bool = True  # whether the model is older than the point

    def guess(self, goal):
        """What is known of the mode that goes uphill."""
        known = (v for v in (self.mode, goal.direction) if v is not None)
        return next(known, self.gradient)


def _advanced(state, goal):
    """One step, taken back if the model was far from the truth."""
    if state.stale:
        model, products = goal.curvature.model(state.at, state.model, state.guess(goal), state.age)
        state = replace(
            state, model=model, n_products=state.n_products + products, age=state.age + 1
        )
    inner = surfaces.inner_motions(state.at)
    values, axes = np.linalg.eigh(inner.T @ state.model @ inner)
    axes = inner @ axes
    up = [_followed(axes, state.mode, goal)] if goal.order else []
    slopes = axes.T @ state.gradient
    step = axes @ _trusted(rational_step(values, slopes, up=up), up, state.trust)
    mode = axes[:, up[0]] if up else axes[:, 0]
    return _taken(state, step, mode)


def _taken(state, step, mode):
    there = surfaces.moved(state.at, step)
    energy, gradient = surfaces.slope(there)
    expected = state.gradient @ step + step @ state.model @ step / 2
    ratio, known = _ratio(energy - state.energy, expected, state.energy)
    model = updated(state.model, step, gradient - state.gradient)
    length = np.linalg.norm(step)
    common = replace(state, model=model, mode=mode, n_steps=state.n_steps + 1)
    if known and not -1 < ratio < 3 and length > 1e-3:
        return replace(common, trust=length / 4, stale=False)
    trust = state.trust
    if known and not 0.25 < ratio < 1.75:
        trust = max(trust / 2, 1e-3)
    elif known and 0.75 < ratio < 1.25:
        trust = min(trust * 1.5, LONGEST)
    return replace(common, at=there, energy=energy, gradient=gradient, trust=trust, stale=True)


def _ratio(change, expected, energy):
    """Change of energy over what the model said, and whether rounding leaves it a meaning."""
    noise = 1e-9 + 1e-12 * abs(energy)
    known = abs(expected) > noise
    return (change / expected if known else 1.0), known


def _trusted(step, up, trust):
    """Each part no longer than `trust`, so that a long way up does not stop the way down."""
    above = np.isin(np.arange(len(step)), up)
    out = np.empty_like(step)
    for part in (above, ~above):
        norm = np.linalg.norm(step[part])
        out[part] = step[part] * min(1.0, trust / max(norm, 1e-300))
    return out


def _direction(at, follow):
    """[3 n_free] of a direction that was given, or None."""
    if np.ndim(follow) == 0:
        return None
    follow = np.asarray(follow, np.float64)
    if follow.shape != at.positions.shape:
        raise UsageError(f"follow has shape {follow.shape}, not {at.positions.shape}")
    flat = follow[at.free].reshape(-1)
    norm = np.linalg.norm(flat)
    if not norm > 0:
        raise UsageError("follow moves no free atom")
    return flat / norm


def _followed(axes, mode, goal):
    """Number of the eigenvector (column) that goes uphill."""
    like = goal.direction if mode is None else mode
    if like is not None:
        return int(np.abs(axes.T @ like).argmax())
    if not 0 <= goal.follow < axes.shape[1]:
        raise UsageError(f"there is no mode {goal.follow}; there are {axes.shape[1]}")
    return int(goal.follow)


def _kicked(state, info, found, goal):
    """Off a point of the wrong order: up the mode that is followed, or down one that is not."""
    axes = found.vectors[:, state.at.free].reshape(len(found.vectors), -1)
    axes = (axes / state.at.root_masses).T
    axes = axes / np.linalg.norm(axes, axis=0)
    kept = _followed(axes, state.mode, goal) if goal.order else None
    many = info.n_imaginary > goal.order
    wrong = next(k for k in range(axes.shape[1]) if k != kept) if many else kept
    there = surfaces.moved(state.at, goal.kick * axes[:, wrong])
    energy, gradient = surfaces.slope(there)
    return replace(
        state,
        at=there,
        energy=energy,
        gradient=gradient,
        mode=None if kept is None else axes[:, kept],
        n_steps=state.n_steps + 1,
        stale=True,
    )


def _report(state, goal, found=None) -> StationaryPoint:
    force = surfaces.largest_force(state.at, state.gradient)
    small = force <= goal.fmax
    reason = f"fmax {force:.3g} {'<=' if small else '>'} {goal.fmax:g} eV/Å"
    if not small:
        reason = f"{state.n_steps} evaluations, {reason}"
    frequencies = np.zeros(0) if found is None else found.frequencies_cm1
    imaginary = frequencies[frequencies < -goal.soft_cm1]
    if found is not None:
        listed = ", ".join(f"{f:.0f}" for f in imaginary[:5])
        reason += f", {len(imaginary)} imaginary mode(s)" + f": {listed} cm⁻¹" * bool(listed)
        reason += "" if found.certain else " (lowest modes not resolved)"
    return StationaryPoint(
        converged=bool(small and found and found.certain and len(imaginary) == goal.order),
        n_steps=state.n_steps,
        n_products=state.n_products,
        fmax=force,
        energy=state.energy,
        frequencies_cm1=frequencies,
        mode=np.zeros_like(state.at.positions) if found is None else found.vectors[0],
        n_imaginary=len(imaginary),
        reason=reason,
    )
