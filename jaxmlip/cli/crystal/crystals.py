"""A crystal read, reduced and brought to its minimum, cell and atoms: shared by commands."""

from dataclasses import replace

import numpy as np

from jaxmlip.cli.crystal import waves
from jaxmlip.cli.output import Output, note, task
from jaxmlip.cli.session import Opened
from jaxmlip.errors import DataError, NumericalError

SKIN = 0.5  # Å


def crystal_of(atoms, what: str, source: str, output: Output, *, primitive: bool, symprec: float):
    """The (primitive) cell without constraints; `DataError` unless three axes are periodic."""
    from jaxmlip.interfaces.phonons import symmetry

    if not atoms.pbc.all():
        raise DataError(
            f"{what} are of crystals; this structure is periodic along {int(atoms.pbc.sum())} "
            "axes of three",
            where=source,
            code="JM214",
            fix="a cell and pbc along three axes (a slab: vacuum); `jaxmlip modes` for molecules",
        )
    if atoms.constraints:
        output.warn("constraints are left out: the crystal is taken as free")
        atoms = atoms.copy()
        atoms.set_constraint()
    if not primitive:
        return atoms
    found = symmetry.primitive(atoms, tolerance=symprec)
    if len(found) < len(atoms):
        note(f"primitive cell: {len(found)} of {len(atoms)} atoms")
    return found


def for_elements(model, numbers, *, in_waves=False):
    """The same function of structures of these elements, faster.

    in_waves: to its tolerance the same, and followed by waves of displacements (`waves`).
    """
    from jaxmlip import pretrained
    from jaxmlip.models import checkpoint
    from jaxmlip.system import cast

    elements = sorted({int(z) for z in numbers})
    potential, params, card = model.potential, model.params, model.card
    if len(elements) < len(card["elements"]):
        path = pretrained.path_of(model.name)
        potential, params, card = checkpoint.load(path, elements=elements)
    if in_waves and waves.meshed(card):
        potential = checkpoint.potential_of(waves.without_mesh(card))
    return replace(model, potential=potential, params=cast(params, model.dtype))


def operations_of(atoms, symprec: float):
    """(rotations, translations) of the space group, fractional."""
    from jaxmlip.interfaces.phonons.symmetry import symmetry

    group = symmetry(atoms, tolerance=symprec)
    return group.rotations, group.translations


def to_system(atoms, model: Opened):
    from jaxmlip.interfaces.ase import from_ase

    return from_ase(atoms, model.potential.cutoff + SKIN, dtype=model.dtype)


def to_atoms(atoms, system):
    """The atoms at the positions and in the cell of the system; open axes stay without a vector."""
    moved = atoms.copy()
    if atoms.pbc.any():
        known = atoms.cell.array.any(1)
        moved.set_cell(np.where(known[:, None], np.asarray(system.cell[0], np.float64), 0))
    moved.positions = np.asarray(system.positions, np.float64)
    return moved


def relaxed_cell(system, model: Opened, *, method: str, **how):
    """(system, RelaxInfo) of cell and atoms, with news on standard error; how: of `relax_cell`."""
    from jaxmlip import md

    told = lambda i: f"{i.n_steps} steps, fmax {i.fmax:.2e} eV/Å, stress {i.stress:.2e} eV/Å³"
    with task("relaxing cell and atoms") as tell:
        return md.relax_cell(
            model.potential,
            model.params,
            system,
            method=getattr(md, method)(),
            skin=SKIN,
            report=lambda info: tell(told(info)),
            **how,
        )


def check_converged(info) -> None:
    if not info.converged:
        raise NumericalError(
            f"not relaxed: {info.reason}",
            where="relax",
            code="JM304",
            fix="more --steps, a larger --fmax or --stress, or --method fire",
        )
