"""The door of trajectories to ASE: frames out of arrays."""

import numpy as np
from ase import Atoms
from ase.calculators.singlepoint import SinglePointCalculator

from jaxmlip import units


def to_frames(trajectory) -> list[Atoms]:
    """A trajectory (as `jaxmlip.md.files.read_h5md` gives it) as `ase.Atoms`.

    Velocities become momenta, forces results; info has `step` and `time_fs`, and
    charge, spin and field where the file tells them.
    """
    return [_frame(trajectory, i) for i in range(len(trajectory.step))]


def _frame(t, i) -> Atoms:
    atoms = Atoms(
        numbers=t.numbers,
        positions=np.asarray(t.positions[i], float),
        cell=None if t.cell is None else np.asarray(t.cell[i], float),
        pbc=t.pbc,
        info={"step": int(t.step[i]), "time_fs": float(t.time[i]), **t.info},
    )
    if t.masses is not None:
        atoms.set_masses(t.masses)
    if t.velocities is not None:
        atoms.set_velocities(np.asarray(t.velocities[i], float) / units.fs)
    if t.forces is not None:
        atoms.calc = SinglePointCalculator(atoms, forces=np.asarray(t.forces[i], float))
    return atoms
