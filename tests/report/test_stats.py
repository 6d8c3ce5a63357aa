"""Every number against scipy.stats or against its formula written out by hand."""

import math

import numpy as np
import pytest
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st

from normbench.report.stats import mean_interval

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
    with pytest.raises(ValueError, match="sample"):
        mean_interval(values)


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
