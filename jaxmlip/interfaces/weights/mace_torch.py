"""Weights of mace-torch models, exactly, in the `MACE` of this package: numpy in, numpy out.

The two parametrise the same functions. Linear maps differ in layout only. Many-body polynomials
are the exception: mace-torch has a weight for every coupling (they are linearly dependent once
the factors are interchanged), here there is one for every independent polynomial, so old weights
are projected on the new basis; the projection loses nothing, and this is checked.
"""

import re

import numpy as np

from jaxmlip.errors import ModelError
from jaxmlip.nn.linear import name_of
from jaxmlip.nn.symmetric_contraction import equivariant_polynomials, monomials, tensor_weights
from jaxmlip.nn.tensor_product import natural, paths

KNOWN_BLOCKS = ("RealAgnosticInteractionBlock", "RealAgnosticResidualInteractionBlock")
WITHOUT_CONTENT = re.compile(
    r".*(\.bias|output_mask|_zeroed|conv_tp\.weight|_w3j_[0-9_]+|prefactor|r_max|num_interactions)$"
)


def convert(state: dict, settings: dict) -> tuple[dict, dict]:
    """(card, params) of a (ScaleShift)MACE; `card` has architecture, fields, reference_energies.

    state: {name: array} of `model.state_dict()`; settings: what it does not tell, that is
    'avg_num_neighbors' (float), 'interactions' (class names of the blocks) and 'gate' ('silu').
    Raises `ModelError` for a model with parts that our MACE does not have.
    """
    state = {k: np.asarray(v) for k, v in state.items()}
    fields = _fields(state, settings)
    params, used = {}, set()

    def take(name):
        used.add(name)
        return state[name]

    _embedding(params, take, fields)
    for i in range(fields["n_layers"]):
        _interaction(params, take, fields, i)
        _product(params, take, fields, i)
        _readout(params, take, fields, i)
    card = {
        "architecture": "MACE",
        "fields": fields,
        "reference_energies": _reference_energies(take, fields),
    }
    _nothing_left(state, used)
    return card, {"params": params}


def _fields(state, settings):
    blocks = list(settings["interactions"])
    plain, residual = KNOWN_BLOCKS
    if len(blocks) < 2 or blocks[0] not in KNOWN_BLOCKS or set(blocks[1:]) != {residual}:
        raise ModelError(
            f"the interaction blocks {blocks} cannot be imported",
            where="mace_torch",
            fix=f"{plain} or {residual} first, then one or more {residual}",
        )
    if settings.get("gate", "silu") != "silu":
        raise ModelError(f"gate '{settings['gate']}' is not silu", where="mace_torch")
    product = "products.0.symmetric_contractions.contractions"
    count = lambda pattern: sum(bool(re.fullmatch(pattern, k)) for k in state)
    widths = [
        state[f"interactions.0.conv_tp_weights.layer{j}.weight"].shape[1]
        for j in range(count(r"interactions\.0\.conv_tp_weights\.layer\d+\.weight"))
    ]
    n_layers = len(blocks)
    return {
        "elements": [int(z) for z in state["atomic_numbers"]],
        "cutoff": float(state["r_max"]),
        "channels": int(state[f"{product}.0.weights_max"].shape[-1]),
        "hidden_l": count(re.escape(product) + r"\.\d+\.weights_max") - 1,
        "l_max": int(np.sqrt(state[f"{product}.0.U_matrix_1"].shape[-2])) - 1,
        "correlation": count(re.escape(product) + r"\.0\.weights\.\d+") + 1,
        "n_layers": n_layers,
        "n_radial": int(state["radial_embedding.bessel_fn.bessel_weights"].size),
        "envelope_p": int(state["radial_embedding.cutoff_fn.p"]),
        "radial_widths": widths[:-1],
        "readout_width": int(state[f"readouts.{n_layers - 1}.linear_2.weight"].size),
        "avg_num_neighbors": float(settings["avg_num_neighbors"]),
        "residual_first": blocks[0] == residual,
        "scale": float(state.get("scale_shift.scale", 1.0)),
        "shift": float(state.get("scale_shift.shift", 0.0)),
    }


def _embedding(params, take, fields):
    n = fields["n_radial"]
    expected = np.arange(1, n + 1) * np.pi / fields["cutoff"]
    bessel = take("radial_embedding.bessel_fn.bessel_weights").reshape(-1)
    if not np.allclose(bessel, expected, rtol=1e-6, atol=0):
        raise ModelError("the Bessel frequencies were trained", where="mace_torch")
    weight = take("node_embedding.linear.weight")
    params["embedding"] = {"weight": weight.reshape(len(fields["elements"]), fields["channels"])}
    for name in ("atomic_numbers", "radial_embedding.cutoff_fn.p"):
        take(name)


def _keys(fields, i):
    """Irreps of the features before layer i and after it."""
    before = natural(fields["hidden_l"] if i else 0)
    return before, natural(fields["hidden_l"] if i < fields["n_layers"] - 1 else 0)


def _interaction(params, take, fields, i):
    c, z, messages = fields["channels"], len(fields["elements"]), natural(fields["l_max"])
    before, after = _keys(fields, i)
    name = f"interactions.{i}"
    params[f"up_{i}"] = _square(take(f"{name}.linear_up.weight"), before, c)
    n = len(fields["radial_widths"]) + 1
    params[f"radial_{i}"] = {
        f"layer_{j}": take(f"{name}.conv_tp_weights.layer{j}.weight") for j in range(n)
    }
    targets = [target for _, _, target in paths(before, fields["l_max"], messages)]
    mixing = take(f"{name}.linear.weight").reshape(len(targets), c, c)
    params[f"message_{i}"] = {
        name_of(key): mixing[[t == key for t in targets]].reshape(-1, c) for key in messages
    }
    first = i == 0 and not fields["residual_first"]
    kept = messages if first else [key for key in before if key in after]
    skip = take(f"{name}.skip_tp.weight").reshape(-1, c, z, c)
    params[f"skip_{i}"] = {
        name_of(key): w.swapaxes(0, 1) for key, w in zip(kept, skip, strict=False)
    }


def _square(flat, keys, c):
    """e3nn's Linear: one c x c matrix after the other; those past `keys` feed nothing we read."""
    return {name_of(k): w for k, w in zip(keys, flat.reshape(-1, c, c), strict=False)}


def _product(params, take, fields, i):
    _, after = _keys(fields, i)
    params[f"product_{i}"] = {}
    for l, parity in after:
        name = f"products.{i}.symmetric_contractions.contractions.{l}"
        for degree in range(1, fields["correlation"] + 1):
            rank = fields["correlation"] - degree
            weight = take(f"{name}.weights_max" if rank == 0 else f"{name}.weights.{rank - 1}")
            couplings = take(f"{name}.U_matrix_{degree}")
            matrix = projection(couplings, fields["l_max"], degree, (l, parity))
            if len(matrix):
                key = f"l{l}_degree{degree}"
                params[f"product_{i}"][key] = np.einsum("rk,zkc->zrc", matrix, weight)
    params[f"linear_{i}"] = _square(take(f"products.{i}.linear.weight"), after, fields["channels"])


def projection(couplings, l_max: int, degree: int, key) -> np.ndarray:
    """[n_polynomials, n_couplings] from mace's U [(2l+1,) components .., n_couplings] to ours.

    Entries whose indices are permutations of one another belong to one monomial and add up.
    Raises `ModelError` if the couplings are not in the span of the basis.
    """
    places = monomials(l_max, degree)
    basis = equivariant_polynomials(l_max, degree).get(key, np.zeros((0, 1, len(places))))
    n, m = (l_max + 1) ** 2, 2 * key[0] + 1
    tensors = couplings.reshape(m, n**degree, -1)
    place = np.array([places[tuple(sorted(i))] for i in np.ndindex(*(n,) * degree)])
    polynomials = np.zeros((m, len(places), tensors.shape[-1]))
    np.add.at(polynomials, (slice(None), place), tensors)
    weight = tensor_weights(l_max, degree)
    out = np.einsum("rmq,q,mqk->rk", basis, weight, polynomials) / m
    lost = np.abs(np.einsum("rk,rmq->mqk", out, basis) - polynomials).max(initial=0.0)
    if lost > 1e-5 * max(np.abs(polynomials).max(initial=0.0), 1.0):
        raise ModelError(
            f"couplings of degree {degree} to l = {key[0]} are not polynomials of "
            f"the basis (remainder {lost:.1e})",
            where="mace_torch",
        )
    return out


def _readout(params, take, fields, i):
    if i < fields["n_layers"] - 1:
        params[f"energy_{i}"] = {"out": take(f"readouts.{i}.linear.weight").reshape(-1, 1)}
        return
    hidden, out = (take(f"readouts.{i}.linear_{j}.weight") for j in (1, 2))
    params[f"energy_{i}"] = {
        "hidden": hidden.reshape(fields["channels"], -1),
        "out": out.reshape(-1, 1),
    }


def _reference_energies(take, fields):
    energies = take("atomic_energies_fn.atomic_energies").reshape(-1)
    if len(energies) != len(fields["elements"]):
        raise ModelError(
            f"the model has {len(energies) // len(fields['elements'])} heads",
            where="mace_torch",
            fix="export one head (mace_select_head)",
        )
    return {z: float(e) for z, e in zip(fields["elements"], energies, strict=True)}


def _nothing_left(state, used):
    taken = used | {"scale_shift.scale", "scale_shift.shift"}
    left = sorted(
        k
        for k in state
        if k not in taken
        and "U_matrix" not in k
        and "contractions" not in k
        and not WITHOUT_CONTENT.match(k)
    )
    if left:
        raise ModelError(
            f"{len(left)} weights belong to parts that MACE here does not have: "
            f"{', '.join(left[:3])} ...",
            where="mace_torch",
        )
