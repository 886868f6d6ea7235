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
from jaxmlip.data.statistics import fit_reference_energies
from jaxmlip.errors import UsageError
from jaxmlip.interfaces.elements import covalent_radii
from jaxmlip.interfaces.labels import atomic_number
from jaxmlip.models import checkpoint
from jaxmlip.models.elements import extend_elements, keep_elements
from jaxmlip.models.heads import HEAD, heads_potential, stack_heads
from jaxmlip.models.leaves import nested
from jaxmlip.train.config.settings import Config, Model
from jaxmlip.train.frames.reading import given_energies
from jaxmlip.train.frames.references import references_of
from jaxmlip.train.frames.sources import of_heads, replayed
from jaxmlip.train.frames.stored import energies_of, numbers_of
from jaxmlip.train.start.properties import add_property, readout_of
from jaxmlip.train.start.transfer import transfer, update_named

KEPT = ("licence", "citation", "electrostatics", "dispersion")  # of the card that is started from
BESIDE = ("uncertainty", "properties")  # fitted to what it was: not gone on with
OWN = ("name", "level_of_theory", "sha256")  # told of it in the new card
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
    path = (find or Path)(config.start.model)
    card, leaves = checkpoint.read(path)
    checkpoint.check_shapes(card, leaves, str(path))
    for several in ("members", "head_names"):
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
    for label in ("energy", "forces", "stress", "hessian"):
        if label in terms and not checkpoint.has_energy(card):
            raise UsageError(
                f"the loss has a weight for {label}, and the start has no energy",
                where=config.start.model,
                fix=f"no weight for {label}, or a model with an energy",
            )
    frozen = {"properties"} if config.property is not None else set()
    if frozen and card.get("uncertainty"):
        raise UsageError(
            "a property run would lose the uncertainty of this model",
            where=config.start.model,
            fix="add the property first, and then train.evaluation.uncertainty.write_uncertainty",
        )
    card = {name: value for name, value in card.items() if name not in {*BESIDE} - frozen}
    kept = {name: x for name, x in leaves.items() if name.split("/")[0] in {"params"} | frozen}
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


def settle(begun: Beginning, config: Config, terms, frames, *, atoms=()) -> Beginning:
    """With elements and reference energies of the data, and the frames of other data to replay.

    atoms: frames of isolated atoms, from which heads that begin at random have their references.
    """
    old = replayed(config, begun, terms, len(frames))
    names = config.start.heads if config.start is not None else []
    if begun.card is None:
        groups = of_heads(names, frames + old) if names and "energy" in terms else {}
        free = {name: [f for f in atoms if names[int(f[1][HEAD][0])] == name] for name in groups}
        fit = lambda some, free: fit_reference_energies(
            [s.numbers for s, _ in some + free],
            energies_of(some + free),
            free=[False] * len(some) + [True] * len(free),
            given=given_energies(config),
        )
        references = {name: fit(some, free[name]) for name, some in groups.items()}
        return begun._replace(replay=tuple(old), references=references or None)
    known = [*numbers_of(frames), *numbers_of(old)]
    elements = sorted({int(z) for numbers in known for z in np.unique(numbers)})
    card, leaves = _with_elements(config.start, begun, elements)
    if config.property is not None:
        return _with_property(config.property, begun, card, nested(leaves), frames, config.seed)
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


def _with_property(p, begun, card, params, frames, seed):
    """The model as it is with one more readout, the only one that is trained."""
    entry = {"extensive": p.extensive, "unit": p.unit, "widths": p.widths}
    key = jax.random.key(seed)
    card, params = add_property(card, params, p.name, frames[0][0], key=key, **entry)
    before = card.get("reference_energies") or {}
    references = {int(z): float(e) for z, e in before.items()}
    return begun._replace(potential=card, params=params, references=references)


def _moved(frame, before, after):
    """A frame whose energy is as far above the new references as it was above the old ones."""
    system, labels = frame
    if "energy" not in labels:
        return frame
    unknown = np.nan if before else 0.0  # without a table a start predicts total energies
    of = lambda z: after[z] - float(before.get(str(z), unknown))
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
        references["head_names"] = heads
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
        **{name: old[name] for name in ("properties",) if old.get(name)},
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
    if config.property is not None:
        return transfer(potential, params, update=readout_of(config.property.name))
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
