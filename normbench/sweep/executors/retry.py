"""Attempts at trials: which trials wait, what an attempt gives, and how many a trial gets."""

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
    """The trials that wait, and how often each has died or hung.

    Attributes:
        waiting: trials to attempt, in this order.
        apart: ids of trials whose next attempt is to share no process, as they may end other trials.
    """

    def __init__(self, trials: Iterable[Trial]) -> None:
        self.waiting = deque(trials)
        self.apart = set[str]()
        self._deaths, self._hangs = Counter[str](), Counter[str]()

    def died(self, trial: Trial, cause: str) -> Failure | None:
        """Put a trial first in the queue after a death; return its failure if that was its last attempt."""
        times = self._again(trial, self._deaths)
        return None if times is None else Failure(f"{cause}, {times} times on this trial")

    def hung(self, trial: Trial, stacks: str, seconds: float) -> Failure | None:
        """Do the same after a hang of so many seconds; ``stacks`` say where."""
        times = self._again(trial, self._hangs)
        return None if times is None else Failure.hang(stacks, seconds, times)

    def _again(self, trial: Trial, count: Counter[str]) -> int | None:
        """Put a trial first in the queue; return its count if that was its last attempt."""
        count[trial.id] += 1
        if count[trial.id] > RETRIES:
            return count[trial.id]
        self.again(trial, apart=True)
        return None

    def again(self, trial: Trial, *, apart: bool) -> None:
        """Put a trial first in the queue, without the loss of an attempt."""
        self.waiting.appendleft(trial)
        if apart:
            self.apart.add(trial.id)


def attempt(work: "Work", trial: Trial, tell: "Tell") -> "Outcome | None":
    """Run a trial in this process and return its record or its failure; None if it was told to stop."""
    try:
        return work(trial, tell)
    except Interrupted:
        return None
    except Exception as error:
        return Failure.of(error)


def packed(work: "Work", trial: Trial, tell: "Tell") -> bytes | None:
    """Return the same as pickled bytes; an outcome that does not pickle becomes a failure."""
    outcome = attempt(work, trial, tell)
    try:
        return None if outcome is None else pickle.dumps(outcome)
    except Exception as error:
        return pickle.dumps(Failure.of(error))
