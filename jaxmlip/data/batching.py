"""Padded batches of few shapes: frames sorted into buckets by neighbour count, packed by atoms.

A bucket has one fixed shape (n_atoms, n_graphs, n_neighbors), so a step is compiled once per
bucket. Which frames meet in a batch depends on (seed, epoch) alone. Everything is host numpy.
"""

from dataclasses import dataclass

import numpy as np

from jaxmlip.errors import DataError
from jaxmlip.potential import PER_ATOM, PER_STRUCTURE
from jaxmlip.system import Edges, System

OPEN = 8  # batches kept open while packing: more of them waste less padding


@dataclass(frozen=True)
class Bucket:
    """One padded shape and the frames that go into it."""

    n_atoms: int
    n_graphs: int  # one more than the structures that fit: the last is empty and owns the padding
    n_neighbors: int
    frames: tuple[int, ...]


def atoms_of(frames) -> np.ndarray:
    """[n_frames] numbers of atoms, without reading frames that are not in memory."""
    told = getattr(frames, "atoms", None)
    return np.array([s.n_atoms for s, _ in frames]) if told is None else told


def widths_of(frames) -> np.ndarray:
    """[n_frames] most neighbours of one atom, as `atoms_of`."""
    told = getattr(frames, "widths", None)
    return np.array([_width(s) for s, _ in frames]) if told is None else told


def make_buckets(frames, *, n_buckets: int = 2, max_atoms: int = 192) -> tuple[Bucket, ...]:
    """Buckets of the frames [(System, labels)], each frame in the narrowest that holds it.

    The limits are those that minimise padded edges; `max_atoms` grows to the largest frame.
    """
    if not len(frames):
        raise DataError("there are no frames to make batches of", code="JM202")
    atoms, widths = atoms_of(frames), widths_of(frames)
    out, lower = [], -1
    for upper in _limits(atoms, widths, n_buckets):
        chosen = np.flatnonzero((widths > lower) & (widths <= upper))
        size = max(max_atoms, int(atoms[chosen].max()))
        graphs = min(int(np.ceil(1.25 * size / atoms[chosen].mean())), len(chosen)) + 1
        out.append(
            Bucket(
                min(size, int(atoms[chosen].sum())),
                graphs,
                max(int(upper), 1),
                tuple(chosen.tolist()),
            )
        )
        lower = upper
    return tuple(out)


def choose_buckets(
    frames, *, target: float = 0.2, most: int = 6, max_atoms: int = 192
) -> tuple[Bucket, ...]:
    """As few buckets as keep `padding` at or below `target`, at most `most`; else the best found.

    Each bucket is one more shape to compile.
    """
    best, least = None, 2.0
    for n in range(1, most + 1):
        buckets = make_buckets(frames, n_buckets=n, max_atoms=max_atoms)
        share = padding(frames, buckets)
        if share < least - 0.005:
            best, least = buckets, share
        if least <= target or len(buckets) < n:
            break
    return best


def padding(frames, buckets) -> float:
    """Share of the edge slots of an epoch that buckets and packing add to what frames need, 0 to 1.

    A frame needs its number of atoms times the most neighbours one of them has.
    """
    atoms = atoms_of(frames)
    batches = plan(buckets, atoms, seed=0)
    slots = sum(buckets[b].n_atoms * buckets[b].n_neighbors for b, _ in batches)
    needed = int((atoms * np.maximum(widths_of(frames), 1)).sum())
    return 1 - needed / max(slots, 1)


def _width(system):
    return int(np.asarray(system.edges.mask).sum(axis=1).max(initial=0))


def _limits(atoms, widths, n_buckets):
    """Upper widths of the classes that minimise the sum of atoms x width (dynamic programming)."""
    levels, inverse = np.unique(widths, return_inverse=True)
    total = np.concatenate([[0], np.cumsum(np.bincount(inverse, atoms))])
    best = {0: (0.0, ())}
    for _ in range(min(n_buckets, len(levels))):
        best = {
            j: min(
                (cost + (total[j] - total[i]) * levels[j - 1], (*cut, levels[j - 1]))
                for i, (cost, cut) in best.items()
                if i < j
            )
            for j in range(1, len(levels) + 1)
            if any(i < j for i in best)
        }
    return best[len(levels)][1]


def plan(buckets, atoms, *, seed: int | None, epoch: int = 0) -> list[tuple[int, list[int]]]:
    """[(bucket, frame indices)] of one epoch; atoms: number of atoms of each frame.

    seed None keeps the order of the frames (validation).
    """
    rng = None if seed is None else np.random.default_rng([seed, epoch])
    out = []
    for b, bucket in enumerate(buckets):
        order = np.array(bucket.frames)
        order = order if rng is None else rng.permutation(order)
        out += [(b, batch) for batch in _pack(order.tolist(), atoms, bucket)]
    return out if rng is None else [out[i] for i in rng.permutation(len(out))]


def _pack(order, atoms, bucket):
    """First fit among a few open batches."""
    done, opened = [], []
    for i in order:
        fit = next(
            (
                o
                for o in opened
                if o[0] + atoms[i] <= bucket.n_atoms and len(o[1]) < bucket.n_graphs - 1
            ),
            None,
        )
        if fit is None:
            if len(opened) == OPEN:
                fullest = max(range(OPEN), key=lambda n: opened[n][0])
                done.append(opened.pop(fullest)[1])
            fit = [0, []]
            opened.append(fit)
        fit[0] += atoms[i]
        fit[1].append(i)
    return done + [members for _, members in opened]


def waste(buckets, batches, atoms) -> float:
    """Share of padded edge slots that hold no atom of a frame, 0 to 1."""
    slots = sum(buckets[b].n_atoms * buckets[b].n_neighbors for b, _ in batches)
    used = sum(sum(atoms[i] for i in members) * buckets[b].n_neighbors for b, members in batches)
    return 1 - used / max(slots, 1)


def batch(frames, bucket: Bucket, members) -> tuple[System, dict]:
    """The frames `members` in the shape of the bucket; labels are padded with NaN."""
    chosen = [frames[i] for i in members]
    system = _empty(bucket, chosen[0][0].positions.dtype)
    labels = _no_labels(bucket, chosen[0][1], chosen[0][0].positions.dtype)
    start = 0
    for g, (one, known) in enumerate(chosen):
        stop = start + one.n_atoms
        _fill(system, one, g, start, stop)
        for name, value in known.items():
            rows = slice(start, stop) if name in PER_ATOM else slice(g, g + 1)
            labels[name][rows] = value
        start = stop
    return system, labels


def _fill(system, one, g, start, stop):
    system.positions[start:stop] = one.positions
    system.numbers[start:stop] = one.numbers
    system.graph[start:stop] = g
    for name in ("cell", "pbc", "charge", "spin", "field"):
        getattr(system, name)[g] = getattr(one, name)[0]
    edges, k = one.edges, min(one.edges.senders.shape[1], system.edges.senders.shape[1])
    system.edges.senders[start:stop, :k] = edges.senders[:, :k] + start
    system.edges.shifts[start:stop, :k] = edges.shifts[:, :k]
    system.edges.mask[start:stop, :k] = edges.mask[:, :k]


def _empty(bucket, dtype):
    n, g, k = bucket.n_atoms, bucket.n_graphs, bucket.n_neighbors
    return System(
        positions=np.zeros((n, 3), dtype),
        numbers=np.zeros(n, np.int32),
        graph=np.full(n, g - 1, np.int32),
        cell=np.tile(np.eye(3, dtype=dtype), (g, 1, 1)),
        pbc=np.zeros((g, 3), bool),
        charge=np.zeros(g, dtype),
        spin=np.ones(g, dtype),
        field=np.zeros((g, 3), dtype),
        edges=Edges(
            senders=np.zeros((n, k), np.int32),
            receivers=None,
            shifts=np.zeros((n, k, 3), np.int32),
            mask=np.zeros((n, k), bool),
        ),
    )


def _no_labels(bucket, like, dtype):
    shape = lambda name: (
        (bucket.n_atoms, *PER_ATOM[name])
        if name in PER_ATOM
        else (bucket.n_graphs, *PER_STRUCTURE.get(name, ()))  # weights, heads, properties: a number
    )
    return {name: np.full(shape(name), np.nan, dtype) for name in like}


def batches(frames, buckets, *, seed: int | None, epoch: int = 0, start: int = 0):
    """Iterator of (System, labels) over one epoch, from batch `start` on."""
    atoms = atoms_of(frames)
    for b, members in plan(buckets, atoms, seed=seed, epoch=epoch)[start:]:
        yield batch(frames, buckets[b], members)
