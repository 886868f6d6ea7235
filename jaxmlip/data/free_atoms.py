"""Isolated atoms: frames that tell reference energies and are not to be trained on."""

import re

import numpy as np

NAMES = re.compile(r"(isolated|iso|free|single)?[\s_\-]*atoms?([\s_\-]*(isolated|free))?", re.I)
FAR = 6.0  # Å
NAMED = re.compile(r"isolated|iso|free|single", re.I)


def names_free_atom(kind: str) -> bool:
    """Whether a config_type says isolated atom: IsolatedAtom, isolated_atom, 'free atoms' ..."""
    kind = kind.strip()
    return bool(NAMES.fullmatch(kind) and NAMED.search(kind))


def is_free_atom(system, kind: str = "") -> bool:
    """One atom that is not a crystal: its kind says so, it is not periodic, or has no neighbours.

    A periodic atom whose edges were not searched counts if its cell is longer than `FAR`.
    """
    if system.n_atoms != 1:
        return False
    if names_free_atom(kind) or not np.any(system.pbc):
        return True
    if system.edges is None:
        lengths = np.linalg.norm(np.asarray(system.cell[0]), axis=1)
        return bool(lengths[np.asarray(system.pbc[0])].min() > FAR)
    return not np.any(system.edges.mask)
