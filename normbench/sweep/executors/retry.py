"""Attempts at trials: which trials wait for one, what one gives, and how many a trial gets."""

import pickle
from collections import Counter, deque
from collections.abc import Iterable
from typing import TYPE_CHECKING

from normbench.config.trial import Trial
from normbench.records import Failure, Interrupted

if TYPE_CHECKING:
    from normbench.config.catalog.executors import Outcome, Tell, Work

CUT_OFF = "{} had not saved its state when the run ended, and goes on from its last checkpoint"
RETRIES = 1  # after the death of a process, and after a hang: either may have been an accident


class Attempts:
    """The trials that wait, and how often a process has died, or made no progress, under each.

    Attributes:
        waiting: those that are to be attempted, in this order.
        apart: ids of those whose next attempt wants a process of its own, as they may be what ends others.
    """

    def __init__(self, trials: Iterable[Trial]) -> None:
        self.waiting = deque(trials)
        self.apart = set[str]()
        self._deaths, self._hangs = Counter[str](), Counter[str]()

    def died(self, trial: Trial, cause: str) -> Failure | None:
        """Let it wait for another attempt, before all others; or the failure it ends in, if it had enough."""
        times = self._again(trial, self._deaths)
        return None if times is None else Failure(f"{cause}, {times} times on this trial")

    def hung(self, trial: Trial, stacks: str, seconds: float) -> Failure | None:
        """Likewise where there was no step for so long; ``stacks`` say where it was."""
        times = self._again(trial, self._hangs)
        return None if times is None else Failure.hang(stacks, seconds, times)

    def _again(self, trial: Trial, count: Counter[str]) -> int | None:
        """Let it wait; or how often it has happened, if that is enough."""
        count[trial.id] += 1
        if count[trial.id] > RETRIES:
            return count[trial.id]
        self.again(trial, apart=True)
        return None

    def again(self, trial: Trial, *, apart: bool) -> None:
        """Let it wait, before all others, for an attempt that costs it none."""
        self.waiting.appendleft(trial)
        if apart:
            self.apart.add(trial.id)


def attempt(work: "Work", trial: Trial, tell: "Tell") -> "Outcome | None":
    """The record or the failure of a trial in this process; None if it was told to stop."""
    try:
        return work(trial, tell)
    except Interrupted:
        return None
    except Exception as error:
        return Failure.of(error)


def packed(work: "Work", trial: Trial, tell: "Tell") -> bytes | None:
    """The same, to be sent to another process by ``pickle``; what does not pickle is a failure too."""
    outcome = attempt(work, trial, tell)
    try:
        return None if outcome is None else pickle.dumps(outcome)
    except Exception as error:
        return pickle.dumps(Failure.of(error))
