"""`jaxmlip relax`: positions moved to a minimum of the energy; the cell is kept."""

from pathlib import Path

from jaxmlip.cli import options
from jaxmlip.cli.options import Dtype, Method
from jaxmlip.cli.output import plan, table, write_extxyz
from jaxmlip.errors import DataError, NumericalError


def relax(
    file: options.File,
    model: options.Model = "organic",
    json: options.Json = None,
    out: options.Out = Path("."),
    overwrite: options.Overwrite = False,
    frame: options.Frame = -1,
    fmax: options.Fmax = 1e-4,
    steps: options.Steps = 2000,
    method: options.Minimizer = Method.lbfgs,
    dtype: options.Precision = Dtype.float64,
):
    """Relax a structure at fixed cell; writes NAME_relaxed.xyz (eV, Å, eV/Å).

    Atoms held by FixAtoms keep their positions. Exit status 4 if it does not converge; the best
    structure is written all the same.
    """
    from jaxmlip.cli import analysis, session
    from jaxmlip.interfaces.ase import from_ase

    output = plan(file, ["relaxed.xyz"], out=out, json_file=json, overwrite=overwrite)
    session.positive(fmax=fmax)
    session.start(x64=True)
    opened = session.open_model(model, dtype)
    atoms = session.read(file, opened, output, frame=frame)
    fixed = _fixed(atoms, file)
    system = from_ase(atoms, opened.potential.cutoff, dtype=opened.dtype)
    session.announce("relax", opened, len(atoms))
    system, info = analysis.relaxed(
        system, opened, fmax=fmax, steps=steps, method=method, fixed=fixed
    )
    atoms = _moved(atoms, system, opened)
    rows = [
        ("energy", f"{info.energy:.6f} eV"),
        ("fmax", f"{info.fmax:.2e} eV/Å"),
        ("evaluations", str(info.n_steps)),
        ("converged", "yes" if info.converged else "no"),
    ]
    output.console.print(
        table({"relaxation": "left", "": "right"}, rows, title=atoms.get_chemical_formula())
    )
    write_extxyz(output.paths["relaxed.xyz"], atoms)
    output.finish(
        {
            "command": "relax",
            "structure": file,
            "formula": atoms.get_chemical_formula(),
            **opened.summary,
            **session.versions(),
            **analysis.geometry(atoms),
            "energy_eV": info.energy,
            "fmax_eV_per_A": info.fmax,
            "n_steps": info.n_steps,
            "converged": info.converged,
            "reason": info.reason,
            "forces_eV_per_A": atoms.calc.results["forces"],
        }
    )
    if not info.converged:
        raise NumericalError(
            f"not relaxed: {info.reason}",
            where=file,
            code="JM304",
            fix="more --steps, a larger --fmax, or --method fire",
        )


def _fixed(atoms, where):
    """[n_atoms] True for atoms held by FixAtoms, or None; other constraints are refused."""
    import numpy as np
    from ase.constraints import FixAtoms

    if not atoms.constraints:
        return None
    held = np.zeros(len(atoms), bool)
    for constraint in atoms.constraints:
        if not isinstance(constraint, FixAtoms):
            raise DataError(
                f"constraint {type(constraint).__name__} is not known here",
                where=where,
                code="JM215",
                fix="FixAtoms, or no constraints",
            )
        held[constraint.index] = True
    return held


def _moved(atoms, system, model):
    """The relaxed atoms with their energy and forces (of free and held atoms alike)."""
    import jax
    import numpy as np

    from jaxmlip.cli.analysis import with_results
    from jaxmlip.derivatives.first import total_energy

    slope = jax.jit(jax.value_and_grad(total_energy(model.potential.apply)))
    energy, gradient = slope(system.positions, model.params, system)
    atoms = atoms.copy()
    atoms.positions = np.asarray(system.positions, np.float64)
    return with_results(atoms, energy=float(energy), forces=-np.asarray(gradient, np.float64))
