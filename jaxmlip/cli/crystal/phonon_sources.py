"""Where `jaxmlip phonons` has its dynamical matrices from: a potential, or a file of phonopy's."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from jaxmlip.cli import analysis, session
from jaxmlip.cli.crystal import own_field, waves
from jaxmlip.cli.crystal.crystals import crystal_of, for_elements
from jaxmlip.cli.output import Output, task
from jaxmlip.errors import DataError, NumericalError

STEEP = 1e-3  # eV/Å; forces on a crystal beyond which its phonons mean little
SYMPREC = 1e-5  # Å, of atoms that were relaxed with their symmetry
AS_THEY_ARE = 1e-7  # Å, of unrelaxed atoms: more would be seen in D(q); files have 8 digits
SAME = 0.05  # Å, within which the atoms of a file are those of its force constants


@dataclass(frozen=True, kw_only=True)
class Source:
    """D(q) of one crystal, and what is told of where it came from."""

    D: Callable  # q [n_q, 3] -> [n_q, 3n, 3n] eV/Å²
    nonanalytic: Callable | None
    atoms: object  # ase.Atoms, the cell of D
    cheap: bool  # D need not be interpolated
    in_file: np.ndarray  # [3, 3] rows of this cell in the vectors of the cell of FILE
    summary: dict  # for the JSON
    symprec: float = SYMPREC  # Å, to which the atoms have the space group of path and mesh
    near: float | None = None  # of the reciprocal cell: where a D that jumps at Gamma is taken
    constants: object = None  # ForceConstants it was made of
    polar: object = None


# --- a potential ---------------------------------------------------------------------------------


def from_model(
    file,
    model,
    output: Output,
    *,
    born,
    frame,
    primitive,
    symprec,
    relax,
    fixed_cell,
    limits,
    method,
    nac=True,
) -> Source:
    """Relaxes the crystal; D(q) of the potential on its primitive cell.

    nac: with the non-analytic term of the model's own Born charges and dielectric tensor, where it
    predicts dipoles and polarisabilities, `born` is None and D(q) does not have it yet. Models
    without D(q), and BORN beside a D(q) that has the term, are refused before anything is computed.
    """
    from jaxmlip.interfaces.ase import from_ase
    from jaxmlip.interfaces.phonons.same_crystal import cell_in
    from jaxmlip.interfaces.phonons.symmetry import symmetry
    from jaxmlip.vibrations.phonons.velocities import model_matrices

    waves.check_matrices(model, born=born)
    read = session.read(file, model, output, frame=frame)
    atoms = crystal_of(read, "phonons", file, output, primitive=primitive, symprec=symprec)
    model = session.bound(for_elements(model, atoms.numbers, in_waves=True), atoms)
    in_file = cell_in(atoms.cell, read.cell, size=len(read) // len(atoms))
    done = {"relaxed": relax, "relax_steps": 0}
    if relax:
        atoms, info = _relaxed(
            atoms, model, fixed_cell=fixed_cell, limits=limits, method=method, symprec=symprec
        )
        done["relax_steps"] = info.n_steps
    system = from_ase(atoms, model.potential.cutoff, dtype=model.dtype)
    done |= state(system, model, output)
    session.announce("phonons", model, len(atoms))
    polar, extra = _polar(born, atoms)
    group = symmetry(atoms, tolerance=SYMPREC if relax else AS_THEY_ARE)
    if not relax:
        _tell_symmetry(atoms, group, symprec, output)
    by = {"group": group, "tolerance": own_field.tolerance_of_sums(model.card)}
    D = model_matrices(model.potential.apply, model.params, system, **by)
    if born is None and nac:
        polar, extra, told = _own_polar(system, model, atoms, D)
        done |= told
    near = own_field.step_off_gamma(D, model.card) if nac and polar is None else None
    if near is not None:
        done["nonanalytic"] = own_field.IN_MODEL
    return Source(
        D=D,
        nonanalytic=extra,
        atoms=atoms,
        cheap=False,
        in_file=in_file,
        polar=polar,
        near=near,
        symprec=SYMPREC if relax else symprec,
        summary={"structure": file, **model.summary, **done},
    )


def _tell_symmetry(atoms, exact, symprec, output):
    """Of atoms that are kept where they are although they just miss a higher symmetry."""
    from jaxmlip.interfaces.phonons.symmetry import symmetry

    found = symmetry(atoms, tolerance=symprec)
    if found.number != exact.number:
        output.warn(
            f"space group {found.symbol} ({found.number}) within --symprec {symprec:g} Å decides "
            f"path and mesh; matrices are of the atoms as they are, {exact.symbol} "
            f"({exact.number})"
        )


def _relaxed(atoms, model, *, fixed_cell, limits, method, symprec):
    from jaxmlip import md
    from jaxmlip.interfaces.ase import from_ase
    from jaxmlip.interfaces.phonons.symmetry import symmetry
    from jaxmlip.md.cell import fixed_cell as no_strain

    group = symmetry(atoms, tolerance=symprec)
    system = from_ase(atoms, model.potential.cutoff + analysis.SKIN, dtype=model.dtype)
    with task("relaxing") as tell:
        system, info = md.relax_cell(
            model.potential,
            model.params,
            system,
            symmetry=(group.rotations, group.translations),
            free=no_strain if fixed_cell else None,
            method=getattr(md, method)(),
            skin=analysis.SKIN,
            report=lambda i: tell(f"{i.n_steps} steps, fmax {i.fmax:.2e} eV/Å"),
            **limits,
        )
    if not info.converged:
        raise NumericalError(
            f"not relaxed: {info.reason}",
            where="relax",
            code="JM304",
            fix="more --steps, a larger --fmax or --stress, or --method fire; --no-relax takes "
            "the phonons of the structure as it is",
        )
    atoms = atoms.copy()
    atoms.set_cell(np.asarray(system.cell, np.float64)[0])
    atoms.positions = np.asarray(system.positions, np.float64)
    return atoms, info


def state(system, model, output, *, where="phonons") -> dict:
    """Energy, forces and stress of the crystal as it is, for the JSON; warns of large forces."""
    import jax

    from jaxmlip.derivatives import predict

    out = jax.device_get(jax.jit(predict(model.potential.apply))(model.params, system))
    energy, forces = float(out["energy"][0]), np.asarray(out["forces"], np.float64)
    if not (np.isfinite(energy) and np.isfinite(forces).all()):
        raise NumericalError("the energy or a force is not finite", where=where, code="JM303")
    fmax = float(np.linalg.norm(forces, axis=1).max())
    if fmax > STEEP:
        output.warn(f"forces of up to {fmax:.3g} eV/Å: phonons away from a minimum mean little")
    return {"energy_eV": energy, "fmax_eV_per_A": fmax, "stress_eV_per_A3": out["stress"][0]}


def _polar(born, atoms):
    """(Polar or None, the non-analytic part of D or None)."""
    if born is None:
        return None, None
    from jaxmlip.interfaces.phonons.phonopy_files import read_born

    polar = read_born(born, own_field.without_forces(atoms))
    return polar, own_field.beyond(atoms, polar)


def _own_polar(system, model, atoms, D):
    """(Polar, the non-analytic part of D, what is told of both) of the model; None without one.

    A model with electrostatics of its own has the term in its D(q) already: that is measured.
    """
    if not own_field.predicted(model):
        return None, None, {"nonanalytic": None}
    from jaxmlip.interfaces.phonons.phonopy_files import Polar

    charges, eps = own_field.own_response(system, model)
    told = {
        "born_charges_e": charges,
        "epsilon_infinity": eps,
        "born_charge_sum_error_e": float(np.abs(charges.sum(0)).max()),
    }
    if own_field.in_matrices(system, model, atoms, charges=charges, eps=eps, D=D):
        return None, None, told | {"nonanalytic": own_field.IN_MODEL}
    own_field.split_by_model()
    polar = Polar(born_charges=charges, dielectric=eps)
    return polar, own_field.beyond(atoms, polar), told | {"nonanalytic": "model"}


# --- a file of phonopy's -------------------------------------------------------------------------


def from_file(file, path, output: Output, *, born, frame) -> Source:
    """D(q) of the force constants in a phonopy.yaml, which must be those of the structure FILE."""
    from jaxmlip.interfaces.phonons.phonopy_files import primitive_atoms, read_phonopy
    from jaxmlip.interfaces.read import read_structure
    from jaxmlip.vibrations.phonons.force_constants import fourier_sum
    from jaxmlip.vibrations.phonons.nonanalytic import polar_sum

    constants, polar = read_phonopy(path, born=born)
    atoms, in_file = primitive_atoms(constants), np.eye(3)
    if str(file) != str(path):
        read = read_structure(file, frame=frame)
        read = crystal_of(read, "phonons", file, output, primitive=False, symprec=0)
        in_file = _checked_same(read, atoms, file, path)
    whole = fourier_sum(constants) if polar is None else polar_sum(constants, polar)
    return Source(
        D=whole if polar is None else whole.short,
        nonanalytic=None if polar is None else whole.dipoles,
        atoms=atoms,
        cheap=True,
        in_file=in_file,
        constants=constants,
        polar=polar,
        summary={
            "structure": file,
            "force_constants": str(path),
            "supercell_matrix": constants.matrix,
            "force_constants_asymmetry_eV_per_A2": constants.asymmetry,
        },
    )


def _checked_same(ours, theirs, file, path):
    """The cell of the force constants in the vectors of that of FILE, if they are one crystal."""
    from jaxmlip.interfaces.phonons.same_crystal import common_cell

    a, b = ours.get_volume() / len(ours), theirs.get_volume() / len(theirs)
    share = lambda atoms: {s: atoms.symbols.count(s) / len(atoms) for s in set(atoms.symbols)}
    alike = share(ours) == share(theirs) and abs(a - b) < 1e-3 * b
    found = common_cell(ours, theirs, tolerance=SAME) if alike else None
    if found is None:
        how = f"atoms lie elsewhere, by more than {SAME} Å" if alike else "they differ"
        raise DataError(
            f"this is {ours.get_chemical_formula()} of {a:.4f} Å³ an atom, the force constants of "
            f"{path} are those of {theirs.get_chemical_formula()} of {b:.4f} Å³ an atom; {how}",
            where=file,
            code="JM217",
            fix="the structure that the force constants were made for, or FILE the yaml itself",
        )
    return found
