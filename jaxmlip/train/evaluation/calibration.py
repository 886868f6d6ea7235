"""How good an uncertainty is: does it have the size of the errors, and is it large where they are?

Errors e and predicted standard deviations s are arrays of one shape, in one unit; z = e / s. What
is not finite, or has no spread (s <= 0), is refused. A perfect uncertainty makes z unit normal.
Numbers asked for by Kahle and Zipoli, 2022, 10.1103/PhysRevE.105.015311. Host work only.
"""

import math
from statistics import NormalDist

import numpy as np

from jaxmlip.errors import DataError


def calibration(errors, deviations) -> dict[str, float]:
    """All numbers of this file that are one number, {name: value}, and n.

    n, rmse, mae, sharpness, negative_log_likelihood, best_negative_log_likelihood (after scaling
    by recalibration_factor), spearman, miscalibration_area, recalibration_factor.
    """
    e, s = _checked(errors, deviations)
    factor = recalibration_factor(e, s)
    return {
        "n": len(e),
        "rmse": float(np.sqrt((e**2).mean())),
        "mae": float(np.abs(e).mean()),
        "sharpness": sharpness(s),
        "negative_log_likelihood": negative_log_likelihood(e, s),
        "best_negative_log_likelihood": negative_log_likelihood(e, factor * s) if factor else None,
        "spearman": spearman(np.abs(e), s),
        "miscalibration_area": miscalibration_area(e, s),
        "recalibration_factor": factor,
    }


def negative_log_likelihood(errors, deviations) -> float:
    """Mean over the data of ln(s sqrt(2 pi)) + z²/2; depends on the unit of s. Less is better."""
    e, s = _checked(errors, deviations)
    return float((np.log(s) + 0.5 * math.log(2 * math.pi) + 0.5 * (e / s) ** 2).mean())


def spearman(first, second) -> float:
    """Correlation of the ranks, -1 to 1, equal values sharing their mean rank; of |e| with s it is
    about 0.4 to 0.6 even for perfect uncertainties, for an error is one draw. NaN if all are equal.
    """
    a, b = (x - x.mean() for x in (_ranks(first), _ranks(second)))
    norm = math.sqrt((a @ a) * (b @ b))
    return float(a @ b / norm) if norm else math.nan


def recalibration_factor(errors, deviations) -> float:
    """sqrt(mean z²): s times this has the largest likelihood of all multiples of s."""
    e, s = _checked(errors, deviations)
    return float(np.sqrt(((e / s) ** 2).mean()))


def sharpness(deviations) -> float:
    """sqrt(mean s²), in the unit of s. Of two calibrated uncertainties the sharper is better."""
    return float(np.sqrt((np.asarray(deviations, float) ** 2).mean()))


def reliability(errors, deviations, *, levels=None):
    """(expected, observed) shares of errors in central intervals: the reliability diagram.

    levels: the expected shares, between 0 and 1 (default 0.01, 0.02 ... 0.99). Above the diagonal
    the uncertainties are too large, below it too small.
    """
    levels = np.linspace(0.01, 0.99, 99) if levels is None else np.asarray(levels, float)
    shares = np.sort(_shares(*_checked(errors, deviations)))
    return levels, np.searchsorted(shares, levels, side="right") / len(shares)


def miscalibration_area(errors, deviations) -> float:
    """Area between the reliability curve and the diagonal, 0 (perfect) to 0.5; exact integral.

    Of n normal errors with the right s it is about 0.31 / sqrt(n), not 0.
    """
    shares = np.sort(_shares(*_checked(errors, deviations)))
    n = len(shares)
    edges = np.concatenate([[0.0], shares, [1.0]])
    height = np.arange(n + 1) / n  # the observed share between two edges
    below, above = edges[:-1] - height, edges[1:] - height
    # integral of |p - height|: the antiderivative is x |x| / 2
    return float((above * np.abs(above) - below * np.abs(below)).sum() / 2)


def binned(errors, deviations, *, n_bins: int = 10):
    """(s, rmse) of bins of equal count in order of s: root mean squares, [n_bins] each.

    For a calibrated uncertainty the points lie on the diagonal (Levi et al., 2022,
    10.3390/s22155540).
    """
    e, s = _checked(errors, deviations)
    if not 1 <= n_bins <= len(e):
        raise DataError(f"{n_bins} bins of {len(e)} values", where="binned")
    parts = np.array_split(np.argsort(s, kind="stable"), n_bins)
    rms = lambda x: np.array([np.sqrt((x[p] ** 2).mean()) for p in parts])
    return rms(s), rms(e)


def interval(share: float) -> float:
    """Half width, in standard deviations, of the central interval with that share of a normal."""
    return NormalDist().inv_cdf(0.5 * (1 + share))


def _shares(e, s):
    """The share of the central interval at whose edge each error lies, erf(|z| / sqrt 2)."""
    return np.array([math.erf(z / math.sqrt(2)) for z in np.abs(e / s)])


def _ranks(values):
    values = np.asarray(values, float).ravel()
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    return (last - (counts - 1) / 2)[inverse]


def _checked(errors, deviations):
    e, s = (np.asarray(x, np.float64).ravel() for x in (errors, deviations))
    bad = None
    if e.shape != s.shape or not len(e):
        bad = f"{len(e)} errors and {len(s)} uncertainties"
    elif not (np.isfinite(e).all() and np.isfinite(s).all() and (s > 0).all()):
        i = int(np.flatnonzero(~(np.isfinite(e) & np.isfinite(s) & (s > 0)))[0])
        bad = f"value {i} has the error {e[i]} and the uncertainty {s[i]}"
    if bad:
        raise DataError(
            bad, where="calibration", fix="finite errors, and as many uncertainties above zero"
        )
    return e, s
