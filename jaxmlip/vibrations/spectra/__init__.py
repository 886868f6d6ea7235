"""Spectra and transport from trajectories: correlations, their transforms, and error bars."""

from jaxmlip.vibrations.spectra.correlation import (
    block_average,
    correlation,
    correlation_time,
    square_displacements,
)
from jaxmlip.vibrations.spectra.density import (
    Spectrum,
    averaged,
    integral,
    spectral_density,
    without_verlet_shift,
)
from jaxmlip.vibrations.spectra.lines import (
    Scattering,
    absorption_coefficient,
    continuous_dipoles,
    cross_section,
    density_of_states,
    infrared_from_current,
    infrared_from_dipole,
    raman_scattering,
)
from jaxmlip.vibrations.spectra.transport import (
    Coefficient,
    diffusion_from_displacements,
    diffusion_from_velocities,
    in_mean_cell,
    infinite_cell_diffusion,
    thermal_conductivity,
    unwrapped,
    viscosity,
)

__all__ = [
    "Coefficient",
    "Scattering",
    "Spectrum",
    "absorption_coefficient",
    "averaged",
    "block_average",
    "continuous_dipoles",
    "correlation",
    "correlation_time",
    "cross_section",
    "density_of_states",
    "diffusion_from_displacements",
    "diffusion_from_velocities",
    "in_mean_cell",
    "infinite_cell_diffusion",
    "infrared_from_current",
    "infrared_from_dipole",
    "integral",
    "raman_scattering",
    "spectral_density",
    "square_displacements",
    "thermal_conductivity",
    "unwrapped",
    "viscosity",
    "without_verlet_shift",
]
