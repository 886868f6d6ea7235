"""Vibrations: normal modes, infrared and Raman spectra, thermochemistry. Host numpy, float64."""

from jaxmlip.vibrations.animate import animation, label, moving_atoms
from jaxmlip.vibrations.infrared import intensities, spectrum
from jaxmlip.vibrations.modes import Modes, normal_modes
from jaxmlip.vibrations.thermodynamics import Thermochemistry, damped_rotor, harmonic, ideal_gas

__all__ = [
    "Modes",
    "Thermochemistry",
    "animation",
    "damped_rotor",
    "harmonic",
    "ideal_gas",
    "intensities",
    "label",
    "moving_atoms",
    "normal_modes",
    "spectrum",
]
