"""Persistent worker processes on this machine: one that dies or hangs costs its own trial a retry.

(``concurrent.futures`` will not do: a single killed worker takes every pending task of its pool with it.)

``together`` trials share a process, which on a GPU is what lets their kernels run side by side. Then nobody
can say which of them a process died of, and an exception in one may be the damage that another did: so who
was in company gets its next attempt in a process of its own. Whatever happens there is its own doing.
"""

import pickle
from collections import Counter
from collections.abc import Callable, Generator, Sequence
from multiprocessing.connection import wait
from time import monotonic
from typing import TYPE_CHECKING, Any

from normbench.executors.attempts import CUT_OFF, Attempts
from normbench.executors.workers import KILLED, PATIENCE_SECONDS, Process, Seat
from normbench.records import Failure
from normbench.trial import Trial

if TYPE_CHECKING:
    from normbench.executors import Outcome, Report, Work

POLL_SECONDS = 0.2


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
    **_: Any,
) -> Generator[tuple[Trial, "Outcome"]]:
    """See :mod:`normbench.executors`; at most ``workers`` trials at once. Processes are reused.

    Raises:
        Unwritable: a worker that was told to stop could not save its state.
    """
    attempts = Attempts(trials)
    crew = _Crew(work, devices or (None,), together)
    try:
        while attempts.waiting or crew.busy:
            if stop():
                return
            while attempts.waiting and len(crew.busy) < workers:
                newest = attempts.waiting.popleft()
                crew.seat(apart=newest.id in attempts.apart).begin(newest)
            for seat in crew.with_news():
                trial = seat.trial
                try:
                    kind, content = seat.news()
                except (EOFError, OSError):
                    crew.lose(seat)
                    end, stacks = seat.process.bury()
                    if trial is None:
                        continue
                    if seat.hangs and hang_seconds:
                        failure = attempts.hung(trial, stacks, hang_seconds)
                    elif seat.process.hangs:
                        attempts.again(trial, apart=False)
                        continue
                    else:
                        failure = attempts.died(trial, f"{stacks}the worker process {end}")
                    if failure:
                        yield trial, failure
                    continue
                assert trial is not None, "an idle worker has nothing to say"
                if kind == "event":
                    report(trial, content)
                    continue
                seat.trial = None
                outcome = pickle.loads(content)
                if isinstance(outcome, Failure) and not outcome.unwritable:
                    seat.process.damaged = seat.process.device is not None
                    if len(seat.process.seats) > 1:
                        attempts.again(trial, apart=True)
                        continue
                yield trial, outcome
            crew.dismiss_damaged()
            for seat in crew.seats:
                seat.watch(hang_seconds)
    finally:
        crew.dismiss(report)


class _Crew:
    """The processes there are, and who sits where.

    Of several devices, the next trial has that on which the fewest run.
    """

    def __init__(self, work: "Work", devices: Sequence[str | None], together: int) -> None:
        self._work, self._devices, self._together = work, devices, together
        self.seats: list[Seat] = []

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
            fits = process.device == device and len(process.seats) == seats
            if fits and not seat.trial and not process.damaged:
                return seat
        process = Process(self._work, device, seats)
        self.seats.extend(process.seats)
        return process.seats[0]

    def with_news(self) -> list[Seat]:
        """Those that have something to say, or will never again."""
        ready = wait([seat.pipe for seat in self.seats], timeout=POLL_SECONDS)
        return [seat for seat in self.seats if seat.pipe in ready]

    def lose(self, seat: Seat) -> None:
        """It is no more."""
        self.seats.remove(seat)
        seat.pipe.close()

    def dismiss_damaged(self) -> None:
        """Let processes go, as soon as nothing runs in them."""
        for process in {seat.process for seat in self.seats}:
            if process.damaged and process.idle:
                for seat in process.seats:
                    seat.tell_to_stop()
                    self.lose(seat)
                process.bury()

    def dismiss(self, report: "Report") -> None:
        """Tell all to stop, give them time to save, and end what is left.

        Raises:
            Unwritable: a state could not be saved.
        """
        for seat in self.seats:
            seat.tell_to_stop()
        deadline = monotonic() + PATIENCE_SECONDS
        unwritable = None
        for seat in self.seats:
            unwritable = seat.last_words(deadline) or unwritable
        for seat in self.seats:
            seat.pipe.close()
            end, _ = seat.process.bury(max(0.0, deadline - monotonic()))
            if seat.trial and end.startswith(KILLED):
                report(seat.trial, {"warning": CUT_OFF.format(seat.trial.id)})
        if unwritable:
            raise unwritable
