"""The door to phono3py: exact cubic force constants in, lattice thermal conductivity out.

Derivatives of the Hessian by displacements of the symmetry-irreducible atoms of the primitive cell
are automatic ones; the space group of the supercell gives all others. phono3py, which is not
needed otherwise, does symmetry reduction of the triplets, collisions and the Boltzmann equation.

    crystal = phono3py_crystal(atoms, (2, 2, 2))
    crystal = with_force_constants(crystal, potential, params)
    found = thermal_conductivity(crystal, mesh=(11, 11, 11), temperatures=[300.0])
"""

from dataclasses import dataclass
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from jaxmlip.derivatives.second.hessian import hessian
from jaxmlip.derivatives.third import hessian_slope
from jaxmlip.errors import DataError, ResourceError, UsageError
from jaxmlip.interfaces.phonons.symmetry import Symmetry, displacement_directions, symmetry


@dataclass(frozen=True, kw_only=True)
class Conductivity:
    """Of the lattice, W/(m K), one solution of the linear Boltzmann equation."""

    temperatures: np.ndarray  # [T] K
    kappa: np.ndarray  # [T, 3, 3] W/(m K), by relaxation times
    direct: np.ndarray | None  # [T, 3, 3] W/(m K), the direct solution, where asked for
    mesh: tuple

    @property
    def mean(self) -> np.ndarray:
        """[T] a third of the trace, of the best solution there is."""
        best = self.kappa if self.direct is None else self.direct
        return np.trace(best, axis1=1, axis2=2) / 3


def phono3py_crystal(atoms, supercell, *, primitive="auto", tolerance: float = 1e-5):
    """A `Phono3py` of `ase.Atoms` (a crystal at its minimum) without force constants.

    supercell: three numbers or an integer matrix [3, 3]; in one that is twice a primitive cell of
    inversion centres all cubic constants vanish. primitive: as phono3py takes it; "auto" finds the
    primitive cell (of centred lattices), "P" keeps the cell given.
    """
    from jaxmlip.interfaces.phonons.phonopy_files import to_phonopy_atoms

    if not atoms.pbc.all():
        raise DataError(
            f"pbc is {atoms.pbc.tolist()}: heat is conducted by crystals here",
            where="phono3py_crystal",
            fix="a crystal, periodic along three axes",
        )
    return _library().Phono3py(
        to_phonopy_atoms(atoms),
        supercell_matrix=supercell,
        primitive_matrix=primitive,
        symprec=tolerance,
    )


def with_force_constants(crystal, potential, params, *, dtype="float64", memory=None):
    """The `Phono3py` with `fc2` and `fc3` (compact, eV/Å² and eV/Å³) of a potential.

    They are exact for the supercell: no displacement, no forces of displaced supercells. Sums that
    translations ask for hold to rounding. memory: bytes for one chunk of the columns of a Hessian.
    Changes `crystal` and returns it.
    """
    from jaxmlip.interfaces.ase import from_ase
    from jaxmlip.interfaces.phonons.phonopy_files import from_phonopy_atoms

    atoms = from_phonopy_atoms(crystal.supercell)
    system = from_ase(atoms, potential.cutoff, dtype=dtype)
    group = symmetry(atoms, tolerance=crystal.symmetry.tolerance)
    of_cell = np.asarray(crystal.primitive.p2s_map)
    crystal.fc2 = quadratic_force_constants(potential.apply, of_cell, memory=memory)(params, system)
    cubic = cubic_force_constants(potential.apply, of_cell, group, memory=memory)
    crystal.fc3 = cubic(params, system)
    return crystal


def quadratic_force_constants(apply, rows, *, memory=None):
    """(params, supercell) -> d²E/dr_i dr_j, [n_rows, n_atoms, 3, 3], eV/Å², i in `rows`."""

    def constants(params, system):
        found = jax.jit(hessian(apply, atoms=rows, memory=memory))(params, system)
        return np.ascontiguousarray(np.asarray(found, float).transpose(0, 2, 1, 3))

    return constants


def cubic_force_constants(apply, rows, group: Symmetry, *, memory=None):
    """(params, supercell) -> d³E/dr_i dr_j dr_k, [n_rows, n, n, 3, 3, 3], eV/Å³, i in `rows`.

    group: of the supercell. Costs one derivative of the Hessian for each direction of
    `irreducible_displacements`. Slopes for u at atom a become those for R u at its image under
    every operation; any three of them that span space give the slopes along x, y and z.
    """
    atoms, directions = irreducible_displacements(group, rows)

    def constants(params, system):
        n = system.n_atoms
        slope = hessian_slope(apply, memory=memory)

        @jax.jit
        def along(params, system, atom, direction):
            return slope(params, system, jnp.zeros((n, 3)).at[atom].set(direction))

        found = [
            np.asarray(along(params, system, a, u), float).transpose(0, 2, 1, 3)
            for a, u in zip(atoms, directions, strict=True)
        ]
        out = np.stack([_turned(group, row, atoms, directions, found) for row in rows])
        return np.ascontiguousarray(out.transpose(0, 2, 3, 1, 4, 5))

    return constants


def irreducible_displacements(group: Symmetry, rows):
    """(atoms [n], unit vectors [n, 3]): displacements whose slopes give those of all `rows`."""
    first = np.unique(group.equivalent[np.asarray(rows)])
    each = [displacement_directions(group, a) for a in first]
    return np.repeat(first, [len(d) for d in each]), np.concatenate(each)


def write_force_constants(crystal, folder=".") -> None:
    """phono3py.yaml, fc2.hdf5 and fc3.hdf5 in a folder, from which the program goes on."""
    from phono3py.file_IO import write_fc2_to_hdf5, write_fc3_to_hdf5

    _check_constants(crystal)
    folder, cells = Path(folder), crystal.primitive.p2s_map
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_fc2_to_hdf5(crystal.fc2, filename=str(folder / "fc2.hdf5"), p2s_map=cells)
        write_fc3_to_hdf5(crystal.fc3, filename=str(folder / "fc3.hdf5"), p2s_map=cells)
        crystal.save(str(folder / "phono3py.yaml"))
    except OSError as error:
        raise ResourceError(f"cannot write: {error}", where=str(folder)) from error


def thermal_conductivity(
    crystal, *, mesh=(11, 11, 11), temperatures=(300.0,), direct: bool = False, **settings
) -> Conductivity:
    """Lattice thermal conductivity by phono3py, for a `Phono3py` with force constants.

    mesh: divisions of the reciprocal cell of the primitive cell. temperatures K. direct: the direct
    solution of the linearised Boltzmann equation beside relaxation times (memory grows with the
    square of the mesh). settings: of `Phono3py.run_thermal_conductivity`, e.g. is_isotope=True.
    """
    _check_constants(crystal)
    crystal.mesh_numbers = list(mesh)
    crystal.init_phph_interaction()
    crystal.run_thermal_conductivity(
        is_LBTE=direct, temperatures=list(temperatures), log_level=0, **settings
    )
    found = crystal.thermal_conductivity
    times = found.kappa_RTA if direct else found.kappa
    return Conductivity(
        temperatures=np.asarray(temperatures, float),
        kappa=_tensors(times),
        direct=_tensors(found.kappa) if direct else None,
        mesh=tuple(mesh),
    )


def _tensors(voigt):
    """[1, T, 6] (xx yy zz yz xz xy) -> [T, 3, 3]."""
    order = np.array([[0, 5, 4], [5, 1, 3], [4, 3, 2]])
    return np.asarray(voigt, float).reshape(-1, 6)[:, order]


def _turned(group, row, atoms, directions, found):
    """Slopes [3, n, n, 3, 3] of the Hessian by atom `row`, from those of the irreducible ones."""
    turned, sources = [], []
    for k in np.flatnonzero(atoms == group.equivalent[row]):
        operations = np.flatnonzero(group.permutations[:, atoms[k]] == row)
        turned += list(group.cartesian[operations] @ directions[k])
        sources += [(k, o) for o in operations]
    chosen = _spanning(np.array(turned))
    slopes = [_moved(group, sources[i][1], found[sources[i][0]]) for i in chosen]
    inverse = np.linalg.inv(np.array(turned)[chosen])
    return np.einsum("ak,kijbc->aijbc", inverse, slopes)


def _spanning(vectors):
    """Three vectors that span space, chosen one after the other, each farthest from the others."""
    chosen, rest = [], vectors.copy()
    for _ in range(3):
        lengths = np.linalg.norm(rest, axis=1)
        best = int(lengths.argmax())
        if lengths[best] < 1e-3:
            raise UsageError("the displacements do not span space", where="cubic_force_constants")
        axis = rest[best] / lengths[best]
        chosen.append(best)
        rest = rest - np.outer(rest @ axis, axis)
    return chosen


def _moved(group, operation, slope):
    """A tensor [n, n, 3, 3] under an operation: atom j goes to permutation[j], axes turn."""
    r, places = group.cartesian[operation], group.permutations[operation]
    out = np.empty_like(slope)
    out[np.ix_(places, places)] = r @ slope @ r.T
    return out


def _check_constants(crystal):
    if crystal.fc2 is None or crystal.fc3 is None:
        raise UsageError(
            "the crystal has no force constants yet",
            where="phono3py",
            fix="with_force_constants(crystal, potential, params)",
        )


def _library():
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
