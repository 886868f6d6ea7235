"""Which atoms belong together: ions and molecules that keep a charge of their own (host)."""

import jax
import numpy as np

from jaxmlip.electrostatics.planning import check_concrete
from jaxmlip.errors import UsageError
from jaxmlip.system import System, edge_vectors


def bonded_fragments(system: System, longest: float) -> np.ndarray:
    """[n_atoms] index of the fragment of each atom, counted over the whole batch.

    A fragment is all that hangs together by edges up to `longest` Å (of bonds); the system's edges
    must reach that far. Fragments are found once: what breaks or forms later is not seen. Padding
    atoms belong to the last fragment. Raises `UsageError` without edges.
    """
    check_concrete(system, "bonded_fragments")
    if system.edges is None:
        fix = f"jaxmlip.from_ase(atoms, {longest})"
        raise UsageError("the system has no edges", where="bonded_fragments", fix=fix)
    edges = jax.tree.map(np.asarray, system.edges)
    bonded = edges.mask & (np.linalg.norm(edge_vectors(system), axis=-1) <= longest)
    rows = np.arange(len(edges.senders))[:, None] if edges.receivers is None else edges.receivers
    first = np.broadcast_to(rows, edges.senders.shape)[bonded]
    second = edges.senders[bonded]
    real = np.asarray(system.atom_mask)
    found = np.unique(_lowest_index(system.n_atoms, first, second)[real], return_inverse=True)[1]
    out = np.full(system.n_atoms, max(found.max(initial=0), 0), np.int32)
    out[real] = found
    return out


def _lowest_index(n, first, second):
    """For each atom the lowest index of those that it hangs together with."""
    lowest = np.arange(n)
    while True:
        before = lowest.copy()
        np.minimum.at(lowest, first, lowest[second])
        np.minimum.at(lowest, second, lowest[first])
        lowest = lowest[lowest]  # twice as far each time
        if (lowest == before).all():
            return lowest
