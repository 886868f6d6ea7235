"""A model file may come from anyone: what its card and its arrays say is checked, not believed.

Values of the card have the types that the code expects and sizes that end in time; arrays are
finite floating point numbers with the names and shapes of the architecture. All is `ModelError`.
"""

from collections.abc import Mapping
from math import comb
from numbers import Integral, Real
from types import UnionType
from typing import Any, Union, get_args, get_origin

import numpy as np

from jaxmlip.errors import ModelError, did_you_mean
from jaxmlip.models import MACE, architectures
from jaxmlip.models.heads import HEAD
from jaxmlip.models.last_layer import ROOM
from jaxmlip.neighbors import LARGEST_CUTOFF

TABLES = (  # entries of a card that are tables, if they are there
    *("reference_energies", "head_reference_energies", "electrostatics", "dispersion"),
    *("properties", "uncertainty", "source", "heads", "origin_sha256"),
)
MOST = {  # of whole numbers in fields: what takes a while to build is no model
    **{"l_max": 8, "hidden_l": 8, "degrees": 8, "correlation": 12, "smoothness": 20},
    **{"n_layers": 100, "n_radial": 1000, "envelope_p": 1000},
}
MOST_OF_ALL = 10**6
MOST_MONOMIALS = 200_000  # of degree `correlation` in (l_max + 1)² components
LARGEST = 1e300  # of real numbers; NaN is not less
LONGEST = 1000  # entries of a field that is a list
FIX = "copy or download the file again; if it is whole, its author wrote no sound card"
OTHER = "copy or download the file again, or train it anew"
UNLISTED = ("parent", "name", "solver")  # fields of a module that are none of a card


def check_card(card: dict, where: str) -> None:
    """Raises `ModelError` JM505 unless every entry that is read has its type and makes sense."""
    name = card["architecture"]
    _is(isinstance(name, str), "architecture", name, "a name", where)
    _is(isinstance(card["fields"], dict), "fields", card["fields"], "a table", where)
    _is(is_cutoff(card["cutoff"]), "cutoff", card["cutoff"], A_CUTOFF, where)
    _is(are_elements(card["elements"]), "elements", card["elements"], ELEMENTS, where)
    for name in TABLES:
        fits = isinstance(card.get(name) or {}, dict)
        _is(fits, name, card.get(name), "a table", where)
    names, members = card.get("head_names") or [], card.get("members") or 2
    fits = isinstance(names, list) and all(isinstance(name, str) for name in names)
    _is(fits, "head_names", names, "a list of names", where)
    _is(_fits(members, int, 1000) and members > 1, "members", members, "a whole number > 1", where)
    each = card.get("head_reference_energies") or {}
    for table in (card.get("reference_energies"), *each.values()):
        _is(_are_energies(table), "reference energies", table, "{atomic number: eV}", where)


def check_fields(card: dict, where: str) -> None:
    """Raises `ModelError` for a field that the architecture lacks, or of another kind or size."""
    name, fields = card["architecture"], card["fields"]
    cls = known_architecture(name, where)
    check_names(cls, fields, where)
    _check_values(cls, fields, where)
    for part in ("short", "long"):
        if cls.__name__ == "DualCutoff" and part in fields:
            known = {k: v for k, v in fields[part].items() if k in MACE.__dataclass_fields__}
            _check_values(MACE, known, where)


def known_architecture(name, where: str = ""):
    """The class of an architecture; `ModelError` JM502 with the nearest known name."""
    known = architectures()
    if name not in known:
        raise ModelError(
            f"unknown architecture '{name}'.{did_you_mean(name, known)}",
            where=where,
            fix=f"one of {', '.join(known)}",
            code="JM502",
        )
    return known[name]


def check_names(cls, fields, where: str = "") -> None:
    """Raises `ModelError` JM503 for a field that the architecture does not have."""
    allowed = [name for name in cls.__dataclass_fields__ if name not in UNLISTED]
    for name in fields:
        if name not in allowed:
            raise ModelError(
                f"{cls.__name__} has no field '{name}'.{did_you_mean(name, allowed)}",
                where=where,
                fix=f"one of {', '.join(allowed)}",
                code="JM503",
            )


def check_arrays(arrays: dict, where: str) -> None:
    """Raises `ModelError` JM504 for arrays that hold no floating point numbers, or not finite.

    But for the number of a chosen head and the matrices of an uncertainty that nobody fitted yet.
    """
    of_state = lambda name: name == HEAD or name.startswith(f"{ROOM}/")
    arrays = {name: x for name, x in arrays.items() if not of_state(name)}
    wrong = [
        *(f"{k} holds {x.dtype}" for k, x in arrays.items() if x.dtype.kind != "f"),
        *(
            f"{k} is not finite"
            for k, x in arrays.items()
            if x.dtype.kind == "f" and not np.isfinite(x).all()
        ),
    ]
    if wrong:
        what = f"the weights are damaged: {some(wrong)}"
        raise ModelError(what, where=where, fix=OTHER, code="JM504")


def misfits(found: dict, wanted: dict) -> list[str]:
    """What is wrong with arrays {name: array} where `wanted` {name: shape} are expected."""
    shapes = {name: np.shape(x) for name, x in found.items()}
    return [
        *(f"{name} is missing" for name in wanted if name not in shapes),
        *(f"{name} has no place" for name in shapes if name not in wanted),
        *(
            f"{name} has shape {shape}, expected {wanted[name]}"
            for name, shape in shapes.items()
            if name in wanted and shape != wanted[name]
        ),
    ]


def some(wrong: list[str]) -> str:
    """The first three of a list of faults, and how many more there are."""
    return "; ".join(wrong[:3]) + (f" and {len(wrong) - 3} more" if len(wrong) > 3 else "")


# --- values --------------------------------------------------------------------------------------

NUMBERS = {str(z) for z in range(1, 119)}
ELEMENTS = "a list of different atomic numbers from 1 to 118"
A_CUTOFF = f"a length in Å between 0 and {LARGEST_CUTOFF:g}"


def is_cutoff(value) -> bool:
    """Whether a length that neighbours can be searched within."""
    return _fits(value, float) and 0 < value <= LARGEST_CUTOFF


def are_elements(value) -> bool:
    """Whether a list of different atomic numbers."""
    if not isinstance(value, list | tuple) or not value:
        return False
    whole = all(_fits(z, int) and 0 < z < 119 for z in value)
    return whole and len(set(value)) == len(value)


def _are_energies(table) -> bool:
    if not isinstance(table or {}, dict):
        return False
    return all(z in NUMBERS and _fits(energy, float) for z, energy in (table or {}).items())


def _check_values(cls, fields, where):
    for name, value in fields.items():
        field = f"field {name}"
        if name.endswith("cutoff"):
            _is(is_cutoff(value), field, value, A_CUTOFF, where)
        if name == "elements":
            _is(are_elements(value), field, value, ELEMENTS, where)
        kind, most = cls.__dataclass_fields__[name].type, MOST.get(name, MOST_OF_ALL)
        kind_name = kind.__name__ if isinstance(kind, type) else kind
        wanted = f"{kind_name}, finite and with whole numbers up to {most}"
        _is(_fits(value, kind, most), field, value, wanted, where)
    default = lambda name: getattr(cls, name, 0)
    l_max, degree = (fields.get(k, default(k)) for k in ("l_max", "correlation"))
    few = min(l_max, degree) <= 0 or comb((l_max + 1) ** 2 + degree - 1, degree) <= MOST_MONOMIALS
    _is(few, "correlation", degree, f"small enough for l = {l_max}", where)


def _fits(value, kind, most=MOST_OF_ALL) -> bool:
    """Whether a value of a card is of the kind that the annotation of a field says."""
    origin, inner = get_origin(kind), get_args(kind)
    if origin in (Union, UnionType):
        return any(_fits(value, k, most) for k in inner)
    if kind is tuple or origin is tuple:
        return isinstance(value, list | tuple) and _fit(value, inner, most)
    if kind is bool or isinstance(value, bool):
        return isinstance(value, bool) and kind in (bool, Any)
    if kind is int:
        return isinstance(value, Integral) and abs(value) <= most
    if kind is float:
        return isinstance(value, Real) and abs(value) < LARGEST
    return kind is Any or isinstance(value, Mapping if kind is dict else kind)


def _fit(values, kinds, most) -> bool:
    if not kinds:  # a table of anything: numbers, names, tables
        leaf = bool | int | float | str | tuple
        return all(_fits(v, leaf, most) for v in values)
    if kinds[-1] is Ellipsis:
        return len(values) <= LONGEST and all(_fits(v, kinds[0], most) for v in values)
    return len(values) == len(kinds) and all(
        _fits(v, k, most) for v, k in zip(values, kinds, strict=True)
    )


def _is(fits, name, value, wanted, where=""):
    if not fits:
        what = f"the model card is not sound: {name} is {value!r:.80}, not {wanted}"
        raise ModelError(what, where=where, code="JM505", fix=FIX)
