"""Reproducible splits: a seed decides which frame goes where, and the decision can be kept."""

import json
import os
from pathlib import Path

import numpy as np

from jaxmlip.errors import UsageError


def split(n: int, fractions: dict[str, float], *, seed: int = 0) -> dict[str, list[int]]:
    """{name: sorted indices} of n frames; what the fractions leave goes to 'train'.

    Every named part with a positive fraction gets at least one frame.
    """
    if any(f < 0 for f in fractions.values()) or sum(fractions.values()) >= 1:
        raise UsageError(f"fractions must be >= 0 and leave something to train: {fractions}")
    order = np.random.default_rng(seed).permutation(n)
    out, start = {}, 0
    for name, fraction in fractions.items():
        size = max(round(fraction * n), 1) if fraction > 0 else 0
        out[name] = sorted(order[start : start + size].tolist())
        start += size
    if start >= n:
        raise UsageError(f"{n} frame(s) are too few for {fractions} and training")
    return out | {"train": sorted(order[start:].tolist())}


def save_split(path, indices: dict[str, list[int]]) -> None:
    """Writes the indices as JSON, atomically."""
    path = Path(path)
    partial = path.with_name(path.name + ".partial")
    partial.write_text(json.dumps(indices))
    os.replace(partial, path)


def load_split(path) -> dict[str, list[int]]:
    """The indices that `save_split` wrote."""
    return json.loads(Path(path).read_text())
