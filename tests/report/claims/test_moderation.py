"""The moderated t against limma's formulas, evaluated with scipy's own functions and by hand."""

import math
import statistics

import numpy as np
import pytest
from scipy.optimize import brentq
from scipy.special import polygamma, psi

from normbench.report.claims.evidence import difference
from normbench.report.claims.moderation import Prior, fit, inverse_trigamma, moderated_interval, prior_of
from normbench.report.claims.rule import Rule, quantile

# squared deviations of BN by batch size, five seeds each, points: BeFranke and Hickmann (published.md, 5a)
PUBLISHED = [sd**2 for sd in (0.59, 0.41, 0.39, 0.26, 0.34, 0.50, 0.35, 0.21, 0.53, 0.43)]
SPREAD = [0.01, 0.04, 0.2, 0.9, 3.0, 0.05]


@pytest.mark.parametrize("y", [1e-4, 0.1, 1.0, 3.7, 50.0, 1e4])
def test_the_inverse_of_trigamma(y):
    assert inverse_trigamma(float(polygamma(1, y))) == pytest.approx(y, rel=1e-8)


@pytest.mark.parametrize("x", [1e-8, 1e8])
def test_the_inverse_of_trigamma_far_out_is_its_asymptote(x):
    # ψ'(y) is 1 / y for large y and 1 / y² for small y, to this relative error
    assert float(polygamma(1, inverse_trigamma(x))) == pytest.approx(x, rel=1e-3)


def test_a_prior_solves_the_equations_of_section_6_2():
    prior = fit(SPREAD, [4] * 6)
    e = [math.log(v) - psi(2) + math.log(2) for v in SPREAD]
    right = statistics.variance(e) - polygamma(1, 2)
    half = brentq(lambda y: polygamma(1, y) - right, 1e-3, 1e3, xtol=1e-12)
    assert prior.df == pytest.approx(2 * half, rel=1e-7)
    assert prior.variance == pytest.approx(math.exp(np.mean(e) + psi(half) - math.log(half)), rel=1e-7)
    assert prior.residual == 24


def test_published_spreads_differ_by_no_more_than_chance():
    # the variance of e is below ψ'(2) = 0.645, which four degrees of freedom have by themselves
    prior = fit(PUBLISHED, [4] * 10)
    assert prior.df == math.inf
    assert prior.variance == pytest.approx(statistics.fmean(PUBLISHED))
    assert prior.posterior(9.9, 4) == (prior.variance, 40)


def test_a_posterior_lies_between_prior_and_sample():
    assert Prior(1.0, 6.0, 100.0).posterior(4.0, 2) == ((6 * 1 + 2 * 4) / 8, 8.0)
    assert Prior(1.0, 6.0, 100.0).posterior(4.0, 2, weight=2.0) == ((6 * 2 + 2 * 4) / 8, 8.0)


def test_no_moderated_t_has_more_degrees_of_freedom_than_all_cells():
    assert Prior(1.0, 50.0, 12.0).posterior(1.0, 2)[1] == 12.0


def test_one_variance_has_no_prior():
    assert fit([1.0], [4]) is None
    assert fit([1.0, 0.0], [4, 4]) is None


def test_cells_with_a_diverged_trial_are_left_out():
    cells = {
        "a": {0: 1.0, 1: 2.0},
        "b": {0: 1.0, 1: 4.0},
        "c": {0: -math.inf, 1: 100.0, 2: 0.0},
        "d": {0: 1.0},
    }
    assert prior_of(cells) == fit([0.5, 4.5], [1, 1])


def test_a_moderated_interval_by_hand():
    cells = {"a": {0: 3.0, 1: 5.0, 2: 7.0}, "b": {0: 1.0, 1: 2.0, 2: 6.0}}
    evidence = difference("a", "b").evidence(cells, Rule())
    interval = moderated_interval(evidence, Prior(2.0, 4.0, 100.0))
    s2 = statistics.variance([2.0, 3.0, 1.0])
    half = quantile(0.005, 6) * math.sqrt((4 * 2 * 2.0 + 2 * s2) / 6 / 3)
    assert (interval.mean, interval.low, interval.high) == pytest.approx((2.0, 2.0 - half, 2.0 + half))
    assert moderated_interval(evidence, None) is None


def test_the_moments_find_the_prior_that_variances_were_drawn_from():
    rng = np.random.default_rng(4)
    d0, s0, d, cells = 8.0, 2.0, 4, 4000
    true = d0 * s0 / rng.chisquare(d0, cells)
    prior = fit((true * rng.chisquare(d, cells) / d).tolist(), [d] * cells)
    # over 200 seeds these estimates have deviations of 0.58 and 0.040; four of them
    assert prior.df == pytest.approx(d0, abs=4 * 0.58)
    assert prior.variance == pytest.approx(s0, abs=4 * 0.04)
