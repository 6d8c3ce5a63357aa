"""One Slurm job a trial, by submitit, in arrays; the runner and all nodes share a file system.

A job is warned before its time limit and before preemption. Its trial then saves its state, the job is
requeued, and the trial goes on from there, any number of times without the loss of an attempt. Slurm itself
requeues jobs whose node has died.
"""

import contextlib
import json
import os
import pickle
import shutil
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from normbench.config.catalog.executors import CannotExecute
from normbench.config.trial import Trial
from normbench.files import Unwritable
from normbench.records import Failure
from normbench.sweep.executors.retry import Attempts, packed
from normbench.sweep.placement import Placement

if TYPE_CHECKING:
    from normbench.config.catalog.executors import Outcome, Report, Work

POLL_SECONDS = 0.9
QUEUE_SECONDS = 5.0  # between two calls of squeue
GRACE_SECONDS = 5.0  # until a result is visible here, on a slow file system
PATIENCE_SECONDS = 4.0  # for jobs to save their state when they are told to stop
WARNING_SECONDS = 90  # before a job's time is over; not more than half of it
ARRAY = 1000  # jobs; Slurm's usual limit
RUNNING = ("RUNNING", "SIGNALING")  # the latter until Slurm knows that its warning has arrived
WARNINGS = (signal.SIGUSR2, signal.SIGTERM)  # before the time limit; at preemption and cancellation


def execute(
    work: "Work",
    trials: Sequence[Trial],
    placement: Placement,
    *,
    report: "Report",
    stop: Callable[[], bool],
    directory: Path,
    **options: Any,
) -> Generator[tuple[Trial, "Outcome"]]:
    """Run trials as Slurm jobs; see :mod:`normbench.config.catalog.executors`.

    Pickles, news and logs of jobs go to ``directory``.

    Raises:
        CannotExecute: there is no Slurm here, or it refuses the jobs.
        Unwritable: a job that was told to stop could not save its state.
    """
    if not trials or stop():
        return
    hang_seconds = placement.hang_seconds
    queue = _Queue(work, directory, placement.workers, _parameters(placement.cores, **options))
    attempts = Attempts(trials)
    try:
        queue.clear()
        while attempts.waiting or queue.jobs:
            if stop():
                return
            queue.submit(attempts.waiting)
            ended = queue.ended()
            for trial, event in queue.news():
                report(trial, event)
            for job, end in ended:
                queue.forget(job)
                outcome = attempts.died(job.trial, end) if isinstance(end, str) else end
                if outcome:
                    yield job.trial, outcome
            for trial in queue.hanging(hang_seconds):
                if failure := attempts.hung(trial, "", hang_seconds or 0.0):
                    yield trial, failure
            if not ended:
                time.sleep(POLL_SECONDS)
    finally:
        queue.close()


def _parameters(
    cores: int,
    *,
    minutes: int,
    partition: str | None,
    account: str | None,
    memory_gb: int | None,
    gpus: int,
    **_: Any,
) -> dict[str, Any]:
    """Return the parameters of submitit."""
    requests = {"partition": partition, "account": account, "gpus_per_node": gpus or None}
    requests["mem"] = None if memory_gb is None else f"{memory_gb}GB"
    return {key: value for key, value in requests.items() if value is not None} | {
        "job_name": "normbench",
        "wckey": None,  # submitit would set its name
        "time": minutes,
        "signal_delay_s": min(WARNING_SECONDS, 30 * minutes),
        "cpus_per_task": cores,
        "srun_args": ["--cpus-per-task", str(cores)],  # which srun does not take over since Slurm 22.05
        "stderr_to_stdout": True,
        "additional_parameters": {"requeue": True},
    }


@dataclass
class _Job:
    """A submitted trial.

    Attributes:
        files: paths of submitit.
        news: the file to which the job appends events.
        read: bytes of ``news`` that have been read.
        lost: when it was first absent from the queue.
        silence: seconds since its last event; None while it waits or has sent none.
    """

    trial: Trial
    id: str
    files: Any
    news: Path
    read: int = 0
    lost: float | None = None
    silence: float | None = None


class _Queue:
    """The submitted jobs of a runner."""

    def __init__(
        self, work: "Work", directory: Path, workers: int | None, parameters: dict[str, Any]
    ) -> None:
        self.jobs: dict[str, _Job] = {}
        self._work, self._directory, self._workers = work, directory, workers
        self._parameters = parameters
        self._queried = self._looked_at = 0.0

    def clear(self) -> None:
        """Cancel the jobs of an earlier runner that died, as nobody would collect their results.

        Raises:
            CannotExecute: there is no Slurm here.
        """
        if (queued := _queued()) is None:
            raise CannotExecute(
                "executor slurm: squeue gives no answer here; run this where jobs are submitted"
            )
        left_over = {path.name.rpartition("_")[0] for path in self._directory.glob("*_submitted.pkl")}
        if left_over & queued.keys():
            _cancel(left_over & queued.keys())
            while left_over & (_queued() or {}).keys():
                time.sleep(POLL_SECONDS)
        shutil.rmtree(self._directory, ignore_errors=True)
        self._directory.mkdir(parents=True, exist_ok=True)

    def submit(self, waiting: deque[Trial]) -> None:
        """Submit as many trials as may be queued: an array at first, then one for each job that ends."""
        limit = ARRAY if self._workers is None or not self.jobs else min(self._workers, ARRAY)
        batch = [waiting.popleft() for _ in range(min(len(waiting), limit - len(self.jobs)))]
        if not batch:
            return
        import submitit

        executor = submitit.SlurmExecutor(self._directory)
        executor.update_parameters(**self._parameters, array_parallelism=self._workers or ARRAY)
        try:
            with executor.batch():
                submitted = [
                    executor.submit(_attempt, self._work, trial, self._news_of(trial)) for trial in batch
                ]
        except (submitit.core.utils.FailedJobError, submitit.core.utils.FailedSubmissionError) as error:
            raise CannotExecute(f"executor slurm: {' '.join(str(error).split())}") from None
        for trial, job in zip(batch, submitted, strict=True):
            self.jobs[job.job_id] = _Job(trial, job.job_id, job.paths, self._news_of(trial))

    def news(self) -> list[tuple[Trial, dict[str, Any]]]:
        """Return the events of jobs since the last call."""
        events = []
        for job in self.jobs.values():
            with contextlib.suppress(FileNotFoundError), job.news.open("rb") as file:
                file.seek(job.read)
                if complete := file.read().rpartition(b"\n")[0]:
                    job.read += len(complete) + 1
                    job.silence = 0.0
                    events += [(job.trial, json.loads(line)) for line in complete.splitlines()]
        return events

    def ended(self) -> list[tuple[_Job, "Outcome | str"]]:
        """Return the jobs that have ended, each with its outcome or how it ended without one."""
        names = {entry.name for entry in os.scandir(self._directory)}
        ended: list[tuple[_Job, Outcome | str]] = [
            (job, _outcome(job.files.result_pickle))
            for job in self.jobs.values()
            if job.files.result_pickle.name in names
        ]
        now = time.monotonic()
        if now - self._queried < QUEUE_SECONDS or (queued := _queued()) is None:
            return ended
        self._queried = now
        with_outcome = {job.id for job, _ in ended}
        for job in self.jobs.values():
            if job.id in queued:
                job.lost = None
                if queued[job.id] not in RUNNING:
                    job.silence = None
            elif job.lost is None:
                job.lost = now
            elif job.id not in with_outcome and now - job.lost > GRACE_SECONDS:
                ended.append((job, f"the Slurm job left no result (its last words: {job.files.stdout})"))
        return ended

    def hanging(self, hang_seconds: float | None) -> list[Trial]:
        """End running jobs without an event for so long since their first one, and return their trials."""
        now = time.monotonic()
        # time in which the runner was stopped does not count
        passed, self._looked_at = min(now - self._looked_at, 5 * POLL_SECONDS), now
        ended = []
        for job in list(self.jobs.values()):
            if job.silence is not None and hang_seconds is not None:
                job.silence += passed
                if job.silence > hang_seconds:
                    _cancel([job.id], "--full", "--signal=KILL")
                    self.forget(job)
                    ended.append(job.trial)
        return ended

    def forget(self, job: _Job) -> None:
        """Remove a job that has ended; its log stays if there is no result."""
        del self.jobs[job.id]
        job.files.submitted_pickle.unlink(missing_ok=True)
        job.news.unlink(missing_ok=True)
        if job.files.result_pickle.exists():
            job.files.stdout.unlink(missing_ok=True)
            job.files.result_pickle.unlink()

    def close(self) -> None:
        """Cancel all jobs, give running ones time to save, and remove all files but logs of jobs that died.

        Raises:
            Unwritable: a state could not be saved.
        """
        unwritable: Unwritable | None = None
        if self.jobs:
            _cancel(self.jobs)
            deadline = time.monotonic() + PATIENCE_SECONDS
            while (left := self.jobs.keys() & (_queued() or {}).keys()) and time.monotonic() < deadline:
                time.sleep(min(POLL_SECONDS, PATIENCE_SECONDS))
            for job in list(self.jobs.values()):
                outcome = _outcome(path) if (path := job.files.result_pickle).exists() else None
                if isinstance(outcome, Failure) and outcome.unwritable:
                    unwritable = outcome.unwritable
                if job.id not in left:
                    job.files.stdout.unlink(missing_ok=True)
                    self.forget(job)
        if not self.jobs and not any(self._directory.glob("*.out")):
            shutil.rmtree(self._directory, ignore_errors=True)
        if unwritable:
            raise unwritable

    def _news_of(self, trial: Trial) -> Path:
        return self._directory / f"{trial.id}.news"


def _queued() -> dict[str, str] | None:
    """Return the states of the user's jobs by id; None if Slurm does not answer."""
    try:
        done = subprocess.run(
            ["squeue", "--me", "--array", "--noheader", "--format=%i %T"], capture_output=True, text=True
        )
    except FileNotFoundError:
        return None
    return dict(line.split() for line in done.stdout.splitlines()) if done.returncode == 0 else None


def _cancel(ids: Iterable[str], *how: str) -> None:
    """Cancel jobs: Slurm sends SIGTERM, and SIGKILL some 30 seconds later."""
    subprocess.run(["scancel", "--quiet", *how, *ids], capture_output=True)


def _outcome(path: Path) -> "Outcome":
    """Read the outcome that a job has written."""
    kind, content = pickle.loads(path.read_bytes())
    outcome: Outcome = pickle.loads(content) if kind == "success" else Failure(content)
    return outcome


def _attempt(work: "Work", trial: Trial, news: Path) -> bytes:
    """Run a trial as a Slurm job."""
    warned: list[int] = []
    for number in WARNINGS:
        signal.signal(number, lambda number, _: warned.append(number))

    def tell(event: dict[str, Any]) -> bool:
        with news.open("ab") as file:
            file.write(json.dumps(event).encode() + b"\n")
        return bool(warned)

    outcome = packed(work, trial, tell)
    if outcome is not None:
        return outcome
    # A job that is cancelled or requeued by Slurm is not in a running state any more. A job at its time limit
    # is, and must requeue itself: its end within the time to save would be final.
    job = os.environ["SLURM_JOB_ID"]
    while (state := _state(job)) is None:  # Slurm is busy, perhaps with the warnings of other jobs
        time.sleep(POLL_SECONDS)
    if state in RUNNING:
        subprocess.run(["scontrol", "requeue", job], check=True)
    sys.exit(1)  # without a result


def _state(job: str) -> str | None:
    """Return the state of a job; None if Slurm does not answer."""
    words = ["squeue", f"--jobs={job}", "--noheader", "--format=%T"]
    done = subprocess.run(words, capture_output=True, text=True)
    return done.stdout.strip() if done.returncode == 0 else None
