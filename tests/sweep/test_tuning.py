"""Tuning: the choice by hand-made records, and runs that make it, killed in between, narrowed, widened."""

import json
import math
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from conftest import Cli, place_of
from test_run import Lab, Seen, failing
from test_train import numbers

import normbench
from normbench import load_results
from normbench.cli.claims import pairs_as_text
from normbench.config.catalog.executors import EXECUTORS
from normbench.config.experiment import Experiment, from_document
from normbench.config.trial import Trial
from normbench.records import Epoch, Final, Record
from normbench.report.claims.compare import compare
from normbench.report.figures import caption
from normbench.report.metrics import METRICS
from normbench.sweep import run as sweep
from normbench.sweep import tuning
from normbench.sweep.results import find

SECTION: dict[str, Any] = {"optimizer.lr": [0.1, 0.2, 0.4], "seeds": [1000, 1001], "epochs": 1}
DATA = {"name": "folder", "folder": "tiny", "image_size": 8, "validation_size": 20}
TRIAL = {
    "dataset": DATA,
    "model": {"name": "resnet8", "width": 0.5},
    "batch_size": 10,
    "epochs": 2,
}
SWEEP = {"norm": ["batch", "group"], "seed": [0, 1]}


@pytest.fixture
def lab(tmp_path: Path, tiny_data: Path) -> Lab:
    return Lab(tmp_path, tiny_data)


def tiny(lab: Lab, **changes: Any) -> Experiment:
    return lab.experiment(**{"trial": TRIAL, "sweep": SWEEP, "tune": SECTION | {"compare": True}, **changes})


def record(trial: Trial, accuracy: float | None) -> Record:
    """A record with this validation accuracy and the opposite test accuracy; None: the trial diverged."""
    final = None
    if accuracy is not None:
        final = Final(
            test_accuracy=1 - accuracy,
            test_accuracy_median5=1 - accuracy,
            metrics={"validation_accuracy": accuracy, "validation_loss": 1.0},
        )
    epoch = Epoch(
        epoch=1, train_loss=1.0, train_accuracy=0.5, test_loss=1.0, test_accuracy=0.5, lr=0.1, seconds=1.0
    )
    return Record(
        schema=6, trial=trial, status="done" if final else "diverged", epochs=(epoch,), final=final,
        images_per_second=None, seconds=1.0, peak_memory_bytes=1, diagnostics={}, data="none", provenance={},
    )  # fmt: skip


def chosen(values: list[Any], accuracies: list[tuple[float | None, ...]], key: str = "optimizer.lr") -> Any:
    """The choice among ``values`` with these validation accuracies by tuning seed."""
    document = {
        "name": "t",
        "trial": {"dataset": {"name": "shapes", "validation_size": 20}},
        "tune": {key: values, "seeds": [1000, 1001]},
    }
    experiment = from_document(document)
    assert experiment.tune is not None
    (cell,) = experiment.tune.cells
    records = {
        trial.id: record(trial, accuracy)
        for candidate, both in zip(cell.candidates, accuracies, strict=True)
        for trial, accuracy in zip(candidate.tuning, both, strict=True)
    }
    (choice,) = tuning.choose(experiment, records)
    for trial_id in records:  # a cell is decided by all of its records or not at all
        assert not tuning.choose(experiment, {k: v for k, v in records.items() if k != trial_id})
    return choice


def test_the_best_mean_on_validation_images_is_chosen_whatever_the_test_images_say() -> None:
    choice = chosen([0.1, 0.2, 0.4], [(0.5, 0.7), (0.6, 0.7), (0.9, 0.3)])
    assert choice.candidate.values == {"optimizer.lr": 0.2}
    assert choice.means == pytest.approx((60, 65, 60))
    assert (choice.tied, choice.edges) == ((), ())
    assert str(choice) == "tuned norm batch, batch_size 128: optimizer.lr 0.2, validation accuracy 65 %"


def test_of_equal_means_the_first_in_the_list_is_taken_and_the_others_are_named() -> None:
    choice = chosen([0.1, 0.4, 0.2], [(0.3, 0.3), (0.6, 0.8), (0.8, 0.6)])
    assert choice.candidate.values == {"optimizer.lr": 0.4}
    assert [candidate.values for candidate in choice.tied] == [{"optimizer.lr": 0.2}]
    assert "; optimizer.lr 0.2 is as good, and the first in the list is taken" in str(choice)


def test_of_tied_candidates_some_inside_the_grid_there_is_no_edge() -> None:
    same = (0.5, 0.5)
    choice = chosen([0.1, 0.2, 0.3, 0.4], [same, same, (0.4, 0.4), same])
    assert choice.candidate.values == {"optimizer.lr": 0.1}
    assert choice.edges == ()
    assert "; optimizer.lr 0.2 and optimizer.lr 0.4 are as good, and the first" in str(choice)
    assert chosen([0.1, 0.2, 0.4], [same, (0.4, 0.4), same]).edges == ("optimizer.lr",)


@pytest.mark.parametrize(("best", "is_edge"), [(0, True), (1, False), (2, True)])
def test_a_best_value_at_the_edge_of_the_grid_is_told_in_whatever_order_it_is_written(
    best: int, is_edge: bool
) -> None:
    values = [0.1, 0.2, 0.4]
    order = [1, 2, 0]
    accuracies = [(0.9, 0.9) if number == best else (0.5, 0.5) for number in order]
    choice = chosen([values[number] for number in order], accuracies)
    assert choice.candidate.values == {"optimizer.lr": values[best]}
    assert choice.edges == (("optimizer.lr",) if is_edge else ())
    assert ("best at the edge of the grid of optimizer.lr: widen it" in str(choice)) == is_edge


@pytest.mark.parametrize(
    ("key", "values"), [("dropout", [0.0, 0.1]), ("optimizer.nesterov", [True, False]), ("dropout", [0.3])]
)
def test_what_has_nothing_beyond_it_is_no_edge(key: str, values: list[Any]) -> None:
    assert chosen(values, [(0.9, 0.9), (0.5, 0.5)][: len(values)], key).edges == ()


def test_a_candidate_with_a_trial_that_diverged_is_worst() -> None:
    choice = chosen([0.1, 0.2, 0.4], [(0.1, 0.1), (0.2, 0.2), (0.9, None)])
    assert choice.candidate.values == {"optimizer.lr": 0.2}
    assert choice.means[2] == -math.inf
    assert choice.as_json()["candidates"][2]["validation_accuracy"] is None


def test_where_all_candidates_diverged_the_first_is_taken_and_no_edge_is_told() -> None:
    choice = chosen([0.1, 0.2], [(0.1, None), (None, None)])
    assert choice.candidate.values == {"optimizer.lr": 0.1}
    assert choice.edges == ()
    assert "with each of them a trial did not finish" in str(choice)


def ids(trials: Any) -> set[str]:
    return {trial.id for trial in trials}


def test_a_run_tunes_and_then_trains_what_was_chosen(lab: Lab) -> None:
    experiment = tiny(lab)
    tune = experiment.tune
    assert tune is not None
    assert len(sweep.survey(experiment, lab.results).later) == 4
    seen = lab.run(experiment)
    assert seen.survey is not None
    assert len(seen.survey.chosen) == 2
    best = ids(trial for each in seen.survey.chosen for trial in each.candidate.trials)
    assert seen.survey.records.keys() == tune.tuning.keys() | ids(experiment.trials) | best
    assert seen.counts == {"done": len(seen.survey.records)}
    for each in seen.survey.chosen:
        means = [
            sum(seen.survey.records[trial.id].final.metrics["validation_accuracy"] for trial in c.tuning)
            for c in each.cell.candidates
        ]
        assert each.candidate is each.cell.candidates[means.index(max(means))]
    stored = json.loads((lab.store.directory / "tuning.json").read_text())
    assert stored["cells"] == [each.as_json() for each in seen.survey.chosen]
    again = lab.run(experiment)
    assert (again.begun, again.ended) == ([], {})


def test_without_compare_only_the_chosen_trials_are_results(lab: Lab) -> None:
    experiment = tiny(lab, tune=SECTION)
    survey = lab.run(experiment).survey
    assert survey is not None
    best = ids(trial for each in survey.chosen for trial in each.candidate.trials)
    found = find(lab.results, "tiny", pytest.fail)
    assert {record.trial.id for record in found.records} == best
    assert [cell.series.legend for cell in found.table] == ["BN (tuned)", "GN (8 groups, tuned)"]


def test_results_are_told_by_series_and_tuning_trials_are_none(lab: Lab) -> None:
    experiment = tiny(lab)
    lab.run(experiment)
    assert experiment.tune is not None
    table = load_results(lab.results)
    legends = ["BN", "BN (tuned)", "GN (8 groups)", "GN (8 groups, tuned)"]
    assert [series.legend for series in table.series] == legends
    assert all(list(cell.trials) == [0, 1] for cell in table)
    assert not experiment.tune.tuning.keys() & {record.trial.id for record in table.records}
    assert len(table.select({"norm.tuned": True})) == 2
    assert table.cell({"norm": "batch", "norm.tuned": False}).tuned is None
    (chosen_of_batch, _) = find(lab.results, "tiny", pytest.fail).tuned
    assert table.cell({"norm": "batch", "norm.tuned": True}).records == chosen_of_batch.records


def test_the_rule_s_own_value_is_one_trial_in_both_series(lab: Lab) -> None:
    experiment = tiny(lab, tune=SECTION | {"optimizer.lr": [0.1], "compare": True})
    survey = lab.run(experiment).survey
    assert survey is not None
    assert len(survey.records) == 2 * 2 + 4
    table = load_results(lab.results)
    assert len(table) == 4
    assert len(table.records) == 4
    as_written, tuned = (table.cell({"norm": "batch", "norm.tuned": tuned}) for tuned in (False, True))
    assert as_written.records == tuned.records
    assert "The same trials as without tuning: BN (tuned) at batch size" in caption.trials(table)
    pairs = compare(table, "norm.tuned", METRICS["accuracy"])
    assert [(pair.is_same, pair.difference, pair.adjusted) for pair in pairs] == [(True, None, None)] * 2
    assert pairs_as_text("points", pairs).count("true  the same trials") == 2


def test_while_there_are_tuning_trials_alone_plot_and_compare_say_so(lab: Lab, cli: Cli) -> None:
    survey = lab.run(tiny(lab)).survey
    assert survey is not None
    for trial_id in survey.records.keys() - survey.experiment.tune.tuning.keys():  # type: ignore[union-attr]
        (lab.store.directory / f"{trial_id}.json").unlink()
    for command in ("plot", "compare"):
        ended = cli(command, "tiny", "--results", str(lab.results))
        assert (ended.code, ended.err.count("only tuning trials so far")) == (0, 1)


def test_a_setting_of_one_value_is_nothing_to_compare(lab: Lab, cli: Cli) -> None:
    lab.run(tiny(lab))
    ended = cli("compare", "tiny", "--by", "epochs", "--results", str(lab.results))
    assert ended.out.strip() == "no pairs"
    assert "no two of its cells differ in epochs alone" in ended.err


def test_captions_say_what_was_chosen_and_what_is_best_at_the_edge_of_its_grid(lab: Lab) -> None:
    survey = lab.run(tiny(lab)).survey
    assert survey is not None
    text = caption.trials(load_results(lab.results))
    for each, name in zip(survey.chosen, ("BN (tuned)", "GN (8 groups, tuned)"), strict=True):
        assert f"{name} at batch size 10: learning rate {each.candidate.values['optimizer.lr']}" in text
        assert (f"{name} at batch size 10 (learning rate)" in text) == bool(each.edges)
    assert ("Best at the edge of the grid, widen it: " in text) == any(e.edges for e in survey.chosen)


def test_the_python_api_tunes_and_gives_results_alone(lab: Lab) -> None:
    experiment = tiny(lab)
    table = normbench.run(experiment, lab.results, lab.data)
    assert table == load_results(lab.results)
    assert [cell.tuned is not None for cell in table] == [False, True, False, True]
    chosen = {json.dumps(cell.tuned.values) for cell in table if cell.tuned}
    stored = json.loads((lab.store.directory / "tuning.json").read_text())["cells"]
    assert chosen == {json.dumps(cell["chosen"]) for cell in stored}


def test_without_a_plan_tuning_trials_are_no_results_either(lab: Lab) -> None:
    experiment = tiny(lab)
    lab.run(experiment)
    assert experiment.tune is not None
    results = {record.trial.id for record in find(lab.results, "tiny", pytest.fail).records}
    (lab.store.directory / "experiment.yaml").unlink()
    told: list[str] = []
    assert {record.trial.id for record in find(lab.results, "tiny", told.append).records} == results
    assert len(told) == 1
    assert not experiment.tune.tuning.keys() & results


@pytest.mark.parametrize("after", [3, 12, 14])
def test_a_run_that_is_stopped_anywhere_goes_on_to_the_same_records(
    lab: Lab, tmp_path: Path, tiny_data: Path, after: int
) -> None:
    """After 3 trials it is tuning, after 12 it has just ended that, after 14 it trains what was chosen."""
    whole = Lab(tmp_path / "whole", tiny_data)
    whole.directory.mkdir()
    expected = whole.run(tiny(whole, tune=SECTION)).survey
    assert expected is not None
    seen = Seen()
    experiment = tiny(lab, tune=SECTION)
    sweep.run(experiment, lab.results, lab.data, listener=seen, stop=lambda: len(seen.ended) >= after)
    assert len(seen.ended) < len(expected.records)
    rest = lab.run(experiment)
    assert rest.survey is not None
    assert not rest.ended.keys() & seen.ended.keys()
    assert rest.survey.records.keys() == expected.records.keys()
    for trial_id, one in expected.records.items():
        assert numbers(rest.survey.records[trial_id]) == numbers(one)


def test_a_failed_tuning_trial_holds_back_its_cell_alone(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    experiment = tiny(lab, tune=SECTION)
    assert experiment.tune is not None
    batch, group = experiment.tune.cells
    with failing(monkeypatch, batch.tuning[2].id):
        survey = lab.run(experiment).survey
    assert survey is not None
    assert [each.cell for each in survey.chosen] == [group]
    assert survey.counts() == {"done": 11 + 2, "failed": 1}
    assert ids(survey.later) == ids(batch.candidates[0].trials)
    whole = lab.run(experiment).survey
    assert whole is not None
    assert whole.counts() == {"done": 12 + 4}


def test_a_narrowed_run_is_a_part_of_the_whole_one(lab: Lab) -> None:
    lab.run(tiny(lab, sweep={"norm": ["group"], "seed": [1]}))
    assert len(json.loads((lab.store.directory / "tuning.json").read_text())["cells"]) == 1
    narrowed = {path.stem: path.read_bytes() for path in lab.store.directory.glob("*-*.json")}
    survey = lab.run(tiny(lab)).survey
    assert survey is not None
    assert len(survey.chosen) == 2
    for name, content in narrowed.items():
        assert (lab.store.directory / f"{name}.json").read_bytes() == content
    assert narrowed.keys() <= survey.records.keys()
    again = lab.run(tiny(lab, sweep={"norm": ["group"], "seed": [1]}))
    assert again.ended == {}
    assert len(json.loads((lab.store.directory / "tuning.json").read_text())["cells"]) == 2


def test_a_wider_grid_keeps_the_trials_that_it_shares(lab: Lab) -> None:
    first = lab.run(tiny(lab, tune=SECTION | {"optimizer.lr": [0.1, 0.2]})).survey
    wider = lab.run(tiny(lab, tune=SECTION))
    assert first is not None
    assert wider.survey is not None
    assert not wider.ended.keys() & first.records.keys()
    assert {len(each.means) for each in wider.survey.chosen} == {3}


@pytest.mark.parametrize(
    "sections",
    [{"tune": SECTION | {"optimizer.lr": [0.1, 0.2], "compare": True}}, {}],
    ids=["narrower", "none"],
)
def test_records_that_fall_out_of_the_plan_are_told(lab: Lab, sections: dict[str, Any]) -> None:
    before = lab.run(tiny(lab)).survey
    assert before is not None
    seen = lab.run(lab.experiment(trial=TRIAL, sweep=SWEEP | {"norm": ["batch"]}, **sections))
    assert seen.survey is not None
    kept = sweep.survey(sweep.load_plan(lab.results, "tiny"), lab.results).records.keys()
    lost = [trial_id for trial_id in before.records if trial_id not in kept]
    (line,) = [words for words in seen.said if "no longer tuned" in words]
    assert line.startswith(f"{len(lost)} records of candidates that are no longer tuned (")
    assert {each.strip() for each in line.partition("(")[2].partition(", …")[0].split(",")} <= {*lost}
    assert not [words for words in lab.run(tiny(lab)).said if "no longer tuned" in words]


def test_a_stored_choice_that_the_records_do_not_give_is_told_and_written_anew(lab: Lab) -> None:
    lab.run(tiny(lab))
    path = lab.store.directory / "tuning.json"
    good = json.loads(path.read_text())
    bad = json.loads(path.read_text())
    (lr,) = bad["cells"][0]["chosen"].values()
    bad["cells"][0]["chosen"] = {"optimizer.lr": 9.0}
    path.write_text(json.dumps(bad))
    told: list[str] = []
    find(lab.results, "tiny", told.append)
    (line,) = told
    assert line.endswith(
        f"says {{'optimizer.lr': 9.0}} of norm batch, batch_size 10, its records give "
        f"{{'optimizer.lr': {lr}}}, which holds"
    )
    assert lab.run(tiny(lab)).said == told
    assert json.loads(path.read_text()) == good
    path.write_text("{")
    find(lab.results, "tiny", pytest.fail)
    lab.run(tiny(lab))
    assert json.loads(path.read_text()) == good


def test_trials_are_chosen_again_before_what_follows_from_them_is_retried(lab: Lab) -> None:
    experiment = tiny(lab, tune=SECTION)
    lab.run(experiment)
    assert experiment.tune is not None
    batch, _ = experiment.tune.cells
    survey = sweep.survey(experiment, lab.results)
    first = next(each for each in survey.chosen if each.cell == batch)
    for trial in (batch.tuning[0], first.candidate.trials[0]):
        lab.store.record_path(trial.id).unlink()
    seen = lab.run(experiment)
    assert list(seen.ended) == [batch.tuning[0].id, first.candidate.trials[0].id]
    assert seen.counts == {"done": 16}


def test_the_commands_tell_what_is_chosen(lab: Lab, cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(lab.directory)
    tiny(lab, plots=["batch_size", "curves"])
    places = ["--results", str(lab.results), "--data", str(lab.data)]
    plan = cli("plan", "tiny.yaml", *places).out
    assert "\n2 cells not tuned yet, of which up to 4 trials will follow\n" in plan
    assert "(20 trials by a short probe)" in plan
    assert plan.count("missing, tuning") == 12
    ran = cli("run", "tiny.yaml", *places)
    assert ran.code == 0
    assert ran.out.count("\ntuned norm ") == 2
    assert cli("status", *places).out.count("tiny: tuned norm ") == 2
    status = json.loads(cli("status", "--json", *places).out)
    assert len(status[0]["tuning"]) == 2
    assert len(json.loads(cli("plan", "tiny.yaml", "--json", *places).out)["tuned"]) == 2
    rows = cli("export", "tiny", "--results", str(lab.results)).out.splitlines()
    assert rows[0].endswith(",role")
    assert sum(row.endswith(",tuning") for row in rows) == 12
    assert cli("plot", "tiny", "--format", "svg", "--results", str(lab.results)).code == 0
    assert '""tuned"": true' in (lab.store.directory / "figures/batch_size.csv").read_text()
    pairs = cli("compare", "tiny", "--by", "norm.tuned", "--results", str(lab.results)).out
    assert pairs.count("false − true") == 2


def test_a_candidate_that_diverges_is_no_failure_of_the_run(
    lab: Lab, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(lab.directory)
    tiny(lab, sweep={"norm": ["none"], "seed": [0]}, tune={"optimizer.lr": [0.1, 1e30], "seeds": [1000]})
    ran = cli("run", "tiny.yaml", "--results", str(lab.results), "--data", str(lab.data))
    assert ran.code == 0
    assert "3 trials, 2 done, 1 diverged" in ran.out
    assert "tuned norm none, batch_size 10: optimizer.lr 0.1, validation accuracy" in ran.out


CLAIM = """
document: T
title: tuned
claims:
  - id: "tuned"
    says: The tuned method is better.
    source: [T]
    experiment: tiny.yaml
    test:
      kind: greater
      a: {norm: batch, norm.tuned: true}
      b: {norm: batch, norm.tuned: false}
      margin: 1
"""


def test_claims_look_at_tuned_cells_and_as_written_side_by_side(
    lab: Lab, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(lab.directory)
    tiny(lab)
    (lab.directory / "claims.yaml").write_text(CLAIM)
    arguments = ["claims", "tuned", "--file", "claims.yaml", "--results", str(lab.results)]
    assert "not run" in cli(*arguments).out
    lab.run(tiny(lab))
    told = cli(*arguments).out
    survey = sweep.survey(tiny(lab), lab.results)
    best = next(each for each in survey.chosen if each.cell.trials[0].norm.name == "batch")
    for trial in (*best.candidate.trials, *best.cell.trials):
        assert trial.id in told
    assert not any(trial.id in told for trial in best.cell.tuning)
    settle = ["settle", "tuned", "--plan", "--file", "claims.yaml", "--results", str(lab.results)]
    text = cli(*settle).out
    assert "claim tuned is left open: " in text
    run_it = "seed 2: 'normbench run' on the file of tiny, with 2 among the seeds of its sweep, tunes and"
    assert run_it in text
    assert "nothing to run: no open claim gets more trials" in text
    ask = cli("ask", "batch > group", "tiny.yaml", "--results", str(lab.results))
    assert "which differ in norm.tuned; add norm.tuned=true or norm.tuned=false" in ask.err


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["tuning", "chosen"])
def test_a_killed_run_goes_on(lab: Lab, tmp_path: Path, tiny_data: Path, stage: str) -> None:
    whole = Lab(tmp_path / "whole", tiny_data)
    whole.directory.mkdir()
    expected = whole.run(tiny(whole, tune=SECTION)).survey
    assert expected is not None
    experiment = tiny(lab, tune=SECTION)
    command = [sys.executable, "-m", "normbench", "run", "tiny.yaml"]
    command += ["--results", str(lab.results), "--data", str(lab.data)]
    process = subprocess.Popen(
        command, cwd=lab.directory, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    assert process.stderr is not None
    enough = {"tuning": 3, "chosen": 13}[stage]
    for count, _ in enumerate(line for line in process.stderr if "test accuracy" in line):
        if count + 1 == enough:
            os.killpg(process.pid, signal.SIGKILL)
            break
    process.stderr.close()
    process.wait()
    survey = lab.run(experiment).survey
    assert survey is not None
    assert survey.records.keys() == expected.records.keys()
    for trial_id, one in expected.records.items():
        assert numbers(survey.records[trial_id]) == numbers(one)


@pytest.mark.slow
@pytest.mark.parametrize("name", EXECUTORS)
def test_every_executor_tunes_alike(lab: Lab, name: str, request: pytest.FixtureRequest) -> None:
    place = place_of(name, request)
    survey = lab.run(tiny(lab, execute={"executor": place, "workers": 2})).survey
    assert survey is not None
    assert len(survey.chosen) == 2
    assert set(survey.counts()) == {"done"}
