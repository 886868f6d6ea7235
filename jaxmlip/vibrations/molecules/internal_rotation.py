"""Modes that are turns about a bond, where the harmonic entropy is wrong, and by how much.

A methyl group does not swing in a parabola: its energy is periodic. Such modes are found by their
likeness to the turn of one part of the molecule against the other. For tops with a symmetry the
levels in a cosine of the same curvature say how far off the harmonic oscillator is.
"""

from dataclasses import dataclass

import numpy as np

from jaxmlip import units
from jaxmlip.vibrations.modes import Modes
from jaxmlip.vibrations.rigid import checked_masses, rigid_motions
from jaxmlip.vibrations.thermodynamics import Contribution, harmonic


@dataclass(frozen=True, kw_only=True)
class InternalRotation:
    """A soft mode that turns one part of a molecule against the other."""

    bond: tuple[int, int]  # the atoms of the axis
    mode: int  # its number in `Modes`
    frequency_cm1: float
    overlap: float  # share of the mode that is this turn, 0 to 1
    moment: float  # amu Å², reduced: of the relative turn without rotating as a whole
    fold: int  # wells in a full turn, from the symmetry of the two parts; 1 if they have none
    barrier: float | None  # eV, of the cosine with this curvature and fold; None for fold 1
    harmonic: Contribution  # of the mode as it is counted
    hindered: Contribution | None  # of the cosine; None for fold 1

    @property
    def entropy_error(self) -> float | None:
        """Harmonic minus hindered, eV/K; None where the potential is not known."""
        return None if self.hindered is None else self.harmonic.entropy - self.hindered.entropy


def internal_rotations(
    modes: Modes,
    masses,
    positions,
    labels,
    bonds,
    *,
    temperature: float = 298.15,
    share: float = 0.5,
    quanta: float = 2.0,
) -> list[InternalRotation]:
    """The modes of a molecule that are mostly turns about a bond and are soft at `temperature`.

    labels: [n_atoms] atomic numbers; bonds: [n_bonds, 2]. A mode counts if at least `share` of it
    is the turn about one bond outside of rings, and its quantum is below `quanta` times kT.
    """
    masses = checked_masses(masses, len(positions))
    limit = quanta * units.kB * temperature / units.invcm
    soft = np.flatnonzero((modes.frequencies_cm1 > 0) & (modes.frequencies_cm1 < limit))
    best = {}
    for bond, top in rotatable_bonds(positions, bonds):
        turn, moment = turning(masses, positions, bond, top)
        overlaps = np.einsum("kia,ia->k", modes.vectors[soft], turn) ** 2
        for k, overlap in zip(soft, overlaps, strict=True):
            if overlap >= share and overlap > best.get(k, (0,))[0]:
                best[k] = overlap, bond, top, moment
    return [
        _described(int(k), *found, modes, positions, labels, temperature)
        for k, found in sorted(best.items())
    ]


def rotatable_bonds(positions, bonds, *, straight: float = 0.1):
    """[((i, j), top)] of bonds outside rings with something off the axis on both sides.

    top: [n_atoms] True for the part on the side of j. straight: Å from the axis within which an
    atom does not feel the turn.
    """
    positions = np.asarray(positions, np.float64)
    bonds = np.asarray(bonds, int).reshape(-1, 2)
    out = []
    for i, j in bonds:
        top = _reached(j, i, bonds, len(positions))
        if top[i]:
            continue  # a ring
        axis = (positions[j] - positions[i]) / np.linalg.norm(positions[j] - positions[i])
        off = np.linalg.norm(np.cross(axis, positions - positions[i]), axis=1) > straight
        rest = _reached(i, j, bonds, len(positions))
        if (off & top).any() and (off & rest).any():
            out.append(((int(i), int(j)), top))
    return out


def turning(masses, positions, bond, top):
    """The turn of `top` about a bond as a unit mass-weighted vector [n_atoms, 3], and its moment.

    Rigid motions are taken out, so the rest turns back; the moment (amu Å²) is that of a relative
    angle: I_top I_rest / (I_top + I_rest) where both turn about one line.
    """
    positions, i = np.asarray(positions, np.float64), bond[0]
    axis = positions[bond[1]] - positions[i]
    swing = np.cross(axis / np.linalg.norm(axis), positions - positions[i])
    flat = (np.where(top[:, None], swing, 0) * np.sqrt(masses)[:, None]).reshape(-1)
    rigid = rigid_motions(positions, masses).reshape(-1, len(flat))
    flat = flat - rigid.T @ (rigid @ flat)
    moment = flat @ flat
    return (flat / np.sqrt(moment)).reshape(-1, 3), float(moment)


def hindered_rotor(barrier: float, moment: float, fold: int, temperature: float) -> Contribution:
    """Quantum levels in barrier/2 (1 - cos(fold angle)), each well counted once.

    barrier: eV; moment: amu Å². Energies from the bottom of a well. Tends to `harmonic` for a high
    barrier and to a free rotor of symmetry number `fold` for none.
    """
    rotational = units.hbar**2 / (2 * moment)
    kT = units.kB * temperature
    reach = np.sqrt((barrier + 40 * kT) / rotational)
    size = int(reach) + 6 * fold + 10
    m = np.arange(-size, size + 1)
    matrix = np.diag(rotational * m**2.0 + barrier / 2)
    rows = np.arange(len(m) - fold)
    matrix[rows, rows + fold] = matrix[rows + fold, rows] = -barrier / 4
    levels = np.linalg.eigvalsh(matrix)
    weights = np.exp(-(levels - levels[0]) / kT)
    states = weights.sum()
    mean = (levels * weights).sum() / states
    spread = ((levels - mean) ** 2 * weights).sum() / states
    entropy = np.log(states / fold) + (mean - levels[0]) / kT
    return Contribution(float(mean), float(units.kB * entropy), float(spread / (kT * temperature)))


def warning(rotation: InternalRotation, symbols) -> str:
    """What a person should know of it, in one line."""
    bond = "-".join(f"{symbols[i]}{i}" for i in rotation.bond)
    text = (
        f"mode {rotation.mode} ({rotation.frequency_cm1:.0f} cm⁻¹) is to "
        f"{100 * rotation.overlap:.0f} % the internal rotation about {bond}"
    )
    per_mol = units.kJ_mol / 1000
    if rotation.hindered is None:
        return text + ": its harmonic entropy may be off by several J/(mol K)"
    return text + (
        f": harmonic entropy {rotation.harmonic.entropy / per_mol:.1f} J/(mol K), "
        f"{rotation.hindered.entropy / per_mol:.1f} in a {rotation.fold}-fold cosine of "
        f"{rotation.barrier / units.kJ_mol:.1f} kJ/mol"
    )


def _described(k, overlap, bond, top, moment, modes, positions, labels, temperature):
    frequency = float(modes.frequencies_cm1[k])
    fold = _fold(positions, labels, bond, top)
    barrier = hindered = None
    if fold > 1:
        stiffness = moment * (frequency * units.invcm / units.hbar) ** 2
        barrier = 2 * stiffness / fold**2
        hindered = hindered_rotor(barrier, moment, fold, temperature)
    return InternalRotation(
        bond=bond,
        mode=k,
        frequency_cm1=frequency,
        overlap=float(overlap),
        moment=moment,
        fold=fold,
        barrier=barrier,
        harmonic=harmonic([frequency], temperature),
        hindered=hindered,
    )


def _fold(positions, labels, bond, top, *, tolerance=0.2):
    """Least common multiple of the rotations about the bond that leave either part as it is."""
    axis = positions[bond[1]] - positions[bond[0]]
    folds = [
        next(
            n
            for n in (6, 5, 4, 3, 2, 1)
            if _turns_onto(positions, labels, bond, part, n, axis, tolerance)
        )
        for part in (top, ~top)
    ]
    return int(np.lcm(*folds))


def _turns_onto(positions, labels, bond, part, n, axis, tolerance):
    r, who = np.asarray(positions)[part] - positions[bond[0]], np.asarray(labels)[part]
    gap = np.linalg.norm((r @ _rotation(axis, 2 * np.pi / n).T)[:, None] - r, axis=-1)
    gap = np.where(who[:, None] == who, gap, np.inf)
    return bool(gap.min(1).max() < tolerance)


def _rotation(axis, angle):
    x, y, z = axis / np.linalg.norm(axis)
    cross = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    return np.eye(3) + np.sin(angle) * cross + (1 - np.cos(angle)) * cross @ cross


def _reached(start, barred, bonds, n):
    """Atoms that hang together with `start` when the bond to `barred` is cut."""
    reached = np.zeros(n, bool)
    todo = [start]
    while todo:
        atom = todo.pop()
        if reached[atom]:
            continue
        reached[atom] = True
        for a, b in bonds:
            if {a, b} != {start, barred} and atom in (a, b):
                todo.append(b if a == atom else a)
    return reached
