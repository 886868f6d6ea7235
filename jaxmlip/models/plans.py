"""The long-range terms of a model card, and the plans that they need before they can be applied.

    "electrostatics": {"method": "ewald", "tolerance": 1e-5, "cutoff": 6.0}
    "dispersion": {"tolerance": 1e-4}

method: ewald, pme, p3m or coulomb (molecules; needs no plan); cutoff, Å: of its edges, if not
the model's. "dipoles", e Å: how long the atomic dipoles are that a mesh is planned for; without it
`DIPOLES` if the model predicts any, else none. With "equilibration": {"widths": {"11": 1.0,
"17": 1.2}, "tolerance": 1e-10, ...} the model's electronegativities and hardnesses decide the
charges (all options of `electrostatics.equilibration`); else the model predicts them. Dispersion is
the tail beyond the cutoff of -c c / r^6 with the model's coefficients. In the configuration of a
training run these are entries of `card`.
"""

import jax

from jaxmlip import electrostatics
from jaxmlip.electrostatics.coulomb import most_atoms
from jaxmlip.electrostatics.equilibration import equilibration
from jaxmlip.errors import ModelError, did_you_mean
from jaxmlip.potential import (
    Potential,
    add_dispersion,
    add_electrostatics,
    add_equilibration,
    bind,
    planned_later,
)

KEYS = ("method", "tolerance", "cutoff", "dipoles", "equilibration")
MESHES = ("pme", "p3m")
METHODS = ("ewald", *MESHES, "coulomb")
OPTIONS = ("widths", "tolerance", "steps", "direct")
DIPOLES = 0.5  # e Å, beside charges of one e, as those that planning guesses from the elements are


def add_long_range(potential, card: dict) -> Potential:
    """The potential with the terms of a card; to be bound where they need a plan.

    Raises `ModelError` JM531 for a method or an option that is not known.
    """
    if card.get("electrostatics"):
        potential = _add_electrostatics(potential, card["electrostatics"])
    if card.get("dispersion"):
        potential = _add_dispersion(potential, card["dispersion"])
    return potential


def _add_dispersion(potential, entry):
    _check(entry, ("tolerance", "cutoff"))
    cutoff = float(entry.get("cutoff", potential.cutoff))

    def plan(system):
        tail = electrostatics.inverse_power(system, cutoff, 6, **_tolerance(entry), exclude=cutoff)
        return add_dispersion(bind(potential, system), tail)

    return planned_later(plan, potential.init, max(potential.cutoff, cutoff))


def _add_electrostatics(potential, entry):
    _check(entry, KEYS)
    _check(entry.get("equilibration") or {}, OPTIONS)
    _check([entry.get("method")], METHODS)
    with_solver = _with_solver(entry)
    if entry["method"] == "coulomb":
        return _coulomb(potential, with_solver)
    cutoff = float(entry.get("cutoff", potential.cutoff))

    def plan(system):
        bound, options = bind(potential, system), _tolerance(entry)
        if entry["method"] in MESHES:
            options["dipoles"] = _size_of_dipoles(entry, bound, system)
        return with_solver(bound, _method(entry["method"])(system, cutoff, **options))

    return planned_later(plan, potential.init, max(potential.cutoff, cutoff))


def _size_of_dipoles(entry, potential, system) -> float:
    """e Å, of the card, or `DIPOLES` where the potential predicts atomic dipoles, else 0."""
    if "dipoles" in entry:
        size = float(entry["dipoles"])
        if not 0 <= size < float("inf"):
            raise ModelError(f"the card plans for dipoles of {size} e Å", where="bind")
        return size
    one = system[0] if isinstance(system, list | tuple) else system
    predict = lambda s: potential.apply(potential.init(jax.random.key(0), s), s)
    return DIPOLES if "atomic_dipoles" in jax.eval_shape(predict, one) else 0.0


def _coulomb(potential, with_solver):
    """Ready as it is; bound, batches of small molecules need less memory."""

    def plan(system):
        solver = electrostatics.coulomb(largest(system))
        return with_solver(bind(potential, system), solver)._replace(plan=plan)

    return with_solver(potential, electrostatics.coulomb())._replace(plan=plan)


def largest(system):
    """The batch with the largest structure, of one or of a list."""
    return max(system, key=most_atoms) if isinstance(system, list | tuple) else system


def _tolerance(entry):
    return {"tolerance": float(entry["tolerance"])} if "tolerance" in entry else {}


def _method(name):
    if name == "ewald":
        return electrostatics.ewald
    from jaxmlip.electrostatics import mesh

    return getattr(mesh, name)


def _with_solver(entry):
    """(potential, solver) -> potential."""
    if entry.get("equilibration") is None:
        return add_electrostatics
    options = dict(entry["equilibration"])
    if options.get("widths"):
        options["widths"] = {int(z): float(w) for z, w in options["widths"].items()}
    return lambda potential, solver: add_equilibration(potential, equilibration(solver, **options))


def _check(names, known):
    for name in names:
        if name not in known:
            raise ModelError(
                f"the card's long-range term has an unknown '{name}'.{did_you_mean(name, known)}",
                where="model card",
                fix=f"one of {', '.join(known)}",
                code="JM531",
            )
