"""From records to verdicts: numbers by seed, what lacks, and what is asked to run next."""

import math
from pathlib import Path
from typing import Any

import pytest
from claim_records import EXPERIMENT, folder, record, records
from scipy import stats

from normbench.report.claims.document import Claim, load
from normbench.report.claims.judge import Judged, Stored, judge, judge_all
from normbench.report.claims.judgement import Verdict

SETTLED = [0.50, 0.51, 0.49, 0.50, 0.52]


def claim(tmp_path: Path, test: str, experiment: str = EXPERIMENT) -> Claim:
    text = f"""\
document: T
title: a test
claims:
  - {{id: "1", says: words, source: [T], experiment: made_up.yaml, test: {test}}}
"""
    (found,) = load(folder(tmp_path, text, experiment))
    return found


def verdict(claim: Claim, accuracies: dict[tuple[str, int], list[Any]]) -> Judged:
    experiment = claim.experiments[None]
    return judge(claim, {"made_up": Stored("made_up", records(experiment, accuracies))})


GREATER = "{kind: greater, a: {norm: group, batch_size: 2}, b: {norm: batch, batch_size: 2}, margin: 1}"


def test_differences_are_paired_by_seed_in_percentage_points(tmp_path: Path) -> None:
    group = [0.70, 0.72, 0.69, 0.71, 0.73]
    judged = verdict(claim(tmp_path, GREATER), {("group", 2): group, ("batch", 2): SETTLED})
    assert judged.judgement.verdict is Verdict.SUPPORTED
    assert judged.judgement.interval is not None
    differences = [100 * (a - b) for a, b in zip(group, SETTLED, strict=True)]
    assert judged.judgement.interval.mean == pytest.approx(sum(differences) / 5, rel=1e-12)
    # the half-width is that of an ordinary interval whose level is shared by five looks at two sides
    t = stats.t.ppf(1 - 0.05 / 10, 4)  # 0.05 / (two sides of five looks)
    half = t * stats.tstd(differences) / math.sqrt(5)
    assert judged.judgement.interval.low == pytest.approx(sum(differences) / 5 - half, rel=1e-9)
    assert judged.judgement.n == 5
    assert len(judged.records) == 10


def test_between_looks_the_last_completed_look_counts(tmp_path: Path) -> None:
    group = [0.70, 0.72, 0.69, 0.10]  # the fourth seed completes no look
    judged = verdict(claim(tmp_path, GREATER), {("group", 2): group, ("batch", 2): SETTLED[:4]})
    assert (judged.judgement.n, judged.judgement.seeds) == (3, (0, 1, 2))
    assert judged.judgement.interval is not None
    assert judged.judgement.interval.mean == pytest.approx(20.3333, abs=1e-3)


def test_a_seed_that_lacks_ends_the_pairs(tmp_path: Path) -> None:
    found = claim(tmp_path, GREATER)
    made = records(found.experiments[None], {("group", 2): [0.7] * 5, ("batch", 2): SETTLED})
    kept = [each for each in made if not (each.trial.norm.name == "batch" and each.trial.seed == 1)]
    judged = judge(found, {"made_up": Stored("made_up", kept)})
    assert judged.judgement.verdict is Verdict.INCONCLUSIVE
    assert judged.judgement.n == 1
    missing = judged.trials(judged.lacking)
    assert [(t.norm.name, t.seed) for t in missing["made_up"]] == [("batch", 1)]


def test_what_the_next_look_lacks_are_both_sides(tmp_path: Path) -> None:
    judged = verdict(claim(tmp_path, GREATER), {("group", 2): [0.50, 0.52, 0.47], ("batch", 2): SETTLED})
    assert judged.judgement.is_open
    missing = judged.trials(judged.lacking)["made_up"]
    assert sorted((t.norm.name, t.seed) for t in missing) == [("group", 3), ("group", 4)]


def test_no_records_are_not_run(tmp_path: Path) -> None:
    judged = judge(claim(tmp_path, GREATER), {})
    assert judged.judgement.verdict is Verdict.NOT_RUN
    assert judged.reason == "there are no records"


def test_a_number_that_old_records_lack_is_said(tmp_path: Path) -> None:
    test = GREATER.replace("margin: 1", "margin: 1, metric: switch_weight.mean.batch")
    judged = verdict(claim(tmp_path, test), {("group", 2): SETTLED, ("batch", 2): SETTLED})
    assert judged.judgement.verdict is Verdict.NOT_RUN
    assert "records have no switch_weight.mean.batch" in judged.reason


def test_diverged_trials_never_enter_a_t_interval(tmp_path: Path) -> None:
    batch: list[float | None] = [None, *SETTLED, 0.5, 0.5]
    judged = verdict(claim(tmp_path, GREATER), {("group", 2): [0.7] * 8, ("batch", 2): batch})
    assert "diverged" in judged.judgement.note
    assert judged.judgement.interval is not None
    assert math.isfinite(judged.judgement.interval.mean)  # a median
    assert len(judged.judgement.diverged) == 1


def test_records_of_different_images_are_not_compared(tmp_path: Path) -> None:
    found = claim(tmp_path, GREATER)
    made = records(found.experiments[None], {("group", 2): [0.7, 0.71, 0.72], ("batch", 2): [0.5, 0.51, 0.5]})
    mixed = [*made[:-1], made[-1].model_copy(update={"data": "e" * 64})]
    judged = judge(found, {"made_up": Stored("made_up", mixed)})
    assert judged.judgement.verdict is Verdict.NOT_RUN
    assert "different images" in judged.reason


def test_the_spread_over_a_setting_is_one_number_a_seed(tmp_path: Path) -> None:
    test = (
        "{kind: less, a: {norm: group, spread: batch_size}, b: {norm: batch, spread: batch_size}, margin: 1}"
    )
    flat = {("group", size): [0.60, 0.61, 0.59] for size in (2, 4, 8, 16)}
    steep = {
        ("batch", size): [0.4 + 0.01 * size + 0.001 * seed for seed in range(3)] for size in (2, 4, 8, 16)
    }
    judged = verdict(claim(tmp_path, test), {**flat, **steep})
    (a, b) = judged.rows.values()
    assert a.values == {0: 0.0, 1: 0.0, 2: 0.0}
    assert list(b.values.values()) == pytest.approx([14.0, 14.0, 14.0])
    assert judged.trials([(a.label, 9)])["made_up"][0].seed == 9
    assert len(judged.trials([(a.label, 9)])["made_up"]) == 4


def test_the_best_value_of_a_setting_is_a_number(tmp_path: Path) -> None:
    test = "{kind: ratio, a: {norm: group, best: batch_size}, b: {norm: batch, best: batch_size}, factor: 2}"
    group = {("group", size): [0.5 + 0.01 * size] * 3 for size in (2, 4, 8, 16)}
    batch = {("batch", size): [0.5 - 0.01 * size] * 3 for size in (2, 4, 8, 16)}
    judged = verdict(claim(tmp_path, test), {**group, **batch})
    (a, b) = judged.rows.values()
    assert (set(a.values.values()), set(b.values.values())) == ({16.0}, {2.0})


def test_a_constant_is_taken_off(tmp_path: Path) -> None:
    test = "{kind: greater, a: {norm: group, batch_size: 2}, b: {constant: 60}, margin: 1}"
    judged = verdict(claim(tmp_path, test), {("group", 2): [0.70, 0.72, 0.71]})
    (row,) = judged.rows.values()
    assert list(row.values.values()) == pytest.approx([10, 12, 11])
    assert "less 60" in row.label


def test_a_loss_that_is_never_reached_is_infinitely_many_epochs(tmp_path: Path) -> None:
    test = GREATER.replace("margin: 1", "margin: 1, metric: epochs_to_loss(0.1)")
    judged = verdict(claim(tmp_path, test), {("group", 2): SETTLED, ("batch", 2): SETTLED})
    assert {value for row in judged.rows.values() for value in row.values.values()} == {math.inf}
    assert judged.judgement.verdict is not Verdict.SUPPORTED


def test_crossover_and_axis(tmp_path: Path) -> None:
    found = claim(tmp_path, "{kind: crossover, a: {norm: group}, b: {norm: batch}, along: batch_size}")
    group = {("group", size): [0.60, 0.61, 0.59, 0.60, 0.62] for size in (2, 4, 8, 16)}
    batch = {
        ("batch", size): [level + noise for noise in (0.001, 0.012, -0.011, 0.003, 0.018)]
        for size, level in zip((2, 4, 8, 16), (0.40, 0.55, 0.65, 0.70), strict=True)
    }
    judged = verdict(found, {**group, **batch})
    assert judged.judgement.verdict is Verdict.SUPPORTED
    assert judged.judgement.bracket == (4, 8)


def test_the_number_of_claims_is_corrected_for(tmp_path: Path) -> None:
    found = claim(tmp_path, GREATER)
    accuracies: dict[tuple[str, int], list[Any]] = {
        ("group", 2): [0.560, 0.575, 0.545, 0.570, 0.580], ("batch", 2): SETTLED
    }  # fmt: skip
    stored = {"made_up": Stored("made_up", records(found.experiments[None], accuracies))}
    alone = judge(found, stored)
    many = [
        Claim(found.settings.model_copy(update={"id": str(number)}), "T", found.experiments)
        for number in range(400)
    ]
    assert alone.judgement.verdict is Verdict.SUPPORTED
    corrected = judge_all(many, stored)[0]
    assert corrected.judgement.verdict is Verdict.INCONCLUSIVE
    assert "after correction for 400 claims" in corrected.judgement.note
    assert corrected.judgement.is_open
    assert corrected.lacking


def test_seeds_of_an_experiment_come_first_in_their_order(tmp_path: Path) -> None:
    experiment = EXPERIMENT.replace("[0, 1, 2]", "[5, 7]")
    found = claim(tmp_path, GREATER, experiment)
    judged = judge(found, {})
    assert judged.rule.seeds is not None
    assert judged.rule.seeds[:4] == (5, 7, 0, 1)
    trial = found.experiments[None].trials[0]
    judged = judge(found, {"made_up": Stored("made_up", [record(trial, 0.5)])})
    assert judged.judgement.n == 0
