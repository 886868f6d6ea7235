"""Models that mace-torch 0.3 saved (`torch.save(model)`), exactly, as our `MACE`; without torch.

The two parametrise the same functions. What a file holds is a tree of modules (`module_tree`),
each with its arrays and what it was told when it was built; this file reads the settings from it,
`mace_torch_weights` the weights. Whatever has no counterpart here is refused by name.
"""

import zipfile

import numpy as np

from jaxmlip.errors import ModelError, UsageError, did_you_mean
from jaxmlip.interfaces.weights import CHOOSE
from jaxmlip.interfaces.weights.mace_torch_weights import params_of
from jaxmlip.interfaces.weights.module_tree import Part, gate_name, irreps, refuse
from jaxmlip.interfaces.weights.unpickle import Record, is_torch_zip, read_torch
from jaxmlip.nn.tensor_product import natural

KINDS = {  # class: fields that say what is predicted
    "ScaleShiftMACE": {},
    "MACE": {},
    "AtomicDipolesMACE": {"energy": False, "dipole": True, "charges": False},
    "EnergyDipolesMACE": {"dipole": True, "charges": False},
    "AtomicDielectricMACE": {"energy": False, "dipole": True, "polarizability": True},
}
BLOCKS = {  # class of an interaction: is it residual, normalised by density, gated
    "RealAgnosticInteractionBlock": (False, False, False),
    "RealAgnosticResidualInteractionBlock": (True, False, False),
    "RealAgnosticDensityInteractionBlock": (False, True, False),
    "RealAgnosticDensityResidualInteractionBlock": (True, True, False),
    "RealAgnosticResidualNonLinearInteractionBlock": (True, False, True),
}
BASES = {"BesselBasis": "bessel", "GaussianBasis": "gaussian", "ChebychevBasis": "chebyshev"}
QUANTITIES = {"total_charge": "charge", "total_spin": "spin"}
MAX_COUPLINGS = 2_000_000  # entries of one table of couplings; l = 3, degree 4 has 65 536
MAX_LAYERS, MAX_DEGREE = 16, 8  # of harmonics and of polynomials
MARKS = (b"mace.modules", b"mace/modules", b"symmetric_contractions.contractions")


def matches(path) -> bool:
    """Whether a file is a torch zip file that speaks of mace's modules; never raises."""
    try:
        if not is_torch_zip(path):
            return False
        with zipfile.ZipFile(path) as archive:
            name = next(n for n in archive.namelist() if n.endswith("/data.pkl"))
            with archive.open(name) as stream:
                start = stream.read(2**20)
        return any(mark in start for mark in MARKS)
    except Exception:
        return False


def read(path, head: str | None = None) -> tuple[dict, dict]:
    """(card, params) of a model file of mace-torch.

    head: name of the head (level of theory) of a model with several; it has to be given unless
    there is one called 'Default' (or 'default'). The card lists all. Dipoles of AtomicDipolesMACE
    and EnergyDipolesMACE come in debye and leave as e Å; the fixed charges that those add to their
    dipoles are input of mace-torch, not part of a model, and are zero here.
    Raises `ModelError` for everything that our MACE cannot represent.
    """
    record = read_torch(path)
    if not isinstance(record, Record):
        _refuse_checkpoint(record, str(path))
    return convert(record, head=head, where=str(path))


def convert(record: Record, *, head: str | None = None, where: str = "mace_torch"):
    """(card, params) of the record of a model, as `read_torch` gives it."""
    try:
        return _convert(Part(record, where), head)
    except (ModelError, UsageError):
        raise
    except Exception as error:  # records whose content is not what their class would have
        raise ModelError(
            f"the model is damaged, or of a version that is not known: {type(error).__name__}: "
            f"{str(error)[:200]}",
            where=where,
            code="JM511",
            fix="save it with mace-torch 0.3.x",
        ) from error


def _convert(model: Part, head):
    if model.kind not in KINDS:
        refuse(model, f"models of class {model.kind} are not known, only {', '.join(KINDS)}")
    heads = [str(h) for h in model.get("heads") or ["Default"]]
    index = _head_index(heads, head, model.where)
    fields = _fields(model, index)
    params = params_of(model, fields, index)
    model.check_nothing_left()
    card = {
        "architecture": "MACE",
        "fields": fields,
        "heads": {"imported": heads[index], "available": heads},
        "source": {"class": model.kind, "dtype": str(model.array("r_max").dtype)},
    }
    if fields["energy"]:
        energies = _of_head(model.part("atomic_energies_fn").array("atomic_energies"), index, 2)
        pairs = zip(fields["elements"], energies, strict=True)
        card["reference_energies"] = {z: float(e) for z, e in pairs}
    return card, {"params": params}


def _refuse_checkpoint(content, where):
    what = "it holds no model of mace-torch"
    if isinstance(content, dict):
        what = "it holds weights without the settings of their model (a training checkpoint)"
    fix = "import the .model file that mace_run_train writes at its end"
    raise ModelError(what, where=where, fix=fix, code="JM511")


def _head_index(heads, wanted, where):
    if wanted is None and len(heads) == 1:
        return 0
    if wanted is None:
        default = [i for i, h in enumerate(heads) if h.lower() == "default"]
        if default:
            return default[0]
        what = f"the model has {len(heads)} heads ({', '.join(heads)}), and none is chosen"
        raise ModelError(what, where=where, fix=CHOOSE, code="JM508")
    if wanted not in heads:
        raise UsageError(
            f"the model has no head '{wanted}'.{did_you_mean(wanted, heads)}",
            where="--head",
            fix=f"one of {', '.join(heads)}",
        )
    return heads.index(wanted)


def _of_head(array, head, ndim):
    """The row of a head, where there is one for each: arrays of [n_heads, ...] with `ndim` axes."""
    array = np.asarray(array)
    return array[head if len(array) > 1 else 0] if array.ndim == ndim else array


def _fields(model, head):
    blocks, products = model.part("interactions").parts(), model.part("products").parts()
    if not blocks or len(blocks) != len(products):
        refuse(model, "the numbers of interactions and products differ")
    if len(blocks) > MAX_LAYERS:
        refuse(model, f"{len(blocks)} layers; more than {MAX_LAYERS} are not read")
    elements = [int(z) for z in model.array("atomic_numbers")]
    harmonics = irreps(model.part("spherical_harmonics").get("irreps_out"))
    if [key for _, key in harmonics] != natural(len(harmonics) - 1):
        refuse(model, "harmonics without parity (use_so3)")
    l_max, correlation = len(harmonics) - 1, max(_correlation(p) for p in products)
    if max(l_max, correlation) > MAX_DEGREE or (l_max + 1) ** (2 * correlation) > MAX_COUPLINGS:
        refuse(model, f"polynomials of degree {correlation} in l = {l_max} are too many")
    return (
        {
            "elements": elements,
            "cutoff": float(model.array("r_max")),
            "n_layers": len(blocks),
            "l_max": l_max,
            "correlation": correlation,
            "avg_num_neighbors": float(blocks[0].get("avg_num_neighbors")),
            **_scale(model, head),
            **_blocks(blocks),
            **_channels(model, blocks, products),
            **_radial(model, blocks, elements),
            **_state(model),
            "energy": True,
        }
        | KINDS[model.kind]
        | _readouts(model)
    )


def _scale(model, head):
    if not model.has("scale_shift"):
        return {}
    part = model.part("scale_shift")
    return {k: float(_of_head(part.array(k), head, 1)) for k in ("scale", "shift")}


def _blocks(blocks):
    for block in blocks:
        if block.kind not in BLOCKS:
            refuse(block, f"interactions of class {block.kind} are not known")
        if block.get("cueq_config") is not None and _is_cueq(block.part("linear_up")):
            refuse(
                block,
                "weights in the layout of cuEquivariance",
                fix="convert the model with mace_cueq_to_e3nn (mace.cli.convert_cueq_e3nn)",
            )
    residual, density, gated = zip(*(BLOCKS[b.kind] for b in blocks), strict=True)
    same = lambda flags: len(set(flags)) == 1
    neighbors = {float(b.get("avg_num_neighbors")) for b in blocks}
    if not (same(density) and same(gated) and same(residual[1:] or (True,)) and same(neighbors)):
        refuse(blocks[0], f"a mixture of {', '.join(b.kind for b in blocks)}")
    return {
        "residual_first": residual[0],
        "residual_rest": (residual[1:] or (True,))[0],
        "density": density[0],
        "gated": gated[0],
    }


def _is_cueq(part):
    return not part.record.kind.startswith("e3nn.")


def _channels(model, blocks, products):
    channels = irreps(model.part("node_embedding", "linear").get("irreps_out"))[0][0]
    kept = [irreps(p.part("linear").get("irreps_in")) for p in products]
    for name, found in [*[("product", k) for k in kept], *_messages(blocks)]:
        if any(mul != channels or key not in natural(9) for mul, key in found):
            refuse(model, f"features of a {name} other than {channels} channels, natural parity")
    hidden_l = max(key[0] for _, key in kept[0]) if len(kept) > 1 else 0
    for k in kept[:-1]:
        if [key for _, key in k] != natural(hidden_l):
            refuse(model, "hidden features that leave out a degree, or differ between layers")
    return {
        "channels": channels,
        "hidden_l": hidden_l,
        "species_product": not products[0].get("use_agnostic_product", False),
        **_edge_channels(blocks, channels, hidden_l),
    }


def _messages(blocks):
    return [("message", irreps(b.get("target_irreps"))) for b in blocks]


def _correlation(product):
    contraction = product.part("symmetric_contractions")
    if contraction.kind != "SymmetricContraction" or not contraction.has("contractions"):
        refuse(contraction, f"contractions of class {contraction.record.kind} are not known")
    return len(contraction.part("contractions").parts()[0].part("weights").names()) + 1


def _edge_channels(blocks, channels, hidden_l):
    """Channels sent along edges, where they are fewer than those of the features."""
    sent = [dict((key, mul) for mul, key in irreps(b.get("edge_irreps"))) for b in blocks]
    sent = [s or {k: channels for k in natural(hidden_l)} for s in sent]
    degrees = [[s.get(key, 0) for key in natural(hidden_l if i else 0)] for i, s in enumerate(sent)]
    rest = [[m for m in d if m] for d in degrees[1:]]
    for given, found in zip(degrees[1:], rest, strict=True):
        if given[: len(found)] != found or found != rest[0]:
            refuse(blocks[0], "features on edges that leave out a degree, or differ by layer")
    out = {}
    if rest and rest[0] != [channels] * (hidden_l + 1):
        out["edge_channels"] = rest[0]
    if degrees[0][0] != channels:
        out["edge_channels_first"] = degrees[0][0]
    return out


def _radial(model, blocks, elements):
    part = model.part("radial_embedding")
    basis, envelope = part.part("bessel_fn"), part.part("cutoff_fn")
    if basis.kind not in BASES or envelope.kind != "PolynomialCutoff":
        refuse(part, f"radial functions of class {basis.kind}, {envelope.kind} are not known")
    cutoff = float(model.array("r_max"))
    gated = BLOCKS[blocks[0].kind][2]
    net = blocks[0].part("conv_tp_weights")
    widths = net.get("hs" if gated or net.get("hs") else "channels_list")
    fields = {
        "n_radial": int(part.get("out_dim")),
        "envelope_p": int(envelope.array("p")),
        "radial_widths": [int(w) for w in widths[1:-1]],
        "radial_basis": BASES[basis.kind],
        "cut_weights": not part.get("apply_cutoff", True),
    }
    if basis.kind == "BesselBasis":
        k = basis.array("bessel_weights").reshape(-1).astype(float) * cutoff / np.pi
        if np.abs(k - np.arange(1, len(k) + 1)).max() > 1e-12:
            fields["frequencies"] = k.tolist()
    if basis.kind == "GaussianBasis":
        centres = basis.array("gaussian_weights").reshape(-1)
        if np.abs(centres - np.linspace(0, cutoff, len(centres))).max() > 1e-6:
            refuse(basis, "trained centres of the Gaussians")
    return fields | _transform(part) | _repulsion(model) | _radii(model, part, elements)


def _transform(radial):
    if not radial.has("distance_transform"):
        return {}
    part = radial.part("distance_transform")
    if part.kind == "AgnesiTransform":
        return {"agnesi": [float(part.array(k)) for k in "qpa"]}
    if part.kind == "SoftTransform":
        return {"soft": float(part.array("alpha"))}
    return refuse(part, f"distance transforms of class {part.kind} are not known")


def _repulsion(model):
    if not model.has("pair_repulsion_fn"):
        return {}
    part = model.part("pair_repulsion_fn")
    if part.kind != "ZBLBasis":
        refuse(part, f"pair repulsion of class {part.kind} is not known")
    numbers = [part.array(k) for k in ("p", "a_prefactor", "a_exp")]
    return {"pair_repulsion": [*map(float, numbers), *map(float, part.array("c"))]}


def _radii(model, radial, elements):
    """Covalent radii, Å, as the file has them; one table serves both that need it."""
    parts = [radial.part("distance_transform")] if radial.has("distance_transform") else []
    parts += [model.part("pair_repulsion_fn")] if model.has("pair_repulsion_fn") else []
    tables = [p.array("covalent_radii")[elements].astype(float).tolist() for p in parts]
    if not tables:
        return {}
    if any(t != tables[0] for t in tables):
        refuse(model, "two tables of covalent radii")
    return {"covalent_radii": tables[0]}


def _state(model):
    specs = model.get("embedding_specs")
    if not specs:
        return {}
    quantities = []
    for name, spec in specs.items():
        if name not in QUANTITIES or spec.get("per") != "graph":
            refuse(model, f"an embedding of {name}, which structures here do not have")
        if spec["type"] not in ("categorical", "continuous") or spec.get("in_dim", 1) != 1:
            refuse(model, f"an embedding of {name} of type {spec['type']}")
        classes = int(spec["num_classes"]) if spec["type"] == "categorical" else 0
        bias = bool(spec.get("use_bias", True))
        offset = float(spec.get("offset", 0)) if classes else 0.0
        quantities.append([QUANTITIES[name], int(spec["emb_dim"]), classes, offset, bias])
    return {"state": quantities, "state_readout": model.has("embedding_readout")}


def _readouts(model):
    """Fields about the last readout."""
    parts = model.part("readouts").parts()
    n_layers = len(model.part("interactions").parts())
    if len(parts) not in (1, n_layers):
        refuse(model, f"{len(parts)} readouts of {n_layers} layers")
    last = parts[-1]
    out = {"last_readout_only": len(parts) == 1 < n_layers, "readout_width": 0}
    if last.kind.startswith("Linear"):
        return out
    if last.kind in ("NonLinearReadoutBlock", "NonLinearBiasReadoutBlock"):
        acts = last.part("non_linearity", "acts")
        name = gate_name(acts.child("0").get("f")) if acts.child("0") else "none"
        n_heads = int(last.get("num_heads", 1) or 1)
        width = irreps(last.get("hidden_irreps"))[0][0] // n_heads
        bias = last.kind == "NonLinearBiasReadoutBlock"
        return out | {"readout_width": width, "gate": name, "readout_bias": bias}
    if last.kind in ("NonLinearDipoleReadoutBlock", "NonLinearDipolePolarReadoutBlock"):
        hidden = dict((key, mul) for mul, key in irreps(last.get("hidden_irreps")))
        widths = [hidden.get(key, 0) for key in ((1, -1), (2, 1))]
        name = gate_name(last.part("equivariant_nonlin").get("_act_gate"))
        return out | {
            "readout_width": hidden.get((0, 1), 0),
            "tensor_widths": widths,
            "gate": name,
        }
    return refuse(last, f"readouts of class {last.kind} are not known")
