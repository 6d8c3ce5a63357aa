"""Trials that misbehave in a real sweep: layers that crash, raise or allocate, and workers without a disk."""

import ctypes
import os
import resource
import signal
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from test_run import Lab, Seen, all_numbers, undisturbed_numbers
from torch import Tensor, nn

from normbench.config.trial import Trial
from normbench.files import Unwritable
from normbench.records import Record
from normbench.sweep import run
from normbench.sweep.run import work as ordinary
from normbench.training import state
from normbench.training import train as training
from normbench.training.build import network

pytestmark = pytest.mark.slow

MISBEHAVING = 1  # the seed of the trial that does
GIB = 2**30


@pytest.fixture
def lab(tmp_path: Path, tiny_data: Path) -> Lab:
    return Lab(tmp_path, tiny_data)


# ---- what a layer may do


def crash() -> None:
    ctypes.string_at(0)


def fail() -> None:
    raise ArithmeticError("a layer that somebody wrote")


def allocate_tensors() -> None:
    kept = []
    while True:
        kept.append(torch.ones(GIB // 32))


def allocate_objects() -> None:
    kept = [bytearray(GIB // 8)]
    while True:
        kept.append(bytearray(GIB // 8))


class Misbehaving(nn.Module):
    """A layer that does ``what`` in its fourth batch."""

    def __init__(self, what: Callable[[], None]) -> None:
        super().__init__()
        self.what, self.batches = what, 0

    def forward(self, x: Tensor) -> Tensor:
        self.batches += 1
        if self.batches == 4:
            self.what()
        return x


def work(trial: Trial, tell: Any, *, what: Callable[[], None], **place: Any) -> Record:
    """What a worker does, with that layer in one trial's network."""
    if trial.seed != MISBEHAVING:
        return ordinary(trial, tell, **place)
    if what in (allocate_tensors, allocate_objects):
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        limit = pages * resource.getpagesize() + GIB
        resource.setrlimit(resource.RLIMIT_AS, (limit, resource.RLIM_INFINITY))

    def with_that_layer(trial: Trial, classes: int) -> nn.Module:
        model = network(trial, classes)
        model.conv = nn.Sequential(Misbehaving(what), model.conv)
        return model

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(state, "network", with_that_layer)
        return ordinary(trial, tell, **place)


@pytest.mark.parametrize(
    ("what", "state", "reason"),
    [
        (crash, "failed", "the worker process was killed by SIGSEGV, 2 times on this trial"),
        (fail, "failed", "ArithmeticError: a layer that somebody wrote"),
        (allocate_tensors, "out_of_memory", None),
        (allocate_objects, "out_of_memory", None),
    ],
)
def test_a_layer_that_misbehaves_ends_its_own_trial_and_no_other(
    lab: Lab,
    monkeypatch: pytest.MonkeyPatch,
    what: Callable[[], None],
    state: str,
    reason: str | None,
) -> None:
    changes = {
        "sweep": {"norm": ["group"], "seed": [0, MISBEHAVING, 2]},
        "execute": {"executor": "pool", "workers": 2},
    }
    experiment = lab.experiment(**changes)
    bad = experiment.trials[1]
    with monkeypatch.context() as patch:
        patch.setattr(run, "work", partial(work, what=what))
        seen = lab.run(experiment)

    assert seen.counts == {"done": 2, state: 1}
    assert seen.survey is not None
    if reason is None:
        assert seen.survey.records[bad.id].failure is not None
    else:
        error = lab.store.errors()[bad.id]
        assert error.reason == reason
        assert f"in {what.__name__}\n" in error.traceback, "where it was"

    again = lab.experiment(sweep=changes["sweep"])
    assert lab.run(again, retry=run.RETRIABLE).counts == {"done": 3}
    assert all_numbers(lab.store) == undisturbed_numbers(lab, sweep=changes["sweep"])


# ---- workers that cannot write

SMALL = 20_000  # bytes: a record fits, a checkpoint does not


def work_without_room(trial: Trial, tell: Any, **place: Any) -> Record:
    """What a worker does, with checkpoints after every update and no room for the one trial's."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training, "REPORT_SECONDS", 0.0)
        patch.setattr(training, "CHECKPOINT_SECONDS", -1.0)
        if trial.seed == MISBEHAVING:
            resource.setrlimit(resource.RLIMIT_FSIZE, (SMALL, hard))
        try:
            return ordinary(trial, tell, **place)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("executor", ["serial", "pool"])
def test_a_checkpoint_that_cannot_be_written_ends_the_run_and_blames_no_trial(
    lab: Lab, monkeypatch: pytest.MonkeyPatch, executor: str
) -> None:
    changes = {"sweep": {"seed": [0, MISBEHAVING, 2]}, "execute": {"executor": executor, "workers": 1}}
    experiment = lab.experiment(**changes)
    with monkeypatch.context() as patch:
        patch.setattr(run, "work", work_without_room)
        with pytest.raises(Unwritable, match="File too large") as caught:
            lab.run(experiment)

    assert caught.value.filename.startswith(str(lab.store.checkpoint_path(experiment.trials[1].id)))
    assert list(lab.store.load()[0]) == [experiment.trials[0].id], "what was finished is safe"
    assert list(lab.store.directory.glob("*.error.txt")) == []

    seen = lab.run(lab.experiment(**changes))
    assert seen.begun == [trial.id for trial in experiment.trials[1:]]
    assert seen.counts == {"done": 3}
    assert all_numbers(lab.store) == undisturbed_numbers(lab, sweep=changes["sweep"])


@pytest.mark.parametrize("executor", ["serial", "pool"])
def test_a_state_that_cannot_be_saved_at_a_stop_is_no_clean_end(
    lab: Lab, monkeypatch: pytest.MonkeyPatch, executor: str
) -> None:
    """Whoever stops a run must hear that it was not saved, and not read 'resume with'."""
    execute = {"executor": executor, "workers": 1}
    experiment = lab.experiment(sweep={"seed": [MISBEHAVING]}, execute=execute)
    monkeypatch.setattr(run, "work", work_at_leisure)
    seen = Seen()

    with pytest.raises(Unwritable, match=experiment.trials[0].id):
        run.run(experiment, lab.results, lab.data, listener=seen, stop=lambda: seen.events > 0)


def work_at_leisure(trial: Trial, tell: Any, **place: Any) -> Record:
    """The same, without checkpoints until it is told to stop; which it hears before it goes on."""
    asked = 0

    def heard(event: dict[str, Any]) -> bool:
        nonlocal asked
        asked += 1
        deadline = time.monotonic() + 60
        while not (stop := tell(event)) and time.monotonic() < deadline:
            pass
        return bool(stop)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training, "CHECKPOINT_SECONDS", 1e9)
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        patch.setattr(training, "REPORT_SECONDS", 0.0)
        resource.setrlimit(resource.RLIMIT_FSIZE, (SMALL, hard))
        try:
            return ordinary(trial, heard, **place)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


# ---- workers that are killed

KILLED_AT = 5  # of the six updates of the first epoch


def work_and_be_killed(trial: Trial, tell: Any, *, attempts: Path, **place: Any) -> Record:
    """What a worker does; it is killed once, in the middle of the one trial, behind a checkpoint."""
    reports = 0

    def heard(event: dict[str, Any]) -> bool:
        nonlocal reports
        reports += 1
        with attempts.open("a") as file:
            file.write(f"{trial.seed} {reports}\n")
        first = attempts.read_text().count(f"{MISBEHAVING} 1\n") == 1
        if first and trial.seed == MISBEHAVING and reports == KILLED_AT:
            os.kill(os.getpid(), signal.SIGKILL)
        return bool(tell(event))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training, "REPORT_SECONDS", 0.0)
        patch.setattr(training, "CHECKPOINT_SECONDS", -1.0)
        return ordinary(trial, heard, **place)


def test_the_trial_of_a_killed_worker_goes_on_from_its_checkpoint_and_no_other_is_touched(
    lab: Lab, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    attempts = tmp_path / "attempts"
    changes = {"sweep": {"seed": [0, MISBEHAVING, 2]}, "execute": {"executor": "pool", "workers": 2}}
    monkeypatch.setattr(run, "work", partial(work_and_be_killed, attempts=attempts))

    seen = lab.run(lab.experiment(**changes))

    assert seen.counts == {"done": 3}
    told = [tuple(map(int, line.split())) for line in attempts.read_text().splitlines()]
    whole = max(reports for seed, reports in told if seed == 0)
    assert [reports for seed, reports in told if seed == 2] == list(range(1, whole + 1)), "once"
    again = [reports for seed, reports in told if seed == MISBEHAVING][KILLED_AT:]
    assert again == list(range(1, whole - KILLED_AT + 2)), "all but what was in the checkpoint"
    assert all_numbers(lab.store) == undisturbed_numbers(lab, sweep=changes["sweep"])
