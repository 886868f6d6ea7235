"""From a cutoff and a relative force error to order, mesh and width of the split (host).

Charges that know nothing of each other, of mean square q², give an error of the force that is

    q² sqrt(density / cutoff) pair(x)    and    q² / cutoff² self(x),    x = cutoff / spacing,

from all others, and from an atom's own image in the mesh: two functions of one number for each
order and split, once the width is the best one for that x. The density is that around the atoms
(vacuum needs a mesh as well, but nobody is there who errs), each with its own q². Dipoles have two
more of these, with mu² / (3 cutoff²) in place of q² (they are larger, for a dipole is a derivative
of a charge, and what the mesh gets wrong are short waves); errors of charges and dipoles add, for
the error between a charge and a dipole is the mean of both in logarithms. All four were measured
(`calibration`). What is wrong has the wavelength of the mesh, so the error of a Hessian times a
displacement is that of forces times STEEP 2 pi / spacing. Here they are read backwards, and the
cheapest mesh that fits is taken. The model of cost, in ns of one core (measured on a CPU; only
ratios matter): 3 a mesh contribution of an atom, 40 a point.
"""

from dataclasses import dataclass

import numpy as np

from jaxmlip.electrostatics import planning as ewald_planning
from jaxmlip.electrostatics.mesh.calibration import TABLES
from jaxmlip.errors import ResourceError, UsageError

TYPICAL = ewald_planning.TYPICAL  # force in a hot crystal, in q²/spacing²
COST = {"contribution": 3.0, "point": 40.0}
STEEP = 2.0  # measured: 1.4 to 2.5 for salt, water and ions at random, orders 4, 6 and 8
MOST_POINTS = 2**30
ORDERS = (4, 6, 8)


@dataclass(frozen=True)
class Crystal:
    """What planning knows of one structure."""

    lengths: np.ndarray  # [3] Å, of the cell vectors
    n_atoms: int
    pair: float  # relative force error for a unit of the calibrated pair function
    self: float  # the same for the atom's own image
    pair_dipoles: float = 0.0  # both for dipoles
    self_dipoles: float = 0.0
    steep: float = 0.0  # times cutoff / spacing: the error of a Hessian in units of that of forces


def structures(system, cutoff, charges, where, dipoles=None, derivatives=1) -> list[Crystal]:
    """`Crystal` of all structures with atoms; raises `UsageError` where a mesh does not apply.

    charges, dipoles: those of one batch, or None; dipoles also their size alone, of any batches.
    """
    batches = list(system) if isinstance(system, list | tuple) else [system]
    of_atoms = charges is not None or np.ndim(0 if dipoles is None else dipoles) > 0
    if of_atoms and len(batches) > 1:
        raise UsageError(
            "charges and dipoles belong to one batch, and there are several", where=where
        )
    found = []
    for batch in batches:
        ewald_planning.check_concrete(batch, where)
        _check_periodic(batch, where)
        ewald_planning.check_edges(batch, cutoff)
        pairs = ewald_planning.pairs_within(batch, cutoff)
        found += [
            _crystal(batch, pairs, g, cutoff, charges, dipoles, derivatives)
            for g in ewald_planning.occupied(batch)
        ]
    if not found:
        raise UsageError("there are no atoms to plan for", where=where)
    return found


def _check_periodic(system, where):
    pbc = np.asarray(system.pbc)
    for g in ewald_planning.occupied(system):
        if not pbc[g].all():
            raise UsageError(
                f"structure {g} has pbc {pbc[g].tolist()}: the mesh is periodic along all axes",
                where=where,
                fix="electrostatics.ewald(system, cutoff) for slabs, coulomb() for molecules",
            )


def check_options(cutoff, tolerance, order, exclude, split, derivatives, where):
    """Raises `UsageError` for numbers out of range, and a split whose errors were not measured."""
    for name, value, low, high in (
        ("cutoff", cutoff, 0, np.inf),
        ("tolerance", tolerance, 1e-9, 0.1),
        ("exclude", cutoff if exclude is None else exclude, 0, cutoff),
    ):
        if not low < value <= high:
            raise UsageError(f"{name} is {value}, must be in {low} ... {high}", where=where)
    if order not in (None, *ORDERS):
        raise UsageError(f"order is {order!r}, must be one of {ORDERS}", where=where)
    if derivatives not in (1, 2):
        raise UsageError(f"derivatives is {derivatives!r}, must be 1 or 2", where=where)
    known = {f"{s.__module__}.{s.__name__}": s for s, _ in TABLES}
    if split not in known.values():
        raise UsageError(
            f"split is {split!r}, of which no errors are known to plan with",
            where=where,
            fix=f"one of {', '.join(known)}",
        )


# --- the size of forces --------------------------------------------------------------------------


def _crystal(system, pairs, g, cutoff, charges, dipoles, derivatives):
    atoms = np.flatnonzero((np.asarray(system.graph) == g) & (np.asarray(system.numbers) > 0))
    cell = np.asarray(system.cell[g], float)
    volume = abs(np.linalg.det(cell))
    if not volume > 1e-6:
        raise UsageError(f"structure {g} has a flat cell: {cell.tolist()}", where="mesh")
    q = _charges(system, atoms) if charges is None else np.asarray(charges, float)
    mu = _dipoles(system, atoms, dipoles)
    if not (q[atoms].any() or mu[atoms].any()):
        q = np.ones(len(q))
    around = lambda squares: ewald_planning.around(pairs, atoms, squares, cutoff)
    density = ewald_planning.density(pairs, atoms, volume, cutoff)
    charge, moment = q**2, (mu**2).sum(1)
    least = charge[atoms].mean() + moment[atoms].mean() * density ** (2 / 3)
    least = TYPICAL * least * density ** (2 / 3)
    force = max(_force(pairs, atoms, q, mu, cutoff), least)
    steep = 0.0
    if derivatives > 1:
        steep = 2 * np.pi * STEEP * force / (cutoff * _stiffness(pairs, atoms, q, mu, cutoff))
    # errors of single atoms are of their own size: few large ones err more than many of their mean
    pair = lambda squares: float(np.sqrt(around(squares) / cutoff) / force)
    own = lambda squares: float(np.sqrt((squares[atoms] ** 2).mean()) / cutoff**2 / force)
    each = 1 / (3 * cutoff**2)
    return Crystal(
        lengths=np.linalg.norm(cell, axis=1),
        n_atoms=len(atoms),
        pair=pair(charge),
        self=own(charge),
        pair_dipoles=pair(moment) * each,
        self_dipoles=own(moment) * each,
        steep=float(steep),
    )


def _charges(system, atoms):
    """Guesses for the atoms of one structure, zero for the others."""
    q = np.zeros(system.n_atoms)
    q[atoms] = guess_charges(np.asarray(system.numbers)[atoms])
    return q


def _dipoles(system, atoms, dipoles):
    """[n_atoms, 3]: those that are given, or for some atoms anywhere of the given length."""
    mu = np.zeros((system.n_atoms, 3))
    if dipoles is None or np.ndim(dipoles):
        return mu if dipoles is None else np.asarray(dipoles, float)
    directions = np.random.default_rng(0).normal(size=(len(atoms), 3))
    mu[atoms] = float(dipoles) * directions / np.linalg.norm(directions, axis=1)[:, None]
    return mu


def guess_charges(numbers):
    """+1 and -1 for the elements in turn, less their mean: right for salts, oxides and water."""
    elements = np.unique(numbers[numbers > 0])
    sign = np.where(np.searchsorted(elements, numbers) % 2, -1.0, 1.0)
    if len(elements) > 1:
        sign = sign - sign[numbers > 0].mean()
    return np.where(numbers > 0, sign, 0.0)


def _force(pairs, atoms, charges, dipoles, cutoff):
    """Root mean square of the force on an atom from its neighbours, faded out at the cutoff."""
    force = _forces(pairs, charges, dipoles, cutoff, 0)
    return float(np.sqrt((force[atoms] ** 2).sum(1).mean()))


def _stiffness(pairs, atoms, charges, dipoles, cutoff, step=1e-4):
    """The same of the change of forces a Å of random displacements, of mean square 1 an axis."""
    moved = step * np.random.default_rng(0).normal(size=(len(charges), 3))
    change = _forces(pairs, charges, dipoles, cutoff, moved)
    change = change - _forces(pairs, charges, dipoles, cutoff, -moved)
    squares = charges[atoms] ** 2 + (dipoles[atoms] ** 2).sum(1) / cutoff**2
    typical = TYPICAL * squares.mean() / cutoff**3  # where there are no neighbours
    return max(float(np.sqrt((change[atoms] ** 2).sum(1).mean())) / (2 * step), typical)


def _forces(pairs, charges, dipoles, cutoff, moved):
    """[n_atoms, 3], with atoms moved [n_atoms, 3] (or 0), fading as where they were."""
    first, second, v, r = pairs
    fade = (1 - (r / cutoff) ** 2)[:, None] ** 2
    if np.ndim(moved):
        v = v + moved[first] - moved[second]
        r = np.linalg.norm(v, axis=-1)
    pull = (charges[first] * charges[second] / r**3)[:, None] * v
    if dipoles.any():
        pull = pull + _pull_of_dipoles(
            (charges[first], dipoles[first]), (charges[second], dipoles[second]), v, r
        )
    force = np.zeros((len(charges), 3))
    np.add.at(force, first, pull * fade)
    return force


def _pull_of_dipoles(first, second, v, r):
    """Force on `first` (charges [n], dipoles [n, 3]) from `second`, without that of charges."""
    (q1, mu1), (q2, mu2), u = first, second, v / r[:, None]
    along1, along2 = (mu1 * u).sum(1), (mu2 * u).sum(1)
    single = q1[:, None] * (3 * along2[:, None] * u - mu2)
    single = single + q2[:, None] * (mu1 - 3 * along1[:, None] * u)
    both = along1[:, None] * mu2 + along2[:, None] * mu1
    both = both + ((mu1 * mu2).sum(1) - 5 * along1 * along2)[:, None] * u
    return single / r[:, None] ** 3 + 3 * both / r[:, None] ** 4


# --- the cheapest mesh ---------------------------------------------------------------------------


def cheapest(crystals, *, cutoff, tolerance, orders, split, where):
    """(order, mesh shape, width of the split, estimated error) of the least cost."""
    plans = []
    for order in orders:
        table = TABLES[split, order]
        finest = [_ratio(table, c, tolerance) for c in crystals]
        if None in finest:
            continue
        wanted = [c.lengths * x / cutoff for c, x in zip(crystals, finest, strict=True)]
        shape = tuple(next_smooth(max(n, order)) for n in np.max(wanted, 0))
        plans.append((_cost(crystals, order, shape), order, shape))
    if not plans:
        raise ResourceError(
            f"a relative force error of {tolerance} with a cutoff of {cutoff} Å needs a finer mesh "
            "than there is",
            where=where,
            fix="a longer cutoff, a larger tolerance, or electrostatics.ewald",
        )
    cost, order, shape = min(plans)
    if np.prod(shape, dtype=float) * len(crystals) > MOST_POINTS:
        raise ResourceError(f"a mesh of {shape} for {len(crystals)} structures", where=where)
    table = TABLES[split, order]
    ratios = [cutoff / (c.lengths / shape).max() for c in crystals]
    error = max(_error(table, c, x) for c, x in zip(crystals, ratios, strict=True))
    return order, shape, float(_read(table, min(ratios))[0]), float(error)


def _cost(crystals, order, shape):
    atoms = sum(c.n_atoms for c in crystals)
    points = len(crystals) * float(np.prod(shape))
    return COST["contribution"] * atoms * order**3 + COST["point"] * points


def _read(table, x):
    """(width, pair, self, both of dipoles) at cutoff / spacing = x; straight in logarithms."""
    ratio, *rows = np.log(np.asarray(table))
    return [np.exp(np.interp(np.log(x), ratio, row)) for row in rows]


def _error(table, crystal, x):
    _, pair, own, pair_dipoles, own_dipoles = _read(table, x)
    pair = pair * crystal.pair + pair_dipoles * crystal.pair_dipoles
    forces = np.hypot(pair, own * crystal.self + own_dipoles * crystal.self_dipoles)
    return forces * max(1.0, crystal.steep * x)


def _ratio(table, crystal, tolerance):
    """The smallest cutoff / spacing with an error within the tolerance; None: beyond the table."""
    low, high = table[0][0], table[0][-1]
    if _error(table, crystal, high) > tolerance:
        return None
    for _ in range(50):
        middle = (low + high) / 2
        coarse = _error(table, crystal, middle) > tolerance
        low, high = (middle, high) if coarse else (low, middle)
    return high


def next_smooth(n: float) -> int:
    """The smallest integer >= n without a prime factor above 7: transforms of it are fast."""
    size = int(np.ceil(n - 1e-9))
    while _without_small_primes(size) != 1:
        size += 1
    return size


def _without_small_primes(n):
    for factor in (2, 3, 5, 7):
        while n % factor == 0:
            n //= factor
    return n
