"""Every number against scipy.stats or against its formula written out by hand."""

import math

import numpy as np
import pytest
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st

from normbench.report.stats import difference, equivalent, hedges_g, mean_interval, median_of_last

ROUNDING = 1e-9  # relative; both sides are double precision and differ only in the order of operations
A, B = [91.2, 90.4, 91.9], [88.0, 89.5, 87.1, 88.8]

samples = st.lists(st.floats(-100, 100).map(lambda x: round(x, 3)), min_size=2, max_size=12)
varying = samples.filter(lambda values: len(set(values)) > 1)


@given(varying, st.sampled_from([0.5, 0.9, 0.95, 0.99]))
def test_the_interval_of_a_mean_is_scipys(values, confidence):
    low, high = scipy.stats.t.interval(confidence, len(values) - 1, np.mean(values), scipy.stats.sem(values))
    interval = mean_interval(values, confidence)
    assert interval.n == len(values)
    assert interval.mean == pytest.approx(np.mean(values), rel=ROUNDING, abs=1e-9)
    assert (interval.low, interval.high) == pytest.approx((low, high), rel=ROUNDING, abs=1e-9)


def test_the_interval_of_three_seeds_by_hand():
    # t(0.975, 2) = 4.302652729911275 in every printed table; s of 1, 2, 3 is 1
    interval = mean_interval([1.0, 2.0, 3.0])
    assert interval.high - interval.mean == pytest.approx(4.302652729911275 / math.sqrt(3), rel=ROUNDING)


def test_one_value_has_a_mean_and_no_interval():
    interval = mean_interval([0.5])
    assert (interval.mean, interval.n) == (0.5, 1)
    assert math.isnan(interval.low)
    assert math.isnan(interval.high)


def test_equal_values_have_an_interval_of_no_width():
    interval = mean_interval([0.5, 0.5, 0.5])
    assert (interval.low, interval.mean, interval.high) == (0.5, 0.5, 0.5)


@pytest.mark.parametrize("values", [[], [1.0, math.nan], [1.0, math.inf]])
def test_a_sample_without_finite_values_is_refused(values):
    for function in (mean_interval, lambda v: difference(v, [1.0, 2.0]), lambda v: hedges_g([1.0, 2.0], v)):
        with pytest.raises(ValueError, match="sample"):
            function(values)


@pytest.mark.parametrize("confidence", [0.0, 1.0, 95])
def test_a_confidence_outside_0_and_1_is_refused(confidence):
    with pytest.raises(ValueError, match="between 0 and 1"):
        mean_interval(A, confidence)


@pytest.mark.parametrize("n", [2, 3, 5])
def test_95_percent_intervals_cover_the_true_mean_in_95_percent_of_samples(n):
    repeats = 4000
    draws = np.random.default_rng(20).normal(3.0, 2.0, size=(repeats, n)).tolist()
    intervals = [mean_interval(values) for values in draws]
    covered = sum(interval.low <= 3.0 <= interval.high for interval in intervals) / repeats
    # four binomial standard deviations, 0.0138: a right interval misses it once in 16,000, while a normal
    # quantile in place of Student's would cover 70 % at n = 2 and 88 % at n = 5
    assert abs(covered - 0.95) < 4 * math.sqrt(0.95 * 0.05 / repeats)


@given(varying, varying)
def test_an_unpaired_difference_is_welchs(a, b):
    expected = scipy.stats.ttest_ind(a, b, equal_var=False)
    bounds = expected.confidence_interval(0.95)
    found = difference(a, b)
    assert found.mean == pytest.approx(np.mean(a) - np.mean(b), abs=1e-9)
    assert found.df == pytest.approx(expected.df, rel=1e-7)
    assert found.p == pytest.approx(expected.pvalue, rel=1e-6, abs=1e-12)
    assert (found.low, found.high) == pytest.approx((bounds.low, bounds.high), rel=1e-7, abs=1e-7)


def test_a_paired_difference_is_the_test_of_the_differences():
    a, b = [3.0, 5.0, 9.0], [1.0, 4.0, 7.0]
    expected = scipy.stats.ttest_rel(a, b)
    bounds = expected.confidence_interval(0.95)
    found = difference(a, b, paired=True)
    assert (found.mean, found.df) == (pytest.approx(5 / 3), 2)
    assert found.p == pytest.approx(expected.pvalue, rel=ROUNDING)
    assert (found.low, found.high) == pytest.approx((bounds.low, bounds.high), rel=ROUNDING)


def test_samples_of_unequal_length_cannot_be_paired():
    with pytest.raises(ValueError, match="3 and 4"):
        difference(A, B, paired=True)


def test_samples_that_do_not_vary_differ_certainly_or_not_at_all():
    apart, same = difference([2.0, 2.0], [1.0, 1.0]), difference([1.0, 1.0], [1.0, 1.0])
    assert (apart.mean, apart.low, apart.high, apart.p) == (1.0, 1.0, 1.0, 0.0)
    assert (same.mean, same.low, same.high, same.p) == (0.0, 0.0, 0.0, 1.0)


@pytest.mark.parametrize("paired", [False, True])
def test_one_seed_gives_a_difference_without_interval(paired):
    found = difference([2.0], [1.5], paired=paired)
    assert found.mean == 0.5
    assert all(map(math.isnan, (found.low, found.high, found.p, found.df)))


def test_hedges_g_by_hand():
    n, m = len(A), len(B)
    pooled = math.sqrt((np.var(A, ddof=1) * (n - 1) + np.var(B, ddof=1) * (m - 1)) / (n + m - 2))
    exact = math.gamma(2.5) / (math.sqrt(2.5) * math.gamma(2.0))  # J(5), Hedges 1981
    assert hedges_g(A, B) == pytest.approx((np.mean(A) - np.mean(B)) / pooled * exact, rel=ROUNDING)
    assert exact == pytest.approx(1 - 3 / (4 * 5 - 1), abs=0.002)  # his approximation of the same factor


def test_hedges_g_is_unbiased():
    rng = np.random.default_rng(5)
    found = [
        hedges_g(rng.normal(1.0, 1.0, 3).tolist(), rng.normal(0.0, 1.0, 3).tolist()) for _ in range(6000)
    ]
    # one g of 3 against 3 has sd of about 1.2, so the mean of 6000 about 0.015; without the factor it is 1.25
    assert np.mean(found) == pytest.approx(1.0, abs=0.06)


def test_hedges_g_where_there_is_no_spread():
    assert hedges_g([1.0, 1.0], [1.0, 1.0]) == 0
    assert hedges_g([1.0, 1.0], [2.0, 2.0]) == -math.inf
    assert math.isnan(hedges_g([1.0], [2.0, 3.0]))


@given(varying, varying, st.floats(0.01, 50), st.booleans())
def test_equivalence_is_two_one_sided_tests_and_an_interval_inside_the_margin(a, b, margin, paired):
    if paired:
        a, b = a[: min(len(a), len(b))], b[: min(len(a), len(b))]
        deltas = np.subtract(a, b)
        if np.ptp(deltas) < 1e-6:
            return
        lower = scipy.stats.ttest_1samp(deltas, -margin, alternative="greater").pvalue
        upper = scipy.stats.ttest_1samp(deltas, margin, alternative="less").pvalue
    else:
        lower = scipy.stats.ttest_ind(np.add(a, margin), b, equal_var=False, alternative="greater").pvalue
        upper = scipy.stats.ttest_ind(np.subtract(a, margin), b, equal_var=False, alternative="less").pvalue
    found = equivalent(a, b, margin, paired=paired)
    assert found.p == pytest.approx(max(lower, upper), rel=1e-5, abs=1e-9)
    if abs(found.p - 0.05) > 1e-6:
        assert found.holds == (-margin < found.low and found.high < margin)


def test_equivalence_needs_a_margin_and_more_than_one_seed():
    with pytest.raises(ValueError, match="above 0"):
        equivalent(A, B, 0.0)
    assert not equivalent([1.0], [1.0], 5.0).holds
    assert equivalent([1.0, 1.0], [1.0, 1.0], 0.1).holds
    assert not equivalent([1.0, 1.0], [2.0, 2.0], 0.5).holds


def test_a_margin_of_no_difference_is_wrongly_met_in_at_most_5_percent():
    rng, margin, repeats = np.random.default_rng(8), 1.0, 3000
    held = sum(
        equivalent(rng.normal(margin, 0.3, 5).tolist(), rng.normal(0.0, 0.3, 5).tolist(), margin).holds
        for _ in range(repeats)
    )
    # the true difference sits on the margin, so 5 % is the most; four binomial standard deviations above it
    assert held / repeats < 0.05 + 4 * math.sqrt(0.05 * 0.95 / repeats)


def test_the_median_of_the_last_evaluations():
    assert median_of_last([9.0, 1.0, 5.0, 2.0, 4.0, 3.0]) == 3.0
    assert median_of_last([1.0, 2.0]) == 1.5
    assert median_of_last([1.0, 2.0, 7.0], k=1) == 7.0
    for values, k in (([], 5), ([1.0], 0)):
        with pytest.raises(ValueError, match="not defined"):
            median_of_last(values, k)
