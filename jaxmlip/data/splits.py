"""Reproducible splits: a seed decides which frame goes where, and the decision is kept.

It is kept with a hash of every frame, so that a file that has changed since is noticed even where
the number of its frames is the same.
"""

import json
import os
from pathlib import Path

import numpy as np

from jaxmlip.errors import DataError, UsageError

HASHES = "sha256"  # of the frames, beside the indices of the parts


def split(
    n: int, fractions: dict[str, float], *, seed: int = 0, groups=None
) -> dict[str, list[int]]:
    """{name: sorted indices} of n frames; what the fractions leave goes to 'train'.

    Every named part with a positive fraction gets at least one frame. groups [n]: frames of one
    group (a trajectory, a composition) come into one part, so parts can be a little larger than
    asked, and groups larger than a part go to others where they can; a group named '' is none.
    Raises `UsageError` where nothing would be left to train.
    """
    if any(f < 0 for f in fractions.values()) or sum(fractions.values()) >= 1:
        raise UsageError(f"fractions must be >= 0 and leave something to train: {fractions}")
    rng = np.random.default_rng(seed)
    together = _together(n, groups)
    order, out = [together[i] for i in rng.permutation(len(together))], {}
    for name, fraction in fractions.items():
        size = max(round(fraction * n), 1) if fraction > 0 else 0
        part: list[int] = []
        while len(part) < size and order:
            part += order.pop(_next(order, size))
        out[name] = sorted(part)
    if not order:
        kind = "frame(s)" if len(together) == n else "group(s) of frames"
        raise UsageError(f"{len(together)} {kind} are too few for {fractions} and training")
    return out | {"train": sorted(i for part in order for i in part)}


def _next(groups, size) -> int:
    """The first of the groups that fits into a part of this size; else the smallest."""
    fits = next((i for i, group in enumerate(groups) if len(group) <= size), None)
    return min(range(len(groups)), key=lambda i: len(groups[i])) if fits is None else fits


def folds(n: int, k: int, *, seed: int = 0, groups=None) -> list[list[int]]:
    """k parts of n frames as even as their groups allow: each frame is in one, sorted indices.

    groups: as of `split`. Raises `UsageError` for fewer groups than parts, or k below 2.
    """
    together = _together(n, groups)
    if not 2 <= k <= len(together):
        raise UsageError(f"{len(together)} frame(s) or groups of them cannot make {k} folds")
    order = [together[i] for i in np.random.default_rng(seed).permutation(len(together))]
    out: list[list[int]] = [[] for _ in range(k)]
    for part in sorted(order, key=len, reverse=True):
        min(out, key=len).extend(part)
    return [sorted(part) for part in out]


def _together(n, groups):
    """[[indices]] of frames that stay together."""
    if groups is None:
        return [[i] for i in range(n)]
    found: dict = {}
    for i, group in enumerate(groups):
        found.setdefault(("group", group) if group != "" else ("frame", i), []).append(i)
    return list(found.values())


def save_split(path, indices: dict[str, list[int]], *, hashes=None) -> None:
    """Writes the indices as JSON, atomically. hashes: one of each frame of the data, in order."""
    path = Path(path)
    partial = path.with_name(path.name + ".partial")
    kept = indices if hashes is None else indices | {HASHES: list(hashes)}
    partial.write_text(json.dumps(kept))
    os.replace(partial, path)


def load_split(path, *, hashes=None) -> dict[str, list[int]]:
    """The indices that `save_split` wrote.

    hashes: of the frames now; `DataError` if they are not those of which the split was made.
    """
    try:
        kept = json.loads(Path(path).read_text())
        known = kept.pop(HASHES, None)
        parts = {str(name): [int(i) for i in part] for name, part in kept.items()}
    except (OSError, ValueError, AttributeError, TypeError) as error:
        raise DataError(
            f"cannot be read as a split ({error})",
            where=str(path),
            code="JM207",
            fix="delete it: it is made again from the seed",
        ) from error
    if hashes is not None:
        _check_same(known, parts, list(hashes), path)
    return parts


def _check_same(known, parts, hashes, path):
    size = len(known) if known is not None else sum(map(len, parts.values()))
    fix = "use another output folder, or delete the split to make it anew"
    if size != len(hashes):
        raise UsageError(
            f"the split is of {size} frames, the data have {len(hashes)}", where=str(path), fix=fix
        )
    changed = [i for i, (a, b) in enumerate(zip(known or hashes, hashes, strict=True)) if a != b]
    if changed:
        shown = ", ".join(map(str, changed[:8])) + (" ..." if len(changed) > 8 else "")
        raise DataError(
            f"{len(changed)} of {size} frames are not those of which the split was made (frames "
            f"{shown}): the data file has changed, or its keys and units",
            where=str(path),
            code="JM227",
            fix=fix,
        )
