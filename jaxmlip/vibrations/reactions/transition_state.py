"""Transition states: points without forces that have one direction downhill.

Eigenvector following by partitioned rational function optimisation (Banerjee, Adams, Simons and
Shepard, 1985, 10.1021/j100247a015; Baker, 1986, 10.1002/jcc.540070402) on exact curvature: the
whole Hessian (`exact_hessian`) or its lowest mode from Hessian-vector products
(`hessian_products`), as in the dimer method but without its finite difference.
"""

from collections.abc import Callable

from jaxmlip.system import System
from jaxmlip.vibrations.reactions import surface as surfaces
from jaxmlip.vibrations.reactions.curvature import Curvature, exact_hessian, hessian_products
from jaxmlip.vibrations.reactions.stationary import StationaryPoint, search

__all__ = ["StationaryPoint", "exact_hessian", "hessian_products", "minimum", "transition_state"]


def transition_state(
    potential,
    params,
    system: System,
    *,
    masses,
    fmax: float = 1e-4,
    steps: int = 300,
    curvature: Curvature | None = None,
    follow=0,
    trust: float = 0.1,
    fixed=None,
    project: bool = True,
    kicks: int = 3,
    soft_cm1: float = 1.0,
    report: Callable | None = None,
    skin: float = 0.5,
) -> tuple[System, StationaryPoint]:
    """A saddle of first order near `system` (one structure), and how it was found.

    masses: [n_atoms] amu, for the frequencies only. curvature: `exact_hessian(every)` (default,
    every step) or `hessian_products()`. follow: the mode that goes uphill, by its number at the
    start or by a direction [n_atoms, 3]. trust: Å, first length of a step. fixed: [n_atoms] True
    for held atoms. project: False for a potential that is not blind to translations and rotations.
    `converged` is True only if no force is above `fmax` (eV/Å) and exactly one mode is imaginary
    (beyond `soft_cm1`); from a stationary point of another order the search is moved on, at most
    `kicks` times. At most `steps` evaluations; the reason it ended is in words. Raises
    `NumericalError` for energies or forces that are not finite.
    """
    return _search(potential, params, system, masses, fixed, project, skin)(
        order=1,
        curvature=curvature or exact_hessian(),
        fmax=fmax,
        steps=steps,
        follow=follow,
        trust=trust,
        kicks=kicks,
        soft_cm1=soft_cm1,
        report=report,
    )


def minimum(
    potential,
    params,
    system: System,
    *,
    masses,
    fmax: float = 1e-4,
    steps: int = 300,
    curvature: Curvature | None = None,
    trust: float = 0.1,
    fixed=None,
    project: bool = True,
    kicks: int = 3,
    soft_cm1: float = 1.0,
    report: Callable | None = None,
    skin: float = 0.5,
) -> tuple[System, StationaryPoint]:
    """A minimum that is one: a symmetric start at a saddle is left along its imaginary mode.

    Options as in `transition_state`; for speed on large systems use `jaxmlip.md.relax`.
    """
    return _search(potential, params, system, masses, fixed, project, skin)(
        order=0,
        curvature=curvature or exact_hessian(),
        fmax=fmax,
        steps=steps,
        trust=trust,
        kicks=kicks,
        soft_cm1=soft_cm1,
        report=report,
    )


def _search(potential, params, system, masses, fixed, project, skin):
    at = surfaces.surface(
        potential, params, system, masses, fixed=fixed, project=project, skin=skin
    )

    def run(**options):
        there, info = search(at, **options)
        return surfaces.standing(there), info

    return run
