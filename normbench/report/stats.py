"""Intervals, differences, effect sizes and equivalence of small samples (a few seeds a cell).

All of it is Student's t: seeds are taken as independent draws from roughly normal results. Only
``scipy.special`` is used, because importing ``scipy.stats`` takes longer than drawing a figure.
"""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from scipy.special import gammaln, stdtr, stdtrit


@dataclass(frozen=True)
class Interval:
    """A mean with its confidence interval; one value has a mean, and nan for ``low`` and ``high``."""

    mean: float
    low: float
    high: float
    n: int


@dataclass(frozen=True)
class Difference:
    """Mean of a minus mean of b, its interval, and the two-sided p of no difference.

    ``low``, ``high``, ``p`` and ``df`` (degrees of freedom) are nan where a sample is too small to have one.
    """

    mean: float
    low: float
    high: float
    p: float
    df: float


@dataclass(frozen=True)
class Equivalence:
    """Two one-sided tests (Schuirmann 1987) of |mean a - mean b| < margin at level ``alpha``.

    ``low`` and ``high`` bound the difference with confidence 1 - 2 alpha: the tests hold exactly when both
    lie inside the margin. ``p`` is the larger of the two one-sided p; nan where there is no variance.
    """

    mean: float
    low: float
    high: float
    margin: float
    p: float
    alpha: float

    @property
    def holds(self) -> bool:
        """The difference is shown to be below the margin; False shows nothing: the sample may be small."""
        return self.p < self.alpha


def mean_interval(values: Sequence[float], confidence: float = 0.95) -> Interval:
    """The mean of ``values`` with Student's t interval, mean ± t · s / √n with n - 1 degrees of freedom.

    Raises:
        ValueError: there is no value, a value is not finite, or ``confidence`` is not inside (0, 1).
    """
    n, mean = _size(values), math.fsum(values) / len(values)
    half = _quantile(confidence, n - 1) * _error(values)
    return Interval(mean, mean - half, mean + half, n)


def difference(
    a: Sequence[float], b: Sequence[float], *, paired: bool = False, confidence: float = 0.95
) -> Difference:
    """How much larger ``a`` is than ``b`` on average.

    Unpaired: Welch's test, which does not take the variances as equal. Paired (``a[i]`` belongs with
    ``b[i]``, such as the same seed under two methods): the one-sample test of the differences.

    Raises:
        ValueError: a sample is empty or not finite, or paired samples differ in length.
    """
    mean, error, df = _compare(a, b, paired)
    half = _quantile(confidence, df) * error
    return Difference(mean, mean - half, mean + half, 2 * _tail(abs(mean), error, df), df)


def equivalent(
    a: Sequence[float], b: Sequence[float], margin: float, *, paired: bool = False, alpha: float = 0.05
) -> Equivalence:
    """Whether the means are shown to differ by less than ``margin``, which is chosen beforehand.

    Raises:
        ValueError: as `difference`, or ``margin`` is not above 0.
    """
    if not margin > 0:
        raise ValueError(f"the equivalence margin is {margin}; it must be above 0")
    mean, error, df = _compare(a, b, paired)
    half = _quantile(1 - 2 * alpha, df) * error
    p = _tail(margin - abs(mean), error, df)  # the nearer bound gives the larger of the two one-sided p
    return Equivalence(mean, mean - half, mean + half, margin, p, alpha)


def hedges_g(a: Sequence[float], b: Sequence[float]) -> float:
    """The difference of the means in pooled standard deviations, unbiased (Hedges 1981, eqs. 6e and 7).

    0 for equal means; ±inf where the means differ and neither sample varies; nan where a sample of one value
    has no variance to pool.

    Raises:
        ValueError: a sample is empty or not finite.
    """
    n_a, n_b = _size(a), _size(b)
    if min(n_a, n_b) < 2:
        return math.nan
    df = n_a + n_b - 2
    pooled = math.sqrt(((n_a - 1) * statistics.variance(a) + (n_b - 1) * statistics.variance(b)) / df)
    mean = math.fsum(a) / n_a - math.fsum(b) / n_b
    if pooled == 0:
        return math.copysign(math.inf, mean) if mean else 0.0
    unbias = math.exp(gammaln(df / 2) - gammaln((df - 1) / 2)) / math.sqrt(df / 2)
    return float(mean / pooled * unbias)


def median_of_last(values: Sequence[float], k: int = 5) -> float:
    """The median of the last ``k`` values, or of all when there are fewer.

    Raises:
        ValueError: there is no value, or ``k`` is below 1.
    """
    if k < 1 or not values:
        raise ValueError(f"the median of the last {k} of {len(values)} values is not defined")
    return float(statistics.median(values[-k:]))


def _size(values: Sequence[float]) -> int:
    if not values:
        raise ValueError("a sample needs at least one value")
    if not all(map(math.isfinite, values)):
        raise ValueError(f"a sample holds a value that is not finite: {list(values)}")
    return len(values)


def _error(values: Sequence[float]) -> float:
    """The standard error of the mean; nan for one value."""
    return math.sqrt(statistics.variance(values) / len(values)) if len(values) > 1 else math.nan


def _compare(a: Sequence[float], b: Sequence[float], paired: bool) -> tuple[float, float, float]:
    """The difference of the means, its standard error and its degrees of freedom."""
    n_a, n_b = _size(a), _size(b)
    if paired:
        if n_a != n_b:
            raise ValueError(f"paired samples must be of equal length, not {n_a} and {n_b}")
        differences = [x - y for x, y in zip(a, b, strict=True)]
        return math.fsum(differences) / n_a, _error(differences), n_a - 1 if n_a > 1 else math.nan
    mean = math.fsum(a) / n_a - math.fsum(b) / n_b
    if min(n_a, n_b) < 2:
        return mean, math.nan, math.nan
    square_a, square_b = _error(a) ** 2, _error(b) ** 2
    both = square_a + square_b
    if both == 0:
        return mean, 0.0, n_a + n_b - 2
    # as shares of the sum, so that the squares of tiny variances do not underflow
    df = 1 / ((square_a / both) ** 2 / (n_a - 1) + (square_b / both) ** 2 / (n_b - 1))
    return mean, math.sqrt(both), df


def _quantile(confidence: float, df: float) -> float:
    """The t value that a two-sided interval of this confidence reaches to."""
    if not 0 < confidence < 1:
        raise ValueError(f"the confidence is {confidence}; it must be between 0 and 1")
    return float(stdtrit(df, (1 + confidence) / 2)) if df > 0 else math.nan


def _tail(distance: float, error: float, df: float) -> float:
    """P(T > distance / error); without any spread the answer is certain, and 1/2 at distance 0."""
    if math.isnan(error):
        return math.nan
    if error == 0:
        return 0.5 - math.copysign(0.5, distance) if distance else 0.5
    return float(stdtr(df, -distance / error))
