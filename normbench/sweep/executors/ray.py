"""One Ray task a trial. Trials wait here and not at Ray, so that a stop has nothing to take back.

Ray's retries are off: only the runner counts attempts. Ray schedules by cores and ``gpus``. The nodes need
the same version of normbench, and get the data set if they lack it; a trial can go on from its checkpoint on
another node if the results are on a shared file system.
"""

import contextlib
import logging
import os
import pickle
import secrets
import shutil
import signal
import socket
import tempfile
import threading
from collections.abc import Callable, Generator, Iterator, Sequence
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING, Any

from normbench.config.catalog.executors import CannotExecute
from normbench.config.trial import Trial
from normbench.files import Unwritable, locked, write_atomically
from normbench.records import Failure
from normbench.signals import held_back
from normbench.sweep.executors.retry import CUT_OFF, Attempts, packed
from normbench.sweep.placement import Placement

if TYPE_CHECKING:
    from normbench.config.catalog.executors import Outcome, Report, Work

    Luggage = list[tuple[Path, int, Any]]  # path, size, and the bytes or, if they are many, a reference

POLL_SECONDS = 0.2
PATIENCE_SECONDS = 4.0  # for tasks to save their state when they are told to stop
QUEUED = 2  # tasks at Ray for each that can run, so that none of its workers is idle
PRIVATE = {  # environment of a private Ray, where the user has not set it
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # what makes it listen on the loopback device only
    "RAY_enable_metrics_collection": "0",
    "RAY_AUTH_MODE": "token",  # other users of this machine must not run code as this user
    "RAY_AUTH_TOKEN": secrets.token_hex(32),
}
OBJECTS_BYTES = 100 * 2**20  # of a private Ray, which sends records and no data
FEW_BYTES = 2**16
ANSWER_SECONDS = 5.0  # for the head of a cluster; Ray itself would try for minutes
LONGEST = 40  # characters of a temporary directory; the paths of sockets below it may have 107


def execute(
    work: "Work",
    trials: Sequence[Trial],
    placement: Placement,
    *,
    report: "Report",
    stop: Callable[[], bool],
    files: Sequence[Path] = (),
    address: str | None = None,
    gpus: float = 0.0,
    **_: Any,
) -> Generator[tuple[Trial, "Outcome"]]:
    """Run trials as Ray tasks; see :mod:`normbench.config.catalog.executors`.

    Without an address, Ray is started here and ended with the sweep.

    Raises:
        CannotExecute: there is no cluster at the address, or no node has room for a trial.
        Unwritable: a task that was told to stop could not save its state.
    """
    if not trials or stop():
        return
    workers, hang_seconds = placement.workers, placement.hang_seconds
    with _connected(address, workers and workers * placement.cores):
        luggage = _packed_up(files) if address else []
        tasks = _Tasks(work, luggage, placement.cores, gpus)
        if not tasks.room():
            raise CannotExecute(
                f"executor ray: no node has room for a trial (threads {placement.cores}, gpus {gpus:g})"
            )
        attempts = Attempts(trials)
        try:
            while attempts.waiting or tasks.running:
                if stop():
                    return
                limit = min(QUEUED * tasks.room(), workers or len(trials)) if attempts.waiting else 0
                while attempts.waiting and len(tasks.running) < limit:
                    tasks.begin(attempts.waiting.popleft())
                ended = tasks.ended()
                for trial, event in tasks.news():
                    report(trial, event)
                for trial, end in ended:
                    outcome = attempts.died(trial, end) if isinstance(end, str) else end
                    if outcome:
                        yield trial, outcome
                for trial in tasks.hanging(hang_seconds):
                    if failure := attempts.hung(trial, "", hang_seconds or 0.0):
                        yield trial, failure
        finally:
            tasks.dismiss(report)


class _Tasks:
    """The tasks at Ray, and the actor that they report to."""

    def __init__(self, work: "Work", luggage: "Luggage", cores: int, gpus: float) -> None:
        import ray
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        self._ray, self._needs = ray, {"CPU": float(cores), "GPU": gpus}
        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        self._desk = ray.remote(_Desk).options(num_cpus=0, scheduling_strategy=here).remote()
        self._task = ray.remote(_attempt).options(
            num_cpus=cores, num_gpus=gpus, max_retries=0, scheduling_strategy="SPREAD"
        )
        self._work, self._luggage = ray.put(work), luggage
        self.running: dict[Any, Trial] = {}
        self._silence: dict[str, float] = {}  # of trials that have sent an event, in seconds
        self._looked_at = monotonic()

    def room(self) -> int:
        """Count the trials that the nodes that are alive can run at once."""
        nodes = [node["Resources"] for node in self._ray.nodes() if node["Alive"]]
        needs = {resource: amount for resource, amount in self._needs.items() if amount}
        return sum(min(int(node.get(key, 0) / amount) for key, amount in needs.items()) for node in nodes)

    def begin(self, trial: Trial) -> None:
        """Submit a trial."""
        self.running[self._task.remote(self._work, trial, self._desk, self._luggage)] = trial

    def news(self) -> list[tuple[Trial, dict[str, Any]]]:
        """Return the events of tasks since the last call."""
        events: list[tuple[Trial, dict[str, Any]]] = self._ray.get(self._desk.news.remote())
        running = {trial.id for trial in self.running.values()}  # a task that ended may have left some behind
        self._silence |= {trial.id: 0.0 for trial, _ in events if trial.id in running}
        return events

    def hanging(self, hang_seconds: float | None) -> list[Trial]:
        """End the tasks without an event for so long since their first one, and return their trials.

        Before its first event a task may wait at Ray for a core. Time in which the runner was stopped does
        not count.
        """
        now = monotonic()
        passed, self._looked_at = min(now - self._looked_at, 5 * POLL_SECONDS), now
        ended = []
        for task, trial in list(self.running.items()):
            if trial.id in self._silence:
                self._silence[trial.id] += passed
                if hang_seconds is not None and self._silence[trial.id] > hang_seconds:
                    self._ray.cancel(task, force=True)
                    del self.running[task], self._silence[trial.id]
                    ended.append(trial)
        return ended

    def ended(self) -> list[tuple[Trial, "Outcome | str"]]:
        """Return the trials that have ended since the last call, with their outcomes or how they died."""
        ready, _ = self._ray.wait(list(self.running), timeout=POLL_SECONDS)
        if ready:  # all that are, and not just the first
            ready, _ = self._ray.wait(list(self.running), num_returns=len(self.running), timeout=0)
        for task in ready:
            self._silence.pop(self.running[task].id, None)
        return [(self.running.pop(task), self._outcome(task)) for task in ready]

    def _outcome(self, task: Any) -> "Outcome | str":
        errors = self._ray.exceptions
        try:
            content = self._ray.get(task)
        except errors.RayTaskError as error:  # raised around the trial: normbench is not there, a full disk
            return Failure(str(error))
        except errors.RayError as error:
            return f"the task ended with {type(error).__name__}"
        if content is None:
            return "the task stopped unasked"
        outcome: Outcome = pickle.loads(content)
        return outcome

    def dismiss(self, report: "Report") -> None:
        """Tell all tasks to stop, give them time to save, and cancel the others.

        Raises:
            Unwritable: a state could not be saved.
        """
        unwritable: Unwritable | None = None
        with contextlib.suppress(self._ray.exceptions.RayError):
            self._ray.get(self._desk.stop.remote())
            if self.running:
                running = list(self.running)
                ready, late = self._ray.wait(running, num_returns=len(running), timeout=PATIENCE_SECONDS)
                for outcome in map(self._outcome, ready):
                    if isinstance(outcome, Failure) and outcome.unwritable:
                        unwritable = outcome.unwritable
                for task in late:
                    self._ray.cancel(task, force=True)
                    if (trial := self.running[task]).id in self._silence:  # it has begun
                        report(trial, {"warning": CUT_OFF.format(trial.id)})
            self._ray.kill(self._desk)
        if unwritable:
            raise unwritable


class _Desk:
    """An actor on the runner's node that takes events of tasks and tells them whether to stop."""

    def __init__(self) -> None:
        self._news: list[tuple[Trial, dict[str, Any]]] = []
        self._stopped = False

    def stopped(self) -> bool:
        """Return whether trials are to stop."""
        return self._stopped

    def tell(self, trial: Trial, event: dict[str, Any]) -> bool:
        """Store an event and return whether to stop."""
        self._news.append((trial, event))
        return self._stopped

    def news(self) -> list[tuple[Trial, dict[str, Any]]]:
        """Return all events since the last call."""
        news, self._news = self._news, []
        return news

    def stop(self) -> None:
        """Tell every task to stop from now on."""
        self._stopped = True


def _attempt(work: "Work", trial: Trial, desk: Any, luggage: "Luggage") -> bytes | None:
    """Run a trial as a Ray task."""
    import ray

    def tell(event: dict[str, Any]) -> bool:
        try:
            return bool(ray.get(desk.tell.remote(trial, event)))
        except ray.exceptions.RayError:  # the runner has died
            return True

    if ray.get(desk.stopped.remote()):
        return None
    for path, size, content in luggage:
        _unpack(path, size, content, ray.get)
    return packed(work, trial, tell)


def _packed_up(files: Sequence[Path]) -> "Luggage":
    """Put files into Ray's object store, from which each node fetches them at most once."""
    import numpy as np
    import ray

    contents = [(path, np.fromfile(path, np.uint8)) for path in files]
    return [
        (path, content.size, content.tobytes() if content.size <= FEW_BYTES else ray.put(content))
        for path, content in contents
    ]


def _unpack(path: Path, size: int, content: Any, fetch: Callable[[Any], Any]) -> None:
    """Write a file to the same path of this node, if it is not there. Its reader checks every byte."""

    def is_there() -> bool:
        exists = path.exists() and path.stat().st_size == size
        return exists and (not isinstance(content, bytes) or path.read_bytes() == content)

    if not is_there():
        with locked(path.parent, "--data DIR", lambda _: None):  # the first task of a node fetches
            if not is_there():
                write_atomically(path, content if isinstance(content, bytes) else fetch(content).tobytes())


@contextlib.contextmanager
def _connected(address: str | None, cpus: int | None) -> Iterator[None]:
    """Connect to the cluster at ``address``, or to a private Ray."""
    settings = {"RAY_USAGE_STATS_ENABLED": "0"} | (PRIVATE if address is None else {})
    os.environ.update({key: value for key, value in settings.items() if key not in os.environ})
    if address is not None:
        _must_answer(address)
    import ray

    with contextlib.ExitStack() as after:
        options: dict[str, Any] = {"address": address}
        if address is None:
            options = {"address": "local", "num_cpus": cpus, "object_store_memory": OBJECTS_BYTES}
            options |= {"_temp_dir": after.enter_context(_short_directory()), "include_dashboard": False}
        handler = signal.getsignal(signal.SIGTERM)
        try:
            with held_back([signal.SIGHUP]):  # a lost terminal ends its processes when the trials have saved
                ray.init(**options, log_to_driver=False, logging_level=logging.ERROR)
        except (ConnectionError, ValueError) as error:
            raise CannotExecute(f"executor ray: {str(error).partition(chr(10))[0]}") from None
        after.callback(ray.shutdown)
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, handler)  # which Ray has replaced
        yield


def _must_answer(address: str) -> None:
    """Connect to ``HOST:PORT`` once; Ray resolves other forms of an address.

    Raises:
        CannotExecute: nobody answers.
    """
    host, _, port = address.rpartition(":")
    if host and port.isdecimal() and "/" not in host:
        try:
            socket.create_connection((host.strip("[]"), int(port)), ANSWER_SECONDS).close()
        except (OSError, OverflowError) as error:
            raise CannotExecute(f"executor ray: nobody answers at {address} ({error})") from None


@contextlib.contextmanager
def _short_directory() -> Iterator[str]:
    """Make a temporary directory whose path is short enough for Ray's sockets."""
    usual = tempfile.gettempdir()
    directory = tempfile.mkdtemp(prefix="normbench-", dir=usual if len(usual) < LONGEST else "/tmp")
    try:
        yield directory
    finally:
        shutil.rmtree(directory, ignore_errors=True)
