"""Attempts at trials: which trials wait for one, what one gives, and how many a trial gets."""

import pickle
import traceback
from collections import Counter, deque
from collections.abc import Iterable
from typing import TYPE_CHECKING

from normbench.records import Failure, Interrupted
from normbench.trial import Trial

if TYPE_CHECKING:
    from normbench.executors import Outcome, Tell, Work

RETRIES = 1  # after the death of a process, which may have been an accident


class Attempts:
    """The trials that wait, and how often a process has died under each."""

    def __init__(self, trials: Iterable[Trial]) -> None:
        self.waiting = deque(trials)
        self._deaths = Counter[str]()

    def died(self, trial: Trial, cause: str) -> Failure | None:
        """Let it wait for another attempt, before all others; or the failure it ends in, if it had enough."""
        self._deaths[trial.id] += 1
        if self._deaths[trial.id] <= RETRIES:
            self.waiting.appendleft(trial)
            return None
        return Failure(f"{cause}, {self._deaths[trial.id]} times on this trial")


def attempt(work: "Work", trial: Trial, tell: "Tell") -> "Outcome | None":
    """The record or the failure of a trial in this process; None if it was told to stop."""
    try:
        return work(trial, tell)
    except Interrupted:
        return None
    except Exception:
        return Failure(traceback.format_exc())


def packed(work: "Work", trial: Trial, tell: "Tell") -> bytes | None:
    """The same, to be sent to another process by ``pickle``; what does not pickle is a failure too."""
    outcome = attempt(work, trial, tell)
    try:
        return None if outcome is None else pickle.dumps(outcome)
    except Exception:
        return pickle.dumps(Failure(traceback.format_exc()))
