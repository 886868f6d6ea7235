"""A crystal at rest, its modes at Gamma and its answer to light: for `ir` and `raman`."""

from dataclasses import dataclass, replace

import numpy as np

from jaxmlip.cli import analysis, session
from jaxmlip.cli.crystal import crystals, own_field
from jaxmlip.cli.output import Output, task
from jaxmlip.errors import DataError, NumericalError, UsageError
from jaxmlip.vibrations.dielectric import electronic


@dataclass(frozen=True, kw_only=True)
class PolarCrystal:
    """All that is known of the crystal; host numpy, float64."""

    found: analysis.Vibrations  # modes at Gamma, transverse
    hessian: np.ndarray  # [n, 3, n, 3] eV/Å²
    dielectric: np.ndarray | None  # [3, 3] electronic
    volume: float  # Å³
    stress: np.ndarray  # [3, 3] eV/Å³
    symmetry: str  # space group


def crystal_at_rest(
    file,
    read,
    model,
    output: Output,
    *,
    primitive,
    symprec,
    relax,
    fixed_cell,
    limits,
    method,
    in_waves=False,
):
    """(ase.Atoms, the model, relax steps): the (primitive) cell, relaxed unless told not to.

    in_waves: the model is to follow waves of displacements, where it can.
    """
    atoms = crystals.crystal_of(
        read, "spectra of periodic structures", file, output, primitive=primitive, symprec=symprec
    )
    few = crystals.for_elements(model, atoms.numbers, in_waves=in_waves)
    model = session.bound(few, atoms)
    steps = 0
    if relax:
        from jaxmlip.md.cell import fixed_cell as no_strain

        system, info = crystals.relaxed_cell(
            crystals.to_system(atoms, model),
            model,
            method=method,
            symmetry=crystals.operations_of(atoms, symprec),
            free=no_strain if fixed_cell else None,
            **limits,
        )
        crystals.check_converged(info)
        atoms, steps = crystals.to_atoms(atoms, system), info.n_steps
    return atoms, model, steps


def polar_crystal(atoms, model, output: Output, *, relax_steps=0, raman=False) -> PolarCrystal:
    """Second derivatives of the crystal as it is: modes at Gamma, eps_inf, Born charges.

    raman: with Raman tensors in place of Born charges.
    """
    from jaxmlip.interfaces.ase import from_ase
    from jaxmlip.interfaces.phonons.symmetry import symmetry

    system = from_ase(atoms, model.potential.cutoff, dtype=model.dtype)
    session.announce("raman of a crystal" if raman else "ir of a crystal", model, len(atoms))
    with task(f"second derivatives, {'Raman' if raman else 'Born charges and dielectric'} tensors"):
        out = _derivatives(system, model, raman)
    found = analysis.analysed(atoms, out, relax_steps, output)
    group = symmetry(atoms, tolerance=1e-3)
    alpha, volume = out.get("polarizability"), atoms.get_volume()
    return PolarCrystal(
        found=replace(found, dipole=None),  # of a crystal: modulo lattice vectors
        hessian=out["hessian"],
        dielectric=None if alpha is None else electronic(alpha[0], volume),
        volume=volume,
        stress=out["stress"][0],
        symmetry=f"{group.symbol} ({group.number})",
    )


def _derivatives(system, model, raman) -> dict:
    import jax

    from jaxmlip import derivatives as d
    from jaxmlip.derivatives.response.images import point_charges

    apply, params = model.potential.apply, model.params
    has_alpha = session.predicts(model.card, "polarizability")
    charged = not raman and point_charges(apply, params, system)

    def everything(params, system):
        out = d.predict(apply)(params, system)
        out["hessian"] = d.hessian(apply)(params, system)
        if has_alpha:
            out["polarizability"] = d.polarizability(apply)(params, system)
        if raman:
            out["raman_tensors"] = d.raman_tensors(apply)(params, system)
        if not (raman or charged):
            out["born_charges"] = d.born_charges(apply)(params, system)
        return out

    if charged:  # refused with a reason, before anything dear is computed
        born = d.born_charges(apply)(params, system)
    out = jax.jit(everything)(params, system)
    out = out | ({"born_charges": born} if charged else {})
    return {k: np.asarray(v, np.float64) for k, v in jax.device_get(out).items()}


def directions_of(texts) -> np.ndarray:
    """[n, 3] Cartesian unit vectors of "1 0 0" ...; x, y and z where none is given."""
    if not texts:
        return np.eye(3)
    found = []
    for text in texts:
        try:
            n = np.array([float(x) for x in text.replace(",", " ").split()])
        except ValueError:
            n = np.zeros(0)
        if n.shape != (3,) or not 0 < np.linalg.norm(n) < np.inf:
            raise UsageError(
                f"cannot read a direction from '{text}'",
                where="--direction",
                fix='three Cartesian numbers: --direction "0 0 1"',
            )
        found.append(n / np.linalg.norm(n))
    return np.array(found)


def check_epsilon(given: float | None) -> None:
    if given is not None and not 1 <= given < np.inf:
        raise UsageError(
            f"--epsilon-infinity is {given}; it must be 1 or more", where="--epsilon-infinity"
        )


def dielectric_of(crystal: PolarCrystal, given: float | None):
    """eps_inf [3, 3] of the model, or the number that is given; None where there is neither."""
    return crystal.dielectric if given is None else given * np.eye(3)


def has_own_field(crystal: PolarCrystal, model, eps) -> bool:
    """Whether the energy of the model itself holds the field of longitudinal waves."""
    from jaxmlip.interfaces.ase import from_ase

    found = crystal.found
    system = from_ase(found.atoms, model.potential.cutoff, dtype=model.dtype)
    eps, charges = np.eye(3) if eps is None else eps, found.born_charges
    return own_field.in_matrices(system, model, found.atoms, charges=charges, eps=eps)


def check_born(crystal: PolarCrystal, output: Output) -> float:
    """max |sum of Born charges|, e; a warning where translations make a dipole."""
    charges = crystal.found.born_charges
    if not np.isfinite(charges).all():
        raise NumericalError("a Born charge is not finite", where="born_charges", code="JM303")
    error = float(np.abs(charges.sum(0)).max())
    if error > 1e-3:
        output.warn(f"Born charges sum to {error:.2g} e, not to zero")
    return error


def check_neutral(atoms, source) -> None:
    charge = float(atoms.info.get("charge", 0.0))
    if charge:
        raise DataError(
            f"a crystal whose cell has the charge {charge:g} e has no infrared spectrum",
            where=source,
            code="JM213",
        )
