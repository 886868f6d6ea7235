"""Learning rates over a run, its end, and what the validation decides: host numbers, pure."""

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


# --- of a run and its position --------------------------------------------------------------------


def rate_at(run, at) -> float:
    """The learning rate of the next step: by the planned steps or hours, whichever is nearer."""
    o, second = run.config.optimizer, run.config.second_stage
    if at.stage == 2 and second.learning_rate is not None:
        return second.learning_rate
    rate = o.learning_rate * warm(at.step, warmup=o.warmup_steps)
    if o.schedule == "cosine":
        return rate * cosine(fraction(run, at), floor=o.floor)
    return rate * at.share


def fraction(run, at) -> float:
    """Of the plan that is done."""
    hours = run.config.hours
    return max(at.step / run.steps, at.seconds / (3600 * hours) if hours else 0.0)


def waited(run, at) -> bool:
    """Whether the validations have had no better one for as long as the run has patience."""
    return run.config.patience is not None and at.waited >= run.config.patience


def over(run, at) -> bool:
    """Whether the run ends here."""
    last_stage = run.config.second_stage is None or at.stage == 2
    ended = at.epoch >= run.config.epochs or out_of_time(run.config, at)
    return ended or (last_stage and waited(run, at))


def out_of_time(config, at) -> bool:
    """Whether the hours of the run are spent."""
    return config.hours is not None and at.seconds >= 3600 * config.hours
