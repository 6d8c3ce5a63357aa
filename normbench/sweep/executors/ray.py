"""One Ray task a trial. Trials wait here and not with Ray: what has not begun can be taken back.

Ray retries nothing, as it cannot tell whose fault a death was. It schedules by ``threads`` and ``gpus``. What
is on the nodes: normbench, at the same version; the data set, which is sent to nodes that lack it; and, if a
trial shall go on from its checkpoint when its node has died, a file system that holds the results.
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
QUEUED = 2  # tasks at Ray for each that can run, so that none of its workers waits for us
PRIVATE = {  # what a Ray of our own is told, unless the user's environment says something else
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # what makes it listen on the loopback device only
    "RAY_enable_metrics_collection": "0",
    "RAY_AUTH_MODE": "token",  # other users of this machine shall not run their code as ours
    "RAY_AUTH_TOKEN": secrets.token_hex(32),
}
OBJECTS_BYTES = 100 * 2**20  # of an instance of our own, which ships records and no data
FEW_BYTES = 2**16
ANSWER_SECONDS = 5.0  # for the head of a cluster; Ray itself would ask for minutes on end
LONGEST = 40  # characters of a temporary directory; the sockets below it may have 107


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
    """The tasks at Ray, and the desk that they report to."""

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
        self._silence: dict[str, float] = {}  # of trials that have told something, in seconds
        self._looked_at = monotonic()

    def room(self) -> int:
        """How many trials the nodes that are alive can run at once."""
        nodes = [node["Resources"] for node in self._ray.nodes() if node["Alive"]]
        needs = [(what, amount) for what, amount in self._needs.items() if amount]
        return sum(min(int(node.get(what, 0) / amount) for what, amount in needs) for node in nodes)

    def begin(self, trial: Trial) -> None:
        """Hand Ray a trial."""
        self.running[self._task.remote(self._work, trial, self._desk, self._luggage)] = trial

    def news(self) -> list[tuple[Trial, dict[str, Any]]]:
        """What tasks have told since the last call."""
        found: list[tuple[Trial, dict[str, Any]]] = self._ray.get(self._desk.news.remote())
        running = {trial.id for trial in self.running.values()}  # a task that ended may have left some behind
        self._silence |= {trial.id: 0.0 for trial, _ in found if trial.id in running}
        return found

    def hanging(self, hang_seconds: float | None) -> list[Trial]:
        """End the tasks that have told nothing for so long since their first news; whose they were.

        Before that, a task may wait at Ray for a core. A runner that was itself stopped has not listened.
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
        """The tasks that have ended since the last call: each with its outcome, or what killed it."""
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
        """Tell all tasks to stop, give them time to save, and end what is left.

        Raises:
            Unwritable: a state could not be saved.
        """
        unwritable: Unwritable | None = None
        with contextlib.suppress(self._ray.exceptions.RayError):
            self._ray.get(self._desk.stop.remote())
            if self.running:
                running = list(self.running)
                ready, deaf = self._ray.wait(running, num_returns=len(running), timeout=PATIENCE_SECONDS)
                for outcome in map(self._outcome, ready):
                    if isinstance(outcome, Failure) and outcome.unwritable:
                        unwritable = outcome.unwritable
                for task in deaf:
                    self._ray.cancel(task, force=True)
                    if (trial := self.running[task]).id in self._silence:  # it has begun
                        report(trial, {"warning": CUT_OFF.format(trial.id)})
            self._ray.kill(self._desk)
        if unwritable:
            raise unwritable


class _Desk:
    """Where tasks on any node bring news, and hear whether to stop: an actor on the runner's node."""

    def __init__(self) -> None:
        self._news: list[tuple[Trial, dict[str, Any]]] = []
        self._stopped = False

    def stopped(self) -> bool:
        """Whether trials shall stop."""
        return self._stopped

    def tell(self, trial: Trial, event: dict[str, Any]) -> bool:
        """Take in news."""
        self._news.append((trial, event))
        return self._stopped

    def news(self) -> list[tuple[Trial, dict[str, Any]]]:
        """Give them out, once."""
        news, self._news = self._news, []
        return news

    def stop(self) -> None:
        """From now on, everybody who asks shall stop."""
        self._stopped = True


def _attempt(work: "Work", trial: Trial, desk: Any, luggage: "Luggage") -> bytes | None:
    """What a task does."""
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
    """The files, where Ray can send them from; each travels to a node at most once, as the node keeps it."""
    import numpy as np
    import ray

    contents = [(path, np.fromfile(path, np.uint8)) for path in files]
    return [
        (path, content.size, content.tobytes() if content.size <= FEW_BYTES else ray.put(content))
        for path, content in contents
    ]


def _unpack(path: Path, size: int, content: Any, fetch: Callable[[Any], Any]) -> None:
    """Have the file at the same path of this node. Whoever reads it checks every byte."""

    def is_there() -> bool:
        found = path.exists() and path.stat().st_size == size
        return found and (not isinstance(content, bytes) or path.read_bytes() == content)

    if not is_there():
        with locked(path.parent, "--data DIR", lambda _: None):  # of all tasks of a node, one fetches
            if not is_there():
                write_atomically(path, content if isinstance(content, bytes) else fetch(content).tobytes())


@contextlib.contextmanager
def _connected(address: str | None, cpus: int | None) -> Iterator[None]:
    """A connection to the cluster at ``address``, or a Ray of our own."""
    told = {"RAY_USAGE_STATS_ENABLED": "0"} | (PRIVATE if address is None else {})
    os.environ.update({key: value for key, value in told.items() if key not in os.environ})
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
            signal.signal(signal.SIGTERM, handler)  # which Ray has taken; the runner decides what it means
        yield


def _must_answer(address: str) -> None:
    """Knock at ``HOST:PORT``; what else an address may be, Ray looks up.

    Raises:
        CannotExecute: nobody is there.
    """
    host, _, port = address.rpartition(":")
    if host and port.isdecimal() and "/" not in host:
        try:
            socket.create_connection((host.strip("[]"), int(port)), ANSWER_SECONDS).close()
        except (OSError, OverflowError) as error:
            raise CannotExecute(f"executor ray: nobody answers at {address} ({error})") from None


@contextlib.contextmanager
def _short_directory() -> Iterator[str]:
    """A temporary directory, with a path to which Ray can add the names of its sockets."""
    usual = tempfile.gettempdir()
    directory = tempfile.mkdtemp(prefix="normbench-", dir=usual if len(usual) < LONGEST else "/tmp")
    try:
        yield directory
    finally:
        shutil.rmtree(directory, ignore_errors=True)
