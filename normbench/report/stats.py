"""The mean of a small sample with its interval; what differences show is in `normbench.report.claims`.

Seeds are taken as independent draws from roughly normal results. Only ``scipy.special`` is used, because
importing ``scipy.stats`` takes longer than drawing a figure.
"""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from scipy.special import stdtrit


@dataclass(frozen=True)
class Interval:
    """A mean with its confidence interval; one value has a mean, and nan for ``low`` and ``high``."""

    mean: float
    low: float
    high: float
    n: int


def mean_interval(values: Sequence[float], confidence: float = 0.95) -> Interval:
    """Return the mean of ``values`` with Student's t interval, mean ± t · s / √n of n - 1 degrees of freedom.

    Raises:
        ValueError: there is no value, a value is not finite, or ``confidence`` is not inside (0, 1).
    """
    if not values:
        raise ValueError("a sample needs at least one value")
    if not all(map(math.isfinite, values)):
        raise ValueError(f"a sample holds a value that is not finite: {list(values)}")
    if not 0 < confidence < 1:
        raise ValueError(f"the confidence is {confidence}; it must be between 0 and 1")
    n, mean = len(values), math.fsum(values) / len(values)
    if n == 1:
        return Interval(mean, math.nan, math.nan, n)
    half = float(stdtrit(n - 1, (1 + confidence) / 2)) * math.sqrt(statistics.variance(values) / n)
    return Interval(mean, mean - half, mean + half, n)
