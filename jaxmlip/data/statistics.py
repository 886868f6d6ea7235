"""What a model should not have to learn: energies of free atoms, neighbour counts, scales.

Everything is numpy float64 on the host: a reference energy of -1e4 eV in float32 is already
wrong by 1 meV.
"""

import math
from dataclasses import dataclass

import numpy as np

from jaxmlip.errors import DataError

UNBOUND, BOUND = 5.0, 15.0  # eV/atom; energies above, or below by more, are not of these atoms


@dataclass(frozen=True)
class ReferenceEnergies:
    """Energies of free atoms and where they come from."""

    values: dict[int, float]  # {atomic number: eV}
    source: dict[int, str]  # {atomic number: "given" | "isolated atom" | "fitted"}
    condition: float  # of the fit: 1 is best, infinite where compositions leave a choice, NaN: none
    binding: float  # median of the energy less those of the atoms, eV/atom


def fit_reference_energies(numbers, energies, *, free=None, given=None) -> dict[int, float]:
    """{atomic number: eV}: the per-element energies nearest to all energies (least squares).

    numbers: [[n_atoms]] per structure; energies: [n_structures] eV, NaN where unknown; free, given:
    see `reference_energies`. Where compositions leave a choice, the solution of smallest norm.
    """
    elements, counts = _compositions(numbers)
    return reference_energies(elements, counts, energies, free=free, given=given).values


def reference_energies(elements, counts, energies, *, free=None, given=None) -> ReferenceEnergies:
    """Energies of the free atoms of elements [m], from compositions counts [n_structures, m].

    energies: [n_structures] eV, NaN where unknown. given: {atomic number: eV}, taken as they are.
    free: [n_structures], which frames are isolated atoms (default: all of one atom), taken exactly;
    what is then unknown is fitted to the rest. Raises `DataError` for an element without an energy,
    and where given energies cannot be those of the atoms of these structures.
    """
    elements, counts = np.asarray(elements), np.asarray(counts, np.float64)
    energies = np.asarray(energies, np.float64)
    known, given = np.isfinite(energies), given or {}
    free = counts.sum(axis=1) == 1 if free is None else np.asarray(free, bool)
    counts, energies, free = counts[known], energies[known], free[known]
    table = np.isin(elements, list(given))
    atoms = (counts[free] > 0).any(axis=0) & ~table
    out = np.array([given.get(int(z), 0.0) for z in elements], np.float64)
    for i in np.flatnonzero(atoms):
        out[i] = energies[free & (counts[:, i] == 1)].min()  # of several spins: the ground state
    rest, counts, energies = ~table & ~atoms, counts[~free], energies[~free]
    unseen = elements[rest & ~(counts > 0).any(axis=0)]
    if len(unseen):
        raise DataError(
            f"no structure with an energy contains the element(s) {unseen.tolist()} "
            f"(atomic numbers); {known.sum()} of {len(known)} structures have one",
            code="JM230",
            fix="add such structures, or one-atom frames, or data: reference_energies",
        )
    if rest.any():
        unexplained = energies - counts @ out
        out[rest] = np.linalg.lstsq(counts[:, rest], unexplained, rcond=None)[0]
    per_atom = (energies - counts @ out) / np.maximum(counts.sum(axis=1), 1)
    binding = float(np.median(per_atom)) if len(per_atom) else float("nan")
    if table.any():
        _check_table(binding, {int(z): given[int(z)] for z in elements[table]})
    name = lambda i: "given" if table[i] else "isolated atom" if atoms[i] else "fitted"
    return ReferenceEnergies(
        values={int(z): float(e) for z, e in zip(elements, out, strict=True)},
        source={int(z): name(i) for i, z in enumerate(elements)},
        condition=_condition(counts[:, rest]) if rest.any() else float("nan"),
        binding=binding,
    )


def _condition(counts):
    """Of the least squares, with columns of one length."""
    scaled = counts / np.maximum(np.linalg.norm(counts, axis=0), 1e-300)
    values = np.linalg.svd(scaled, compute_uv=False)
    short = len(values) < counts.shape[1] or values[-1] < 1e-10 * values[0]
    return float("inf") if short else float(values[0] / values[-1])


def _check_table(binding, table):
    """Energies of another level of theory leave binding energies that no structure has."""
    if np.isfinite(binding) and not -BOUND < binding < UNBOUND:
        raise DataError(
            f"with the reference energies given ({table} eV) the structures have {binding:.4g} "
            f"eV/atom (median), expected between {-BOUND:g} and {UNBOUND:g}: they are of another "
            "level of theory, or in another unit",
            where="data.reference_energies",
            code="JM234",
            fix="energies of isolated atoms by the same method, in eV; or leave them out to be "
            "fitted",
        )


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
    return rms_of(list(map(squares, values)))


def squares(values) -> tuple[float, int]:
    """(sum of the squares of the known entries of an array, their number)."""
    values = np.asarray(values, np.float64)
    known = values[np.isfinite(values)]
    return float(np.sum(known**2)), known.size


def rms_of(parts) -> float:
    """Root mean square from the `squares` of several arrays, in any order the same."""
    n = sum(int(count) for _, count in parts)
    return math.sqrt(math.fsum(total for total, _ in parts) / n) if n else float("nan")
