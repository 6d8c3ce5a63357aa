"""Running until claims are settled: declared looks, the cheapest look first, budgets, kills and failures."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from claim_records import EXPERIMENT, folder, record

from normbench.cli.app import main
from normbench.config import experiment as config
from normbench.config.trial import Trial
from normbench.records import Store
from normbench.report.claims.adaptive import Budget
from normbench.report.claims.document import Claim, load
from normbench.report.claims.judgement import Verdict
from normbench.sweep import adaptive, plan
from normbench.sweep.adaptive import Look, LooksError, Settler, subset
from normbench.sweep.run import PLAN, Listener, Survey, survey

LEVEL = {"batch": 0.50, "group": 0.70, "layer": 0.50}
NOISE = (0.000, 0.012, -0.011, 0.004, 0.017, -0.013, 0.008, -0.002)


def accuracy(trial: Trial) -> float | None:
    """Of a made-up trial: methods differ, and seeds scatter by a point, each method's otherwise."""
    shift = {"batch": 1, "group": 3, "layer": 5}[trial.norm.name]
    return LEVEL[trial.norm.name] + NOISE[(trial.seed * shift) % len(NOISE)]


class Runs:
    """Stands in for the sweep: stores made-up records at once, and keeps what was asked for."""

    def __init__(self, of: Callable[[Trial], float | None] = accuracy) -> None:
        self.asked: list[list[str]] = []
        self.fails: set[str] = set()
        self.of = of

    def __call__(self, experiment: config.Experiment, results: Path, _: Path, **__: Any) -> Survey:
        assert (results / adaptive.DECLARED).exists(), "the looks are declared before the first trial"
        store = Store(results / experiment.name)
        store.directory.mkdir(parents=True, exist_ok=True)
        path = store.directory / PLAN
        earlier = config.load(path, stored=True) if path.exists() else experiment
        path.write_text(config.dump(plan.unite(earlier, experiment)))
        self.asked.append([trial.id for trial in experiment.trials])
        for trial in experiment.trials:
            if trial.norm.name not in self.fails:
                store.save(record(trial, self.of(trial)))
        return survey(experiment, results)


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch) -> Runs:
    runs = Runs()
    monkeypatch.setattr(adaptive, "run", runs)
    monkeypatch.setattr(adaptive, "estimate", lambda trials, *_: _Expected({t.id: 5.0 for t in trials}))
    return runs


class _Expected:
    def __init__(self, seconds: dict[str, float]) -> None:
        self.seconds = seconds


def claims(tmp_path: Path, *tests: str) -> tuple[Claim, ...]:
    entries = "".join(
        f'  - {{id: "{number}", says: words, source: [T], experiment: made_up.yaml, test: {test}}}\n'
        for number, test in enumerate(tests)
    )
    return load(folder(tmp_path, f"document: T\ntitle: a test\nclaims:\n{entries}"))


def settled(claims: Sequence[Claim], results: Path, **options: Any) -> Look:
    values: dict[str, Any] = {"rule": adaptive.rule(), "budget": Budget()} | options
    settler = Settler(claims, results, Path("data"), **values)
    return list(settler.steps(Listener(), lambda: False))[-1]


BETTER = "{kind: greater, a: {norm: group, batch_size: 2}, b: {norm: batch, batch_size: 2}, margin: 1}"
EQUAL = "{kind: equivalent, a: {norm: layer, batch_size: 2}, b: {norm: batch, batch_size: 2}, margin: 1}"


def test_seeds_are_run_until_the_claim_is_settled(tmp_path: Path, runs: Runs) -> None:
    look = settled(claims(tmp_path, BETTER), tmp_path)
    assert look.judged[0].judgement.verdict is Verdict.SUPPORTED
    assert [len(asked) for asked in runs.asked] == [6]  # three seeds of two cells, and no more
    assert look.step.claim is None
    assert look.step.reason == "every claim is decided"


def test_what_is_decided_runs_nothing(tmp_path: Path, runs: Runs) -> None:
    settled(claims(tmp_path, BETTER), tmp_path)
    settled(claims(tmp_path, BETTER), tmp_path)
    assert len(runs.asked) == 1


def test_an_open_claim_goes_to_its_next_look(tmp_path: Path, runs: Runs) -> None:
    look = settled(claims(tmp_path, EQUAL), tmp_path)
    sizes = [len(asked) for asked in runs.asked]
    assert sizes[0] == 6
    assert sizes[1:] == [4, 6, 8, 16][: len(sizes) - 1]
    assert len(sizes) > 1
    assert not look.judged[0].judgement.is_open or look.step.frozen


def test_claims_that_share_cells_share_their_trials(tmp_path: Path, runs: Runs) -> None:
    settled(claims(tmp_path, BETTER, BETTER.replace("b: {norm: batch", "b: {norm: layer")), tmp_path)
    every = [trial for asked in runs.asked for trial in asked]
    assert len(every) == len(set(every))
    assert sorted(map(len, runs.asked)) == [3, 6]  # the three seeds of group normalization ran once


def test_the_plan_is_a_union_of_all_that_ran(tmp_path: Path, runs: Runs) -> None:
    (claim,) = claims(tmp_path, BETTER)
    experiment = claim.experiments[None]
    trials = [trial.model_copy(update={"seed": seed}) for trial in experiment.trials[:2] for seed in (4, 9)]
    part = subset(experiment, trials)
    assert {trial.id for trial in part.trials} == {trial.id for trial in trials}
    assert part.name == experiment.name


def test_a_budget_of_trials_holds(tmp_path: Path, runs: Runs) -> None:
    look = settled(claims(tmp_path, BETTER), tmp_path, budget=Budget(trials=5))
    assert runs.asked == []
    assert look.step.frozen == {"0": "its next look costs more than the budget has left"}


def test_a_budget_of_time_holds(tmp_path: Path, runs: Runs) -> None:
    experiment = claims(tmp_path, BETTER)[0].experiments[None]
    workers = adaptive.place(experiment.execute, experiment.trials).independent_workers
    look = settled(claims(tmp_path, BETTER), tmp_path, budget=Budget(seconds=29.0 / workers))
    assert (runs.asked, look.step.claim) == ([], None)
    look = settled(claims(tmp_path, BETTER), tmp_path, budget=Budget(seconds=31.0 / workers))
    assert len(runs.asked) == 1


def test_looks_stay_as_they_were_declared(tmp_path: Path, runs: Runs) -> None:
    said: list[str] = []
    settled(claims(tmp_path, EQUAL), tmp_path, rule=adaptive.rule(8))
    before = (tmp_path / adaptive.DECLARED).read_bytes()
    look = settled(claims(tmp_path, EQUAL), tmp_path, rule=adaptive.rule(20), say=said.append)
    assert look.judged[0].rule.looks == (3, 5, 8)
    assert said == ["claim 0: its looks stay as they were declared, at 3, 5, 8 seeds"]
    assert (tmp_path / adaptive.DECLARED).read_bytes() == before
    declared = json.loads(before)["claims"]["T/0"]
    assert declared["rule"]["seeds"] == list(range(8))
    assert len(declared["sha256"]) == 64


def test_another_test_is_declared_anew_and_that_is_said(tmp_path: Path, runs: Runs) -> None:
    said: list[str] = []
    settled(claims(tmp_path, BETTER), tmp_path)
    settled(claims(tmp_path, BETTER.replace("margin: 1", "margin: 19.9")), tmp_path, say=said.append)
    assert said == ["claim 0: its test is another one than was declared; declared anew"]


def test_stopped_and_started_again_it_runs_the_same_trials(tmp_path: Path, runs: Runs) -> None:
    once, twice = tmp_path / "once", tmp_path / "twice"
    for path in (once, twice):
        path.mkdir()
    settled(claims(once, EQUAL, BETTER), once)
    whole = sorted(trial for asked in runs.asked for trial in asked)
    runs.asked.clear()
    settler = Settler(claims(twice, EQUAL, BETTER), twice, Path(), rule=adaptive.rule(), budget=Budget())
    stopped = iter([False, True])
    list(settler.steps(Listener(), lambda: next(stopped, True)))
    assert len(runs.asked) == 1
    settled(claims(twice, EQUAL, BETTER), twice)
    assert sorted(trial for asked in runs.asked for trial in asked) == whole


def test_trials_that_fail_freeze_their_claim_and_no_other(tmp_path: Path, runs: Runs) -> None:
    runs.fails.add("layer")
    look = settled(claims(tmp_path, EQUAL, BETTER), tmp_path)
    assert look.judged[1].judgement.verdict is Verdict.SUPPORTED
    assert "gave no record" in look.step.frozen["0"]
    every = [trial for asked in runs.asked for trial in asked]
    assert len(every) == len(set(every))  # none was tried twice


def test_a_record_without_the_number_freezes_its_claim(tmp_path: Path, runs: Runs) -> None:
    runs.of = lambda trial: None if (trial.norm.name, trial.seed) == ("layer", 1) else accuracy(trial)
    look = settled(claims(tmp_path, EQUAL[:-1] + ", metric: seconds}"), tmp_path)
    assert look.step.claim is None
    assert "no seconds" in look.step.frozen["0"]


def test_a_budget_counts_trials_and_not_numbers(tmp_path: Path, runs: Runs) -> None:
    spread = (
        "{kind: less, a: {norm: batch, spread: batch_size}, b: {norm: group, spread: batch_size}, margin: 1}"
    )
    look = settled(claims(tmp_path, spread), tmp_path, budget=Budget(trials=23))  # 3 seeds of 8 cells take 24
    assert (runs.asked, look.step.claim) == ([], None)
    settled(claims(tmp_path, spread), tmp_path, budget=Budget(trials=24))
    assert [len(asked) for asked in runs.asked] == [24]


def test_fewer_looks_cannot_be_chosen_once_there_are_seeds(tmp_path: Path, runs: Runs) -> None:
    said: list[str] = []
    (claim,) = claims(tmp_path, EQUAL)
    (tmp_path / adaptive.DECLARED).write_text('{"claims": {}}')
    cells = [each for each in claim.experiments[None].trials if each.batch_size == 2 and each.seed < 3]
    runs(subset(claim.experiments[None], cells), tmp_path, Path())
    look = settled([claim], tmp_path, rule=adaptive.rule(3), budget=Budget(trials=0), say=said.append)
    assert look.judged[0].rule.looks == (3, 5, 8, 12, 20)
    assert "can only be declared before there is a result" in said[-1]
    assert (tmp_path / adaptive.DECLARED).read_text() != '{"claims": {}}'  # declared, though nothing ran


def test_claims_are_corrected_for_all_and_only_the_wanted_ones_run(tmp_path: Path, runs: Runs) -> None:
    both = claims(tmp_path, BETTER, EQUAL)
    look = settled(both, tmp_path, wanted={"0"})
    assert [each.claim.id for each in look.judged] == ["0"]
    assert {"layer"} & {trial.split("-")[0] for asked in runs.asked for trial in asked} == set()
    alone = settled(both[:1], tmp_path)
    assert look.judged[0].judgement.p >= alone.judged[0].judgement.p


def test_labels_and_figures_do_not_stand_in_the_way(tmp_path: Path) -> None:
    path = tmp_path / "labelled.yaml"
    path.write_text(EXPERIMENT + "labels: {group: GN, batch: BN}\nplots: [batch_size]\n")
    experiment = config.load(path)
    part = subset(experiment, [trial for trial in experiment.trials if trial.norm.name == "batch"][:2])
    assert part.document["labels"] == experiment.document["labels"]
    assert {trial.id for trial in plan.unite(experiment, part).trials} == {t.id for t in experiment.trials}


TUNE = "tune: {optimizer.lr: [0.1, 0.2], seeds: [4, 1000], compare: true}\n"


def test_the_looks_leave_out_seeds_that_tune(tmp_path: Path, runs: Runs) -> None:
    as_written = BETTER.replace("batch_size: 2", "batch_size: 2, norm.tuned: false")
    experiment = EXPERIMENT.replace("shapes", "{name: shapes, validation_size: 500}") + TUNE
    document = f'  - {{id: "0", says: words, source: [T], experiment: made_up.yaml, test: {as_written}}}\n'
    file = folder(tmp_path, f"document: T\ntitle: a test\nclaims:\n{document}", experiment)
    look = settled(load(file), tmp_path, rule=adaptive.rule(5))
    assert look.judged[0].rule.seeds == (0, 1, 2, 3, 5)
    stored = survey(config.load(tmp_path / "made_up" / PLAN, stored=True), tmp_path)
    assert stored.is_complete  # the plan of a first run holds what was settled alone


def test_settled_seeds_are_no_seeds_of_tuned_cells(tmp_path: Path) -> None:
    path = tmp_path / "tuned.yaml"
    path.write_text(EXPERIMENT.replace("shapes", "{name: shapes, validation_size: 500}") + TUNE)
    experiment = config.load(path)
    further = [experiment.trials[0].model_copy(update={"seed": seed}) for seed in (3, 5)]
    both = plan.unite(experiment, subset(experiment, further))
    assert both.tune is not None
    assert experiment.tune is not None
    assert sorted(map(str, both.tune.cells)) == sorted(map(str, experiment.tune.cells))
    assert set(both.tune.as_written) == {*experiment.trials, *further}
    with pytest.raises(config.ConfigError, match="seed 4 is also a seed of the sweep"):
        subset(experiment, [further[0].model_copy(update={"seed": 4})])

    later = config.load(path, ["sweep.norm=[batch]", "sweep.batch_size=[2]", "sweep.seed=[3]"])
    wider = plan.unite(both, later)
    assert wider.tune is not None
    assert {3} == {t.seed for cell in wider.tune.cells for t in cell.trials} - {
        t.seed for t in experiment.trials
    }


def test_nothing_is_written_by_a_look(tmp_path: Path, runs: Runs) -> None:
    settler = Settler(
        claims(tmp_path, BETTER), tmp_path / "results", Path(), rule=adaptive.rule(), budget=Budget()
    )
    look = settler.look()
    assert sum(len(trials) for _, trials in look.trials) == 6
    assert not (tmp_path / "results").exists()


def test_a_damaged_declaration_is_refused(tmp_path: Path) -> None:
    (tmp_path / adaptive.DECLARED).write_text("{")
    with pytest.raises(LooksError, match="move it away"):
        settled(claims(tmp_path, BETTER), tmp_path)


TINY = """\
name: tiny
trial:
  dataset: {name: shapes, train_size: 60, test_size: 30}
  model: {name: resnet8, width: 0.25}
  epochs: 1
  batch_size: 16
sweep: {norm: [batch, {name: group, groups: 2}], seed: [0]}
execute: {executor: serial}
"""


def accuracies(results: Path) -> dict[str, float]:
    files = sorted(results.glob("tiny/*-*.json"))
    return {file.name: json.loads(file.read_text())["final"]["test_accuracy"] for file in files}


@pytest.mark.slow
def test_killed_in_the_middle_nothing_is_lost_and_the_looks_stay(tmp_path: Path) -> None:
    (tmp_path / "tiny.yaml").write_text(TINY.replace("epochs: 1", "epochs: 3"))
    command = [sys.executable, "-c", "from normbench.cli.app import main; main()"]
    question = ["ask", "batch > group", "tiny.yaml", "--max-seeds", "3", "--quiet"]
    subprocess.run([*command, *question, "--results", "whole"], cwd=tmp_path, check=True)

    process = subprocess.Popen([*command, *question], cwd=tmp_path, start_new_session=True)
    end = time.monotonic() + 120
    while not accuracies(tmp_path / "results") and time.monotonic() < end:
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    there = accuracies(tmp_path / "results")
    looks = (tmp_path / "results" / adaptive.DECLARED).read_bytes()
    assert 0 < len(there) < 6

    subprocess.run([*command, *question, "--max-seeds", "8", "--budget", "1trial"], cwd=tmp_path, check=True)
    assert accuracies(tmp_path / "results") == there  # 1 trial pays for no look
    subprocess.run([*command, *question], cwd=tmp_path, check=True)
    assert accuracies(tmp_path / "results") == accuracies(tmp_path / "whole")
    assert (tmp_path / "results" / adaptive.DECLARED).read_bytes() == looks


def test_a_question_is_answered_by_running_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("tiny.yaml").write_text(TINY)
    arguments = ["ask", "batch > group", "tiny.yaml", "--max-seeds", "3", "--quiet"]
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    answer, problems = capsys.readouterr()
    assert not ended.value.code, problems
    assert answer.startswith("batch > group: ")
    assert "n = 3 seeds" in answer
    page = Path(answer.partition("figure: ")[2].strip())
    assert "<svg" in page.read_text()
    assert len(list(Path("results/tiny").glob("*-*.json"))) == 6
    files = sorted(Path("results").rglob("*"))
    with pytest.raises(SystemExit):
        main([*arguments, "--plan"])
    assert "nothing to run" in capsys.readouterr().out
    assert sorted(Path("results").rglob("*")) == files
