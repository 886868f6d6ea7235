"""The frames of a run: read, checked, isolated atoms taken out, split.

What is checked before anything is computed: labels that are asked for are there, energies, forces
and stresses belong together (`data.faults`), and nothing is left out in silence.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from jaxmlip.data.card import PAIR_CUTOFF, of_frames, same_in_several
from jaxmlip.data.duplicates import content_hash
from jaxmlip.data.faults import find_faults, mending_units
from jaxmlip.data.splits import folds, load_split, save_split, split
from jaxmlip.data.survey import survey
from jaxmlip.errors import DataError
from jaxmlip.interfaces.labels import atomic_number, read_set
from jaxmlip.parallel.processes import first_process
from jaxmlip.train.config.settings import Config, weights
from jaxmlip.train.frames.second_derivatives import with_hessians
from jaxmlip.train.frames.sources import headed, with_property
from jaxmlip.train.frames.stored import free_atoms, is_stored, mapped, read_stored, taken

SPLIT = "split.json"
STOPPING = (  # what no run can mean; the rest is told
    *("energy_unit", "forces_unit", "forces_sign", "energy_and_forces_disagree"),
    *("stress_unit", "stress_sign", "forces_zero", "energies_identical", "identical_frames"),
)


@dataclass(frozen=True, kw_only=True)
class Frames:
    """What a run is made of; each [(System, labels)]."""

    train: Sequence  # a list, or `Stored`
    valid: Sequence
    atoms: list  # isolated atoms: they tell reference energies and are not trained on


def read_data(config: Config, *, needed, tell=print) -> Frames:
    """Reads and checks the frames; a split is written beside the run and used again.

    needed: labels that must be there. tell: called with each thing worth knowing. Raises
    `DataError` for faults that are certain; `data.checks: false` leaves out those of statistics.
    """
    data = config.data
    one, seen = _read(config, data.train, needed, "train")
    other, more = (None, None) if data.valid is None else _read(config, data.valid, needed, "valid")
    for note in (*one.notes, *(other.notes if other else ())):
        tell(note)
    if data.checks:
        check([seen(), *([more()] if other else [])], needed, tell=tell, units=data.units)
    frames = with_hessians(_weighted(one, config), config.curvature.hessians)
    frames = with_property(config, data.train, headed(config, data.train, frames))
    real, atoms = _without_atoms(one, data)
    _check_some(real, one, data.train)
    if other is not None:
        held = with_hessians(_weighted(other, config), config.curvature.valid_hessians)
        held = with_property(config, data.valid, headed(config, data.valid, held))
        kept, free = _without_atoms(other, data)
        _check_some(kept, other, data.valid)
        return Frames(
            train=taken(frames, real),
            valid=taken(held, kept),
            atoms=[frames[i] for i in atoms] + [held[i] for i in free],
        )
    part = _split(config, one, real)
    return Frames(
        train=taken(frames, part["train"]),
        valid=taken(frames, part["valid"]),
        atoms=[frames[i] for i in atoms],
    )


def _read(config, path, needed, name):
    """(`LabelledSet` of a file, function that tells its `Survey`)."""
    options = dict(
        keys=config.data.keys,
        units=config.data.units,
        needed=needed,
        dtype=np.dtype(config.dtype),
        group_key=config.data.group_key if config.data.valid is None else None,
    )
    cutoff = float(config.model.fields["cutoff"])
    if is_stored(path) and _one_by_one(config):
        found, seen = read_stored(path, cutoff, name=name, **options)
        return found, lambda: seen
    found = read_set(path, cutoff, **options)
    return found, lambda: survey(found.seen, name=name)


def _one_by_one(config) -> bool:
    """Whether frames can stay in their file: not where others are added to them, or heads told."""
    headed = config.start is not None and config.start.heads
    return not (headed or config.replay or "hessian" in weights(config))


def _weighted(one, config):
    """The frames with the weights of their config_type."""
    factors = config.loss.config_type_weights
    if not factors:
        return one.frames

    def weighted(i, system, labels):
        own = np.nan_to_num(labels.get("weight", np.ones(1)), nan=1.0)
        return labels | {"weight": own * float(factors.get(one.kinds[i], 1.0))}

    return mapped(one.frames, weighted)


def _without_atoms(one, data):
    """(indices of frames to train on, of isolated atoms)."""
    free = free_atoms(one.frames, one.kinds)
    atoms = [i for i, f in enumerate(free) if f]
    real = [i for i, f in enumerate(free) if data.train_isolated_atoms or not f]
    return real, atoms


def _check_some(real, one, path):
    if not real:
        raise DataError(
            f"no frame is left to train on: {len(one.frames)} were read, all of them are isolated "
            "atoms",
            where=str(path),
            code="JM202",
            fix="add structures of more than one atom, or data: train_isolated_atoms: true",
        )


def _split(config, one, real):
    """{part: indices of frames}, made once and kept beside the run."""
    path = Path(config.output) / SPLIT
    hashes = [content_hash(system, labels) for system, labels in one.frames]
    if not path.is_file():
        groups = [one.groups[i] for i in real] if config.data.group_key else None
        fractions = {"valid": config.data.valid_fraction}
        part = split(len(real), fractions, seed=config.seed, groups=groups)
        chosen = {name: [real[i] for i in indices] for name, indices in part.items()}
        if not first_process():
            return chosen  # the same, from the same seed
        path.parent.mkdir(parents=True, exist_ok=True)
        save_split(path, chosen, hashes=hashes)
    return load_split(path, hashes=hashes)


def write_folds(config: Config, folders, k: int) -> None:
    """Writes the splits of a k-fold cross-validation, of fold 0 into the first folders, and so on.

    len(folders) is a multiple of k. A split that is there already is kept: it is checked when used.
    """
    one, _ = _read(config, config.data.train, (), "train")
    real, _ = _without_atoms(one, config.data)
    hashes = [content_hash(system, labels) for system, labels in one.frames]
    groups = [one.groups[i] for i in real] if config.data.group_key else None
    parts = folds(len(real), k, seed=config.seed, groups=groups)
    for n, folder in enumerate(map(Path, folders)):
        held = {real[i] for i in parts[n * k // len(folders)]}
        folder.mkdir(parents=True, exist_ok=True)
        if not (folder / SPLIT).is_file():
            chosen = {"valid": sorted(held), "train": [i for i in real if i not in held]}
            save_split(folder / SPLIT, chosen, hashes=hashes)


# --- checks --------------------------------------------------------------------------------------


def check(surveys, needed, *, tell, units=None) -> None:
    """Statistical checks of [Survey]; certain faults of labels in `needed` raise.

    units: {label: unit} that were converted when reading.
    """
    faults = []
    for one in surveys:
        for f in [*of_frames(one), *find_faults(one.sample, cutoff=PAIR_CUTOFF)]:
            if f.fault and f.name in STOPPING and (f.label is None or f.label in needed):
                faults.append((one.name, f))
            elif f.fault or f.label in needed or not f.name.endswith("_missing"):
                tell(f"{one.name}: {f.text}")
    for f in same_in_several(surveys):
        tell(f.text)
    if faults:
        found = mending_units([f for _, f in faults], units or {})
        mend = f"data: units: {found} converts them" if found else "mend the data"
        raise DataError(
            "; ".join(f"{name}: {f.text}" for name, f in faults),
            where="data",
            code="JM226",
            fix=f"{mend}; data: checks: false trains on them as they are",
        )


def given_energies(config: Config) -> dict[int, float]:
    """{atomic number: eV} of `data.reference_energies`."""
    return {atomic_number(k): float(e) for k, e in config.data.reference_energies.items()}
