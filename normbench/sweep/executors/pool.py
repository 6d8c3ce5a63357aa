"""Persistent worker processes on this machine: the death or hang of a process costs its trial a retry.

(In ``concurrent.futures``, a single killed worker fails every pending task of its pool.)

Several trials may share a process, which on a GPU lets their kernels run side by side. If such a process
dies, it is unknown which trial was the cause, and an exception in one trial may be damage by another. So
each trial that was running there gets its next attempt in a process with one seat.
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
from normbench.sweep.placement import Placement

if TYPE_CHECKING:
    from normbench.config.catalog.executors import Load, Means, Outcome, Report, Work

POLL_SECONDS = 0.2
PATIENCE_SECONDS = 4.0  # for workers to save their state when they are told to stop


def execute(
    work: "Work",
    trials: Sequence[Trial],
    placement: Placement,
    *,
    report: "Report",
    stop: Callable[[], bool],
    idle_processes: list[Process] | None = None,
    **_: Any,
) -> Generator[tuple[Trial, "Outcome"]]:
    """Run trials in worker processes; see :mod:`normbench.config.catalog.executors`.

    Processes are reused, and those that :func:`ahead` has started are taken before others are started.

    Raises:
        Unwritable: a worker that was told to stop could not save its state.
    """
    attempts = Attempts(trials)
    crew = _Crew(placement, idle_processes or [])
    workers, hang_seconds = placement.workers or 1, placement.hang_seconds
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
                    outcome = _after_death(seat, attempts, hang_seconds)
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
def ahead(placement: Placement, load: "Load") -> Generator["Means"]:
    """Start the worker processes of a placement; those that :func:`execute` does not take are ended.

    See :meth:`normbench.config.catalog.executors.Executor.begin`.
    """
    processes: list[Process] = []
    try:
        with held_back():  # a signal between start and append would leave a process behind
            for _ in range(placement.worker_processes):
                processes.append(Process(placement.trials_per_process, load))
        yield {"idle_processes": processes}
    finally:
        for process in processes:
            process.discard()


def _after_death(seat: Seat, attempts: Attempts, hang_seconds: float | None) -> Failure | None:
    """Let the trial of a seat whose process is gone wait for another attempt; or return its failure."""
    end, stacks = seat.process.bury()
    if seat.trial is None:
        return None
    if seat.is_hung and hang_seconds:
        return attempts.hung(seat.trial, stacks, hang_seconds)
    if seat.process.is_hung or not seat.is_delivered:  # another trial hung, or this one never began
        attempts.again(seat.trial, apart=False)
        return None
    return attempts.died(seat.trial, f"{stacks}the worker process {end}")


def _checked(seat: Seat, outcome: "Outcome", attempts: Attempts, report: "Report") -> "Outcome | None":
    """Return the outcome of a trial; None if it failed beside others, and waits for an attempt apart."""
    trial, seat.trial = seat.trial, None
    if not isinstance(outcome, Failure) or outcome.unwritable or trial is None:
        return outcome
    seat.process.is_damaged = seat.process.device is not None
    if len(seat.process.seats) == 1:
        return outcome
    words = "failed in a process that it shared, and is tried again in one of its own"
    report(trial, {"warning": f"{trial.id} {words}: {outcome.reason}"})
    attempts.again(trial, apart=True)
    return None


class _Crew:
    """The running worker processes, and which trial has which seat.

    Of several devices, the next trial has that on which the fewest run.
    """

    def __init__(self, placement: Placement, processes: list[Process]) -> None:
        self._devices: Sequence[str | None] = placement.devices or (None,)
        self._trials_per_process = placement.trials_per_process
        self.seats = [seat for process in processes for seat in process.seats]
        processes.clear()  # which are ended here from now on

    @property
    def busy(self) -> list[Seat]:
        """The seats in which a trial runs."""
        return [seat for seat in self.seats if seat.trial]

    def seat(self, apart: bool) -> Seat:
        """Return a free seat, in a new process if necessary; ``apart``: in a process with one seat."""
        taken = Counter(seat.process.device for seat in self.busy)
        device = min(self._devices, key=lambda device: taken[device])
        seats = 1 if apart else self._trials_per_process
        for seat in self.seats:
            process = seat.process
            fits = (process.is_fresh or process.device == device) and len(process.seats) == seats
            if fits and not (seat.trial or process.is_damaged or process.has_ended):
                break
        else:
            seat, *_ = Process(seats).seats
            self.seats.extend(seat.process.seats)
        seat.process.device = device
        return seat

    def with_news(self) -> list[Seat]:
        """Return the seats that have sent something, or whose process has ended."""
        ready = wait([seat.pipe for seat in self.seats], timeout=POLL_SECONDS)
        return [seat for seat in self.seats if seat.pipe in ready]

    def lose(self, seat: Seat) -> None:
        """Remove a seat whose process has ended."""
        self.seats.remove(seat)
        seat.pipe.close()

    def tidy(self) -> None:
        """End idle processes that are damaged, or have another number of seats than the others."""
        for process in {seat.process for seat in self.seats}:
            fits = len(process.seats) == self._trials_per_process
            if process.is_idle and (process.is_damaged or not fits):
                self._let_go(process)

    def _let_go(self, process: Process) -> None:
        for seat in process.seats:
            seat.tell_to_stop()
        self.seats = [seat for seat in self.seats if seat.process is not process]
        process.discard()

    def dismiss(self, report: "Report") -> None:
        """Tell all trials to stop, give them time to save, and end all processes.

        Raises:
            Unwritable: a state could not be saved.
        """
        for process in {seat.process for seat in self.seats if seat.process.is_fresh}:
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
