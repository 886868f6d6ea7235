"""One pass over a data set of any length: a line of numbers for each frame, and a sample of frames.

The lines (some 150 bytes each) are all that grows with the length; the statistical tests of units
and signs work on the sample, pairs of frames that follow each other, taken evenly by chance.
"""

from array import array
from collections import Counter
from dataclasses import dataclass

import numpy as np

from jaxmlip.data.duplicates import SIZE, fingerprint
from jaxmlip.data.free_atoms import is_free_atom

COLUMNS = (
    *("n_atoms", "composition", "free", "pbc", "energy"),
    *("force_square", "force_max", "net_force", "force_sum", "zero_forces", "stress_max"),
    *(f"wave{i}" for i in range(SIZE)),
)
PAIRS = 150  # of frames that follow each other, in the sample


@dataclass(frozen=True, kw_only=True)
class Survey:
    """What was seen of one data set."""

    name: str
    table: np.ndarray  # [n_frames, len(COLUMNS)]; NaN: not known
    compositions: list[tuple[tuple[int, int], ...]]  # ((atomic number, count), ...), charge, spin
    keys: Counter  # {key in the file: frames that have it}
    used: dict[str, Counter]  # {label: {key that was read: frames}}
    kinds: Counter  # {config_type: frames}
    constrained: int  # frames with constraints
    sample: list  # [(System, labels)]

    def __getitem__(self, column: str) -> np.ndarray:
        return self.table[:, COLUMNS.index(column)]

    def __len__(self):
        return len(self.table)

    @property
    def labels(self) -> dict[str, int]:
        """{label: frames that have it}."""
        return {label: sum(keys.values()) for label, keys in sorted(self.used.items())}

    @property
    def elements(self) -> list[int]:
        """Atomic numbers, sorted."""
        return sorted({z for c in self.compositions for z, _ in c[0]})

    def counts(self, elements) -> np.ndarray:
        """[n_frames, n_elements] atoms of each element."""
        each = np.array([[dict(c[0]).get(z, 0) for z in elements] for c in self.compositions])
        return each[self["composition"].astype(int)].astype(float)


def survey(frames, *, name: str = "") -> Survey:
    """Looks once at each of the frames (`interfaces.labels.Labelled`), which may be a stream."""
    lines, compositions, sample = array("d"), {}, _Sample()
    keys, used, kinds, constrained = Counter(), {}, Counter(), 0
    for frame in frames:
        lines.extend(_line(frame, compositions))
        keys.update(set(frame.keys))
        kinds[frame.kind] += 1
        constrained += frame.constrained
        for label, key in frame.used.items():
            used.setdefault(label, Counter())[key] += 1
        sample.add((frame.system, frame.labels))
    return Survey(
        name=name,
        table=np.frombuffer(lines, np.float64).reshape(-1, len(COLUMNS)),
        compositions=list(compositions),
        keys=keys,
        used=used,
        kinds=kinds,
        constrained=constrained,
        sample=sample.frames(),
    )


def _line(frame, compositions):
    system, labels = frame.system, frame.labels
    numbers, counts = np.unique(np.asarray(system.numbers), return_counts=True)
    what = tuple(zip(numbers.tolist(), counts.tolist(), strict=True))
    key = (what, float(system.charge[0]), float(system.spin[0]))
    pbc = np.asarray(system.pbc[0]) @ [1, 2, 4]
    energy = labels.get("energy", [np.nan])[0]
    stress = np.abs(labels.get("stress", np.nan)).max()
    return (
        system.n_atoms,
        compositions.setdefault(key, len(compositions)),
        is_free_atom(system, frame.kind),
        pbc,
        energy,
        *_force_numbers(labels.get("forces")),
        stress,
        *fingerprint(system),
    )


def _force_numbers(forces):
    """Mean square of a component, longest, length of the sum, sum of lengths, atoms without."""
    if forces is None:
        return (np.nan,) * 5
    lengths = np.linalg.norm(forces, axis=1)
    total = np.linalg.norm(forces.sum(axis=0))
    return np.mean(forces**2), lengths.max(), total, lengths.sum(), (lengths == 0).sum()


class _Sample:
    """Pairs of consecutive frames of a stream, each pair with the same chance (algorithm R)."""

    def __init__(self):
        self.rng, self.kept, self.seen, self.pair = np.random.default_rng(0), [], 0, []

    def add(self, frame):
        self.pair.append(frame)
        if len(self.pair) == 2:
            self._keep()

    def _keep(self):
        self.seen += 1
        if len(self.kept) < PAIRS:
            self.kept.append((self.seen, self.pair))
        elif (place := int(self.rng.integers(self.seen))) < PAIRS:
            self.kept[place] = (self.seen, self.pair)
        self.pair = []

    def frames(self):
        last = [(self.seen + 1, self.pair)] if len(self.kept) < PAIRS else []
        pairs = sorted(self.kept + last, key=lambda p: p[0])
        return [frame for _, pair in pairs for frame in pair]
