"""Nequix (.nqx): one line of JSON, then the weights as numpy arrays one after the other.

Koker et al. 2025, arXiv:2508.16067; written by equinox from e3nn-jax layers. Which arrays these are
follows from the settings in the first line, so each shape is known before an array is read. The
factors in which the codes differ (basis 2/rc, no gain in the radial network, another gain in the
gates, edges that point at the sender) go into the weights, without approximation.
"""

import re
from io import BytesIO
from itertools import pairwise
from math import prod, sqrt

import numpy as np
from numpy.lib import format as npy

from jaxmlip import json_text
from jaxmlip.errors import ModelError
from jaxmlip.nn.linear import name_of
from jaxmlip.nn.radial import SILU_GAIN
from jaxmlip.nn.tensor_product import natural, paths

E3NN_JAX_SILU_GAIN = 1.6765647703084872  # 1 / rms of silu on 1 000 001 quantiles of a unit normal
GAIN = E3NN_JAX_SILU_GAIN / SILU_GAIN  # of their features after a gate against ours
LONGEST = 2**20  # bytes of the first line; published models have some 5 000
LARGEST = {  # what a setting may be; a file that says more is damaged or hostile
    "n_layers": 64,
    "lmax": 12,
    "radial_basis_size": 1024,
    "radial_mlp_size": 8192,
    "radial_mlp_layers": 16,
    "radial_polynomial_p": 64,
}


def matches(path) -> bool:
    """Whether a file begins with the settings of a Nequix model; never raises."""
    try:
        with open(path, "rb") as file:
            return "hidden_irreps" in json_text.parse(file.readline(LONGEST))
    except Exception:
        return False


def read(path) -> tuple[dict, dict]:
    """(card, params) of a .nqx file. Raises `ModelError` if it is not whole or not like ours."""
    try:
        with open(path, "rb") as file:
            settings, data = json_text.parse(file.readline(LONGEST)), file.read()
        fields = _fields(settings)
        energies, *layers, readout = _arrays(data, _shapes(fields, settings))
    except ModelError as error:
        raise ModelError(error.what, where=str(path), fix=error.fix, code=error.code) from None
    except Exception as error:  # whatever the bytes of a stranger lead a parser to
        reason = f"{type(error).__name__}: {error}"[:200]
        raise ModelError(f"not a Nequix model ({reason})", where=str(path)) from error
    params = {
        "embedding": {"weight": _identity(len(fields["elements"]))},
        "hidden": {"0e": readout * np.float32(GAIN)},
        "energy": {"out": np.ones((1, 1), np.float32)},
    }
    layers = iter(layers)
    for i in range(fields["n_layers"]):
        params |= _layer(fields, i, layers)
    reference = {z: float(e) for z, e in zip(fields["elements"], energies, strict=True)}
    card = {"architecture": "NequIP", "fields": fields, "reference_energies": reference}
    return card, {"params": params}


def _fields(settings) -> dict:
    """Fields of `models.NequIP`, every number checked before it decides about memory."""
    number = {name: _whole(settings, name, limit) for name, limit in LARGEST.items()}
    elements = sorted(settings["atomic_numbers"])
    if not elements or elements != sorted({int(z) for z in elements} & set(range(1, 119))):
        raise ModelError("atomic numbers that are none, or that come twice")
    return {
        "elements": [int(z) for z in elements],
        "cutoff": _positive(settings, "cutoff"),
        "channels": _channels(settings["hidden_irreps"]),
        "l_max": number["lmax"],
        "parity": False,
        "n_layers": number["n_layers"],
        "n_radial": number["radial_basis_size"],
        "trainable_basis": False,
        "envelope_p": number["radial_polynomial_p"],
        "radial_widths": [number["radial_mlp_size"]] * number["radial_mlp_layers"],
        "embedding_channels": len(elements),
        "output_channels": 1,
        "avg_num_neighbors": _positive(settings, "avg_n_neighbors"),
        "scale": _finite(settings, "scale"),
        "shift": _finite(settings, "shift"),
        "species_skip": bool(settings["index_weights"]),
        "layer_norm": bool(settings["layer_norm"]),
    }


def _whole(settings, name, limit):
    value = settings[name]
    if value != int(value) or not 1 <= value <= limit:
        raise ModelError(f"{name} is {value!r:.40}, not a whole number from 1 to {limit}")
    return int(value)


def _positive(settings, name):
    value = _finite(settings, name)
    if value <= 0:
        raise ModelError(f"{name} is {value}, not a positive number")
    return value


def _finite(settings, name):
    value = float(settings[name])
    if not -1e9 < value < 1e9:
        raise ModelError(f"{name} is {value}, not a finite number")
    return value


def _channels(irreps: str) -> list:
    """Channels by degree of '128x0e + 64x1o ...'; only degrees 0, 1 ... with natural parities."""
    if irreps.count("+") > LARGEST["lmax"]:
        raise ModelError(f"features of more than {LARGEST['lmax']} degrees: {irreps[:40]!r}")
    terms = [re.fullmatch(r"(?:(\d{1,5})x)?(\d+[eo])", t.strip()) for t in irreps.split("+")]
    expected = [name_of(key) for key in natural(len(terms) - 1)]
    if None in terms or [t[2] for t in terms] != expected:
        raise ModelError(f"features {irreps!r:.100} are not {' + '.join(expected)} with channels")
    return [int(t[1] or 1) for t in terms]


# --- which arrays there are, in the order of the file ---------------------------------------------


def _keys(fields, i):
    """({key: channels} before layer i, the same after it, {key: channels} of its messages)."""
    hidden = dict(zip(natural(len(fields["channels"]) - 1), fields["channels"], strict=True))
    before = hidden if i else {(0, 1): len(fields["elements"])}
    after = hidden if i < fields["n_layers"] - 1 else {(0, 1): hidden[0, 1]}
    messages = {}
    for sender, _, target in paths(before, fields["l_max"], after):
        messages[target] = messages.get(target, 0) + before[sender]
    gates = sum(n for key, n in after.items() if key[0])
    return before, {key: n + gates * (key == (0, 1)) for key, n in after.items()}, messages


def _shapes(fields, settings) -> list:
    n = len(fields["elements"])
    shapes = [(n,)]
    for i in range(fields["n_layers"]):
        before, out, messages = _keys(fields, i)
        widths = [fields["n_radial"], *fields["radial_widths"], sum(messages.values())]
        skip = [(c, out[key]) for key, c in before.items() if key in out]
        shapes += pairwise(widths)
        shapes += [(c, c) for c in before.values()]
        shapes += [(messages[key], out[key]) for key in out if key in messages]
        shapes += [(n, *shape) for shape in skip] if fields["species_skip"] else skip
        shapes += [(c,) for c in out.values()] * fields["layer_norm"]
    return [*shapes, (fields["channels"][0], 1)]


def _arrays(data: bytes, shapes) -> list:
    expected, there = 4 * sum(map(prod, shapes)), len(data)
    if there < expected:
        raise ModelError(f"cut short: {there} bytes of weights, the settings ask for {expected}")
    file = BytesIO(data)
    arrays = [_array(file, shape) for shape in shapes]
    if left := len(file.read().strip()):
        raise ModelError(f"{left} bytes more than the settings ask for")
    return arrays


def _array(file, shape):
    version = npy.read_magic(file)
    read_header = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}[version]
    found, fortran, dtype = read_header(file)
    if (found, dtype, fortran) != (shape, np.dtype("<f4"), False):
        raise ModelError(f"an array is {dtype} {found}, the settings ask for float32 {shape}")
    data = file.read(4 * prod(shape))
    if len(data) < 4 * prod(shape):
        raise ModelError("cut short in the middle of an array")
    return np.frombuffer(data, dtype).reshape(shape)


# --- theirs to ours -------------------------------------------------------------------------------


def _identity(n):
    """The embedding that leaves the one-hot species as it is."""
    return np.eye(n, dtype=np.float32) * np.float32(sqrt(n))


def _layer(fields, i, arrays) -> dict:
    before, out, messages = _keys(fields, i)
    gain = np.float32(GAIN if i else 1.0)
    take = lambda keys, factor: {name_of(key): next(arrays) * np.float32(factor) for key in keys}
    layer = {f"radial_{i}": _radial(fields, arrays, before, out)}
    layer[f"up_{i}"] = take(before, gain)
    layer[f"message_{i}"] = take([key for key in out if key in messages], 1.0)
    n = len(fields["elements"]) if fields["species_skip"] else 1
    layer[f"skip_{i}"] = take([key for key in before if key in out], gain * sqrt(n))
    if fields["layer_norm"]:
        layer[f"norm_{i}"] = take(out, 1.0)
    return layer


def _radial(fields, arrays, before, out) -> dict:
    """Ours divides by the root of the fan-in, has gains, sqrt(2/rc), and edges to the receiver."""
    count = len(fields["radial_widths"]) + 1
    layers = [next(arrays) for _ in range(count)]
    factors = [sqrt(2 / fields["cutoff"]), *[1 / SILU_GAIN] * (count - 1)]
    layers = [w * np.float32(f * sqrt(len(w))) for w, f in zip(layers, factors, strict=True)]
    couplings = paths(before, fields["l_max"], out)
    signs = [np.full(before[sender], (-1.0) ** l, np.float32) for sender, l, _ in couplings]
    layers[-1] = layers[-1] * np.concatenate(signs)
    return {f"layer_{j}": w for j, w in enumerate(layers)}
