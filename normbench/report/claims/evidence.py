"""What paired values say at each look: Student's t on the differences, or the exact sign test."""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from itertools import takewhile
from typing import Protocol

from scipy.special import bdtrc, stdtr

from normbench.report.claims.rule import Cell, Cells, Forecast, Rate, Rule, Values, quantile, rate
from normbench.report.stats import Interval


class Sample(Protocol):
    """The differences of one look, and what they say about their centre."""

    n: int
    centre: float

    def bounds(self, level: float) -> Interval:
        """Return the interval whose two bounds each fail with a probability of ``level``."""

    def above(self, edge: float) -> float:
        """Return the one-sided p of a centre that is not above ``edge``."""

    def below(self, edge: float) -> float:
        """Return the one-sided p of a centre that is not below ``edge``."""

    def arithmetic(self, level: float) -> str:
        """Write the interval so that it can be redone by hand."""


class Student:
    """The mean of normal differences: Student's t."""

    def __init__(self, values: Sequence[float]) -> None:
        self.n = len(values)
        self.centre = math.fsum(values) / self.n
        self.s = math.sqrt(math.fsum((value - self.centre) ** 2 for value in values) / (self.n - 1))
        self.error = self.s / math.sqrt(self.n)

    def bounds(self, level: float) -> Interval:
        """Return mean ± t · s / √n."""
        half = quantile(level, self.n - 1) * self.error
        return Interval(self.centre, self.centre - half, self.centre + half, self.n)

    def above(self, edge: float) -> float:
        """Return P(T ≥ (mean - edge) √n / s)."""
        return float(stdtr(self.n - 1, (edge - self.centre) / self.error))

    def below(self, edge: float) -> float:
        """Return P(T ≤ (mean - edge) √n / s)."""
        return float(stdtr(self.n - 1, (self.centre - edge) / self.error))

    def arithmetic(self, level: float) -> str:
        """Write mean ± t · s / √n = [low, high]."""
        interval, t = self.bounds(level), quantile(level, self.n - 1)
        return f"{self.centre:.4g} ± {t:.4g} · {self.s:.4g} / √{self.n} = {bounds_text(interval)}"


class Signs:
    """The median of any differences: the exact sign test, and the order statistics that invert it.

    A diverged trial is an infinite value; a pair in which both diverged is nan and counts for neither side,
    and so does a difference that lies on the edge. Source: Conover 1999, "Practical Nonparametric
    Statistics", sections 3.2 and 3.4.
    """

    def __init__(self, values: Sequence[float]) -> None:
        self.n = len(values)
        self.values = values
        known = [value for value in values if not math.isnan(value)]
        self.centre = statistics.median_low(known) if known else math.nan

    def bounds(self, level: float) -> Interval:
        """Return the k-th smallest and largest difference; infinite where n is too small for ``level``."""
        k = sum(1 for count in range(self.n) if tail(self.n - count, self.n) <= level)
        low = sorted(-math.inf if math.isnan(value) else value for value in self.values)
        high = sorted((math.inf if math.isnan(value) else value for value in self.values), reverse=True)
        return Interval(self.centre, low[k - 1] if k else -math.inf, high[k - 1] if k else math.inf, self.n)

    def above(self, edge: float) -> float:
        """Return the probability of so many differences above ``edge`` by the toss of a coin for each."""
        return tail(sum(value > edge for value in self.values), self.n)

    def below(self, edge: float) -> float:
        """Return the probability of so many differences below ``edge`` by the toss of a coin for each."""
        return tail(sum(value < edge for value in self.values), self.n)

    def arithmetic(self, level: float) -> str:
        """Write the median with its order statistics."""
        interval = self.bounds(level)
        return f"median {self.centre:.4g} of {self.n}, by order statistics {bounds_text(interval)}"


def bounds_text(interval: Interval) -> str:
    """Write the bounds of an interval."""
    return f"[{interval.low:.4g}, {interval.high:.4g}]"


@lru_cache(maxsize=4096)
def tail(count: int, n: int) -> float:
    """Return the probability of ``count`` or more heads in ``n`` tosses of a fair coin."""
    return float(bdtrc(count - 1, n, 0.5)) if count > 0 else 1.0


@dataclass(frozen=True)
class Contrast:
    """A weighted sum of cells, taken seed by seed; a difference is that of weights 1 and -1.

    Attributes:
        weights: a cell and its weight, in the order in which the arithmetic is written.
        is_exact: the sign test decides, whatever the values are: for counts, and for yes and no.
    """

    weights: tuple[tuple[Cell, float], ...]
    is_exact: bool = False

    @property
    def cells(self) -> tuple[Cell, ...]:
        """The cells that take part."""
        return tuple(cell for cell, _ in self.weights)

    def __str__(self) -> str:
        if [weight for _, weight in self.weights] in ([1.0], [1.0, -1.0]):
            return " − ".join(self.cells)
        return " + ".join(f"{weight:.4g} · {cell}" for cell, weight in self.weights)

    def evidence(self, cells: Cells, rule: Rule) -> "Evidence":
        """Return what the values in ``cells`` say about this sum; an absent cell has no values."""
        rows = [cells.get(cell, {}) for cell in self.cells]
        seeds = stream(rows, rule.seeds)
        values = tuple(
            sum(weight * row[seed] for (_, weight), row in zip(self.weights, rows, strict=True))
            for seed in seeds
        )
        return Evidence(self, rule, seeds, values, tuple(rows))


def difference(a: Cell, b: Cell | None = None, is_exact: bool = False) -> Contrast:
    """Return a - b; without b, the cell a itself, whose values are compared with a constant."""
    return Contrast(((a, 1.0),) if b is None else ((a, 1.0), (b, -1.0)), is_exact)


def stream(rows: Sequence[Values], order: Sequence[int] | None = None) -> tuple[int, ...]:
    """Return the seeds that count: those of ``order`` up to the first that any row lacks.

    No seed is passed over, so nothing can be picked: the values of a look are always those of the first n.
    Without an order, it is that of the numbers, from the first seed that all rows have.

    Raises:
        ValueError: a value is nan; a diverged trial is -inf where large is better, and inf where small is.
    """
    if any(math.isnan(value) for row in rows for value in row.values()):
        raise ValueError("a value is nan; a diverged trial is -inf where large is better, else inf")
    shared = set(rows[0]).intersection(*rows[1:])
    if order is None:
        first = min(shared, default=math.inf)
        order = sorted({seed for row in rows for seed in row if seed >= first})
    return tuple(takewhile(shared.__contains__, order))


@dataclass(frozen=True)
class Evidence:
    """The differences of a contrast by seed, and what each completed look says.

    ``tests`` is everywhere the number of one-sided tests that share alpha: 2 for an interval, 1 for each of
    two tests that must both hold (intersection-union).
    """

    contrast: Contrast
    rule: Rule
    seeds: tuple[int, ...]
    values: tuple[float, ...]
    rows: tuple[Values, ...]

    @cached_property
    def looks(self) -> tuple[Sample, ...]:
        """The samples of the completed looks.

        The sign test takes the place of Student's t where a trial diverged, where no two differences differ
        (three equal results do not prove that there is no spread), and where it is asked for.
        """
        return tuple(self._sample(self.values[:n]) for n in self.rule.looks_within(len(self.values)))

    def _sample(self, values: Sequence[float]) -> Sample:
        if self.contrast.is_exact or not all(map(math.isfinite, values)):
            return Signs(values)
        student = Student(values)
        rounding = 1e-12 * max(map(abs, values))
        return student if student.s > rounding else Signs(values)

    @property
    def last(self) -> Sample | None:
        """The sample of the last completed look, which counts."""
        return self.looks[-1] if self.looks else None

    @property
    def centre(self) -> float:
        """The centre at the last look; 0 where there is none."""
        return 0.0 if self.last is None or math.isnan(self.last.centre) else self.last.centre

    @property
    def n(self) -> int:
        """The number of seeds of the last completed look, or of complete pairs before the first."""
        return self.looks[-1].n if self.looks else len(self.values)

    @property
    def diverged(self) -> dict[Cell, Rate]:
        """The cells in which a trial diverged, over the seeds that are used."""
        used = self.seeds[: self.n]
        counts = {
            cell: sum(not math.isfinite(row[seed]) for seed in used)
            for cell, row in zip(self.contrast.cells, self.rows, strict=True)
        }
        return {cell: rate(count, len(used)) for cell, count in counts.items() if count}

    def exceeds(self, edge: float, tests: int = 2) -> bool:
        """Whether the last look shows the centre to be above ``edge``."""
        return bool(self.looks) and self.looks[-1].bounds(self.rule.level(tests)).low > edge

    def stays_below(self, edge: float, tests: int = 2) -> bool:
        """Whether the last look shows the centre to be below ``edge``."""
        return bool(self.looks) and self.looks[-1].bounds(self.rule.level(tests)).high < edge

    def p_above(self, edge: float, tests: int = 2) -> float:
        """Return the sequential p of "not above ``edge``": min(1, tests · K · smallest p so far)."""
        return self._sequential([look.above(edge) for look in self.looks], tests)

    def p_below(self, edge: float, tests: int = 2) -> float:
        """Return the sequential p of "not below ``edge``"."""
        return self._sequential([look.below(edge) for look in self.looks], tests)

    def _sequential(self, ps: Sequence[float], tests: int) -> float:
        return min([1.0, *(tests * len(self.rule.looks) * p for p in ps)])

    def forecast(self, edges: Sequence[tuple[float, int]]) -> Forecast | None:
        """Return how many seeds would settle it, if the mean stays; None where no spread is known.

        Args:
            edges: those that must all be excluded, each with the number of tests that share alpha.
        """
        sample = self.last
        if not isinstance(sample, Student):
            return None
        return Forecast.combined(
            [
                Forecast.of(self.rule, sample.n, sample.s, abs(sample.centre - edge), tests)
                for edge, tests in edges
            ]
        )
