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

from collections.abc import Mapping
from math import inf

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
LEAST = {"dipoles": 0.0, "steps": 1, "direct": 0}  # others: above zero
WHOLE = ("steps", "direct")
DIPOLES = 0.5  # e Å, beside charges of one e, as those that planning guesses from the elements are


def add_long_range(potential, card: dict) -> Potential:
    """The potential with the terms of a card; to be bound where they need a plan.

    Raises `ModelError` JM531 for a method or an option that is not known, and for values that are
    no numbers, or none that the option can have.
    """
    if card.get("electrostatics"):
        potential = _add_electrostatics(potential, _electrostatics(card["electrostatics"]))
    if card.get("dispersion"):
        entry = _numbers("dispersion", card["dispersion"], ("tolerance", "cutoff"))
        potential = _add_dispersion(potential, entry)
    return potential


def _add_dispersion(potential, entry):
    cutoff = entry.get("cutoff", potential.cutoff)

    def plan(system):
        tail = electrostatics.inverse_power(system, cutoff, 6, **_tolerance(entry), exclude=cutoff)
        return add_dispersion(bind(potential, system), tail)

    return planned_later(plan, potential.init, max(potential.cutoff, cutoff))


def _add_electrostatics(potential, entry):
    with_solver = _with_solver(entry)
    if entry["method"] == "coulomb":
        return _coulomb(potential, with_solver)
    cutoff = entry.get("cutoff", potential.cutoff)

    def plan(system):
        bound, options = bind(potential, system), _tolerance(entry)
        if entry["method"] in MESHES:
            options["dipoles"] = _size_of_dipoles(entry, bound, system)
        return with_solver(bound, _method(entry["method"])(system, cutoff, **options))

    return planned_later(plan, potential.init, max(potential.cutoff, cutoff))


def _size_of_dipoles(entry, potential, system) -> float:
    """e Å, of the card, or `DIPOLES` where the potential predicts atomic dipoles, else 0."""
    if "dipoles" in entry:
        return entry["dipoles"]
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
    return {"tolerance": entry["tolerance"]} if "tolerance" in entry else {}


def _method(name):
    if name == "ewald":
        return electrostatics.ewald
    from jaxmlip.electrostatics import mesh

    return getattr(mesh, name)


def _with_solver(entry):
    """(potential, solver) -> potential."""
    if entry.get("equilibration") is None:
        return add_electrostatics
    options = entry["equilibration"]
    return lambda potential, solver: add_equilibration(potential, equilibration(solver, **options))


# --- what a card says ----------------------------------------------------------------------------


def _electrostatics(entry) -> dict:
    """The entry with numbers as numbers; equilibration as the options of that function, or None."""
    _check("electrostatics", entry, KEYS)
    _check_one("electrostatics", entry.get("method"), METHODS)
    apart = {"method": entry["method"], "equilibration": None}
    rest = {k: v for k, v in entry.items() if k not in apart}
    if entry.get("equilibration") is not None:
        apart["equilibration"] = _equilibration(entry["equilibration"])
    return apart | _numbers("electrostatics", rest, KEYS)


def _equilibration(entry) -> dict:
    _check("equilibration", entry, OPTIONS)
    widths = entry.get("widths")
    options = _numbers("equilibration", {k: v for k, v in entry.items() if k != "widths"}, OPTIONS)
    return options | ({"widths": _widths(widths)} if widths else {})


def _widths(entry) -> dict:
    """{atomic number: Å}; the keys of JSON are strings."""
    _check("widths", entry)
    element = lambda z: _number("widths", "element", z, whole=True, least=1)
    return {element(z): _number("widths", z, width) for z, width in entry.items()}


def _numbers(term, entry, known) -> dict:
    _check(term, entry, known)
    return {k: _number(term, k, v, whole=k in WHOLE, least=LEAST.get(k)) for k, v in entry.items()}


def _number(term, name, value, *, whole=False, least=None):
    """A finite number, of text too, >= least, or > 0 where there is none; else JM531."""
    try:
        number = inf if isinstance(value, bool) else float(value)
    except (TypeError, ValueError):
        number = inf
    fits = number > 0 if least is None else number >= least
    if not (fits and number < inf and (not whole or number == int(number))):
        kind = "a whole number" if whole else "a number"
        limit = "above 0" if least is None else f"of at least {least:g}"
        raise _refusal(f"'{name}' of {term} is {value!r}", f"{kind} {limit}")
    return int(number) if whole else number


def _check(term, entry, known=None):
    if not isinstance(entry, Mapping):
        raise _refusal(f"'{term}' is {entry!r}", 'a table {"option": value}')
    for name in entry if known else ():
        _check_one(term, name, known)


def _check_one(term, name, known):
    if name not in known:
        what = f"{term} has an unknown '{name}'.{did_you_mean(name, known)}"
        raise _refusal(what, f"one of {', '.join(known)}")


def _refusal(what, fix):
    return ModelError(f"long-range term: {what}", where="model card", fix=fix, code="JM531")
