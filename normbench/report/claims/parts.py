"""The comparisons that a claim is made of, each with its judgement and the numbers that it looks at."""

import math
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

from normbench.report.claims import wording
from normbench.report.claims.brackets import Crossover, Knee
from normbench.report.claims.comparison import Side, Test
from normbench.report.claims.evidence import Evidence, difference
from normbench.report.claims.judge import Judged, Row
from normbench.report.claims.judgement import Judgement
from normbench.report.claims.kinds import Equivalent, Flat, Greater, Kind, Less, Ratio, Trend, logarithms
from normbench.report.claims.rule import Cells, Rule
from normbench.report.metrics import metric
from normbench.report.stats import Interval
from normbench.text import plural

NO_EDGE: tuple[float, ...] = ()


@dataclass(frozen=True)
class Effect:
    """One of the numbers that a comparison is about: a difference, a ratio or a slope.

    Attributes:
        label: the places of the axis that it compares; empty where there is no axis.
        values: by seed, in the order in which seeds count.
        n: how many of these seeds the interval is over; fewer than there are between two looks.
        interval: of the last look, simultaneous over all looks; None before the first.
    """

    label: str
    values: Mapping[int, float]
    n: int
    interval: Interval | None


@dataclass(frozen=True)
class Curve:
    """The numbers of one side of a comparison.

    Attributes:
        key: ``a`` or ``b``.
        label: the settings that select it, and what is read of its trials where the sides differ in that.
        rows: by the place of the axis; the only place is None where there is no axis.
    """

    key: str
    label: str
    rows: Mapping[Any, Row]


@dataclass(frozen=True)
class Part:
    """One comparison of a claim.

    Attributes:
        test: as it is written.
        judgement: its own; only that of the whole claim is corrected for the number of claims.
        curves: the numbers of its sides.
        effects: what is compared, in the order of the axis.
        region: where the effects of a claim that holds lie; None for a bracket.
        edges: what the effects are compared with.
    """

    test: Test
    judgement: Judgement
    curves: tuple[Curve, ...]
    effects: tuple[Effect, ...]
    region: tuple[float, float] | None
    edges: tuple[float, ...]


def parts_of(judged: Judged) -> tuple[Part, ...]:
    """Return the comparisons of a claim from left to right; none of a claim without a test."""
    if judged.claim.test is None or judged.test is None:
        return ()
    whole = _leaves(judged.claim.test, judged.test, judged.judgement)
    return tuple(_part(judged, test, kind, judgement) for test, kind, judgement in whole)


def _leaves(test: Test, kind: Any, judgement: Judgement) -> Iterator[tuple[Test, Kind, Judgement]]:
    if not test.of:
        yield test, kind, judgement
        return
    parts = judgement.parts or (judgement,) * len(test.of)
    for inner, part, each in zip(test.of, kind.parts, parts, strict=True):
        yield from _leaves(inner, part, each)


def _part(judged: Judged, test: Test, kind: Kind, judgement: Judgement) -> Part:
    experiment = judged.claim.experiment(test).name
    cells = judged.claim.cells(test)
    curves = tuple(
        Curve(
            key,
            side_text(test, side),
            {place: judged.rows[test.label(side, place, experiment)] for place in cells.axis},
        )
        for key, side in test.sides
        if key in cells.sides
    )
    try:
        effects = tuple(_effects(kind, cells.axis, judgement, judged.values, judged.rule))
    except ValueError:  # a value of which there is no ratio; the judgement says so
        effects = ()
    return Part(test, judgement, curves, effects, *_region(kind))


def side_text(test: Test, side: Side) -> str:
    """Return the settings of a side as the labels of its numbers write them, and what is read of them."""
    words = " ".join(f"{key}={value}" for key, value in side.where.items()) or "all"
    if len({each.metric for _, each in test.sides if each.constant is None}) > 1:
        words = f"{side.metric or test.metric}, {words}"
    if side.over:
        words = f"{words} ({'spread' if side.spread else 'best'} over {side.over})"
    return words


def _effects(
    kind: Kind, axis: Sequence[Any], judgement: Judgement, values: Cells, rule: Rule
) -> Iterator[Effect]:
    level = rule.level(2)
    if judgement.confidence is not None:
        level = (1 - judgement.confidence) / (2 * len(rule.looks))
    match kind:
        case Greater() | Less() | Equivalent():
            yield _effect("", difference(kind.a, kind.b, kind.is_exact).evidence(values, rule), level)
        case Ratio():
            logs = {cell: logarithms(values.get(cell, {}), cell) for cell in (kind.a, kind.b)}
            effect = _effect("", difference(kind.a, kind.b, kind.is_exact).evidence(logs, rule), level)
            ratios = {seed: math.exp(value) for seed, value in effect.values.items()}
            yield Effect("", ratios, effect.n, judgement.interval)
        case Flat():
            for (first, a), (second, b) in combinations(zip(axis, kind.along, strict=True), 2):
                evidence = difference(a, b).evidence(values, rule)
                yield _effect(f"{written(first)} − {written(second)}", evidence, level)
        case Trend():
            yield Effect("", _slopes(kind, values, judgement), judgement.n, judgement.interval)
        case Crossover():
            for place, a, b in zip(kind.axis, kind.a, kind.b, strict=True):
                yield _effect(written(place), difference(a, b).evidence(values, rule), level)
        case Knee():
            reference = kind.along[kind.axis.index(kind.reference)]
            for place, cell in zip(kind.axis, kind.along, strict=True):
                if place != kind.reference:
                    evidence = difference(reference, cell).evidence(values, rule)
                    yield _effect(f"{written(kind.reference)} − {written(place)}", evidence, level)


def written(place: Any) -> str:
    """Return a place of an axis as text."""
    return f"{place:g}" if isinstance(place, int | float) and not isinstance(place, bool) else str(place)


def _effect(label: str, evidence: Evidence, level: float) -> Effect:
    values = dict(zip(evidence.seeds, evidence.values, strict=True))
    return Effect(label, values, evidence.n, evidence.last.bounds(level) if evidence.last else None)


def _slopes(kind: Trend, values: Cells, judgement: Judgement) -> dict[int, float]:
    """The slope a doubling of the axis, by seed."""
    rows = [values.get(cell, {}) for cell in kind.along]
    places = [math.log2(place) for place in kind.axis]
    slopes = {}
    for seed in judgement.seeds:
        numbers = [row.get(seed, math.nan) for row in rows]
        finite = all(map(math.isfinite, numbers))
        slopes[seed] = statistics.linear_regression(places, numbers).slope if finite else math.nan
    return slopes


def _region(kind: Kind) -> tuple[tuple[float, float] | None, tuple[float, ...]]:
    match kind:
        case Greater():
            return (kind.margin, math.inf), (kind.margin,)
        case Less():
            return (-math.inf, -kind.margin), (-kind.margin,)
        case Equivalent() | Flat():
            return (-kind.margin, kind.margin), (-kind.margin, kind.margin)
        case Ratio():
            return (kind.margin, math.inf), (kind.margin,)
        case Trend() if kind.direction == "rises":
            return (kind.margin, math.inf), (kind.margin,)
        case Trend():
            return (-math.inf, -kind.margin), (-kind.margin,)
        case Knee():
            return None, (kind.margin,)
        case _:
            return None, NO_EDGE


# ---- in words


def unit_of(test: Test) -> str:
    """Return the unit of the numbers of a comparison's sides."""
    side = test.a
    if side is not None and side.best:
        return ""
    return metric(side.metric if side is not None and side.metric else test.metric).unit


def effect_unit(test: Test) -> str:
    """Return the unit of the effects of a comparison."""
    unit = wording.unit(test)
    return f"{unit} a doubling".strip() if test.kind == "trend" else unit


def demand(test: Test) -> str:
    """Return what a comparison asks for, such as ``> 1 point``."""
    size = test.factor or 1.0 if test.kind == "ratio" else test.margin or 0.0
    unit = effect_unit(test).replace("points", "point") if size == 1 else effect_unit(test)
    margin = f"{size:g} {unit}".rstrip()
    within = f" between {written(test.within[0])} and {written(test.within[1])}" if test.within else ""
    match test.kind:
        case "greater" | "ratio":
            return f"> {margin}"
        case "less":
            return f"< −{margin}"
        case "equivalent":
            return f"within ±{margin}"
        case "flat":
            return f"all within ±{margin}"
        case "trend":
            sign = ">" if test.direction == "rises" else "< −" if size else "<"
            return f"{sign} {margin}".replace("− ", "−")
        case "knee":
            return f"a loss of {margin} against {test.along} {written(test.reference)} begins{within}"
        case _:
            return f"the sign changes{within}"


def estimate(part: Part) -> str:
    """Return what a comparison measured, as `wording.outcome`; before the first look, a plain mean."""
    words = wording.outcome(part.test, part.judgement)
    if words or part.test.kind in ("crossover", "knee"):
        return words or "–"
    means = [_mean(tuple(effect.values.values()), part.test.kind) for effect in part.effects]
    known = [mean for mean in means if math.isfinite(mean)]
    if not known:
        broken = sum(not math.isfinite(value) for effect in part.effects for value in effect.values.values())
        return f"{plural(broken, 'pair')} with a trial that diverged" if broken else "–"
    value = f"{wording.number(max(known, key=abs))} {effect_unit(part.test)}".rstrip()
    return f"{value} (mean of {part.judgement.n}, no interval yet)"


def _mean(values: tuple[float, ...], kind: str) -> float:
    if not values or not all(map(math.isfinite, values)):
        return math.nan
    return statistics.geometric_mean(values) if kind == "ratio" else statistics.fmean(values)
