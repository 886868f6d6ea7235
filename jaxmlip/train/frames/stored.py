"""Frames that stay in their file and are read, with their edges, when their batch is made.

One pass over a file of any length keeps what a run must know of each frame beforehand: sizes,
composition, energy and forces in a few numbers, and which labels it has. `Stored` is then a
sequence of [(System, labels)] like a list of them, of which a limited number is held in memory.
"""

from array import array
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from jaxmlip.data.batching import widths_of
from jaxmlip.data.free_atoms import is_free_atom
from jaxmlip.data.statistics import average_neighbors, rms_of, squares
from jaxmlip.data.survey import Survey, survey
from jaxmlip.errors import DataError
from jaxmlip.interfaces.datasets import by_index
from jaxmlip.interfaces.label_values import shape_of
from jaxmlip.interfaces.labels import LabelledSet, iter_labelled, labelled_set, one_labelled
from jaxmlip.potential import bind

SUFFIXES = (".h5", ".hdf5", ".db")  # of files whose frames can be read one by one
NUMBERS = ("atoms", "width", "edges", "energy", "square", "components", "free")


@dataclass(frozen=True, kw_only=True)
class Facts:
    """What is known of every frame of a file without reading it."""

    table: np.ndarray  # [n_frames, len(NUMBERS)] float64
    numbers: list  # [n_frames] sorted atomic numbers, one array a composition

    def __getitem__(self, name: str) -> np.ndarray:
        return self.table[:, NUMBERS.index(name)]


@dataclass(frozen=True, kw_only=True, eq=False)
class Stored(Sequence):
    """[(System, labels)] of a file; each is read when it is asked for, unless it is held."""

    read: Callable  # (System, labels) of the number of a frame in the file
    facts: Facts
    rows: np.ndarray  # [n_frames] their numbers in the file
    changes: tuple = ()  # labels = change(number in the file, system, labels), in turn
    limit: int = 0  # frames that are held; those that are read first
    held: dict = field(default_factory=dict)

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, k: int):
        i = int(self.rows[k])
        if i in self.held:
            return self.held[i]
        system, labels = self.read(i)
        self._check(i, system)
        for change in self.changes:
            labels = change(i, system, labels)
        if len(self.held) < self.limit:
            self.held[i] = (system, labels)
        return system, labels

    def _check(self, i, system):
        """Sizes decide shapes: a frame that has grown since would lose edges in silence."""
        if system.edges is None:
            return
        found, known = (system.n_atoms, int(widths_of([(system, {})])[0])), self.facts.table[i, :2]
        if found != tuple(known.astype(int)):
            raise DataError(
                f"frame {i} has changed since the run began: {found} atoms and neighbours, "
                f"were {tuple(known.astype(int).tolist())}",
                code="JM227",
                fix="leave data alone while they are trained on; run the same command again",
            )

    def take(self, places) -> "Stored":
        """Those at some places of the sequence."""
        return replace(self, rows=self.rows[np.asarray(places, int)], held={})

    def changed(self, change: Callable) -> "Stored":
        """With other labels: change(number in the file, system, labels)."""
        return replace(self, changes=(*self.changes, change), held={})

    def holding(self, limit: int) -> "Stored":
        """As many as this are kept in memory once they were read."""
        return replace(self, limit=limit, held={})

    @property
    def atoms(self) -> np.ndarray:
        return self.facts["atoms"][self.rows].astype(int)

    @property
    def widths(self) -> np.ndarray:
        return self.facts["width"][self.rows].astype(int)


def read_stored(
    path, cutoff: float, *, name="", needed=(), group_key=None, **options
) -> tuple[LabelledSet, Survey]:
    """What `read_set` and `survey` tell of a file, in one pass; frames is a `Stored`.

    options: keys, units and dtype, as of `read_set`.
    """
    lines, numbers, compositions, seen, same = array("d"), [], {}, [], {}

    def noted():
        for frame in iter_labelled(path, cutoff, group_key=group_key, **options):
            lines.extend(_line(frame))
            own = np.sort(np.asarray(frame.system.numbers))
            numbers.append(compositions.setdefault(own.tobytes(), own))
            seen.append(_without_arrays(frame, same))
            yield frame

    told = survey(noted(), name=name)
    facts = Facts(table=np.frombuffer(lines).reshape(-1, len(NUMBERS)), numbers=numbers)
    frames = by_index(path)
    one = lambda i: one_labelled(frames[i], cutoff, f"{path} frame {i}", **options)
    read = lambda i: (lambda f: (f.system, f.labels))(one(i))
    names = sorted(set().union(*(f.labels for f in seen)))

    def complete(i, system, labels):
        missing = lambda n: np.full(shape_of(n, system.n_atoms), np.nan)
        return {n: labels[n] if n in labels else missing(n) for n in names}

    frames_of = Stored(read=read, facts=facts, rows=np.arange(len(seen)), changes=(complete,))
    checked = {"needed": needed, "group_key": group_key, "keys": options.get("keys")}
    return labelled_set(frames_of, seen, path, **checked), told


def _line(frame):
    s, labels = frame.system, frame.labels
    known = np.asarray(labels.get("forces", ()))
    return (
        s.n_atoms,
        widths_of([(s, {})])[0],
        np.sum(s.edges.mask),
        labels.get("energy", [np.nan])[0],
        *squares(known),
        is_free_atom(s, frame.kind),
    )


def _without_arrays(frame, same):
    """The frame with names instead of values, one object for all that are alike."""
    names, used = tuple(sorted(frame.labels)), tuple(frame.used.items())
    key = (names, frame.keys, used, frame.kind, frame.group, frame.constrained)
    light = replace(frame, system=None, labels=dict.fromkeys(names))
    return same.setdefault(key, light)


# --- what is asked of frames, in memory or not ---------------------------------------------------


def is_stored(path) -> bool:
    """Whether the frames of a file can be read one by one."""
    return Path(path).suffix.lower() in SUFFIXES


def free_atoms(frames, kinds) -> list[bool]:
    """[n_frames] which are isolated atoms; kinds: config_type of each."""
    if isinstance(frames, Stored):
        return frames.facts["free"][frames.rows].astype(bool).tolist()
    return [is_free_atom(s, k) for (s, _), k in zip(frames, kinds, strict=True)]


def numbers_of(frames) -> list:
    """[n_frames] atomic numbers of each, in any order."""
    if isinstance(frames, Stored):
        return [frames.facts.numbers[i] for i in frames.rows]
    return [s.numbers for s, _ in frames]


def energies_of(frames) -> np.ndarray:
    """The labels, [n_frames] eV float64 as they stand in the file, NaN where unknown."""
    if isinstance(frames, Stored):
        return frames.facts["energy"][frames.rows]
    return np.array([labels.get("energy", [np.nan])[0] for _, labels in frames], np.float64)


def neighbors_of(frames) -> float:
    """Mean number of neighbours of an atom."""
    if isinstance(frames, Stored):
        return float(frames.facts["edges"][frames.rows].sum()) / max(int(frames.atoms.sum()), 1)
    return average_neighbors([s for s, _ in frames])


def forces_rms(frames) -> float:
    """Root mean square of a component of the known forces, eV/Å (NaN without any)."""
    if isinstance(frames, Stored):
        return rms_of(frames.facts.table[frames.rows][:, 4:6].tolist())
    return rms_of([squares(labels["forces"]) for _, labels in frames if "forces" in labels])


def bind_to(potential, frames):
    """`bind` to all frames, which are read only for a potential that plans."""
    planned = getattr(potential, "plan", None) is not None
    return bind(potential, [s for s, _ in frames]) if planned else potential


def mapped(frames, change: Callable):
    """The frames with labels = change(place, system, labels)."""
    if isinstance(frames, Stored):
        place = {int(i): k for k, i in enumerate(frames.rows)}
        return frames.changed(lambda i, system, labels: change(place[i], system, labels))
    return [(s, change(k, s, labels)) for k, (s, labels) in enumerate(frames)]


def taken(frames, places):
    """Those at some places."""
    return frames.take(places) if isinstance(frames, Stored) else [frames[i] for i in places]


def holding(train, valid, limit: int) -> tuple:
    """Both, with at most `limit` of their stored frames in memory, those to train on first."""
    keep = lambda frames, n: frames.holding(n) if isinstance(frames, Stored) else frames
    used = min(limit, len(train)) if isinstance(train, Stored) else 0
    return keep(train, used), keep(valid, limit - used)
