"""The progress of a sweep: a live table on a terminal, plain lines elsewhere."""

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
from normbench.report.metrics import final, task_metric
from normbench.sweep.estimate import relative_cost
from normbench.sweep.run import Listener, Survey
from normbench.text import duration, plural, printable

if TYPE_CHECKING:
    from normbench.config.catalog.executors import Outcome

SILENCE = 30.0  # seconds without a line, after which the progress of a trial is printed


@contextlib.contextmanager
def listener(quiet: bool) -> Iterator[Listener]:
    """Report progress on stderr: not at all, in plain lines, or in a live table on a terminal."""
    terminal = sys.stderr.isatty()
    console = Console(stderr=True, force_terminal=terminal, highlight=False)
    if quiet:
        yield Listener()
    elif terminal and not console.is_dumb_terminal:
        with LiveProgress(console) as live:
            yield live
    else:
        yield PlainProgress(console)


def resumable(survey: Survey) -> str:
    """Return ``; 2 with a saved state to resume from``, or an empty string."""
    return f"; {len(survey.saved)} with a saved state to resume from" if survey.saved else ""


def result_of(outcome: "Outcome") -> str:
    """Describe the end of a trial in a few words."""
    if isinstance(outcome, Failure):
        reason = printable(outcome.reason, 200)
        return reason if outcome.state == "timeout" else f"failed: {reason}"
    if outcome.final is None:
        failure = outcome.failure or {}
        return f"{outcome.status} at step {failure.get('step')}: {printable(str(failure.get('why')), 200)}"
    quantity = task_metric(outcome.trial).quantity
    return f"{quantity.label} {quantity.written(final(outcome, quantity.column))}"


class ProgressView(Listener):
    """The counts of trials, and an estimate of the time left."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self.total = self.already = 0
        self.ended: Counter[str] = Counter()
        self.running: dict[str, tuple[Trial, dict[str, Any]]] = {}
        self.labels: dict[str, str] = {}
        self._work = self._done = 0.0
        self.claim_rows: Sequence[Sequence[str]] = ()
        self._began = time.monotonic()

    def say(self, words: str) -> None:
        """Print a line."""
        self.console.print(Text(printable(words, 4096)), soft_wrap=True)

    def claims(self, words: str, rows: Sequence[Sequence[str]]) -> None:
        """Print what comes next, and keep the rows."""
        self.claim_rows = rows
        self.say(words)

    def begin(self, survey: Survey, missing: Sequence[Trial]) -> None:
        """Start the clock."""
        self.labels = trial_labels(survey.experiment)
        self.total = len(survey.experiment.trials)
        self.already = self.total - len(missing)
        self.ended, self._done = Counter(), 0.0
        self._work = sum(relative_cost(trial) for trial in missing)
        self._began = time.monotonic()

    def event(self, trial: Trial, event: dict[str, Any]) -> None:
        """Store the newest event of every running trial."""
        if "warning" in event:
            self.say(f"{self.label(trial)}: {event['warning']}")
        else:
            self.running[trial.id] = trial, event

    def label(self, trial: Trial) -> str:
        """Return the id of a trial with its swept settings."""
        return self.labels.get(trial.id, trial.id)

    def outcome(self, trial: Trial, outcome: "Outcome") -> None:
        """Count a trial as ended."""
        self.running.pop(trial.id, None)
        self.ended[outcome.state if isinstance(outcome, Failure) else outcome.status] += 1
        self._done += relative_cost(trial)

    def counts(self) -> str:
        """Return ``12 of 45 done, 1 failed, about 3 min 20 s left``.

        The number of running trials is not known between the end of a trial and the first event of the next.
        """
        parts = [f"{self.already + self.ended['done']} of {self.total} done"]
        parts += [f"{count} {state}" for state, count in sorted(self.ended.items()) if state != "done"]
        if (left := self.seconds_left()) is not None:
            parts.append(f"about {duration(left)} left")
        return ", ".join(parts)

    def seconds_left(self) -> float | None:
        """Estimate the time left by the fraction of the work done; return None at the start and the end."""
        done = self._done
        for trial, event in list(self.running.values()):  # another thread renders the table
            done += relative_cost(trial) * (event["epoch"] - 1) / event["epochs"]
        if not 0 < done < self._work * (1 - 1e-9):
            return None
        return (time.monotonic() - self._began) * (self._work - done) / done


class PlainProgress(ProgressView):
    """A line for each trial that ends, and one after a time without any; for pipes, logs and CI."""

    def __init__(self, console: Console) -> None:
        super().__init__(console)
        self._last_line = time.monotonic()

    def say(self, words: str) -> None:
        """Print a line."""
        super().say(words)
        self._last_line = time.monotonic()

    def begin(self, survey: Survey, missing: Sequence[Trial]) -> None:
        """Print how many trials will run."""
        super().begin(survey, missing)
        if missing:
            to_run = plural(len(missing), "trial")
            done = f"{self.already} of {self.total} done"
            self.say(f"{survey.experiment.name}: {to_run} to run, {done}{resumable(survey)}")

    def event(self, trial: Trial, event: dict[str, Any]) -> None:
        """Print the progress of a trial, if no line was printed for a while."""
        super().event(trial, event)
        if "warning" not in event and time.monotonic() - self._last_line >= SILENCE:
            epoch, loss = f"epoch {event['epoch']}/{event['epochs']}", event["train_loss"]
            train_loss = "" if loss is None else f", train loss {loss:#.4g}"
            self.say(f"{self.label(trial)}: {epoch}{train_loss} ({self.counts()})")

    def outcome(self, trial: Trial, outcome: "Outcome") -> None:
        """Print the end of a trial."""
        super().outcome(trial, outcome)
        self.say(f"{self.label(trial)}: {result_of(outcome)} ({self.counts()})")


class LiveProgress(ProgressView):
    """A table of the running trials that stays in place, and a line above it for each that ended."""

    def __init__(self, console: Console) -> None:
        super().__init__(console)
        self._live = Live(
            get_renderable=self.table,
            console=console,
            refresh_per_second=2,
            transient=True,
            redirect_stdout=False,  # data
        )

    def __enter__(self) -> "LiveProgress":
        self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._live.stop()

    def outcome(self, trial: Trial, outcome: "Outcome") -> None:
        """Print the end of a trial."""
        super().outcome(trial, outcome)
        self.say(f"{self.label(trial)}: {result_of(outcome)}")

    def table(self) -> Group:
        """Return the counts, and a row for each running trial."""
        table = Table(box=None, pad_edge=False)
        table.add_column("trial", no_wrap=True, max_width=max(48, self.console.width - 50))
        running = sorted(self.running.items())
        labels = {task_metric(trial).quantity.label for _, (trial, _) in running}
        measured = labels.pop() if len(labels) == 1 else "test"
        for column in ("epoch", "train loss", measured, "images/s"):
            table.add_column(column, justify="right", no_wrap=True)
        for _, (trial, event) in running:
            loss, speed = event["train_loss"], event["images_per_second"]
            quantity = task_metric(trial).quantity
            newest = event["test_metrics"].get(quantity.column.removeprefix("test_"))
            table.add_row(
                Text(self.label(trial)),
                f"{event['epoch']}/{event['epochs']}",
                "–" if loss is None else f"{loss:#.4g}",
                quantity.written(newest),
                "–" if speed is None else f"{speed:.0f}",
            )
        heading = Text(self.counts() if self.total else "", style="bold")
        return Group(*self._claims(), heading, *([table] if self.running else []))

    def _claims(self) -> list[Table]:
        """The claims that are being settled, as many as a third of the screen holds, the open ones first."""
        if not self.claim_rows:
            return []
        table = Table(box=None, pad_edge=False)
        for column in ("claim", "verdict", "measured", "n"):
            table.add_column(column, no_wrap=True, overflow="ellipsis")
        for row in self.claim_rows[: max(3, self.console.height // 3)]:
            table.add_row(*map(Text, row))
        return [table]
