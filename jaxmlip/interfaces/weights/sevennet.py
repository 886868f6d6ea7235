"""SevenNet checkpoints (.pth): settings and weights of a NequIP-like model (e3nn, torch).

Park et al. 2024, 10.1021/acs.jctc.4c00190; SevenNet-0, l3i5 and models of several data sets
(SevenNet-MF), of which one is chosen. Here the settings are checked and turned into fields of
`models.NequIP`; `sevennet_weights.py` does the arrays.
"""

import re
import zipfile

import numpy as np

from jaxmlip.errors import ModelError, UsageError
from jaxmlip.interfaces.weights import CHOOSE
from jaxmlip.interfaces.weights.sevennet_weights import Source, convert
from jaxmlip.interfaces.weights.unpickle import is_torch_zip, read_torch
from jaxmlip.nn.linear import name_of

OWED = {  # what a model must say of itself to be imported; other values are other architectures
    "interaction_type": "nequip",
    "act_radial": "silu",
    "act_scalar": {"e": "silu", "o": "tanh"},
    "act_gate": {"e": "silu", "o": "tanh"},
    "readout_as_fcn": False,
}
SKIPS = {"linear": False, "nequip": True}  # self_connection_type: is it different by species
ELEMENTS = set(range(1, 119))
LARGEST_DEGREE = 8
OLD_NAMES = {  # of versions before 0.10, blanks as underscores
    "EdgeEmbedding": "edge_embedding",
    "reducing_nn_input_to_hidden": "reduce_input_to_hidden",
    "reducing_nn_hidden_to_energy": "reduce_hidden_to_energy",
}


def matches(path) -> bool:
    """Whether a file is a torch archive with the settings of SevenNet; never raises."""
    try:
        with zipfile.ZipFile(path) as archive:
            name = next(n for n in archive.namelist() if n.endswith("/data.pkl"))
            with archive.open(name) as file:
                start = file.read(2**22)
        return is_torch_zip(path) and b"model_state_dict" in start and b"is_parity" in start
    except Exception:
        return False


def read(path, *, head: str | None = None) -> tuple[dict, dict]:
    """(card, params) of a checkpoint; `head` names the data set of a model of several.

    Raises `ModelError` for what is damaged or of another architecture.
    """
    content = read_torch(path)
    try:
        source = _source(content["config"], content["model_state_dict"], head)
        card, params = convert(source)
        return card | _heads(source), params
    except ModelError as error:
        raise ModelError(error.what, where=str(path), fix=error.fix, code=error.code) from None
    except UsageError:
        raise
    except Exception as error:  # whatever the content of a stranger's file leads to
        reason = f"{type(error).__name__}: {error}"[:200]
        raise ModelError(f"not a SevenNet checkpoint ({reason})", where=str(path)) from error


def _source(settings, state, head) -> Source:
    if not all(isinstance(x, np.ndarray) for x in state.values()):
        raise ModelError("weights that are no arrays")
    state = {_today(name): x for name, x in state.items()}
    places = {int(z): int(i) for z, i in settings["_type_map"].items()}
    elements = sorted(places)
    if sorted(places.values()) != list(range(len(places))) or not set(elements) <= ELEMENTS:
        raise ModelError("elements that are none, or that share a place")
    n_sets, chosen = _data_set(settings, head)
    fields = {"elements": elements, **_fields(settings)}
    fields["bias"] = bool(n_sets or settings.get("use_bias_in_linear"))
    by_sender = _version(settings) < (0, 11, 0) or "0.11.0.dev0" in settings["version"]
    places = [places[z] for z in elements]
    return Source(settings, state, fields, places, by_sender, n_sets, chosen)


def _today(name: str) -> str:
    first, _, rest = name.partition(".")
    first = first.replace(" ", "_")
    return f"{OLD_NAMES.get(first, first)}.{rest.replace('denumerator', 'denominator')}"


def _data_set(settings, head):
    """(how many data sets, place of the chosen one); the file may name a default."""
    if not settings.get("use_modality"):
        if head is not None:
            raise UsageError("this model knows one data set only", where="head")
        return 0, 0
    known = {str(name): int(i) for name, i in settings["_modal_map"].items()}
    wanted = head if head is not None else settings.get("default_modal")
    if wanted not in known:
        names = ", ".join(sorted(known))
        raise ModelError(f"a model of several data sets ({names})", fix=CHOOSE, code="JM508")
    return len(known), known[wanted]


def _heads(source) -> dict:
    """What the card says of data sets."""
    if not source.n_sets:
        return {}
    names = sorted(map(str, source.settings["_modal_map"]))
    chosen = {int(i): str(name) for name, i in source.settings["_modal_map"].items()}
    return {"heads": {"imported": chosen[source.chosen], "available": names}}


def _version(settings) -> tuple:
    return tuple(int(n) for n in re.findall(r"\d+", settings["version"])[:3])


def _fields(settings) -> dict:
    for name, owed in OWED.items():
        if settings.get(name, owed) != owed:
            raise ModelError(f"{name} is {settings[name]!r:.60}, not {owed!r}")
    skip, l_max = _same(settings.get("self_connection_type", "nequip")), int(settings["lmax"])
    if skip not in SKIPS:
        raise ModelError(f"self-connections {skip!r:.60} are not {' or '.join(SKIPS)}")
    l_edges, l_nodes = (int(settings.get(k, -1)) for k in ("lmax_edge", "lmax_node"))
    edges, nodes = (l if l > 0 else l_max for l in (l_edges, l_nodes))
    if not 0 <= nodes <= edges <= LARGEST_DEGREE:
        raise ModelError(f"features of degree {nodes} and harmonics of degree {edges}")
    cutoff = float(settings["cutoff"])
    if not 0 < cutoff < 1e3:
        raise ModelError(f"a cutoff of {cutoff} Å")
    reflections = bool(settings["is_parity"])
    channels, parity = _channels(settings, nodes, reflections)
    return {
        "cutoff": cutoff,
        "channels": channels,
        "embedding_channels": channels[0],
        "output_channels": channels[0] // 2,
        "l_max": edges,
        "parity": parity,
        "reflections": reflections,
        "n_layers": int(settings["num_convolution_layer"]),
        "radial_widths": [int(n) for n in settings["weight_nn_hidden_neurons"]],
        "species_skip": SKIPS[skip],
        "solid_harmonics": not settings.get("_normalize_sph", _version(settings) >= (0, 10, 0)),
        **_basis(settings, cutoff),
    }


def _same(value):
    """What all entries of a list are; a list of different ones stays what it is."""
    if not isinstance(value, list | tuple):
        return value
    return value[0] if len({str(v) for v in value}) == 1 else str(value)


def _basis(settings, cutoff) -> dict:
    basis, smooth = settings["radial_basis"], settings["cutoff_function"]
    kinds = basis["radial_basis_name"], smooth["cutoff_function_name"]
    if kinds == ("bessel", "XPLOR") and 0 < float(smooth["cutoff_on"]) < cutoff:
        envelope = {"switch_from": float(smooth["cutoff_on"])}
    elif kinds == ("bessel", "poly_cut"):
        envelope = {"envelope_p": int(smooth.get("poly_cut_p_value", 6))}
    else:
        raise ModelError(f"a radial basis {basis!r:.80} with an envelope {smooth!r:.80}")
    return {"n_radial": int(basis.get("bessel_basis_num", 8)), **envelope}


def _channels(settings, l_max, reflections):
    """(channels by degree, whether features have both parities)."""
    manual = settings.get("irreps_manual")
    if not manual:
        return [int(settings["channel"])] * (l_max + 1), reflections
    first, *hidden, last = [str(irreps).replace(" ", "") for irreps in manual]
    kinds = [name_of((l, (-1) ** l if reflections else 1)) for l in range(l_max + 1)]
    found = re.fullmatch(r"\+".join(rf"(\d+)x{kind}" for kind in kinds), _same(hidden or [last]))
    if not found or {first, last} != {f"{found[1]}x0e"} or len(hidden) != _layers(settings) - 1:
        raise ModelError(f"features {manual!r:.200} are not those of a NequIP with {kinds}")
    return [int(n) for n in found.groups()], False


def _layers(settings) -> int:
    return int(settings["num_convolution_layer"])
