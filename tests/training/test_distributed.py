"""One trial over several real processes: the same numbers, the same promises when something ends early.

That several processes compute what one does is the matter of test_update.py; tolerances are explained there.
"""

import os
import select
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from test_resume import Bench

from normbench.config import experiment as config
from normbench.config.trial import Trial
from normbench.sweep import run as sweep
from normbench.tasks.base import task_of
from normbench.training import train as training
from normbench.training.distributed import Lost, followed
from normbench.training.state import TrainState
from normbench.training.train import train

pytestmark = pytest.mark.slow

Tiny = Callable[..., Trial]
CPU = torch.device("cpu")
CLOSE = 1e-5
PATIENCE = 30.0  # seconds until a wait that should end at once is given up


class Watched(subprocess.Popen[bytes]):
    """Every follower that was started."""

    started: list["Watched"] = []  # noqa: RUF012

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        if "normbench.training.distributed" in self.args:
            self.started.append(self)


@pytest.fixture(autouse=True)
def started(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[Watched]:
    """The followers of this test; their files go where they can be counted."""
    monkeypatch.setattr(Watched, "started", [])
    monkeypatch.setattr(subprocess, "Popen", Watched)
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    return Watched.started


@pytest.fixture
def nothing_left(started: list[Watched], tmp_path: Path) -> Callable[[], bool]:
    """No process and no file of the followers is there any more."""
    return lambda: (
        all(one.returncode is not None for one in started)
        and not any((tmp_path / "temporary").glob("normbench-*"))
    )


@pytest.fixture
def resumable(monkeypatch: pytest.MonkeyPatch) -> None:
    """A report after every update."""
    monkeypatch.setattr(training, "REPORT_SECONDS", 0.0)


# ---- the same numbers


@pytest.mark.usefixtures("resumable")
def test_several_processes_train_as_one_and_leave_signals_to_the_runner(
    tiny: Tiny, tiny_data: Path, tmp_path: Path, started: list[Watched], nothing_left: Callable[[], bool]
) -> None:
    """Ctrl-C and a batch system's notice reach them all, and only the runner decides what follows."""

    def disturb(event: dict[str, Any]) -> bool:
        for follower in started:
            follower.send_signal(signal.SIGINT)
            follower.send_signal(signal.SIGTERM)
        return False

    trial = tiny(norm="switchable", norm_batch_size=8, batch_size=16, dropout=0.2, clip="agc")
    alone = train(trial, tiny_data, tmp_path / "alone")
    together = train(trial, tiny_data, tmp_path / "together", report=disturb, processes=4)

    assert together.provenance["processes"] == 4
    assert together.provenance["path"]["norm"] == "compiled, torch", "a norm batch is of two processes"
    for one, other in zip(together.epochs, alone.epochs, strict=True):
        assert one.train_loss == pytest.approx(other.train_loss, rel=CLOSE)
        assert one.test_loss == pytest.approx(other.test_loss, rel=CLOSE)
        assert one.train_accuracy == other.train_accuracy
    assert together.diagnostics["clipped"] == alone.diagnostics["clipped"]
    assert nothing_left()


# ---- stopped and resumed


class Together(Bench):
    """A bench for two processes, unless told otherwise."""

    processes = 2

    def run(self, stop_at: int | None = None) -> Any:
        reports = 0

        def report(event: dict[str, Any]) -> bool:
            nonlocal reports
            reports += "warning" not in event
            return reports == stop_at

        return train(self.trial, self.data, self.prefix, report=report, processes=self.processes), None


@pytest.mark.usefixtures("resumable")
def test_a_trial_that_was_stopped_in_an_epoch_ends_as_one_that_was_not(
    tiny: Tiny, tiny_data: Path, tmp_path: Path, nothing_left: Callable[[], bool]
) -> None:
    """To the last bit, with all that keeps a state or depends on the time."""
    trial = tiny(norm="switchable", batch_size=16, clip="agc", dropout=0.2)
    undisturbed, stopped = (Together(trial, tiny_data, tmp_path / place) for place in ("a", "b"))

    stopped.stop(at=2)
    assert nothing_left()

    assert stopped.end(stopped.run()[0]) == undisturbed.end(undisturbed.run()[0])
    assert nothing_left()


@pytest.mark.usefixtures("resumable")
def test_a_trial_goes_on_with_another_number_of_processes(
    tiny: Tiny, tiny_data: Path, tmp_path: Path
) -> None:
    trial = tiny(norm="batch", batch_size=16)
    changed = Together(trial, tiny_data, tmp_path / "changed")
    changed.stop(at=2)
    changed.processes = 1
    changed.stop(at=3)
    changed.processes = 2

    record, _ = changed.run()

    alone = train(trial, tiny_data, tmp_path / "alone")
    assert record.epochs[-1].train_loss == pytest.approx(alone.epochs[-1].train_loss, rel=CLOSE)
    assert record.epochs[-1].test_loss == pytest.approx(alone.epochs[-1].test_loss, rel=CLOSE)


# ---- ends before the end


@pytest.mark.usefixtures("resumable")
def test_a_follower_that_is_killed_fails_the_trial_and_says_so(
    tiny: Tiny, tiny_data: Path, tmp_path: Path, started: list[Watched], nothing_left: Callable[[], bool]
) -> None:
    def kill(event: dict[str, Any]) -> bool:
        started[0].kill()
        return False

    with pytest.raises(Lost, match=r"^process 1 of 2 was killed by SIGKILL$"):
        train(tiny(batch_size=16), tiny_data, tmp_path / "trial", report=kill, processes=2)

    assert nothing_left()


def test_a_loss_that_is_no_number_is_a_result(
    tiny: Tiny, tiny_data: Path, tmp_path: Path, nothing_left: Callable[[], bool]
) -> None:
    trial = tiny(norm="none", batch_size=16, optimizer={"lr": 1e30})

    record = train(trial, tiny_data, tmp_path / "trial", processes=2)

    assert record.status == "diverged"
    assert nothing_left()


def test_a_follower_that_cannot_begin_says_why(
    tiny: Tiny, tmp_path: Path, nothing_left: Callable[[], bool]
) -> None:
    trial = tiny(batch_size=16)
    state = TrainState.initial(task_of(trial), 4, 4, CPU)

    with (
        pytest.raises(Lost, match=r"^process 1 of 2 ended: .*DataError: .*nowhere"),
        followed(state, tmp_path / "nowhere", CPU, 2),
    ):
        pytest.fail("it had no data")

    assert nothing_left()


FAILING = """#!{python}
import sys

import normbench.training.distributed as followers

def fail(*arguments):
    raise {error}

followers._follow = fail
sys.argv = sys.argv[-3:]
followers.main()
"""


def test_a_follower_out_of_memory_is_a_result(
    tiny: Tiny, tiny_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    failing = tmp_path / "python"
    failing.write_text(FAILING.format(python=sys.executable, error="MemoryError('it is full')"))
    failing.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(failing))

    record = train(tiny(batch_size=16), tiny_data, tmp_path / "trial", processes=2)

    assert record.status == "out_of_memory"
    assert record.failure == {"step": 0, "why": "process 1 of 2 ended: MemoryError: it is full"}


def test_the_leaders_own_errors_are_its_own(
    tiny: Tiny, tiny_data: Path, tmp_path: Path, nothing_left: Callable[[], bool]
) -> None:
    trial = tiny(batch_size=16)
    state = TrainState.initial(task_of(trial), 4, 4, CPU)

    with (
        pytest.raises(RuntimeError, match=r"^a bug$"),
        followed(state, tiny_data, CPU, 2),
    ):
        raise RuntimeError("a bug")

    assert nothing_left()


LEADER = """
import os, signal, subprocess, sys, tempfile
from pathlib import Path
from normbench.training import train as training
from normbench.config.trial import Trial

trial, data, prefix, tempfile.tempdir = sys.argv[1:]
training.REPORT_SECONDS, started = 0.0, []

class Watched(subprocess.Popen):
    def __init__(self, *arguments, **options):
        super().__init__(*arguments, **options)
        if "normbench.training.distributed" in self.args:
            started.append(self.pid)

subprocess.Popen = Watched

def report(event):
    print(*started, flush=True)
    sys.stdin.readline()
    os.kill(os.getpid(), signal.SIGKILL)

training.train(Trial.model_validate_json(trial), Path(data), Path(prefix), report=report, processes=3)
"""


@pytest.mark.skipif(not hasattr(os, "pidfd_open"), reason="ends of others' children are seen on Linux only")
def test_followers_end_with_a_leader_that_is_killed(tiny: Tiny, tiny_data: Path, tmp_path: Path) -> None:
    settings = tiny(batch_size=15, epochs=1000).model_dump_json()
    places = str(tiny_data), str(tmp_path / "trial"), str(tmp_path / "temporary")
    with subprocess.Popen(
        [sys.executable, "-c", LEADER, settings, *places], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as leader:
        assert leader.stdin is not None
        assert leader.stdout is not None
        ends = [os.pidfd_open(int(pid)) for pid in leader.stdout.readline().split()]
        assert len(ends) == 2
        assert not select.select(ends, [], [], 0)[0], "they live"
        leader.stdin.write(b"now\n")

    assert leader.returncode == -signal.SIGKILL
    for end in ends:
        assert select.select([end], [], [], PATIENCE)[0] == [end]
        os.close(end)
    assert not any((tmp_path / "temporary").glob("normbench-*")), "nor a file of theirs"


# ---- a sweep

SWEEP = """
name: together
trial:
  dataset: {name: folder, folder: tiny, image_size: 8}
  model: {name: resnet8, width: 0.5}
  epochs: 1
  batch_size: 16
execute: {executor: pool, workers: 1, processes: 2}
"""


def test_a_sweep_runs_over_several_processes(tiny_data: Path, tmp_path: Path) -> None:
    """In the pool, whose workers may have no children of multiprocessing's."""
    path = tmp_path / "together.yaml"
    path.write_text(SWEEP)

    survey = sweep.run(config.load(path), tmp_path / "results", tiny_data)

    assert survey.counts() == {"done": 1}
    assert {record.provenance["processes"] for record in survey.records.values()} == {2}


def test_processes_that_cannot_share_a_batch_are_refused_before_anything_runs(
    tiny_data: Path, tmp_path: Path
) -> None:
    path = tmp_path / "together.yaml"
    path.write_text(SWEEP)
    experiment = sweep.override(config.load(path), processes=3)

    with pytest.raises(sweep.Unusable, match=r"^execute.processes: 3 processes cannot share batches equally"):
        sweep.run(experiment, tmp_path / "results", tiny_data)

    assert not (tmp_path / "results" / "together").exists()


def test_how_many_processes_is_no_part_of_a_trial(tiny_data: Path, tmp_path: Path) -> None:
    path = tmp_path / "together.yaml"
    path.write_text(SWEEP)

    together, alone = (config.load(path, [f"execute.processes={count}"]) for count in (2, 1))

    assert together.trials == alone.trials
