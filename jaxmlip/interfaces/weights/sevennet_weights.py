"""The weights of a SevenNet checkpoint in the layout of `models.NequIP`.

Differences go into the weights, without approximation: the basis has 2/rc, edges point at the
sender, radial weights of versions before 0.11 come sender by sender, couplings may have another
sign, elements have an order of their own, and the data set is a further scalar, which acts as bias.
"""

import re
from dataclasses import dataclass
from itertools import pairwise
from math import pi, prod, sqrt

import numpy as np

from jaxmlip.errors import ModelError
from jaxmlip.nn.clebsch_gordan import clebsch_gordan
from jaxmlip.nn.linear import name_of
from jaxmlip.nn.tensor_product import natural, order

WITHOUT_CONTENT = re.compile(r"output_mask$|_w3j_\d|(gate\.mul|convolution\.convolution)\.weight$")
TABLES = "_compiled_main_left_right"


@dataclass(frozen=True)
class Source:
    """A checkpoint, as far as it is understood."""

    settings: dict
    state: dict  # arrays by today's names; what has been used is removed
    fields: dict  # of `models.NequIP`
    places: list  # of our elements among theirs
    by_sender: bool  # order of the radial weights
    n_sets: int  # data sets of a model of several, else 0
    chosen: int  # which one


def convert(source: Source) -> tuple[dict, dict]:
    """(card, params). Raises `ModelError` if weights are missing, left over or of another shape."""
    fields, state = source.fields, source.state
    fields["avg_num_neighbors"] = float(state["0_convolution.denominator"][0]) ** 2
    count, before = fields["n_radial"], {(0, 1): fields["embedding_channels"]}
    frequencies = _take(state, "edge_embedding.basis_function.coeffs", (count,))
    params = {"frequencies": frequencies * np.float32(fields["cutoff"] / pi)}
    params["embedding"] = _embedding(source, before)
    for i in range(fields["n_layers"]):
        theirs = _couplings(source, i, before)
        out = _with_gates(fields, {target for *_, target in theirs})
        params |= _layer(source, i, before, theirs, out)
        before = {key: fields["channels"][key[0]] for key in out}
    readout, card = _readout(source, before)
    _nothing_left(state)
    return card, {"params": params | readout}


def _take(state, name, shape):
    if name not in state:
        raise ModelError(f"the weights {name} are missing")
    array = state.pop(name)
    if array.size != prod(shape) or array.dtype.kind != "f":
        raise ModelError(f"{name} is {array.dtype} {array.shape}, expected {tuple(shape)}")
    return array.reshape(shape)


def _embedding(source, out):
    n, places = len(source.places), source.places
    linear = _linear(source, "onehot_to_feature_x", {(0, 1): n}, out, "use_modal_node_embedding")
    bias = linear.get("bias", np.zeros(1, np.float32)) * np.float32(sqrt(n))
    return {"weight": linear["0e"][places] + bias}


def _couplings(source, i, before) -> list:
    """All of their paths (sender, l, target), in the order of their radial weights."""
    fields, last = source.fields, i == source.fields["n_layers"] - 1
    highest = 0 if last else len(fields["channels"]) - 1
    parity = -1 if fields["reflections"] else 1
    found = [
        ((l1, p), l, (l3, p * parity**l))
        for l1, p in before
        for l in range(fields["l_max"] + 1)
        for l3 in range(abs(l1 - l), min(l1 + l, highest) + 1)
        if not last or p * parity**l == 1
    ]
    return found if source.by_sender else sorted(found, key=lambda path: order(path[2]))


def _with_gates(fields, targets) -> dict:
    """{key: channels} before the gate; other targets are computed there, but not used."""
    natural_only = fields["reflections"] and not fields["parity"]
    kept = [key for key in targets if not natural_only or key in natural(key[0])]
    out = {key: fields["channels"][key[0]] for key in sorted(kept, key=order)}
    out[0, 1] += sum(n for (l, _), n in out.items() if l)
    return out


def _layer(source, i, before, theirs, out) -> dict:
    denominator = _take(source.state, f"{i}_convolution.denominator", (1,))
    ratio = np.float32(sqrt(source.fields["avg_num_neighbors"])) / denominator
    messages = {}
    for sender, _, target in theirs:
        messages[target] = messages.get(target, 0) + before[sender]
    intro, outro = "use_modal_self_inter_intro", "use_modal_self_inter_outro"
    message = _linear(source, f"{i}_self_interaction_2", messages, out, outro)
    weights = {k: w if k == "bias" else w * ratio for k, w in message.items()}
    return {
        f"up_{i}": _linear(source, f"{i}_self_interaction_1", before, before, intro),
        f"radial_{i}": _radial(source, i, before, theirs, out),
        f"message_{i}": weights,
        f"skip_{i}": _skip(source, f"{i}_self_connection_intro", before, out),
    }


def _linear(source, name, before, out, flag=None) -> dict:
    """e3nn's Linear: one matrix for each key after the other; a data set is a further scalar."""
    shapes = {key: (before[key], out[key]) for key in sorted(before, key=order) if key in out}
    extra = source.n_sets if flag and source.settings.get(flag) else 0
    c, n = shapes.get((0, 1), (0, 0))
    total = sum(map(prod, shapes.values())) + extra * n
    flat = _take(source.state, f"{name}.linear.weight", (total,))
    blocks = np.split(flat, np.cumsum([prod(shape) for shape in shapes.values()]))
    weights = {name_of(k): b.reshape(s) for (k, s), b in zip(shapes.items(), blocks, strict=False)}
    bias = source.state.pop(f"{name}.linear.bias", np.zeros(0, np.float32))
    if source.fields["bias"] and n:
        weights["bias"] = bias if bias.size == n else np.zeros(n, np.float32)
        if extra:
            weights["0e"] = weights["0e"] * np.float32(sqrt(c / (c + extra)))
            own = blocks[-1].reshape(extra, n)[source.chosen]
            weights["bias"] = weights["bias"] + own / np.float32(sqrt(c + extra))
    elif bias.size:
        raise ModelError(f"{name} has a bias that the settings do not name")
    return weights


def _skip(source, name, before, out) -> dict:
    if not source.fields["species_skip"]:
        return {k: w for k, w in _linear(source, name, before, out).items() if k != "bias"}
    n, keys = len(source.places), [key for key in sorted(before, key=order) if key in out]
    shapes = [(before[key], n, out[key]) for key in keys]
    total = sum(map(prod, shapes))
    flat = _take(source.state, f"{name}.fc_tensor_product.weight", (total,))
    blocks = np.split(flat, np.cumsum([prod(shape) for shape in shapes]))
    ours = lambda block, shape: block.reshape(shape).swapaxes(0, 1)[source.places]
    return {name_of(k): ours(b, s) for k, b, s in zip(keys, blocks, shapes, strict=False)}


def _radial(source, i, before, theirs, out) -> dict:
    """The columns of our paths, in our order, with the signs of edges and couplings."""
    fields, place = source.fields, {}
    stop = np.cumsum([before[sender] for sender, _, _ in theirs])
    for path, end in zip(theirs, stop, strict=True):
        place[path] = np.arange(end - before[path[0]], end)
    ours = sorted(
        (path for path in theirs if path[2] in out),
        key=lambda path: (order(path[2]), order(path[0]), path[1]),
    )
    widths = [fields["n_radial"], *fields["radial_widths"], int(stop[-1])]
    name = f"{i}_convolution.weight_nn.layer"
    layers = [_take(source.state, f"{name}{j}.weight", s) for j, s in enumerate(pairwise(widths))]
    layers[0] = layers[0] * np.float32(sqrt(2 / fields["cutoff"]))
    signs = [_sign(source, i, path) for path in ours]
    layers[-1] = np.concatenate(
        [layers[-1][:, place[path]] * s for path, s in zip(ours, signs, strict=True)], 1
    )
    return {f"layer_{j}": w for j, w in enumerate(layers)}


def _sign(source, i, path):
    """(-1)^l, and the sign of the coupling that the file contains against ours."""
    (l1, _), l, (l3, _) = path
    table = source.state.get(f"{i}_convolution.convolution.{TABLES}._w3j_{l1}_{l}_{l3}")
    if table is None:
        return np.float32((-1) ** l)
    overlap = float((table * clebsch_gordan(l1, l, l3)).sum())
    if abs(abs(overlap) - 1) > 1e-4:
        raise ModelError(f"the coupling of degrees {l1}, {l}, {l3} is not that of angular momenta")
    return np.float32((-1) ** l * np.sign(overlap))


def _readout(source, before):
    """(params, card): shifts are energies of the elements, which the card keeps in float64."""
    fields, width = source.fields, {(0, 1): source.fields["output_channels"]}
    hidden = _linear(source, "reduce_input_to_hidden", before, width, "use_modal_output_block")
    energy = _linear(source, "reduce_hidden_to_energy", width, {(0, 1): 1})
    scale = _by_element(source, "rescale_atomic_energy.scale")
    shift = _by_element(source, "rescale_atomic_energy.shift")
    shift = shift + scale * energy.get("bias", 0.0)
    fields["scale"] = float(scale[0]) if len(set(scale)) == 1 else scale.tolist()
    references = {z: float(e) for z, e in zip(fields["elements"], shift, strict=True)}
    card = {"architecture": "NequIP", "fields": fields, "reference_energies": references}
    return {"hidden": hidden, "energy": {"out": energy["0e"]}}, card


def _by_element(source, name):
    """A number for each of our elements, float64, of the chosen data set."""
    n, array = len(source.places), source.state.pop(name).astype(np.float64)
    if array.ndim == 2 and len(array) == source.n_sets:
        array = array[source.chosen]
    if array.shape not in ((1,), (n,)):
        raise ModelError(f"{name} has shape {array.shape} for {n} elements")
    return np.broadcast_to(array, n)[source.places]


def _nothing_left(state):
    left = sorted(name for name, x in state.items() if x.size and not WITHOUT_CONTENT.search(name))
    if left:
        names = ", ".join(left[:3])
        raise ModelError(f"{len(left)} weights belong to parts that are not here: {names} ...")
