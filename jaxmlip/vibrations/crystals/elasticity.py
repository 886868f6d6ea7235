"""What elastic constants say of a crystal: stability, averages of a polycrystal, sound, heat.

Input are stress-strain coefficients (see `derivatives.elastic`), so that everything here holds
under hydrostatic pressure too; in Kelvin's notation (shears times sqrt 2) they are a matrix whose
eigenvalues do not depend on how the crystal is turned. Host numpy, float64; Å, eV, amu inside.
"""

from dataclasses import dataclass

import numpy as np

from jaxmlip import units
from jaxmlip.derivatives.elastic import (
    ElasticConstants,
    full_tensor,
    stress_terms,
    voigt_matrix,
)
from jaxmlip.errors import NumericalError, UsageError

KELVIN = np.sqrt(np.array([1, 1, 1, 2, 2, 2]))
METRES_PER_SECOND = 1e-10 * units.second  # of 1 sqrt(eV/amu)


@dataclass(frozen=True, kw_only=True)
class Elasticity:
    """A crystal's elasticity; moduli in eV/Å³ (divide by `units.GPa`)."""

    constants: np.ndarray  # [6, 6] Voigt order xx yy zz yz xz xy, stress by engineering strain
    eigenvalues: np.ndarray  # [6] of the Kelvin matrix, ascending
    bulk: dict  # voigt, reuss, hill
    shear: dict  # voigt, reuss, hill
    universal_anisotropy: float  # 5 G_V/G_R + K_V/K_R - 6
    density: float  # amu/Å³

    @property
    def stable(self) -> bool:
        """Born's criterion: every homogeneous strain costs energy (enthalpy)."""
        return bool(self.eigenvalues[0] > 0)

    @property
    def young(self) -> float:
        """Of the polycrystal (Hill), eV/Å³."""
        return (
            9
            * self.bulk["hill"]
            * self.shear["hill"]
            / (3 * self.bulk["hill"] + self.shear["hill"])
        )

    @property
    def poisson(self) -> float:
        """Of the polycrystal (Hill)."""
        k, g = self.bulk["hill"], self.shear["hill"]
        return (3 * k - 2 * g) / (2 * (3 * k + g))

    @property
    def pugh(self) -> float:
        """Shear by bulk modulus (Hill); below about 0.57 metals are ductile."""
        return self.shear["hill"] / self.bulk["hill"]


def elasticity(constants, *, density: float) -> Elasticity:
    """Averages and stability of constants [6, 6] or [3, 3, 3, 3], eV/Å³; density in amu/Å³.

    Voigt averages stiffness and bounds moduli from above, Reuss averages compliance and bounds
    them from below (of a stable crystal), Hill is their mean (1952, 10.1088/0370-1298/65/5/307).
    Anisotropy: Ranganathan and Ostoja-Starzewski, 2008, 10.1103/PhysRevLett.101.055504. Where the
    stress is not hydrostatic the symmetric part is taken. Reuss averages of a crystal with a
    vanishing eigenvalue are zero.
    """
    matrix = _as_matrix(constants)
    kelvin = matrix * np.outer(KELVIN, KELVIN)
    values, vectors = np.linalg.eigh(kelvin)
    soft = np.abs(values).min() <= 1e-12 * np.abs(values).max()
    with np.errstate(divide="ignore", invalid="ignore"):
        compliance = (vectors / values) @ vectors.T
    bulk, shear = _voigt(kelvin)
    if soft:
        bulk_reuss = shear_reuss = 0.0
    else:
        bulk_reuss, shear_reuss = _reuss(compliance)
    mean = lambda v, r: {"voigt": float(v), "reuss": float(r), "hill": float((v + r) / 2)}
    ratio = lambda v, r: v / r if r else np.inf
    return Elasticity(
        constants=matrix,
        eigenvalues=values,
        bulk=mean(bulk, bulk_reuss),
        shear=mean(shear, shear_reuss),
        universal_anisotropy=float(5 * ratio(shear, shear_reuss) + ratio(bulk, bulk_reuss) - 6),
        density=float(density),
    )


def density_of(masses, volume: float) -> float:
    """amu/Å³, for masses (amu) of the atoms of a cell of `volume` Å³."""
    return float(np.sum(masses) / volume)


def christoffel(constants, directions, *, stress=None) -> np.ndarray:
    """Christoffel matrices [n, 3, 3], eV/Å³, of directions [n, 3] (any length).

    Eigenvalues are density times the squares of the sound velocities. stress [3, 3] eV/Å³ is
    needed where it is not hydrostatic; under a pressure the coefficients alone are right.
    """
    c = constants_tensor(constants)
    n = np.asarray(directions, float)
    n = n / np.linalg.norm(n, axis=1, keepdims=True)
    if stress is None:
        return np.einsum("ijkl,nj,nl->nik", c, n, n)
    stress = np.asarray(stress, float)
    lagrange = (
        c - np.asarray(stress_terms(stress)) / 2 + np.einsum("ij,kl->ijkl", stress, np.eye(3))
    )
    along = np.einsum("jl,nj,nl->n", stress, n, n)
    return np.einsum("ijkl,nj,nl->nik", lagrange, n, n) + along[:, None, None] * np.eye(3)


def sound_velocities(constants, density: float, directions, *, stress=None) -> np.ndarray:
    """[n, 3] m/s, ascending: two quasi-transverse branches and a quasi-longitudinal one.

    density amu/Å³. An unstable direction gives a negative number, as imaginary frequencies do.
    """
    squares = np.linalg.eigvalsh(christoffel(constants, directions, stress=stress)) / density
    return np.sign(squares) * np.sqrt(np.abs(squares)) * METRES_PER_SECOND


def debye_temperature(constants, density: float, masses, *, stress=None, order: int = 32) -> float:
    """K, of the exact mean of v⁻³ over all directions and the three branches.

    theta = (hbar/k) (6 pi² n)^(1/3) v, n atoms per volume: the limit of low temperatures. stress:
    as for `christoffel`. order: of the quadrature on the sphere; 32 is exact to six digits for
    cubic metals. Raises `NumericalError` where sound has no velocity.
    """
    directions, weights = _sphere(order)
    velocities = sound_velocities(constants, density, directions, stress=stress)
    velocities = velocities / METRES_PER_SECOND
    if velocities.min() <= 0:
        raise NumericalError(
            f"the crystal is unstable: density v² is {velocities.min():.3g} along some direction",
            where="debye_temperature",
            fix="relax the cell, or look at the eigenvalues of the elastic constants",
        )
    mean = (weights @ (velocities**-3).mean(1)) ** (-1 / 3)
    per_volume = density / np.mean(masses)
    return float(units.hbar / units.kB * np.cbrt(6 * np.pi**2 * per_volume) * mean)


def hill_velocities(found: Elasticity) -> dict:
    """m/s of the polycrystal: longitudinal, transverse and their Debye mean (Anderson, 1963)."""
    k, g = found.bulk["hill"], found.shear["hill"]
    squares = np.array([k + 4 / 3 * g, g]) / found.density
    if squares.min() <= 0:
        return {"longitudinal": np.nan, "transverse": np.nan, "mean": np.nan}
    fast, slow = np.sqrt(squares) * METRES_PER_SECOND
    mean = ((2 / slow**3 + 1 / fast**3) / 3) ** (-1 / 3)
    return {"longitudinal": float(fast), "transverse": float(slow), "mean": float(mean)}


def check_relaxed(found: ElasticConstants, *, fmax: float = 1e-3) -> None:
    """Raises `NumericalError` if atoms feel more than `fmax` eV/Å or their Hessian is unstable.

    Then the relaxed constants are not those of a minimum. JM303 where a derivative is not finite.
    """
    forces = np.asarray(found.forces)
    parts = forces, found.hessian, found.clamped, found.relaxed, found.stress
    if not all(np.isfinite(x).all() for x in parts):
        raise NumericalError(
            "a force or a second derivative is not finite", where="elastic constants", code="JM303"
        )
    worst = float(np.linalg.norm(forces, axis=1).max())
    if worst > fmax:
        raise NumericalError(
            f"forces of up to {worst:.3g} eV/Å, but atoms are followed from a minimum",
            where="elastic constants",
            fix="relax atoms (and cell) first",
        )
    h = np.asarray(found.hessian).reshape(forces.size, forces.size)
    lowest = np.linalg.eigvalsh(h)[0]
    if lowest < -1e-6 * np.abs(h).max():
        raise NumericalError(
            f"the crystal is no minimum: curvature {lowest:.3g} eV/Å² along some displacement",
            where="elastic constants",
            fix="move the atoms along the unstable mode and relax again",
        )


def constants_tensor(constants) -> np.ndarray:
    """[3, 3, 3, 3] from [6, 6] (Voigt) or itself."""
    constants = np.asarray(constants, float)
    if constants.shape not in ((6, 6), (3, 3, 3, 3)):
        raise UsageError(
            f"elastic constants have shape {constants.shape}; expected [6, 6] or [3, 3, 3, 3]",
            where="elasticity",
        )
    return full_tensor(constants) if constants.ndim == 2 else constants


def _as_matrix(constants):
    matrix = voigt_matrix(constants_tensor(constants))
    return (matrix + matrix.T) / 2


def _voigt(kelvin):
    """K and G of an isotropic stiffness with the same two traces."""
    bulk = kelvin[:3, :3].sum() / 9
    return bulk, (np.trace(kelvin) - 3 * bulk) / 10


def _reuss(compliance):
    bulk, shear = _voigt(compliance)  # of a compliance: 1/(9 K) and 1/(4 G)
    return 1 / (9 * bulk), 1 / (4 * shear)


def _sphere(order):
    """Directions and weights (sum 1) that integrate polynomials up to degree 2 order - 1."""
    z, weights = np.polynomial.legendre.leggauss(order)
    angles = 2 * np.pi * (np.arange(2 * order) + 0.5) / (2 * order)
    ring = np.sqrt(1 - z**2)[:, None]
    grid = np.stack(
        [
            ring * np.cos(angles),
            ring * np.sin(angles),
            np.broadcast_to(z[:, None], (order, 2 * order)),
        ],
        axis=-1,
    )
    return grid.reshape(-1, 3), np.repeat(weights / 2, 2 * order) / (2 * order)
