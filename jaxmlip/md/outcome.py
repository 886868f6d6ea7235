"""What a relaxation has come to: numbers, words, and the error where it broke."""

from dataclasses import dataclass

import numpy as np

from jaxmlip.errors import NumericalError


@dataclass(frozen=True, kw_only=True)
class RelaxInfo:
    """How a relaxation stands or ended."""

    converged: bool
    n_steps: int  # evaluations of energy and forces
    fmax: float  # eV/Å, largest norm of the force on a free atom
    energy: float  # eV; with a pressure the enthalpy E + pV
    reason: str  # why it ended, in words
    stress: float | None = None  # eV/Å³, largest free component of stress + pressure; None: no cell


def info_of(progress, aim) -> RelaxInfo:
    """What a loop that is heading for `aim` has reached."""
    converged = float(progress.distance) <= 1
    return RelaxInfo(
        converged=converged,
        n_steps=int(progress.n_steps),
        fmax=float(progress.fmax),
        energy=float(progress.energy),
        reason=_reason(progress, aim, converged),
        stress=float(progress.stress) if np.isfinite(aim.stress) else None,
    )


def _reason(progress, aim, converged) -> str:
    fmax, n_steps, idle = float(progress.fmax), int(progress.n_steps), int(progress.idle)
    stress = float(progress.stress) if np.isfinite(aim.stress) else None
    at = f"fmax {fmax:.3g} eV/Å" + ("" if stress is None else f", stress {stress:.3g} eV/Å³")
    wanted = f"{aim.fmax:g} eV/Å" + ("" if stress is None else f" and {aim.stress:g} eV/Å³")
    if converged:
        return f"{at}; asked for {wanted}"
    if idle >= aim.patience:
        return (
            f"no progress in {idle} evaluations in {progress.trial.dtype}: it stays at {at} "
            f"above {wanted}; use float64 or a larger limit"
        )
    return f"{n_steps} evaluations, {at}; asked for {wanted}"


def outgrown(potential) -> str:
    """What else to do where something is not finite, of a potential with a plan."""
    if getattr(potential, "plan", None) is None:
        return ""
    return "; jaxmlip.bind(potential, system) anew if a cell or a slab has outgrown its plan"


def raise_if_broken(progress, n_atoms: int, potential=None) -> None:
    """`NumericalError`, naming the atoms, after an energy or force that is not finite."""
    if progress.finite:
        return
    atoms = np.flatnonzero(np.asarray(progress.broken)[:n_atoms])
    what = f"the forces on atoms {atoms[:10].tolist()}" if len(atoms) else "the energy"
    raise NumericalError(
        f"{what} {'are' if len(atoms) else 'is'} not finite",
        fix="look for atoms on top of each other or elements the model does not know"
        + outgrown(potential),
        where=f"relax, step {int(progress.n_steps)}",
    )
