"""Temperatures and divisions of a command line, checked before anything is computed."""

from jaxmlip.errors import UsageError

MOST = 1e5  # temperatures of one command


def temperatures(limits, *, above_zero: bool = False, at_least: int = 1):
    """[n] K of (first, last, step); `UsageError` unless they are at_least many and ascending."""
    import numpy as np

    first, last, step = limits
    good = 0 <= first <= last < np.inf and 0 < step < np.inf and (last - first) / step < MOST
    n = int((last - first) / step + 1e-9) + 1 if good else 0
    if n < at_least or (above_zero and first == 0):
        least = "0 < first" if above_zero else "0 <= first"
        count = f", {at_least} or more of them" if at_least > 1 else ""
        raise UsageError(
            f"no temperatures from {first:g} to {last:g} K in steps of {step:g}",
            where="--temperatures",
            fix=f"{least} <= last and a step above zero{count}, such as 100 800 100",
        )
    return first + step * np.arange(n)


def check_divisions(**counts) -> None:
    """`UsageError` unless all three numbers of every option are 1 or more."""
    for name, values in counts.items():
        if min(values) < 1:
            raise UsageError(
                f"--{name} is {' '.join(map(str, values))}; all three must be 1 or more",
                where=f"--{name}",
            )
