"""Units as plain floats, in Å, eV, amu and e: `300 * units.kB` is an energy, `units.fs` a time.

CODATA 2014, the set that ASE uses, so that numbers agree with ase.units to the last digits.
"""

from math import pi, sqrt

_c = 299792458.0  # m/s
_mu0 = 4.0e-7 * pi  # N/A²
_h = 6.626070040e-34  # J s
_e = 1.6021766208e-19  # C
_me = 9.10938356e-31  # kg
_NA = 6.022140857e23  # 1/mol
_k = 1.38064852e-23  # J/K
_amu = 1.660539040e-27  # kg
_eps0 = 1 / (_mu0 * _c**2)
_hbar = _h / (2 * pi)

second = 1e10 * sqrt(_e / _amu)  # Å sqrt(amu/eV), the internal unit of time
fs = 1e-15 * second
kB = _k / _e  # eV/K
kcal_mol = 4184.0 / _e / _NA  # eV
kJ_mol = 1000.0 / _e / _NA  # eV
bohr = 4e10 * pi * _eps0 * _hbar**2 / _me / _e**2  # Å
hartree = _me * _e**3 / (16 * pi**2 * _eps0**2 * _hbar**2)  # eV
GPa = 1e9 / _e * 1e-30  # eV/Å³
bar = 1e-4 * GPa  # eV/Å³
debye = 1e-11 / (_c * _e)  # e Å
coulomb_constant = 1e10 * _e / (4 * pi * _eps0)  # eV Å / e²
hbar = _hbar / _e * second  # eV times the internal unit of time
invcm = 100.0 * _c * _h / _e  # eV of 1 cm⁻¹
THz = 1e12 * _h / _e  # eV of 1 THz

# Integrated absorption of a harmonic mode with |d mu/d Q|² = 1 e²/amu, in km/mol:
# N_A e² / (12 eps0 c² amu).
infrared_intensity = _NA * _e**2 / (12 * _eps0 * _c**2 * _amu) / 1000.0
