"""From evidence to verdicts: one contrast against a margin, several within one, and compositions."""

import math
from collections.abc import Sequence
from typing import Any

from normbench.report.claims.evidence import Evidence, Signs
from normbench.report.claims.judgement import Judgement, Verdict, holm, join
from normbench.report.claims.moderation import Prior, moderated_interval
from normbench.report.claims.rule import Cell, Forecast, Rule


def judge_direction(
    kind: str, evidence: Evidence, sign: int, margin: float, prior: Prior | None
) -> Judgement:
    """Judge "the centre is beyond ``sign`` · ``margin``".

    A direction that is shown with a size that is excluded is supported in part.
    """
    edge = sign * margin
    beyond, short = (
        (evidence.exceeds, evidence.stays_below) if sign > 0 else (evidence.stays_below, evidence.exceeds)
    )
    p_beyond, p_short = (
        (evidence.p_above, evidence.p_below) if sign > 0 else (evidence.p_below, evidence.p_above)
    )
    p_for, p_against = p_beyond(edge), p_short(edge)
    p, note = min(p_for, p_against), ""
    if beyond(edge):
        verdict, p = Verdict.SUPPORTED, p_for
    elif short(edge) and margin > 0 and beyond(0.0):
        verdict, p = Verdict.IN_PART, max(p_against, p_beyond(0.0))
        note = f"the direction holds, and a size of {margin:.4g} is excluded"
    elif short(edge):
        verdict, p = Verdict.CONTRADICTED, p_against
    else:
        verdict = Verdict.INCONCLUSIVE
    return conclude(
        kind, [evidence], verdict, main=evidence, edges=[(edge, 2)], tests=2, prior=prior,
        p_for=p_for, p_against=p_against, p=p, margin=margin, note=note,
    )  # fmt: skip


def judge_within(kind: str, evidences: Sequence[Evidence], margin: float, prior: Prior | None) -> Judgement:
    """Judge "every centre lies between -margin and margin"; the widest difference is written out."""
    tests = 2 * len(evidences)  # two sides of every one, of which one that lies outside is enough
    p_for = max(max(e.p_above(-margin, 1), e.p_below(margin, 1)) for e in evidences)
    p_against = min(min(e.p_above(margin, tests), e.p_below(-margin, tests)) for e in evidences)
    outside = [e for e in evidences if e.exceeds(margin, tests) or e.stays_below(-margin, tests)]
    undecided = [e for e in evidences if not (e.exceeds(-margin, 1) and e.stays_below(margin, 1))]
    verdict, p = Verdict.INCONCLUSIVE, min(p_for, p_against)
    if outside:
        verdict, p = Verdict.CONTRADICTED, p_against
    elif not undecided:
        verdict, p = Verdict.SUPPORTED, p_for
    widest = max(outside or evidences, key=lambda e: abs(e.centre))
    edges = [(-margin, 1), (margin, 1)]
    if abs(widest.centre) > margin:
        edges = [(math.copysign(margin, widest.centre), tests)]
    return conclude(
        kind, evidences, verdict, main=widest, edges=edges, tests=tests if outside else 1, prior=prior,
        p_for=p_for, p_against=p_against, p=p, margin=margin, undecided=undecided,
    )  # fmt: skip


def conclude(
    kind: str,
    evidences: Sequence[Evidence],
    verdict: Verdict,
    *,
    main: Evidence,
    edges: Sequence[tuple[float, int]],
    tests: int,
    prior: Prior | None,
    undecided: Sequence[Evidence] | None = None,
    note: str = "",
    **numbers: Any,
) -> Judgement:
    """Return the judgement with what is the same for all kinds: interval, arithmetic, seeds, divergence.

    Args:
        main: the evidence whose interval is written out.
        edges: what it must be compared with, and over how many tests alpha is shared there.
        tests: over how many tests alpha is shared in its interval.
        undecided: those whose next look matters; all by default.
    """
    pending = [e for e in (undecided or evidences) if e.rule.next_look(len(e.values)) is not None]
    level, sample = main.rule.level(tests), main.last
    has_begun = any(e.values for e in evidences)
    return Judgement(
        verdict=verdict if has_begun else Verdict.NOT_RUN,
        kind=kind,
        n=min(e.n for e in evidences),
        interval=sample.bounds(level) if sample else None,
        confidence=1 - 2 * level * len(main.rule.looks),
        moderated=moderated_interval(main, prior, tests),
        arithmetic=(arithmetic(main, level, edges),),
        note=join(note, *map(remark, evidences)),
        forecast=None if verdict.is_decided else main.forecast(edges),
        pending=tuple(e.contrast for e in pending),
        is_open=not verdict.is_decided and bool(pending),
        seeds=tuple(sorted({seed for e in evidences for seed in e.seeds[: e.n]})),
        cells=tuple(dict.fromkeys(cell for e in evidences for cell in e.contrast.cells)),
        diverged={cell: rate for e in evidences for cell, rate in e.diverged.items()},
        **numbers,
    )


def arithmetic(evidence: Evidence, level: float, edges: Sequence[tuple[float, int]]) -> str:
    """Write how the interval comes about and what it is compared with."""
    if not evidence.last:
        first = evidence.rule.looks[0]
        return f"{evidence.contrast}: {len(evidence.values)} complete seeds; the first look takes {first}"
    interval = evidence.last.bounds(level)
    compared = ", ".join(
        f"{interval.low:.4g} > {edge:.4g}"
        if interval.low > edge
        else f"{interval.high:.4g} < {edge:.4g}"
        if interval.high < edge
        else f"holds {edge:.4g}"
        for edge, _ in edges
    )
    return f"{evidence.contrast}: {evidence.last.arithmetic(level)}; {compared}"


def remark(evidence: Evidence) -> str:
    """Say where and why the sign test stands in for Student's t."""
    if not isinstance(evidence.last, Signs):
        return ""
    level = evidence.rule.level(2)
    least = next((n for n in evidence.rule.looks if 0.5**n <= level), None)
    reason = (
        "trials diverged"
        if evidence.diverged
        else "values are counts"
        if evidence.contrast.is_exact
        else "no two differences differ"
    )
    needs = "more seeds than the looks have" if least is None else f"{least} seeds"
    return f"{reason}: the exact sign test on the median decides, which needs {needs}"


# ---- compositions


def all_of(parts: Sequence[Judgement], rule: Rule) -> Judgement:
    """Return the verdict that every part holds.

    Supported where every part is, each at alpha (intersection-union). Parts that fail are corrected by Holm:
    with one that fails and one that holds, it is supported in part; with none that holds, contradicted.
    """
    adjusted = holm([part.p for part in parts])
    survivors = [part for part, p in zip(parts, adjusted, strict=True) if p <= rule.alpha]
    holds = [part for part in survivors if part.verdict in (Verdict.SUPPORTED, Verdict.IN_PART)]
    fails = [part for part in survivors if part.verdict in (Verdict.CONTRADICTED, Verdict.IN_PART)]
    p_for = max(part.p_for for part in parts)
    p_against = min(1.0, len(parts) * min(part.p_against for part in parts))
    verdict, p = Verdict.INCONCLUSIVE, min(p_for, p_against)
    if all(part.verdict is Verdict.SUPPORTED for part in parts):
        verdict, p = Verdict.SUPPORTED, p_for
    elif fails and holds:
        verdict, p = Verdict.IN_PART, max(_least(fails, parts), _least(holds, parts))
    elif fails:
        verdict, p = Verdict.CONTRADICTED, _least(fails, parts)
    return _compose("all", parts, verdict, p_for, p_against, p, settled=Verdict.SUPPORTED)


def any_of(parts: Sequence[Judgement], rule: Rule) -> Judgement:
    """Return the verdict that at least one part holds.

    Supported where a part is after Holm's correction; contradicted where every part is, each at alpha.
    """
    adjusted = holm([part.p for part in parts])
    holds = [
        part
        for part, p in zip(parts, adjusted, strict=True)
        if part.verdict is Verdict.SUPPORTED and p <= rule.alpha
    ]
    p_for = min(1.0, len(parts) * min(part.p_for for part in parts))
    p_against = max(part.p_against for part in parts)
    verdict, p = Verdict.INCONCLUSIVE, min(p_for, p_against)
    if holds:
        verdict, p = Verdict.SUPPORTED, _least(holds, parts)
    elif all(part.verdict is Verdict.CONTRADICTED for part in parts):
        verdict, p = Verdict.CONTRADICTED, p_against
    elif all(part.verdict in (Verdict.CONTRADICTED, Verdict.IN_PART) for part in parts):
        verdict, p = Verdict.IN_PART, max(part.p for part in parts)
    return _compose("any", parts, verdict, p_for, p_against, p, settled=Verdict.CONTRADICTED)


def _least(some: Sequence[Judgement], parts: Sequence[Judgement]) -> float:
    """Return the smallest p of some parts, corrected by Holm over all."""
    adjusted = holm([part.p for part in parts])
    return min(p for part, p in zip(parts, adjusted, strict=True) if any(part is other for other in some))


def _compose(
    kind: str,
    parts: Sequence[Judgement],
    verdict: Verdict,
    p_for: float,
    p_against: float,
    p: float,
    settled: Verdict,
) -> Judgement:
    """Return the judgement of a composition; parts whose verdict is ``settled`` want no more seeds."""
    unsettled = [part for part in parts if part.verdict is not settled]
    if verdict.is_decided:  # all of it is open again where the verdict does not survive a correction
        unsettled = list(parts)
    pending = tuple(dict.fromkeys(contrast for part in unsettled for contrast in part.pending))
    forecasts = [part.forecast for part in unsettled if part.forecast]
    if not any(part.seeds for part in parts):
        verdict = Verdict.NOT_RUN
    return Judgement(
        verdict=verdict,
        kind=kind,
        n=min(part.n for part in parts),
        p_for=p_for,
        p_against=p_against,
        p=p,
        arithmetic=tuple(line for part in parts for line in part.arithmetic),
        note=join(*(part.note for part in parts)),
        forecast=None if verdict.is_decided else Forecast.combined(forecasts),
        pending=pending,
        is_open=not verdict.is_decided and bool(pending),
        seeds=tuple(sorted({seed for part in parts for seed in part.seeds})),
        cells=tuple(dict.fromkeys(cell for part in parts for cell in part.cells)),
        diverged={cell: rate for part in parts for cell, rate in part.diverged.items()},
        parts=tuple(parts),
    )


# ---- what a test refuses


def check_margin(margin: float, *, may_be_zero: bool = False) -> None:
    """Refuse a margin that is negative or not finite, and one of 0 where it leaves no region."""
    if not (0 < margin < math.inf or (may_be_zero and margin == 0)):
        raise ValueError(f"the margin is {margin}; it must be a number above 0")


def check_along(cells: Sequence[Cell], axis: Sequence[float] | None = None) -> None:
    """Refuse an axis of fewer than two cells, and places that do not ascend or are not one a cell."""
    if len(cells) < 2 or len(set(cells)) < len(cells):
        raise ValueError(f"an axis needs two different places or more, not {list(cells)}")
    if axis is not None and (len(axis) != len(cells) or list(axis) != sorted(set(axis))):
        raise ValueError(f"an axis needs a place for each of {len(cells)} cells, ascending, not {list(axis)}")
