"""Force constants of a supercell as arrays, and the same as phonopy's objects.

Everything is in Å, eV, amu and e, whatever the calculator of a `phonopy.Phonopy`. Files are in
`phonopy_files`.
"""

from dataclasses import dataclass, replace

import numpy as np

from jaxmlip import units
from jaxmlip.errors import DataError


@dataclass(frozen=True, kw_only=True)
class ForceConstants:
    """Second derivatives of the energy of a supercell, the rows of one primitive cell.

    Column k is atom atoms[k] of the primitive cell, moved by the lattice vector shifts[k] (any of
    those that differ by vectors of the supercell).
    """

    values: np.ndarray  # [n_primitive, n_supercell, 3, 3] eV/Å², d²E/dr_a dr_k, a in cell 0
    cell: np.ndarray  # [3, 3] Å, rows: the primitive cell
    positions: np.ndarray  # [n_primitive, 3] Å
    numbers: np.ndarray  # [n_primitive]
    masses: np.ndarray  # [n_primitive] amu
    matrix: np.ndarray  # [3, 3] int, rows: the supercell's vectors in those of the primitive cell
    atoms: np.ndarray  # [n_supercell]
    shifts: np.ndarray  # [n_supercell, 3] int

    @property
    def acoustic_sum(self) -> float:
        """max |sum over k of the values|, eV/Å²: zero by translation."""
        return float(np.abs(self.values.sum(1)).max())

    @property
    def asymmetry(self) -> float:
        """max |Φ(a, k) - Φ(k, a)^T|, eV/Å²: zero, as it is a second derivative."""
        home = column_of(self, np.arange(len(self.values)), np.zeros((len(self.values), 3), int))
        rows, columns = np.indices(self.values.shape[:2])
        back = column_of(self, rows, self.shifts[home][rows] - self.shifts[columns])
        other = self.values[self.atoms[columns], back].swapaxes(-1, -2)
        return float(np.abs(self.values - other).max())


@dataclass(frozen=True, kw_only=True)
class Polar:
    """What makes the long-range field of displaced ions; the source of LO-TO splitting."""

    born_charges: np.ndarray  # [n_primitive, cartesian of atom, cartesian of field] e
    dielectric: np.ndarray  # [3, 3] electronic (clamped ions)
    coulomb: float = units.coulomb_constant  # eV Å / e²; files may state a rounded one
    width: float | None = None  # 1/Å (no 2 pi): Λ of the split of the dipole sum; None: phonopy's
    cutoff: float | None = None  # 1/Å (no 2 pi): radius of its reciprocal vectors; None: phonopy's


def column_of(constants: ForceConstants, atoms, shifts) -> np.ndarray:
    """The columns that hold `atoms` moved by `shifts`, both [...] and [..., 3], of any length."""
    size = round(abs(np.linalg.det(constants.matrix)))
    adjugate = np.rint(np.linalg.inv(constants.matrix) * size).astype(int)

    def key(atom, shift):
        x, y, z = np.moveaxis((shift @ adjugate) % size, -1, 0)
        return ((np.asarray(atom) * size + x) * size + y) * size + z

    known = key(constants.atoms, constants.shifts)
    order = np.argsort(known)
    return order[np.searchsorted(known[order], key(atoms, np.asarray(shifts)))]


def symmetrized(constants: ForceConstants, *, project: bool = True) -> ForceConstants:
    """Force constants with exact sum rules.

    project: space group, translations and permutations at once by the projector of symfc, which
    finds the nearest ones; else translations and permutations in turn, as phonopy's compact form.
    """
    phonon = to_phonopy(constants)
    phonon.symmetrize_force_constants(use_symfc_projector=project, show_drift=False)
    new = from_phonopy(phonon)
    order = column_of(new, constants.atoms, constants.shifts)
    return replace(constants, values=new.values[:, order])


def symmetrized_polar(constants: ForceConstants, polar: Polar) -> Polar:
    """Born charges and dielectric tensor with the symmetry of the crystal, and of sum zero."""
    from phonopy.structure.symmetry import symmetrize_borns_and_epsilon

    cell = to_phonopy_atoms(primitive_atoms(constants))
    charges = polar.born_charges.swapaxes(1, 2)
    charges, dielectric = symmetrize_borns_and_epsilon(charges, polar.dielectric, cell)
    charges = (charges - charges.mean(0)).swapaxes(1, 2)
    return replace(polar, born_charges=charges, dielectric=dielectric)


def to_phonopy(constants: ForceConstants, polar: Polar | None = None):
    """A `phonopy.Phonopy` with these force constants: the same primitive cell, its own order."""
    from phonopy import Phonopy
    from phonopy.structure.atoms import PhonopyAtoms

    cell = PhonopyAtoms(
        cell=constants.cell,
        positions=constants.positions,
        numbers=constants.numbers,
        masses=constants.masses,
    )
    phonon = Phonopy(cell, constants.matrix.T, primitive_matrix=np.eye(3))
    order = from_phonopy(phonon, values=np.zeros((len(cell), len(phonon.supercell), 3, 3)))
    apart = (order.positions - constants.positions) @ np.linalg.inv(constants.cell)
    if np.abs(apart - np.rint(apart)).max() > 1e-6:
        raise DataError("phonopy reordered the atoms of the primitive cell", where="to_phonopy")
    # row i of phonopy starts at our atom i moved by a lattice vector of its own
    start = np.rint(apart).astype(int)
    here = order.shifts[None] + start[order.atoms][None] - start[:, None]
    columns = column_of(constants, np.broadcast_to(order.atoms, here.shape[:2]), here)
    rows = np.arange(len(cell))[:, None]
    phonon.force_constants = constants.values[rows, columns]
    if polar is not None:
        phonon.nac_params = {
            "born": polar.born_charges.swapaxes(1, 2),  # phonopy: field first, then atom
            "dielectric": polar.dielectric,
            "factor": polar.coulomb,
            **({} if polar.width is None else {"Lambda": polar.width}),
            **({} if polar.cutoff is None else {"G_cutoff": polar.cutoff}),
        }
    return phonon


def from_phonopy(phonon, *, values=None) -> ForceConstants:
    """The force constants of a `phonopy.Phonopy`, full or compact, in eV and Å."""
    primitive, supercell = phonon.primitive, phonon.supercell
    values = phonon.force_constants if values is None else values
    if values is None:
        raise DataError("the Phonopy object holds no force constants", where="from_phonopy")
    rows = np.asarray(primitive.p2s_map)
    length, energy = _units(phonon)
    inverse = np.linalg.inv(primitive.cell)
    atoms = np.searchsorted(rows, primitive.s2p_map) if (np.diff(rows) > 0).all() else None
    if atoms is None:
        atoms = np.array([primitive.p2p_map[s] for s in primitive.s2p_map])
    apart = supercell.positions - supercell.positions[rows][atoms]
    return ForceConstants(
        values=np.asarray(values if len(values) == len(rows) else values[rows]) * energy,
        cell=np.asarray(primitive.cell) * length,
        positions=supercell.positions[rows] * length,
        numbers=np.asarray(primitive.numbers),
        masses=np.asarray(primitive.masses),
        matrix=np.rint(supercell.cell @ inverse).astype(int),
        atoms=atoms,
        shifts=np.rint(apart @ inverse).astype(int),
    )


def polar_of(phonon) -> Polar | None:
    """Born charges and dielectric tensor of a `phonopy.Phonopy`, if it has them."""
    found = phonon.nac_params
    if found is None:
        return None
    length, energy = _units(phonon)
    optional = lambda key: None if found.get(key) is None else float(found[key]) / length
    return Polar(
        born_charges=np.asarray(found["born"]).swapaxes(1, 2),
        dielectric=np.asarray(found["dielectric"]),
        coulomb=float(found["factor"]) * energy * length**3,
        width=optional("Lambda"),
        cutoff=optional("G_cutoff"),
    )


def to_phonopy_atoms(atoms):
    """`ase.Atoms` as `PhonopyAtoms`, masses kept."""
    from phonopy.structure.atoms import PhonopyAtoms

    return PhonopyAtoms(
        cell=np.asarray(atoms.cell),
        positions=atoms.positions,
        numbers=atoms.numbers,
        masses=atoms.get_masses(),
    )


def from_phonopy_atoms(cell, *, length: float = 1.0):
    """`PhonopyAtoms` as periodic `ase.Atoms`; length: Å of the unit of the cell."""
    from ase import Atoms

    return Atoms(
        numbers=cell.numbers,
        cell=cell.cell * length,
        positions=cell.positions * length,
        masses=cell.masses,
        pbc=True,
    )


def primitive_atoms(constants: ForceConstants):
    """The primitive cell of force constants as `ase.Atoms`."""
    from ase import Atoms

    return Atoms(
        numbers=constants.numbers,
        cell=constants.cell,
        positions=constants.positions,
        masses=constants.masses,
        pbc=True,
    )


def standard_masses(numbers) -> np.ndarray:
    """Masses of the elements in natural abundance, amu (those of ASE)."""
    from ase.data import atomic_masses

    return atomic_masses[np.asarray(numbers)]


def _units(phonon) -> tuple[float, float]:
    """Å of its length and eV/Å² of its force constants."""
    from phonopy.interface.calculator import get_force_constant_conversion_factor
    from phonopy.physical_units import get_calculator_physical_units

    length = get_calculator_physical_units(phonon.calculator).distance_to_A
    return length, 1 / get_force_constant_conversion_factor("eV/angstrom^2", phonon.calculator)
