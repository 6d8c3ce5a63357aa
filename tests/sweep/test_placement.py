"""How many trials run at once, and where: on machines that seem to have so many cores and such GPUs."""

import math
import os
from pathlib import Path
from typing import Any

import pytest
from conftest import tiny_trial

from normbench import machine
from normbench.config.catalog.executors import EXECUTORS
from normbench.config.experiment import Execute
from normbench.config.trial import Trial
from normbench.sweep import placement
from normbench.sweep.estimate import device_bytes
from normbench.training import device as devices

GIB = 2**30


@pytest.fixture(autouse=True)
def _eight_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)), raising=False)
    monkeypatch.setattr(machine, "cpu_quota", lambda: math.inf)
    monkeypatch.setattr(placement, "has_gpu", lambda: False)


@pytest.fixture
def two_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 80 and 24 GiB."""
    sizes = {0: 80 * GIB, 1: 24 * GIB}
    monkeypatch.setattr(placement, "has_gpu", lambda: True)

    def memories(name: str) -> dict[int, int]:
        return {1: sizes[1]} if name == "cuda:1" else sizes

    monkeypatch.setattr(devices, "memories", memories)


def resnet20(**settings: Any) -> Trial:
    return Trial.model_validate({"model": "resnet20"} | settings)


# ---- cores


def test_workers_are_as_many_as_the_cores_carry_unless_told() -> None:
    assert placement.workers(Execute(device="cpu")) == 8
    assert placement.workers(Execute(device="cpu", threads=3)) == 2
    assert placement.workers(Execute(device="cpu", threads=99)) == 1
    assert placement.workers(Execute(device="cpu", processes=4)) == 2
    assert placement.workers(Execute(device="cpu", processes=2, threads=3)) == 1
    assert placement.workers(Execute(workers=5)) == 5
    assert placement.slots(Execute(device="cpu")) == ()


@pytest.mark.usefixtures("two_gpus")
def test_how_many_run_at_once_elsewhere_is_not_for_this_machine_to_say() -> None:
    for name, entry in EXECUTORS.items():
        assert (placement.workers(Execute(executor=name, device="cpu")) is None) == entry.elsewhere
        assert placement.workers(Execute(executor=name, workers=3)) == 3
        assert (placement.slots(Execute(executor=name)) == ()) == entry.elsewhere


# ---- is there a GPU


@pytest.mark.parametrize(
    ("file", "hidden", "torch_sees", "gpu"),
    [
        ("nvidia0", None, True, True),
        ("dxg", None, True, True),  # Windows Subsystem for Linux
        ("kfd", None, True, True),  # ROCm
        ("nvidia0", None, False, False),  # a torch without CUDA
        ("nvidiactl", None, True, False),
        ("nvidia0", "", True, False),
        ("nvidia0", "-1", True, False),
        ("nvidia0", "0", True, True),
        (None, None, True, False),
    ],
)
def test_torch_says_whether_there_is_a_gpu_and_is_asked_only_where_there_may_be_one(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    file: str | None,
    hidden: str | None,
    torch_sees: bool,
    gpu: bool,
) -> None:
    asked: list[str] = []

    def memories(name: str) -> dict[int, int]:
        asked.append(name)
        return {0: 80 * GIB} if torch_sees else {}

    monkeypatch.undo()
    monkeypatch.setattr(placement, "DEVICES", tmp_path)
    monkeypatch.setattr(devices, "memories", memories)
    monkeypatch.setattr(placement, "cores", lambda: 8)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if hidden is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", hidden)
    if file:
        (tmp_path / file).touch()

    assert placement.has_gpu() == gpu
    assert bool(asked) == (file not in (None, "nvidiactl") and hidden not in ("", "-1"))
    assert placement.workers(Execute()) == (1 if gpu else 8)


# ---- slots


def test_where_there_is_no_gpu_a_trial_that_wants_one_is_left_to_be_refused() -> None:
    assert placement.workers(Execute(device="cuda")) == 1
    assert placement.workers(Execute(device="cuda:1", threads=4)) == 1
    assert placement.workers(Execute(device="cuda", workers=3)) == 3


@pytest.mark.usefixtures("two_gpus")
def test_devices_take_turns_at_the_slots() -> None:
    turns = "cuda:0", "cuda:1", "cuda:0", "cuda:1", "cuda:0", "cuda:1"
    assert placement.slots(Execute(slots_per_device=3)) == turns
    assert placement.slots(Execute(device="cuda:1", slots_per_device=2)) == ("cuda:1", "cuda:1")
    assert placement.workers(Execute(slots_per_device=3)) == 6
    assert placement.workers(Execute(slots_per_device=3, workers=4)) == 4
    assert placement.workers(Execute(slots_per_device=3, workers=9)) == 6, "no more than there are slots"
    assert placement.workers(Execute(workers=9)) == 9


@pytest.mark.usefixtures("two_gpus")
def test_auto_is_one_until_it_has_been_measured() -> None:
    assert placement.slots(Execute()) == ("cuda:0", "cuda:1")
    assert placement.workers(Execute()) == 2


@pytest.mark.usefixtures("two_gpus")
def test_there_are_at_most_what_the_cores_and_the_smallest_memory_carry() -> None:
    def most(batch_size: int, slots_as: str = "processes", **execute: Any) -> int:
        trials = [resnet20(batch_size=2), resnet20(batch_size=batch_size)]
        return placement.most(Execute(**execute), trials, slots_as)

    assert most(128) == 4, "four cores to each GPU; seven trials would fit into 24 GiB"
    assert most(128, "streams") == 7, "of one process for each GPU"
    assert most(128, device="cuda:1") == 24 * GIB // device_bytes(resnet20(batch_size=128)) == 7
    assert most(1024) == 2
    assert most(4096) == 1, "one, even of what seems not to fit"
    assert most(128, threads=2) == 2
    assert most(2, "streams") <= placement.MOST


@pytest.mark.usefixtures("two_gpus")
@pytest.mark.parametrize("running", [1, 2, 3, 6, 16, 40])
@pytest.mark.parametrize("number", [1, 3, 8])
@pytest.mark.parametrize("device", ["cuda", "cuda:1"])
def test_as_many_streams_share_a_process_as_run_on_its_gpu(running: int, number: int, device: str) -> None:
    streams = Execute(slots_per_device=number, slots_as="streams", device=device)
    at_once = min(running, placement.workers(streams) or 0)
    devices = 1 if device == "cuda:1" else 2

    together = placement.together(streams, at_once)

    assert together == placement.sharing(streams, at_once) == min(number, -(-running // devices))
    assert placement.together(Execute(slots_per_device=number, slots_as="processes"), at_once) == 1
    assert placement.together(Execute(slots_as="streams", executor="serial"), at_once) == 1
    assert placement.together(Execute(slots_as="streams", processes=2), at_once) == 1
    assert placement.together(Execute(slots_as="streams", device="cpu"), at_once) == 1


@pytest.mark.usefixtures("two_gpus")
def test_trials_of_several_processes_have_the_gpus_for_themselves() -> None:
    assert placement.slots(Execute(processes=2)) == ("auto",)
    assert placement.workers(Execute(processes=2)) == 1


def test_a_larger_trial_takes_more_of_a_gpu() -> None:
    trials = (
        resnet20(batch_size=2),
        resnet20(),
        resnet20(model={"name": "resnet20", "width": 2.0}),
        resnet20(model="resnet110"),
    )
    sizes = [device_bytes(trial) for trial in trials]
    assert sizes == sorted(set(sizes))
    assert device_bytes(resnet20()) == 2 * GIB + 128 * 10 * 2**20
    assert device_bytes(tiny_trial(batch_size=128)) < device_bytes(resnet20())


@pytest.mark.usefixtures("two_gpus")
def test_the_memory_of_a_gpu_is_shared_by_those_that_run_on_it() -> None:
    assert placement.sharing(Execute(slots_per_device=8), 16) == 8
    assert placement.sharing(Execute(slots_per_device=8), 3) == 2, "there are only three trials"
    assert placement.sharing(Execute(executor="serial"), 1) == 1
    assert placement.sharing(Execute(device="cpu"), 8) == 1
    assert placement.sharing(Execute(executor={"name": "ray", "gpus": 0.25}), None) == 4
    assert placement.sharing(Execute(executor={"name": "ray", "gpus": 2.0}), None) == 1


@pytest.mark.parametrize(
    ("execute", "device", "words"),
    [
        ({"slots_per_device": 4}, "cpu", "slots are on GPUs, and this is a CPU"),
        ({"slots_per_device": 4, "executor": "ray"}, "cuda", "it is for the pool"),
        ({"slots_per_device": 4, "executor": "serial"}, "cuda", "it is for the pool"),
        ({"slots_per_device": 4, "processes": 2}, "cuda", "the 2 processes of a trial have a GPU each"),
    ],
)
def test_slots_that_there_cannot_be_are_refused(execute: dict[str, Any], device: str, words: str) -> None:
    said = placement.refusal(Execute(**execute), device)

    assert said is not None
    assert said.startswith(f"execute.slots_per_device 4: {words}")
    del execute["slots_per_device"]
    said = placement.refusal(Execute(**execute, slots_as="streams"), device)
    assert said is not None
    assert said.startswith(f"execute.slots_as streams: {words}")


def test_slots_are_auto_wherever_nothing_is_said() -> None:
    assert placement.refusal(Execute(), "cpu") is None
    assert placement.refusal(Execute(slots_per_device=4), "cuda") is None
