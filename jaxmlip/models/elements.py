"""A potential for fewer elements: the same function of structures that have no others.

Universal potentials carry weights for 89 elements; a structure needs those of two or three. With
few, products with the weights of every species are cheap and the first layer of MACE is summed by
species (`nn.tensor_product.few_species`), which is faster. NequIP has fewer weights to hold, but
the first of its layers is a small part of the whole: nequix-mp-1 takes the same time.
"""

import re
from math import sqrt

import numpy as np

from jaxmlip.errors import ModelError

# params whose first axis is the species: name, number of axes, divided by sqrt(n_species) in use
BY_SPECIES = (
    (re.compile(r"embedding/weight"), 2, True),
    (re.compile(r"skip_\d+/\w+"), 3, True),
    (re.compile(r"product_\d+/\w+"), 3, False),
    (re.compile(r"(radial|density)_\d+/(sender|receiver)"), 2, False),
    (re.compile(r"(hardness|dispersion)/table"), 1, False),
    (re.compile(r"properties/\w+/element"), 1, False),
)
# by element, if they are lists
MACE = ("covalent_radii", "formal_charges")
FIELDS = {"MACE": MACE, "LongRangeMACE": MACE, "NequIP": ("scale", "shift")}


def keep_elements(card: dict, params: dict, elements) -> tuple[dict, dict]:
    """(card, params) that know `elements` (atomic numbers) only, exact for what has only those.

    params: {name/of/leaf: array}. An architecture that has nothing to gain is returned as it is.
    Raises `ModelError` for an element that the potential does not know.
    """
    old, wanted = list(card["fields"]["elements"]), sorted({int(z) for z in elements})
    if not wanted:
        raise ModelError("a potential needs at least one element, got none", code="JM507")
    unknown = sorted(set(wanted) - set(old))
    if unknown:
        raise ModelError(f"the potential does not know the elements {unknown}", code="JM507")
    name = card["architecture"]
    if name not in FIELDS or len(wanted) == len(old) or card.get("head_names"):
        return card, params
    rows = [old.index(z) for z in wanted]
    fields = {**card["fields"], "elements": wanted}
    for field in FIELDS[name]:
        value = fields.get(field)
        if np.ndim(value) == 1 and len(value) == len(old):
            fields[field] = [value[i] for i in rows]
    one = lambda key, x: _kept(key, x, rows, len(old))
    each = lambda key, x: np.stack([one(key, member) for member in x])
    keep = each if card.get("members") else one
    kept = {key: keep(key, np.asarray(x)) for key, x in params.items()}
    references = card.get("reference_energies") or {}
    references = {z: e for z, e in references.items() if int(z) in wanted}
    return {**card, "fields": fields, "reference_energies": references, "elements": wanted}, kept


def _kept(key, x, rows, n_species):
    for pattern, n_axes, divided in BY_SPECIES:
        whole = pattern.fullmatch(key.removeprefix("params/"))
        if whole and x.ndim == n_axes and x.shape[0] == n_species:
            # float64: float32 weights times a root would lose half a digit
            return x[rows].astype(float) * (sqrt(len(rows) / n_species) if divided else 1.0)
    return x


def extend_elements(card: dict, params: dict, elements, *, like: dict | None = None, fields=None):
    """(card, params) that also know `elements` (atomic numbers), the inverse of `keep_elements`.

    params: {name/of/leaf: array}. A new element begins with the weights of like[element], an
    element that the potential knows, or with the mean over all of those. What has only elements
    known before is predicted as before, to rounding. fields: {field: {atomic number: value}} of
    what is by element in the card, such as covalent_radii; else those of the like element or the
    mean. Reference energies of new elements are not made up: until they are given, energies are
    NaN. Raises `ModelError` for an element that is not like a known one, or an architecture whose
    weights by species are not known here.
    """
    old, name = list(card["fields"]["elements"]), card["architecture"]
    new = sorted({int(z) for z in elements} - set(old))
    like = {int(z): int(model) for z, model in (like or {}).items()}
    if not new and not like:
        return card, params
    _check_extension(name, old, new, like)
    every = sorted(old + new)
    share = np.array([_shares(z, old, like) for z in every])  # of the old rows, [n_every, n_old]
    given, changed = fields or {}, {**card["fields"], "elements": every}
    for field in FIELDS[name]:
        value = changed.get(field)
        if np.ndim(value) == 1 and len(value) == len(old):
            found = dict(zip(every, (share @ np.asarray(value, float)).tolist(), strict=True))
            changed[field] = list((found | given.get(field, {})).values())
    agnostic = changed.get("species_product") is False
    extended = {
        key: x if agnostic and "product_" in key else _extended(key, np.asarray(x), share)
        for key, x in params.items()
    }
    return {**card, "fields": changed, "elements": every}, extended


def _check_extension(name, old, new, like):
    if name not in FIELDS:
        raise ModelError(
            f"elements can be added to {', '.join(FIELDS)}; this is {name}", code="JM507"
        )
    for z, model in like.items():
        if z not in new or model not in old:
            raise ModelError(
                f"element {z} was to be like {model}; to be added are {new}, known are {old}",
                code="JM507",
                fix="like: {new element: known element}",
            )


def _shares(z, old, like):
    """How much of each old row the row of element z is."""
    if z in old or z in like:
        return np.eye(len(old))[old.index(like.get(z, z))]
    return np.full(len(old), 1 / len(old))


def _extended(key, x, share):
    n_every, n_old = share.shape
    for pattern, n_axes, divided in BY_SPECIES:
        whole = pattern.fullmatch(key.removeprefix("params/"))
        if whole and x.ndim == n_axes and x.shape[0] == n_old:
            return np.tensordot(share, x.astype(float), 1) * (
                sqrt(n_every / n_old) if divided else 1.0
            )
    return x
