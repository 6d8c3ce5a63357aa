"""Persistent worker processes on this machine, each watched on its own: one that dies costs its own trial one retry.

(``concurrent.futures`` will not do: a single killed worker takes every pending task of its pool with it.)
"""

import multiprocessing
import signal
import time
import traceback
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.connection import Connection, wait
from typing import TYPE_CHECKING, Any

from normbench.records import Failure, Interrupted
from normbench.trial import Trial

if TYPE_CHECKING:
    from normbench.executors import Outcome, Report, Work

RETRIES = 1  # after the death of a worker, which may have been an accident
POLL_SECONDS = 0.2
PATIENCE_SECONDS = 5.0  # for workers to save their state when they are told to stop
NEWS_SECONDS = 0.5


def execute(
    work: "Work", trials: Sequence[Trial], *, workers: int, report: "Report", stop: Callable[[], bool]
) -> Iterator[tuple[Trial, "Outcome"]]:
    """See :mod:`normbench.executors`; ``workers`` processes, started once and reused."""
    pending, deaths = deque(trials), Counter[str]()
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
            ready = wait([worker.pipe for worker in crew], timeout=POLL_SECONDS)
            for worker in [worker for worker in crew if worker.pipe in ready]:
                trial = worker.trial
                try:
                    kind, content = worker.pipe.recv()
                except (EOFError, OSError):
                    crew.remove(worker)
                    cause = worker.cause_of_death()
                    if trial is None:
                        continue
                    deaths[trial.id] += 1
                    if deaths[trial.id] <= RETRIES:
                        pending.appendleft(trial)
                    else:
                        yield trial, Failure(f"{cause} {deaths[trial.id]} times on this trial")
                    continue
                assert trial is not None, "an idle worker has nothing to say"
                if kind == "event":
                    report(trial, content)
                else:
                    worker.trial = None
                    yield trial, content
    finally:
        _dismiss(crew)


class _Worker:
    """A process that runs one trial at a time."""

    def __init__(self, work: "Work") -> None:
        context = multiprocessing.get_context("spawn")  # a fork would copy torch's threads half-alive
        self.pipe, theirs = context.Pipe()
        self.process = context.Process(target=_serve, args=(theirs, work), daemon=True)
        self.process.start()
        theirs.close()
        self.trial: Trial | None = None

    def begin(self, trial: Trial) -> None:
        self.trial = trial
        try:
            self.pipe.send(trial)
        except OSError:
            pass  # it has died; the next wait notices

    def cause_of_death(self) -> str:
        self.process.join()
        code = self.process.exitcode or 0
        end = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
        return f"the worker process {end}"


def _dismiss(crew: list[_Worker]) -> None:
    """Tell all workers to stop, give them time to save, and end what is left."""
    for worker in crew:
        try:
            worker.pipe.send(None)
        except OSError:
            continue
    deadline = time.monotonic() + PATIENCE_SECONDS
    for worker in crew:
        worker.process.join(max(0.0, deadline - time.monotonic()))
        if worker.process.is_alive():
            worker.process.kill()
            worker.process.join()
        worker.pipe.close()


def _serve(pipe: "Connection[Any, Any]", work: "Work") -> None:
    """The life of a worker: trials in, events and outcomes out, until None comes or the runner is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the runner decides what it means
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    last = ("", 0.0)

    def tell(event: dict[str, Any]) -> bool:
        nonlocal last
        if pipe.poll():  # None, or the end of the pipe: either way, stop
            return True
        now = time.monotonic()
        if event.get("epoch") != last[0] or now - last[1] > NEWS_SECONDS:
            last = event.get("epoch", ""), now
            pipe.send(("event", event))
        return False

    try:
        while (trial := pipe.recv()) is not None:
            try:
                outcome: "Outcome" = work(trial, tell)
            except Interrupted:
                return
            except Exception:
                outcome = Failure(traceback.format_exc())
            pipe.send(("outcome", outcome))
    except (EOFError, OSError):
        return  # the runner is gone
