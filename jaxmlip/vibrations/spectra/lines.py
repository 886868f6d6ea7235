"""What a trajectory shows of vibrations: density of states, infrared absorption, Raman scattering.

Classical equipartition gives every mode the energy kT, so that <(dQ/dt)²> is kT, and the density of
a rate over kT has, at each mode, the square of the derivative by its normal coordinate: dμ/dQ for
the dipole, dα/dQ for the polarisability. That is what harmonic intensities are made of, and the
units here are theirs (`vibrations.infrared`, `vibrations.raman`), overtones, combinations,
rotations and the motion of liquids included.

Units: dt fs; velocities and currents per internal unit of time, as `Motion.velocities`, ASE's and
`derivatives.response.current` are (times `units.fs`: per fs); dipoles e Å; temperature K.
"""

from dataclasses import dataclass

import numpy as np

from jaxmlip import units
from jaxmlip.errors import DataError
from jaxmlip.vibrations import raman
from jaxmlip.vibrations.spectra.density import (
    Spectrum,
    added,
    density_of_rate,
    integral,
    scaled,
    spectral_density,
)
from jaxmlip.vibrations.spectra.quantum import beyond_harmonic, harmonic, reduced


def density_of_states(velocities, masses, *, dt: float, dof: float, labels=None, **options):
    """(whole, {label: part}) vibrational density of states, states per cm⁻¹.

    velocities: [n_frames, n_atoms, 3]; masses: [n_atoms] amu. The density of m v², scaled so that
    its integral is `dof`, the degrees of freedom that share the energy (3 n_atoms less 3 where the
    centre of mass rests). labels: [n_atoms], of the parts, such as chemical symbols; parts add up
    to the whole. options: width, window, n_blocks of `spectral_density`.
    """
    v = np.asarray(velocities)
    masses = np.asarray(masses, np.float64)
    if v.ndim != 3 or v.shape[1:] != (len(masses), 3):
        raise DataError(f"velocities have shape {v.shape}, not [n_frames, {len(masses)}, 3]")
    labels = np.zeros(len(masses), int) if labels is None else np.asarray(labels)
    parts = {}
    for label in dict.fromkeys(labels.tolist()):
        chosen = labels == label
        weights = np.repeat(masses[chosen], 3)
        parts[label] = spectral_density(v[:, chosen], dt=dt, weights=weights, **options)
    power = sum(integral(part)[0] for part in parts.values())  # <m v²>
    if not power > 0:
        raise DataError("nothing moves: all velocities are zero", where="density_of_states")
    parts = {label: scaled(part, dof / power) for label, part in parts.items()}
    return added(*parts.values()), parts


# --- infrared ------------------------------------------------------------------------------------


def infrared_from_dipole(
    dipoles, *, dt: float, temperature: float, quantum=harmonic, **options
) -> Spectrum:
    """Absorption, km/mol per cm⁻¹, from the dipole [n_frames, 3] e Å of an open structure.

    Napierian, as harmonic intensities: over a band the integral is its intensity in km/mol, and
    times 43.43 it is the decadic molar absorption coefficient in L/(mol cm). `quantum`: see
    `spectra.quantum`. In a crystal the dipole jumps: `continuous_dipoles`, or the current.
    """
    found = density_of_rate(_vectors(dipoles, "dipoles"), dt=dt, **options)
    return _absorption(found, temperature, quantum)


def infrared_from_current(
    currents, *, dt: float, temperature: float, quantum=harmonic, **options
) -> Spectrum:
    """As `infrared_from_dipole`, from d(dipole)/dt [n_frames, 3], sum of Z* v: for any structure.

    Crystals and liquids: per mol of cells; see `absorption_coefficient`.
    """
    found = spectral_density(_vectors(currents, "currents"), dt=dt, **options)
    return _absorption(found, temperature, quantum)


def absorption_coefficient(absorption: Spectrum, volume: float) -> Spectrum:
    """n(ω) α(ω), 1/cm (Napierian), of a cell of `volume` Å³ from its km/mol per cm⁻¹.

    n: the refractive index, which a trajectory does not tell beyond its electronic part. The
    field is the macroscopic one (periodic sums without a surface term), averaged over directions.
    """
    if not 0 < volume < np.inf:
        raise DataError(f"the volume is {volume} Å³; it must be above zero")
    return scaled(absorption, 1e5 / (units._NA * volume * 1e-24))


def continuous_dipoles(dipoles, cells, pbc) -> np.ndarray:
    """Dipoles of a periodic cell [n_frames, 3], each moved to the branch next to the one before.

    By e times lattice vectors of cells [n_frames, 3, 3] or [3, 3] along periodic axes. For dipoles
    that change by less than half of that between frames.
    """
    dipoles = _vectors(dipoles, "dipoles").astype(np.float64)
    cells = np.broadcast_to(np.asarray(cells, np.float64), (len(dipoles), 3, 3))
    steps = np.diff(dipoles, axis=0)
    whole = np.round(np.einsum("ta,tab->tb", steps, np.linalg.inv(cells[1:]))) * np.asarray(pbc)
    steps = steps - np.einsum("ta,tab->tb", whole, cells[1:])
    return dipoles[0] + np.concatenate([np.zeros((1, 3)), np.cumsum(steps, axis=0)])


def _absorption(density, temperature, quantum):
    grid = density.wavenumbers_cm1
    factor = units.infrared_intensity / kT_of(temperature)
    return scaled(density, factor * beyond_harmonic(quantum, grid, temperature))


# --- Raman ---------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Scattering:
    """The two invariants of Raman scattering by a trajectory, Å⁴/amu per cm⁻¹."""

    isotropic: Spectrum  # a², of the mean polarisability
    anisotropic: Spectrum  # gamma²

    @property
    def activity(self) -> Spectrum:
        """45 a² + 7 gamma²: both polarisations seen; over a band the harmonic activity."""
        return added(scaled(self.isotropic, 45), scaled(self.anisotropic, 7))

    @property
    def parallel(self) -> Spectrum:
        """45 a² + 4 gamma²: polarised as the laser (VV)."""
        return added(scaled(self.isotropic, 45), scaled(self.anisotropic, 4))

    @property
    def perpendicular(self) -> Spectrum:
        """3 gamma²: depolarised (VH)."""
        return scaled(self.anisotropic, 3)


def raman_scattering(
    polarizabilities, *, dt: float, temperature: float, quantum=harmonic, **options
) -> Scattering:
    """Anharmonic Raman scattering from polarisabilities [n_frames, 3, 3], e² Å²/eV."""
    alpha = np.asarray(polarizabilities, np.float64)
    if alpha.shape[1:] != (3, 3):
        raise DataError(f"polarizabilities have shape {alpha.shape}, not [n_frames, 3, 3]")
    alpha = units.coulomb_constant * (alpha + alpha.swapaxes(1, 2)) / 2
    mean = np.trace(alpha, axis1=1, axis2=2) / 3
    parts = mean, np.sqrt(1.5) * (alpha - mean[:, None, None] * np.eye(3))
    found = [density_of_rate(part, dt=dt, **options) for part in parts]
    more = beyond_harmonic(quantum, found[0].wavenumbers_cm1, temperature) / kT_of(temperature)
    isotropic, anisotropic = (scaled(part, more) for part in found)
    return Scattering(isotropic=isotropic, anisotropic=anisotropic)


def cross_section(
    activity: Spectrum, *, temperature: float, laser: float = raman.LASER
) -> Spectrum:
    """Stokes scattering, 1e-30 cm²/sr per cm⁻¹, of an activity in Å⁴/amu per cm⁻¹.

    As `raman.cross_sections` of modes: laser in cm⁻¹, light at a right angle. Of `parallel` or
    `perpendicular`: that polarisation alone. Zero below the width of a line, where the unshifted
    light is.
    """
    grid = activity.wavenumbers_cm1
    reduced(grid, temperature)  # refuses a temperature of zero
    one = raman.cross_sections(grid, np.ones(len(grid)), laser=laser, temperature=temperature)
    return scaled(activity, np.where(grid < activity.width_cm1, 0, one))


def kT_of(temperature: float) -> float:
    """eV."""
    if not 0 < temperature < np.inf:
        raise DataError(f"the temperature is {temperature} K; it must be above zero")
    return units.kB * temperature


def _vectors(x, name):
    x = np.asarray(x)
    if x.ndim != 2 or x.shape[1] != 3:
        raise DataError(f"{name} have shape {x.shape}, not [n_frames, 3]")
    return x
