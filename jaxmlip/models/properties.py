"""Further scalar properties of a structure or its atoms, read from the features of a potential.

Readouts of the invariant features (the even scalars of all layers) beside those that a potential
was trained with: a table by element plus a linear map or a small network. They are entries of the
model card, so a file with them is loaded like any other and predicts them under their names:

    "properties": {"gap": {"of": "structure", "extensive": false, "widths": [], "unit": "eV"}}

of: structure or atom; extensive: the sum over the atoms of a structure, else their mean.
"""

from math import sqrt

import jax
import jax.numpy as jnp

from jaxmlip.errors import ModelError, did_you_mean
from jaxmlip.nn.linear import of_species, species_index
from jaxmlip.nn.readout import one_or_nan
from jaxmlip.potential import PER_ATOM, PER_STRUCTURE, Potential
from jaxmlip.system import sum_atoms

KEYS = {"of": "structure", "extensive": False, "widths": [], "unit": "", "fit": None}
OF = ("structure", "atom")


def add_properties(model, entries: dict) -> Potential:
    """The potential of an architecture (a module) that also predicts the properties of a card.

    Params are those of the module and params["properties"][name] (`property_params`). A property is
    [n_graphs] or [n_atoms]; NaN in structures with elements that the model does not know.
    Raises `ModelError` for an entry that is not understood or whose name is taken.
    """
    for name, entry in entries.items():
        check_entry(name, entry)

    def init(key, system):
        params = dict(model.init(key, system))
        width = _n_scalars(model, system)
        new = lambda entry: property_params(key, entry, width, len(model.elements))
        return {**params, "properties": {name: new(entry) for name, entry in entries.items()}}

    def apply(params, system):
        out, layers = predicted_with_scalars(model, params, system)
        scalars = jnp.concatenate(layers, -1)
        species, known = species_index(system.numbers, model.elements)
        scalars = scalars * one_or_nan(system, known)[:, None]
        read = lambda name, e: _read(e, params["properties"][name], scalars, species, system)
        return out | {name: read(name, entry) for name, entry in entries.items()}

    plan = getattr(model, "plan", None)
    again = None if plan is None else lambda system: add_properties(plan(system), entries)
    return Potential(init, apply, model.cutoff, again)


def predicted_with_scalars(model, params, system):
    """(prediction, [scalars of each layer, [n_atoms, channels]]) of an architecture.

    Raises `ModelError` for an architecture without features.
    """
    out, kept = model.apply({"params": params["params"]}, system, mutable=["intermediates"])
    return dict(out), _scalars(model, kept)


def _scalars(model, kept):
    layers = kept.get("intermediates", {}).get("scalars")
    if not layers:
        raise ModelError(
            f"{type(model).__name__} has no features that a property could be read from",
            code="JM509",
        )
    return layers


def property_params(key, entry: dict, n_scalars: int, n_elements: int) -> dict:
    """Params of one property: nothing yet but the random hidden layers of a network."""
    sizes = [n_scalars, *entry.get("widths", [])]
    keys = jax.random.split(key, len(sizes))
    params = {"element": jnp.zeros(n_elements), "out": jnp.zeros(sizes[-1])}
    for i, (k, n_in, n_out) in enumerate(zip(keys, sizes[:-1], sizes[1:], strict=False)):
        params[f"layer_{i}"] = jax.random.normal(k, (n_in, n_out)) / sqrt(n_in)
        params[f"bias_{i}"] = jnp.zeros(n_out)
    return params


def check_entry(name: str, entry: dict) -> None:
    """Raises `ModelError` for a name that is taken, or an entry that is not understood."""
    for key in entry:
        if key not in KEYS:
            raise ModelError(
                f"property '{name}' has no '{key}'.{did_you_mean(key, KEYS)}",
                fix=f"one of {', '.join(KEYS)}",
                code="JM509",
            )
    if entry.get("of", "structure") not in OF:
        raise ModelError(
            f"property '{name}' is of '{entry['of']}', must be of structure or atom", code="JM509"
        )
    if name in {"energy", "energies", "forces", "stress", "hessian"}:
        raise ModelError(f"'{name}' is what a potential itself gives", code="JM509")
    shape = PER_ATOM.get(name, PER_STRUCTURE.get(name, ()))
    if shape or (name in PER_ATOM) != (entry.get("of") == "atom") and name in PER_ATOM:
        raise ModelError(f"'{name}' is known, and is not such a scalar", code="JM509")


def _n_scalars(model, system):
    """From `init`, which needs no plan of long-range features."""
    kept = jax.eval_shape(lambda: model.init(jax.random.key(0), system, mutable=True))
    return sum(x.shape[-1] for x in _scalars(model, kept))


def _read(entry, weights, x, species, system):
    for i in range(len(entry.get("widths", []))):
        x = jax.nn.silu(x @ weights[f"layer_{i}"].astype(x.dtype) + weights[f"bias_{i}"])
    own = of_species(jnp.asarray(weights["element"], x.dtype), species)
    value = jnp.where(system.atom_mask, x @ weights["out"].astype(x.dtype) + own, 0)
    if entry.get("of") == "atom":
        return value
    total = sum_atoms(system, value)
    if entry.get("extensive"):
        return total
    return total / jnp.maximum(sum_atoms(system, jnp.ones_like(value)), 1)
