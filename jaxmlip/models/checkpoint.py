"""A potential in one file: weights as safetensors, everything else as a JSON card in its header.

The card says what the weights are for: format, architecture and its fields, elements, cutoff,
reference energies, units, level of theory, data, licence, accuracy, and a SHA-256 of the weights.
Nothing in the file can run code; a file that does not match its own digest is refused, and so is
one whose card or arrays are not those of a potential (`models.checks`), whoever wrote it.
"""

import hashlib
import json
import os
import uuid
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict

from jaxmlip import json_text
from jaxmlip.errors import ModelError, ResourceError
from jaxmlip.models import checks
from jaxmlip.models.elements import keep_elements
from jaxmlip.models.heads import HEAD, heads_potential, select_head
from jaxmlip.models.last_layer import add_uncertainty
from jaxmlip.models.leaves import by_name, nested
from jaxmlip.models.members import ensemble_potential
from jaxmlip.models.plans import add_long_range
from jaxmlip.models.properties import add_properties
from jaxmlip.potential import Potential, add_field, add_reference_energies
from jaxmlip.system import Edges, System

FORMAT = 1
BUILT_OF = (  # entries of a card that decide which arrays there are
    *("architecture", "fields", "electrostatics", "dispersion", "properties", "uncertainty"),
    *("members", "head_names"),
)
OWED = ("architecture", "fields", "elements", "cutoff", "format", "sha256")


def build(card: dict):
    """The bare flax module of a card, without field and reference energies.

    Raises `ModelError` for an unknown architecture or field, with the nearest known name.
    """
    cls = checks.known_architecture(card["architecture"])
    checks.check_names(cls, card["fields"])
    return cls(**{k: _frozen(v) for k, v in card["fields"].items()})


def _frozen(value):
    """Lists of JSON as tuples, which modules can be compared and compiled by."""
    if isinstance(value, dict):
        return {k: _frozen(v) for k, v in value.items()}
    return tuple(map(_frozen, value)) if isinstance(value, list) else value


def sees_charge(card: dict) -> bool:
    """Whether the energy depends on the total charge or the multiplicity of a structure."""
    model = build(card)
    embedded = getattr(model, "charge_spin", False) or getattr(model, "state", ())
    return bool(embedded or card.get("electrostatics"))  # charges sum to that of the structure


def has_energy(card: dict) -> bool:
    """Whether the model of a card has an energy; without, that of its dipole in a field is all."""
    terms = card.get("electrostatics") or card.get("dispersion")
    return bool(card["fields"].get("energy", True) or terms)


def potential_of(card: dict) -> Potential:
    """The potential of a card: total energies, coupled to the field if it predicts a dipole.

    With its long-range terms (`models.plans`); `jaxmlip.bind` then gives them their plans. Of an
    ensemble ("members": n) the mean (`models.members`); with "uncertainty": {"leaves": [...]} it
    predicts that of its last layer (`models.last_layer`); with "properties" and with several
    "head_names" what `models.properties` and `models.heads` say.
    """
    model = build(card)
    plan = getattr(model, "plan", None)
    potential = Potential(model.init, model.apply, model.cutoff, plan)
    if card.get("properties"):
        potential = add_properties(model, card["properties"])
    potential = add_long_range(potential, card)
    if getattr(model, "dipole", False):
        potential = add_field(potential)
    if card.get("uncertainty"):
        potential = add_uncertainty(potential, tuple(card["uncertainty"]["leaves"]))
    if card.get("members"):
        potential = ensemble_potential(potential, int(card["members"]))
    if card.get("reference_energies"):
        table = {int(z): float(e) for z, e in card["reference_energies"].items()}
        potential = add_reference_energies(potential, table)
    if card.get("head_names"):
        references = card.get("head_reference_energies")
        potential = heads_potential(potential, card["head_names"], references=references)
    return potential


def save(path, card: dict, params) -> None:
    """Writes card and weights atomically: a file with that name is either whole or not there.

    The card owes `architecture` and `fields`; elements and cutoff follow from them if not given.
    """
    from safetensors.numpy import save as to_bytes

    flat = {"/".join(k): np.array(v, order="C") for k, v in flatten_dict(params).items()}
    model = build(card)
    known = {"elements": list(model.elements), "cutoff": float(potential_of(card).cutoff)}
    card = {**known, **card, "format": FORMAT, "sha256": digest(flat)}
    card = json.loads(json.dumps(card))  # as it will be read: keys are text, tuples lists
    card["card_sha256"] = card_digest(card)
    data = to_bytes(flat, metadata={"jaxmlip": json.dumps(card)})
    with whole_file(path) as partial:
        partial.write_bytes(data)


@contextmanager
def whole_file(path):
    """A file of its own name beside `path`, which takes its place if all goes well; else it goes.

    Raises `ResourceError` where nothing can be written.
    """
    partial = Path(path).with_name(f".{uuid.uuid4().hex}.partial")
    try:
        try:
            yield partial
            os.replace(partial, path)
        finally:
            partial.unlink(missing_ok=True)
    except OSError as error:
        raise ResourceError(
            f"cannot write: {error.strerror}",
            where=str(path),
            fix="choose a writable folder with free space",
        ) from error


def load(
    path, *, elements=None, head: str | None = None, needs_energy: bool = False
) -> tuple[Potential, dict, dict]:
    """(potential, params, card) of a file. Raises `ModelError` if it is not whole or not ours.

    elements: atomic numbers of the structures to come; with few of them the potential is faster
    (`models.elements`), and others then give NaN. head: which one of a potential with several
    (`models.heads`), which is then an ordinary one. needs_energy: refuse a model of dipoles or
    polarisabilities alone, whose energy and forces would be zero.
    """
    card, flat = read(path)
    check_shapes(card, flat, str(path))
    if needs_energy and not has_energy(card):
        raise ModelError(
            f"model '{card.get('name', Path(path).stem)}' predicts dipoles or polarisabilities but "
            "no energy: as a potential it would be zero",
            where=str(path),
            fix="a model with an energy; `spectra TRAJ --model`, `evaluate --label dipole` and "
            "jaxmlip.load take this",
            code="JM508",
        )
    if head is not None:
        card, flat = _of_head(card, flat, head, str(path))
    if elements is not None:
        card, flat = keep_elements(card, flat, elements)
    params = nested({name: jnp.asarray(value) for name, value in flat.items()})
    return potential_of(card), params, card


def _of_head(card, flat, head, where):
    """(card, {name: array}) of one head; of an imported potential, if that is its head."""
    if card.get("head_names"):
        chosen, params = select_head(card, nested(flat), head)
        return {**chosen, "format": card["format"], "sha256": card["sha256"]}, by_name(params)
    own = card.get("head") or (card.get("heads") or {}).get("imported")
    if head != own:
        what = f"there is no head '{head}'; " + (f"this is '{own}'" if own else "it has none")
        raise ModelError(what, where=where, fix="leave head out", code="JM508")
    return card, flat


def check_shapes(card: dict, arrays: dict, where: str) -> None:
    """Raises `ModelError` unless {name: array} are those of the potential of a card, all of them.

    The names and shapes are found by tracing `init`, once for each kind of card in a process.
    """
    text = json.dumps({name: card.get(name) for name in BUILT_OF}, sort_keys=True)
    try:
        if card["fields"].get("n_layers", 0) > len(arrays):
            raise ValueError(f"{card['fields']['n_layers']} layers of {len(arrays)} arrays")
        wanted, cutoffs, elements = _shapes(text)
    except ModelError as error:
        raise ModelError(error.what, where=where, fix=error.fix, code=error.code) from None
    except Exception as error:  # whatever the fields of a stranger may lead to
        first = (str(error).splitlines() or [""])[0]
        raise ModelError(
            f"no potential can be made of this card ({type(error).__name__}: {first:.200})",
            where=where,
            code="JM505",
            fix=checks.FIX,
        ) from error
    arrays = {name: x for name, x in arrays.items() if name != HEAD}
    wrong = checks.misfits(arrays, wanted)
    if wrong:
        what = f"the arrays are not those of the {card['architecture']} of its card"
        what = f"{what}: {checks.some(wrong)}"
        raise ModelError(what, where=where, code="JM504", fix=checks.FIX)
    unlike = None
    if not any(np.isclose(card["cutoff"], cutoff) for cutoff in cutoffs):
        unlike = f"a cutoff of {card['cutoff']} Å, the potential has {cutoffs[-1]} Å"
    if more := sorted(set(card["elements"]) - elements):
        unlike = f"the elements {more}, which the potential does not know"
    if unlike:
        what = f"the card tells of {unlike}"
        raise ModelError(what, where=where, code="JM505", fix=checks.FIX)


@lru_cache(maxsize=64)
def _shapes(text: str):
    """({name: shape}, cutoffs of module and potential, elements) of the card that a text is."""
    card = json.loads(text)
    model, potential, pair = build(card), potential_of(card), _pair()
    if not checks.is_cutoff(potential.cutoff):
        raise ValueError(f"cutoff {potential.cutoff}, not {checks.A_CUTOFF}")
    shapes = jax.eval_shape(lambda: potential.init(jax.random.key(0), pair))
    shapes = {name: x.shape for name, x in by_name(shapes).items()}
    return shapes, (model.cutoff, potential.cutoff), set(model.elements)


def _pair() -> System:
    """Two atoms of any element that see each other."""
    return System(
        positions=np.eye(2, 3, dtype=np.float32),
        numbers=np.ones(2, np.int32),
        graph=np.zeros(2, np.int32),
        cell=np.eye(3, dtype=np.float32)[None],
        pbc=np.zeros((1, 3), bool),
        charge=np.zeros(1, np.float32),
        spin=np.ones(1, np.float32),
        field=np.zeros((1, 3), np.float32),
        edges=Edges(
            senders=np.array([[1], [0]], np.int32),
            shifts=np.zeros((2, 1, 3), np.int32),
            mask=np.ones((2, 1), bool),
            receivers=None,
        ),
    )


def read(path) -> tuple[dict, dict]:
    """(card, {name: numpy array}) of a file, checked against its digest, each for itself.

    Whether they belong together `check_shapes` tells. Raises `ModelError`.
    """
    from safetensors import safe_open

    where = str(path)
    if not Path(path).is_file():
        raise ModelError(
            "no such model file",
            where=where,
            code="JM501",
            fix="give a packaged name (`jaxmlip models list`) or a path",
        )
    try:
        with safe_open(path, framework="numpy") as f:
            header = (f.metadata() or {}).get("jaxmlip")
            flat = {k: f.get_tensor(k) for k in f.keys()}  # noqa: SIM118
    except Exception as error:  # types that numpy has not are of other kinds than damage is
        raise ModelError(
            f"not a whole safetensors file of numbers that are known here ({error})",
            where=where,
            code="JM504",
            fix="copy or download the file again",
        ) from error
    if header is None:
        raise ModelError("a safetensors file without a jaxmlip card", where=where, code="JM505")
    card = _checked_card(header, where)
    if digest(flat) != card["sha256"]:
        raise ModelError(
            "the weights do not match their SHA-256: the file is damaged",
            where=where,
            fix="copy or download the file again",
            code="JM504",
        )
    checks.check_arrays(flat, where)
    return card, flat


def _checked_card(header: str, where: str) -> dict:
    again = "copy or download the file again"
    try:
        card = json_text.parse(header)
    except ValueError as error:
        what = f"the model card is not JSON ({error})"
        raise ModelError(what, where=where, code="JM504", fix=again) from error
    if not isinstance(card, dict):
        what = f"the model card is no table but {card!r:.80}"
        raise ModelError(what, where=where, code="JM505", fix=checks.FIX)
    _check_format(card, where)
    if card.get("card_sha256", card_digest(card)) != card_digest(card):
        what = "the model card does not match its SHA-256: it was changed or damaged"
        raise ModelError(what, where=where, code="JM504", fix=again)
    checks.check_card(card, where)
    checks.check_fields(card, where)
    return card


def _check_format(card, where):
    number = card.get("format", 1)
    if type(number) is not int or number < 1:
        what = f"written in a format that is none: {number!r:.80}"
        raise ModelError(what, where=where, fix=checks.FIX, code="JM505")
    if number > FORMAT:
        what = f"written in format {number}, this version reads up to {FORMAT}"
        raise ModelError(what, where=where, fix="pip install -U jaxmlip", code="JM506")
    if missing := [k for k in OWED if k not in card]:
        what = f"the model card lacks {', '.join(missing)}"
        raise ModelError(what, where=where, code="JM505", fix=checks.FIX)


def digest(flat: dict) -> str:
    """SHA-256 over names, shapes and bytes of the weights."""
    h = hashlib.sha256()
    for name in sorted(flat):
        array = np.ascontiguousarray(flat[name])
        h.update(f"{name}{array.dtype}{array.shape}".encode())
        h.update(array.tobytes())
    return h.hexdigest()


def card_digest(card: dict) -> str:
    """SHA-256 over everything in the card but this digest itself."""
    rest = {k: v for k, v in card.items() if k != "card_sha256"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()
