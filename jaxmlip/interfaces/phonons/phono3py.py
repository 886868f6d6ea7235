"""The door to phono3py: crystals with exact quadratic and cubic force constants, and their files.

The constants are automatic derivatives (`cubic`). phono3py, which is not needed otherwise, goes on
from them (`conductivity`).

    crystal = phono3py_crystal(atoms, (2, 2, 2), harmonic=(4, 4, 4))
    crystal = with_force_constants(crystal, potential, params)
    write_force_constants(crystal, "folder")
"""

import warnings
from pathlib import Path

import jax
import numpy as np

from jaxmlip.derivatives.second.free_memory import host_memory
from jaxmlip.derivatives.second.hessian import hessian
from jaxmlip.errors import DataError, NumericalError, ResourceError, UsageError
from jaxmlip.interfaces.phonons.cubic import cubic_force_constants, irreducible_displacements
from jaxmlip.interfaces.phonons.symmetry import symmetry
from jaxmlip.potential import bind


def phono3py_crystal(
    atoms, supercell, *, harmonic=None, primitive="auto", born=None, tolerance: float = 1e-5
):
    """A `Phono3py` of `ase.Atoms` (a crystal at its minimum) without force constants.

    supercell: three numbers or an integer matrix [3, 3], of the cubic constants; in one that is
    twice a primitive cell of inversion centres all of them vanish. harmonic: the same for the
    quadratic ones, which reach farther; default the supercell. primitive: as phono3py takes it;
    "auto" finds the primitive cell (of centred lattices), "P" keeps the cell given. born: path of a
    BORN file, for the primitive cell. Masses are those of the atoms. tolerance: Å, of symmetry.
    Raises `DataError` for what supercells cannot hold, `ResourceError` for too large ones.
    """
    from jaxmlip.interfaces.phonons.phonopy_files import born_parameters, to_phonopy_atoms

    if not atoms.pbc.all():
        raise DataError(
            f"pbc is {atoms.pbc.tolist()}: heat is conducted by crystals here",
            where="phono3py_crystal",
            fix="a crystal, periodic along three axes",
        )
    _check_masses(atoms)
    _check_neutral(atoms)
    _check_room(1, len(atoms) * _repeats(supercell), 1)  # at the least
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that "auto" is not what it was in older versions
        crystal = library().Phono3py(
            to_phonopy_atoms(atoms),
            supercell_matrix=supercell,
            primitive_matrix=primitive,
            phonon_supercell_matrix=harmonic,
            symprec=tolerance,
        )
    if born is not None:
        crystal.nac_params = born_parameters(born, crystal)
    return crystal


def with_response(crystal, charges, dielectric):
    """The `Phono3py` with the non-analytic term of Born charges and a dielectric tensor.

    charges: [n_atoms, cartesian of atom, cartesian of field] e, of the atoms that the crystal was
    made of; dielectric: [3, 3] of clamped ions. Both are symmetrised and the mean of the charges is
    taken off. Changes `crystal` and returns it.
    """
    from jaxmlip.interfaces.phonons.phonopy_files import nac_parameters

    supercell = crystal.supercell
    atoms = [supercell.u2u_map[supercell.s2u_map[i]] for i in crystal.primitive.p2s_map]
    found = {"born": np.asarray(charges)[atoms].swapaxes(1, 2), "dielectric": np.array(dielectric)}
    crystal.nac_params = nac_parameters(found, crystal)
    return crystal


def with_force_constants(crystal, potential, params, *, dtype="float64", memory=None, report=None):
    """The `Phono3py` with `fc2` and `fc3` (compact, eV/Å² and eV/Å³) of a potential.

    They are exact for the supercells: no displacement, no forces of displaced supercells. Sums that
    translations ask for hold to rounding. Long-range potentials are planned for the supercells.
    memory: bytes for one chunk of the columns of a Hessian. report: called with (slopes of the
    Hessian that are done, how many there are). Changes `crystal` and returns it.
    """
    from jaxmlip.interfaces.phonons.phonopy_files import from_phonopy_atoms

    cell, rows = from_phonopy_atoms(crystal.supercell), np.asarray(crystal.primitive.p2s_map)
    group = symmetry(cell, tolerance=crystal.symmetry.tolerance)
    _check_room(len(rows), len(cell), len(irreducible_displacements(group, rows)[0]))
    system, apply = _bound(from_phonopy_atoms(crystal.phonon_supercell), potential, dtype)
    harmonic = np.asarray(crystal.phonon_primitive.p2s_map)
    crystal.fc2 = quadratic_force_constants(apply, harmonic, memory=memory)(params, system)
    _check_finite("fc2", crystal.fc2)
    system, apply = _bound(cell, potential, dtype)
    cubic = cubic_force_constants(apply, rows, group, memory=memory, report=report)
    crystal.fc3 = cubic(params, system)
    _check_finite("fc3", crystal.fc3)
    return crystal


def _bound(atoms, potential, dtype):
    from jaxmlip.interfaces.ase import from_ase

    system = from_ase(atoms, potential.cutoff, dtype=dtype)
    return system, bind(potential, system).apply


def check_room(crystal) -> None:
    """`ResourceError` where the cubic constants of a `Phono3py` are more than the free memory."""
    from jaxmlip.interfaces.phonons.phonopy_files import from_phonopy_atoms

    n = len(crystal.primitive)  # of whose group, seldom smaller, that of the supercell takes long
    group = symmetry(from_phonopy_atoms(crystal.primitive), tolerance=crystal.symmetry.tolerance)
    slopes = len(irreducible_displacements(group, range(n))[0])
    _check_room(n, len(crystal.supercell), slopes)


def _check_room(n_primitive, n, slopes):
    """The constants, the slopes that they are made of, and three on the way."""
    least, free = 8 * (27 * n_primitive + 9 * (slopes + 3)) * n**2, host_memory()
    if least > free:
        raise ResourceError(
            f"cubic constants of {n_primitive} rows and {n} atoms need {least / 1e9:.3g} GB, "
            f"{free / 1e9:.3g} are free",
            where="with_force_constants",
            fix="a smaller supercell",
        )


def _repeats(supercell) -> int:
    """How many unit cells: of three numbers or a matrix."""
    matrix = np.asarray(supercell, float)
    return round(abs(np.prod(matrix) if matrix.ndim == 1 else np.linalg.det(matrix)))


def _check_finite(name, constants):
    if not np.isfinite(constants).all():
        raise NumericalError(
            f"{name} of {constants.shape[1]} atoms is not finite",
            where="with_force_constants",
            fix="look at the energy and forces of this geometry",
        )


def quadratic_force_constants(apply, rows, *, memory=None):
    """(params, supercell) -> d²E/dr_i dr_j, [n_rows, n_atoms, 3, 3], eV/Å², i in `rows`."""

    def constants(params, system):
        found = jax.jit(hessian(apply, atoms=rows, memory=memory))(params, system)
        return np.ascontiguousarray(np.asarray(found, float).transpose(0, 2, 1, 3))

    return constants


def n_slopes(crystal) -> int:
    """How many derivatives of the Hessian the cubic constants of a `Phono3py` cost."""
    from jaxmlip.interfaces.phonons.phonopy_files import from_phonopy_atoms

    group = symmetry(from_phonopy_atoms(crystal.supercell), tolerance=crystal.symmetry.tolerance)
    return len(irreducible_displacements(group, crystal.primitive.p2s_map)[0])


def sum_rules(crystal) -> dict:
    """Largest sums over an atom, zero by translation, of the constants of a `Phono3py`."""
    return {
        "acoustic_sum_eV_per_A2": float(np.abs(crystal.fc2.sum(1)).max()),
        "cubic_sum_eV_per_A3": float(np.abs(crystal.fc3.sum(1)).max()),
    }


def write_force_constants(crystal, folder=".") -> None:
    """phono3py.yaml, fc2.hdf5 and fc3.hdf5 in a folder, from which the program goes on."""
    from phono3py.file_IO import write_fc2_to_hdf5, write_fc3_to_hdf5

    check_constants(crystal)
    folder, cells = Path(folder), crystal.primitive.p2s_map
    harmonic = crystal.phonon_primitive.p2s_map
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_fc2_to_hdf5(crystal.fc2, filename=str(folder / "fc2.hdf5"), p2s_map=harmonic)
        write_fc3_to_hdf5(crystal.fc3, filename=str(folder / "fc3.hdf5"), p2s_map=cells)
        crystal.save(str(folder / "phono3py.yaml"))
    except OSError as error:
        raise ResourceError(f"cannot write: {error}", where=str(folder)) from error


def _check_masses(atoms):
    """phono3py takes atoms of one element for equivalent, whatever their masses."""
    for z in np.unique(atoms.numbers):
        masses = atoms.get_masses()[atoms.numbers == z]
        if np.ptp(masses) > 1e-6:
            raise DataError(
                f"atoms of element {z} have masses from {masses.min():g} to {masses.max():g} amu",
                where="phono3py_crystal",
                fix="one mass for each element; is_isotope=True scatters by natural isotopes",
            )


def _check_neutral(atoms):
    """phono3py's cells know neither charge, spin nor field: supercells would be others."""
    charge, spin = atoms.info.get("charge", 0), atoms.info.get("spin", 1)
    field = np.asarray(atoms.info.get("field", 0.0), float)
    if charge or spin != 1 or field.any():
        raise DataError(
            f"the cell has charge {charge:g}, multiplicity {spin:g}, field {field.tolist()} V/Å",
            where="phono3py_crystal",
            fix="a neutral crystal of closed shells without a field",
        )


def check_constants(crystal):
    """Raises `UsageError` where the crystal has no force constants."""
    if crystal.fc2 is None or crystal.fc3 is None:
        raise UsageError(
            "the crystal has no force constants yet",
            where="phono3py",
            fix="with_force_constants(crystal, potential, params)",
        )


def library():
    """The module phono3py; `ResourceError` JM407 where it is not installed."""
    try:
        import phono3py
    except ImportError as error:
        raise ResourceError(
            "thermal conductivities need phono3py, which is not installed",
            where="interfaces.phono3py",
            code="JM407",
            fix="pip install 'jaxmlip[conductivity]'",
        ) from error
    return phono3py
