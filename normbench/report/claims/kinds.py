"""The kinds of claims about one number or a few: greater, less, equivalent, flat, trend, ratio, all, any.

Each is a frozen description of a test; ``judge`` applies it to values by cell and seed. The probability that
its verdict is wrong is at most alpha over all looks, whatever is true (`normbench.report.claims.rule`).
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations, pairwise
from typing import ClassVar, Literal, Protocol

from normbench.report.claims.decisions import (
    all_of,
    any_of,
    check_along,
    check_margin,
    judge_direction,
    judge_within,
)
from normbench.report.claims.evidence import Contrast, difference
from normbench.report.claims.judgement import Judgement, join
from normbench.report.claims.moderation import Prior
from normbench.report.claims.rule import Cell, Cells, Rule, Values
from normbench.report.stats import Interval

RULE = Rule()


class Kind(Protocol):
    """A test that values can be put to."""

    kind: ClassVar[str]

    def judge(self, cells: Cells, rule: Rule = RULE, prior: Prior | None = None) -> Judgement:
        """Return the verdict on ``cells``; ``prior`` adds a moderated interval, which decides nothing."""


@dataclass(frozen=True)
class _Directed:
    """The difference a - b, or a where there is no b, lies beyond a margin on the side of ``sign``."""

    kind: ClassVar[str]
    sign: ClassVar[int]
    a: Cell
    b: Cell | None = None
    margin: float = 0.0
    is_exact: bool = False

    def __post_init__(self) -> None:
        check_margin(self.margin, may_be_zero=True)

    def judge(self, cells: Cells, rule: Rule = RULE, prior: Prior | None = None) -> Judgement:
        """Ask whether the interval lies beyond the margin."""
        evidence = difference(self.a, self.b, self.is_exact).evidence(cells, rule)
        return judge_direction(self.kind, evidence, self.sign, self.margin, prior)


@dataclass(frozen=True)
class Greater(_Directed):
    """a - b > margin, or a > margin where there is no b."""

    kind: ClassVar[str] = "greater"
    sign: ClassVar[int] = 1


@dataclass(frozen=True)
class Less(_Directed):
    """a - b < -margin, or a < -margin where there is no b."""

    kind: ClassVar[str] = "less"
    sign: ClassVar[int] = -1


@dataclass(frozen=True)
class Equivalent:
    """|a - b| < margin: two one-sided tests (Schuirmann 1987), so by the interval of 1 - 2 alpha."""

    kind: ClassVar[str] = "equivalent"
    a: Cell
    b: Cell | None
    margin: float
    is_exact: bool = False

    def __post_init__(self) -> None:
        check_margin(self.margin)

    def judge(self, cells: Cells, rule: Rule = RULE, prior: Prior | None = None) -> Judgement:
        """Ask whether the interval lies between the margins."""
        evidence = difference(self.a, self.b, self.is_exact).evidence(cells, rule)
        return judge_within(self.kind, [evidence], self.margin, prior)


@dataclass(frozen=True)
class Flat:
    """All cells along an axis are equivalent to each other.

    Supported where every pair is (an intersection-union test, each part at alpha: Berger 1982); contradicted
    where a pair is shown to differ by more than the margin, corrected for the number of pairs.
    """

    kind: ClassVar[str] = "flat"
    along: tuple[Cell, ...]
    margin: float

    def __post_init__(self) -> None:
        check_margin(self.margin)
        check_along(self.along)

    def judge(self, cells: Cells, rule: Rule = RULE, prior: Prior | None = None) -> Judgement:
        """Ask whether the intervals of all pairs lie between the margins."""
        pairs = [difference(a, b).evidence(cells, rule) for a, b in combinations(self.along, 2)]
        return judge_within(self.kind, pairs, self.margin, prior)


@dataclass(frozen=True)
class Trend:
    """The values rise or fall along an axis: by their slope a doubling, or at every step.

    Attributes:
        axis: the ascending places of the cells, above 0.
        margin: the least slope a doubling of the axis.
        is_strict: every neighbouring difference must be shown, in place of the slope.
    """

    kind: ClassVar[str] = "trend"
    along: tuple[Cell, ...]
    axis: tuple[float, ...]
    direction: Literal["rises", "falls"]
    margin: float = 0.0
    is_strict: bool = False

    def __post_init__(self) -> None:
        check_margin(self.margin, may_be_zero=True)
        check_along(self.along, self.axis)
        if self.axis[0] <= 0:
            raise ValueError(f"the axis of a trend begins at {self.axis[0]}; its places must be above 0")
        if self.is_strict and self.margin:
            raise ValueError("a strict trend has no margin: its steps are of different sizes")

    def judge(self, cells: Cells, rule: Rule = RULE, prior: Prior | None = None) -> Judgement:
        """Ask where the interval of the slope lies, or those of all steps."""
        sign = 1 if self.direction == "rises" else -1
        if self.is_strict:
            steps = [difference(b, a).evidence(cells, rule) for a, b in pairwise(self.along)]
            parts = [judge_direction("step", step, sign, 0.0, prior) for step in steps]
            return replace(all_of(parts, rule), kind=self.kind)
        places = [math.log2(place) for place in self.axis]
        centre = math.fsum(places) / len(places)
        square = math.fsum((place - centre) ** 2 for place in places)
        weights = tuple((cell, (x - centre) / square) for cell, x in zip(self.along, places, strict=True))
        return judge_direction(self.kind, Contrast(weights).evidence(cells, rule), sign, self.margin, prior)


@dataclass(frozen=True)
class Ratio:
    """a / b is above ``margin``, below 1 / margin, or between the two: for times, memory and speeds.

    Everything is done on natural logarithms, so the estimate is the geometric mean of the ratios. There is
    no moderated interval: the spreads of other cells are not on this scale.
    """

    kind: ClassVar[str] = "ratio"
    a: Cell
    b: Cell
    compare: Literal["greater", "less", "equivalent"]
    margin: float = 1.0
    is_exact: bool = False

    def __post_init__(self) -> None:
        if not (1 < self.margin < math.inf or (self.margin == 1 and self.compare != "equivalent")):
            raise ValueError(f"the margin of a ratio is {self.margin}; it must be a number above 1")

    def judge(self, cells: Cells, rule: Rule = RULE, prior: Prior | None = None) -> Judgement:  # noqa: ARG002
        """Ask where the interval of the difference of logarithms lies.

        Raises:
            ValueError: a value is not above 0.
        """
        kinds: Mapping[str, type[Greater | Less | Equivalent]]
        kinds = {"greater": Greater, "less": Less, "equivalent": Equivalent}
        logs = {cell: logarithms(cells.get(cell, {}), cell) for cell in (self.a, self.b)}
        judgement = kinds[self.compare](self.a, self.b, math.log(self.margin), self.is_exact).judge(
            logs, rule
        )
        on_logs = judgement.interval
        if on_logs is None:
            return replace(judgement, kind=self.kind, margin=self.margin)
        return replace(
            judgement,
            kind=self.kind,
            margin=self.margin,
            interval=Interval(
                math.exp(on_logs.mean), math.exp(on_logs.low), math.exp(on_logs.high), on_logs.n
            ),
            note=join(judgement.note, "the arithmetic is on natural logarithms"),
        )


@dataclass(frozen=True)
class AllOf:
    """Every part holds."""

    kind: ClassVar[str] = "all"
    parts: tuple[Kind, ...]

    def __post_init__(self) -> None:
        check_parts(self.parts)

    def judge(self, cells: Cells, rule: Rule = RULE, prior: Prior | None = None) -> Judgement:
        """Judge every part, and their conjunction by `all_of`."""
        return all_of([part.judge(cells, rule, prior) for part in self.parts], rule)


@dataclass(frozen=True)
class AnyOf:
    """At least one part holds."""

    kind: ClassVar[str] = "any"
    parts: tuple[Kind, ...]

    def __post_init__(self) -> None:
        check_parts(self.parts)

    def judge(self, cells: Cells, rule: Rule = RULE, prior: Prior | None = None) -> Judgement:
        """Judge every part, and their disjunction by `any_of`."""
        return any_of([part.judge(cells, rule, prior) for part in self.parts], rule)


def logarithms(values: Values, cell: Cell) -> dict[int, float]:
    """Return the natural logarithms of a cell; a diverged trial stays infinite."""
    if any(value <= 0 and math.isfinite(value) for value in values.values()):
        raise ValueError(f"{cell} has a value that is not above 0, of which there is no ratio")
    return {seed: math.log(value) if math.isfinite(value) else value for seed, value in values.items()}


def check_parts(parts: Sequence[Kind]) -> None:
    """Refuse a composition of nothing."""
    if not parts:
        raise ValueError("a composition needs at least one part")
