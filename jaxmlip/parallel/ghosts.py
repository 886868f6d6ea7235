"""Which atoms a domain needs from others, and the tables of their exchange (host, numpy)."""

import numpy as np

from jaxmlip.parallel.halo import Halo
from jaxmlip.system import ladder


def link(owner, local, senders, receivers, *, grid, capacity: int, kept: Halo | None = None):
    """The halo; each edge's sender in its receiver's domain; ghosts received [n_rounds, n_domains].

    owner, local: domain of each atom and its row there; senders, receivers: real edges; kept: a
    halo whose rounds and sizes are the least that the new one has.
    """
    needs, atom, remote, inverse = _ghosts(owner, senders, receivers)
    source = owner[atom]
    offsets, round_of = _rounds(needs, source, grid, kept)
    n_domains = int(np.prod(grid))
    slot = rank_in_group(round_of * n_domains + source)
    received = np.zeros((len(offsets), n_domains), int)
    np.add.at(received, (round_of, needs), 1)
    sizes = [padded(n, _kept_size(kept, o)) for n, o in zip(received, offsets, strict=True)]
    send = [np.tile(np.arange(size) % capacity, (n_domains, 1)) for size in sizes]
    for i, table in enumerate(send):  # padding sends distinct atoms: one row would be contended
        mine = round_of == i
        table[source[mine], slot[mine]] = local[atom[mine]]
    begins = capacity + np.cumsum([0, *sizes])
    index = local[senders]
    index[remote] = (begins[round_of] + slot)[inverse]
    tables = tuple(table.reshape(-1).astype(np.int32) for table in send)
    return Halo(send=tables, grid=grid, offsets=offsets), index.astype(np.int32), received


def _ghosts(owner, senders, receivers):
    """Distinct pairs (domain that needs it, atom), which edges are remote, and the pair of each."""
    remote = owner[senders] != owner[receivers]
    keys = owner[receivers[remote]].astype(np.int64) * len(owner) + senders[remote]
    pairs, inverse = np.unique(keys, return_inverse=True)
    return pairs // len(owner), pairs % len(owner), remote, inverse


def _rounds(needs, source, grid, kept):
    """The grid steps that occur (and those kept), sorted, and the round of each ghost."""
    places = [np.stack(np.unravel_index(domain, grid), -1) for domain in (needs, source)]
    steps = np.mod(places[0] - places[1], grid)
    codes = np.ravel_multi_index(tuple(steps.T), grid)
    old = kept.offsets if kept and kept.grid == grid else ()
    rounds = np.union1d(codes, [np.ravel_multi_index(o, grid) for o in old]).astype(int)
    offsets = tuple(tuple(map(int, np.unravel_index(code, grid))) for code in rounds)
    return offsets, np.searchsorted(rounds, codes)


def _kept_size(kept, offset):
    if kept is None or offset not in kept.offsets:
        return 0
    return len(kept.send[kept.offsets.index(offset)]) // int(np.prod(kept.grid))


def rank_in_group(group):
    """Position of each element among those of its group, in order of appearance."""
    order = np.argsort(group, kind="stable")
    ordered = group[order]
    rank = np.empty(len(group), int)
    rank[order] = np.arange(len(group)) - np.searchsorted(ordered, ordered)
    return rank


def padded(counts, least: int = 0) -> int:
    """A size from the ladder that holds every count, and is not less than `least` (nor than 1)."""
    return max(ladder(max(int(np.max(counts, initial=0)), 1)), least)
