"""What a sweep shows while it runs. On a real terminal it is seen in test_interrupt.py."""

import io
import time
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from normbench.cli.progress import LiveProgress, PlainProgress, ProgressView, listener, result_of
from normbench.config import experiment
from normbench.records import Failure, Record, Store
from normbench.sweep import run


@pytest.fixture
def survey(finished: Path) -> run.Survey:
    return run.survey(experiment.load(finished / "tiny.yaml"), finished / "results")


@pytest.fixture
def records(finished: Path) -> list[Record]:
    return list(Store(finished / "results/tiny").load()[0].values())


def event(epoch: int = 1, **changes: Any) -> dict[str, Any]:
    news = {"epoch": epoch, "epochs": 2, "images": 10, "images_per_second": 1234.5}
    return news | {"train_loss": 1.25, "test_metrics": {"accuracy": 0.5}} | changes


def paper() -> Console:
    return Console(file=io.StringIO(), width=110, highlight=False)


def written(progress: ProgressView) -> str:
    file = progress.console.file
    assert isinstance(file, io.StringIO)
    return file.getvalue()


def shown(live: LiveProgress) -> str:
    """The table as it stands."""
    console = paper()
    console.print(live.table())
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_an_end_in_words(records: list[Record]) -> None:
    assert result_of(Failure("Traceback\nValueError: \x1b[2Jbad")) == "failed: ValueError: \\x1b[2Jbad"
    assert result_of(records[0]).startswith("test accuracy ")


def test_lines_tell_of_the_beginning_and_every_end(survey: run.Survey, records: list[Record]) -> None:
    lines, trials = PlainProgress(paper()), survey.experiment.trials
    lines.begin(survey, trials[1:])
    lines.event(trials[2], event())
    lines.outcome(trials[1], records[1])
    lines.outcome(trials[2], Failure("ValueError: [red]bad\x1b[0m"))
    first, second, third = written(lines).splitlines()
    assert first == "tiny: 3 trials to run, 1 of 4 done"
    assert second.startswith(f"{trials[1].id}: test accuracy ")
    assert "(2 of 4 done, about " in second
    assert third.startswith(f"{trials[2].id}: failed: ValueError: [red]bad\\x1b[0m (2 of 4 done, 1 failed")


def test_a_log_is_not_silent_while_a_trial_runs(survey: run.Survey, monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    lines, trial = PlainProgress(paper()), survey.experiment.trials[0]
    lines.begin(survey, survey.experiment.trials)
    for seconds in (10, 10, 10, 10, 30):
        now += seconds
        lines.event(trial, event(2))
    _, first, second = written(lines).splitlines()
    assert first.startswith(f"{trial.id}: epoch 2/2, train loss 1.250 (0 of 4 done, about ")
    assert second.startswith(f"{trial.id}: epoch 2/2, train loss 1.250 (")


def test_warnings_are_lines_and_no_news(survey: run.Survey) -> None:
    lines, trial = PlainProgress(paper()), survey.experiment.trials[0]
    lines.event(trial, {"warning": f"checkpoint \x1b[2J[red]{'long ' * 60}is damaged"})
    assert written(lines) == f"{trial.id}: checkpoint \\x1b[2J[red]{'long ' * 60}is damaged\n"
    assert lines.running == {}


def test_time_left_follows_the_work_behind(survey: run.Survey, monkeypatch: pytest.MonkeyPatch) -> None:
    """The trials at batch 8 cost more than those at 16: (1 + 6/8) to (1 + 6/16)."""
    now = 100.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    progress, trials = ProgressView(paper()), survey.experiment.trials
    by_size = sorted(trials, key=lambda trial: trial.batch_size)
    progress.begin(survey, trials)
    assert progress.seconds_left() is None
    progress.event(by_size[0], event(epoch=2))
    now += 7.0
    work = 2 * (1.75 + 1.375)
    assert progress.seconds_left() == pytest.approx(7.0 * (work - 1.75 / 2) / (1.75 / 2))
    for trial in by_size:
        progress.outcome(trial, Failure("x"))
    assert progress.seconds_left() is None
    assert progress.counts() == "0 of 4 done, 4 failed"


def test_the_live_table_has_a_row_for_each_running_trial(survey: run.Survey, records: list[Record]) -> None:
    live, trials = LiveProgress(paper()), survey.experiment.trials
    assert shown(live) == "\n"
    live.begin(survey, trials)
    live.event(trials[0], event())
    live.event(trials[1], event(2, train_loss=None, test_metrics={}, images_per_second=None))
    live.event(trials[0], event(2))
    heading, columns, *rows = [line.rstrip() for line in shown(live).splitlines()]
    assert heading.startswith("0 of 4 done, about ")
    assert columns.split() == ["trial", "epoch", "train", "loss", "test", "accuracy", "images/s"]
    cells = {line.split()[0]: line.split()[1:] for line in rows}
    assert cells == {
        trials[0].id: ["2/2", "1.250", "50.0", "%", "1234"],
        trials[1].id: ["2/2", "–", "–", "–"],
    }
    live.outcome(trials[0], records[0])
    assert trials[0].id not in shown(live)
    assert written(live) == f"{trials[0].id}: {result_of(records[0])}\n"


def test_where_it_shows_depends_on_the_terminal(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")  # asks for colour, and does not make a terminal of a pipe
    with listener(quiet=True) as watching:
        assert type(watching) is run.Listener
    with listener(quiet=False) as watching:
        assert isinstance(watching, PlainProgress)
        watching.say("x")
    assert capsys.readouterr() == ("", "x\n")


def test_a_dumb_terminal_gets_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    monkeypatch.setenv("TERM", "dumb")
    with listener(quiet=False) as watching:
        assert isinstance(watching, PlainProgress)
