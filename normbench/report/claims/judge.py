"""From records to judgements: the numbers of every cell that a claim names, put to its test."""

import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from normbench.config.trial import Trial
from normbench.records import Record
from normbench.report.claims import decisions
from normbench.report.claims.cells import Cell, Cells, Group, cells_of
from normbench.report.claims.comparison import Side, Test
from normbench.report.claims.document import Claim
from normbench.report.claims.judgement import Judgement, Verdict, corrected, joined
from normbench.report.claims.moderation import prior_of
from normbench.report.claims.rule import Rule
from normbench.report.metrics import Metric, metric

RULE = Rule()


class Stored:
    """The records of one experiment, by cell and seed."""

    def __init__(self, records: Iterable[Record]) -> None:
        self.by_cell: dict[Trial, dict[int, Record]] = {}
        for record in records:
            cell = record.trial.model_copy(update={"seed": 0})
            self.by_cell.setdefault(cell, {})[record.trial.seed] = record

    def of(self, cell: Cell) -> Mapping[int, Record]:
        """Return the records of a cell by seed."""
        return self.by_cell.get(cell.trial, {})


NOTHING = Stored(())
Records = Mapping[str, Stored]


@dataclass(frozen=True)
class Row:
    """The numbers of one side of a comparison at one place of its axis.

    Attributes:
        label: how the arithmetic calls it.
        group: the cells that the numbers come from; several where they are a spread or a best value.
        values: by seed; an infinite one is that of a trial that diverged or never got there.
        lacks: why trials with a record have no number.
    """

    label: str
    group: Group
    values: Mapping[int, float]
    lacks: str = ""


@dataclass(frozen=True)
class Judged:
    """A claim with its verdict and everything that it rests on.

    Attributes:
        claim: the claim.
        judgement: by the records that there are.
        rows: the numbers of every cell that was looked at, by label.
        records: the records that were used, each once.
        reason: why there is no verdict, where there is none.
        rule: the looks and the seeds in the order in which they count.
    """

    claim: Claim
    judgement: Judgement
    rows: Mapping[str, Row]
    records: tuple[Record, ...] = ()
    reason: str = ""
    rule: Rule = RULE

    @property
    def values(self) -> dict[str, Mapping[int, float]]:
        """The numbers by label and seed."""
        return {label: row.values for label, row in self.rows.items()}

    def trials(self, wanted: Iterable[tuple[str, int]]) -> list[Trial]:
        """Return the trials that give the numbers of some rows and seeds."""
        cells = ((cell, seed) for label, seed in wanted for cell in self.rows[label].group.values())
        return list(dict.fromkeys(cell.with_seed(seed) for cell, seed in cells))


def rule_of(claim: Claim, rule: Rule = RULE) -> Rule:
    """Return the rule with the order in which seeds count: those of the experiment, then the next ones."""
    if claim.test is None or rule.seeds is not None:
        return rule
    cells = [cell for test in claim.test.parts for cell in claim.cells(test).all]
    declared = list(cells[0].seeds)
    follow = itertools.count(max(declared) + 1)
    more = (seed for seed in itertools.chain(range(max(declared)), follow) if seed not in declared)
    seeds = [*declared, *itertools.islice(more, max(0, rule.looks[-1] - len(declared)))]
    return replace(rule, seeds=tuple(seeds[: max(rule.looks[-1], 0)]))


def judge(claim: Claim, stored: Records, rule: Rule = RULE) -> Judged:
    """Put the records to the test of a claim.

    Args:
        claim: a checked claim.
        stored: records by the name of their experiment.
        rule: the looks and the error that is accepted.
    """
    if claim.test is None:
        reason = claim.settings.not_run
        return Judged(claim, Judgement(Verdict.NOT_RUN, "none", note=reason), {}, reason=reason)
    rule = rule_of(claim, rule)
    rows: dict[str, Row] = {}
    judgement = _judged(claim, claim.test, stored, rule, rows)
    used = _used(rows, claim, stored)
    reason = ""
    if judgement.verdict is Verdict.NOT_RUN:
        lacks = dict.fromkeys(row.lacks for row in rows.values() if row.lacks)
        reason = "; ".join(lacks) or "no seed is complete on all sides"
    if len({record.data for record in used}) > len({record.trial.dataset for record in used}):
        reason = "its records are of different images under one name"
        judgement = replace(judgement, verdict=Verdict.NOT_RUN, note=joined(judgement.note, reason))
    return Judged(claim, judgement, rows, used, reason, rule)


def judge_all(claims: Sequence[Claim], stored: Records, rule: Rule = RULE) -> list[Judged]:
    """Judge all claims of a report and correct their verdicts for their number, by Holm's method."""
    judged = [judge(claim, stored, rule) for claim in claims]
    verdicts = corrected({str(number): each.judgement for number, each in enumerate(judged)}, rule.alpha)
    return [replace(each, judgement=verdicts[str(number)]) for number, each in enumerate(judged)]


def _judged(claim: Claim, test: Test, stored: Records, rule: Rule, rows: dict[str, Row]) -> Judgement:
    if test.kind in ("all", "any"):
        compose = decisions.all_of if test.kind == "all" else decisions.any_of
        return compose([_judged(claim, part, stored, rule, rows) for part in test.of], rule)
    experiment = claim.experiment(test)
    records = stored.get(experiment.name, NOTHING)
    cells = cells_of(test, experiment.trials)
    sides = _rows(test, cells, records, experiment.name)
    new = {row.label: row for side in sides.values() for row in side}
    rows |= new
    prior = prior_of(_spreads(records, metric(test.metric))) if _is_plain(test) else None
    comparison = test.on(cells.axis, {key: tuple(row.label for row in side) for key, side in sides.items()})
    return comparison.judge({label: row.values for label, row in new.items()}, rule, prior)


def _is_plain(test: Test) -> bool:
    return test.kind != "ratio" and not any(side.over or side.metric for _, side in test.sides)


def _spreads(records: Stored, number: Metric) -> dict[str, dict[int, float]]:
    """The numbers of every cell of an experiment in which no trial failed."""
    cells: dict[str, dict[int, float]] = {}
    for index, trials in enumerate(records.by_cell.values()):
        values = {seed: number(record) for seed, record in trials.items()}
        known = {seed: value for seed, value in values.items() if value is not None}
        if len(known) == len(values):
            cells[str(index)] = known
    return cells


def _rows(test: Test, cells: Cells, records: Stored, experiment: str) -> dict[str, tuple[Row, ...]]:
    """The rows of every side in the order of the axis; what is compared with a constant is less by that."""
    constant = next((side.constant for _, side in test.sides if side.constant is not None), 0.0)
    rows: dict[str, tuple[Row, ...]] = {}
    for key, side in test.sides:
        if key in cells.sides:
            number = metric(side.metric or test.metric)
            rows[key] = tuple(
                _row(test.label(side, place, experiment), side, number, group, records, constant)
                for place, group in cells.sides[key].items()
            )
    return rows


def _row(label: str, side: Side, number: Metric, group: Group, records: Stored, constant: float) -> Row:
    """The numbers of a group of cells: one cell's own, their spread, or the setting of the best."""
    seeds = sorted({seed for cell in group.values() for seed in records.of(cell)})
    values: dict[int, float] = {}
    lacks = ""
    for seed in seeds:
        numbers = {}
        for at, cell in group.items():
            record = records.of(cell).get(seed)
            if record is None:
                break
            value = _number(record, number)
            if value is None:
                lacks = f"records have no {number.name}"
                break
            numbers[at] = value
        else:
            values[seed] = _reduced(side, number, numbers) - constant
    if not seeds:
        lacks = "there are no records"
    return Row(label, group, values, lacks)


def _number(record: Record, number: Metric) -> float | None:
    """A trial's number: infinite on the bad side where the trial diverged, or never got to a loss."""
    value = number(record)
    worst = math.inf if number.better == "lower" else -math.inf
    if value is None and record.status == "diverged" and number.better != "neither":
        return worst
    if value is None and record.status == "done" and number.name.startswith("epochs_to_loss"):
        return worst
    return value


def _reduced(side: Side, number: Metric, values: Mapping[Any, float]) -> float:
    if side.spread:
        smallest, largest = min(values.values()), max(values.values())
        return largest - smallest if smallest != largest else 0.0
    if side.best:
        sign = -1 if number.better == "lower" else 1
        return float(max(values, key=lambda at: sign * values[at]))
    (value,) = values.values()
    return value


def _used(rows: Mapping[str, Row], claim: Claim, stored: Records) -> tuple[Record, ...]:
    """The records that any number comes from."""
    used: dict[str, Record] = {}
    for experiment in claim.experiments.values():
        records = stored.get(experiment.name, NOTHING)
        for row in rows.values():
            for cell in row.group.values():
                used |= {
                    record.trial.id: record for seed, record in records.of(cell).items() if seed in row.values
                }
    return tuple(used.values())
