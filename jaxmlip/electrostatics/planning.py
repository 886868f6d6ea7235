"""From a cutoff and a relative force error to the splitting and the box of wavevectors (host).

Errors of a truncated Ewald sum for uncorrelated charges (Kolafa and Perram, Mol. Sim. 9, 351
(1992), here for any power of 1/r), relative to the force between neighbours.
"""

from dataclasses import dataclass
from math import erfc, exp, gamma, pi, sqrt

import jax
import numpy as np

from jaxmlip.errors import DataError, ResourceError, UsageError

TYPICAL = 0.5  # force on an atom of a liquid or a hot crystal, in p q²/d^(p+1); see tests
MOST_WAVES = 2e8


@dataclass(frozen=True)
class Periodic:
    """What planning knows of one periodic structure."""

    cell: np.ndarray  # [3, 3] Å, rows; the row of an open axis is a normal
    open_axis: int | None
    spacing: float  # Å, edge of the cube that one atom has, vacuum left out
    height: float  # Å, from the lowest to the highest atom along the open axis


def check_concrete(system, where: str) -> None:
    """Planning is host work: traced arrays raise `UsageError`."""
    if any(isinstance(x, jax.core.Tracer) for x in jax.tree.leaves(system)):
        raise UsageError(
            "the system is traced: a solver is planned on the host, once for many calls",
            where=where,
            fix="make the solver outside of jit, grad and vmap, and call it inside",
        )


def occupied(system) -> np.ndarray:
    """The structures that have atoms; others are padding."""
    return np.unique(np.asarray(system.graph)[np.asarray(system.numbers) > 0])


def kinds_of(system) -> np.ndarray:
    """Number of periodic axes of each structure, [n_graphs]; wires raise `UsageError`."""
    axes = np.asarray(system.pbc).sum(1)
    if (axes == 1).any():
        raise UsageError(
            f"structure {int(np.argmax(axes == 1))} is periodic along one axis: there is no "
            "Ewald sum for wires here",
            where="ewald",
            fix="three periodic axes with vacuum around the wire, or an open molecule",
        )
    return axes


def periodic_structures(system, cutoff: float):
    """`Periodic` of each structure with two or three periodic axes."""
    system = jax.tree.map(np.asarray, system)
    pairs = pairs_within(system, cutoff)
    for g, axes in enumerate(kinds_of(system)):
        if axes == 0:
            continue
        cell = np.asarray(system.cell[g], float)
        atoms = (system.graph == g) & (system.numbers > 0)
        positions = np.asarray(system.positions[atoms], float)
        cell, axis, volume, height = _periodic(cell, system.pbc[g], positions, g)
        spacing = density(pairs, np.flatnonzero(atoms), volume, cutoff) ** (-1 / 3)
        yield Periodic(cell, axis, spacing, height)


def _periodic(cell, pbc, positions, g):
    """Cell, index of the open axis or None, volume (of a slab: with 2 Å above it), height."""
    volume, height, axis = abs(np.linalg.det(cell)), 0.0, None
    if not pbc.all():
        axis = int(np.argmin(pbc))
        first, second = np.delete(cell, axis, 0)
        normal = np.cross(first, second)
        area = np.linalg.norm(normal)
        along = positions @ normal / max(area, 1e-300)
        height = float(np.ptp(along)) if len(along) else 0.0
        cell = cell.copy()
        cell[axis] = normal / max(area, 1e-300)
        volume = area * (height + 2.0)
    if not volume > 1e-6:
        raise DataError(f"structure {g} has a flat cell: {cell.tolist()}", where="ewald")
    return cell, axis, volume, height


# --- the density where atoms are -----------------------------------------------------------------


def pairs_within(system, cutoff: float):
    """Pairs of edges: receivers, senders, vectors [n, 3] and lengths in Å; none with a halo."""
    edges = system.edges
    if edges.halo is not None:
        return np.zeros(0, int), np.zeros(0, int), np.zeros((0, 3)), np.zeros(0)
    senders, shifts = np.asarray(edges.senders), np.asarray(edges.shifts, float)
    rows = np.arange(len(senders)) if edges.receivers is None else np.asarray(edges.receivers)
    rows = np.broadcast_to(rows[:, None], senders.shape) if edges.receivers is None else rows
    positions = np.asarray(system.positions, float)
    cells = np.asarray(system.cell, float)[np.asarray(system.graph)[rows]]
    vectors = positions[rows] + np.einsum("...a,...ab->...b", shifts, cells) - positions[senders]
    r = np.linalg.norm(vectors, axis=-1)
    near = np.asarray(edges.mask) & (r < cutoff) & (r > 1e-3)
    return rows[near], senders[near], vectors[near], r[near]


def around(pairs, atoms, squares, cutoff: float) -> float:
    """Mean over atoms of squares x (density of squares around it, 1/Å³), itself included.

    An atom counts for the room that it keeps others out of: in a dense crystal or a liquid this is
    the density of the cell, beside vacuum that of what is there. Near ones weigh more, as errors
    do: by (1 - r²/cutoff²)², whose integral over space is 32 pi cutoff³ / 105.
    """
    first, second, _, r = pairs
    weight = (1 - (r / cutoff) ** 2) ** 2
    total = (squares[first] * squares[second] * weight)[np.isin(first, atoms)].sum()
    total = total + (squares[atoms] ** 2).sum()
    return float(total / len(atoms) * 105 / (32 * np.pi * cutoff**3))


def density(pairs, atoms, volume: float, cutoff: float) -> float:
    """Atoms a Å³ around an atom; over the cell where none is within the cutoff of another."""
    if not np.isin(pairs[0], atoms).any():
        return max(len(atoms), 1) / volume
    ones = np.ones(1 + max(pairs[0].max(), atoms.max()))
    return around(pairs, atoms, ones, cutoff)


def real_space_error(alpha, *, power, cutoff, spacing) -> float:
    """Relative force error of leaving out pairs beyond the cutoff."""
    x = alpha * cutoff
    force = 2 * alpha**power / gamma(power / 2) * (1 + power / (2 * x * x)) * exp(-x * x)
    left_out = force * sqrt(4 * pi / (4 * alpha**2 * cutoff * spacing**3))
    return left_out / (TYPICAL * power) * spacing ** (power + 1)


def wave_error(largest, *, power, alpha, spacing) -> float:
    """Relative force error of leaving out wavevectors longer than `largest`, 1/Å."""
    scale = pi**1.5 / gamma(power / 2) * alpha ** (power - 3) * 4 * alpha**2
    tail = alpha * sqrt(pi / 2) * erfc(largest / (sqrt(2) * alpha))
    left_out = scale * sqrt(tail / (2 * pi**2 * spacing**3))
    return left_out / (TYPICAL * power) * spacing ** (power + 1)


def splitting(structures, *, power, cutoff, tolerance) -> float:
    """The smallest alpha, 1/Å, with the error of the edges within `tolerance`."""
    worst = lambda x: max(
        real_space_error(x / cutoff, power=power, cutoff=cutoff, spacing=s.spacing)
        for s in structures
    )
    return _where_falls_below(worst, tolerance, 1.0, 12.0) / cutoff


def longest_wave(structures, *, power, alpha, tolerance) -> float:
    """The smallest length of wavevectors, 1/Å, with their error within `tolerance`."""
    worst = lambda k: max(
        wave_error(k, power=power, alpha=alpha, spacing=s.spacing) for s in structures
    )
    return _where_falls_below(worst, tolerance, 0.5 * alpha, 30.0 * alpha)


def _where_falls_below(function, limit, low, high):
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if function(middle) > limit else (low, middle)
    return high


def wave_box(structures, longest: float, height: float) -> tuple[int, int, int]:
    """Integers that bound the wavevectors of every structure, along each axis."""
    bounds = np.zeros(3)
    for s in structures:
        lengths = np.linalg.norm(s.cell, axis=1)
        if s.open_axis is not None:
            lengths[s.open_axis] = height
        bounds = np.maximum(bounds, np.floor(longest * lengths / (2 * pi)))
    box = tuple(int(max(b, 1)) for b in bounds)
    count = 4.0 * (box[0] + 1) * (box[1] + 1) * (box[2] + 1)
    if count > MOST_WAVES:
        raise ResourceError(
            f"{count:.1e} wavevectors would be needed",
            where="ewald",
            fix="a longer cutoff, a larger tolerance, or electrostatics.pme",
        )
    return box


# --- are the edges what the caller says ----------------------------------------------------------


def check_edges(system, cutoff: float, *, samples: int = 6) -> None:
    """Raises `UsageError` if periodic structures lack edges within the cutoff (a few atoms)."""
    if system.edges is None:
        raise UsageError(
            "the system has no edges: the short-range part is summed over them",
            where="ewald",
            fix=f"jaxmlip.from_ase(atoms, cutoff={cutoff})",
        )
    if system.edges.halo is not None:
        return
    system = jax.tree.map(np.asarray, system)
    periodic = system.pbc.any(1)[system.graph] & (system.numbers > 0)
    atoms = np.flatnonzero(periodic)
    for atom in atoms[np.unique(np.linspace(0, len(atoms) - 1, samples).astype(int))]:
        _check_atom(system, int(atom), cutoff)


def _check_atom(system, atom, cutoff):
    near = cutoff * (1 - 1e-5)
    found = _listed(system, atom, cutoff * (1 + 1e-5))
    needed = _within(system, atom, near)
    if found < needed:
        raise UsageError(
            f"atom {atom} has {needed} neighbours within {cutoff} Å, its edges hold {found}",
            where="ewald",
            fix=f"edges of at least this cutoff: jaxmlip.from_ase(atoms, cutoff={cutoff})",
        )


def _listed(system, atom, cutoff):
    edges, cell = system.edges, system.cell[system.graph[atom]]
    mine = np.s_[atom] if edges.receivers is None else edges.receivers == atom
    senders, shifts, mask = edges.senders[mine], edges.shifts[mine], edges.mask[mine]
    vectors = system.positions[atom] + shifts @ cell - system.positions[senders]
    return int((mask & (np.linalg.norm(vectors, axis=-1) < cutoff)).sum())


def _within(system, atom, cutoff):
    graph = system.graph[atom]
    cell, pbc = np.asarray(system.cell[graph], float), system.pbc[graph]
    others = system.positions[(system.graph == graph) & (system.numbers > 0)].astype(float)
    offsets = others - system.positions[atom]
    inverse = np.linalg.inv(cell)
    fractions = offsets @ inverse
    whole = np.where(pbc, np.round(fractions), 0)
    offsets = offsets - whole @ cell
    reach = np.ceil(cutoff * np.linalg.norm(inverse, axis=0) + 0.5) * pbc
    count = -1  # itself
    for image in np.ndindex(*(2 * reach + 1).astype(int)):
        shifted = offsets + (np.array(image) - reach) @ cell
        count += int((np.linalg.norm(shifted, axis=1) < cutoff).sum())
    return count
