"""Uncertainties of known quality have the numbers that follow from the normal distribution."""

import math

import numpy as np
import pytest
from numpy.testing import assert_allclose

from jaxmlip.errors import DataError
from jaxmlip.train.evaluation import calibration as c

N = 20_000
RNG = np.random.default_rng(0)
S = np.exp(RNG.normal(size=N))  # standard deviations over a wide range
E = S * RNG.normal(size=N)  # errors that have them exactly
NOISE = 1 / math.sqrt(N)


def area_if_scaled(k):
    """Area between the diagonal and the reliability curve of errors k times the predicted ones."""
    p = (np.arange(2000) + 0.5) / 2000
    observed = np.array([math.erf(c.interval(x) / k / math.sqrt(2)) for x in p])
    return np.abs(observed - p).mean()


def test_a_perfect_uncertainty_is_on_the_diagonal():
    # the mean of |F_n - F| is sqrt(pi / 8) / sqrt(n) x pi / 4 at most; three times that
    assert c.miscalibration_area(E, S) < NOISE
    expected, observed = c.reliability(E, S)
    assert_allclose(observed, expected, atol=3 * 0.5 * NOISE * 1.5)
    assert_allclose(c.recalibration_factor(E, S), 1, atol=3 * NOISE)  # sd of z² is sqrt 2
    predicted, found = c.binned(E, S, n_bins=5)
    assert_allclose(found, predicted, rtol=5 * math.sqrt(5 / 2) * NOISE * 3)


@pytest.mark.parametrize("k", [0.5, 2.0])
def test_a_wrong_scale_has_its_analytic_area_likelihood_and_factor(k):
    wrong = S / k
    assert_allclose(c.miscalibration_area(E, wrong), area_if_scaled(k), atol=2 * NOISE)
    assert_allclose(c.recalibration_factor(E, wrong), k, rtol=3 * NOISE)
    # <ln s' + z'^2/2> with z' = k z: sd of z'^2/2 is k² / sqrt 2, of ln s 1
    analytic = np.log(wrong).mean() + 0.5 * math.log(2 * math.pi) + 0.5 * k**2
    assert_allclose(c.negative_log_likelihood(E, wrong), analytic, atol=3 * k**2 * NOISE)
    report = c.calibration(E, wrong)
    assert report["best_negative_log_likelihood"] < report["negative_log_likelihood"]
    assert_allclose(report["sharpness"], np.sqrt((wrong**2).mean()))


def test_area_is_the_integral_of_the_curve():
    e, s = E[:50], 0.7 * S[:50]
    p = (np.arange(200_000) + 0.5) / 200_000
    levels, observed = c.reliability(e, s, levels=p)
    assert_allclose(c.miscalibration_area(e, s), np.abs(observed - levels).mean(), atol=1e-5)


def test_rank_correlation():
    x = np.array([3.0, 1.0, 2.0, 2.0])
    assert_allclose(c.spearman(x, np.exp(x)), 1)  # of any rising function
    assert_allclose(c.spearman(x, -x), -1)
    # ranks 4 1 2.5 2.5 and 1 2 3 4: sum of products of deviations -1.5, over sqrt(4.5 x 5)
    assert_allclose(c.spearman(x, [1, 2, 3, 4]), -1.5 / math.sqrt(22.5))
    assert math.isnan(c.spearman(x, np.ones(4)))
    assert abs(c.spearman(np.abs(E), RNG.permutation(S))) < 4 * NOISE


def test_what_is_no_uncertainty_is_refused():
    for errors, spread in (([1.0, 2.0], [1.0, 0.0]), ([np.nan], [1.0]), ([1.0], [1.0, 2.0])):
        with pytest.raises(DataError, match="uncertaint"):
            c.negative_log_likelihood(errors, spread)
