"""SO3LR (params.pkl beside hyperparameters.json): arrays of a flax model under other names.

Kabylda et al. 2025, 10.1021/jacs.5c09558; written by mlff. Which elements were trained is seen from
the scales of their energies, which training moves away from 1; the others are left out. The
published evaluation is that of its ASE calculator: long-range cutoff 12 Å, of which the last 2 Å
switch off the dispersion. For molecules in vacuum its authors advise a cutoff of 1000 Å: set the
field `cutoff`.
"""

from pathlib import Path

import numpy as np

from jaxmlip import json_text
from jaxmlip.errors import ModelError
from jaxmlip.interfaces.weights.unpickle import read_pickle
from jaxmlip.nn.pairwise import FREE_ATOMS

SETTINGS = "hyperparameters.json"
CUTOFF, TAIL = 12.0, 2.0  # Å, of the published calculator; the file has no default of its own
DEPTH = 16  # of the tree of arrays
OURS = {  # name in the settings: field
    "cutoff": "local_cutoff",
    "num_features": "channels",
    "degrees": "degrees",
    "num_heads": "heads",
    "num_layers": "n_layers",
    "num_radial_basis_fn": "n_radial",
    "energy_regression_dim": "readout_width",
}
OWED = {  # settings that our So3krates has in one way only
    "activation_fn": "silu",
    "cutoff_fn": "phys",
    "dispersion_energy_bool": True,
    "electrostatic_energy_bool": True,
    "energy_activation_fn": "silu",
    "energy_learn_atomic_type_scales": True,
    "energy_learn_atomic_type_shifts": True,
    "layer_normalization_1": True,
    "layer_normalization_2": True,
    "message_normalization": "avg_num_neighbors",
    "qk_non_linearity": "identity",
    "radial_basis_fn": "bernstein",
    "residual_mlp_1": True,
    "residual_mlp_2": False,
    "zbl_repulsion_bool": True,
}


def matches(path) -> bool:
    """Whether a file is a pickle with the names of a sparse mlff model; never raises."""
    try:
        with open(path, "rb") as file:
            start = file.read(4096)
        return start[:1] == b"\x80" and b"feature_embeddings_0" in start
    except Exception:
        return False


def read(path) -> tuple[dict, dict]:
    """(card, params) of params.pkl; its settings are read from the JSON beside it.

    Raises `ModelError` for settings or arrays that `So3krates` has no place for.
    """
    where = str(path)
    settings = _settings(Path(path).with_name(SETTINGS))
    state = read_pickle(path)
    if not isinstance(state, dict) or not isinstance(state.get("params"), dict):
        raise ModelError("the pickle is no tree of parameters", where=where)
    arrays = _flat(state["params"], where, set())
    taken = _Taken(arrays, where)
    elements = _elements(taken)
    fields = _fields(settings, elements, where)
    params = _params(taken, fields)
    taken.check()
    return {"architecture": "So3krates", "fields": fields}, {"params": params}


def _settings(path):
    try:
        return json_text.parse(path.read_bytes())
    except OSError as error:
        raise ModelError(
            f"its settings are missing ({error.strerror})",
            where=str(path),
            fix=f"put {SETTINGS} of the same publisher beside the weights",
        ) from error
    except (ValueError, RecursionError) as error:
        raise ModelError(f"the settings are not JSON ({error})", where=str(path)) from error


def _flat(tree, where, seen, prefix=""):
    """{'a/b/c': array} of nested dicts of finite arrays, float32 as in the file.

    seen: ids of the dicts and arrays that were met, for one that comes twice is refused.
    """
    out = {}
    for key, value in tree.items():
        if not isinstance(key, str) or id(value) in seen or prefix.count("/") > DEPTH:
            raise ModelError(f"'{prefix[:80]}...' is no tree of arrays with names", where=where)
        seen.add(id(value))
        if isinstance(value, dict):
            out |= _flat(value, where, seen, f"{prefix}{key}/")
        elif isinstance(value, np.ndarray) and value.dtype.kind == "f":
            if not np.isfinite(value).all():
                raise ModelError(f"'{prefix}{key}' is not finite", where=where)
            out[f"{prefix}{key}"] = value
        else:
            raise ModelError(f"'{prefix}{key}' is no array of numbers", where=where)
    return out


class _Taken:
    """The arrays of a file, by name and shape; `check` refuses those that nobody asked for."""

    def __init__(self, arrays, where):
        self.arrays, self.where, self.names = arrays, where, set()

    def __call__(self, name, *shape):
        if name not in self.arrays:
            raise ModelError(f"the array '{name}' is missing", where=self.where)
        self.names.add(name)
        value = self.arrays[name]
        fits = len(shape) == value.ndim and all(
            n in (None, m) for n, m in zip(shape, value.shape, strict=True)
        )
        if not fits:
            raise ModelError(
                f"'{name}' has shape {value.shape}, where the settings give {shape}",
                where=self.where,
            )
        return value

    def check(self):
        left = sorted(set(self.arrays) - self.names)
        if left:
            raise ModelError(
                f"{len(left)} arrays belong to parts that So3krates here does not have: "
                f"{', '.join(left[:3])}",
                where=self.where,
            )


def _elements(take):
    scales = take("observables_0/atomic_scales", None)
    elements = [int(z) for z in np.nonzero(scales != 1)[0] if z > 0]
    lacking = [z for z in elements if z not in FREE_ATOMS]
    if not elements or lacking:
        what = f"no free-atom data of the elements {lacking}" if lacking else "no trained elements"
        raise ModelError(what, where=take.where)
    return elements


def _fields(settings, elements, where):
    try:
        model, data = settings["model"], settings["data"]
        for name, value in OWED.items():
            if model[name] != value:
                raise ModelError(
                    f"{name} is {model[name]!r}; So3krates here has {value!r} only", where=where
                )
        both = model["use_charge_embed"], model["use_spin_embed"]
        if both[0] != both[1]:
            raise ModelError("charge is embedded without spin, or spin without charge", where=where)
        fields = {ours: _plain(model[name], name, where) for name, ours in OURS.items()}
        number = lambda of, name: _plain(float(of[name]), name, where)
        groups = fields["heads"], len(fields["degrees"]), 4
        if any(fields["channels"] % n for n in groups) or max(fields["degrees"]) > 8:
            raise ModelError(f"{fields['channels']} channels in groups of {groups}", where=where)
        return fields | {
            "elements": elements,
            "cutoff": CUTOFF,
            "dispersion_tail": TAIL,
            "avg_num_neighbors": number(data, "avg_num_neighbors"),
            "coulomb_width": number(model, "electrostatic_energy_scale"),
            "dispersion_scale": number(model, "dispersion_energy_scale"),
            "charge_spin": bool(both[0]),
            "dipole": True,
        }
    except ModelError:
        raise
    except (KeyError, TypeError, ValueError) as error:
        raise ModelError(
            f"the settings are not those of a sparse So3krates model ({error!r})", where=where
        ) from error


def _plain(value, name, where):
    """A positive number of a plausible size (whole, but for lengths), or a list of such."""
    numbers = value if isinstance(value, list) else [value]
    kind = float if name == "cutoff" or isinstance(value, float) else int
    plausible = all(type(v) in (int, kind) and 0 < v <= 4096 for v in numbers)
    if not numbers or not plausible or isinstance(value, list) != (name == "degrees"):
        raise ModelError(f"{name} is {value!r}", where=where)
    return value


def _params(take, fields):
    c, k, width = fields["channels"], fields["n_radial"], fields["readout_width"]
    z, some = fields["elements"], "observables_0"
    params = {"embedding": take("feature_embeddings_0/Embed_0/embedding", None, c)[z]}
    if fields["charge_spin"]:
        params["charge"] = _state(take, "feature_embeddings_1/ChargeSpinEmbedSparse_0", z, c)
        params["spin"] = _state(take, "feature_embeddings_2/ChargeSpinEmbedSparse_0", z, c)
    for i in range(fields["n_layers"]):
        params[f"layer_{i}"] = _layer(take, f"layers_{i}", fields, c, k)
    params["energy_hidden"] = _dense(take, f"{some}/energy_dense_regression", c, width)
    params["energy_out"] = _dense(take, f"{some}/energy_dense_final", width, 1)
    params["energy_scale"] = take(f"{some}/atomic_scales", None)[z]
    params["energy_shift"] = take(f"{some}/energy_offset", None)[z]
    params |= _repulsion(take, f"{some}/zbl_repulsion")
    home = f"{some}/electrostatic_energy/partial_charges"
    params["charge_hidden"] = _dense(take, f"{home}/charge_dense_regression_vec", c, width)
    params["charge_out"] = _dense(take, f"{home}/charge_dense_final_vec", width, 1)
    params["charge_shift"] = take(f"{home}/Embed_0/embedding", None, 1)[z, 0]
    return params | _ratios(take, fields)


def _ratios(take, fields):
    home, half, z = "observables_2", fields["channels"] // 2, fields["elements"]
    hidden = fields["readout_width"] // 2
    return {
        "ratio_hidden": _dense(
            take, f"{home}/hirshfeld_ratios_dense_regression", fields["channels"], hidden
        ),
        "ratio_out": _dense(take, f"{home}/hirshfeld_ratios_dense_final", hidden, half),
        "ratio_shift": take(f"{home}/Embed_0/embedding", None, 1)[z, 0],
        "ratio_query": take(f"{home}/Embed_1/embedding", None, half)[z],
    }


def _state(take, name, elements, c):
    return {
        "query": take(f"{name}/Embed_0/embedding", None, c)[elements],
        "key": take(f"{name}/Embed_1/embedding", 2, c),
        "value": take(f"{name}/Embed_2/embedding", 2, c),
        "hidden": {"kernel": take(f"{name}/Residual_0/layers_0/kernel", c, c)},
        "out": {"kernel": take(f"{name}/Residual_0/layers_1/kernel", c, c)},
    }


def _layer(take, name, fields, c, k):
    n, heads = len(fields["degrees"]), fields["heads"]
    block = f"{name}/attention_block"
    out = {
        "radial": _side_by_side(take, f"{block}/radial_filter", k, c),
        "spherical": _side_by_side(take, f"{block}/spherical_filter", n, c // 4),
        "mlp_0": _dense(take, f"{name}/res_mlp_1_layer_1", c, c),
        "mlp_1": _dense(take, f"{name}/res_mlp_1_layer_2", c, c),
        "exchange": _dense(take, f"{name}/exchange_block/mlp_layer_2", c + n, c + n),
        "value": take(f"{block}/Wv1", heads, c // heads, c // heads),
    }
    for i, groups in enumerate((heads, n)):
        for kind, width in (("radial", c), ("spherical", c // 4)):
            out[f"{kind}_{i}"] = _dense(take, f"{block}/{kind}_filter{i + 1}_layer_2", width, c)
        for ours, theirs in (("query", "Wq"), ("key", "Wk")):
            square = (groups, c // groups, c // groups)
            out[f"{ours}_{i}"] = take(f"{block}/{theirs}{i + 1}", *square)
        norm = f"{name}/layer_normalization_{i + 1}"
        out[f"norm_{i}"] = {p: take(f"{norm}/{p}", c) for p in ("scale", "bias")}
    return out


def _side_by_side(take, name, n_in, n_out):
    """The first layers of the two filters as one, since they have the same input."""
    pair = [_dense(take, f"{name}{i}_layer_1", n_in, n_out) for i in (1, 2)]
    return {p: np.concatenate([x[p] for x in pair], -1) for p in ("kernel", "bias")}


def _dense(take, name, n_in, n_out):
    return {"kernel": take(f"{name}/kernel", n_in, n_out), "bias": take(f"{name}/bias", n_out)}


def _repulsion(take, name):
    series = lambda letter: np.concatenate([take(f"{name}/{letter}{i}", 1) for i in range(1, 5)])
    return {
        "repulsion_weights": series("c"),
        "repulsion_decays": series("a"),
        "repulsion_exponent": take(f"{name}/p", 1),
        "repulsion_inverse_length": take(f"{name}/d", 1),
    }
