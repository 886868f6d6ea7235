"""Learning rates over a run, and what the validation decides: host numbers, pure functions."""

import math
from dataclasses import replace


def cosine(fraction: float, *, floor: float) -> float:
    """Half a cosine from 1 to `floor` in the fraction of the plan that is done, 0 to 1."""
    return floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * min(max(fraction, 0.0), 1.0)))


def warm(step: int, *, warmup: int) -> float:
    """A line from 0 to 1 over `warmup` steps; step counts from 0."""
    return min(1.0, (step + 1) / max(warmup, 1))


def learning_rate(step: int, fraction: float, *, peak: float, warmup: int, floor: float) -> float:
    """Linear warm-up over `warmup` steps times a cosine in the fraction of the plan, 1 to floor."""
    return peak * warm(step, warmup=warmup) * cosine(fraction, floor=floor)


def validated(at, metric: float, *, factor: float, patience: int, floor: float):
    """(at, whether the metric is the best so far) after one more validation.

    at: a dataclass with `best` (the smallest metric of a model that was kept, or None), `waited`
    (validations since then), `share` (of the learning rate that plateaus have left) and `flat`
    (validations since the last improvement or cut), which this updates. After more than `patience`
    validations without a new best one, the share is multiplied by `factor` (not below `floor`), as
    often as that happens. A metric that is not finite is never the best.
    """
    if math.isfinite(metric) and (at.best is None or metric < at.best):
        return replace(at, best=metric, waited=0, flat=0), True
    at = replace(at, waited=at.waited + 1, flat=at.flat + 1)
    if at.flat > patience:
        at = replace(at, share=max(at.share * factor, floor), flat=0)
    return at, False
