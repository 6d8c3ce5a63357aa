"""Persistent worker processes on this machine: one that dies or hangs costs its own trial a retry.

(``concurrent.futures`` will not do: a single killed worker takes every pending task of its pool with it.)

``together`` trials share a process, which on a GPU is what lets their kernels run side by side. Then nobody
can say which of them a process died of, and an exception in one may be the damage that another did: so who
was in company gets its next attempt in a process of its own. Whatever happens there is its own doing.
"""

import pickle
from collections import Counter
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from multiprocessing.connection import wait
from time import monotonic
from typing import TYPE_CHECKING, Any, cast

from normbench.config.trial import Trial
from normbench.records import Failure
from normbench.signals import held_back
from normbench.sweep.executors.retry import CUT_OFF, Attempts
from normbench.sweep.executors.worker import EVENT, GONE, KILLED, OUTCOME, SAVED, Process, Seat

if TYPE_CHECKING:
    from normbench.config.catalog.executors import Load, Means, Outcome, Report, Work

POLL_SECONDS = 0.2
PATIENCE_SECONDS = 4.0  # for workers to save their state when they are told to stop


def execute(
    work: "Work",
    trials: Sequence[Trial],
    *,
    workers: int,
    report: "Report",
    stop: Callable[[], bool],
    hang_seconds: float | None = None,
    devices: Sequence[str] = (),
    together: int = 1,
    begun: list[Process] | None = None,
    **_: Any,
) -> Generator[tuple[Trial, "Outcome"]]:
    """See :mod:`normbench.sweep.executors`; at most ``workers`` trials at once.

    Processes are reused, and those that have ``begun`` are taken before others are started.

    Raises:
        Unwritable: a worker that was told to stop could not save its state.
    """
    attempts = Attempts(trials)
    crew = _Crew(devices or (None,), together, begun or [])
    try:
        while attempts.waiting or crew.busy:
            if stop():
                return
            while attempts.waiting and len(crew.busy) < workers:
                newest = attempts.waiting.popleft()
                crew.seat(apart=newest.id in attempts.apart).begin(work, newest)
            for seat in crew.with_news():
                trial, (kind, content) = seat.trial, seat.news()
                outcome: Outcome | None
                if kind == GONE:
                    crew.lose(seat)
                    outcome = _after_its_end(seat, attempts, hang_seconds)
                elif kind == OUTCOME:
                    outcome = _checked(seat, pickle.loads(content), attempts, report)
                else:
                    outcome = None
                    if trial and kind == EVENT:
                        report(trial, content)
                if trial and outcome:
                    yield trial, outcome
            crew.tidy()
            for seat in crew.seats:
                seat.watch(hang_seconds)
    finally:
        crew.dismiss(report)


@contextmanager
def ahead(processes: int, seats: int, load: "Load") -> Generator["Means"]:
    """See :meth:`normbench.sweep.executors.Executor.begin`; what :func:`execute` does not take is ended."""
    begun: list[Process] = []
    try:
        with held_back():  # or one that has just been started would be nobody's
            for _ in range(processes):
                begun.append(Process(seats, load))
        yield {"begun": begun}
    finally:
        for process in begun:
            process.discard()


def _after_its_end(seat: Seat, attempts: Attempts, hang_seconds: float | None) -> Failure | None:
    """Its process is gone: the trial waits for another attempt; or its failure, if it had enough."""
    end, stacks = seat.process.bury()
    if seat.trial is None:
        return None
    if seat.hangs and hang_seconds:
        return attempts.hung(seat.trial, stacks, hang_seconds)
    if seat.process.hangs or not seat.reached:  # it was another that hung, or it never came to run
        attempts.again(seat.trial, apart=False)
        return None
    return attempts.died(seat.trial, f"{stacks}the worker process {end}")


def _checked(seat: Seat, outcome: "Outcome", attempts: Attempts, report: "Report") -> "Outcome | None":
    """What came of a trial; None if that says nothing yet, as it failed in company, and waits to be alone."""
    trial, seat.trial = seat.trial, None
    if not isinstance(outcome, Failure) or outcome.unwritable or trial is None:
        return outcome
    seat.process.damaged = seat.process.device is not None
    if len(seat.process.seats) == 1:
        return outcome
    words = "failed in a process that it shared, and is tried again in one of its own"
    report(trial, {"warning": f"{trial.id} {words}: {outcome.reason}"})
    attempts.again(trial, apart=True)
    return None


class _Crew:
    """The processes there are, and who sits where.

    Of several devices, the next trial has that on which the fewest run.
    """

    def __init__(self, devices: Sequence[str | None], together: int, begun: list[Process]) -> None:
        self._devices, self._together = devices, together
        self.seats = [seat for process in begun for seat in process.seats]
        begun.clear()  # they are this one's now

    @property
    def busy(self) -> list[Seat]:
        """Those in which a trial runs."""
        return [seat for seat in self.seats if seat.trial]

    def seat(self, apart: bool) -> Seat:
        """A free one, in a new process if need be; ``apart`` from all others."""
        taken = Counter(seat.process.device for seat in self.busy)
        device = min(self._devices, key=lambda device: taken[device])
        seats = 1 if apart else self._together
        for seat in self.seats:
            process = seat.process
            fits = (process.fresh or process.device == device) and len(process.seats) == seats
            if fits and not (seat.trial or process.damaged or process.ended):
                break
        else:
            seat, *_ = Process(seats).seats
            self.seats.extend(seat.process.seats)
        seat.process.device = device
        return seat

    def with_news(self) -> list[Seat]:
        """Those that have something to say, or will never again."""
        ready = wait([seat.pipe for seat in self.seats], timeout=POLL_SECONDS)
        return [seat for seat in self.seats if seat.pipe in ready]

    def lose(self, seat: Seat) -> None:
        """It is no more."""
        self.seats.remove(seat)
        seat.pipe.close()

    def tidy(self) -> None:
        """End idle processes that are damaged, or have another number of seats than the rest."""
        for process in {seat.process for seat in self.seats}:
            fits = len(process.seats) == self._together
            if process.idle and (process.damaged or not fits):
                self._let_go(process)

    def _let_go(self, process: Process) -> None:
        for seat in process.seats:
            seat.tell_to_stop()
        self.seats = [seat for seat in self.seats if seat.process is not process]
        process.discard()

    def dismiss(self, report: "Report") -> None:
        """Tell all to stop, give them time to save, and end what is left.

        Raises:
            Unwritable: a state could not be saved.
        """
        for process in {seat.process for seat in self.seats if seat.process.fresh}:
            self._let_go(process)
        for seat in self.seats:
            seat.tell_to_stop()
        deadline = monotonic() + PATIENCE_SECONDS
        unwritable, saved = None, set[Seat]()
        listening = {seat.pipe: seat for seat in self.seats}
        while listening and (left := deadline - monotonic()) > 0:
            for pipe in wait([*listening], timeout=left):
                seat = listening[cast(Any, pipe)]
                kind, content = seat.news()
                outcome = pickle.loads(content) if kind == OUTCOME else None
                if isinstance(outcome, Failure):
                    unwritable = outcome.unwritable or unwritable
                if kind == SAVED:
                    saved.add(seat)
                if kind in (SAVED, GONE):
                    del listening[seat.pipe]
        for seat in self.seats:
            end, _ = seat.process.bury(max(0.0, deadline - monotonic()))
            seat.pipe.close()
            if seat.trial and seat not in saved and end.startswith(KILLED):
                report(seat.trial, {"warning": CUT_OFF.format(seat.trial.id)})
        if unwritable:
            raise unwritable
