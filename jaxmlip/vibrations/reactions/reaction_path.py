"""The path of steepest descent from a transition state, both ways, in mass-weighted coordinates.

Each step is an arc of the circle that is tangent to the gradient at both of its ends (Gonzalez and
Schlegel, 1990, 10.1021/j100377a021): the next point has the lowest energy on a sphere about a
pivot half a step ahead. The exact Hessian at the saddle (or what products with it have told),
updated from gradients, guides it.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from jaxmlip.errors import NumericalError, UsageError
from jaxmlip.system import System
from jaxmlip.vibrations.reactions import surface as surfaces
from jaxmlip.vibrations.reactions.curvature import Curvature, exact_hessian
from jaxmlip.vibrations.reactions.quadratic import updated
from jaxmlip.vibrations.reactions.stationary import StationaryPoint, search
from jaxmlip.vibrations.reactions.surface import Surface


@dataclass(frozen=True, kw_only=True)
class ReactionPath:
    """Points from one end over the saddle to the other; host numpy, float64."""

    distance: np.ndarray  # [n_points] amu^1/2 Å along the path, zero at the saddle
    energies: np.ndarray  # [n_points] eV
    positions: np.ndarray  # [n_points, n_atoms, 3] Å
    fmax: np.ndarray  # [n_points] eV/Å
    ends: tuple[StationaryPoint, StationaryPoint] | None  # the minima both ends relax to
    end_positions: np.ndarray | None  # [2, n_atoms, 3] Å of them
    reasons: tuple[str, str]  # why the path ended, backward and forward
    n_steps: int  # evaluations of energy and forces, without relaxing the ends

    @property
    def barriers(self) -> np.ndarray:
        """[2] eV from the (relaxed) ends to the saddle, without zero-point energy."""
        saddle = self.energies[np.flatnonzero(self.distance == 0)[0]]
        ends = self.energies[[0, -1]] if self.ends is None else [e.energy for e in self.ends]
        return saddle - np.asarray(ends)


def reaction_path(
    potential,
    params,
    system: System,
    *,
    masses,
    mode=None,
    step: float = 0.1,
    steps: int = 200,
    fmax: float = 0.01,
    fixed=None,
    project: bool = True,
    relax: bool = True,
    relax_fmax: float = 1e-4,
    curvature: Curvature | None = None,
    saddle_fmax: float = 0.05,
    report: Callable | None = None,
    skin: float = 0.5,
) -> ReactionPath:
    """The intrinsic reaction coordinate through the saddle `system` stands on.

    masses: [n_atoms] amu. mode: [n_atoms, 3] mass-weighted direction away from the saddle,
    default its imaginary mode; forward is along it. step: amu^1/2 Å between points; steps: most
    points each way. A side ends where no force is above `fmax` (eV/Å) or the energy would rise.
    relax: relax both ends to minima (`relax_fmax`). report: called with (side, points, energy).
    curvature: default the whole Hessian of the saddle and more of the ends; `hessian_products()`
    where they are too large. Raises `UsageError` if the forces at the start are above
    `saddle_fmax`, `NumericalError` if there is no imaginary mode to leave it by.
    """
    if not (step > 0 and steps > 0):
        raise UsageError(f"step is {step}, steps {steps}; both must be positive")
    at = surfaces.surface(
        potential, params, system, masses, fixed=fixed, project=project, skin=skin
    )
    energy, gradient = surfaces.slope(at)
    top = _Point(at, energy, gradient)
    if top.fmax > saddle_fmax:
        raise UsageError(
            f"a force of {top.fmax:.3g} eV/Å acts at the start, limit {saddle_fmax:g}",
            where="reaction_path",
            fix="find the transition state first",
        )
    hessian = _weighted_model(at, curvature or exact_hessian(), mode)
    away = _downhill_mode(at, hessian, mode)
    limits = {"step": step, "steps": steps, "fmax": fmax}
    sides = []
    for sign in (-1, 1):
        tell = (lambda n, e, s=sign: report(s, n, e)) if report else None
        sides.append(_descent(top, sign * away, hessian, report=tell, **limits))
    to_end = {"fmax": relax_fmax, "curvature": curvature or exact_hessian(4)}
    ends = [_relaxed(points[-1].at, **to_end) for points, _, _ in sides] if relax else None
    return _joined(top, sides, ends)


@dataclass(frozen=True)
class _Point:
    at: Surface
    energy: float
    gradient: np.ndarray  # [3 n_free] eV/Å, not mass-weighted

    @property
    def fmax(self):
        return surfaces.largest_force(self.at, self.gradient)

    @property
    def slope(self):
        """Gradient in mass-weighted coordinates."""
        return self.gradient / self.at.root_masses


def _point(at):
    return _Point(at, *surfaces.slope(at))


def _weighted_model(at, curvature, mode):
    """The Hessian at the saddle [3 n_free, 3 n_free], mass-weighted, or what is known of it."""
    if mode is None:
        guess = np.random.default_rng(0).normal(size=3 * len(at.free))  # no symmetry hides it
    else:
        guess = _downhill_mode(at, None, mode) / at.root_masses
    model, _ = curvature.model(at, None, guess, 0)
    return model / np.outer(at.root_masses, at.root_masses)


def _downhill_mode(at, hessian, mode):
    """Unit vector [3 n_free], mass-weighted, of negative curvature."""
    if mode is not None:
        mode = np.asarray(mode, np.float64)
        if mode.shape != at.positions.shape or not mode[at.free].any():
            raise UsageError(
                f"mode has shape {mode.shape} and must be {at.positions.shape}, not all zero"
            )
        flat = mode[at.free].reshape(-1)
        return flat / np.linalg.norm(flat)
    inner = surfaces.inner_motions(at, weighted=True)
    values, vectors = np.linalg.eigh(inner.T @ hessian @ inner)
    if not len(values) or not values[0] < 0:
        raise NumericalError(
            "there is no imaginary mode to leave this point by: it is no saddle",
            where="reaction_path",
            fix="find the transition state first",
        )
    return inner @ vectors[:, 0]


def _descent(top, away, hessian, *, step, steps, fmax, report):
    """Points (without the saddle), why it ended, evaluations."""
    point = _point(surfaces.moved(top.at, step * away / top.at.root_masses))
    if point.energy >= top.energy:
        raise NumericalError(
            f"the energy rises by {point.energy - top.energy:.2g} eV on the first step "
            f"of {step:g} amu^1/2 Å",
            where="reaction_path",
            fix="a smaller step, or a better converged transition state",
        )
    points, used = [point], 1
    while True:
        if report is not None:
            report(len(points), point.energy)
        if point.fmax <= fmax:
            return points, f"fmax {point.fmax:.3g} <= {fmax:g} eV/Å", used
        if len(points) >= steps:
            return points, f"{steps} points, fmax {point.fmax:.3g} eV/Å", used
        new, hessian, tried = _next(point, hessian, step)
        used += tried
        if new.energy >= point.energy:
            return points, f"the energy has a minimum, fmax {point.fmax:.3g} eV/Å", used
        points.append(new)
        point = new


def _next(point, hessian, step, *, tolerance=1e-3, tries=12):
    """The point of lowest energy on the sphere of radius step / 2 about the pivot."""
    root, radius = point.at.root_masses, step / 2
    ahead = -point.slope / np.linalg.norm(point.slope)
    arm, used = radius * ahead, 0  # from the pivot
    new, old = None, point
    place = lambda arm: surfaces.moved(point.at, (radius * ahead + arm) / root)
    last = np.zeros_like(arm)  # where `old` is, from the start
    while True:
        new, used = _point(place(arm)), used + 1
        here = radius * ahead + arm
        hessian = updated(hessian, here - last, new.slope - old.slope)
        old, last = new, here
        normal = arm / radius
        across = new.slope - normal * (normal @ new.slope)
        if np.linalg.norm(across) <= tolerance * np.linalg.norm(new.slope) or used >= tries:
            return new, hessian, used
        arm = _on_sphere(arm, new.slope, hessian, radius)


def _on_sphere(arm, slope, hessian, radius):
    """The minimum of the quadratic model on the sphere: (H - x) new = H arm - slope."""
    values, axes = np.linalg.eigh(hessian)
    source = axes.T @ (hessian @ arm - slope)
    high = values[0] - 1e-12 * max(1.0, abs(values[0]))
    low = values[0] - np.linalg.norm(source) / radius - 1.0
    length = lambda x: np.linalg.norm(source / (values - x))
    for _ in range(200):  # length grows with x
        middle = (low + high) / 2
        low, high = (low, middle) if length(middle) > radius else (middle, high)
    new = axes @ (source / (values - low))
    return new * radius / np.linalg.norm(new)


def _relaxed(at, *, fmax, curvature):
    """The minimum at an end; short steps, so that it stays in its valley."""
    return search(at, order=0, curvature=curvature, fmax=fmax, steps=300, trust=0.05)


def _joined(top, sides, ends) -> ReactionPath:
    (back, why_back, used), (ahead, why_ahead, more) = sides
    points = [*back[::-1], top, *ahead]
    q = np.stack([p.at.positions for p in points]) * np.sqrt(top.at.masses)[:, None]
    apart = np.linalg.norm(np.diff(q, axis=0), axis=(1, 2))
    along = np.append(0.0, np.cumsum(apart))
    return ReactionPath(
        distance=along - along[len(back)],
        energies=np.array([p.energy for p in points]),
        positions=np.stack([p.at.positions for p in points]),
        fmax=np.array([p.fmax for p in points]),
        ends=None if ends is None else tuple(info for _, info in ends),
        end_positions=None if ends is None else np.stack([at.positions for at, _ in ends]),
        reasons=(why_back, why_ahead),
        n_steps=1 + used + more,
    )
