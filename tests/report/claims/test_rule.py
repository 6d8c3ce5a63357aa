"""Looks, intervals, sequential p, forecasts and rates against scipy and by hand."""

import math

import numpy as np
import pytest
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st

from normbench.report.claims.evidence import Signs, Student, difference, stream
from normbench.report.claims.rule import LOOKS, Forecast, Rule, detectable, quantile, rate

ROUNDING = 1e-9  # relative: both sides are double precision and differ only in the order of operations
RULE = Rule()
values = st.lists(st.integers(-1000, 1000).map(lambda x: x / 10), min_size=3, max_size=20)


def evidence(differences, rule=RULE, **options):
    return difference("a", **options).evidence({"a": dict(enumerate(differences))}, rule)


def test_the_half_widths_of_the_default_looks():
    factors = [quantile(RULE.level(2), n - 1) / math.sqrt(n) for n in LOOKS]
    assert factors == pytest.approx([5.73, 2.06, 1.24, 0.90, 0.64], abs=0.005)


def test_the_smallest_effect_that_twenty_seeds_settle():
    assert detectable(RULE, 20) == pytest.approx(0.83, abs=0.005)
    t = scipy.stats.t.ppf([1 - 0.005, 0.8], 19)
    assert detectable(RULE, 20) == pytest.approx(sum(t) / math.sqrt(20), rel=ROUNDING)


@given(values.filter(lambda x: np.ptp(x) > 0))
def test_student_is_scipys(differences):
    sample = Student(differences)
    low, high = scipy.stats.t.interval(
        0.99, len(differences) - 1, sample.centre, scipy.stats.sem(differences)
    )
    bounds = sample.bounds(0.005)
    assert (bounds.low, bounds.high) == pytest.approx((low, high), rel=ROUNDING, abs=1e-9)
    above = scipy.stats.ttest_1samp(differences, 1.0, alternative="greater").pvalue
    below = scipy.stats.ttest_1samp(differences, 1.0, alternative="less").pvalue
    assert (sample.above(1.0), sample.below(1.0)) == pytest.approx((above, below), rel=1e-6, abs=1e-12)


@given(values)
def test_signs_are_scipys_binomial_test(differences):
    sample, n = Signs(differences), len(differences)
    for p, count in (
        (sample.above(0.0), sum(x > 0 for x in differences)),
        (sample.below(0.0), sum(x < 0 for x in differences)),
    ):
        assert p == pytest.approx(scipy.stats.binomtest(count, n, alternative="greater").pvalue, rel=ROUNDING)


@given(values, st.sampled_from([0.005, 0.01, 0.05]), st.integers(-100, 100))
def test_the_order_statistics_are_the_sign_test_inverted(differences, level, edge):
    sample = Signs(differences)
    bounds = sample.bounds(level)
    assert (bounds.low > edge) == (sample.above(edge) <= level)
    assert (bounds.high < edge) == (sample.below(edge) <= level)


def test_the_sign_test_needs_eight_seeds_at_the_default_level():
    assert Signs([1.0] * 7).bounds(RULE.level(2)).low == -math.inf
    assert Signs([1.0] * 8).bounds(RULE.level(2)).low == 1.0


def test_a_pair_of_which_both_diverged_counts_for_neither_side():
    e = difference("a", "b").evidence(
        {"a": dict.fromkeys(range(8), -math.inf), "b": dict.fromkeys(range(8), -math.inf)}, RULE
    )
    assert (e.p_above(0.0), e.p_below(0.0)) == (1.0, 1.0)
    assert {cell: (r.count, r.n) for cell, r in e.diverged.items()} == {"a": (8, 8), "b": (8, 8)}


def test_the_last_completed_look_counts_and_seeds_beyond_it_wait():
    e = evidence([1.0, 2.0, 3.0, 50.0])
    assert (e.n, len(e.looks), e.last.centre) == (3, 1, 2.0)
    assert evidence([1.0, 2.0]).last is None


def test_the_sequential_p_is_the_smallest_so_far_times_the_looks():
    differences = [1.0, 1.1, 0.9, -3.0, 4.0]
    single = [scipy.stats.ttest_1samp(differences[:n], 0.0, alternative="greater").pvalue for n in (3, 5)]
    assert evidence(differences).p_above(0.0, tests=1) == pytest.approx(5 * min(single), rel=1e-6)
    assert single[0] < single[1]  # the first look is what it remembers
    assert evidence([0.0, 1.0, -1.0]).p_above(0.0) == 1.0


@pytest.mark.parametrize(
    ("a", "b", "expected"),
    [
        ([0, 1, 2], [0, 1, 2], (0, 1, 2)),
        ([0, 1, 2, 3], [1, 2, 3], (1, 2, 3)),
        ([0, 1, 3, 4], [0, 1, 2, 3, 4], (0, 1)),
        ([5, 7, 9], [9, 7, 5], (5, 7, 9)),
        ([0, 1], [2, 3], ()),
    ],
)
def test_seeds_count_in_order_up_to_the_first_gap(a, b, expected):
    assert stream([dict.fromkeys(a, 0.0), dict.fromkeys(b, 0.0)]) == expected


def test_a_declared_order_is_kept_and_its_first_gap_ends_it():
    row = dict.fromkeys([3, 1, 2, 7], 0.0)
    assert stream([row], (7, 3, 5, 1)) == (7, 3)


def test_nan_is_refused():
    with pytest.raises(ValueError, match="-inf"):
        evidence([math.nan, 1.0, 2.0])


@pytest.mark.parametrize(
    "settings",
    [
        {"looks": ()},
        {"looks": (1, 3)},
        {"looks": (5, 3)},
        {"looks": (3, 3)},
        {"alpha": 0.0},
        {"alpha": 1.0},
        {"seeds": (0, 1, 2)},
        {"looks": (3,), "seeds": (0, 1, 1)},
    ],
)
def test_a_rule_that_is_none_is_refused(settings):
    with pytest.raises(ValueError, match=r"looks|alpha|seeds"):
        Rule(**settings)


def test_equal_differences_do_not_prove_that_there_is_no_spread():
    assert not evidence([1.0] * 5).exceeds(0.0)
    assert evidence([1.0] * 8).exceeds(0.0)  # the sign test


def test_counts_take_the_sign_test_when_asked():
    differences = [1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 2.0]
    assert isinstance(evidence(differences).last, Student)
    assert isinstance(evidence(differences, is_exact=True).last, Signs)


def test_a_forecast_by_hand():
    # five seeds, s = 1: at eight seeds the t interval reaches (3.499 + 0.896) / √8 = 1.554
    forecast = Forecast.of(RULE, 5, 1.0, 1.6, 2)
    assert (forecast.low, forecast.n) == (8, 5)
    wide = math.sqrt(4 / scipy.stats.chi2.ppf(0.2, 4))
    assert forecast.high == next(n for n in (8, 12, 20) if detectable(RULE, n) * wide <= 1.6)
    assert str(forecast) == "about 3 to 15 more seeds would settle it"
    assert forecast.hopeful <= forecast.low <= forecast.high


def test_what_no_look_settles_is_said_with_what_would():
    forecast = Forecast.of(RULE, 12, 1.0, 0.1, 2)
    assert forecast.low is None
    assert str(forecast) == (
        "would not settle within 20 seeds; the smallest effect that would is about 0.83 from the edge"
    )


def test_forecasts_together_are_settled_with_the_last():
    near, far = Forecast.of(RULE, 5, 1.0, 1.6, 2), Forecast.of(RULE, 3, 1.0, 0.1, 2)
    both = Forecast.combined([near, far])
    assert (both.n, both.low, both.high) == (3, None, None)
    assert Forecast.combined([]) is None


@given(st.integers(0, 30), st.integers(1, 30))
def test_rates_are_clopper_pearson(count, n):
    if count > n:
        with pytest.raises(ValueError, match="no rate"):
            rate(count, n)
        return
    expected = scipy.stats.binomtest(count, n).proportion_ci(0.95, method="exact")
    assert (rate(count, n).low, rate(count, n).high) == pytest.approx(tuple(expected), abs=1e-9)


def test_a_rate_as_text():
    assert str(rate(2, 8)) == "2 of 8 diverged [3%, 65%]"
