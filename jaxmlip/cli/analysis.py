"""A structure brought to its minimum, and its normal modes there: shared by `ir` and `modes`."""

from dataclasses import dataclass

import numpy as np

from jaxmlip.cli import session
from jaxmlip.cli.output import Output, task
from jaxmlip.cli.session import Opened, announce, bound, versions
from jaxmlip.errors import DataError, NumericalError

SKIN = 0.5  # Å; as in a relaxation, so that with and without one the same program is compiled
SOFT = 0.01  # eV/Å; modes of a structure with larger forces than this mean little


@dataclass(frozen=True, kw_only=True)
class Vibrations:
    """All that is known of the minimum; host numpy, float64."""

    atoms: object  # ase.Atoms, relaxed
    energy: float  # eV
    forces: np.ndarray  # [n_atoms, 3] eV/Å
    dipole: np.ndarray | None  # [3] e Å
    charges: np.ndarray | None  # [n_atoms] e
    born_charges: np.ndarray | None  # [n_atoms, 3, 3] e
    modes: object  # vibrations.Modes
    moves: list[str]  # what moves in each mode
    relax_steps: int
    fixed: np.ndarray | None = None  # [n_atoms] True for atoms that are held
    polarizability: np.ndarray | None = None  # [3, 3] e² Å²/eV
    raman_tensors: np.ndarray | None = None  # [n_atoms, 3, 3, 3] e² Å/eV

    @property
    def fmax(self) -> float:
        free = slice(None) if self.fixed is None else ~self.fixed
        return float(np.linalg.norm(self.forces[free], axis=1).max())


def vibrations(
    atoms,
    model: Opened,
    output: Output,
    *,
    relax: bool,
    fmax: float,
    steps: int,
    method: str,
    fixed=None,
    raman: bool = False,
) -> Vibrations:
    """Relaxes (unless told not to), then takes all second derivatives at once.

    fixed: [n_atoms] True for atoms that are held; then only the rows of the others are taken.
    raman: with polarisability and Raman tensors.
    """
    from jaxmlip.interfaces.ase import from_ase

    if atoms.constraints and fixed is None:
        output.warn("constraints are left out: modes are those of the free structure")
        atoms = atoms.copy()
        atoms.set_constraint()
    model = bound(model, atoms)
    system = from_ase(atoms, model.potential.cutoff + SKIN, dtype=model.dtype)
    announce("raman" if raman else "modes", model, len(atoms))
    n_steps = 0
    if relax:
        system, info = relaxed(system, model, fmax=fmax, steps=steps, method=method, fixed=fixed)
        _check_converged(info)
        n_steps = info.n_steps
    out = _second_derivatives(system, model, fixed, raman=raman)
    atoms = atoms.copy()
    atoms.positions = np.asarray(system.positions, np.float64)
    return analysed(atoms, out, n_steps, output, fixed)


def relaxed(system, model: Opened, *, fmax: float, steps: int, method: str, fixed=None):
    """(system, RelaxInfo), with news on standard error."""
    from jaxmlip import md

    with task("relaxing") as tell:
        system, info = md.relax(
            model.potential,
            model.params,
            system,
            fmax=fmax,
            steps=steps,
            fixed=fixed,
            method=getattr(md, method)(),
            skin=SKIN,
            report=lambda info: tell(f"{info.n_steps} steps, fmax {info.fmax:.2e} eV/Å"),
        )
    return system, info


def _check_converged(info):
    if not info.converged:
        raise NumericalError(
            f"not relaxed: {info.reason}",
            where="relax",
            code="JM304",
            fix="more --steps, a larger --fmax, or --method fire; --no-relax "
            "takes the modes of the structure as it is",
        )


def _second_derivatives(system, model, fixed, *, raman=False):
    """Forces, Hessian (rows of the free atoms) and Born charges in one compiled program."""
    import jax

    from jaxmlip import derivatives

    apply = model.potential.apply
    has_dipole = session.has_dipole(model.card) and not np.any(system.pbc)
    free = None if fixed is None else np.flatnonzero(~fixed)

    def everything(params, system):
        out = apply(params, system)
        out["forces"] = derivatives.forces(apply)(params, system)
        out["hessian"] = derivatives.hessian(apply, atoms=free)(params, system)
        if raman:
            out["polarizability"] = derivatives.polarizability(apply)(params, system)
            out["raman_tensors"] = derivatives.raman_tensors(apply)(params, system)
        if has_dipole:
            out["born_charges"] = derivatives.born_charges(apply)(params, system)
        else:
            out.pop("dipole", None)
        return out

    with task("second derivatives" + (" and Born charges" if has_dipole else "")):
        out = jax.jit(everything)(model.params, system)
        return {k: np.asarray(v, np.float64) for k, v in jax.device_get(out).items()}


def analysed(atoms, out, n_steps, output, fixed=None) -> Vibrations:
    """Modes, and what else `out` holds of the atoms as they are."""
    from jaxmlip.vibrations import normal_modes

    if not np.isfinite(out["energy"]).all():
        raise NumericalError("the energy is not finite", where=str(atoms.symbols), code="JM303")
    modes = normal_modes(
        out["hessian"], atoms.get_masses(), atoms.positions, pbc=atoms.pbc, fixed=fixed
    )
    found = Vibrations(
        atoms=atoms,
        energy=float(out["energy"][0]),
        forces=out["forces"],
        dipole=out["dipole"][0] if "dipole" in out else None,
        charges=out.get("charges"),
        born_charges=out.get("born_charges"),
        modes=modes,
        moves=_moves(atoms, modes),
        relax_steps=n_steps,
        fixed=fixed,
        polarizability=out["polarizability"][0] if "raman_tensors" in out else None,
        raman_tensors=out.get("raman_tensors"),
    )
    if found.fmax > SOFT:
        output.warn(
            f"forces of up to {found.fmax:.3g} eV/Å: harmonic modes away from a minimum mean little"
        )
    if modes.n_imaginary:
        output.warn(
            f"{modes.n_imaginary} imaginary mode(s), shown as negative numbers: this is "
            "not a minimum. Move the atoms along the mode (`jaxmlip modes --animate`) and "
            "relax again"
        )
    return found


def _moves(atoms, modes):
    from jaxmlip.vibrations import label

    bonds = bonds_of(atoms) if not atoms.pbc.any() else ()
    return [
        label(v, atoms.get_masses(), atoms.positions, atoms.get_chemical_symbols(), bonds)
        for v in modes.vectors
    ]


def bonds_of(atoms):
    """Pairs of bonded atoms [n_bonds, 2], by covalent radii."""
    from ase.neighborlist import natural_cutoffs, neighbor_list

    first, second = neighbor_list("ij", atoms, natural_cutoffs(atoms, mult=1.15))
    return np.stack([first, second], 1)[first < second]


def with_results(atoms, **results):
    """A copy that carries its results, so that they are written beside it."""
    from ase.calculators.singlepoint import SinglePointCalculator

    copy = atoms.copy()
    known = {k: v for k, v in results.items() if v is not None}
    copy.calc = SinglePointCalculator(copy, **known)
    return copy


def results_of(found: Vibrations, model: Opened, *, source: str, command: str) -> dict:
    """The part of the JSON that `ir` and `modes` share: flat, units in the names."""
    from jaxmlip.vibrations.thermodynamics import zero_point_energy

    atoms, modes = found.atoms, found.modes
    real = modes.frequencies_cm1[modes.frequencies_cm1 > 0]
    return {
        "command": command,
        "structure": source,
        "formula": atoms.get_chemical_formula(),
        **model.summary,
        **versions(),
        **geometry(atoms),
        "masses_amu": atoms.get_masses(),
        "energy_eV": found.energy,
        "forces_eV_per_A": found.forces,
        "fmax_eV_per_A": found.fmax,
        "relax_steps": found.relax_steps,
        "fixed_atoms": [] if found.fixed is None else np.flatnonzero(found.fixed),
        "zpe_eV": zero_point_energy(real),
        "n_imaginary": modes.n_imaginary,
        "frequencies_cm1": modes.frequencies_cm1,
        "moves": found.moves,
        "reduced_masses_amu": modes.reduced_masses,
        "force_constants_eV_per_A2": modes.force_constants,
        "displacements_per_sqrt_amu": modes.displacements,
        "rigid_frequencies_cm1": modes.rigid_frequencies_cm1,
        "hessian_asymmetry_eV_per_A2": modes.asymmetry,
    }


def geometry(atoms) -> dict:
    """Atoms as JSON."""
    out = {
        "n_atoms": len(atoms),
        "symbols": atoms.get_chemical_symbols(),
        "numbers": atoms.numbers,
        "positions_A": atoms.positions,
        "pbc": atoms.pbc,
        "charge_e": atoms.info.get("charge", 0.0),
        "spin_multiplicity": atoms.info.get("spin", 1),
    }
    return out | ({"cell_A": atoms.cell.array} if atoms.pbc.any() else {})


def check_molecule(atoms, what: str, source: str) -> None:
    """Raises `DataError` for a periodic structure."""
    if atoms.pbc.any():
        raise DataError(
            f"{what} is for molecules; this structure is periodic along "
            f"{int(atoms.pbc.sum())} axes",
            where=source,
            code="JM214",
            fix="set pbc to False if it is a molecule in a box",
        )


def with_energies(found: Vibrations):
    """The relaxed structure with energy, forces, dipole and charges."""
    return with_results(
        found.atoms,
        energy=found.energy,
        forces=found.forces,
        dipole=found.dipole,
        charges=found.charges,
    )
