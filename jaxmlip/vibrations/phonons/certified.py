"""Interpolated dynamical matrices whose error has been measured.

The exact D(q) is taken at few points; everything else is interpolated. The error is the largest
difference of any frequency at exact points that the interpolation has not seen, and the exact
points become more until `SAFETY` times that is below the tolerance. Where the budget ends first,
the result says so and is not certified.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from jaxmlip.errors import NumericalError, UsageError
from jaxmlip.vibrations.phonons.dispersion import Crystal, frequencies_THz
from jaxmlip.vibrations.phonons.grids import (
    different,
    first_of_each,
    keys,
    q_grid,
    star,
    star_matrices,
)
from jaxmlip.vibrations.phonons.interpolation import (
    MANY,
    FourierSum,
    best_prior,
    from_grid,
    from_points,
    least_certain,
    prior,
)
from jaxmlip.vibrations.phonons.velocities import Matrices, slopes

# The largest error at a few points is less than the largest of all: seen are 1.65 x, and 6 x where
# the former was an eighth of the tolerance.
SAFETY = 2.0
PRIORS = ((0.7, 4), (1.5, 4), (1.5, 6), (3.0, 6))  # Å and power, tried for how pairs fall off


@dataclass(frozen=True, kw_only=True)
class Certified:
    """An interpolation and what is known of its error."""

    D: FourierSum
    error_THz: float  # largest difference of a frequency at exact points it had not seen
    tolerance_THz: float
    n_exact: int  # exact matrices that were computed in all
    n_measured: int  # exact points at which `error_THz` was measured
    shape: tuple | None  # of the grid it rests on; None for points chosen one by one
    history: tuple  # (n_exact, error_THz) of every round

    @property
    def certified(self) -> bool:
        return SAFETY * self.error_THz <= self.tolerance_THz


def raise_unless_certified(found: Certified) -> None:
    """`NumericalError` JM307 where the budget has ended before the tolerance was met."""
    if not found.certified:
        raise NumericalError(
            f"not certified: frequencies between the {found.n_exact} exact points are off by up "
            f"to {found.error_THz:.3g} THz, tolerance {found.tolerance_THz:g} THz",
            where="phonons",
            code="JM307",
            fix="a larger budget of exact points, or a larger tolerance",
        )


def remembered(D: Callable) -> tuple[Callable, dict]:
    """(D that computes nothing twice, not at -q and not at q plus a reciprocal vector; its table).

    The table has one entry for every matrix that was computed; slopes are those of D, and leave
    nothing in it.
    """
    table = {}

    def matrices(q):
        q = np.asarray(q, np.float64).reshape(-1, 3)
        names, own = keys(q)
        new = [i for i in first_of_each(names) if names[i] not in table]
        if new:
            found = np.asarray(D(q[new]), np.complex128)
            table.update(
                (names[i], m if own[i] else m.conj()) for i, m in zip(new, found, strict=True)
            )
        out = np.stack([table[name] for name in names])
        return np.where(own[:, None, None], out, out.conj())

    return Matrices(values=matrices, slopes=lambda q, cell: slopes(D, q, cell)), table


# --- anywhere: a grid ----------------------------------------------------------------------------


def certified_mesh(
    D: Callable,
    crystal: Crystal,
    *,
    tolerance: float = 0.02,
    budget: int = 400,
    start: float = 8.0,
    checks: int = 12,
    nonanalytic: Callable | None = None,
    report: Callable | None = None,
) -> Certified:
    """D(q) for any q of the Brillouin zone, from an exact grid fine enough for `tolerance` (THz).

    D: exact and analytic in q; nonanalytic(q) [n_q, 3n, 3n] is added to both sides before
    frequencies are compared. budget: most exact matrices. start: Å, the shortest width of the
    supercell that the first grid corresponds to. The error is measured at `checks` points in
    general position, the same in every round, and halfway between the points of the grid about
    Gamma. report: called with (n_exact, error, shape) after every round. Not certified where a
    finer grid would exceed the budget; `UsageError` where Gamma alone does.
    """
    exact, table = remembered(D)
    width, history, found = start, [], None
    while True:
        grid = q_grid(crystal, _shape(crystal, width))
        test = np.concatenate([generic(checks), _halfway(crystal, grid.shape)])
        if len(table) + _unknown(table, [*grid.q, *test]) > budget:
            if found is not None:
                return found
            _check_budget(grid, len(test), budget)
            width /= 1.5
            continue
        D_grid = from_grid(crystal, grid, exact(grid.q))
        error = measured(D_grid, exact, crystal, test, nonanalytic)
        history.append((len(table), error))
        if report is not None:
            report(len(table), error, tuple(grid.shape.tolist()))
        found = Certified(
            D=D_grid,
            error_THz=error,
            tolerance_THz=tolerance,
            n_exact=len(table),
            n_measured=len(test),
            shape=tuple(grid.shape.tolist()),
            history=tuple(history),
        )
        if found.certified:
            return found
        width = _next_width(crystal, width, SAFETY * error / tolerance)


def _check_budget(grid, n_checks, budget):
    if len(grid.source) == 1:
        raise UsageError(
            f"a budget of {budget} exact matrices is not enough for Gamma and {n_checks} points at "
            "which the error is measured",
            where="phonons",
            fix=f"a budget of {4 * n_checks} or more",
        )


def _unknown(table, q):
    return len(set(keys(q)[0]) - set(table))


def _shape(crystal, width):
    """Points along each axis: those of a supercell that is `width` (Å) wide everywhere."""
    return np.maximum(1, np.ceil(width * np.linalg.norm(crystal.reciprocal, axis=1) - 1e-6))


def _next_width(crystal, width, excess):
    """Wider by what an error of `excess` tolerances asks for, and by one more point at least."""
    wanted, now = width * np.clip(excess**0.15, 1.1, 1.5), _shape(crystal, width)
    while (_shape(crystal, wanted) <= now).all():
        wanted *= 1.02
    return wanted


def generic(count: int) -> np.ndarray:
    """[count, 3] evenly spread q that no symmetry singles out (Kronecker sequence)."""
    ratio = 1.2207440846057596  # the root of x^4 = x + 1
    return (0.5 + np.arange(1, count + 1)[:, None] / ratio ** np.arange(1, 4)) % 1 - 0.5


def _halfway(crystal, shape):
    """The different centres of edges, faces and bodies between the grid's points about Gamma."""
    half = np.stack(np.meshgrid(*[[0, 0.5]] * 3, indexing="ij"), -1).reshape(-1, 3)[1:]
    return different(crystal, half / shape)


def measured(D, exact, crystal, q, nonanalytic=None) -> float:
    """Largest difference (THz) of the frequencies of D and of `exact` at q [n_q, 3]; 0 for none."""
    if not len(q):
        return 0.0
    extra = 0 if nonanalytic is None else nonanalytic(q)
    ours, theirs = (frequencies_THz(f(q) + extra, crystal.masses) for f in (D, exact))
    return float(np.abs(ours - theirs).max())


# --- where it is wanted: chosen points -----------------------------------------------------------


def certified_points(
    D: Callable,
    crystal: Crystal,
    targets,
    *,
    tolerance: float = 0.02,
    budget: int = 400,
    first=None,
    guess: Callable | None = None,
    nonanalytic: Callable | None = None,
    report: Callable | None = None,
) -> Certified:
    """D(q) for the points `targets` [n_q, 3], such as a band path, from few exact ones of them.

    Every round takes the targets about which least is known, compares what was predicted there
    with the exact D, and then learns from them; it is the last round's prediction whose error is
    told. first: points to begin with besides Gamma. guess: a D to try first, such as that of a
    mesh, which knows Gamma and `first`; if it passes it is the result. Other arguments as
    `certified_mesh`.
    """
    targets = np.asarray(targets, np.float64).reshape(-1, 3)
    exact, table = remembered(D)
    priors = [prior(crystal, length=d, power=p) for d, p in PRIORS]
    q, data = _with_stars(crystal, _begin(first), exact)
    known, history = priors[len(priors) // 2], []
    D_now = from_points(known, q, data) if guess is None else guess
    while True:
        room = min(max(6, len(table) // 3), budget - len(table))
        unseen = targets[~_among(targets, q)]
        if D_now is guess:
            chosen = _farthest(crystal, q, unseen, room)
        else:
            weights = _steepness(D_now, crystal, unseen, nonanalytic)
            images = lambda p: star(crystal, p)
            chosen = least_certain(known, q, unseen, room, star=images, weights=weights)
        new = different(crystal, unseen[chosen])
        error = measured(D_now, exact, crystal, new, nonanalytic)
        error = np.inf if len(unseen) and not len(new) else error  # no room to measure
        history.append((len(table), error))
        if report is not None:
            report(len(table), error, None)
        passed = SAFETY * error <= tolerance
        if D_now is guess and not passed and 4 * len(q) > MANY:
            q, data = _with_stars(crystal, np.zeros((1, 3)), exact)  # too many to fit at ease
        if len(new) and not (passed and D_now is guess):
            new_q, new_data = _with_stars(crystal, new, exact)
            if not passed:  # what has passed is only refined
                known = best_prior(priors, q, data, new_q, new_data)
            q, data = np.concatenate([q, new_q]), np.concatenate([data, new_data])
            D_now = from_points(known, q, data)
        if passed or len(table) >= budget or not len(new):
            return Certified(
                D=D_now,
                error_THz=error,
                tolerance_THz=tolerance,
                n_exact=len(table),
                n_measured=len(new),
                shape=None,
                history=tuple(history),
            )


def _farthest(crystal, q, candidates, count):
    """Indices of the candidates that are farthest from q and from one another."""
    apart = lambda points: _distances(crystal, candidates, points).min(1)
    nearest, chosen = apart(np.concatenate([q, -q])), []
    for _ in range(min(count, len(candidates))):
        chosen.append(int(nearest.argmax()))
        nearest = np.minimum(nearest, apart(star(crystal, candidates[chosen[-1]])))
    return np.array(chosen, int)


def _distances(crystal, a, b):
    """[n_a, n_b] 1/Å, up to reciprocal vectors."""
    between = a[:, None] - b
    return np.linalg.norm((between - np.rint(between)) @ crystal.reciprocal, axis=-1)


def _begin(first):
    gamma = np.zeros((1, 3))
    return gamma if first is None else np.concatenate([gamma, np.reshape(first, (-1, 3))])


def _among(q, known):
    """[n_q] whether each point, up to reciprocal vectors and its sign, is among the known ones."""
    known = set(keys(known)[0])
    return np.array([name in known for name in keys(q)[0]], bool)


def _with_stars(crystal, q, exact):
    q = different(crystal, q)
    stars = [star_matrices(crystal, p, m) for p, m in zip(q, exact(q), strict=True)]
    return np.concatenate([s for s, _ in stars]), np.concatenate([m for _, m in stars])


def _steepness(D, crystal, q, nonanalytic):
    """[n_q] how much more an error of D counts in the softest frequency there, squared."""
    if not len(q):
        return np.zeros(0)
    extra = 0 if nonanalytic is None else nonanalytic(q)
    soft = np.abs(frequencies_THz(D(q) + extra, crystal.masses)).min(1)
    return 1 / (soft**2 + (0.1 * soft.max()) ** 2 + 1e-12)
