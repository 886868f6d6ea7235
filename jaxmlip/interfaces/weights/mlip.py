"""Archives of InstaDeep's mlip 0.2 (a zip of settings and params.npz), exactly, as our `MACE`.

Its MACE is the published architecture in other layouts: multiplicities run channels first, linear
maps are transposed, activations have e3nn-jax's gain, and the radial basis has a factor of its own.
Its many-body polynomials are products coupled from the left, one by one, all with a weight; they
are projected on our independent ones, which loses nothing, and this is checked. Archives of NequIP,
ViSNet and eSEN are refused.
"""

import io
import zipfile
from math import sqrt
from pathlib import Path

import numpy as np

from jaxmlip import json_text
from jaxmlip.errors import ModelError, UsageError
from jaxmlip.interfaces.weights.mace_torch import MAX_COUPLINGS
from jaxmlip.interfaces.weights.mace_torch_weights import projection
from jaxmlip.nn.clebsch_gordan import clebsch_gordan
from jaxmlip.nn.linear import name_of
from jaxmlip.nn.radial import SILU_GAIN
from jaxmlip.nn.tensor_product import natural, order, paths

E3NN_JAX_SILU_GAIN = 1.6765620560798837  # 1 / rms of silu on its 1 000 001 points, in float64
GAIN = E3NN_JAX_SILU_GAIN / SILU_GAIN
MAX_PRODUCTS = 2**25  # entries of all products of one degree, 256 MB
SETTINGS, WEIGHTS = "hyperparams.json", "params.npz"
LONGEST, LARGEST = 2**22, 2**31  # bytes of the settings, of the weights
ONLY = {  # what these settings have to be
    "include_pseudotensors": (False,),
    "activation": ("silu", "swish"),
    "radial_mlp_activation": ("silu", "swish"),
    "radial_envelope": ("polynomial_envelope",),
    "gate_nodes": (False,),
    "soft_normalization": (None,),
    "predict_partial_charges": (False,),
    "use_coulomb_term": (False,),
    "use_total_charge_embedding": (False,),
    "symmetric_contraction_backend": ("e3j",),
    "use_gaunt_tp_message_passing": (False,),
}
LIMITS = {"num_layers": 32, "num_channels": 4096, "l_max": 6, "correlation": 4, "num_rbf": 256}


def matches(path) -> bool:
    """Whether a file is a zip archive with the two members of mlip; never raises."""
    try:
        with zipfile.ZipFile(path) as archive:
            return {SETTINGS, WEIGHTS} <= set(archive.namelist())
    except Exception:
        return False


def read(path, head: str | None = None) -> tuple[dict, dict]:
    """(card, params) of an archive; head: number of the readout, 0 by default, as in mlip.

    Raises `ModelError` for everything but MACE with the options that ours has.
    """
    largest = min(LARGEST, 2**26 + 200 * Path(path).stat().st_size)
    with zipfile.ZipFile(path) as archive:
        settings = json_text.parse(_member(archive, SETTINGS, LONGEST))
        arrays = _arrays(_member(archive, WEIGHTS, largest), largest)
    return convert(settings, arrays, head=head)


def convert(settings: dict, arrays: dict, *, head: str | None = None) -> tuple[dict, dict]:
    """(card, params) of the content of an archive."""
    config, info = settings["config"], settings["dataset_info"]
    _check_kind(config, str(settings.get("version", "")))
    fields = _fields(config, info)
    weights = _Weights(arrays)
    params = {"embedding": {"weight": weights.take("embedding_block", "node_embedding_block")}}
    first = _prefactor(fields, info.get("avg_r_min_angstrom"))
    for i in range(fields["n_layers"]):
        params |= _layer(weights, fields, i, first)
        params |= _readout(weights, fields, i, _head(config, head))
    weights.check_nothing_left()
    energies = info["atomic_energies_map"]
    known = config.get("add_atomic_energies", True)
    card = {
        "architecture": "MACE",
        "fields": fields,
        "reference_energies": {int(z): float(e) if known else 0.0 for z, e in energies.items()},
        "source": {"version": f"mlip {settings.get('version')}"},
    }
    return card, {"params": params}


# --- the archive ---------------------------------------------------------------------------------


def _member(archive, name, limit) -> bytes:
    size = archive.getinfo(name).file_size
    if size > limit:
        raise ModelError(f"{name} has {size} bytes, more than {limit}", code="JM510")
    return archive.read(name)


def _arrays(data, limit) -> dict:
    with zipfile.ZipFile(io.BytesIO(data)) as inner:
        if sum(member.file_size for member in inner.infolist()) > limit:
            raise ModelError(f"{WEIGHTS} unpacks to more than {limit} bytes", code="JM510")
    with np.load(io.BytesIO(data), allow_pickle=False) as file:
        return {name: file[name] for name in file.files}


class _Weights:
    """Arrays by the end of their names, each to be taken once."""

    def __init__(self, arrays):
        self.left = {k.removeprefix("params#mlip_network#"): v for k, v in arrays.items() if v.size}

    def names(self, *parts):
        start = "#".join(parts)
        return sorted(k for k in self.left if k == start or k.startswith(start + "#"))

    def take(self, *parts):
        """The one array below this place."""
        names = self.names(*parts)
        if len(names) != 1:
            raise ModelError(
                f"{len(names)} arrays where there should be one ({'/'.join(parts)}): "
                "written by another version of mlip?",
                code="JM511",
            )
        return self.left.pop(names[0])

    def irreps(self, *parts) -> dict:
        """{key: array} of an equivariant linear map."""
        out = {}
        for name in self.names(*parts):
            _, l, p = name.rpartition("#")[2].split("_")
            out[int(l), int(p)] = self.left.pop(name)
        return out

    def drop(self, *parts):
        for name in self.names(*parts):
            del self.left[name]

    def check_nothing_left(self):
        if self.left:
            names = ", ".join(sorted(self.left)[:3])
            raise ModelError(f"weights without a place here: {names}", code="JM511")


# --- settings ------------------------------------------------------------------------------------


def _check_kind(config, version):
    if "correlation" not in config:
        raise ModelError("of mlip only MACE is imported, not NequIP, ViSNet or eSEN", code="JM511")
    if not version.startswith("0.2"):
        raise ModelError(f"written by mlip {version}; versions 0.2 are read", code="JM511")
    for name, allowed in ONLY.items():
        if config.get(name, allowed[0]) not in allowed:
            raise ModelError(f"{name} is {config[name]!r:.60}, not {allowed[0]}", code="JM511")
    limits = LIMITS | (
        {} if config["node_symmetry"] is None else {"node_symmetry": config["l_max"]}
    )
    for name, limit in limits.items():
        if not 0 <= config[name] <= limit or config[name] != int(config[name]):
            raise ModelError(f"{name} is {config[name]!r:.40}, not in 0 to {limit}", code="JM511")
    degree, l_max = config["correlation"], config["l_max"]
    if (l_max + 1) ** (2 * degree) > MAX_COUPLINGS:
        what = f"polynomials of degree {degree} in l = {l_max} are too many"
        raise ModelError(what, code="JM511")


def _fields(config, info) -> dict:
    energies, neighbors = info["atomic_energies_map"], float(info["avg_num_neighbors"])
    if not isinstance(energies, dict):
        raise ModelError("reference energies of several data sets", code="JM511")
    for name, value in (("avg_num_neighbors", neighbors), ("avg_r_min", None)):
        if config.get(name) not in (None, value):
            raise ModelError(f"{name} of settings and data differ", code="JM511")
    hidden, out = (str(r).strip() for r in config["readout_irreps"])
    width = hidden.removesuffix("x0e")
    if not width.isdigit() or out not in ("0e", "1x0e"):
        raise ModelError(f"readouts {hidden} and {out}: only scalars are known", code="JM511")
    hidden_l = config["node_symmetry"]
    return {
        "elements": sorted(int(z) for z in energies),
        "cutoff": float(info["graph_cutoff_angstrom"]),
        "channels": config["num_channels"],
        "hidden_l": config["l_max"] if hidden_l is None else hidden_l,
        "l_max": config["l_max"],
        "correlation": config["correlation"],
        "n_layers": config["num_layers"],
        "n_radial": config["num_rbf"],
        "envelope_p": 5,
        "radial_widths": [int(w) for w in config["radial_mlp_hidden"]],
        "readout_width": int(width),
        "avg_num_neighbors": neighbors,
        "residual_first": bool(config["residual_connection_first_layer"]),
        "scale": float(info.get("scaling_stdev", 1.0)),
        "shift": float(info.get("scaling_mean", 0.0)),
    }


def _head(config, head) -> int:
    n = config.get("num_readout_heads", 1)
    if head is None:
        return 0
    if not head.isdigit() or int(head) >= n:
        raise UsageError(f"there is no head '{head}'", where="--head", fix=f"0 to {n - 1}")
    return int(head)


def _prefactor(fields, r_min) -> float:
    """1 / rms of the radial basis between the smallest distance and the cutoff, in float32."""
    if r_min is None:
        return 1.0
    cutoff, p = np.float32(fields["cutoff"]), fields["envelope_p"]
    r = np.linspace(r_min, cutoff, 1000, dtype=np.float32)
    k = np.arange(1, fields["n_radial"] + 1, dtype=np.float32) * np.float32(np.pi)
    x = r / cutoff
    smooth = 1 - (p + 1) * (p + 2) / 2 * x**p + p * (p + 2) * x ** (p + 1)
    smooth = (smooth - p * (p + 1) / 2 * x ** (p + 2)) * (x < 1)
    basis = np.sqrt(2 / cutoff) * np.sin(k * x[:, None]) / r[:, None] * smooth[:, None]
    return float(np.mean(basis.astype(np.float64) ** 2) ** -0.5)


# --- weights -------------------------------------------------------------------------------------


def _layer(weights, fields, i, prefactor) -> dict:
    c, n, name = fields["channels"], len(fields["elements"]), f"layers_{i}"
    before = natural(fields["hidden_l"] if i else 0)
    after = natural(fields["hidden_l"] if i < fields["n_layers"] - 1 else 0)
    residual = bool(i) or fields["residual_first"]
    block = (name, "interaction_block")
    couplings = paths(before, fields["l_max"], natural(fields["l_max"]))
    out = {
        f"up_{i}": _transposed(weights.irreps(*block, "linear_in")),
        f"radial_{i}": _radial(weights, fields, block, couplings, prefactor),
        f"message_{i}": {
            name_of(key): _paths_first(w, c)
            for key, w in weights.irreps(*block, "linear_out").items()
        },
    }
    skip = weights.irreps(name, "residual_block" if residual else "linear_by_species_block")
    skip = _transposed({k: w * sqrt(n) for k, w in skip.items()})
    contraction = weights.irreps(name, "expansion_block", "symmetric_contraction")
    linear = weights.irreps(name, "expansion_block", "linear_block")
    return out | {
        f"skip_{i}": skip,
        f"product_{i}": _product(contraction, fields, after),
        f"linear_{i}": _transposed(linear),
    }


def _transposed(maps) -> dict:
    return {name_of(key): np.swapaxes(w, -1, -2) for key, w in maps.items()}


def _paths_first(w, c):
    """[out, (channel, path)] as [(path, channel), out]."""
    return w.T.reshape(c, -1, len(w)).swapaxes(0, 1).reshape(-1, len(w))


def _radial(weights, fields, block, couplings, prefactor) -> dict:
    """Gains, the factor of the basis and the signs of the couplings go into the weights."""
    layers = [
        weights.take(*block, "radial_mlp", f"layers_{j}")
        for j in range(len(fields["radial_widths"]) + 1)
    ]
    factors = [prefactor, *[GAIN] * (len(layers) - 1)]
    layers = [w * f for w, f in zip(layers, factors, strict=True)]
    signs = [_sign(sender[0], l, target[0]) for sender, l, target in couplings]
    layers[-1] = layers[-1] * np.repeat(signs, fields["channels"])
    return {f"layer_{j}": w for j, w in enumerate(layers)}


def _sign(l1, l2, l3) -> float:
    """Of their couplings, which name the result first, against ours."""
    theirs = np.moveaxis(clebsch_gordan(l3, l1, l2), 0, -1)
    return float(np.sign((theirs * clebsch_gordan(l1, l2, l3)).sum()))


def _product(contraction, fields, after) -> dict:
    """Weights of the independent polynomials from those of all coupled products."""
    l_max, correlation = fields["l_max"], fields["correlation"]
    powers = coupled_powers(l_max, correlation, after)
    out = {}
    for key in after:
        weight, start = contraction[key][:, :, 0], 0  # [species, channel, product]
        for degree, blocks in enumerate(powers, 1):
            tensors = blocks.get(key)
            n = 0 if tensors is None else len(tensors)
            if n:
                couplings = np.moveaxis(tensors, 0, -1)
                matrix = projection(couplings, l_max, degree, key)
                part = weight[..., start : start + n]
                if len(matrix):
                    name = f"l{key[0]}_degree{degree}"
                    out[name] = np.einsum("rk,zck->zrc", matrix, part)
            start += n
        if start != weight.shape[-1]:
            raise ModelError(
                f"{weight.shape[-1]} weights of products of degree l = {key[0]}, expected {start}",
                code="JM511",
            )
    return out


def coupled_powers(l_max: int, correlation: int, targets) -> list[dict]:
    """[{key: products [n, 2l+1, components ...]}] of 1, 2 ... factors, each coupled from the left.

    Only what can still become a target is kept, in the order: by degree (natural parity first),
    then by the product before, then by the last factor.
    """
    dim, keys = (l_max + 1) ** 2, natural(l_max)
    power = {key: np.eye(dim)[None, key[0] ** 2 : (key[0] + 1) ** 2] for key in keys}
    out = [power]
    for degree in range(2, correlation + 1):
        allowed, found = _reachable(keys, targets, correlation - degree), {}
        triples = [
            (first, second, (l3, first[1] * second[1]))
            for first in power
            for second in keys
            for l3 in range(abs(first[0] - second[0]), first[0] + second[0] + 1)
            if (l3, first[1] * second[1]) in allowed
        ]
        if dim**degree * sum(len(power[a]) * (2 * c[0] + 1) for a, _, c in triples) > MAX_PRODUCTS:
            what = f"polynomials of degree {correlation} in l = {l_max} are too many"
            raise ModelError(what, code="JM511")
        for first, (l2, _), target in triples:
            unit = np.eye(dim)[l2 * l2 : (l2 + 1) ** 2]
            table = clebsch_gordan(target[0], first[0], l2)
            product = np.einsum("mab,na...,bc->nm...c", table, power[first], unit)
            found.setdefault(target, []).append(product)
        power = {key: np.concatenate(found[key]) for key in sorted(found, key=order)}
        out.append(power)
    return out


def _reachable(keys, targets, steps) -> set:
    """Keys that can become a target with at most so many further factors."""
    reachable = frontier = set(targets)
    for _ in range(steps):
        frontier = {
            (l, p * ps)
            for l0, p in frontier
            for s, ps in keys
            for l in range(abs(l0 - s), l0 + s + 1)
        }
        reachable = reachable | frontier
    return reachable


def _readout(weights, fields, i, head) -> dict:
    name = f"layers_{i}", "readout_block", f"ReadoutBlock_{head}"
    layers = [
        weights.take(*name, f"Linear_{j}").T for j in range(1 + (i + 1 == fields["n_layers"]))
    ]
    weights.drop(f"layers_{i}", "readout_block")
    if len(layers) == 1:
        return {f"energy_{i}": {"out": layers[0]}}
    hidden, last = layers
    return {f"energy_{i}": {"hidden": hidden, "out": last * GAIN}}
