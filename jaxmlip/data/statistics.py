"""What a model should not have to learn: energies of free atoms, neighbour counts, scales.

Everything is numpy float64 on the host: a reference energy of -1e4 eV in float32 is already
wrong by 1 meV.
"""

import numpy as np

from jaxmlip.errors import DataError


def fit_reference_energies(numbers, energies) -> dict[int, float]:
    """{atomic number: eV}: the per-element energies nearest to all energies (least squares).

    numbers: [[n_atoms]] per structure; energies: [n_structures] eV, NaN where unknown. Frames of
    one atom are used exactly. Where compositions leave a choice, the solution of smallest norm.
    """
    elements, counts = _compositions(numbers)
    energies = np.asarray(energies, np.float64)
    known = np.isfinite(energies)
    unseen = elements[(counts[known] == 0).all(axis=0)]
    if len(unseen):
        raise DataError(
            f"no structure with an energy contains the element(s) {unseen.tolist()} "
            f"(atomic numbers); {known.sum()} of {len(known)} structures have one",
            code="JM230",
            fix="add such structures, or one-atom frames",
        )
    counts, energies = counts[known], energies[known]
    free = counts.sum(axis=1) == 1
    fixed = (counts[free] > 0).any(axis=0)
    out = np.zeros(len(elements))
    for i in np.flatnonzero(fixed):
        out[i] = energies[free & (counts[:, i] == 1)].mean()
    rest = energies[~free] - counts[~free] @ out
    out[~fixed] = np.linalg.lstsq(counts[~free][:, ~fixed], rest, rcond=None)[0]
    return {int(z): float(e) for z, e in zip(elements, out, strict=True)}


def _compositions(numbers):
    elements = np.unique(np.concatenate([np.asarray(n) for n in numbers]))
    elements = elements[elements > 0]
    counts = np.array([(np.asarray(n)[:, None] == elements).sum(axis=0) for n in numbers])
    return elements, counts.astype(np.float64)


def remove_reference_energies(numbers, energies, reference: dict[int, float]) -> np.ndarray:
    """Energies less those of the free atoms, [n_structures] float64 eV."""
    elements, counts = _compositions(numbers)
    unknown = [int(z) for z in elements if z not in reference]
    if unknown:
        raise DataError(
            f"no reference energy for atomic number(s) {unknown}; known are {sorted(reference)}",
            code="JM231",
            fix="put structures with these elements into the training data",
        )
    return np.asarray(energies, np.float64) - counts @ [reference[int(z)] for z in elements]


def average_neighbors(systems) -> float:
    """Mean number of neighbours of an atom."""
    edges = sum(int(np.sum(s.edges.mask)) for s in systems)
    atoms = sum(int(np.sum(s.atom_mask)) for s in systems)
    return edges / max(atoms, 1)


def rms(values) -> float:
    """Root mean square of the known entries of a list of arrays (NaN if there are none)."""
    known = np.concatenate([v[np.isfinite(v)] for v in values]) if len(values) else np.zeros(0)
    return float(np.sqrt(np.mean(known**2))) if known.size else float("nan")
