"""One trial after the other in this process: the simplest executor, and the one to debug with."""

from collections.abc import Callable, Generator, Sequence
from typing import TYPE_CHECKING, Any

from normbench.config.trial import Trial
from normbench.sweep.executors.retry import attempt
from normbench.sweep.placement import Placement

if TYPE_CHECKING:
    from normbench.config.catalog.executors import Outcome, Report, Work


def execute(
    work: "Work",
    trials: Sequence[Trial],
    _placement: Placement,
    *,
    report: "Report",
    stop: Callable[[], bool],
    **_: Any,
) -> Generator[tuple[Trial, "Outcome"]]:
    """Run one trial at a time; see :mod:`normbench.config.catalog.executors`."""
    for trial in trials:

        def tell(event: dict[str, Any], trial: Trial = trial) -> bool:
            report(trial, event)
            return stop()

        if stop():
            return
        outcome = attempt(work, trial, tell)
        if outcome is None:
            return
        yield trial, outcome
