"""Frames of several kinds in one run: other levels of theory, and data that came before.

A frame carries its head, the level of theory, as the label `head`, the index of the name that
stands in the file (info key `head`); a name that the run does not list is an error, never another
head. Frames that are replayed carry a weight.
"""

import jax
import numpy as np

from jaxmlip.data.batching import batch, make_buckets, plan
from jaxmlip.data.free_atoms import is_free_atom
from jaxmlip.errors import DataError, did_you_mean
from jaxmlip.interfaces.datasets import iter_atoms
from jaxmlip.interfaces.labels import read_set
from jaxmlip.models import checkpoint
from jaxmlip.models.heads import HEAD
from jaxmlip.models.leaves import nested
from jaxmlip.potential import PER_ATOM, PER_STRUCTURE, bind
from jaxmlip.system import cast
from jaxmlip.train.config.settings import Config
from jaxmlip.train.frames.references import without_references
from jaxmlip.train.frames.stored import Stored, mapped
from jaxmlip.train.objective.prediction import labelled_prediction


def headed(config: Config, path, frames, *, default: str | None = None) -> list:
    """The frames of a file with the label `head`, [1]; as they are where the run has no heads.

    default: the head of frames that name none (None: `start.head`). Raises `DataError` for a head
    that is not one of the run's, or for none.
    """
    if config.start is None or not config.start.heads:
        return frames
    names, default = config.start.heads, default or config.start.head
    found = [atoms.info.get("head", default) for atoms in iter_atoms(path)]
    if len(found) != len(frames):
        raise DataError(
            f"{len(found)} frames name their heads, {len(frames)} were read", where=str(path)
        )
    numbers = [_index(name, names, f"{path} frame {i}") for i, name in enumerate(found)]
    each = zip(frames, numbers, strict=True)
    return [(s, labels | {HEAD: np.array([float(i)])}) for (s, labels), i in each]


def with_property(config: Config, path, frames):
    """The frames of a file with the label of `config.property`, [1], NaN where a frame has none."""
    p = config.property
    if p is None:
        return frames
    key = p.key or f"REF_{p.name}"
    given = (atoms.info.get(key) for atoms in iter_atoms(path))
    values = [_number(value, key, i, path) for i, value in enumerate(given)]
    if np.isnan(values).all():
        raise DataError(
            f"no frame has '{key}', the property to be trained on",
            where=str(path),
            code="JM220",
            fix="property: {key: ...} names it",
        )
    return mapped(frames, lambda i, system, labels: labels | {p.name: np.array([values[i]])})


def _number(value, key, i, path):
    try:
        return float("nan") if value is None else float(value)
    except (TypeError, ValueError) as error:
        raise DataError(
            f"'{key}' is not a number: {value!r}", where=f"{path} frame {i}", code="JM221"
        ) from error


def _index(name, names, where):
    if name is None or str(name) not in names:
        what = "names no head" if name is None else f"has the head '{name}'"
        raise DataError(
            f"the frame {what}, the run has {names}.{did_you_mean(name, names)}",
            where=where,
            code="JM233",
            fix="info key `head` in the file; start: heads, or head for all frames without one",
        )
    return names.index(str(name))


def of_heads(names, frames) -> dict:
    """{name: frames of that head}. Raises `DataError` for a head without frames."""
    by_head = {n: [f for f in frames if f[1][HEAD][0] == i] for i, n in enumerate(names)}
    empty = [name for name, some in by_head.items() if not some]
    if empty:
        raise DataError(
            f"no training frame is of the head(s) {empty}",
            where="start.heads",
            code="JM233",
            fix="leave them out, or add data (replay)",
        )
    return by_head


def bare_labels(frames, card: dict) -> list:
    """The frames with the energies of free atoms removed, in float64, each those of its head."""
    if not card.get("head_names"):
        return without_references(frames, card["reference_energies"])
    out, known = list(frames), [np.isfinite(labels[HEAD]).all() for _, labels in frames]
    if not all(known):
        raise DataError(
            f"{known.count(False)} frames (of second derivatives?) have no head",
            where="start.heads",
            code="JM233",
            fix="frames of one level of theory in a run without heads",
        )
    for i, name in enumerate(card["head_names"]):
        places = [n for n, (_, labels) in enumerate(frames) if labels[HEAD][0] == i]
        table = (card.get("head_reference_energies") or {}).get(name)
        bare = without_references([frames[n] for n in places], table)
        for n, frame in zip(places, bare, strict=True):
            out[n] = frame
    return out


def same_labels(frames) -> list:
    """The frames with the same labels each, NaN for what a frame does not have."""
    if isinstance(frames, Stored):
        return frames  # as they are read
    known = sorted(set().union(*(labels for _, labels in frames)))

    def missing(system, name):
        per_atom = name in PER_ATOM
        shape = PER_ATOM[name] if per_atom else PER_STRUCTURE.get(name, ())
        return np.full((system.n_atoms if per_atom else 1, *shape), np.nan)

    fill = lambda s, labels: {n: labels[n] if n in labels else missing(s, n) for n in known}
    return [(s, fill(s, labels)) for s, labels in frames]


def replayed(config: Config, begun, terms, n_new: int) -> list:
    """Frames of `config.replay`: as many as make its fraction of all, drawn once by the seed.

    begun: `start.beginning.Beginning`, whose predictions are their labels where they are asked for.
    """
    r = config.replay
    if r is None:
        return []
    found = read_set(
        r.train,
        float(config.model.fields["cutoff"]),
        keys=r.keys,
        units=r.units,
        needed=() if r.labels == "start" else tuple(name for name in terms if name == "forces"),
        dtype=np.dtype(config.dtype),
    )
    frames = headed(config, r.train, found.frames, default=r.head)
    if not config.data.train_isolated_atoms:
        each = zip(frames, found.kinds, strict=True)
        frames = [f for f, kind in each if not is_free_atom(f[0], kind)]
    n = min(len(frames), max(1, round(n_new * r.fraction / (1 - r.fraction))))
    chosen = np.random.default_rng([config.seed, 5]).choice(len(frames), n, replace=False)
    frames = [frames[i] for i in np.sort(chosen)]
    if r.labels == "start":
        frames = labelled_by(begun, frames, terms, config)
    unknown = {"energy": np.array([np.nan])} if "energy" in terms else {}
    weight = lambda labels: np.nan_to_num(labels.get("weight", np.ones(1)), nan=1.0) * r.weight
    return [(s, unknown | labels | {"weight": weight(labels)}) for s, labels in frames]


def labelled_by(begun, frames, terms, config: Config) -> list:
    """The frames with the predictions of the start as their labels (energies are total ones)."""
    bare = checkpoint.potential_of({**begun.card, "reference_energies": {}})
    bare = bind(bare, [s for s, _ in frames])
    names = [name for name in terms if name != "hessian"]
    prediction = jax.jit(labelled_prediction(bare.apply, dict.fromkeys(names)))
    params = cast(nested(begun.leaves), config.dtype)
    references = begun.card.get("reference_energies") or {}
    empty = [(s, {}) for s, _ in frames]
    buckets = make_buckets(empty, n_buckets=1, max_atoms=config.batch_atoms)
    out = list(frames)
    for b, members in plan(buckets, [s.n_atoms for s, _ in frames], seed=None):
        system, _ = batch(empty, buckets[b], members)
        found = {k: np.asarray(v) for k, v in prediction(params, system).items() if k in names}
        start = 0
        for g, i in enumerate(members):
            one, labels = frames[i]
            rows = slice(start, start + one.n_atoms)
            told = {
                k: np.asarray(v[rows] if k in PER_ATOM else v[g : g + 1], np.float64)
                for k, v in found.items()
            }
            if "energy" in told:
                atoms = sum(float(references.get(str(int(z)), 0.0)) for z in one.numbers)
                told["energy"] = told["energy"] + atoms
            if not np.any(one.pbc):
                told.pop("stress", None)  # of a molecule there is none
            kept = {k: v for k, v in labels.items() if k == HEAD or k.startswith("weight")}
            out[i] = (one, kept | told)
            start = rows.stop
    return out
