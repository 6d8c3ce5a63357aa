"""The rule: when claims are looked at, which interval decides, and how many more seeds it may take.

Looks are declared before any result. Values are paired by seed, and at a look of n seeds the differences
D_1 … D_n of the first n seeds give the interval

    mean ± t(1 - alpha / 2K, n - 1) · s / √n

with K looks. By the union bound all K intervals hold together with a probability of at least 1 - alpha,
whatever made the sampling stop: exactly so for normal D with a mean and a variance that are unknown.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

from scipy.special import betaincinv, chdtri, stdtrit

Cell = str
Values = Mapping[int, float]
Cells = Mapping[Cell, Values]
LOOKS = (3, 5, 8, 12, 20)
POWER = 0.8  # with which a forecast number of seeds settles a claim


@dataclass(frozen=True)
class Rule:
    """The looks at a claim and the probability of a wrong verdict that is accepted.

    Attributes:
        seeds: the seeds in the order in which they count, at least as many as the last look takes; without
            them, those that there are, ascending.

    Raises:
        ValueError: the looks do not ascend from 2 or more, ``alpha`` is not inside (0, 1), or the seeds are
            too few or not different.
    """

    looks: tuple[int, ...] = LOOKS
    alpha: float = 0.05
    seeds: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        if not self.looks or self.looks[0] < 2 or list(self.looks) != sorted(set(self.looks)):
            raise ValueError(f"looks must ascend from 2 seeds or more, not {list(self.looks)}")
        if not 0 < self.alpha < 1:
            raise ValueError(f"alpha is {self.alpha}; it must be between 0 and 1")
        if self.seeds is not None and not self.looks[-1] <= len(self.seeds) == len(set(self.seeds)):
            raise ValueError(f"{self.looks[-1]} different seeds are needed, not {list(self.seeds)}")

    def level(self, tests: int) -> float:
        """Return the level of each of ``tests`` one-sided tests at each look."""
        return self.alpha / (tests * len(self.looks))

    def looks_within(self, n: int) -> tuple[int, ...]:
        """Return the looks that ``n`` seeds complete."""
        return tuple(look for look in self.looks if look <= n)

    def next_look(self, n: int) -> int | None:
        """Return the first look that takes more than ``n`` seeds; None after the last."""
        return next((look for look in self.looks if look > n), None)


@lru_cache(maxsize=4096)
def quantile(level: float, df: float) -> float:
    """Return the t value that is exceeded with a probability of ``level``."""
    return -float(stdtrit(df, level))


@dataclass(frozen=True)
class Forecast:
    """How many seeds would settle an open claim with a power of 80 %, if its mean stays where it is.

    Attributes:
        n: seeds that are there.
        low: the look at which it would be settled if s is the true spread; None is beyond the last look.
        high: the same for the upper 80 % bound of the spread.
        hopeful: the same if both the mean and the spread are at their favourable 80 % bounds.
        last: the seeds of the last look.
        effect: the smallest distance between mean and edge that the last look would settle.
    """

    n: int
    low: int | None
    high: int | None
    hopeful: int | None
    last: int
    effect: float

    @classmethod
    def of(cls, rule: Rule, n: int, s: float, distance: float, tests: int) -> "Forecast":
        """Return the forecast for one edge at ``distance`` from the mean."""
        df = n - 1
        wide = s * math.sqrt(df / chdtri(df, POWER))
        narrow = s * math.sqrt(df / chdtri(df, 1 - POWER))
        lucky = distance + quantile(1 - POWER, df) * s / math.sqrt(n)
        later = [look for look in rule.looks if look > n]

        def settles(spread: float, distance: float) -> int | None:
            return next((look for look in later if detectable(rule, look, tests) * spread <= distance), None)

        return cls(
            n,
            settles(s, distance),
            settles(wide, distance),
            settles(narrow, lucky),
            rule.looks[-1],
            detectable(rule, rule.looks[-1], tests) * s,
        )

    @classmethod
    def combined(cls, forecasts: Sequence["Forecast"]) -> "Forecast | None":
        """Return the forecast of all together, which is the latest of them; None for none."""
        if not forecasts:
            return None

        def latest(values: Sequence[int | None]) -> int | None:
            known = [value for value in values if value is not None]
            return max(known) if len(known) == len(values) else None

        return cls(
            min(forecast.n for forecast in forecasts),
            latest([forecast.low for forecast in forecasts]),
            latest([forecast.high for forecast in forecasts]),
            latest([forecast.hopeful for forecast in forecasts]),
            forecasts[0].last,
            max(forecast.effect for forecast in forecasts),
        )

    def __str__(self) -> str:
        if self.low is None:
            return (
                f"would not settle within {self.last} seeds; "
                f"the smallest effect that would is about {self.effect:.2g} from the edge"
            )
        few = self.low - self.n
        many = f"more than {self.last - self.n}" if self.high is None else f"{self.high - self.n}"
        seeds = many if many == str(few) else f"{few} to {many}"
        return f"about {seeds} more seeds would settle it"


def detectable(rule: Rule, n: int, tests: int = 2) -> float:
    """Return the distance, in units of s, that a look at ``n`` seeds settles with a power of 80 %.

    It is (t(1 - level, n - 1) + t(0.8, n - 1)) / √n.
    """
    return (quantile(rule.level(tests), n - 1) + quantile(1 - POWER, n - 1)) / math.sqrt(n)


@dataclass(frozen=True)
class Rate:
    """How many of ``n`` trials diverged, with the interval of Clopper & Pearson 1934."""

    count: int
    n: int
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.count} of {self.n} diverged [{self.low:.0%}, {self.high:.0%}]"


def rate(count: int, n: int, alpha: float = 0.05) -> Rate:
    """Return a rate with its exact interval: quantiles of Beta(x, n - x + 1) and Beta(x + 1, n - x).

    Raises:
        ValueError: ``count`` is not between 0 and ``n``, or ``n`` is 0.
    """
    if not 0 <= count <= n or not n:
        raise ValueError(f"{count} of {n} is no rate")
    low = float(betaincinv(count, n - count + 1, alpha / 2)) if count else 0.0
    high = float(betaincinv(count + 1, n - count, 1 - alpha / 2)) if count < n else 1.0
    return Rate(count, n, low, high)
