"""Born charges and eps_inf of a model, and whether its D(q) holds the field of their waves."""

import numpy as np

from jaxmlip.cli import session
from jaxmlip.cli.crystal import waves
from jaxmlip.cli.output import note, task
from jaxmlip.derivatives.response.images import point_charges
from jaxmlip.errors import NumericalError, UsageError

IN_MODEL = "in the dynamical matrices of the model"  # where the splitting of LO and TO is
NEAR = 1e-4  # of the reciprocal cell; D of a model without long range changes little over it
JUMP = 1e-5  # of max |D|; what is even and analytic changes by NEAR²
NAC_WIDTH = 12.0  # Å, of the supercell beyond which a model's dipoles are those of BORN


def own_response(system, model, *, where="phonons"):
    """(Born charges [n, 3, 3] e, eps_inf [3, 3]) of the model; `NumericalError` if not finite."""
    import jax

    from jaxmlip import derivatives

    born = derivatives.born_charges(model.potential.apply)
    eps = derivatives.dielectric(model.potential.apply)
    with task("Born charges and the dielectric tensor"):
        if point_charges(model.potential.apply, model.params, system):
            charges, tensor = _charges(born, model, system), jax.jit(eps)(model.params, system)
        else:
            both = jax.jit(lambda params, system: (born(params, system), eps(params, system)))
            charges, tensor = both(model.params, system)
    charges, eps = np.asarray(charges, np.float64), np.asarray(tensor[0], np.float64)
    if not (np.isfinite(charges).all() and np.isfinite(eps).all() and np.trace(eps) > 0):
        raise NumericalError(
            "a Born charge or the dielectric tensor of the model is not finite",
            where=where,
            code="JM303",
            fix="--no-nac leaves the non-analytic term out",
        )
    return charges, eps


def _charges(born, model, system):
    try:
        return born(model.params, system)
    except UsageError as error:
        fix = "--no-nac leaves the non-analytic term out"
        raise UsageError(error.what, where="Born charges", code=error.code, fix=fix) from error


def beyond(atoms, polar):
    """The non-analytic part of D(q) that `polar` adds to that of a model without long range."""
    from jaxmlip.vibrations.phonons.dispersion import crystal
    from jaxmlip.vibrations.phonons.nonanalytic import beyond_supercell, dipole_sum

    return beyond_supercell(dipole_sum(without_forces(atoms), polar), crystal(atoms), NAC_WIDTH)


def without_forces(atoms):
    """The crystal as `ForceConstants` that are all zero."""
    from jaxmlip.vibrations.phonons.dispersion import crystal
    from jaxmlip.vibrations.phonons.interpolation import FourierSum, in_supercell

    n = 3 * len(atoms)
    nothing = FourierSum(lattice=np.zeros((1, 3), int), blocks=np.zeros((1, n, n)))
    return in_supercell(crystal(atoms), atoms.numbers, nothing, (1, 1, 1))


def in_matrices(system, model, atoms, *, charges, eps, D=None) -> bool:
    """Whether D(q) of the model has the splitting by these charges and eps_inf already.

    Measured, where anything reaches beyond the cutoff; else D(q) is analytic at Gamma.
    """
    from jaxmlip.interfaces.phonons.phonopy_files import Polar
    from jaxmlip.vibrations.phonons.nonanalytic import dipole_sum
    from jaxmlip.vibrations.phonons.velocities import model_matrices

    if not waves.reaches_far(model.card):
        return False
    if D is None:
        D = model_matrices(model.potential.apply, model.params, system)
    polar = Polar(born_charges=charges, dielectric=eps)
    return has_jump(D, dipole_sum(without_forces(atoms), polar))


def has_jump(D, dipoles) -> bool:
    """Whether D(q) next to Gamma is off from D(0) by most of what the dipoles would add there.

    Along that of the three reciprocal vectors where they add most: charges that are zero along one
    direction make no field of waves along it.
    """
    origin, near = np.zeros((1, 3)), NEAR * np.eye(3)
    terms = [dipoles(origin, q) - dipoles(origin) for q in near]
    sizes = [float((np.abs(term) ** 2).sum()) for term in terms]
    most = int(np.argmax(sizes))
    jump = D(near[most : most + 1]) - D(origin)
    return float((terms[most].conj() * jump).real.sum()) > 0.5 * sizes[most] > 0


def split_by_model() -> None:
    note("longitudinal and transverse modes split by the model's own Born charges and eps_inf")


def predicted(model) -> bool:
    """Whether the model has Born charges and eps_inf."""
    return session.predicts(model.card, "polarizability")


def step_off_gamma(D, card: dict) -> float | None:
    """How far from Gamma D(q) of a model that jumps there has its limit, else None."""
    tolerance = tolerance_of_sums(card)
    if not tolerance:
        return None
    origin = D(np.zeros((1, 3))).real
    even = D(NEAR * np.eye(3)).real  # the odd part is of phases, in the gauge of lattice vectors
    if np.abs(even - origin).max() < max(JUMP, tolerance) * np.abs(origin).max():
        return None
    note("at Γ, modes at the end of a line are those of waves along it: the model's own field")
    return NEAR


def tolerance_of_sums(card: dict) -> float:
    """Relative, of the long-range sums of a model; 0 if it has none."""
    from jaxmlip.models.checkpoint import build

    sums = [card[k] for k in ("electrostatics", "dispersion") if card.get(k)]
    model = build(card)
    own = [model.tolerance] if hasattr(model, "solver") else []
    return max([*(s.get("tolerance", 1e-4) for s in sums), *own], default=0.0)  # 1e-4: of meshes
