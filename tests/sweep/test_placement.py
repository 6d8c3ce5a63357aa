"""How many trials run at once, and where: on machines that seem to have so many cores and such GPUs."""

import math
import os
from dataclasses import replace
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
from normbench.sweep.placement import SLOTS_PER_GPU, Placement, place
from normbench.training import device as devices

GIB = 2**30


@pytest.fixture(autouse=True)
def _eight_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)), raising=False)
    monkeypatch.setattr(machine, "cpu_quota", lambda: math.inf)
    monkeypatch.setattr(placement, "has_gpu", lambda: False)


@pytest.fixture
def two_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 80 and 40 GiB."""
    sizes = {0: 80 * GIB, 1: 40 * GIB}
    monkeypatch.setattr(placement, "has_gpu", lambda: True)

    def memories(name: str) -> dict[int, int]:
        return {1: sizes[1]} if name == "cuda:1" else sizes

    monkeypatch.setattr(devices, "memories", memories)


def resnet20(**settings: Any) -> Trial:
    return Trial.model_validate({"model": "resnet20"} | settings)


def placed(count: int = 100, batch_size: int = 2, **execute: Any) -> Placement:
    """The placement of so many small trials."""
    return place(Execute(**execute), [resnet20(batch_size=batch_size)] * count)


# ---- cores


def test_workers_are_as_many_as_the_cores_carry_unless_configured() -> None:
    assert placed(device="cpu").workers == 8
    assert placed(device="cpu", threads=3).workers == 2
    assert placed(device="cpu", threads=99).workers == 1
    assert placed(device="cpu", processes=4).workers == 2
    assert placed(device="cpu", processes=2, threads=3).workers == 1
    assert placed(workers=50).workers == 50
    assert placed(3, workers=50).workers == placed(3).workers == 3, "no more than there are trials"
    assert placed(0).workers == placed(0).worker_processes == 0


def test_on_a_cpu_trials_share_neither_processes_nor_devices() -> None:
    assert placed(device="cpu", threads=2, processes=2, hang_seconds=7) == Placement(
        workers=2, device="cpu", threads=2, processes=2, hang_seconds=7
    )
    assert placed(device="cpu", threads=2, processes=2).cores == 4
    assert placed(device="cpu").independent_workers == 8


@pytest.mark.usefixtures("two_gpus")
@pytest.mark.parametrize("name", EXECUTORS)
def test_only_the_pool_has_slots_and_only_a_scheduler_decides_how_many_run(name: str) -> None:
    automatic, configured = placed(executor=name), placed(executor=name, workers=3)
    if EXECUTORS[name].elsewhere:
        assert (automatic.workers, configured.workers) == (None, 3)
    elif name == "serial":
        assert (automatic.workers, configured.workers) == (1, 1)
    assert bool(automatic.devices) == (name == "pool")
    assert automatic.trials_per_process == (SLOTS_PER_GPU if name == "pool" else 1)


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
    assert bool(placed().devices) == gpu


# ---- slots


def test_where_there_is_no_gpu_a_trial_that_wants_one_is_left_to_be_refused() -> None:
    assert placed(device="cuda").workers == 1
    assert placed(device="cuda:1", threads=4).devices == ("cuda:1",)


@pytest.mark.usefixtures("two_gpus")
def test_auto_is_a_constant_number_of_streams_of_one_process_for_each_gpu() -> None:
    placement = placed()
    assert placement.devices == ("cuda:0", "cuda:1")
    assert placement.trials_per_device == placement.trials_per_process == SLOTS_PER_GPU
    assert (placement.workers, placement.worker_processes) == (2 * SLOTS_PER_GPU, 2)
    assert placement.independent_workers == 2
    assert placed(1).independent_workers == 1


@pytest.mark.usefixtures("two_gpus")
def test_slots_are_overridden_by_the_configuration() -> None:
    assert placed(slots_per_device=3).workers == 6
    assert placed(slots_per_device=40).workers == 80
    assert placed(device="cuda:1", slots_per_device=2) == replace(
        placed(device="cuda:1"), workers=2, devices=("cuda:1",), trials_per_device=2, trials_per_process=2
    )
    assert placed(slots_per_device=3, workers=4).workers == 4
    assert placed(slots_per_device=3, workers=9).workers == 6, "no more than there are slots"
    assert placed(workers=9).workers == 9
    processes = placed(slots_per_device=3, slots_as="processes")
    assert (processes.trials_per_process, processes.worker_processes) == (1, 6)


@pytest.mark.usefixtures("two_gpus")
def test_slots_are_at_most_what_the_cores_and_the_smallest_memory_carry() -> None:
    def slots(batch_size: int, **execute: Any) -> int:
        return placed(batch_size=batch_size, **execute).trials_per_device

    assert slots(128) == 40 * GIB // device_bytes(resnet20(batch_size=128)) == 12
    assert slots(128, slots_as="processes") == 4, "four cores to each GPU"
    assert slots(128, slots_as="processes", threads=2) == 2
    assert slots(1024) == 3
    assert slots(4096) == 1, "one, even of what seems not to fit"
    assert slots(2) == SLOTS_PER_GPU
    mixed = place(Execute(), [*[resnet20(batch_size=2)] * 30, resnet20(batch_size=1024)])
    assert mixed.trials_per_device == 3, "the largest counts"


@pytest.mark.usefixtures("two_gpus")
@pytest.mark.parametrize("trials", [1, 2, 3, 6, 16, 40])
@pytest.mark.parametrize("number", [1, 3, 8])
@pytest.mark.parametrize("device", ["cuda", "cuda:1"])
def test_as_many_streams_share_a_process_as_run_on_its_gpu(trials: int, number: int, device: str) -> None:
    placement = placed(trials, slots_per_device=number, device=device)
    devices = 1 if device == "cuda:1" else 2

    expected = min(number, -(-trials // devices))
    assert placement.trials_per_process == placement.trials_per_device == expected
    assert placement.memory_share == 1 / (expected + (expected > 1)), "streams leave a share for a retry"
    processes = placed(trials, slots_per_device=number, slots_as="processes", device=device)
    assert processes.memory_share == 1 / expected


@pytest.mark.usefixtures("two_gpus")
def test_trials_of_several_processes_have_the_gpus_for_themselves() -> None:
    placement = placed(processes=2)
    assert (placement.devices, placement.workers) == (("auto",), 1)
    assert placement.trials_per_process == placement.trials_per_device == 1


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


def test_a_part_of_a_gpu_at_ray_is_a_share_of_its_memory() -> None:
    assert placed(executor={"name": "ray", "gpus": 0.25}).memory_share == 1 / 4
    assert placed(executor={"name": "ray", "gpus": 2.0}).memory_share == 1


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
    reason = placement.refusal(Execute(**execute), device)

    assert reason is not None
    assert reason.startswith(f"execute.slots_per_device 4: {words}")
    del execute["slots_per_device"]
    reason = placement.refusal(Execute(**execute, slots_as="streams"), device)
    assert reason is not None
    assert reason.startswith(f"execute.slots_as streams: {words}")


def test_slots_that_are_not_configured_are_never_refused() -> None:
    assert placement.refusal(Execute(), "cpu") is None
    assert placement.refusal(Execute(slots_per_device=4), "cuda") is None
