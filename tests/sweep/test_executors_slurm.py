"""What the contract of executors does not say: limits of time, preemption, and a runner that died."""

import signal
import subprocess
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from clusters import wait_until
from conftest import Cli
from test_executors import Tell, placed, record_of, saves_often, trivial, until_told_to_stop
from test_train import numbers

from normbench.config.catalog.executors import CannotExecute
from normbench.config.trial import Trial
from normbench.records import Interrupted, Record
from normbench.sweep import run as sweep
from normbench.sweep.executors import slurm
from normbench.sweep.placement import Placement

execute = partial(placed, slurm.execute)

OPTIONS: dict[str, Any] = {
    "workers": 2, "threads": 1, "minutes": 60,
    "partition": None, "account": None, "memory_gb": None, "gpus": 0,
}  # fmt: skip
pytestmark = pytest.mark.usefixtures("slurm")


def command(*words: str) -> str:
    return subprocess.run(words, capture_output=True, text=True, check=True).stdout


def until_warned_once(trial: Trial, tell: Tell, *, attempts: Path) -> Record:
    with attempts.open("a") as file:
        file.write("x")
    if attempts.read_text() == "x":
        until_told_to_stop(trial, tell, saved=attempts.parent)
    return record_of(trial)


def counted(trial: Trial, tell: Tell, *, attempts: Path, **means: Any) -> Record:
    with attempts.open("a") as file:
        file.write("x")
    return saves_often(trial, tell, **means)


@pytest.fixture
def no_retries(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that nothing passes for a warning that was a death."""
    monkeypatch.setattr("normbench.sweep.executors.retry.RETRIES", 0)


@pytest.mark.usefixtures("no_retries")
def test_a_trial_that_needs_more_than_the_time_limit_goes_on_in_the_next_job(
    tiny: Callable[..., Trial], tmp_path: Path
) -> None:
    work = partial(until_warned_once, attempts=tmp_path / "attempts")
    means = OPTIONS | {"minutes": 1, "directory": tmp_path / "slurm"}

    ((_, outcome),) = execute(work, [tiny()], report=lambda *_: None, stop=lambda: False, **means)

    assert isinstance(outcome, Record)
    assert (tmp_path / "0").exists(), "its state was saved"
    assert (tmp_path / "attempts").read_text() == "xx"


@pytest.mark.parametrize("state", ["RUNNING", "SIGNALING", "CANCELLED"])
def test_a_job_goes_back_into_the_queue_however_late_slurm_says_that_it_runs(
    state: str, tiny: Callable[..., Trial], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Unless it was cancelled, in which state it is said to be for a while."""
    asked: list[str] = []

    def run(words: list[str], **_: Any) -> subprocess.CompletedProcess[str]:
        asked.append(words[0])
        busy = len(asked) < 3
        return subprocess.CompletedProcess(words, returncode=busy, stdout="" if busy else f"{state}\n")

    def stops(trial: Trial, tell: Tell) -> Record:
        raise Interrupted(trial.id)

    before = {number: signal.getsignal(number) for number in slurm.WARNINGS}
    monkeypatch.setattr(subprocess, "run", run)
    monkeypatch.setattr(slurm, "POLL_SECONDS", 0.0)
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    try:
        with pytest.raises(SystemExit):
            slurm._attempt(stops, tiny(), tmp_path / "news")
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    assert asked == ["squeue"] * 3 + ["scontrol"] * (state != "CANCELLED")


@pytest.mark.usefixtures("no_retries")
@pytest.mark.parametrize("how", ["preempted", "requeued"])
def test_a_trial_that_must_make_room_goes_on_later_from_its_checkpoint(
    how: str, tiny: Callable[..., Trial], tiny_data: Path, tmp_path: Path
) -> None:
    trial = tiny(norm="batch", epochs=60)
    means = {"data": tiny_data, "placement": Placement(device="cpu")}
    steps: list[int] = []
    attempts = tmp_path / "attempts"

    def report(_: Trial, event: dict[str, Any]) -> None:
        steps.append(event["epoch"] * 1000 + event["images"])
        if len(steps) == 1:
            if how == "preempted":
                command("sbatch", "--partition=urgent", "--ntasks=4", "--output=/dev/null", "--wrap=sleep 1")
            else:
                command("scontrol", "requeue", command("squeue", "--me", "--noheader", "--format=%A").strip())

    ((_, outcome),) = execute(
        partial(counted, attempts=attempts, checkpoints=(tmp_path / "there").joinpath, **means),
        [trial], report=report, stop=lambda: False, directory=tmp_path / "slurm", **OPTIONS,
    )  # fmt: skip

    assert isinstance(outcome, Record)
    assert attempts.read_text() == "xx"
    assert steps[0] not in steps[1:], "it began anew instead of from its checkpoint"
    undisturbed = sweep.work(trial, lambda _: False, checkpoints=(tmp_path / "here").joinpath, **means)
    assert numbers(outcome) == numbers(undisturbed)


def test_what_a_dead_runner_left_in_the_queue_is_ended_before_anything_new_begins(
    tiny: Callable[..., Trial], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (saved := tmp_path / "saved").mkdir()
    means = OPTIONS | {"directory": tmp_path / "slurm", "report": lambda *_: None}
    news: list[int] = []
    with monkeypatch.context() as dead:
        dead.setattr(slurm._Queue, "close", lambda self: None)
        abandoned = execute(
            partial(until_told_to_stop, saved=saved), [tiny(), tiny(seed=1), tiny(seed=2)],
            **means | {"report": lambda *_: news.append(1), "stop": lambda: bool(news)},
        )  # fmt: skip
        assert list(abandoned) == []
    left_over = slurm._queued()
    assert left_over is not None
    assert left_over.keys()

    found = list(execute(trivial, [tiny()], stop=lambda: False, **means))

    assert len(found) == 1
    assert list(saved.iterdir()), "it was told to stop, and saved"
    wait_until(
        lambda: not (left_over.keys() & (slurm._queued() or {}).keys()), "for the end of what was left"
    )


def test_a_whole_sweep_runs_as_jobs(cli: Cli, lab: Path) -> None:
    where = "execute.executor={name: slurm, partition: main, minutes: 5}"

    ended = cli("run", "tiny.yaml", "name=q", "sweep.norm=[batch]", where, "--quiet")

    assert (ended.code, ended.out) == (0, "results/q: 2 trials, 2 done\n")
    assert not (lab / "results/q/slurm").exists(), "what went well leaves nothing but records"


def test_a_stop_leaves_nothing_but_states(tiny: Callable[..., Trial], tmp_path: Path) -> None:
    (saved := tmp_path / "saved").mkdir()
    running: set[int] = set()
    means = OPTIONS | {"directory": tmp_path / "slurm", "report": lambda trial, _: running.add(trial.seed)}

    work = partial(until_told_to_stop, saved=saved)
    assert list(execute(work, [tiny(), tiny(seed=1)], stop=lambda: len(running) == 2, **means)) == []

    assert len(list(saved.iterdir())) == 2
    assert not (tmp_path / "slurm").exists()


def test_what_slurm_refuses_is_said_in_its_words(tiny: Callable[..., Trial], tmp_path: Path) -> None:
    means = OPTIONS | {"directory": tmp_path, "partition": "nowhere"}
    with pytest.raises(CannotExecute, match=r"^executor slurm: .*invalid partition.*$"):
        list(execute(trivial, [tiny()], report=pytest.fail, stop=lambda: False, **means))


def test_without_slurm_one_line_says_where_to_run(
    tiny: Callable[..., Trial], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(CannotExecute, match="squeue gives no answer here; run this where jobs are submitted"):
        list(
            execute(trivial, [tiny()], report=pytest.fail, stop=lambda: False, directory=tmp_path, **OPTIONS)
        )
