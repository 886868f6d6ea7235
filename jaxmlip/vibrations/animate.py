"""What a mode looks like: frames to play, and which atoms move.

Labels are counted from 0, as in ASE and in every array here. In a degenerate set the modes, and so
their labels, are an arbitrary choice.
"""

from collections import Counter

import numpy as np


def animation(positions, displacement, *, n_frames: int = 20, amplitude: float = 0.5):
    """Frames of one period of a mode, [n_frames, n_atoms, 3], Å; the first is at rest.

    displacement: [n_atoms, 3] cartesian (`Modes.displacements[k]`), of any norm.
    amplitude: Å, largest displacement of any atom.
    """
    displacement = np.asarray(displacement, np.float64)
    step = displacement * (amplitude / np.linalg.norm(displacement, axis=-1).max())
    phase = np.sin(2 * np.pi * np.arange(n_frames) / n_frames)
    return np.asarray(positions, np.float64) + phase[:, None, None] * step


def kinetic_shares(vector):
    """Share of the kinetic energy of each atom, [n_atoms], from a mass-weighted mode."""
    weights = (np.asarray(vector, np.float64) ** 2).sum(-1)
    return weights / weights.sum()


def moving_atoms(vector, symbols, *, share: float = 0.8, at_most: int = 4) -> str:
    """The atoms that carry `share` of the kinetic energy: "H1 H2", or "6 H, 2 C" if many.

    vector: [n_atoms, 3] mass-weighted (`Modes.vectors[k]`).
    """
    atoms = _largest(kinetic_shares(vector), share)
    if len(atoms) <= at_most:
        return " ".join(f"{symbols[i]}{i}" for i in atoms)
    return _counted(symbols[i] for i in atoms)


def stretch_shares(vector, masses, positions, bonds):
    """How much of a mode stretches bonds: the share (0 to 1) and the weight of each bond.

    The mass-weighted mode is projected on the span of the stretches of `bonds` [n_bonds, 2].
    """
    stretches = _stretches(masses, positions, bonds)
    flat = np.asarray(vector, np.float64).reshape(-1)
    flat = flat / np.linalg.norm(flat)
    coefficients = np.linalg.lstsq(stretches.T, flat, rcond=None)[0]
    weights = coefficients**2
    return float(((stretches.T @ coefficients) ** 2).sum()), weights / max(weights.sum(), 1e-300)


def label(vector, masses, positions, symbols, bonds=(), *, share: float = 0.8) -> str:
    """ "O0-H1 O0-H2 stretch" if stretches of `bonds` make up `share` of the mode, else its atoms.

    Where bonds are many (> 1.5 an atom) their stretches span nearly every motion and would say
    nothing: then only atoms are named.
    """
    bonds = np.asarray(bonds, int).reshape(-1, 2)
    if 0 < len(bonds) <= 1.5 * len(symbols):
        part, weights = stretch_shares(vector, masses, positions, bonds)
        if part > share:
            return _bond_names(bonds[_largest(weights, share)], symbols) + " stretch"
    return moving_atoms(vector, symbols, share=share)


def _stretches(masses, positions, bonds):
    positions, masses = np.asarray(positions, np.float64), np.asarray(masses, np.float64)
    out = np.zeros((len(bonds), len(masses), 3))
    for row, (i, j) in zip(out, bonds, strict=True):
        along = positions[j] - positions[i]
        row[i], row[j] = -along / np.sqrt(masses[i]), along / np.sqrt(masses[j])
    flat = out.reshape(len(bonds), -1)
    return flat / np.linalg.norm(flat, axis=1, keepdims=True)


def _largest(weights, share):
    """Indices of the largest weights that sum to `share`, with all that tie with the last."""
    order = np.argsort(-np.round(weights, 2), kind="stable")  # equals by symmetry keep their order
    last = order[min(np.searchsorted(np.cumsum(weights[order]), share), len(order) - 1)]
    return order[weights[order] >= 0.95 * weights[last]]


def _bond_names(bonds, symbols, at_most=3):
    if len(bonds) <= at_most:
        return " ".join(f"{symbols[i]}{i}-{symbols[j]}{j}" for i, j in bonds)
    return _counted("-".join(sorted((symbols[i], symbols[j]))) for i, j in bonds)


def _counted(names):
    return ", ".join(f"{count} {name}" for name, count in Counter(names).most_common())
