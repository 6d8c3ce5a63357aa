"""What a report says, whatever form it is written in: claims with their verdicts, numbers and records.

Nothing of it depends on when or where it is made: the same records give the same page.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import PurePosixPath
from typing import Any

from normbench import __version__
from normbench.config.trial import Trial
from normbench.records import Record
from normbench.report.claims import wording
from normbench.report.claims.judge import RULE, Judged
from normbench.report.claims.judgement import Judgement, Verdict
from normbench.report.claims.parts import (
    Effect,
    Part,
    demand,
    effect_unit,
    estimate,
    parts_of,
    unit_of,
    written,
)
from normbench.report.claims.properties import PROPERTIES, Property
from normbench.report.claims.rule import POWER, Rule, rate
from normbench.report.metrics import metric
from normbench.text import plural

ORDER = (Verdict.SUPPORTED, Verdict.CONTRADICTED, Verdict.IN_PART, Verdict.INCONCLUSIVE, Verdict.NOT_RUN)
VERSIONS = ("normbench", "git", "python", "torch", "device", "threads")


@dataclass(frozen=True)
class Numbers:
    """The numbers of one cell by seed; None is that of a trial that diverged or never got there."""

    label: str
    values: Mapping[str, float | None]


@dataclass(frozen=True)
class Comparison:
    """One comparison of a claim in words; ``part`` has its numbers for the figure."""

    number: int
    title: str
    kind: str
    verdict: str
    measured: str
    demand: str
    margin_from: str
    metric: str
    unit: str
    n: int
    arithmetic: tuple[str, ...]
    moderated: str
    cells: tuple[Numbers, ...]
    effects: tuple[Numbers, ...]


@dataclass(frozen=True)
class Published:
    """Numbers that somebody else published."""

    label: str
    source: str
    at: Mapping[str, float]


@dataclass(frozen=True)
class Entry:
    """A claim with its verdict and everything that it rests on."""

    id: str
    says: str
    original: str
    document: str
    sources: tuple[str, ...]
    verdict: str
    qualified: str
    shape: str
    measured: str
    margin: str
    n: int
    p: float
    remaining: str
    note: str
    reason: str
    scope: str
    limits: str
    declared: str
    comparisons: tuple[Comparison, ...]
    published: tuple[Published, ...]
    records: tuple[str, ...]


@dataclass(frozen=True)
class Diverged:
    """A cell in which trials diverged or ran out of memory."""

    cell: str
    rate: str
    claims: tuple[str, ...]


@dataclass(frozen=True)
class Page:
    """A report.

    Attributes:
        score: how many claims have which verdict, in one line.
        budget: with how many records of which scope.
        claims: by verdict, and in the order of the documents.
        not_run: what has no numbers, and why, by claim.
        rule: paragraphs that say how verdicts come about.
        environments: versions and devices with their number of records.
        data: content hashes of data sets with their number of records.
        rerun: command lines with what they do.
    """

    score: str
    budget: str
    documents: Mapping[str, str]
    claims: tuple[Entry, ...]
    properties: tuple[Property, ...]
    not_run: tuple[tuple[str, str], ...]
    rule: tuple[str, ...]
    diverged: tuple[Diverged, ...]
    environments: tuple[Mapping[str, str], ...]
    data: tuple[tuple[str, str, int], ...]
    rerun: tuple[tuple[str, str], ...]

    def as_json(self) -> dict[str, Any]:
        """Return the page as values of JSON."""
        return asdict(self)


def page_of(judged: Sequence[Judged], corrected_for: int, declared: Mapping[str, str]) -> Page:
    """Return the report on claims.

    Args:
        judged: the claims to show, as `normbench.report.claims.judge.judge_all` gives them.
        corrected_for: the number of claims that the verdicts are corrected for.
        declared: by the id of a claim, the hash of its looks and test as they were declared.
    """
    ordered = sorted(judged, key=lambda each: ORDER.index(each.judgement.verdict))
    records = {record.trial.id: record for each in judged for record in each.records}
    return Page(
        score=wording.score(judged),
        budget=_budget(list(records.values())),
        documents={each.claim.document: each.claim.title for each in judged},
        claims=tuple(_entry(each, declared.get(each.claim.id, "")) for each in ordered),
        properties=PROPERTIES,
        not_run=tuple(_not_run(judged)),
        rule=tuple(_rule(judged, corrected_for, declared)),
        diverged=tuple(_diverged(judged)),
        environments=tuple(_environments(records.values())),
        data=tuple(_data(records.values())),
        rerun=tuple(_rerun(judged)),
    )


# ---- claims


def _entry(judged: Judged, declared: str) -> Entry:
    settings, judgement = judged.claim.settings, judged.judgement
    parts = parts_of(judged)
    return Entry(
        id=settings.id,
        says=settings.says,
        original=settings.original,
        document=judged.claim.document,
        sources=settings.source,
        verdict=str(judgement.verdict),
        qualified=_qualified(judgement),
        shape=wording.SHAPES[judgement.verdict],
        measured=wording.measured(judged) or "–",
        margin=wording.margin(judged) or "–",
        n=judgement.n,
        p=judgement.p,
        remaining=wording.remaining(judged),
        note=judgement.note,
        reason=judged.reason,
        scope=wording.scope(judged),
        limits=settings.scope,
        declared=declared,
        comparisons=tuple(_comparison(part, number) for number, part in enumerate(parts, 1)),
        published=tuple(Published(each.label, each.source, dict(each.at)) for each in settings.published),
        records=tuple(sorted(_names(judged))),
    )


def _qualified(judgement: Judgement) -> str:
    """The word of a verdict; of one that did not survive the correction for many claims, that too."""
    first = judgement.note.partition(";")[0]
    return first if first.startswith(f"{judgement.verdict} after correction") else str(judgement.verdict)


def _comparison(part: Part, number: int) -> Comparison:
    test, judgement = part.test, part.judgement
    chosen = metric(test.a.metric if test.a and test.a.metric else test.metric)
    moderated = ""
    if judgement.moderated is not None:
        moderated = (
            f"with the spreads of all cells, which does not decide: {wording.interval(judgement.moderated)}"
        )
    return Comparison(
        number=number,
        title=title_of(part),
        kind=test.kind,
        verdict=str(judgement.verdict),
        measured=estimate(part),
        demand=demand(test),
        margin_from=test.margin_from,
        metric=f"{chosen.name}: {chosen.meaning}",
        unit=unit_of(test),
        n=judgement.n,
        arithmetic=judgement.arithmetic,
        moderated=moderated,
        cells=tuple(
            Numbers(row.label, _finite(row.values)) for curve in part.curves for row in curve.rows.values()
        ),
        effects=tuple(Numbers(_effect_label(part, each), _finite(each.values)) for each in part.effects),
    )


def title_of(part: Part) -> str:
    """Return what a comparison compares, by the settings of its sides."""
    test, labels = part.test, [curve.label for curve in part.curves]
    if test.b is not None and test.b.constant is not None:
        labels.append(f"{test.b.constant:g}")
    sign = " / " if test.kind == "ratio" else " − "
    along = f", along {test.along}" if test.along else ""
    metrics = {side.metric or test.metric for _, side in test.sides if side.constant is None}
    of = "" if len(metrics) > 1 or metrics == {"accuracy"} else f" of {metrics.pop()}"
    return f"{test.kind}{of}: {sign.join(labels)}{along}"


def _effect_label(part: Part, effect: Effect) -> str:
    words = {"trend": "slope", "ratio": "ratio"}.get(part.test.kind, "difference")
    unit = effect_unit(part.test)
    return " ".join(filter(None, (words, effect.label, f"({unit})" if unit else "")))


def _finite(values: Mapping[int, float]) -> dict[str, float | None]:
    return {str(seed): wording.finite(value) for seed, value in values.items()}


def _names(judged: Judged) -> set[str]:
    """The records that any number comes from, as their files are called below the results directory."""
    return {
        f"{row.experiment}/{cell.with_seed(seed).id}"
        for row in judged.rows.values()
        for cell in row.group.values()
        for seed in row.values
    }


def _budget(records: Sequence[Record]) -> str:
    if not records:
        return "no records"
    trials = [record.trial for record in records]
    seeds = Counter(trial.model_copy(update={"seed": 0}) for trial in trials).values()
    networks = " and ".join(sorted({trial.model.name for trial in trials}))
    data = " and ".join(sorted({wording.data_name(trial) for trial in trials}))
    epochs = _span([trial.epochs for trial in trials], "epoch")
    return (
        f"{plural(len(records), 'record')} of {networks} on {data}; {epochs}, {_span(seeds, 'seed')} a cell"
    )


def _span(numbers: Iterable[int], noun: str) -> str:
    low, high = min(numbers := list(numbers)), max(numbers)
    return plural(low, noun) if low == high else f"{low} to {high} {noun}s"


# ---- around them


def _not_run(judged: Iterable[Judged]) -> Iterable[tuple[str, str]]:
    for each in judged:
        if each.judgement.verdict is Verdict.NOT_RUN:
            yield each.claim.id, each.reason or each.judgement.note
        else:
            for row in each.rows.values():
                if row.lacks:
                    yield each.claim.id, f"{row.label}: {row.lacks}"


def _rule(judged: Sequence[Judged], corrected_for: int, declared: Mapping[str, str]) -> Iterable[str]:
    rules: dict[Rule, list[str]] = defaultdict(list)
    for each in judged:
        rules[Rule(each.rule.looks, each.rule.alpha)].append(each.claim.id)
    for rule, ids in (rules or {RULE: []}).items():
        looks = ", ".join(map(str, rule.looks))
        some = f" (claims {', '.join(ids)})" if len(rules) > 1 else ""
        yield (
            f"Claims are looked at with {looks} seeds{some}, at no other number. Values are paired by seed, "
            "and at a look of n seeds the differences give the interval mean ± t(1 − "
            f"{rule.alpha:g}/{2 * len(rule.looks)}, n − 1) · s / √n. All {len(rule.looks)} intervals hold "
            f"together with a probability of at least {1 - rule.alpha:.0%}, whatever made the sampling stop, "
            "if differences are normally distributed."
        )
    yield (
        "Supported: the interval lies where the claim says. Contradicted: it lies wholly elsewhere. "
        "Supported in part: a direction holds with a size that is excluded, or some parts hold and others "
        "fail. Inconclusive: anything else. Not run: there are no numbers."
    )
    yield (
        f"Verdicts are corrected for {plural(corrected_for, 'claim')} by Holm's method, also for those that "
        "are not shown here; intervals and the verdicts of single comparisons are not. A trial that diverged "
        "enters no mean: where there is one, the exact sign test decides."
    )
    yield (
        '"About N more seeds" assumes that the mean stays where it is, and settles the claim with a '
        f"probability of {POWER:.0%}. A verdict speaks of its scope, and of no longer training."
    )
    shown = [each.claim.id for each in judged if each.claim.id in declared]
    if shown:
        yield (
            f"Looks and tests of {plural(len(shown), 'claim')} were declared in looks.json of the results "
            "directory before further trials were run; the hash stands with each claim. All others have the "
            f"looks that normbench {__version__} declares."
        )
    else:
        yield (
            f"The looks are those that normbench {__version__} declares for every claim; the margins stand "
            "in the files of claims."
        )


def _diverged(judged: Iterable[Judged]) -> Iterable[Diverged]:
    labels: dict[tuple[str, Trial], str] = {}
    claims: dict[tuple[str, Trial], list[str]] = defaultdict(list)
    statuses: dict[tuple[str, Trial], Counter[str]] = {}
    for each in judged:
        by_cell: dict[Trial, Counter[str]] = defaultdict(Counter)
        for record in each.records:
            by_cell[record.trial.model_copy(update={"seed": 0})][record.status] += 1
        for row in each.rows.values():
            for at, cell in row.group.items():
                counts = by_cell.get(cell.trial.model_copy(update={"seed": 0}), Counter())
                if counts.total() > counts["done"]:
                    key = row.experiment, cell.trial
                    labels.setdefault(key, row.label if at is None else f"{row.label}, at {written(at)}")
                    statuses[key] = counts
                    claims[key] = list(dict.fromkeys([*claims[key], each.claim.id]))
    for key, counts in statuses.items():
        words = []
        if counts["diverged"]:
            words.append(str(rate(counts["diverged"], counts.total())))
        if counts["out_of_memory"]:
            words.append(f"{counts['out_of_memory']} of {counts.total()} ran out of memory")
        yield Diverged(labels[key], "; ".join(words), tuple(claims[key]))


def _environments(records: Iterable[Record]) -> Iterable[Mapping[str, str]]:
    counts = Counter(tuple(str(record.provenance.get(name, "–")) for name in VERSIONS) for record in records)
    for values, count in sorted(counts.items()):
        yield {"records": str(count), **dict(zip(VERSIONS, values, strict=True))}


def _data(records: Iterable[Record]) -> Iterable[tuple[str, str, int]]:
    counts = Counter((wording.data_name(record.trial), record.data) for record in records)
    for (name, content), count in sorted(counts.items()):
        yield name, content, count


def _rerun(judged: Iterable[Judged]) -> Iterable[tuple[str, str]]:
    files: dict[str, str] = {}
    for each in judged:
        for name, experiment in each.claim.experiments.items():
            config = PurePosixPath(name or each.claim.settings.experiment or "")
            is_of_project = config.parts[:1] == ("..",)  # the files of claims lie in configs/claims
            files.setdefault(f"configs/{config.name}" if is_of_project else str(config), experiment.name)
    for path in sorted(files):
        yield f"normbench run {path}", f"trains the trials of {files[path]} that have no record"
    yield "normbench report", "makes this page anew from the records"
    yield "normbench show TRIAL", "shows one record with its settings, epochs and environment"
