"""From a cutoff and a relative force error to order, mesh and width of the split (host).

Charges that know nothing of each other, of mean square q², give an error of the force that is

    q² sqrt(density / cutoff) pair(x)    and    q² / cutoff² self(x),    x = cutoff / spacing,

from all others, and from an atom's own image in the mesh: two functions of one number for each
order and split, once the width is the best one for that x. They were measured (`calibration`);
here they are read backwards, and the cheapest mesh that fits is taken. The model of cost, in ns of
one core (measured on a CPU; only ratios matter): 3 a mesh contribution of an atom, 40 a mesh point.
"""

from dataclasses import dataclass

import numpy as np

from jaxmlip.electrostatics import planning as ewald_planning
from jaxmlip.electrostatics.mesh.calibration import TABLES
from jaxmlip.errors import ResourceError, UsageError

TYPICAL = ewald_planning.TYPICAL  # force in a hot crystal, in q²/spacing²
COST = {"contribution": 3.0, "point": 40.0}
MOST_POINTS = 2**30
ORDERS = (4, 6, 8)


@dataclass(frozen=True)
class Crystal:
    """What planning knows of one structure."""

    lengths: np.ndarray  # [3] Å, of the cell vectors
    n_atoms: int
    pair: float  # relative force error for a unit of the calibrated pair function
    self: float  # the same for the atom's own image


def structures(system, cutoff, charges, where) -> list[Crystal]:
    """`Crystal` of all structures with atoms; raises `UsageError` where a mesh does not apply."""
    batches = list(system) if isinstance(system, list | tuple) else [system]
    if charges is not None and len(batches) > 1:
        raise UsageError("charges belong to one batch, and there are several", where=where)
    found = []
    for batch in batches:
        ewald_planning.check_concrete(batch, where)
        _check_periodic(batch, where)
        ewald_planning.check_edges(batch, cutoff)
        found += [_crystal(batch, g, cutoff, charges) for g in ewald_planning.occupied(batch)]
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


def check_numbers(cutoff, tolerance, order, exclude, where):
    """Raises `UsageError` for numbers out of range."""
    for name, value, low, high in (
        ("cutoff", cutoff, 0, np.inf),
        ("tolerance", tolerance, 1e-9, 0.1),
        ("exclude", cutoff if exclude is None else exclude, 0, cutoff),
    ):
        if not low < value <= high:
            raise UsageError(f"{name} is {value}, must be in {low} ... {high}", where=where)
    if order not in (None, *ORDERS):
        raise UsageError(f"order is {order!r}, must be one of {ORDERS}", where=where)


# --- the size of forces --------------------------------------------------------------------------


def _crystal(system, g, cutoff, charges):
    atoms = np.flatnonzero((np.asarray(system.graph) == g) & (np.asarray(system.numbers) > 0))
    cell = np.asarray(system.cell[g], float)
    volume = abs(np.linalg.det(cell))
    if not volume > 1e-6:
        raise UsageError(f"structure {g} has a flat cell: {cell.tolist()}", where="mesh")
    q = _charges(system, atoms) if charges is None else np.asarray(charges, float)
    square = float((q[atoms] ** 2).mean())
    density = len(atoms) / volume
    if square == 0:
        q, square = np.ones(len(q)), 1.0
    force = max(_force(system, atoms, q, cutoff), TYPICAL * square * density ** (2 / 3))
    return Crystal(
        lengths=np.linalg.norm(cell, axis=1),
        n_atoms=len(atoms),
        pair=square * np.sqrt(density / cutoff) / force,
        self=float(np.sqrt((q[atoms] ** 4).mean())) / cutoff**2 / force,
    )


def _charges(system, atoms):
    """Guesses for the atoms of one structure, zero for the others."""
    q = np.zeros(system.n_atoms)
    q[atoms] = guess_charges(np.asarray(system.numbers)[atoms])
    return q


def guess_charges(numbers):
    """+1 and -1 for the elements in turn, less their mean: right for salts, oxides and water."""
    elements = np.unique(numbers[numbers > 0])
    sign = np.where(np.searchsorted(elements, numbers) % 2, -1.0, 1.0)
    if len(elements) > 1:
        sign = sign - sign[numbers > 0].mean()
    return np.where(numbers > 0, sign, 0.0)


def _force(system, atoms, charges, cutoff):
    """Root mean square of the force on an atom from its neighbours, faded out at the cutoff."""
    edges = system.edges
    senders, shifts = np.asarray(edges.senders), np.asarray(edges.shifts, float)
    rows = np.arange(len(senders)) if edges.receivers is None else np.asarray(edges.receivers)
    rows = np.broadcast_to(rows[:, None], senders.shape) if edges.receivers is None else rows
    positions = np.asarray(system.positions, float)
    cells = np.asarray(system.cell, float)[np.asarray(system.graph)[rows]]
    vectors = positions[rows] + np.einsum("...a,...ab->...b", shifts, cells) - positions[senders]
    r = np.linalg.norm(vectors, axis=-1)
    near = np.asarray(edges.mask) & (r < cutoff) & (r > 1e-3)
    size = charges[rows] * charges[senders] / np.where(near, r, 1.0) ** 3
    size = np.where(near, size * (1 - (r / cutoff) ** 2) ** 2, 0.0)
    force = np.zeros_like(positions)
    np.add.at(force, rows, size[..., None] * vectors)
    return float(np.sqrt((force[atoms] ** 2).sum(1).mean()))


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
    """(width, pair, self) at cutoff / spacing = x; straight lines in logarithms."""
    ratio, *rows = np.log(np.asarray(table))
    return [np.exp(np.interp(np.log(x), ratio, row)) for row in rows]


def _error(table, crystal, x):
    _, pair, own = _read(table, x)
    return np.hypot(pair * crystal.pair, own * crystal.self)


def _ratio(table, crystal, tolerance):
    """The smallest cutoff / spacing with an error within the tolerance; None: beyond the table."""
    low, high = table[0][0], table[0][-1]
    if _error(table, crystal, high) > tolerance:
        return None
    for _ in range(50):
        middle = (low + high) / 2
        low, high = (middle, high) if _error(table, crystal, middle) > tolerance else (low, middle)
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
