"""The rulers by which units and signs of labels are told. Everything is host numpy.

Three that do not depend on each other: forces against energies (`pair_fit`), total energies against
those of free atoms (all electrons), and the stiffness of bonds, which chemistry bounds. Stresses
are laid against those of the pair potential that fits the forces.
"""

from dataclasses import dataclass, replace
from math import log

import numpy as np

from jaxmlip import units as u
from jaxmlip.data.pair_fit import PairFit, Slope, fit_pairs, slope, trapezoids
from jaxmlip.neighbors import find_edges

ENERGY = {"eV": 1.0, "Ha": u.hartree, "Ry": u.hartree / 2, "kcal/mol": u.kcal_mol}
ENERGY |= {"kJ/mol": u.kJ_mol}
MOST_EDGES = 200_000  # of all frames to which the pair potential is fitted
FEWEST = 8  # frames for a verdict
CERTAIN = 6.0  # standard errors


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """What the rulers say."""

    slope: Slope | None  # energies against forces
    precise: bool
    energy_unit: str | None  # by total energies of free atoms
    fit: PairFit | None
    stress: Slope | None = None
    virial: Slope | None = None
    stiffness_counts: bool = True  # whether units must make bonds as stiff as they are in chemistry


def gather(frames, *, cutoff: float) -> Evidence:
    """The rulers laid to [(System, labels)]: eV, eV/Å, eV/Å³ if the labels are."""
    frames = [f for f in frames if f[0].n_atoms > 1]
    forced = _usual(_with(frames, "forces"))
    fitted = _with_edges(forced, cutoff)
    fit = fit_pairs(fitted, cutoff=cutoff) if len(fitted) >= 3 else None
    found, precise = _energy_slope(forced, fitted, fit)
    stress, virial = (_stress_slope(fitted, fit, volumes) for volumes in (False, True))
    return Evidence(
        slope=found,
        precise=precise,
        energy_unit=_unit_by_free_atoms(frames),
        fit=fit,
        stress=stress,
        virial=virial,
    )


def _value(frame, name):
    value = frame[1].get(name)
    return np.array(np.nan) if value is None else np.asarray(value, np.float64)


def _with(frames, name):
    return [f for f in frames if np.isfinite(_value(f, name)).all()]


def _usual(frames):
    """Without frames whose forces are ten times those of the middle one: one could rule the fit."""
    sizes = np.array([np.sqrt(np.mean(_value(f, "forces") ** 2)) for f in frames])
    middle = np.median(sizes) if len(sizes) else 0.0
    return [f for f, size in zip(frames, sizes, strict=True) if size <= 10 * middle or middle == 0]


def _with_edges(frames, cutoff):
    """Some of the frames, spread over all, with edges of `cutoff`; at most MOST_EDGES together."""
    out, total = [], 0
    for i in np.random.default_rng(0).permutation(len(frames)).tolist():
        system, labels = frames[i]
        edges = find_edges(system.positions, system.cell[0], system.pbc[0], cutoff)
        out.append((replace(system, edges=edges), labels))
        total += int(edges.mask.sum())
        if total > (MOST_EDGES if len(out) >= FEWEST else 4 * MOST_EDGES):
            break
    return out


def _energy_slope(frames, fitted, fit):
    """(slope of the energies against the forces' own, is it precise), or (None, False)."""
    near, pairs = slope(*trapezoids(frames)), None
    if _sure(near, 0.9):
        return near, True
    rows = [i for i, f in enumerate(fitted) if np.isfinite(_value(f, "energy")).all()]
    if fit is not None and len(rows) >= FEWEST:
        energies = [_value(fitted[i], "energy").ravel()[0] for i in rows]
        beside = _composition([fitted[i][0] for i in rows])
        pairs = slope(fit.energies[rows], energies, beside=beside)
    candidates = [s for s in (near, pairs) if s is not None and _sure(s, 0.5)]
    if not candidates or len({s.value > 0 for s in candidates}) == 2:
        return None, False
    return max(candidates, key=lambda s: abs(s.correlation)), False


def _sure(s, least):
    return s.n >= 6 and s.significance > CERTAIN and abs(s.correlation) > least


def _composition(systems):
    elements = np.unique(np.concatenate([np.asarray(s.numbers) for s in systems]))
    counts = [(np.asarray(s.numbers)[:, None] == elements).sum(axis=0) for s in systems]
    return np.hstack([np.array(counts, float), np.ones((len(systems), 1))])


def _stress_slope(frames, fit, volumes):
    """Stress labels against those of the pair potential; times the volume if `volumes`."""
    rows = [i for i, f in enumerate(frames) if np.isfinite(_value(f, "stress")).all()]
    if fit is None or fit.explained < 0.3 or len(rows) < FEWEST:
        return None
    volume = np.array([abs(np.linalg.det(np.asarray(frames[i][0].cell[0], float))) for i in rows])
    label = np.array([_value(frames[i], "stress").reshape(3, 3) for i in rows])
    ruler = fit.virials[rows] / (1 if volumes else volume[:, None, None])
    both = [slope(part(ruler), part(label)) for part in (_pressure, _shear)]
    both = [s for s in both if s.significance > CERTAIN and abs(s.correlation) > 0.6]
    if not both or len({s.value > 0 for s in both}) == 2:
        return None
    return max(both, key=lambda s: abs(s.correlation))


def _pressure(x):
    return np.trace(x, axis1=1, axis2=2) / 3


def _shear(x):
    pairs = [x[:, 0, 1], x[:, 0, 2], x[:, 1, 2], x[:, 0, 0] - x[:, 1, 1], x[:, 1, 1] - x[:, 2, 2]]
    return np.concatenate(pairs)


def is_symmetric(system, *, cutoff: float = 4.5) -> bool:
    """Whether forces vanish by symmetry: what a pair potential would pull cancels at every atom."""
    positions, cell = np.asarray(system.positions, float), np.asarray(system.cell[0], float)
    edges = find_edges(positions, cell, system.pbc[0], cutoff)
    senders, shifts = np.asarray(edges.senders), np.asarray(edges.shifts)
    vectors = positions[:, None] + shifts @ cell - positions[senders]
    mask = np.asarray(edges.mask)[..., None]
    pull = np.where(mask, vectors, 0) / np.where(mask, (vectors**2).sum(-1, keepdims=True), 1) ** 2
    size = np.linalg.norm(pull, axis=-1).sum(axis=1)
    return bool((np.linalg.norm(pull.sum(axis=1), axis=-1) <= 1e-3 * size).all())


# --- absolute rulers -----------------------------------------------------------------------------


def free_atom(z):
    """Total energy of a neutral atom with all electrons, eV, within a few per cent.

    The Thomas-Fermi series with the corrections of Scott and Schwinger
    (Schwinger, Phys. Rev. A 24, 2353, 1981).
    """
    z = np.asarray(z, float)
    series = 0.768745 * z ** (7 / 3) - 0.5 * z**2 + 0.269900 * z ** (5 / 3)
    return -u.hartree * series


def _unit_by_free_atoms(frames) -> str | None:
    """The unit in which total energies are those of atoms with all electrons, if there is one.

    Pseudopotentials leave out the core. Of heavy elements their energies can, by chance, look like
    others in Hartree, so these and Rydberg are told for light elements alone.
    """
    frames = _with(frames, "energy")
    if not frames:
        return None
    numbers = [np.asarray(s.numbers) for s, _ in frames]
    energies = np.array([_value(f, "energy").ravel()[0] for f in frames])
    ratio = np.median(energies / [free_atom(n).sum() for n in numbers])
    light = max(int(n.max()) for n in numbers) <= 10
    for name, factor in ENERGY.items():
        if abs(ratio * factor - 1) < 0.05 and (light or factor <= 1):
            return name
    return None


def _bounds(z):
    """Stiffness of an atom (Laplacian of the energy), eV/Å²: least, typical, most."""
    if z == 1:
        return 8.0, 42.0, 160.0
    return (3.0, 90.0, 450.0) if z in (6, 7, 8, 9) else (0.02, 40.0, 450.0)


def off_chemistry(fit, factor):
    """How far, as a logarithm, forces times the factor are from the stiffness of bonds.

    Infinite where most elements are outside of what chemistry has; 0 where it is not known.
    """
    if fit is None or fit.explained < 0.6:
        return 0.0
    known = [(_bounds(z), k * factor) for z, k in fit.stiffness.items()]
    off = [abs(log(k / b[1])) for b, k in known if b[0] <= k <= b[2]]
    return float(np.mean(off)) if 2 * len(off) > len(known) else float("inf")
