"""Parameters by name: a flat dict {"params/energy_0/out": array}, and which of them read out.

Model files, imports and all that picks leaves speak of them by these names.
"""

import re

from flax.traverse_util import flatten_dict, unflatten_dict

# what the architectures call the maps from features to what is predicted; all else is backbone
READOUTS = re.compile(
    r"(state_)?energy(_\w+)?|hidden|charge_(?!spin)\w+|(dipole|isotropic|anisotropic)_\d+"
    r"|(electronegativity|dispersed)_\d+|hardness|dispersion|ratio_\w+"
)


def by_name(params) -> dict:
    """{"params/energy_0/out": leaf, ...} of nested params."""
    return flatten_dict(params, sep="/")


def nested(leaves: dict) -> dict:
    """Nested params of {"params/energy_0/out": leaf, ...}."""
    return unflatten_dict(leaves, sep="/")


def is_readout(name: str) -> bool:
    """Whether a leaf belongs to the last layers: those that read energies, charges ... out."""
    module = name.split("/")[1] if "/" in name else name
    return READOUTS.fullmatch(module) is not None
