"""What all frames of a structure share, and the observables that have a name and a unit in files.

Inside a run a velocity is in Å/sqrt(amu Å²/eV), in files in Å/fs (momenta as ASE has them); all
else is written as it is.
"""

from dataclasses import dataclass, field

import numpy as np

OBSERVABLES = {  # {name in a record: (name in files, unit of H5MD, suffix in tables)}
    "energy": ("energy_potential", "eV", "eV"),
    "kinetic_energy": ("energy_kinetic", "eV", "eV"),
    "conserved_energy": ("energy_conserved", "eV", "eV"),
    "temperature": ("temperature", "K", "K"),
    "pressure": ("pressure", "eV Angstrom-3", "eV_per_A3"),
    "total_stress": ("stress", "eV Angstrom-3", "eV_per_A3"),
    "volume": ("volume", "Angstrom+3", "A3"),
    "msd": ("msd", "Angstrom+2", "A2"),
    "walker": ("walker", "1", "index"),
    "gyration": ("gyration", "Angstrom", "A"),
    "vacf": ("vacf", "Angstrom+2 fs-2", "A2_per_fs2"),
    "uncertainty": ("forces_uncertainty_max", "eV Angstrom-1", "eV_per_A"),
    "dipole": ("dipole", "e Angstrom", "eA"),
    "current": ("current", "e Angstrom fs-1", "eA_per_fs"),
    "heat_flux": ("heat_flux", "eV Angstrom fs-1", "eVA_per_fs"),
    "polarizability": ("polarizability", "e+2 Angstrom+2 eV-1", "e2A2_per_eV"),
}


PER_ATOM = ("positions", "velocities", "forces")
ROLE = ("ensemble", "beads", "bead", "ladder")  # frames of a ring, of one bead, of a temperature


@dataclass(frozen=True, kw_only=True)
class Scene:
    """One structure of a batch, as files name it."""

    numbers: np.ndarray  # [n_atoms]
    symbols: tuple[str, ...]  # [n_atoms]
    masses: np.ndarray  # [n_atoms] amu
    pbc: np.ndarray  # [3] bool
    dt: float  # fs
    index: int = 0  # of the structure in the batch
    first: int = 0  # its first atom in the batch
    fixed: np.ndarray | None = None  # [n_atoms] True for held atoms
    own_masses: bool = False  # whether masses are others than those of the elements
    info: tuple[tuple[str, object], ...] = ()  # charge, spin, field (V/Å) of every frame
    role: tuple[tuple[str, object], ...] = ()  # what it is in its run, names of `ROLE`
    mean_of: int = 1  # structures of the batch, from `index` on, whose mean it is: beads of a ring


@dataclass(frozen=True, kw_only=True)
class Series:
    """An observable along a trajectory."""

    step: np.ndarray  # [n_records]
    time: np.ndarray  # [n_records] fs
    value: np.ndarray  # [n_records, ...]
    unit: str


@dataclass(frozen=True, kw_only=True)
class Trajectory:
    """Frames of one structure, and what was recorded beside them."""

    step: np.ndarray  # [n_frames]
    time: np.ndarray  # [n_frames] fs
    positions: np.ndarray  # [n_frames, n_atoms, 3] Å, not wrapped
    velocities: np.ndarray | None  # [n_frames, n_atoms, 3] Å/fs
    forces: np.ndarray | None  # [n_frames, n_atoms, 3] eV/Å
    cell: np.ndarray | None  # [n_frames, 3, 3] Å, rows are lattice vectors; None: no periodic axis
    numbers: np.ndarray  # [n_atoms]
    masses: np.ndarray  # [n_atoms] amu
    pbc: np.ndarray  # [3] bool
    observables: dict[str, Series]
    info: dict  # charge (e), spin (multiplicity), field (V/Å) where they were told
    role: dict = field(default_factory=dict)  # names of `ROLE`, where they were told
    creator: str = ""  # the program that wrote the file


def frames_of(scene: Scene, records: dict) -> dict:
    """The part of the records of a batch that belongs to one structure: atoms and cell."""
    return {k: v if k == "step" else _own(scene, k, v) for k, v in records.items()}


def series_of(scene: Scene, records: dict) -> dict:
    """{name in files: [n_records, ...]} of one structure, with `step`."""
    named = {OBSERVABLES[k][0]: _own(scene, k, v) for k, v in records.items() if k in OBSERVABLES}
    return {"step": records["step"], **named}


def _own(scene, name, x):
    """Rows of a record [n_records, n, ...] that are the structure's: of one, or the mean of some.

    Of a ring, the uncertainty is that of its worst bead.
    """
    rows, first = (len(scene.numbers), scene.first) if name in PER_ATOM else (1, scene.index)
    found = x[:, first : first + scene.mean_of * rows]
    if scene.mean_of > 1:
        parts = found.reshape(len(x), scene.mean_of, rows, *x.shape[2:])
        found = parts.max(1) if name == "uncertainty" else parts.mean(1)
    return found if name in PER_ATOM else found[:, 0]
