"""GFN2-xTB labels, so that the rest of the example never meets atomic units.

Every call starts from scratch, so a label depends on the geometry alone and not on its history.
"""

import numpy as np
from ase.calculators.calculator import Calculator, all_changes
from ase.units import Bohr, Hartree
from tblite.interface import Calculator as Tblite

ACCURACY = 0.01
MAX_FORCE = 25.0


def label(numbers, positions):
    """Energy (eV), forces (eV/Å), dipole (e Å); RuntimeError where the SCF fails."""
    xtb = Tblite("GFN2-xTB", np.asarray(numbers), np.asarray(positions) / Bohr)
    xtb.set("verbosity", 0)
    xtb.set("accuracy", ACCURACY)
    result = xtb.singlepoint()
    forces = -result.get("gradient") * Hartree / Bohr
    return float(result.get("energy")) * Hartree, forces, result.get("dipole") * Bohr


def labelled(atoms, kind, name):
    """A copy of the structure with its labels, or None where they cannot be trusted."""
    try:
        energy, forces, dipole = label(atoms.numbers, atoms.positions)
    except RuntimeError:
        return None
    if not np.isfinite(energy) or not np.linalg.norm(forces, axis=1).max() < MAX_FORCE:
        return None
    frame = atoms.copy()
    frame.info = {"config_type": kind, "name": name, "REF_energy": energy, "REF_dipole": dipole}
    frame.arrays["REF_forces"] = forces
    return frame


class Gfn2(Calculator):
    """The same labels for ASE's optimisers."""

    implemented_properties = ["energy", "forces", "dipole"]

    def calculate(self, atoms=None, properties=None, system_changes=all_changes):
        super().calculate(atoms, properties, system_changes)
        values = label(self.atoms.numbers, self.atoms.positions)
        self.results = dict(zip(self.implemented_properties, values, strict=True))


def hessian(atoms, step=0.005):
    """Central differences of forces, symmetrised: [3n, 3n] in eV/Å²."""
    rows = []
    for i in range(3 * len(atoms)):
        shift = np.zeros(3 * len(atoms))
        shift[i] = step
        shift = shift.reshape(-1, 3)
        ahead, behind = (label(atoms.numbers, atoms.positions + s)[1] for s in (shift, -shift))
        rows.append((behind - ahead).ravel() / (2 * step))
    return (np.array(rows) + np.array(rows).T) / 2


def force_error(atoms, step=0.0005):
    """Largest difference between forces and a central difference of the energy (eV/Å)."""
    forces = label(atoms.numbers, atoms.positions)[1]
    numerical = np.zeros_like(forces)
    for place in np.ndindex(forces.shape):
        shift = np.zeros_like(forces)
        shift[place] = step
        ahead, behind = (label(atoms.numbers, atoms.positions + s)[0] for s in (shift, -shift))
        numerical[place] = (behind - ahead) / (2 * step)
    return float(abs(numerical - forces).max())
