"""What a sweep shows while it runs: a live table on a terminal, plain lines elsewhere."""

import contextlib
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from normbench.config.labels import trial_labels
from normbench.config.trial import Trial
from normbench.records import Failure
from normbench.sweep.estimate import relative_cost
from normbench.sweep.run import Listener, Survey
from normbench.text import duration, percent, plural, printable

if TYPE_CHECKING:
    from normbench.config.catalog.executors import Outcome

SILENCE = 30.0  # seconds without a line, after which one says how far a trial is


@contextlib.contextmanager
def listener(quiet: bool) -> Iterator[Listener]:
    """Nothing, plain lines, or a live table on a terminal; on stderr."""
    terminal = sys.stderr.isatty()
    console = Console(stderr=True, force_terminal=terminal, highlight=False)
    if quiet:
        yield Listener()
    elif terminal and not console.is_dumb_terminal:
        with LiveTable(console) as live:
            yield live
    else:
        yield Lines(console)


def going_on(survey: Survey) -> str:
    """``; 2 with a saved state to go on from``, or nothing."""
    return f"; {len(survey.saved)} with a saved state to go on from" if survey.saved else ""


def result_of(outcome: "Outcome") -> str:
    """How a trial ended, in a few words."""
    if isinstance(outcome, Failure):
        words = printable(outcome.reason, 200)
        return words if outcome.state == "timeout" else f"failed: {words}"
    if outcome.final is None:
        failure = outcome.failure or {}
        return f"{outcome.status} at step {failure.get('step')}: {printable(str(failure.get('why')), 200)}"
    return f"test accuracy {percent(outcome.final.test_accuracy)}"


class Progress(Listener):
    """Counts, and an estimate of the time left."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self.total = self.already = 0
        self.ended: Counter[str] = Counter()
        self.running: dict[str, tuple[Trial, dict[str, Any]]] = {}
        self.labels: dict[str, str] = {}
        self._work = self._done = 0.0
        self._began = time.monotonic()

    def say(self, words: str) -> None:
        """A line of its own."""
        self.console.print(Text(printable(words, 4096)), soft_wrap=True)

    def begin(self, survey: Survey, missing: Sequence[Trial]) -> None:
        """Start the clock."""
        self.labels = trial_labels(survey.experiment)
        self.total = len(survey.experiment.trials)
        self.already = self.total - len(missing)
        self._work = sum(relative_cost(trial) for trial in missing)
        self._began = time.monotonic()

    def event(self, trial: Trial, event: dict[str, Any]) -> None:
        """Remember the newest of every running trial."""
        if "warning" in event:
            self.say(f"{self.label(trial)}: {event['warning']}")
        else:
            self.running[trial.id] = trial, event

    def label(self, trial: Trial) -> str:
        """Its id, and what of it the sweep varies."""
        return self.labels.get(trial.id, trial.id)

    def outcome(self, trial: Trial, outcome: "Outcome") -> None:
        """One less to wait for."""
        self.running.pop(trial.id, None)
        self.ended[outcome.state if isinstance(outcome, Failure) else outcome.status] += 1
        self._done += relative_cost(trial)

    def counts(self) -> str:
        """``12 of 45 done, 1 failed, about 3 min 20 s left``.

        Not how many are running: between the end of one and the first news of the next nobody knows.
        """
        words = [f"{self.already + self.ended['done']} of {self.total} done"]
        words += [f"{count} {state}" for state, count in sorted(self.ended.items()) if state != "done"]
        if (left := self.seconds_left()) is not None:
            words.append(f"about {duration(left)} left")
        return ", ".join(words)

    def seconds_left(self) -> float | None:
        """By the share of the work that is behind; None before there is anything to go by, and at the end."""
        done = self._done
        for trial, event in list(self.running.values()):  # the table is drawn by another thread
            done += relative_cost(trial) * (event["epoch"] - 1) / event["epochs"]
        if not 0 < done < self._work * (1 - 1e-9):
            return None
        return (time.monotonic() - self._began) * (self._work - done) / done


class Lines(Progress):
    """One line for each trial that ends, and one where there was none for a while; for pipes, logs and CI."""

    def __init__(self, console: Console) -> None:
        super().__init__(console)
        self._spoke = time.monotonic()

    def say(self, words: str) -> None:
        """A line of its own."""
        super().say(words)
        self._spoke = time.monotonic()

    def begin(self, survey: Survey, missing: Sequence[Trial]) -> None:
        """Say how much there is to do."""
        super().begin(survey, missing)
        if missing:
            to_run = plural(len(missing), "trial")
            done = f"{self.already} of {self.total} done"
            self.say(f"{survey.experiment.name}: {to_run} to run, {done}{going_on(survey)}")

    def event(self, trial: Trial, event: dict[str, Any]) -> None:
        """Say how far it is, if nothing else was said for a while."""
        super().event(trial, event)
        if "warning" not in event and time.monotonic() - self._spoke >= SILENCE:
            loss = event["train_loss"]
            words = "" if loss is None else f", train loss {loss:.3f}"
            self.say(
                f"{self.label(trial)}: epoch {event['epoch']}/{event['epochs']}{words} ({self.counts()})"
            )

    def outcome(self, trial: Trial, outcome: "Outcome") -> None:
        """Say how it ended."""
        super().outcome(trial, outcome)
        self.say(f"{self.label(trial)}: {result_of(outcome)} ({self.counts()})")


class LiveTable(Progress):
    """The running trials in a table that stays in place, and above it a line for each that ended."""

    def __init__(self, console: Console) -> None:
        super().__init__(console)
        self._live = Live(
            get_renderable=self.table,
            console=console,
            refresh_per_second=2,
            transient=True,
            redirect_stdout=False,  # data
        )

    def __enter__(self) -> "LiveTable":
        self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._live.stop()

    def outcome(self, trial: Trial, outcome: "Outcome") -> None:
        """Say how it ended."""
        super().outcome(trial, outcome)
        self.say(f"{self.label(trial)}: {result_of(outcome)}")

    def table(self) -> Group:
        """Counts, and a row for each running trial."""
        table = Table(box=None, pad_edge=False)
        table.add_column("trial", no_wrap=True, max_width=max(48, self.console.width - 50))
        for column in ("epoch", "train loss", "test accuracy", "images/s"):
            table.add_column(column, justify="right", no_wrap=True)
        for _, (trial, event) in sorted(self.running.items()):
            loss, speed = event["train_loss"], event["images_per_second"]
            table.add_row(
                Text(self.label(trial)),
                f"{event['epoch']}/{event['epochs']}",
                "–" if loss is None else f"{loss:.3f}",
                percent(event["test_accuracy"]),
                "–" if speed is None else f"{speed:.0f}",
            )
        heading = Text(self.counts() if self.total else "", style="bold")
        return Group(heading, table) if self.running else Group(heading)
