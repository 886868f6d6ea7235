"""The door to spglib: what maps a crystal onto itself.

Everything is told in the basis and the orientation of the cell that is given: no structure is
rotated or replaced unless a function is asked for another one. Magnetic moments are not read.
"""

import warnings
from dataclasses import dataclass, replace
from itertools import combinations

import numpy as np

from jaxmlip.errors import DataError, UsageError


@dataclass(frozen=True, kw_only=True)
class Symmetry:
    """The operations x -> rotation x + translation (fractional) that map a crystal onto itself.

    Atom a of cell 0 goes to atom permutations[o, a] of the cell shifts[o, a].
    """

    number: int  # of the space group; 0 where an axis is open
    symbol: str  # international short symbol; empty where an axis is open
    rotations: np.ndarray  # [n_ops, 3, 3] int, act on columns of fractional coordinates
    translations: np.ndarray  # [n_ops, 3] fractional
    cartesian: np.ndarray  # [n_ops, 3, 3] the same rotations of cartesian vectors, r -> W r
    permutations: np.ndarray  # [n_ops, n_atoms]
    shifts: np.ndarray  # [n_ops, n_atoms, 3] int, lattice vectors
    equivalent: np.ndarray  # [n_atoms] the first atom that is equivalent to each atom
    tolerance: float  # Å

    @property
    def n_ops(self) -> int:
        return len(self.rotations)

    @property
    def inverses(self) -> np.ndarray:
        """[n_ops, 3, 3] int, of the rotations."""
        return np.rint(np.linalg.inv(self.rotations)).astype(int)

    @property
    def irreducible(self) -> np.ndarray:
        """One atom, the first, of each set of equivalent atoms."""
        return np.unique(self.equivalent)


def symmetry(atoms, *, tolerance: float = 1e-5) -> Symmetry:
    """The space group operations of `ase.Atoms` within `tolerance` Å.

    Along open axes nothing is repeated: operations that shift along one, or mix one with a
    periodic one, are left out. A molecule (no periodic axis) has the identity only: point groups
    of molecules are not looked for. Raises `DataError` where spglib finds no group (atoms on top
    of one another).
    """
    if not atoms.pbc.any():
        return _identity(len(atoms), tolerance)
    cell, x = closed_cell(atoms)
    data = _dataset(cell, x, atoms.numbers, tolerance)
    rotations, translations = np.asarray(data.rotations, int), np.asarray(data.translations)
    permutations, shifts = _mapped(cell, x, atoms.numbers, rotations, translations, tolerance)
    along = shifts[:, :1] * ~atoms.pbc  # a translation is known up to whole cells
    translations, shifts = translations - along[:, 0], shifts - along
    keep = _keeps_open_axes(rotations, shifts, ~atoms.pbc)
    rotations, permutations = rotations[keep], permutations[keep]
    crystal = atoms.pbc.all()
    return Symmetry(
        number=int(data.number) if crystal else 0,
        symbol=str(data.international) if crystal else "",
        rotations=rotations,
        translations=translations[keep],
        cartesian=cell.T @ rotations @ np.linalg.inv(cell.T),
        permutations=permutations,
        shifts=shifts[keep],
        equivalent=permutations.min(0),
        tolerance=tolerance,
    )


def operations(group: Symmetry, chosen) -> Symmetry:
    """The chosen operations (indices or mask); that they are a group is not checked."""
    permutations = group.permutations[chosen]
    return replace(
        group,
        rotations=group.rotations[chosen],
        translations=group.translations[chosen],
        cartesian=group.cartesian[chosen],
        permutations=permutations,
        shifts=group.shifts[chosen],
        equivalent=permutations.min(0),
    )


def primitive(atoms, *, tolerance: float = 1e-5):
    """The primitive cell of a crystal as `ase.Atoms`: not rotated, not idealised, masses kept.

    Atoms of one element and different mass are different atoms. The given atoms are returned (a
    copy) if they are primitive already. Each primitive cell has its share of info 'charge' and of
    the unpaired electrons in info 'spin' (2S+1); `DataError` where that is no whole number.
    """
    import spglib

    _periodic(atoms, "primitive")
    kinds = atoms.copy()
    kinds.numbers = 1 + _labels(np.stack([atoms.numbers, atoms.get_masses()], 1))
    pure = (symmetry(kinds, tolerance=tolerance).rotations == np.eye(3, dtype=int)).all((1, 2))
    if pure.sum() == 1:
        return atoms.copy()
    structure = np.asarray(atoms.cell), atoms.get_scaled_positions(), kinds.numbers
    found = spglib.standardize_cell(
        structure, to_primitive=True, no_idealize=True, symprec=tolerance
    )
    cell, x, numbers = found
    at = [_atom_at(atoms, r, tolerance) for r in x @ cell]
    out = atoms[at]
    out.set_cell(cell)
    out.set_scaled_positions(x)
    many = round(atoms.get_volume() / abs(np.linalg.det(cell)))
    if len(atoms) != many * len(numbers):
        raise DataError("the primitive cell does not hold a whole share of the atoms")
    out.info |= _shared(atoms.info, many)
    return out


def _shared(info, many: int) -> dict:
    """Charge and multiplicity of one of `many` equal cells, where they are given."""
    out = {}
    if "charge" in info:
        out["charge"] = info["charge"] / many
    if "spin" in info:
        unpaired = (info["spin"] - 1) / many
        if unpaired != round(unpaired):
            raise DataError(
                f"{info['spin'] - 1:g} unpaired electrons cannot be shared by {many} primitive "
                "cells",
                where="primitive",
                fix="keep the cell as it is given, or give another spin",
            )
        out["spin"] = int(unpaired) + 1
    return out


def symmetrized(atoms, *, tolerance: float = 1e-3):
    """The nearest structure with exactly the symmetry found within `tolerance` Å.

    The metric of the cell and the positions relative to their mean are averaged over the group;
    neither the orientation of the cell nor the mean position changes. Needs a crystal.
    """
    _periodic(atoms, "symmetrized")
    group = symmetry(atoms, tolerance=tolerance)
    cell = np.asarray(atoms.cell)
    metric = np.mean([w.T @ cell @ cell.T @ w for w in group.rotations], axis=0)
    inverse = np.linalg.inv(cell)
    values, vectors = np.linalg.eigh(inverse @ metric @ inverse.T)
    stretch = vectors * np.sqrt(values) @ vectors.T  # symmetric: strained, not rotated
    x = atoms.positions @ inverse
    centred, mean = x - x.mean(0), x.mean(0)
    moved = np.einsum("oij,aj->oai", group.rotations, centred)
    moved += group.shifts.mean(1, keepdims=True) - group.shifts
    average = np.zeros_like(x)
    for image, permutation in zip(moved, group.permutations, strict=True):
        average[permutation] += image / group.n_ops
    out = atoms.copy()
    out.set_cell(cell @ stretch)
    out.positions[:] = (average + mean) @ np.asarray(out.cell)
    return out


def site_symmetry(group: Symmetry, atom: int) -> np.ndarray:
    """Indices of the operations that leave an atom where it is (up to a lattice vector)."""
    return np.flatnonzero(group.permutations[:, atom] == atom)


def displacement_directions(group: Symmetry, atom: int, *, seed: int = 0) -> np.ndarray:
    """The fewest cartesian unit vectors [1 to 3, 3] whose images under site symmetry span space.

    Forces of an atom moved along these give, by rotation, those of any displacement of it. One
    vector is enough if no kind of representation of the site group occurs twice among x, y and z
    (Td, but also C2v: then a vector in a general direction). Of many candidates the first of about
    the best conditioned ones is taken, simple directions first; the axes if nothing is saved.
    """
    rotations = group.cartesian[site_symmetry(group, atom)]
    axes = np.eye(3)
    corners = np.stack(np.meshgrid(*3 * [[0, 1, -1]], indexing="ij"), -1).reshape(-1, 3)[1:]
    random = np.random.default_rng(seed).normal(size=(60, 3))
    candidates = np.concatenate([axes, corners, random])
    candidates /= np.linalg.norm(candidates, axis=1, keepdims=True)
    images = np.einsum("oij,vj->voi", rotations, candidates)
    spans = np.einsum("voi,voj->vij", images, images) / len(rotations)
    for many in (1, 2):
        if many * len(rotations) < 3:
            continue  # too few images to span space
        sets = np.array(list(combinations(range(len(candidates)), many)))
        values = np.linalg.eigvalsh(spans[sets].sum(1))
        score = values[:, 0] / values[:, -1]
        if score.max() > 0.05:
            return candidates[sets[np.flatnonzero(score > 0.9 * score.max())[0]]]
    return axes


def _labels(rows):
    """[n] the same number for equal rows."""
    return np.unique(rows, axis=0, return_inverse=True)[1].reshape(-1)


def _identity(n: int, tolerance: float) -> Symmetry:
    return Symmetry(
        number=0,
        symbol="",
        rotations=np.eye(3, dtype=int)[None],
        translations=np.zeros((1, 3)),
        cartesian=np.eye(3)[None],
        permutations=np.arange(n)[None],
        shifts=np.zeros((1, n, 3), int),
        equivalent=np.arange(n),
        tolerance=tolerance,
    )


def closed_cell(atoms) -> tuple[np.ndarray, np.ndarray]:
    """Cell and fractional positions with far, perpendicular vectors along the open axes."""
    cell = np.array(atoms.cell.complete())
    periodic = cell[atoms.pbc]
    if not atoms.pbc.all():
        normals = np.linalg.svd(periodic)[2][len(periodic) :]
        extent = np.ptp(atoms.positions @ normals.T, axis=0).max()
        cell[~atoms.pbc] = normals * (extent + 2 * np.linalg.norm(periodic, axis=1).max() + 10)
        if np.linalg.det(cell) * np.linalg.det(atoms.cell.complete()) < 0:
            cell[np.flatnonzero(~atoms.pbc)[0]] *= -1
    return cell, atoms.positions @ np.linalg.inv(cell)


def _dataset(cell, x, numbers, tolerance):
    import spglib

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            data = spglib.get_symmetry_dataset((cell, x, numbers), symprec=tolerance)
        except Exception as error:  # its own family of errors, or none: it differs by version
            data, reason = None, f": {error}"
        else:
            reason = ""
    if data is None:
        raise DataError(
            f"spglib finds no space group within {tolerance:g} Å{reason}",
            where="symmetry",
            fix="look for atoms on top of one another, or give another tolerance",
        )
    return data


def _mapped(cell, x, numbers, rotations, translations, tolerance):
    """Where each operation takes each atom: permutations [n_ops, n], shifts [n_ops, n, 3]."""
    permutations = np.empty((len(rotations), len(x)), int)
    shifts = np.empty((len(rotations), len(x), 3), int)
    same = numbers[:, None] == numbers
    for o, (rotation, translation) in enumerate(zip(rotations, translations, strict=True)):
        apart = (x @ rotation.T + translation)[:, None] - x
        whole = np.rint(apart)
        distance = np.where(same, np.linalg.norm((apart - whole) @ cell, axis=-1), np.inf)
        permutations[o] = distance.argmin(1)
        shifts[o] = whole[np.arange(len(x)), permutations[o]]
        worst = distance.min(1).max()
        if worst > 10 * tolerance or len(set(permutations[o])) < len(x):
            raise DataError(
                f"operation {o} of the space group misses an atom by {worst:.2e} Å",
                where="symmetry",
                fix="give a smaller tolerance, or symmetrise the structure",
            )
    return permutations, shifts


def _keeps_open_axes(rotations, shifts, is_open):
    mixes = rotations[:, is_open][:, :, ~is_open].any((1, 2))
    mixes |= rotations[:, ~is_open][:, :, is_open].any((1, 2))
    return ~mixes & ~shifts[:, :, is_open].any((1, 2))


def _atom_at(atoms, position, tolerance):
    apart = (atoms.positions - position) @ np.linalg.inv(np.asarray(atoms.cell))
    distance = np.linalg.norm((apart - np.rint(apart)) @ np.asarray(atoms.cell), axis=1)
    return int(distance.argmin())


def _periodic(atoms, where):
    if not atoms.pbc.all():
        raise UsageError(f"needs a crystal, got pbc {atoms.pbc.tolist()}", where=where)
