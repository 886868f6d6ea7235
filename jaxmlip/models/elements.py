"""A potential for fewer elements: the same function of structures that have no others, and faster.

Universal potentials carry weights for 89 elements; a structure needs those of two or three. With
few, products with the weights of every species are cheap and the first layer of MACE is summed by
species (`nn.tensor_product.few_species`).
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
    if name not in FIELDS or len(wanted) == len(old):
        return card, params
    rows = [old.index(z) for z in wanted]
    fields = {**card["fields"], "elements": wanted}
    for field in FIELDS[name]:
        value = fields.get(field)
        if np.ndim(value) == 1 and len(value) == len(old):
            fields[field] = [value[i] for i in rows]
    kept = {key: _kept(key, np.asarray(x), rows, len(old)) for key, x in params.items()}
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
