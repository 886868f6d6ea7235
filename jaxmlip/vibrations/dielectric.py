"""What light does in a crystal: modes at Gamma, their field, and the dielectric function.

Modes that carry a dipole p (e/sqrt(amu)) answer to a field as oscillators,

    eps(omega) = eps_inf + (4 pi k / V) sum over modes of p p^T / (omega_m² - omega² - i g omega),

and a wave along n whose dipole is longitudinal makes a field of its own, which holds it back: the
term (4 pi k / V) (Z.n)(Z.n)^T / (n.eps_inf.n) of D(q -> 0) (Gonze and Lee, 1997,
10.1103/PhysRevB.55.10355). Its modes are the zeros of n.eps(omega).n, so that the relation of
Lyddane, Sachs and Teller is exact. Host numpy, float64; V in Å³, Z in e, eps_inf without a unit.
"""

from dataclasses import dataclass

import numpy as np

from jaxmlip import units
from jaxmlip.errors import DataError, NumericalError
from jaxmlip.vibrations.infrared import dipole_derivatives
from jaxmlip.vibrations.modes import Modes, normal_modes

FULL = 4 * np.pi * units.coulomb_constant  # 4 pi k, eV Å / e²
FLAT = 1.0  # cm⁻¹; a polar mode below it has no finite static response


@dataclass(frozen=True, kw_only=True)
class Oscillators:
    """The polar modes of a crystal at Gamma, and all else that eps(omega) is made of."""

    frequencies_cm1: np.ndarray  # [n_modes] transverse optical; negative = imaginary
    strengths: np.ndarray  # [n_modes, 3, 3] cm⁻²: delta eps x omega_m², (4 pi k / V) p p^T
    dielectric: np.ndarray  # [3, 3] electronic


def electronic(polarizability, volume: float) -> np.ndarray:
    """eps_inf [3, 3] of a cell of `volume` Å³, from its polarizability [3, 3] e² Å²/eV."""
    return np.eye(3) + FULL * np.asarray(polarizability, np.float64) / volume


def oscillators(born_charges, modes: Modes, dielectric, volume: float) -> Oscillators:
    """From Born charges [n_atoms, 3, 3] e, modes at Gamma, eps_inf [3, 3] and the cell's Å³."""
    dielectric = _checked(dielectric)
    dipoles = dipole_derivatives(born_charges, modes)
    strengths = FULL / volume * np.einsum("ma,mb->mab", dipoles, dipoles)
    return Oscillators(
        frequencies_cm1=modes.frequencies_cm1,
        strengths=strengths * (units.hbar / units.invcm) ** 2,
        dielectric=dielectric,
    )


def static_dielectric(found: Oscillators) -> np.ndarray:
    """eps(0) of the clamped cell [3, 3]; `NumericalError` where a polar mode is soft or imaginary.

    Equals eps_inf + (4 pi k / V) Z^T (Hessian)^-1 Z.
    """
    polar = np.abs(found.strengths).sum((1, 2)) > 1e-9 * (1 + np.abs(found.strengths).max())
    soft = polar & (found.frequencies_cm1 < FLAT)
    if soft.any():
        raise NumericalError(
            f"{soft.sum()} polar modes are imaginary or below {FLAT} cm⁻¹, lowest "
            f"{found.frequencies_cm1[soft].min():.1f} cm⁻¹: there is no static dielectric tensor",
            where="static_dielectric",
            code="JM306",
            fix="relax the crystal; a ferroelectric one in its polar phase",
        )
    f = np.where(polar, found.frequencies_cm1, 1.0)
    return found.dielectric + (found.strengths * (polar / f**2)[:, None, None]).sum(0)


def dielectric_function(found: Oscillators, grid_cm1, *, width: float) -> np.ndarray:
    """eps(omega) [n_grid, 3, 3] complex, imaginary part positive; width: damping g, cm⁻¹.

    g is the full width of the lines at half maximum, the same for all modes.
    """
    if not width > 0:
        raise DataError(f"width is {width} cm⁻¹; it must be positive")
    w = np.asarray(grid_cm1, np.float64)[:, None]
    f = found.frequencies_cm1
    poles = np.sign(f) * f**2 - w**2 - 1j * width * w
    return found.dielectric + np.tensordot(1 / poles, found.strengths, 1)


def along(tensors, direction) -> np.ndarray:
    """n.eps.n of tensors [..., 3, 3], for light or a field polarised along `direction` [3]."""
    n = unit(direction)
    return np.einsum("a,...ab,b->...", n, tensors, n)


def reflectivity(eps) -> np.ndarray:
    """Share of light that a thick crystal throws back at right incidence, of n.eps.n [...]."""
    index = np.sqrt(np.asarray(eps, complex))
    return np.abs((index - 1) / (index + 1)) ** 2


def absorption_per_cm(eps, grid_cm1) -> np.ndarray:
    """Absorption coefficient 4 pi nu Im sqrt(eps), 1/cm (Napierian), of n.eps.n [n_grid]."""
    return 4 * np.pi * np.asarray(grid_cm1) * np.sqrt(np.asarray(eps, complex)).imag


def loss(eps) -> np.ndarray:
    """-Im 1/eps of n.eps.n [...]: its peaks are the longitudinal modes."""
    return -np.imag(1 / np.asarray(eps, complex))


# --- longitudinal modes --------------------------------------------------------------------------


def longitudinal_hessian(hessian, born_charges, dielectric, volume: float, direction) -> np.ndarray:
    """The Hessian of waves along `direction` [3] (Cartesian) at q -> 0, [n, 3, n, 3], eV/Å².

    Its electric field is in it: a mode is longitudinal or transverse as its dipole lies.
    """
    n = unit(direction)
    charges = np.asarray(born_charges, np.float64)
    charges = (charges - charges.mean(0)) @ n  # rigid translations make no field
    field = FULL / volume / (n @ _checked(dielectric) @ n)
    return np.asarray(hessian, np.float64) + field * np.einsum("ia,jb->iajb", charges, charges)


def longitudinal_modes(
    hessian, born_charges, dielectric, volume: float, direction, *, masses, positions
) -> Modes:
    """Modes of waves along `direction` at q -> 0, with the splitting of LO and TO."""
    split = longitudinal_hessian(hessian, born_charges, dielectric, volume, direction)
    return normal_modes(split, masses, positions, pbc=True)


def zeros_along(found: Oscillators, direction) -> np.ndarray:
    """Frequencies at which n.eps(omega).n without damping vanishes, cm⁻¹, ascending.

    One for each transverse frequency that is polar along n (of equal ones, one); the eigenvalues
    of diag(f²) + s s^T / eps, s² being the strengths along n.
    """
    strengths = np.maximum(along(found.strengths, direction), 0)
    polar = strengths > 1e-9 * (1 + strengths.max(initial=0))
    root = np.sqrt(strengths[polar] / along(found.dielectric, direction))
    squares = found.frequencies_cm1[polar] * np.abs(found.frequencies_cm1[polar])
    values = np.linalg.eigvalsh(np.diag(squares) + np.outer(root, root))
    repeated = np.isclose(values[:, None], squares, rtol=1e-9, atol=1e-6).any(1)
    values = values[~repeated] if len(values) else values
    return np.sign(values) * np.sqrt(np.abs(values))


def unit(direction) -> np.ndarray:
    """The direction [3] with length one."""
    n = np.asarray(direction, np.float64)
    size = np.linalg.norm(n)
    if n.shape != (3,) or not 0 < size < np.inf:
        raise DataError(f"a direction is three numbers, not all zero: got {direction}")
    return n / size


def _checked(dielectric):
    eps = np.asarray(dielectric, np.float64)
    if eps.shape != (3, 3) or not np.isfinite(eps).all():
        raise DataError(f"the dielectric tensor has shape {eps.shape} or is not finite, not (3, 3)")
    eps = (eps + eps.T) / 2
    lowest = np.linalg.eigvalsh(eps)[0]
    if lowest <= 0:
        raise NumericalError(
            f"the dielectric tensor has the eigenvalue {lowest:.3g}; electrons do not do that",
            where="dielectric",
            fix="look at the model's polarizability (1 + 4 pi k alpha / V)",
        )
    return eps
