"""Worker processes on this machine, each watched on its own, with one seat for a trial or several.

The trials of a process with several seats run as its threads. They share what a process has, a GPU's context
above all; and if it dies, it dies under all of them.
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

LOOK_SECONDS = 1.0  # of silence at most between two looks: a runner that was stopped for an hour saw no hang
END_SECONDS = 4.0  # for a process that has nothing more to do
STACKS_SECONDS = 2.0  # for a worker that hangs to write down where
MOST_STACKS = 60_000  # bytes kept of it
KILLED = "was killed by"
EVENT, OUTCOME, SAVED, GONE = "event", "outcome", "saved", "gone"  # what a seat has to say


def nothing() -> None:
    """There is nothing to load."""


class Process:
    """A process, spawned, that lives until it is told to end.

    Args:
        seats: trials that it runs at once.
        load: what it does before its first trial.

    Attributes:
        seats: one for every trial that it can run at once.
        device: that its trials run on; None where that is left to the work.
        fresh: no trial ever ran in it.
        hangs: it has been ended because a trial of it made no progress.
        damaged: a trial raised in it on a device, whose context may be of no use since.
    """

    def __init__(self, seats: int = 1, load: "Load" = nothing) -> None:
        context = multiprocessing.get_context("spawn")  # a fork would copy torch's threads half-alive
        pipes = [context.Pipe() for _ in range(seats)]
        theirs = [their for _, their in pipes]
        self._stacks, stacks = context.Pipe(duplex=False)
        self._process = context.Process(target=_serve, args=(theirs, stacks, load), daemon=True)
        with held_back([signal.SIGHUP]):  # which would end it
            resource_tracker.ensure_running()  # its start, a part of the first other one, unblocks the others
        try:
            with held_back():  # until _serve ignores them
                self._process.start()
        finally:
            for one in (*theirs, stacks):
                one.close()
        self.seats = tuple(Seat(self, pipe) for pipe, _ in pipes)
        self.device: str | None = None
        self.fresh = True
        self.hangs = self.damaged = False
        self._end: tuple[str, str] | None = None

    @property
    def idle(self) -> bool:
        """No trial runs in it."""
        return all(seat.trial is None for seat in self.seats)

    @property
    def ended(self) -> bool:
        """It is buried."""
        return self._end is not None

    def abort(self) -> None:
        """End it where it hangs; it writes down where that is."""
        if self.ended:
            return
        self.hangs = True
        assert self._process.pid is not None
        with contextlib.suppress(ProcessLookupError):  # it has just ended
            os.kill(self._process.pid, signal.SIGABRT)  # which faulthandler answers with all stacks
        self._process.join(STACKS_SECONDS)
        self._process.kill()  # in case it could not even do that

    def discard(self) -> None:
        """Wait for its end, which it has been told of; one in which no trial ever ran is ended at once."""
        for seat in self.seats:
            seat.pipe.close()
        self.bury(0 if self.fresh else END_SECONDS)

    def bury(self, patience: float = END_SECONDS) -> tuple[str, str]:
        """Wait for its end, bring it about if need be, and free what it held.

        Returns:
            How it ended, and where it was then if it could still say so.
        """
        if self._end is None:
            self._process.join(patience)
            if self._process.is_alive():
                self._process.kill()
                self._process.join()
            code = self._process.exitcode or 0
            self._process.close()
            stacks = os.read(self._stacks.fileno(), MOST_STACKS) if self._stacks.poll() else b""
            self._stacks.close()
            end = f"{KILLED} {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
            self._end = end, stacks.decode(errors="replace")
        return self._end


class Seat:
    """Where a process runs one trial at a time, and the pipe to it.

    Attributes:
        process: whose it is.
        trial: what runs there; None while nothing does.
        reached: it was alive when it was handed this trial.
        hangs: this trial is why the process was ended.
    """

    def __init__(self, process: Process, pipe: "Connection[Any, Any]") -> None:
        self.process, self.pipe = process, pipe
        self.trial: Trial | None = None
        self.reached = self.hangs = False
        self._silence, self._watched_at = 0.0, monotonic()

    def begin(self, work: "Work", trial: Trial) -> None:
        """Send a trial to it; the work gets the device of its process, and the number of seats above 1."""
        means: dict[str, Any] = {} if self.process.device is None else {"device": self.process.device}
        if len(self.process.seats) > 1:
            means["seats"] = len(self.process.seats)
        self.trial, self.process.fresh = trial, False
        self._silence, self._watched_at = 0.0, monotonic()
        try:
            self.pipe.send((partial(cast(Any, work), **means) if means else work, trial))
            self.reached = True
        except OSError:  # it has died; the next wait notices
            self.reached = False

    def news(self) -> tuple[str, Any]:
        """What it says: an ``EVENT``, an ``OUTCOME`` as bytes, that it has ``SAVED``, or is ``GONE``."""
        self._silence = 0.0
        try:
            kind, content = self.pipe.recv()
        except (EOFError, OSError):
            return GONE, None
        return kind, content

    def watch(self, hang_seconds: float | None) -> None:
        """End its process if there was no news of its trial for so long."""
        now = monotonic()
        self._silence += min(now - self._watched_at, LOOK_SECONDS)
        self._watched_at = now
        if self.trial and hang_seconds and self._silence >= hang_seconds and not self.process.hangs:
            self.hangs = True
            self.process.abort()

    def tell_to_stop(self) -> None:
        """Its trial saves its state and ends, and after the last of its seats the process."""
        with contextlib.suppress(OSError):
            self.pipe.send(None)


def _serve(pipes: "Sequence[Connection[Any, Any]]", stacks: "Connection[Any, Any]", load: "Load") -> None:
    """The life of a process: its seats', until all are told to stop.

    Where it was when it crashed or was aborted goes to ``stacks``.
    """
    faulthandler.enable(stacks.fileno())
    with contextlib.suppress(OSError):  # stdout is the runner's, for data
        os.dup2(2, 1)
    for number in ENDING:
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, ENDING)
    with contextlib.suppress(Exception):  # what cannot be loaded fails the trials that need it
        load()
    first, *others = pipes
    threads = [threading.Thread(target=_sit, args=(pipe, stacks), daemon=True) for pipe in others]
    for thread in threads:
        thread.start()
    _sit(first, stacks)
    for thread in threads:
        thread.join()
    flush()
    os._exit(0)  # nobody who stops a run should wait a second while torch is taken apart


def _sit(pipe: "Connection[Any, Any]", stacks: "Connection[Any, Any]") -> None:
    """The life of a seat: trials in, events and outcomes out, until it is told to stop.

    The runner sends None to say so; that the other end of the pipe is closed, however the runner died, means
    the same. What ends a seat in any other way ends the process: nobody would notice.
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
        while handed := pipe.recv():
            work, trial = handed
            message = packed(work, trial, tell)
            if message is None:
                break
            pipe.send((OUTCOME, message))
        pipe.send((SAVED, None))
    except (EOFError, OSError):
        pass
    except BaseException as error:
        os.write(stacks.fileno(), traceback.format_exc().encode()[-MOST_STACKS:])
        os._exit(error.code if isinstance(error, SystemExit) and isinstance(error.code, int) else 1)
