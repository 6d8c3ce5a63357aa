"""Persistent worker processes on this machine, each watched on its own.

One that dies or hangs costs its own trial a retry and the others nothing. (``concurrent.futures`` will not
do: a single killed worker takes every pending task of its pool with it.)
"""

import contextlib
import faulthandler
import multiprocessing
import os
import pickle
import signal
import sys
from collections import Counter
from collections.abc import Callable, Generator, Sequence
from functools import partial
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait
from time import monotonic
from typing import TYPE_CHECKING, Any, cast

from normbench.executors.attempts import CUT_OFF, Attempts, packed
from normbench.records import Failure, Unwritable
from normbench.signals import ENDING, held_back
from normbench.trial import Trial

if TYPE_CHECKING:
    from normbench.executors import Outcome, Report, Work

POLL_SECONDS = 0.2
LOOK_SECONDS = 1.0  # of silence at most between two looks: a runner that was stopped for an hour saw no hang
PATIENCE_SECONDS = 4.0  # for workers to save their state when they are told to stop
STACKS_SECONDS = 2.0  # for a worker that hangs to write down where
MOST_STACKS = 60_000  # bytes kept of it
KILLED = "was killed by"


def execute(
    work: "Work",
    trials: Sequence[Trial],
    *,
    workers: int,
    report: "Report",
    stop: Callable[[], bool],
    hang_seconds: float | None = None,
    devices: Sequence[str] = (),
    **_: Any,
) -> Generator[tuple[Trial, "Outcome"]]:
    """See :mod:`normbench.executors`; ``workers`` processes, started when there is work, and reused.

    Of several ``devices``, each process has that which had the fewest when it started.

    Raises:
        Unwritable: a worker that was told to stop could not save its state.
    """
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
                    idle.append(_Worker(work, _emptiest(devices, crew)))
                    crew.append(idle[-1])
                idle.pop().begin(pending.popleft())
            for worker in _with_news(crew):
                trial = worker.trial
                try:
                    kind, content = worker.news()
                except (EOFError, OSError):
                    crew.remove(worker)
                    end, stacks = worker.bury()
                    if trial is None:
                        continue
                    if worker.hangs and hang_seconds:
                        failure = attempts.hung(trial, stacks, hang_seconds)
                    else:
                        failure = attempts.died(trial, f"{stacks}the worker process {end}")
                    if failure:
                        yield trial, failure
                    continue
                assert trial is not None, "an idle worker has nothing to say"
                if kind == "event":
                    report(trial, content)
                else:
                    worker.trial = None
                    yield trial, pickle.loads(content)
            for worker in crew:
                worker.watch(hang_seconds)
    finally:
        _dismiss(crew, report)


class _Worker:
    """A process that runs one trial at a time.

    Attributes:
        trial: what it runs; None while it has nothing to do.
        hangs: it has been ended for making no progress.
        device: that its work is told to run on; None to leave that to the work.
    """

    def __init__(self, work: "Work", device: str | None = None) -> None:
        self.device = device
        if device is not None:
            work = partial(cast(Any, work), device=device)
        context = multiprocessing.get_context("spawn")  # a fork would copy torch's threads half-alive
        self.pipe, theirs = context.Pipe()
        self._stacks, stacks = context.Pipe(duplex=False)
        self.process = context.Process(target=_serve, args=(theirs, stacks, work), daemon=True)
        resource_tracker.ensure_running()  # its first start, a part of every other start, unblocks them again
        try:
            with held_back():  # until _serve ignores them
                self.process.start()
        finally:
            theirs.close()
            stacks.close()
        self.trial: Trial | None = None
        self.hangs = False
        self._silence, self._watched_at = 0.0, monotonic()

    def begin(self, trial: Trial) -> None:
        """Hand it a trial."""
        self.trial = trial
        self._silence = 0.0
        with contextlib.suppress(OSError):  # it has died; the next wait notices
            self.pipe.send(trial)

    def news(self) -> tuple[str, Any]:
        """What it has to say.

        Raises:
            EOFError, OSError: it has died.
        """
        self._silence = 0.0
        kind, content = self.pipe.recv()
        return kind, content

    def watch(self, hang_seconds: float | None) -> None:
        """End it if it has had no news of its trial for so long; it writes down where it hangs."""
        now = monotonic()
        self._silence += min(now - self._watched_at, LOOK_SECONDS)
        self._watched_at = now
        if self.trial is None or hang_seconds is None or self._silence < hang_seconds or self.hangs:
            return
        self.hangs = True
        assert self.process.pid is not None
        os.kill(self.process.pid, signal.SIGABRT)  # which faulthandler answers with all stacks
        self.process.join(STACKS_SECONDS)
        self.process.kill()  # in case it could not even do that

    def tell_to_stop(self) -> None:
        """It saves its state and ends."""
        with contextlib.suppress(OSError):
            self.pipe.send(None)

    def last_words(self, deadline: float) -> Unwritable | None:
        """Listen until it ends, or the deadline; returns why its state could not be saved."""
        with contextlib.suppress(EOFError, OSError):
            while self.pipe.poll(max(0.0, deadline - monotonic())):
                kind, content = self.pipe.recv()
                outcome = pickle.loads(content) if kind == "outcome" else None
                if isinstance(outcome, Failure) and outcome.unwritable:
                    return outcome.unwritable
        return None

    def bury(self, patience: float = PATIENCE_SECONDS) -> tuple[str, str]:
        """Wait for its end, bring it about if need be, and free what it held.

        Returns:
            How it ended, and where it was then if it could still say so.
        """
        self.pipe.close()
        self.process.join(patience)
        if self.process.is_alive():
            self.process.kill()
            self.process.join()
        code = self.process.exitcode or 0
        self.process.close()
        stacks = os.read(self._stacks.fileno(), MOST_STACKS) if self._stacks.poll() else b""
        self._stacks.close()
        end = f"{KILLED} {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
        return end, stacks.decode(errors="replace")


def _emptiest(devices: Sequence[str], crew: list[_Worker]) -> str | None:
    """The first of those that the fewest workers have."""
    taken = Counter(worker.device for worker in crew)
    return min(devices, key=lambda device: taken[device], default=None)


def _with_news(crew: list[_Worker]) -> list[_Worker]:
    ready = wait([worker.pipe for worker in crew], timeout=POLL_SECONDS)
    return [worker for worker in crew if worker.pipe in ready]


def _dismiss(crew: list[_Worker], report: "Report") -> None:
    """Tell all workers to stop, give them time to save, and end what is left.

    Raises:
        Unwritable: a state could not be saved.
    """
    for worker in crew:
        worker.tell_to_stop()
    deadline = monotonic() + PATIENCE_SECONDS
    unwritable = None
    for worker in crew:
        unwritable = worker.last_words(deadline) or unwritable
        end, _ = worker.bury(max(0.0, deadline - monotonic()))
        if worker.trial and end.startswith(KILLED):
            report(worker.trial, {"warning": CUT_OFF.format(worker.trial.id)})
    if unwritable:
        raise unwritable


def _serve(pipe: "Connection[Any, Any]", stacks: "Connection[Any, Any]", work: "Work") -> None:
    """The life of a worker: trials in, events and outcomes out, until it is told to stop.

    The runner sends None to say so; that the other end of the pipe is closed, however the runner died, means
    the same. Where it was when it crashed or was aborted goes to ``stacks``.
    """
    faulthandler.enable(stacks.fileno())
    for number in ENDING:
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, ENDING)

    def tell(event: dict[str, Any]) -> bool:
        try:
            if not pipe.poll():  # nothing is ever sent to a busy worker but the end
                pipe.send(("event", event))
                return False
        except OSError:
            pass
        return True

    with contextlib.suppress(EOFError, OSError):
        while trial := pipe.recv():
            message = packed(work, trial, tell)
            if message is None:
                break
            pipe.send(("outcome", message))
    with contextlib.suppress(OSError):
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(0)  # nobody who stops a run should wait a second while torch is taken apart
