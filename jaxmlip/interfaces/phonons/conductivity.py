"""Lattice thermal conductivity by phono3py, of crystals with force constants of `phono3py`.

phono3py does symmetry reduction of the triplets, collisions and the Boltzmann equation.

    found = thermal_conductivity(crystal, mesh=(11, 11, 11), temperatures=[300.0])
    found.kappa, found.mean
"""

from dataclasses import dataclass

import numpy as np

from jaxmlip.errors import NumericalError, UsageError
from jaxmlip.interfaces.phonons.phono3py import check_constants

ROUNDING = 1e-8  # eV/Å³, cubic constants below which are rounding: nothing scatters
BEYOND = 1e8  # W/(m K), more than any crystal conducts


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


def thermal_conductivity(
    crystal,
    *,
    mesh=(11, 11, 11),
    temperatures=(300.0,),
    direct: bool = False,
    imaginary: float = 0.05,
    **settings,
) -> Conductivity:
    """Lattice thermal conductivity by phono3py, for a `Phono3py` with force constants.

    mesh: divisions of the reciprocal cell of the primitive cell. temperatures K, above zero.
    direct: the direct solution of the linearised Boltzmann equation beside relaxation times (memory
    grows with the square of the mesh). settings: of `Phono3py.run_thermal_conductivity`, e.g.
    is_isotope=True. Raises `NumericalError` where nothing scatters phonons (cubic constants that
    vanish, or a conductivity beyond 1e8 W/(m K)), and JM306 where a mode of the mesh is imaginary
    by more than `imaginary` THz: phono3py would leave it out without a word.
    """
    check_constants(crystal)
    temperatures = np.asarray(temperatures, float)
    if not (temperatures.ndim == 1 and temperatures.size and (temperatures > 0).all()):
        raise UsageError(
            f"temperatures are {temperatures.tolist()} K; they must be above zero",
            where="thermal_conductivity",
        )
    _check_cubic(crystal)
    frequencies = mesh_frequencies(crystal, mesh)
    if (frequencies < -imaginary).any():
        raise NumericalError(
            f"{int((frequencies < -imaginary).sum())} of {frequencies.size} modes of the mesh are "
            f"imaginary, lowest {frequencies.min():.3f} THz",
            where="thermal_conductivity",
            code="JM306",
            fix="relax the crystal (tighter), or a larger supercell of the harmonic constants",
        )
    crystal.run_thermal_conductivity(
        is_LBTE=direct, temperatures=temperatures, log_level=0, **settings
    )
    found = crystal.thermal_conductivity
    times = _tensors(found.kappa_RTA if direct else found.kappa)
    whole = _tensors(found.kappa) if direct else None
    for kappa in (times, whole) if direct else (times,):
        _check_finite(kappa, temperatures)
    return Conductivity(temperatures=temperatures, kappa=times, direct=whole, mesh=tuple(mesh))


def mesh_frequencies(crystal, mesh) -> np.ndarray:
    """[n_q, 3n] THz on a mesh, imaginary ones negative; the `Phono3py` is ready to run then."""
    crystal.mesh_numbers = list(mesh)
    crystal.init_phph_interaction()
    crystal.run_phonon_solver()
    return crystal.get_phonon_data()[0]


def _check_cubic(crystal):
    largest = float(max(crystal.fc3.max(), -crystal.fc3.min()))
    if not largest >= ROUNDING:
        raise NumericalError(
            f"the largest cubic force constant is {largest:.1e} eV/Å³: nothing scatters phonons "
            "(by symmetry in twice a primitive cell of inversion centres)",
            where="thermal_conductivity",
            fix="a supercell of 3 or more repeats of the primitive cell",
        )


def _check_finite(kappa, temperatures):
    largest = np.abs(kappa).max((1, 2))
    wrong = ~(largest < BEYOND)  # NaN is wrong, too
    if wrong.any():
        raise NumericalError(
            f"the conductivity at {temperatures[wrong][0]:g} K is {largest[wrong][0]:.3g} W/(m K): "
            "phonons of this mesh are not scattered",
            where="thermal_conductivity",
            fix="a larger supercell or mesh, higher temperatures, or boundary_mfp (µm)",
        )


def _tensors(voigt):
    """[1, T, 6] (xx yy zz yz xz xy) -> [T, 3, 3]."""
    order = np.array([[0, 5, 4], [5, 1, 3], [4, 3, 2]])
    return np.asarray(voigt, float).reshape(-1, 6)[:, order]
