"""Labelled structures from files: each frame as a `System` and a dict of labels.

Labels carry the keys, units and shapes of a prediction (one structure is a batch of one). What a
file does not say is NaN, never zero; what it says wrongly is refused with its frame and value.

Which key is read: the one that is named (`keys`), else REF_<label>, and no other: a plain `energy`
is not taken for the reference unless it is named. Where both are there and differ, the file has to
be asked which is meant. A stress can stand there as a virial (REF_virial): stress = -virial / V.

Units are converted where the file's own are named: `interfaces.label_values.UNITS`.
"""

import logging
from collections import Counter
from dataclasses import dataclass

import numpy as np
from ase.data import atomic_numbers

from jaxmlip.errors import DataError, UsageError, did_you_mean
from jaxmlip.interfaces.ase import from_ase
from jaxmlip.interfaces.datasets import iter_atoms
from jaxmlip.interfaces.label_values import (
    UNITS,
    label_value,
    raw_label,
    results_of,
    shape_of,
    shaped_label,
)
from jaxmlip.interfaces.read import check_occupancy
from jaxmlip.potential import PER_ATOM, PER_STRUCTURE
from jaxmlip.system import System

KEYS = {
    name: f"REF_{name}"
    for name in (
        *("energy", "forces", "stress"),
        *("dipole", "polarizability", "charges", "born_charges"),
    )
}
KEYS |= {"weight": "config_weight"}  # of the frame, and of one label of it
KEYS |= {k: f"config_{k[7:]}_weight" for k in PER_STRUCTURE if k.startswith("weight:")}
VIRIALS = ("REF_virial", "REF_virials")
CONFLICT = 1e-6  # of two labels of one thing, in their own unit

log = logging.getLogger("jaxmlip")


@dataclass(frozen=True, kw_only=True)
class Labelled:
    """One frame of a labelled file."""

    system: System
    labels: dict  # {label: float64}, those that the frame has
    keys: tuple[str, ...]  # all keys of the frame in the file
    used: dict  # {label: key that was read}
    kind: str  # config_type, or ""
    group: str  # value of the key by which frames belong together, or ""
    constrained: bool  # constraints stand in the file; labels are read as they are all the same


@dataclass(frozen=True, kw_only=True)
class LabelledSet:
    """All frames of a labelled file."""

    frames: list  # [(System, labels)]; labels have the same keys in every frame, NaN: unknown
    kinds: list[str]
    groups: list[str]
    notes: list[str]  # what was decided while reading
    seen: list[Labelled]  # the frames with all else that the file says of them


def read_labelled(
    path,
    cutoff: float | None,
    *,
    keys: dict | None = None,
    units: dict | None = None,
    needed=(),
    dtype=np.float32,
):
    """[(System, labels)] of every frame; labels are float64 with the shapes of a batch of one.

    keys: {label: key in the file}, added to the defaults REF_energy, REF_forces ...
    units: {label: unit in the file} where it is not the first of `UNITS`.
    needed: labels that at least one frame must have. Labels that no frame has are left out.
    """
    return read_set(path, cutoff, keys=keys, units=units, needed=needed, dtype=dtype).frames


def read_set(
    path,
    cutoff: float | None,
    *,
    keys: dict | None = None,
    units: dict | None = None,
    needed=(),
    dtype=np.float32,
    group_key: str | None = None,
) -> LabelledSet:
    """`read_labelled` with what else the frames say; notes on what was decided."""
    options = dict(keys=keys, units=units, dtype=dtype, group_key=group_key)
    found = list(iter_labelled(path, cutoff, **options))
    frames = with_all_labels([(f.system, f.labels) for f in found])
    return labelled_set(frames, found, path, keys=keys, needed=needed, group_key=group_key)


def labelled_set(
    frames, found, path, *, keys: dict | None = None, needed=(), group_key=None
) -> LabelledSet:
    """The set of frames [(System, labels)] and what the file says of them, checked and told."""
    if not found:
        raise DataError("the file has no frames", where=str(path), code="JM202")
    _check_needed(found, {label: (KEYS | (keys or {}))[label] for label in needed}, path)
    if group_key is not None:
        _check_groups(found, group_key, path)
    return LabelledSet(
        frames=frames,
        kinds=[f.kind for f in found],
        groups=[f.group for f in found],
        notes=reading_notes(found, path),
        seen=found,
    )


def iter_labelled(
    path,
    cutoff: float | None,
    *,
    keys=None,
    units=None,
    dtype=np.float32,
    group_key=None,
    on_bad=None,
):
    """The frames of a file, one after another, as `Labelled`; see `read_labelled`.

    on_bad: called with the `DataError` of each frame that cannot be read, which is then left out.
    """
    named, units = keys or {}, units or {}
    _check_names("keys", named, PER_ATOM | PER_STRUCTURE)
    _check_names("units", units, UNITS)
    for label, unit in units.items():
        _check_names(f"units.{label}", [unit.removeprefix("-")], UNITS[label])
    options = dict(keys=named, units=units, dtype=dtype, group_key=group_key)
    for i, frame in enumerate(iter_atoms(path, on_bad=on_bad)):
        try:
            yield one_labelled(frame, cutoff, f"{path} frame {i}", **options)
        except DataError as error:
            if on_bad is None:
                raise
            on_bad(error)


def one_labelled(
    frame, cutoff, where: str, *, keys=None, units=None, dtype=np.float32, group_key=None
) -> Labelled:
    """One `ase.Atoms` of a file as `Labelled`; `iter_labelled` has checked keys and units."""
    check_occupancy(frame, where)
    labels, used = _labels(frame, keys or {}, units or {}, where)
    return Labelled(
        system=from_ase(frame, cutoff, dtype=dtype, where=where),
        labels=labels,
        keys=(*frame.info, *frame.arrays, *results_of(frame)),
        used=used,
        kind=str(frame.info.get("config_type", "")),
        group=str(frame.info.get(group_key, "")) if group_key else "",
        constrained=bool(frame.constraints),
    )


def with_all_labels(frames):
    """The frames with the same labels each: NaN where a frame has none."""
    known = sorted(set().union(*(labels for _, labels in frames)))
    missing = lambda s, name: np.full(shape_of(name, s.n_atoms), np.nan)
    return [(s, {n: labels.get(n, missing(s, n)) for n in known}) for s, labels in frames]


def reading_notes(found, path) -> list[str]:
    """What a person should know of how labels were read."""
    notes, n = [], len(found)
    virials = Counter(f.used["stress"] for f in found if f.used.get("stress") in VIRIALS)
    for key, count in virials.items():
        notes.append(f"{path}: stress = -virial / volume from '{key}' in {count} of {n} frames")
    if constrained := sum(f.constrained for f in found):
        notes.append(
            f"{path}: {constrained} of {n} frames have constraints; labels are read as they stand"
        )
    if any(f.group for f in found) and (alone := sum(not f.group for f in found)):
        notes.append(f"{path}: {alone} of {n} frames have no group and are split one by one")
    return notes


def _check_names(where, names, known):
    for name in names:
        if name not in known:
            raise UsageError(
                f"unknown name '{name}'.{did_you_mean(name, sorted(known))}",
                where=where,
                fix=f"one of {', '.join(sorted(known))}",
            )


def atomic_number(element) -> int:
    """The atomic number of a symbol or number. Raises `UsageError`."""
    text = str(element).strip()
    number = int(text) if text.isdigit() else atomic_numbers.get(text.capitalize(), 0)
    if not 1 <= number <= 118:
        known = [s for s in atomic_numbers if s != "X"]
        raise UsageError(f"'{text}' is not an element.{did_you_mean(text.capitalize(), known)}")
    return number


# --- labels of one frame -------------------------------------------------------------------------


def _labels(frame, named, units, where):
    """({label: value}, {label: key}) of what the frame has."""
    labels, used = {}, {}
    for name, key in (KEYS | named).items():
        unit = units.get(name)
        if name == "stress" and name not in named and raw_label(frame, key) is None:
            key = next((k for k in VIRIALS if raw_label(frame, k) is not None), key)
            if key in VIRIALS and "virial" not in (unit or ""):
                unit = "-eV virial" if (unit or "").startswith("-") else "eV virial"
        raw = raw_label(frame, key)
        if raw is None:
            continue
        if name not in named:
            _check_conflict(frame, name, key, raw, where)
        labels[name], used[name] = label_value(frame, name, key, raw, unit, where), key
    return labels, used


def _check_conflict(frame, name, key, raw, where):
    """Two labels of one thing that differ: only the owner of the file knows which is meant."""
    plain, shape = raw_label(frame, name), shape_of(name, len(frame))
    if plain is None or key in (name, *VIRIALS):
        return
    try:
        read = lambda x: shaped_label(np.asarray(x, np.float64), shape, name, key, where)
        a, b = read(raw), read(plain)
    except (TypeError, ValueError):  # a DataError is a ValueError; what is read is refused later
        return
    if not (np.isfinite(a).all() and np.isfinite(b).all()):
        return
    difference = np.abs(a - b).max(initial=0)
    if difference > CONFLICT * max(1.0, np.abs(a).max(initial=0) * 1e-3):
        raise DataError(
            f"'{key}' and '{name}' differ by {difference:.3g} (limit {CONFLICT:g}), and '{key}' "
            "would be read",
            where=where,
            code="JM225",
            fix=f"say which is meant, data: keys: {{{name}: {key}}} or {{{name}: {name}}}",
        )


def _check_groups(found, group_key, path):
    """Without groups a split would tear trajectories apart in silence."""
    if any(f.group for f in found):
        return
    present = Counter(key for f in found for key in f.keys)
    raise DataError(
        f"no frame has '{group_key}', by which frames belong together."
        f"{did_you_mean(group_key, present)}",
        where=str(path),
        code="JM220",
        fix="name a key of the comment lines (data: group_key), or none",
    )


def _check_needed(found, needed, path):
    missing = [label for label in needed if not any(label in f.labels for f in found)]
    if not missing:
        return
    present = Counter(key for f in found for key in f.keys)
    label = missing[0]
    counts = ", ".join(f"{key} ({n})" for key, n in present.most_common())
    close = label if label in present else needed[label]
    raise DataError(
        f"no frame has '{needed[label]}', the {label} that the loss asks for."
        f"{did_you_mean(close, present)} Keys in {len(found)} frames: {counts}",
        where=str(path),
        code="JM220",
        fix=f"name the right key (data: keys: {label}: ...) or give {label} no weight",
    )
