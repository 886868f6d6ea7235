"""Several levels of theory in one potential: a shared backbone, readouts of its own for each.

Such a potential has params {"params": shared, "heads": readouts stacked along a first axis, the
head}, reference energies for each head, and no head that is used where none is named: choose one
with `choose_head`, or make an ordinary potential of it with `select_head`. The heads are one
program, in which the backbone is computed once.
"""

import jax
import jax.numpy as jnp
import numpy as np

from jaxmlip.errors import ModelError, did_you_mean
from jaxmlip.models.leaves import by_name, is_readout, nested
from jaxmlip.potential import PER_ATOM, Potential, _made
from jaxmlip.system import sum_energies

HEAD = "head"  # in params: which one, [] or [n_graphs]; in labels: that of each structure


def heads_potential(potential, names, *, references: dict | None = None) -> Potential:
    """The potential with a head for each name; params as `stack_heads` makes them.

    `apply` needs params["head"], an index or one for each structure [n_graphs] (`choose_head`),
    and raises `ModelError` without it. references: {name: {atomic number: eV}}, added to the
    energies of the head. Raises `ModelError` for names that are not two or more different ones.
    """
    names = list(names)
    if len(names) < 2 or len(set(names)) < len(names):
        raise ModelError(f"two or more heads of different names, got {names}", code="JM508")
    tables = [_table(references.get(name)) for name in names] if references else None

    def init(key, system):
        return stack_heads(potential.init(key, system), len(names))

    def apply(params, system):
        if HEAD not in params:
            raise ModelError(
                f"a potential of several heads ({', '.join(names)}), and none is chosen",
                code="JM508",
                fix="choose_head(params, card, name), or make a file of one with select_head",
            )
        each = _every_head(potential, params, system)
        out = {name: _picked(name, x, params[HEAD], system) for name, x in each.items()}
        return out if tables is None else out | _referenced(out, tables, params[HEAD], system)

    make = lambda p: heads_potential(p, names, references=references)
    return _made(make, [potential], init, apply, potential.cutoff)


def _every_head(potential, params, system):
    """The predictions of all heads, [n_heads, ...]."""
    shared = by_name({"params": params["params"]})

    def of_head(own):
        own = {f"params/{name}": x for name, x in by_name(own).items()}
        return potential.apply(nested({**shared, **own}), system)

    return jax.vmap(of_head)(params["heads"])


def _referenced(out, tables, head, system):
    """Energies plus those of the free atoms of the head of each structure."""
    atomic = jnp.asarray(np.array(tables))[:, system.numbers]
    atomic = _picked("energies", atomic, head, system)
    found = {"energy": out["energy"] + sum_energies(system, atomic)}
    if "energies" in out:
        found["energies"] = out["energies"] + atomic.astype(out["energies"].dtype)
    return found


def _picked(name, values, head, system):
    """Of values [n_heads, n, ...] those of the head of each atom or structure, [n, ...]."""
    head = jnp.asarray(head, jnp.int32)
    if head.ndim:
        head = head[system.graph] if name in PER_ATOM else head
        head = head.reshape(-1, *(1,) * (values.ndim - 2))
    return jax.lax.select_n(jnp.broadcast_to(head, values.shape[1:]), *values)


def given(params, labels: dict):
    """Params with the heads of a batch, the label "head" [n_graphs]; NaN (padding): the first."""
    if HEAD not in labels:
        return params
    return {**params, HEAD: jnp.nan_to_num(jnp.asarray(labels[HEAD])).astype(jnp.int32)}


def stack_heads(params, n: int):
    """Params of a potential with n heads, that all begin as the readouts of this one."""
    leaves = by_name(params)
    own = {name: x for name, x in leaves.items() if is_readout(name)}
    if not own:
        raise ModelError("the potential has no readouts of its own to make heads of", code="JM508")
    shared = {name: x for name, x in leaves.items() if name not in own}
    heads = {k.removeprefix("params/"): jnp.stack([jnp.asarray(x)] * n) for k, x in own.items()}
    return {**nested(shared), "heads": nested(heads)}


def choose_head(params, card: dict, head: str):
    """The params of several heads, with one of them chosen for all structures."""
    return {**params, HEAD: jnp.asarray(index_of(head, card["head_names"]), jnp.int32)}


def select_head(card: dict, params, head: str) -> tuple[dict, dict]:
    """(card, params) of the ordinary potential that one head is.

    Raises `ModelError` for an unknown head.
    """
    i = index_of(head, card.get("head_names") or ())
    own = {f"params/{name}": x[i] for name, x in by_name(params["heads"]).items()}
    references = (card.get("head_reference_energies") or {}).get(head) or {}
    left = ("head_names", "head_reference_energies", "format", "sha256", "card_sha256")
    card = {name: value for name, value in card.items() if name not in left}
    leaves = {**by_name({"params": params["params"]}), **own}
    return {**card, "reference_energies": references, "head": head}, nested(leaves)


def index_of(head: str, names, *, where: str = "") -> int:
    """Its place among the names. Raises `ModelError` for one that is not there."""
    if head not in names:
        raise ModelError(
            f"there is no head '{head}'.{did_you_mean(head, names)}",
            where=where,
            fix=f"one of {', '.join(names)}" if names else "a potential with heads",
            code="JM508",
        )
    return list(names).index(head)


def _table(references):
    """Energies by atomic number; NaN where none is known, never a silent zero."""
    table = np.full(120, np.nan)
    table[0] = 0.0
    for z, energy in (references or {}).items():
        table[int(z)] = energy
    return table
