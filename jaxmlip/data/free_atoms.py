"""Isolated atoms: frames that tell reference energies and are not to be trained on."""

import re

import numpy as np

NAMES = re.compile(r"(isolated|iso|free|single)?[\s_\-]*atoms?([\s_\-]*(isolated|free))?", re.I)
FAR = 6.0  # Å; caesium, the widest crystal of one atom a cell, has 5.2
NAMED = re.compile(r"isolated|iso|free|single", re.I)


def names_free_atom(kind: str) -> bool:
    """Whether a config_type says isolated atom: IsolatedAtom, isolated_atom, 'free atoms' ..."""
    kind = kind.strip()
    return bool(NAMES.fullmatch(kind) and NAMED.search(kind))


def is_free_atom(system, kind: str = "") -> bool:
    """One neutral atom that is not a crystal: its kind says so, or its images are beyond `FAR`.

    Whether it has neighbours within a cutoff tells nothing: a crystal that is expanded beyond it is
    still one. Ions are structures like others, for their energies are not those of atoms.
    """
    if system.n_atoms != 1 or float(system.charge[0]) != 0:
        return False
    if names_free_atom(kind) or not np.any(system.pbc):
        return True
    lengths = np.linalg.norm(np.asarray(system.cell[0]), axis=1)
    return bool(lengths[np.asarray(system.pbc[0])].min() > FAR)
