"""Claims about a place on an axis: where two curves cross, and where a curve begins to drop.

Both are found by two fixed-sequence chains of one-sided tests, alpha / 2 each (Maurer, Hothorn & Lehmacher
1995): from both ends of the axis inward, each stopping at its first failure. A chain needs no correction for
its length, because a false success can only come after the first place where it would be false. What lies
between the two is a bracket, never one interpolated number.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import takewhile
from typing import ClassVar

from normbench.report.claims.decisions import arithmetic, check_along, check_margin, conclude
from normbench.report.claims.evidence import Evidence, difference
from normbench.report.claims.judgement import Judgement, Verdict
from normbench.report.claims.moderation import Prior
from normbench.report.claims.rule import Cell, Cells, Forecast, Rule

Range = tuple[float, float]
Bracket = tuple[float | None, float | None]
RULE = Rule()


@dataclass(frozen=True)
class Crossover:
    """a is above b at the small end of an axis and below it at the large end.

    Attributes:
        axis: the ascending places of the pairs of ``a`` and ``b``; a method that the axis cannot touch has
            the same cell at all of them.
        within: where the claim says that they cross; both ends are places of the axis.
    """

    kind: ClassVar[str] = "crossover"
    a: tuple[Cell, ...]
    b: tuple[Cell, ...]
    axis: tuple[float, ...]
    within: Range | None = None

    def __post_init__(self) -> None:
        if len(self.a) != len(self.b):
            raise ValueError(f"an axis has {len(self.a)} cells on one side and {len(self.b)} on the other")
        check_along([f"{a} − {b}" for a, b in zip(self.a, self.b, strict=True)], self.axis)
        check_range(self.within, self.axis)

    def judge(self, cells: Cells, rule: Rule = RULE, prior: Prior | None = None) -> Judgement:
        """Ask from the small end where a - b > 0, and from the large end where a - b < 0."""
        pairs = [difference(a, b).evidence(cells, rule) for a, b in zip(self.a, self.b, strict=True)]
        return replace(judge_bracket(self.kind, pairs, self.axis, 0.0, self.within, prior), margin=None)


@dataclass(frozen=True)
class Knee:
    """A curve drops by more than ``margin`` against its cell at ``reference``, which is an end of the axis.

    Attributes:
        axis: the ascending places of the cells ``along``.
        within: where the claim says that the drop begins: more than ``margin`` is lost at the end that lies
            away from the reference, and less at the other.
    """

    kind: ClassVar[str] = "knee"
    along: tuple[Cell, ...]
    axis: tuple[float, ...]
    reference: float
    margin: float
    within: Range | None = None

    def __post_init__(self) -> None:
        check_margin(self.margin)
        check_along(self.along, self.axis)
        if self.reference not in (self.axis[0], self.axis[-1]) or len(self.axis) < 3:
            raise ValueError(
                f"the reference {self.reference} must be an end of an axis of three places or more, "
                f"not of {list(self.axis)}"
            )
        check_range(self.within, [place for place in self.axis if place != self.reference])

    def judge(self, cells: Cells, rule: Rule = RULE, prior: Prior | None = None) -> Judgement:
        """Ask from the far end where the drop is above the margin, from the reference where it is below."""
        sign = 1 if self.reference == self.axis[-1] else -1
        places = list(zip(self.axis, self.along, strict=True))[::sign]
        reference = places.pop()[1]
        drops = [difference(reference, cell).evidence(cells, rule) for _, cell in places]
        within = self.within and (min(sign * x for x in self.within), max(sign * x for x in self.within))
        judgement = judge_bracket(
            self.kind, drops, [sign * place for place, _ in places], self.margin, within, prior
        )
        if sign > 0:
            return judgement
        return replace(
            judgement, bracket=_mirrored(judgement.bracket), by_means=_mirrored(judgement.by_means)
        )


def _mirrored(bracket: Bracket | None) -> Bracket | None:
    return bracket and (bracket[1] and -bracket[1], bracket[0] and -bracket[0])


def judge_bracket(
    kind: str,
    evidences: Sequence[Evidence],
    axis: Sequence[float],
    edge: float,
    within: Range | None,
    prior: Prior | None,
) -> Judgement:
    """Judge "the centres are above ``edge`` up to a place, and below it from a later place on".

    Without ``within``, both ends are claimed: one that is shown beside one that is refuted is supported in
    part. With it, the place is claimed: a change that is shown to lie elsewhere contradicts.
    """
    size = len(evidences)
    left, right = chain(evidences, edge, 1), chain(evidences[::-1], edge, -1)
    # how far the chains must reach for the claim
    first = sum(place <= within[0] for place in axis) if within else 1
    last = sum(place >= within[1] for place in axis) if within else 1
    holds_left, holds_right = left >= first, right >= last
    fails_left = right > size - first or evidences[0].stays_below(edge)
    fails_right = left > size - last or evidences[-1].exceeds(edge)
    left_p, right_p = _reach(evidences[:first], edge, 1), _reach(evidences[size - last :], edge, -1)
    left_fails_p = min(evidences[0].p_below(edge), _reach(evidences[first - 1 :], edge, -1))
    right_fails_p = min(evidences[-1].p_above(edge), _reach(evidences[: size - last + 1], edge, 1))
    p_for, p_against = max(left_p, right_p), min(left_fails_p, right_fails_p)
    verdict, p = Verdict.INCONCLUSIVE, min(p_for, p_against)
    if holds_left and holds_right:
        verdict, p = Verdict.SUPPORTED, p_for
    elif not within and holds_left and fails_right:
        verdict, p = Verdict.IN_PART, max(left_p, right_fails_p)
    elif not within and fails_left and holds_right:
        verdict, p = Verdict.IN_PART, max(left_fails_p, right_p)
    elif fails_left or fails_right:
        verdict, p = Verdict.CONTRADICTED, p_against
    inside = evidences[left : size - right]
    narrows = verdict is Verdict.SUPPORTED and within is None and bool(inside)
    ends = ((inside[0], holds_left), (inside[-1], holds_right)) if inside else ()
    frontier = hopeful([e for e, holds in ends if narrows or not holds], edge)
    judgement = conclude(
        kind, evidences, verdict, main=evidences[0], edges=[(edge, 2)], tests=2, prior=prior,
        p_for=p_for, p_against=p_against, p=p, margin=edge, undecided=frontier,
    )  # fmt: skip
    forecasts = [forecast for e in frontier if (forecast := e.forecast([(edge, 2)]))]
    is_open = narrows or not verdict.is_decided
    return replace(
        judgement,
        n=min((e.n for e in evidences if e.values), default=0),
        interval=None,
        moderated=None,
        arithmetic=tuple(arithmetic(e, e.rule.level(2), [(edge, 2)]) for e in evidences if e.values),
        bracket=_between(axis, left, size - right),
        by_means=by_means(evidences, axis, edge),
        forecast=Forecast.combined(forecasts) if is_open else None,
        is_open=bool(judgement.pending) and is_open,
    )


def chain(evidences: Sequence[Evidence], edge: float, sign: int) -> int:
    """Return how many of the first centres are shown to be beyond the edge, before one that is not."""
    return sum(
        1 for _ in takewhile(lambda e: e.exceeds(edge) if sign > 0 else e.stays_below(edge), evidences)
    )


def hopeful(sides: Sequence[Evidence], edge: float) -> list[Evidence]:
    """Return those that a later look may settle, each once; all of them where none may.

    Only the places just inside a bracket can narrow it; one that lies on the edge must not hold up the other.
    """
    forecasts = [e.forecast([(edge, 2)]) for e in sides]
    chosen = [e for e, f in zip(sides, forecasts, strict=True) if f is None or f.hopeful is not None]
    return list({id(e): e for e in chosen or sides}.values())


def by_means(evidences: Sequence[Evidence], axis: Sequence[float], edge: float) -> Bracket | None:
    """Return the neighbours between which the means alone change; None where they do not, or do so twice."""
    centres = [e.last.centre if e.last else math.nan for e in evidences]
    left = sum(1 for _ in takewhile(lambda centre: centre > edge, centres))
    right = sum(1 for _ in takewhile(lambda centre: centre < edge, reversed(centres)))
    if not left or not right or left + right < len(axis):
        return None
    return axis[left - 1], axis[left]


def check_range(within: Range | None, axis: Sequence[float]) -> None:
    """Refuse a range whose ends are no places of the axis, or do not ascend."""
    if within is not None and not (within[0] < within[1] and set(within) <= set(axis)):
        raise ValueError(f"the range {list(within)} must go from a place of {list(axis)} to a later one")


def _between(axis: Sequence[float], left: int, right: int) -> Bracket:
    return axis[left - 1] if left else None, axis[right] if right < len(axis) else None


def _reach(evidences: Sequence[Evidence], edge: float, sign: int) -> float:
    """Return the p of a chain over all of them, which is the largest in it."""
    return max(e.p_above(edge) if sign > 0 else e.p_below(edge) for e in evidences)
