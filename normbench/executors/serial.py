"""One trial after the other in this process: the simplest executor, and the one to debug with."""

from collections.abc import Callable, Generator, Sequence
from typing import TYPE_CHECKING, Any

from normbench.records import Failure, Interrupted
from normbench.trial import Trial

if TYPE_CHECKING:
    from normbench.executors import Outcome, Report, Work


def execute(
    work: "Work",
    trials: Sequence[Trial],
    *,
    workers: int,
    report: "Report",
    stop: Callable[[], bool],
    hang_seconds: float | None = None,
) -> Generator[tuple[Trial, "Outcome"]]:
    """See :mod:`normbench.executors`; ``workers`` and ``hang_seconds`` are of no use in one process."""
    del workers, hang_seconds
    for trial in trials:

        def tell(event: dict[str, Any], trial: Trial = trial) -> bool:
            report(trial, event)
            return stop()

        if stop():
            return
        try:
            outcome: Outcome = work(trial, tell)
        except Interrupted:
            return
        except Exception as error:
            outcome = Failure.of(error)
        yield trial, outcome
