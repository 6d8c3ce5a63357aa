"""Worker processes on this machine, each with one or several seats for trials.

The trials of a process with several seats run in threads. They share the process, above all its CUDA context,
and its death ends all of them.
"""

import contextlib
import faulthandler
import multiprocessing
import os
import signal
import threading
import traceback
from collections.abc import Sequence
from functools import partial
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection
from time import monotonic
from typing import TYPE_CHECKING, Any, cast

from normbench.config.trial import Trial
from normbench.signals import ENDING, held_back
from normbench.streams import flush
from normbench.sweep.executors.retry import packed

if TYPE_CHECKING:
    from normbench.config.catalog.executors import Load, Work

LOOK_SECONDS = 1.0  # that one look adds to a silence at most: a runner that was stopped saw no hang
END_SECONDS = 4.0  # for a process without work to end
STACKS_SECONDS = 2.0  # for a worker that hangs to write its stacks
STACKS_BYTES = 60_000  # of them that are kept
KILLED = "was killed by"
QUEUES = "CUDA_DEVICE_MAX_CONNECTIONS"  # of a GPU: CUDA reads it once; the streams of a process share them
EVENT, OUTCOME, SAVED, GONE = "event", "outcome", "saved", "gone"  # the messages of a seat


def load_nothing() -> None:
    """Do nothing before the first trial."""


class Process:
    """A spawned process that runs trials until it is told to end.

    Args:
        seats: trials that it runs at once.
        load: is called in it before its first trial.

    Attributes:
        seats: one for every trial that it can run at once.
        device: of its trials; None where the work chooses it.
        is_fresh: no trial has run in it.
        is_hung: it was ended because one of its trials made no progress.
        is_damaged: a trial raised in it on a device, whose context may be unusable since.
    """

    def __init__(self, seats: int = 1, load: "Load" = load_nothing) -> None:
        context = multiprocessing.get_context("spawn")  # a fork would copy torch's threads half-alive
        pipes = [context.Pipe() for _ in range(seats)]
        inner_pipes = [inner for _, inner in pipes]
        self._stacks, stacks = context.Pipe(duplex=False)
        self._process = context.Process(target=_serve, args=(inner_pipes, stacks, load), daemon=True)
        with held_back([signal.SIGHUP]):  # which would end it
            resource_tracker.ensure_running()  # or the first process starts it, which unblocks all signals
        try:
            with held_back():  # until _serve ignores them
                self._process.start()
        finally:
            for pipe in (*inner_pipes, stacks):
                pipe.close()
        self.seats = tuple(Seat(self, outer) for outer, _ in pipes)
        self.device: str | None = None
        self.is_fresh = True
        self.is_hung = self.is_damaged = False
        self._end: tuple[str, str] | None = None

    @property
    def is_idle(self) -> bool:
        """Whether no trial runs in it."""
        return all(seat.trial is None for seat in self.seats)

    @property
    def has_ended(self) -> bool:
        """Whether :meth:`bury` has seen its end."""
        return self._end is not None

    def abort(self) -> None:
        """Kill it, after it has written the stacks of its threads."""
        if self.has_ended:
            return
        self.is_hung = True
        assert self._process.pid is not None
        with contextlib.suppress(ProcessLookupError):  # it has just ended
            os.kill(self._process.pid, signal.SIGABRT)  # which faulthandler answers with all stacks
        self._process.join(STACKS_SECONDS)
        self._process.kill()  # in case it could not even do that

    def discard(self) -> None:
        """Wait for its end, which it was told of; a process in which no trial has run is killed at once."""
        for seat in self.seats:
            seat.pipe.close()
        self.bury(0 if self.is_fresh else END_SECONDS)

    def bury(self, patience: float = END_SECONDS) -> tuple[str, str]:
        """Wait for its end, kill it when patience is over, and close its handles.

        Returns:
            How it ended, and its stacks if it could still write them.
        """
        if self._end is None:
            self._process.join(patience)
            if self._process.is_alive():
                self._process.kill()
                self._process.join()
            code = self._process.exitcode or 0
            self._process.close()
            stacks = os.read(self._stacks.fileno(), STACKS_BYTES) if self._stacks.poll() else b""
            self._stacks.close()
            end = f"{KILLED} {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
            self._end = end, stacks.decode(errors="replace")
        return self._end


class Seat:
    """A place for one trial at a time in a process, and the pipe to it.

    Attributes:
        process: that has this seat.
        trial: that runs here, or None.
        is_delivered: the process was alive when this trial was sent.
        is_hung: this trial is why the process was ended.
    """

    def __init__(self, process: Process, pipe: "Connection[Any, Any]") -> None:
        self.process, self.pipe = process, pipe
        self.trial: Trial | None = None
        self.is_delivered = self.is_hung = False
        self._silence, self._watched_at = 0.0, monotonic()

    def begin(self, work: "Work", trial: Trial) -> None:
        """Send a trial to it; the work gets the device of its process, and the number of seats above 1."""
        means: dict[str, Any] = {} if self.process.device is None else {"device": self.process.device}
        if len(self.process.seats) > 1:
            means["seats"] = len(self.process.seats)
        self.trial, self.process.is_fresh = trial, False
        self._silence, self._watched_at = 0.0, monotonic()
        try:
            self.pipe.send((partial(cast(Any, work), **means) if means else work, trial))
            self.is_delivered = True
        except OSError:  # it has died; the next wait notices
            self.is_delivered = False

    def news(self) -> tuple[str, Any]:
        """Receive a message: an ``EVENT``, an ``OUTCOME`` as bytes, ``SAVED``, or ``GONE`` at the end."""
        self._silence = 0.0
        try:
            kind, content = self.pipe.recv()
        except (EOFError, OSError):
            return GONE, None
        return kind, content

    def watch(self, hang_seconds: float | None) -> None:
        """Kill its process if its trial has told nothing for so long."""
        now = monotonic()
        self._silence += min(now - self._watched_at, LOOK_SECONDS)
        self._watched_at = now
        if self.trial and hang_seconds and self._silence >= hang_seconds and not self.process.is_hung:
            self.is_hung = True
            self.process.abort()

    def tell_to_stop(self) -> None:
        """Tell its trial to save its state and end; the process ends after all of its seats."""
        with contextlib.suppress(OSError):
            self.pipe.send(None)


def _serve(pipes: "Sequence[Connection[Any, Any]]", stacks: "Connection[Any, Any]", load: "Load") -> None:
    """Serve all seats of this process until each is told to stop.

    The stacks at a crash or an abort are written to ``stacks``.
    """
    if len(pipes) > 1:
        os.environ.setdefault(QUEUES, "32")  # the most; by default 8, in which streams would wait in line
    faulthandler.enable(stacks.fileno())
    with contextlib.suppress(OSError):  # stdout is the runner's, for data
        os.dup2(2, 1)
    for number in ENDING:
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, ENDING)
    with contextlib.suppress(Exception):  # a trial that needs what cannot be loaded fails
        load()
    first, *rest = pipes
    threads = [threading.Thread(target=_serve_seat, args=(pipe, stacks), daemon=True) for pipe in rest]
    for thread in threads:
        thread.start()
    _serve_seat(first, stacks)
    for thread in threads:
        thread.join()
    flush()
    os._exit(0)  # without the second that torch takes to shut down


def _serve_seat(pipe: "Connection[Any, Any]", stacks: "Connection[Any, Any]") -> None:
    """Receive trials, send events and outcomes, until None comes or the runner has closed the pipe.

    Any other end of a seat ends the process, as the runner would not notice it otherwise.
    """

    def tell(event: dict[str, Any]) -> bool:
        try:
            if not pipe.poll():  # nothing is ever sent to a busy seat but the end
                pipe.send((EVENT, event))
                return False
        except OSError:
            pass
        return True

    try:
        while message := pipe.recv():
            work, trial = message
            outcome = packed(work, trial, tell)
            if outcome is None:
                break
            pipe.send((OUTCOME, outcome))
        pipe.send((SAVED, None))
    except (EOFError, OSError):
        pass
    except BaseException as error:
        os.write(stacks.fileno(), traceback.format_exc().encode()[-STACKS_BYTES:])
        os._exit(error.code if isinstance(error, SystemExit) and isinstance(error.code, int) else 1)
