"""From records to judgements: the numbers of every cell that a claim names, put to its test."""

import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from normbench.config.trial import Trial
from normbench.records import Record
from normbench.report.claims import kinds
from normbench.report.claims.adaptive import missing_trials
from normbench.report.claims.cells import Cell, Cells, Group, cells_of
from normbench.report.claims.comparison import Side, Test
from normbench.report.claims.document import Claim
from normbench.report.claims.judgement import Judgement, Verdict, correct
from normbench.report.claims.moderation import Prior, prior_of
from normbench.report.claims.rule import Rule
from normbench.report.metrics import AmbiguousMetric, Metric, metric

RULE = Rule()
COSTS = frozenset({"seconds", "images_per_second", "peak_memory_bytes"})  # of which a diverged trial has none


class Stored:
    """The records of one experiment, by cell and seed.

    Args:
        experiment: its name.
        records: its results.
        chosen: by the trial of a cell as it is written, the one with tuned settings; seeds say nothing.
    """

    def __init__(
        self,
        experiment: str,
        records: Iterable[Record] = (),
        chosen: Mapping[Trial, Trial] | None = None,
    ) -> None:
        self.experiment = experiment
        self.chosen = {_seedless(trial): _seedless(other) for trial, other in (chosen or {}).items()}
        self.by_cell: dict[Trial, dict[int, Record]] = {}
        for record in records:
            cell = record.trial.model_copy(update={"seed": 0})
            self.by_cell.setdefault(cell, {})[record.trial.seed] = record

    @cached_property
    def ids(self) -> set[str]:
        """The ids of all trials that have a record."""
        return {record.trial.id for trials in self.by_cell.values() for record in trials.values()}

    def of(self, cell: Cell) -> Mapping[int, Record]:
        """Return the records of a cell by seed."""
        return self.by_cell.get(cell.trial, {})

    def resolved(self, cells: Cells) -> Cells:
        """Return the cells with the settings that tuning has chosen."""

        def group(each: Group) -> Group:
            return {
                at: replace(cell, trial=self.chosen.get(cell.trial, cell.trial)) if cell.tuned else cell
                for at, cell in each.items()
            }

        sides = {
            key: {value: group(each) for value, each in side.items()} for key, side in cells.sides.items()
        }
        return replace(cells, sides=sides)


def _seedless(trial: Trial) -> Trial:
    return trial.model_copy(update={"seed": 0})


Records = Mapping[str, Stored]


@dataclass(frozen=True)
class Row:
    """The numbers of one side of a comparison at one place of its axis.

    Attributes:
        label: how the arithmetic calls it.
        experiment: the name of the experiment that its cells belong to.
        group: the cells that the numbers come from; several where they are a spread or a best value.
        values: by seed; an infinite one is that of a trial that diverged or never got there.
        lacks: why trials with a record have no number.
    """

    label: str
    experiment: str
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
        test: the statistical test on the labels of ``rows``.
    """

    claim: Claim
    judgement: Judgement
    rows: Mapping[str, Row]
    records: tuple[Record, ...] = ()
    reason: str = ""
    rule: Rule = RULE
    test: kinds.Kind | None = None

    @property
    def values(self) -> dict[str, Mapping[int, float]]:
        """The numbers by label and seed."""
        return {label: row.values for label, row in self.rows.items()}

    @property
    def lacking(self) -> list[tuple[str, int]]:
        """The labels and seeds that its next look lacks."""
        return missing_trials(self.judgement.pending, self.values, self.rule)

    def trials(self, wanted: Iterable[tuple[str, int]]) -> dict[str, list[Trial]]:
        """Return the trials that give the numbers of some rows and seeds, by their experiment."""
        trials: dict[str, dict[Trial, None]] = {}
        for label, seed in wanted:
            row = self.rows[label]
            of_row = {cell.with_seed(seed): None for cell in row.group.values()}
            trials.setdefault(row.experiment, {}).update(of_row)
        return {experiment: list(each) for experiment, each in trials.items()}


def rule_of(claim: Claim, rule: Rule = RULE) -> Rule:
    """Return the rule with the order in which seeds count: those of the experiment, then the next ones.

    Seeds that an experiment tunes with are left out.
    """
    if claim.test is None or rule.seeds is not None:
        return rule
    cells = [cell for test in claim.test.parts for cell in claim.cells(test).all]
    declared = list(cells[0].seeds)
    tunes = [experiment.tune for experiment in claim.experiments.values() if experiment.tune]
    taken = {*declared, *(trial.seed for tune in tunes for trial in tune.tuning.values())}
    follow = itertools.count(max(declared) + 1)
    more = (seed for seed in itertools.chain(range(max(declared)), follow) if seed not in taken)
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
    test = _test(claim, claim.test, stored, rows)
    try:
        judgement = test.judge(
            {label: row.values for label, row in rows.items()}, rule, _prior(claim, stored)
        )
    except ValueError as error:  # a ratio of numbers that are not above 0
        judgement = Judgement(Verdict.NOT_RUN, test.kind, note=str(error))
    used = _used(rows, stored)
    reason = ""
    if judgement.verdict is Verdict.NOT_RUN:
        lacks = dict.fromkeys(row.lacks for row in rows.values() if row.lacks)
        reason = judgement.note or "; ".join(lacks) or "no seed is complete on all sides"
    images = {(record.trial.dataset, record.data) for record in used}
    if len(images) > len({dataset for dataset, _ in images}):
        reason = "its records are of different images under one name"
        judgement = Judgement(Verdict.NOT_RUN, test.kind, note=reason)
    return Judged(claim, judgement, rows, used, reason, rule, test)


def judge_all(
    claims: Sequence[Claim], stored: Records, rules: Mapping[str, Rule] | None = None
) -> list[Judged]:
    """Judge all claims of a report and correct their verdicts for their number, by Holm's method.

    Args:
        claims: of one report, with ids that differ.
        stored: records by the name of their experiment.
        rules: the declared rule of claims by id; the usual one where there is none.
    """
    judged = [judge(claim, stored, (rules or {}).get(claim.id, RULE)) for claim in claims]
    verdicts = correct({each.claim.id: each.judgement for each in judged}, RULE.alpha)
    return [replace(each, judgement=verdicts[each.claim.id]) for each in judged]


def _test(claim: Claim, test: Test, stored: Records, rows: dict[str, Row]) -> kinds.Kind:
    """The statistical test of a comparison on labels of rows, which are added to ``rows``."""
    if test.of:
        parts = tuple(_test(claim, part, stored, rows) for part in test.of)
        return kinds.AllOf(parts) if test.kind == "all" else kinds.AnyOf(parts)
    experiment = claim.experiment(test)
    records = stored.get(experiment.name, Stored(experiment.name))
    cells = records.resolved(cells_of(test, experiment.trials, experiment.tune))
    sides = _rows(test, cells, records)
    rows |= {row.label: row for side in sides.values() for row in side}
    return test.on(cells.axis, {key: tuple(row.label for row in side) for key, side in sides.items()})


def _prior(claim: Claim, stored: Records) -> Prior | None:
    """The prior of the spread of cells, where all numbers of a claim are one metric of one experiment."""
    tests = list(claim.test.parts) if claim.test else []
    kinds_of_numbers = {(claim.experiment(test).name, test.metric) for test in tests}
    is_plain = not any(side.over or side.metric for test in tests for _, side in test.sides)
    if len(kinds_of_numbers) != 1 or not is_plain:
        return None
    ((name, number),) = kinds_of_numbers
    return prior_of(_spreads(stored.get(name, Stored(name)), metric(number)))


def _spreads(records: Stored, number: Metric) -> dict[str, dict[int, float]]:
    """The numbers of every cell of an experiment in which no trial failed."""
    cells: dict[str, dict[int, float]] = {}
    for index, trials in enumerate(records.by_cell.values()):
        values = {seed: number(record) for seed, record in trials.items()}
        known = {seed: value for seed, value in values.items() if value is not None}
        if len(known) == len(values):
            cells[str(index)] = known
    return cells


def _rows(test: Test, cells: Cells, records: Stored) -> dict[str, tuple[Row, ...]]:
    """The rows of every side in the order of the axis; what is compared with a constant is less by that."""
    constant = next((side.constant for _, side in test.sides if side.constant is not None), 0.0)
    rows: dict[str, tuple[Row, ...]] = {}
    for key, side in test.sides:
        if key in cells.sides:
            number = metric(side.metric or test.metric)
            rows[key] = tuple(
                _row(test.label(side, place, records.experiment), side, number, group, records, constant)
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
            try:
                value = number_of(record, number)
            except AmbiguousMetric as error:
                value, lacks = None, str(error)
            if value is None:
                lacks = lacks or f"records have no {number.name}"
                break
            numbers[at] = value
        else:
            values[seed] = _reduced(side, number, numbers) - constant
    if not seeds:
        lacks = "there are no records"
    return Row(label, records.experiment, group, values, lacks)


def number_of(record: Record, number: Metric) -> float | None:
    """Return a trial's number: infinite on the bad side where it diverged, or never got to a loss."""
    value = number(record)
    worst = math.inf if number.better == "lower" else -math.inf
    has_worst = number.better != "neither" and number.name not in COSTS
    if value is None and record.status == "diverged" and has_worst:
        return worst
    if value is None and record.status == "done" and number.name.startswith("epochs_to_loss"):
        return worst
    return value


def _reduced(side: Side, number: Metric, values: Mapping[Any, float]) -> float:
    if side.spread:
        smallest, largest = min(values.values()), max(values.values())
        return largest - smallest if math.isfinite(largest) else math.inf  # where all diverged, too
    if side.best:
        sign = -1 if number.better == "lower" else 1
        return float(max(values, key=lambda at: sign * values[at]))
    (value,) = values.values()
    return value


def _used(rows: Mapping[str, Row], stored: Records) -> tuple[Record, ...]:
    """The records that any number comes from."""
    used: dict[str, Record] = {}
    for row in rows.values():
        for cell in row.group.values():
            known = stored[row.experiment].of(cell) if row.experiment in stored else {}
            used |= {record.trial.id: record for seed, record in known.items() if seed in row.values}
    return tuple(used.values())
