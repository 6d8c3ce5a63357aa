"""The contract of every executor, by the table itself; then what only separate processes can promise."""

import contextlib
import ctypes
import dataclasses
import errno
import itertools
import multiprocessing
import os
import pickle
import re
import select
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Generator, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from conftest import place_of

from normbench.config import experiment
from normbench.config.catalog.executors import EXECUTORS
from normbench.config.trial import Trial
from normbench.files import Unwritable
from normbench.records import Failure, Interrupted, Record
from normbench.sweep.executors import pool as pool_module
from normbench.sweep.executors import retry as attempts_module
from normbench.sweep.executors import worker as workers_module
from normbench.sweep.placement import Placement

pytestmark = pytest.mark.slow

Outcome = Record | Failure
Tell = Callable[[dict[str, Any]], bool]
Execute = Callable[..., Generator[tuple[Trial, Outcome]]]
PATIENCE = 30.0  # seconds until a wait that should end at once is given up


# ---- work: it must be importable where the trials run, and needs no torch


def record_of(trial: Trial, **diagnostics: Any) -> Record:
    return Record(
        schema=1, trial=trial, status="diverged", epochs=(), images_per_second=None, seconds=0.0,
        peak_memory_bytes=1, diagnostics=diagnostics, data="none", provenance={"pid": os.getpid()},
    )  # fmt: skip


def with_its_queues(trial: Trial, tell: Tell, seats: int = 1) -> Record:
    return record_of(trial, queues=os.environ.get("CUDA_DEVICE_MAX_CONNECTIONS"))


def trivial(trial: Trial, tell: Tell, seats: int = 1) -> Record:
    tell({"epoch": trial.seed, "images": 1})
    return record_of(trial, seed=trial.seed)


def on_its_device(trial: Trial, tell: Tell, *, device: str = "nowhere", seats: int = 1) -> Record:
    return record_of(trial, device=device)


def meets(trial: Trial, tell: Tell, *, there: Path, expected: int, seats: int, device: str = "") -> Record:
    """Waits for the others."""
    (there / str(trial.seed)).touch()
    while len(list(there.iterdir())) < expected:
        tell({})
        select.select([], [], [], 0.01)
    return record_of(trial, device=device, seats=seats)


def dies_when_all_are_there(trial: Trial, tell: Tell, *, there: Path, seats: int = 1) -> Record:
    """Seed 1 does, every time; the other two hold out for its first death, and end at the second attempt."""
    attempt = len(list(there.glob(f"{trial.seed}.*")))
    (there / f"{trial.seed}.{attempt}").touch()
    while len(list(there.glob("*.0"))) < 3 or (trial.seed != 1 and not attempt):
        tell({})
        select.select([], [], [], 0.01)
    if trial.seed == 1:
        os._exit(7)
    return record_of(trial)


def dies_on_a_device(trial: Trial, tell: Tell, *, device: str, attempts: Path, seats: int = 1) -> Record:
    """Seed 1 does once; seed 0 holds out until it is back."""
    if trial.seed == 1:
        with attempts.open("a") as file:
            file.write(f"{device} ")
        if len(attempts.read_text().split()) == 1:
            os._exit(7)
    while not attempts.exists() or len(attempts.read_text().split()) < 2:
        tell({})
        select.select([], [], [], 0.01)
    return record_of(trial)


def spoils(trial: Trial, tell: Tell, *, spoilt: Path, device: str = "", seats: int = 1) -> Record:
    """Seed 1 leaves its process such that all others fail in it."""
    mark = spoilt / str(os.getpid())
    if trial.seed == 1:
        mark.touch()
    if mark.exists():
        raise RuntimeError("spoilt by 1")
    return record_of(trial)


class Unpicklable(Exception):
    def __init__(self) -> None:
        super().__init__("cannot cross")
        self.lock = threading.Lock()


def odd_ones_raise(trial: Trial, tell: Tell, seats: int = 1) -> Record:
    if trial.seed % 4 == 1:
        raise ValueError(f"seed {trial.seed}")
    if trial.seed % 4 == 3:
        raise Unpicklable
    return record_of(trial)


def with_a_result_that_does_not_pickle(trial: Trial, tell: Tell, seats: int = 1) -> Record:
    return record_of(trial).model_copy(update={"diagnostics": {"lock": threading.Lock()}})


def until_told_to_stop(trial: Trial, tell: Tell, *, saved: Path, seats: int = 1) -> Record:
    while not tell({"epoch": 1}):
        select.select([], [], [], 0.01)
    (saved / str(trial.seed)).touch()
    raise Interrupted(trial.id)


def one_ends_and_the_others_go_on(trial: Trial, tell: Tell, *, saved: Path, seats: int = 1) -> Record:
    return trivial(trial, tell) if trial.seed == 0 else until_told_to_stop(trial, tell, saved=saved)


def saves_often(trial: Trial, tell: Tell, **means: Any) -> Record:
    """Training that reports and saves after every update."""
    from normbench.sweep import run
    from normbench.training import train

    train.REPORT_SECONDS, train.CHECKPOINT_SECONDS = 0.0, -1.0
    return run.work(trial, tell, **means)


def deaf(trial: Trial, tell: Tell, seats: int = 1) -> Record:
    """Never asks whether to stop."""
    tell({"epoch": 1})
    while True:
        select.select([], [], [], 60)


def cannot_save(trial: Trial, tell: Tell, seats: int = 1) -> Record:
    """Hears that it shall stop, and finds the disk full."""
    while not tell({"epoch": 1}):
        select.select([], [], [], 0.05)
    raise Unwritable(errno.ENOSPC, "No space left on device", f"{trial.id}.0.ckpt")


def dies(
    trial: Trial, tell: Tell, *, attempts: Path, signal_: int | None, times: int, seats: int = 1
) -> Record:
    """Seed 1 takes its process with it, the first ``times`` times."""
    if trial.seed == 1:
        with attempts.open("a") as file:
            file.write("x")
        if len(attempts.read_text()) <= times:
            if signal_ is None:
                os._exit(7)
            signal.raise_signal(signal_)  # of this thread
    return trivial(trial, tell)


def hangs(trial: Trial, tell: Tell, *, attempts: Path, how: str, times: int, seats: int = 1) -> Record:
    """Seed 1 makes no progress, the first ``times`` times."""
    if trial.seed == 1:
        tell({"epoch": 1})
        with attempts.open("a") as file:
            file.write("x")
        if len(attempts.read_text()) <= times:
            HANGS[how]()
    return trivial(trial, tell)


HANGS: dict[str, Callable[[], object]] = {
    "asleep": lambda: time.sleep(3600),
    "in C, which lets nobody else run": lambda: ctypes.PyDLL(None).sleep(3600),
    "in a deadlock": lambda: (lock := threading.Lock()).acquire() and lock.acquire(),
    "stopped": lambda: os.kill(os.getpid(), signal.SIGSTOP),
}


def leaves(trial: Trial, tell: Tell, *, how: str, seats: int = 1) -> Record:
    """Seed 1 does, every time."""
    if trial.seed == 1:
        raise SystemExit(3) if how == "exits" else KeyboardInterrupt
    return record_of(trial)


def outlasts(trial: Trial, tell: Tell, *, device: str, seats: int = 1) -> Record:
    """In company, seed 0 raises and seed 1 ends a little later, having said where it was."""
    if seats > 1 and trial.seed == 0:
        raise RuntimeError("on a device")
    if seats > 1:
        for _ in range(10):
            tell({})
            select.select([], [], [], 0.05)
        tell({"pid": os.getpid()})
    return record_of(trial)


def mostly_listens(trial: Trial, tell: Tell, *, deaf_ones: int, saved: Path, seats: int) -> Record:
    return deaf(trial, tell) if trial.seed < deaf_ones else until_told_to_stop(trial, tell, saved=saved)


def big(trial: Trial, tell: Tell, seats: int = 1) -> Record:
    """More than a pipe holds."""
    tell({"epoch": 1, "much": "x" * 1_000_000})
    return record_of(trial, much="x" * 1_000_000)


# ---- the contract


@pytest.fixture
def trials(tiny: Callable[..., Trial]) -> Callable[[int], list[Trial]]:
    return lambda count: [tiny(seed=seed) for seed in range(count)]


TOGETHER = "pool, three to a process"


def placed(
    execute: Execute, work: Callable[..., Record], trials: list[Trial], **means: Any
) -> Generator[tuple[Trial, Outcome]]:
    """Call an executor, with a placement of those means that are fields of one."""
    fields = {field.name for field in dataclasses.fields(Placement)} & means.keys()
    placement = Placement(**{field: means.pop(field) for field in fields})
    return execute(work, trials, placement, **means)


def executor(name: str, request: pytest.FixtureRequest) -> Execute:
    """As a sweep calls it, with a cluster behind it where it needs one."""
    if name == TOGETHER:
        return partial(executor("pool", request), trials_per_process=3)
    choice = experiment.Execute(executor=place_of(name, request)).executor
    directory = request.getfixturevalue("tmp_path") / name
    return partial(placed, EXECUTORS[name].load(), directory=directory, **choice.options)


@pytest.fixture(params=[*EXECUTORS, TOGETHER])
def execute(request: pytest.FixtureRequest) -> Execute:
    return executor(request.param, request)


@pytest.fixture(params=[*(name for name in EXECUTORS if name != "serial"), TOGETHER])
def apart(request: pytest.FixtureRequest) -> Execute:
    """For promises that one process cannot make."""
    return executor(request.param, request)


@pytest.fixture(params=["pool", TOGETHER])
def pool(request: pytest.FixtureRequest) -> Execute:
    """For promises about child processes of the runner."""
    return executor(request.param, request)


def name_of(execute: Execute) -> str:
    assert isinstance(execute, partial)
    return str(execute.args[0].__module__).rpartition(".")[2]


@pytest.fixture(autouse=True)
def _nothing_is_left(request: pytest.FixtureRequest) -> Iterator[None]:
    """No child process, running or dead, and no open pipe. (Ray keeps sockets while it is loaded.)"""
    before = _open_files()
    yield
    assert multiprocessing.active_children() == []
    with contextlib.suppress(
        ChildProcessError
    ):  # multiprocessing's resource tracker may be one, and it lives
        assert os.waitpid(-1, os.WNOHANG) == (0, 0)
    if "[ray" not in request.node.name:
        assert [kind for kind in _open_files() - before if kind.startswith("socket")] == []


def _open_files() -> Counter[str]:
    """What this process has open, where the system shows it."""
    files: Counter[str] = Counter()
    for link in Path("/proc/self/fd").glob("*"):
        with contextlib.suppress(OSError):
            files[str(link.readlink())] += 1
    return files


def outcomes(
    execute: Execute, work: Callable[..., Record], trials: list[Trial], workers: int = 2, **options: Any
) -> dict[int, Outcome]:
    """All of them, by seed."""
    found = list(
        execute(work, trials, workers=workers, report=lambda *_: None, stop=lambda: False, **options)
    )
    assert Counter(trial.id for trial, _ in found) == Counter(trial.id for trial in trials)
    return {trial.seed: outcome for trial, outcome in found}


class TestEveryExecutor:
    def test_every_trial_comes_out_once_with_its_own_record(
        self, execute: Execute, trials: Callable[[int], list[Trial]]
    ) -> None:
        for seed, outcome in outcomes(execute, trivial, trials(7)).items():
            assert isinstance(outcome, Record)
            assert outcome.trial.seed == seed
            assert outcome.diagnostics == {"seed": seed}

    def test_no_trials_are_no_work(self, execute: Execute) -> None:
        assert outcomes(execute, trivial, []) == {}

    def test_an_exception_is_a_failure_with_its_traceback_and_ends_nothing_else(
        self, execute: Execute, trials: Callable[[int], list[Trial]]
    ) -> None:
        found = outcomes(execute, odd_ones_raise, trials(6))

        assert [type(found[seed]) for seed in range(6)] == [Record, Failure] * 3
        for seed, reason in (1, "ValueError: seed 1"), (5, "ValueError: seed 5"):
            failure = found[seed]
            assert isinstance(failure, Failure)
            assert failure.reason == reason
            assert "in odd_ones_raise" in failure.traceback
        unpicklable = found[3]
        assert isinstance(unpicklable, Failure)
        assert unpicklable.reason.endswith("Unpicklable: cannot cross")

    def test_news_reach_the_caller_in_order(
        self, execute: Execute, trials: Callable[[int], list[Trial]]
    ) -> None:
        news: list[tuple[int, dict[str, Any]]] = []

        def report(trial: Trial, event: dict[str, Any]) -> None:
            news.append((trial.seed, event))

        for trial, _ in execute(trivial, trials(5), workers=2, report=report, stop=lambda: False):
            assert (trial.seed, {"epoch": trial.seed, "images": 1}) in news, "before the trial's end"
        assert len(news) == 5

    def test_more_than_a_pipe_holds_gets_through(
        self, execute: Execute, trials: Callable[[int], list[Trial]]
    ) -> None:
        for outcome in outcomes(execute, big, trials(3)).values():
            assert isinstance(outcome, Record)
            assert len(outcome.diagnostics["much"]) == 1_000_000

    def test_stop_ends_it_and_running_trials_save_their_state(
        self, execute: Execute, trials: Callable[[int], list[Trial]], tmp_path: Path
    ) -> None:
        running: set[int] = set()
        saved = tmp_path / "saved"
        saved.mkdir()
        work = partial(until_told_to_stop, saved=saved)

        found = list(
            execute(
                work,
                trials(5),
                workers=2,
                report=lambda trial, _: running.add(trial.seed),
                stop=lambda: len(running) >= (1 if name_of(execute) == "serial" else 2),
            )
        )

        assert found == []
        assert running
        assert {int(path.name) for path in saved.iterdir()} == running

    def test_closing_it_is_stopping_it(
        self, execute: Execute, trials: Callable[[int], list[Trial]], tmp_path: Path
    ) -> None:
        work = partial(one_ends_and_the_others_go_on, saved=tmp_path)
        running = execute(work, trials(4), workers=2, report=lambda *_: None, stop=lambda: False)
        trial, _ = next(running)
        assert trial.seed == 0

        running.close()

        assert list(running) == []

    def test_a_stop_before_the_start_runs_nothing(
        self, execute: Execute, trials: Callable[[int], list[Trial]]
    ) -> None:
        assert list(execute(trivial, trials(3), workers=2, report=pytest.fail, stop=lambda: True)) == []

    def test_many_trivial_trials_all_come_out(
        self, execute: Execute, trials: Callable[[int], list[Trial]]
    ) -> None:
        many = 30 if name_of(execute) == "slurm" else 300  # a job takes a second to start
        assert len(outcomes(execute, trivial, trials(many))) == many


def test_results_are_those_of_the_serial_executor_to_the_last_bit(
    apart: Execute, tiny: Callable[..., Trial], tiny_data: Path, tmp_path: Path
) -> None:
    from test_train import numbers

    from normbench.sweep.run import work

    trials = [tiny(norm="batch", seed=0), tiny(norm="switchable", precision="bf16", seed=1)]
    results = []
    for number, execute in enumerate((partial(placed, EXECUTORS["serial"].load()), apart)):
        checkpoints, placement = (tmp_path / str(number)).joinpath, Placement(device="cpu")
        task = partial(work, data=tiny_data, checkpoints=checkpoints, placement=placement)
        found = outcomes(execute, task, trials, workers=1)
        results.append({seed: numbers(one) for seed, one in found.items() if isinstance(one, Record)})

    assert len(results[0]) == 2
    assert results[0] == results[1]


# ---- what only separate processes can promise


@pytest.mark.parametrize("signal_", [signal.SIGKILL, signal.SIGSEGV, None], ids=["kill", "segfault", "exit"])
def test_a_trial_whose_process_dies_once_is_tried_again_and_disturbs_nobody(
    apart: Execute, trials: Callable[[int], list[Trial]], tmp_path: Path, signal_: int | None
) -> None:
    work = partial(dies, attempts=tmp_path / "attempts", signal_=signal_, times=1)

    found = outcomes(apart, work, trials(6))

    assert all(isinstance(outcome, Record) for outcome in found.values())
    assert (tmp_path / "attempts").read_text() == "xx"


RAY = "the task ended with WorkerCrashedError"
SLURM = r"the Slurm job left no result \(its last words: .*\)"
ENDS = {
    ("pool", signal.SIGKILL): "the worker process was killed by SIGKILL",
    ("pool", signal.SIGSEGV): "the worker process was killed by SIGSEGV",
    ("pool", None): "the worker process ended with exit code 7",
    **dict.fromkeys([("ray", signal.SIGKILL), ("ray", signal.SIGSEGV), ("ray", None)], RAY),
    **dict.fromkeys([("slurm", signal.SIGKILL), ("slurm", signal.SIGSEGV), ("slurm", None)], SLURM),
}


@pytest.mark.parametrize(
    "signal_", [signal.SIGKILL, signal.SIGSEGV, None], ids=["kill", "segmentation fault", "exit"]
)
def test_a_trial_whose_process_always_dies_fails_and_the_others_do_not(
    apart: Execute, trials: Callable[[int], list[Trial]], tmp_path: Path, signal_: signal.Signals | None
) -> None:
    work = partial(dies, attempts=tmp_path / "attempts", signal_=signal_, times=99)

    found = outcomes(apart, work, trials(4))

    failure = found.pop(1)
    assert isinstance(failure, Failure)
    end = ENDS[name_of(apart), signal_] + ", 2 times on this trial"
    assert re.fullmatch(end, failure.reason)
    where = failure.traceback.removesuffix(failure.reason)
    crashed = (name_of(apart), signal_) == ("pool", signal.SIGSEGV)
    assert ("in dies\n" in where) == crashed, "where it crashed"
    assert all(isinstance(outcome, Record) for outcome in found.values())
    assert (tmp_path / "attempts").read_text() == "xx", "one retry and no more"


@pytest.fixture
def hanging(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where ``hangs`` counts its attempts. The clock leaps while one hangs, and not while a worker starts."""
    attempts, ended = tmp_path / "attempts", list[object]()
    hours = itertools.count(0, 3600)
    abort = workers_module.Process.abort

    def counted(process: Any) -> None:
        abort(process)
        ended.append(process)

    def clock() -> float:
        hangs = attempts.exists() and len(attempts.read_text()) > len(ended)
        return time.monotonic() + (next(hours) if hangs else 0)

    monkeypatch.setattr(pool_module, "POLL_SECONDS", 0.02)
    monkeypatch.setattr(workers_module, "STACKS_SECONDS", 0.5)
    monkeypatch.setattr(workers_module, "monotonic", clock)
    monkeypatch.setattr(workers_module.Process, "abort", counted)
    return attempts


@pytest.mark.parametrize("how", HANGS)
def test_a_trial_that_hangs_is_ended_with_its_stacks_and_disturbs_nobody(
    pool: Execute, trials: Callable[[int], list[Trial]], hanging: Path, how: str
) -> None:
    work = partial(hangs, attempts=hanging, how=how, times=99)

    found = outcomes(pool, work, trials(4), workers=1, hang_seconds=60)

    failure = found.pop(1)
    assert isinstance(failure, Failure)
    assert failure.state == "timeout"
    assert failure.reason == "timeout: no step for 60 s, 2 times on this trial"
    assert how == "stopped" or "in hangs\n" in failure.traceback
    assert all(isinstance(outcome, Record) for outcome in found.values())
    assert hanging.read_text() == "xx", "one retry and no more"


def test_a_trial_that_hangs_once_is_tried_again(
    pool: Execute, trials: Callable[[int], list[Trial]], hanging: Path
) -> None:
    work = partial(hangs, attempts=hanging, how="asleep", times=1)

    found = outcomes(pool, work, trials(3), workers=1, hang_seconds=60)

    assert all(isinstance(outcome, Record) for outcome in found.values())
    assert hanging.read_text() == "xx"


@pytest.mark.parametrize("name", ["ray", "slurm"])
def test_what_hangs_on_a_cluster_is_ended_tried_once_more_and_is_then_a_timeout(
    name: str, request: pytest.FixtureRequest, trials: Callable[[int], list[Trial]], tmp_path: Path
) -> None:
    work = partial(hangs, attempts=tmp_path / "attempts", how="asleep", times=99)

    found = outcomes(executor(name, request), work, trials(3), workers=3, hang_seconds=2.0)

    failure = found.pop(1)
    assert isinstance(failure, Failure)
    assert failure.state == "timeout"
    assert failure.reason == "timeout: no step for 2 s, 2 times on this trial"
    assert (tmp_path / "attempts").read_text() == "xx", "one retry and no more"
    assert all(isinstance(outcome, Record) for outcome in found.values())


def test_time_in_which_the_runner_itself_was_stopped_is_no_hang(
    pool: Execute, trials: Callable[[int], list[Trial]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ctrl-Z for an hour: an hour passes between two looks at the workers."""
    hours = itertools.count(0, 3600)
    monkeypatch.setattr(workers_module, "monotonic", lambda: float(next(hours)))
    monkeypatch.setattr("normbench.sweep.executors.retry.RETRIES", 0)

    found = outcomes(pool, trivial, trials(4), hang_seconds=600)

    assert all(isinstance(outcome, Record) for outcome in found.values())


def test_workers_are_as_many_as_asked_for_and_are_used_again(
    pool: Execute, trials: Callable[[int], list[Trial]]
) -> None:
    found = outcomes(pool, trivial, trials(30), workers=2)

    pids = {outcome.provenance["pid"] for outcome in found.values() if isinstance(outcome, Record)}
    assert 1 <= len(pids) <= 2
    assert os.getpid() not in pids


def test_workers_fill_the_devices_evenly(pool: Execute, trials: Callable[[int], list[Trial]]) -> None:
    found = outcomes(pool, on_its_device, trials(6), workers=6, devices=("cuda:0", "cuda:1"))
    single = outcomes(pool, on_its_device, trials(1), workers=1)

    def devices(answers: dict[int, Any]) -> list[str]:
        return [outcome.diagnostics["device"] for outcome in answers.values()]

    assert Counter(devices(found)) == {"cuda:0": 3, "cuda:1": 3}
    assert devices(single) == ["nowhere"]


def test_who_takes_a_dead_workers_place_takes_its_device(
    pool: Execute, trials: Callable[[int], list[Trial]], tmp_path: Path
) -> None:
    work = partial(dies_on_a_device, attempts=tmp_path / "attempts")

    found = outcomes(pool, work, trials(2), devices=("cuda:0", "cuda:1"))

    assert all(isinstance(outcome, Record) for outcome in found.values())
    assert (tmp_path / "attempts").read_text().split() == ["cuda:1", "cuda:1"]


def test_after_an_exception_on_a_device_the_next_trials_get_another_process(
    pool: Execute, trials: Callable[[int], list[Trial]], tmp_path: Path
) -> None:
    """An error of CUDA's stays with its process: whatever comes next there would fail of it too."""
    work = partial(spoils, spoilt=tmp_path)

    found = outcomes(pool, work, trials(6), workers=1, devices=("cuda:0",))

    assert "spoilt by 1" in getattr(found.pop(1), "reason", "")
    assert all(isinstance(outcome, Record) for outcome in found.values())


# ---- several trials to a process


@pytest.fixture
def together(request: pytest.FixtureRequest) -> Execute:
    return executor(TOGETHER, request)


def test_so_many_share_a_process_and_are_told_so(
    together: Execute, trials: Callable[[int], list[Trial]], tmp_path: Path
) -> None:
    found = outcomes(together, partial(meets, there=tmp_path, expected=3), trials(3), workers=3)

    met = [(one.provenance["pid"], one.diagnostics["seats"]) for one in records_of(found)]
    assert met == [(met[0][0], 3)] * 3


def test_those_who_share_processes_fill_the_devices_evenly(
    together: Execute, trials: Callable[[int], list[Trial]], tmp_path: Path
) -> None:
    work = partial(meets, there=tmp_path, expected=4)

    found = outcomes(together, work, trials(4), workers=6, devices=("cuda:0", "cuda:1"))

    met = Counter((one.provenance["pid"], one.diagnostics["device"]) for one in records_of(found))
    assert sorted((device, count) for (_, device), count in met.items()) == [("cuda:0", 2), ("cuda:1", 2)]


def test_of_those_who_shared_a_process_that_died_only_the_culprit_fails(
    together: Execute, trials: Callable[[int], list[Trial]], tmp_path: Path
) -> None:
    work = partial(dies_when_all_are_there, there=tmp_path)

    found = outcomes(together, work, trials(3), workers=3)

    failure = found.pop(1)
    assert isinstance(failure, Failure)
    assert failure.reason == "the worker process ended with exit code 7, 2 times on this trial"
    assert len({one.provenance["pid"] for one in records_of(found)}) == 2, "each has its own in the end"
    assert len(list(tmp_path.glob("1.*"))) == 2


def test_those_who_shared_a_process_with_one_that_hangs_lose_no_attempt(
    together: Execute, trials: Callable[[int], list[Trial]], tmp_path: Path, hanging: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr("normbench.sweep.executors.retry.RETRIES", 0)
    work = partial(hangs, attempts=hanging, how="asleep", times=99)

    found = outcomes(together, work, trials(6), workers=3, hang_seconds=60)

    failure = found.pop(1)
    assert isinstance(failure, Failure)
    assert failure.state == "timeout"
    assert all(isinstance(outcome, Record) for outcome in found.values())


def test_an_exception_in_company_is_tried_again_without_and_it_is_said(
    together: Execute, trials: Callable[[int], list[Trial]], tmp_path: Path
) -> None:
    """It can be the damage that another did; then it is none alone, and else its own."""
    news: list[dict[str, Any]] = []
    given = trials(6)
    work = partial(spoils, spoilt=tmp_path)

    found = dict(
        together(work, given, workers=3, report=lambda _, event: news.append(event), stop=lambda: False)
    )

    failure = found.pop(given[1])
    assert "spoilt by 1" in getattr(failure, "reason", "")
    assert all(isinstance(outcome, Record) for outcome in found.values())
    words = f"{given[1].id} failed in a process that it shared, and is tried again in one of its own: "
    assert any(event.get("warning", "").startswith(words) for event in news)


@pytest.mark.parametrize("how", ["exits", "interrupts"])
def test_what_ends_a_seat_ends_its_process_and_is_noticed(
    pool: Execute, trials: Callable[[int], list[Trial]], how: str
) -> None:
    found = outcomes(pool, partial(leaves, how=how), trials(4), workers=3)

    failure = found.pop(1)
    assert isinstance(failure, Failure)
    code = 3 if how == "exits" else 1
    assert failure.reason == f"the worker process ended with exit code {code}, 2 times on this trial"
    assert how == "exits" or "in leaves\n" in failure.traceback
    assert all(isinstance(outcome, Record) for outcome in found.values())


def test_a_process_that_is_killed_as_it_is_given_up_is_no_trouble(
    together: Execute, trials: Callable[[int], list[Trial]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A trial raised in it on a device, so it is given up; it dies while the last outcome is on its way."""
    with_news = pool_module._Crew.with_news
    doomed: list[int] = []

    def after_its_death(crew: Any) -> Any:
        if doomed:
            pid = doomed.pop()
            select.select([], [], [], 0.3)  # until the outcome is in the pipe
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
            select.select([], [], [], 0.1)
        return with_news(crew)

    def report(trial: Trial, event: dict[str, Any]) -> None:
        doomed.extend([event["pid"]] if "pid" in event else [])

    monkeypatch.setattr(pool_module._Crew, "with_news", after_its_death)
    given = trials(2)
    found = dict(together(outlasts, given, workers=2, report=report, stop=lambda: False, devices=("cuda:0",)))

    assert set(found) == set(given)


@pytest.mark.parametrize("deaf_ones", [0, 1])
def test_at_a_stop_only_who_has_not_saved_is_said_not_to_have(
    together: Execute, trials: Callable[[int], list[Trial]], tmp_path: Path, deaf_ones: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(pool_module, "PATIENCE_SECONDS", 1.0 if deaf_ones else 30.0)
    heard: set[int] = set()
    warnings: list[str] = []
    given = trials(3)

    def report(trial: Trial, event: dict[str, Any]) -> None:
        heard.add(trial.seed)
        warnings.extend([event["warning"]] if "warning" in event else [])

    work = partial(mostly_listens, deaf_ones=deaf_ones, saved=tmp_path)
    list(together(work, given, workers=3, report=report, stop=lambda: len(heard) == 3))

    assert warnings == [attempts_module.CUT_OFF.format(trial.id) for trial in given[:deaf_ones]]
    assert {path.name for path in tmp_path.iterdir()} == {str(seed) for seed in range(deaf_ones, 3)}


# ---- processes that begin before there are trials


def begins_with(mark: Path) -> None:
    (mark / str(os.getpid())).touch()


def never_ends() -> None:
    while True:
        select.select([], [], [], 1.0)


def cannot_be_loaded() -> None:
    raise ImportError("no such thing")


def after_loading(trial: Trial, tell: Tell, *, there: Path, seats: int = 1, device: str = "") -> Record:
    mine = (there / str(os.getpid())).exists()
    return meets(trial, tell, there=there / "seeds", expected=3, seats=seats, device=device).model_copy(
        update={"provenance": {"pid": os.getpid(), "loaded": mine}}
    )


alone = partial(placed, EXECUTORS["pool"].load())


def ahead(processes: int, seats: int, load: Callable[[], None]) -> Any:
    placement = Placement(workers=processes * seats, trials_per_process=seats)
    return EXECUTORS["pool"].begin(placement, load)


@pytest.mark.parametrize(("processes", "seats"), [(3, 1), (1, 3)])
def test_processes_that_began_before_there_were_trials_run_them(
    trials: Callable[[int], list[Trial]], tmp_path: Path, processes: int, seats: int
) -> None:
    (tmp_path / "seeds").mkdir()
    means = {"trials_per_process": seats, "devices": ("cuda:0",), "workers": 3}
    with ahead(processes, seats, partial(begins_with, tmp_path)) as begun:
        children = {child.pid for child in multiprocessing.active_children()}
        found = outcomes(alone, partial(after_loading, there=tmp_path), trials(3), **means, **begun)

    records = records_of(found)
    assert {record.provenance["pid"] for record in records} == children
    assert len(children) == processes
    assert all(record.provenance["loaded"] for record in records), "loads before its first trial"
    assert {record.diagnostics["device"] for record in records} == {"cuda:0"}
    assert {record.diagnostics["seats"] for record in records} == {seats}


@pytest.mark.parametrize(
    ("users", "seats", "expected"), [(None, 2, "32"), ("8", 2, "8"), (None, 1, None)], ids=str
)
def test_trials_of_one_process_have_all_queues_of_a_gpu(
    trials: Callable[[int], list[Trial]],
    monkeypatch: pytest.MonkeyPatch,
    users: str | None,
    seats: int,
    expected: str | None,
) -> None:
    """Unless the user has set how many; a trial alone has one stream."""
    monkeypatch.delenv("CUDA_DEVICE_MAX_CONNECTIONS", raising=False)
    if users:
        monkeypatch.setenv("CUDA_DEVICE_MAX_CONNECTIONS", users)

    found = outcomes(alone, with_its_queues, trials(2), workers=2, trials_per_process=seats)

    assert [record.diagnostics["queues"] for record in records_of(found)] == [expected] * 2


@pytest.fixture
def patience(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """What each process was given to end by itself."""
    given: list[float] = []
    bury = workers_module.Process.bury

    def noted(
        process: workers_module.Process, seconds: float = workers_module.END_SECONDS
    ) -> tuple[str, str]:
        given.append(seconds)
        return bury(process, seconds)

    monkeypatch.setattr(workers_module.Process, "bury", noted)
    return given


def test_processes_that_no_trial_came_for_are_ended_at_once(patience: list[float]) -> None:
    with contextlib.suppress(KeyboardInterrupt), ahead(2, 1, never_ends):
        assert len(multiprocessing.active_children()) == 2
        raise KeyboardInterrupt
    assert multiprocessing.active_children() == []
    assert patience == [0, 0]


def test_a_signal_while_processes_begin_leaves_none_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    """A handler that raises would otherwise do so between the start of a process and our knowing of it."""
    started: list[int] = []
    start = multiprocessing.get_context("spawn").Process.start

    def start_and_interrupt(process: Any) -> None:
        start(process)
        os.kill(os.getpid(), signal.SIGINT)
        started.append(process.pid)

    monkeypatch.setattr(multiprocessing.get_context("spawn").Process, "start", start_and_interrupt)
    with pytest.raises(KeyboardInterrupt), ahead(2, 1, never_ends):
        pass
    assert len(started) == 2
    assert multiprocessing.active_children() == []


def test_time_before_a_trial_is_no_silence_of_its(
    trials: Callable[[int], list[Trial]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(workers_module, "LOOK_SECONDS", 1000.0)
    with ahead(1, 1, workers_module.load_nothing) as begun:
        (process,) = begun["idle_processes"]
        (seat,) = process.seats
        seat._watched_at -= 500.0
        seat.begin(trivial, *trials(1))
        seat.watch(100.0)
        assert not seat.is_hung


def test_processes_with_other_seats_than_trials_need_are_let_go(
    together: Execute, trials: Callable[[int], list[Trial]], tmp_path: Path
) -> None:
    (tmp_path / "seeds").mkdir()
    with ahead(2, 1, never_ends) as begun:
        found = outcomes(together, partial(after_loading, there=tmp_path), trials(3), workers=3, **begun)

    records = records_of(found)
    assert {record.diagnostics["seats"] for record in records} == {3}


def test_at_a_stop_nobody_waits_for_a_process_that_still_loads(
    together: Execute, trials: Callable[[int], list[Trial]], patience: list[float]
) -> None:
    with ahead(2, 3, never_ends) as begun:
        assert list(together(trivial, trials(3), workers=3, report=print, stop=lambda: True, **begun)) == []
    assert patience == [0, 0]


def test_what_a_process_cannot_load_ahead_is_for_the_trials_to_say(
    trials: Callable[[int], list[Trial]],
) -> None:
    with ahead(2, 1, cannot_be_loaded) as begun:
        found = outcomes(alone, trivial, trials(3), **begun)
    assert len(records_of(found)) == 3


def test_a_process_that_dies_before_its_first_trial_costs_no_attempt(
    trials: Callable[[int], list[Trial]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("normbench.sweep.executors.retry.RETRIES", 0)
    with ahead(2, 1, workers_module.load_nothing) as begun:
        for child in multiprocessing.active_children():
            child.kill()
            child.join()
        found = outcomes(alone, trivial, trials(3), **begun)
    assert len(records_of(found)) == 3


@pytest.mark.parametrize("name", [name for name in EXECUTORS if name != "pool"])
def test_other_executors_begin_with_nothing(name: str) -> None:
    with EXECUTORS[name].begin(Placement(workers=2), never_ends) as means:
        assert means == {}
        assert multiprocessing.active_children() == []


def records_of(found: dict[int, Outcome]) -> list[Record]:
    assert all(isinstance(outcome, Record) for outcome in found.values()), found
    return [outcome for outcome in found.values() if isinstance(outcome, Record)]


def test_a_result_that_does_not_pickle_is_a_failure_that_says_so(
    apart: Execute, trials: Callable[[int], list[Trial]]
) -> None:
    failure = outcomes(apart, with_a_result_that_does_not_pickle, trials(1))[0]

    assert isinstance(failure, Failure)
    assert "pickle" in failure.reason


def test_a_worker_that_does_not_listen_is_ended_when_patience_is(
    apart: Execute, trials: Callable[[int], list[Trial]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(f"normbench.sweep.executors.{name_of(apart)}.PATIENCE_SECONDS", 0.1)
    news: list[dict[str, Any]] = []
    given = trials(1)

    found = list(
        apart(deaf, given, workers=1, report=lambda _, event: news.append(event), stop=lambda: bool(news))
    )

    assert found == []
    assert news.pop(0) == {"epoch": 1}
    if name_of(apart) != "slurm":  # which gives a job half a minute more, and it may save after all
        assert news == [{"warning": attempts_module.CUT_OFF.format(given[0].id)}]


def test_a_state_that_cannot_be_saved_at_a_stop_is_no_clean_end(
    apart: Execute, trials: Callable[[int], list[Trial]]
) -> None:
    news: list[int] = []
    with pytest.raises(Unwritable, match=r"No space left.*0\.ckpt"):
        list(
            apart(
                cannot_save, trials(1), workers=1, report=lambda *_: news.append(1), stop=lambda: bool(news)
            )
        )


@pytest.mark.parametrize("name", [name for name in EXECUTORS if name != "serial"])
def test_patience_is_shorter_than_the_five_seconds_a_stop_may_take(name: str) -> None:
    module = sys.modules[EXECUTORS[name].load().__module__]
    assert module.POLL_SECONDS + module.PATIENCE_SECONDS < 5


RUNNER = """
import pickle, sys
from normbench.sweep.executors.pool import execute
from normbench.sweep.placement import Placement
if __name__ == "__main__":
    work, trials = pickle.load(sys.stdin.buffer)
    report = lambda *_: print("news", flush=True)
    list(execute(work, trials, Placement(workers=2), report=report, stop=lambda: False))
"""


def children_of(pid: int) -> list[int]:
    found = subprocess.run(["ps", "-o", "pid=", "--ppid", str(pid)], capture_output=True, text=True)
    return [int(line) for line in found.stdout.split()]


def gone(pid: int) -> bool:
    """No longer there, or a zombie that waits for an init that does not reap."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
def test_workers_of_a_killed_runner_save_and_end_by_themselves(
    trials: Callable[[int], list[Trial]], tmp_path: Path
) -> None:
    script = tmp_path / "runner.py"
    script.write_text(RUNNER)
    saved = tmp_path / "saved"
    saved.mkdir()
    with subprocess.Popen(
        [sys.executable, str(script)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
    ) as runner:
        assert runner.stdin is not None
        assert runner.stdout is not None
        pickle.dump((partial(until_told_to_stop, saved=saved), trials(2)), runner.stdin)
        runner.stdin.close()
        assert runner.stdout.readline() == b"news\n"
        workers = children_of(runner.pid)
        assert len(workers) >= 2
        runner.kill()

    deadline = time.monotonic() + PATIENCE
    while not all(map(gone, workers)):
        assert time.monotonic() < deadline, f"still there: {[pid for pid in workers if not gone(pid)]}"
        select.select([], [], [], 0.02)
    assert {path.name for path in saved.iterdir()} <= {"0", "1"}
    assert list(saved.iterdir())


def test_the_signals_of_a_process_group_do_not_end_workers(
    pool: Execute, trials: Callable[[int], list[Trial]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ctrl-C reaches them too; only the runner decides what it means."""
    monkeypatch.setattr("normbench.sweep.executors.retry.RETRIES", 0)
    signalled: list[int] = []

    def report(trial: Trial, event: dict[str, Any]) -> None:
        if not signalled:
            signalled.extend(child.pid or 0 for child in multiprocessing.active_children())
            for pid in signalled:
                os.kill(pid, signal.SIGINT)
                os.kill(pid, signal.SIGTERM)

    found = list(pool(trivial, trials(20), workers=2, report=report, stop=lambda: False))

    assert signalled
    assert [outcome for _, outcome in found if isinstance(outcome, Failure)] == []


def test_a_signal_while_a_worker_starts_does_not_end_it(
    pool: Execute, trials: Callable[[int], list[Trial]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Python starts with a handler that raises KeyboardInterrupt, and must never get to see the signal."""
    monkeypatch.setattr("normbench.sweep.executors.retry.RETRIES", 0)
    process_class = multiprocessing.get_context("spawn").Process
    start = process_class.start
    signalled: list[int] = []

    def start_and_interrupt(process: Any) -> None:
        start(process)
        os.kill(process.pid, signal.SIGINT)
        signalled.append(process.pid)

    monkeypatch.setattr(process_class, "start", start_and_interrupt)
    found = outcomes(pool, trivial, trials(4), workers=2)

    assert signalled
    assert [outcome for outcome in found.values() if isinstance(outcome, Failure)] == []
