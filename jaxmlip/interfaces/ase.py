"""The door to ASE: structures in and out."""

import numpy as np
from ase import Atoms

from jaxmlip.errors import DataError, check_dtype
from jaxmlip.interfaces.check import check_structure
from jaxmlip.neighbors import find_edges
from jaxmlip.system import System


def from_ase(
    atoms, cutoff: float | None, *, dtype=None, capacity=None, flat: bool = False, where: str = ""
) -> System:
    """A `System` of one structure from `ase.Atoms`, with edges within `cutoff` Å (None: no edges).

    Charge, spin multiplicity and field (V/Å) are read from atoms.info 'charge', 'spin', 'field'
    (defaults 0, 1, 0; for a field along a periodic axis see `derivatives.check_field`). dtype
    defaults to JAX's own (float64 with x64, else float32). Missing cell vectors
    become unit normals. Raises `DataError` for input that cannot be meant (see
    `jaxmlip.interfaces.check`).
    """
    import jax

    check_structure(atoms, where=where)
    dtype = dtype or (np.float64 if jax.config.jax_enable_x64 else np.float32)
    check_dtype(dtype)
    _check_resolution(atoms.positions, dtype, where)
    cell = np.asarray(atoms.cell.complete())
    edges = None
    if cutoff is not None:
        edges = find_edges(atoms.positions, cell, atoms.pbc, cutoff, capacity=capacity, flat=flat)
    return System(
        positions=atoms.positions.astype(dtype),
        numbers=atoms.numbers.astype(np.int32),
        graph=np.zeros(len(atoms), np.int32),
        cell=cell[None].astype(dtype),
        pbc=np.asarray(atoms.pbc)[None],
        charge=np.array([atoms.info.get("charge", 0.0)], dtype),
        spin=np.array([atoms.info.get("spin", 1)], dtype),
        field=np.array(atoms.info.get("field", (0.0, 0.0, 0.0)), dtype).reshape(1, 3),
        edges=edges,
    )


def _check_resolution(positions, dtype, where):
    """Far from the origin the numbers of a short type lie too far apart."""
    farthest, limit = np.abs(positions).max(), 2e-4 / np.finfo(dtype).eps
    if farthest > limit:
        raise DataError(
            f"an atom is {farthest:.0f} Å from the origin, where {np.dtype(dtype)} resolves "
            f"{farthest * np.finfo(dtype).eps:.1e} Å; limit {limit:.0f} Å",
            where=where,
            code="JM203",
            fix="centre the structure, or use float64",
        )


def to_ase(system: System) -> list[Atoms]:
    """The structures of a batch as `ase.Atoms`, padding left out."""
    out = []
    for g in range(system.n_graphs):
        real = (np.asarray(system.graph) == g) & np.asarray(system.atom_mask)
        if not real.any():
            continue
        pbc = np.asarray(system.pbc[g])
        info = {
            "charge": float(system.charge[g]),
            "spin": float(system.spin[g]),
            "field": np.asarray(system.field[g], float),
        }
        cell = np.asarray(system.cell[g], float) if pbc.any() else None
        out.append(
            Atoms(
                numbers=np.asarray(system.numbers)[real],
                pbc=pbc,
                cell=cell,
                info=info,
                positions=np.asarray(system.positions, float)[real],
            )
        )
    return out
