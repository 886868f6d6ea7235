"""A run that does not begin at random: from the model it starts from to card, params and labels.

Architecture and fields are those of the model. Elements are those of the data; ones that the model
does not know begin like ones it knows. Reference energies belong to a level of theory, so they are
refitted to what the start leaves of the new labels, and never mixed without a word.
"""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np

from jaxmlip import models
from jaxmlip.data.batching import batch, make_buckets, plan
from jaxmlip.data.statistics import fit_reference_energies
from jaxmlip.errors import UsageError
from jaxmlip.interfaces.elements import covalent_radii
from jaxmlip.interfaces.labels import atomic_number
from jaxmlip.models import checkpoint
from jaxmlip.models.elements import extend_elements, keep_elements
from jaxmlip.models.heads import heads_potential, stack_heads
from jaxmlip.models.leaves import nested
from jaxmlip.potential import bind
from jaxmlip.system import cast
from jaxmlip.train.config import Config, Model
from jaxmlip.train.sources import of_heads, replayed
from jaxmlip.train.transfer import transfer, update_named

KEPT = ("licence", "citation", "electrostatics", "dispersion")  # of the card that is started from
BESIDE = ("uncertainty", "properties")  # fitted to what it was: not gone on with
OWN = ("name", "level_of_theory", "sha256")  # told of it in the new card
LIMIT = 0.5  # eV per atom that references may be off before they are said to be of another level
FREE = 1e3  # how much more freely an element without a reference takes what is missing
OF_LABELS = {  # what a model must have been trained to predict: label, field
    "dipole": "dipole",
    "charges": "dipole",
    "born_charges": "dipole",
    "polarizability": "polarizability",
}


class Beginning(NamedTuple):
    """What a run begins with; of one that begins at random all is None or empty."""

    card: dict | None = None  # of the model it starts from
    leaves: dict | None = None  # {"params/...": numpy array}
    potential: dict | None = None  # card of the same model with the elements of the data
    params: dict | None = None
    references: dict | None = None  # {atomic number: eV}, or {head: that}
    replay: tuple = ()  # frames of other data, their energies at the references of the new ones


def begin(config: Config, terms, *, find: Callable | None = None):
    """(config with the architecture and fields of the model it starts from, `Beginning`).

    find: a name -> the path of its file (`pretrained.path_of`); None: it is a path. Raises
    `UsageError` for a `model` section that says otherwise, and for labels that the start does not
    predict.
    """
    _check_ensemble(config)
    if config.start is None or config.start.model is None:
        return config, Beginning()
    card, leaves = checkpoint.read((find or Path)(config.start.model))
    for several in ("members", "heads"):
        if card.get(several):
            raise UsageError(
                f"a run starts from one potential; this file has {several}: {card[several]}",
                where=config.start.model,
                fix="models.members.split_members or models.heads.select_head",
            )
    _check_agreement(config.model, card)
    fields = {**_decided_by_data(card), **card["fields"]}
    for label, field in OF_LABELS.items():
        if label in terms and not fields.get(field, card["architecture"] == "So3krates"):
            raise UsageError(
                f"the loss has a weight for {label}, which the start does not predict",
                where=config.start.model,
                fix=f"no weight for {label}, or a model that was trained on it",
            )
    card = {name: value for name, value in card.items() if name not in BESIDE}
    kept = {name: x for name, x in leaves.items() if name.startswith("params/")}
    model = Model(architecture=card["architecture"], fields=fields)
    return replace(config, model=model), Beginning(card, kept)


def _check_ensemble(config):
    """Members that begin alike and see the same are one model, whose uncertainty would be zero."""
    start, n, share = config.start, config.ensemble, config.ensemble_share
    if start is None or n == 1:
        return
    if start.heads:
        raise UsageError("several heads in an ensemble are not supported", where="start.heads")
    if start.model is not None and start.update != "lora" and share == 1:
        raise UsageError(
            f"{n} members that begin at one model and see the same frames would be equal",
            where="ensemble",
            fix="ensemble_share below 1, or start: {update: lora}",
        )


def _decided_by_data(card):
    """Defaults of the fields that a run without a start would fill from its data."""
    specs = getattr(models, card["architecture"]).__dataclass_fields__
    names = ("cutoff", "avg_num_neighbors", "scale", "dipole", "polarizability")
    return {name: specs[name].default for name in names if name in specs}


def _check_agreement(model: Model, card):
    if model == Model():
        return
    specs = getattr(models, card["architecture"]).__dataclass_fields__
    default = lambda name: specs[name].default if name in specs else None
    plain = lambda x: json.loads(json.dumps(x))
    differ = [
        f"{name}: {value} here, {card['fields'].get(name, default(name))} there"
        for name, value in model.fields.items()
        if plain(value) != plain(card["fields"].get(name, default(name)))
    ]
    if model.architecture != card["architecture"]:
        differ = [f"architecture: {model.architecture} here, {card['architecture']} there", *differ]
    if differ:
        raise UsageError(
            "the section is not that of the model to start from: " + "; ".join(differ),
            where="model",
            fix="leave it out: architecture and fields come with the start",
        )


# --- what the data decide ------------------------------------------------------------------------


def settle(begun: Beginning, config: Config, terms, frames) -> Beginning:
    """With elements and reference energies of the data, and the frames of other data to replay."""
    old = replayed(config, begun, terms, len(frames))
    names = config.start.heads if config.start is not None else []
    if begun.card is None:
        fit = lambda some: fit_reference_energies([s.numbers for s, _ in some], energies_of(some))
        groups = of_heads(names, frames + old) if names and "energy" in terms else {}
        references = {name: fit(some) for name, some in groups.items()}
        return begun._replace(replay=tuple(old), references=references or None)
    elements = sorted({int(z) for s, _ in frames + old for z in np.unique(s.numbers)})
    card, leaves = _with_elements(config.start, begun, elements)
    if config.start.reference_energies != "keep":
        card, leaves = keep_elements(card, leaves, elements)
    begun = begun._replace(potential=card, params=nested(leaves))
    fit = lambda some, head=None: references_of(config, card, begun.params, some, head=head)
    if names:
        found = {name: fit(some, name) for name, some in of_heads(names, frames + old).items()}
        return begun._replace(references=found, replay=tuple(old))
    before = card.get("reference_energies") or {}  # of elements that are replayed alone too
    alone = {int(z): float(e) for z, e in before.items() if int(z) in elements}
    references = alone | fit(frames)
    moved = tuple(_moved(frame, before, references) for frame in old)
    return begun._replace(references=references, replay=moved)


def _moved(frame, before, after):
    """A frame whose energy is as far above the new references as it was above the old ones."""
    system, labels = frame
    if "energy" not in labels:
        return frame
    of = lambda z: after[z] - float(before.get(str(z), np.nan))
    change = sum(of(int(z)) for z in system.numbers if z)
    return system, labels | {"energy": labels["energy"] + change}


def with_start(card: dict, begun: Beginning, config: Config) -> dict:
    """The card of the run: architecture, fields and elements of the start, and where it is from."""
    if config.start is None:
        return card
    heads = list(config.start.heads)
    references = {"reference_energies": begun.references} if begun.references else {}
    if heads:
        references = {"reference_energies": {}, "head_reference_energies": begun.references}
        references["heads"] = heads
    if begun.card is None:
        return {**card, **references}
    old = begun.potential
    told = {name: begun.card[name] for name in OWN if name in begun.card}
    return {
        **{name: old[name] for name in KEPT if old.get(name)},
        **card,
        **references,
        "architecture": old["architecture"],
        "fields": old["fields"],
        "elements": list(old["fields"]["elements"]),
        "started_from": {**told, "update": config.start.update},
        "data": {**card["data"], "start": {"sha256": begun.card["sha256"]}},
    }


def moving(potential, begun: Beginning, config: Config):
    """The potential of the leaves that are trained, one with heads where there are several."""
    start = config.start
    if start is None:
        return potential
    params = begun.params
    if start.heads:
        potential = heads_potential(potential, start.heads)
        params = None if params is None else stack_heads(params, len(start.heads))
    if params is None:
        return potential
    return transfer(potential, params, update=update_named(start.update, rank=start.rank))


def _with_elements(start, begun, elements):
    unknown = sorted(set(elements) - set(begun.card["fields"]["elements"]))
    like = {atomic_number(z): atomic_number(model) for z, model in start.like.items()}
    missing = [z for z in unknown if z not in like]
    if missing:
        raise UsageError(
            f"the data have elements {missing} (atomic numbers) that {start.model} does not know",
            where="start.like",
            fix="say like which known element each begins, such as start: {like: {S: O}}",
        )
    like, radii = {z: like[z] for z in unknown}, {"covalent_radii": covalent_radii(unknown)}
    return extend_elements(begun.card, begun.leaves, unknown, like=like, fields=radii)


def references_of(config: Config, card, params, frames, *, head=None) -> dict[int, float]:
    """{atomic number: eV} of the labels of `frames` for a start with card and params.

    `refit`: those of `refit`, for the elements of the frames. `keep`, or given: refused with
    `UsageError` if `refit` shows them to be of another level of theory.
    """
    asked = _asked(config, head)
    old = {int(z): float(e) for z, e in (card.get("reference_energies") or {}).items()}
    if isinstance(asked, dict):
        old = {atomic_number(z): float(e) for z, e in asked.items()}
    energies = energies_of(frames)
    if not np.isfinite(energies).any():
        return old
    options = {"batch_atoms": config.batch_atoms, "dtype": config.dtype}
    bare = bare_energies(card, params, frames, **options)
    found, shift = refit([s.numbers for s, _ in frames], energies, bare, old)
    if asked == "refit":
        return found
    missing = sorted(set(found) - set(old))
    if missing or shift > LIMIT:
        what = f"they are {shift:.3g} eV per atom off the labels, which are of another level"
        raise UsageError(
            f"no reference energies for elements {missing}" if missing else what,
            where="start.reference_energies",
            fix="reference_energies: refit",
        )
    return old


def _asked(config, head):
    """What is to be done about reference energies; a table is of the head where there are some."""
    asked = config.start.reference_energies
    if not isinstance(asked, dict):
        return config.data.reference_energies or asked
    if head is not None and head not in asked:
        raise UsageError(
            f"no table for the head '{head}', there are some of {sorted(asked)}",
            where="start.reference_energies",
            fix="{head: {element: eV}}, or refit",
        )
    return asked if head is None else asked[head]


def energies_of(frames) -> np.ndarray:
    """The labels, [n_frames] eV float64, NaN where unknown."""
    return np.array([labels.get("energy", [np.nan])[0] for _, labels in frames], np.float64)


def bare_energies(card, params, frames, *, batch_atoms: int, dtype) -> np.ndarray:
    """Energies without references that a model predicts, eV, [n_frames] float64."""
    systems = [s for s, _ in frames]
    potential = bind(checkpoint.potential_of({**card, "reference_energies": {}}), systems)
    apply, params = jax.jit(potential.apply), cast(params, dtype)
    bare = [(s, {}) for s in systems]
    buckets = make_buckets(bare, n_buckets=1, max_atoms=batch_atoms)
    out = np.full(len(frames), np.nan)
    for b, members in plan(buckets, [s.n_atoms for s in systems], seed=None):
        system, _ = batch(bare, buckets[b], members)
        out[members] = np.asarray(apply(params, system)["energy"], np.float64)[: len(members)]
    return out


def refit(numbers, energies, bare, old: dict[int, float]) -> tuple[dict[int, float], float]:
    """(reference energies, shift): the old ones plus what is missing, by least squares.

    numbers: [[n_atoms]] of each structure; energies, bare: [n_structures] eV, labels (NaN where
    unknown) and what the start predicts without references. The rest energies - bare - sum of old
    is fitted by energies of elements, of which the smallest are taken where compositions leave a
    choice; an element without an old one is free. shift: root mean square of the fit, eV per atom.
    Structures of one atom are left out where there are others, for a start need not know them.
    """
    elements = np.unique(np.concatenate([n[n > 0] for n in map(np.asarray, numbers)]))
    counts = np.array([(np.asarray(n)[:, None] == elements).sum(0) for n in numbers], float)
    sizes = counts.sum(1)
    used = np.isfinite(energies) & ((sizes > 1) | (sizes.max() == 1))
    prior = np.array([old.get(int(z), 0.0) for z in elements])
    rest = (np.asarray(energies) - bare - counts @ prior)[used]
    freedom = np.array([1.0 if int(z) in old else FREE for z in elements])
    change = freedom * np.linalg.lstsq(counts[used] * freedom, rest, rcond=None)[0]
    known = np.array([int(z) in old for z in elements])
    fitted = counts[used] @ np.where(known, change, 0) / sizes[used]
    found = {int(z): float(e) for z, e in zip(elements, prior + change, strict=True)}
    return found, float(np.sqrt(np.mean(fitted**2))) if used.any() else 0.0
