"""Persistent worker processes on this machine, each watched on its own.

One that dies costs its own trial a retry and the others nothing. (``concurrent.futures`` will not do: a
single killed worker takes every pending task of its pool with it.)
"""

import contextlib
import multiprocessing
import pickle
import signal
import time
from collections.abc import Callable, Generator, Sequence
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait
from typing import TYPE_CHECKING, Any

from normbench.executors.attempts import Attempts, packed
from normbench.trial import Trial

if TYPE_CHECKING:
    from normbench.executors import Outcome, Report, Work

POLL_SECONDS = 0.2
PATIENCE_SECONDS = 4.0  # for workers to save their state when they are told to stop
# Ctrl-C and a batch system's notice reach the whole process group; the runner decides what they mean.
FOR_THE_RUNNER = (signal.SIGINT, signal.SIGTERM)


def execute(
    work: "Work",
    trials: Sequence[Trial],
    *,
    workers: int,
    report: "Report",
    stop: Callable[[], bool],
    **_: Any,
) -> Generator[tuple[Trial, "Outcome"]]:
    """See :mod:`normbench.executors`; ``workers`` processes, started when there is work, and reused."""
    attempts = Attempts(trials)
    pending = attempts.waiting
    crew: list[_Worker] = []
    try:
        while pending or any(worker.trial for worker in crew):
            if stop():
                return
            idle = [worker for worker in crew if worker.trial is None]
            while pending and (idle or len(crew) < workers):
                if not idle:
                    idle.append(_Worker(work))
                    crew.append(idle[-1])
                idle.pop().begin(pending.popleft())
            for worker in _with_news(crew):
                trial = worker.trial
                try:
                    kind, content = worker.pipe.recv()
                except (EOFError, OSError):
                    crew.remove(worker)
                    cause = worker.bury()
                    if trial is None:
                        continue
                    failure = attempts.died(trial, cause)
                    if failure:
                        yield trial, failure
                    continue
                assert trial is not None, "an idle worker has nothing to say"
                if kind == "event":
                    report(trial, content)
                else:
                    worker.trial = None
                    yield trial, pickle.loads(content)
    finally:
        _dismiss(crew)


class _Worker:
    """A process that runs one trial at a time."""

    def __init__(self, work: "Work") -> None:
        context = multiprocessing.get_context("spawn")  # a fork would copy torch's threads half-alive
        self.pipe, theirs = context.Pipe()
        self.process = context.Process(target=_serve, args=(theirs, work), daemon=True)
        resource_tracker.ensure_running()  # its first start, a part of every other start, unblocks them again
        before = signal.pthread_sigmask(signal.SIG_BLOCK, FOR_THE_RUNNER)  # until _serve ignores them
        try:
            self.process.start()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
            theirs.close()
        self.trial: Trial | None = None

    def begin(self, trial: Trial) -> None:
        """Hand it a trial."""
        self.trial = trial
        with contextlib.suppress(OSError):  # it has died; the next wait notices
            self.pipe.send(trial)

    def bury(self, patience: float = PATIENCE_SECONDS) -> str:
        """Wait for its end, bring it about if need be, and free what it held; returns how it ended."""
        self.pipe.close()
        self.process.join(patience)
        if self.process.is_alive():
            self.process.kill()
            self.process.join()
        code = self.process.exitcode or 0
        self.process.close()
        end = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
        return f"the worker process {end}"


def _with_news(crew: list[_Worker]) -> list[_Worker]:
    ready = wait([worker.pipe for worker in crew], timeout=POLL_SECONDS)
    return [worker for worker in crew if worker.pipe in ready]


def _dismiss(crew: list[_Worker]) -> None:
    """Tell all workers to stop, give them time to save, and end what is left."""
    for worker in crew:
        worker.pipe.close()
    deadline = time.monotonic() + PATIENCE_SECONDS
    for worker in crew:
        worker.bury(max(0.0, deadline - time.monotonic()))


def _serve(pipe: "Connection[Any, Any]", work: "Work") -> None:
    """The life of a worker: trials in, events and outcomes out, until the other end of the pipe is closed.

    That is how the runner says stop, and what happens however the runner dies.
    """
    for number in FOR_THE_RUNNER:
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, FOR_THE_RUNNER)

    def tell(event: dict[str, Any]) -> bool:
        try:
            if not pipe.poll():  # nothing is ever sent to a busy worker: only the end can be there
                pipe.send(("event", event))
                return False
        except OSError:
            pass
        return True

    with contextlib.suppress(EOFError, OSError):
        while True:
            message = packed(work, pipe.recv(), tell)
            if message is None:
                return
            pipe.send(("outcome", message))
