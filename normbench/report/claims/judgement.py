"""What comes out of a test: the verdict with everything that it rests on, and Holm's correction over many."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum

from normbench.report.claims.evidence import Contrast
from normbench.report.claims.rule import Cell, Forecast, Rate
from normbench.report.stats import Interval


class Verdict(StrEnum):
    """The five verdicts."""

    SUPPORTED = "supported"
    CONTRADICTED = "contradicted"
    IN_PART = "supported in part"
    INCONCLUSIVE = "inconclusive"
    NOT_RUN = "not run"

    @property
    def is_decided(self) -> bool:
        """Whether it says something about the claim."""
        return self not in (Verdict.INCONCLUSIVE, Verdict.NOT_RUN)


@dataclass(frozen=True)
class Judgement:
    """A verdict and its grounds.

    Attributes:
        verdict: by the last completed look.
        kind: the kind of the claim, such as ``greater``.
        n: seeds of the last completed look; before the first, complete pairs.
        p_for: sequential p of the claim being false; at most alpha where the claim is supported.
        p_against: sequential p of the claim being true; at most alpha where it is contradicted.
        p: the sequential p of the verdict; of the nearer one where nothing is decided.
        interval: the estimate with its simultaneous interval, which decides; None before the first look and
            for compositions.
        confidence: of the interval over all looks: 1 - alpha, or 1 - 2 alpha where two one-sided tests must
            both hold.
        moderated: the interval from the spreads of all cells, which does not decide.
        bracket: the axis values between which a crossover or a knee is shown to lie; None is an open end.
        by_means: the neighbouring places between which the means alone have it, which shows nothing.
        margin: the margin of the claim, in the unit of the interval.
        arithmetic: lines that a reader can redo.
        note: what a reader of the verdict must be told beside it.
        forecast: how many seeds would settle an open claim.
        pending: the contrasts whose next look could change or sharpen it; none where all looks are done.
        is_open: whether it is worth running them: nothing is decided, or a bracket can still be narrowed.
        seeds: the seeds that were used.
        cells: the cells that were used.
        diverged: the rates of the cells in which a trial diverged, over the seeds that were used.
        parts: the judgements that a composition is made of.
    """

    verdict: Verdict
    kind: str
    n: int = 0
    p_for: float = 1.0
    p_against: float = 1.0
    p: float = 1.0
    interval: Interval | None = None
    confidence: float | None = None
    moderated: Interval | None = None
    bracket: tuple[float | None, float | None] | None = None
    by_means: tuple[float | None, float | None] | None = None
    margin: float | None = None
    arithmetic: tuple[str, ...] = ()
    note: str = ""
    forecast: Forecast | None = None
    pending: tuple[Contrast, ...] = ()
    is_open: bool = False
    seeds: tuple[int, ...] = ()
    cells: tuple[Cell, ...] = ()
    diverged: Mapping[Cell, Rate] = field(default_factory=dict)
    parts: tuple["Judgement", ...] = ()


def holm(ps: Sequence[float]) -> tuple[float, ...]:
    """Return the adjusted p of Holm 1979: (m - rank + 1) p of the ordered ones, made monotone, at most 1."""
    adjusted, largest = [1.0] * len(ps), 0.0
    for rank, index in enumerate(sorted(range(len(ps)), key=ps.__getitem__)):
        largest = max(largest, min(1.0, (len(ps) - rank) * ps[index]))
        adjusted[index] = largest
    return tuple(adjusted)


def correct(judgements: Mapping[str, Judgement], alpha: float = 0.05) -> dict[str, Judgement]:
    """Return the judgements of a report with verdicts that hold together with a probability of 1 - alpha.

    All claims of the report count, those that have not been run too. A verdict that does not survive is
    "inconclusive after correction for m claims", and open again; its interval, which is not corrected, stays.
    """
    adjusted = holm([judgement.p for judgement in judgements.values()])
    result = {}
    for (name, judgement), p in zip(judgements.items(), adjusted, strict=True):
        dies = judgement.verdict.is_decided and p > alpha
        result[name] = replace(
            judgement,
            p=p,
            is_open=judgement.is_open or (dies and bool(judgement.pending)),
            verdict=Verdict.INCONCLUSIVE if dies else judgement.verdict,
            note=join(
                f"inconclusive after correction for {len(adjusted)} claims" if dies else "", judgement.note
            ),
        )
    return result


def join(*notes: str) -> str:
    """Return the notes that say something as one text."""
    return "; ".join(dict.fromkeys(note for note in notes if note))
