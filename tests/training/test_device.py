"""Devices by name: found, given an index, or refused with what is there."""

import contextlib
import threading
from dataclasses import dataclass

import pytest
import torch

from normbench.training.device import CONTEXT_BYTES, device, memories, of_processes, own_stream, settle_on


@pytest.fixture
def gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine that seems to have two GPUs."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)


@pytest.mark.parametrize(
    ("name", "expected"),
    [("auto", "cuda:0"), ("cuda", "cuda:0"), ("cuda:0", "cuda:0"), ("cuda:1", "cuda:1"), ("cpu", "cpu")],
)
@pytest.mark.usefixtures("gpus")
def test_a_gpu_always_has_its_index(name: str, expected: str) -> None:
    assert str(device(name)) == expected


@pytest.mark.usefixtures("gpus")
def test_a_gpu_too_many_is_refused_with_those_that_are_there() -> None:
    with pytest.raises(ValueError, match=r"cuda:2: there is no such GPU; there: cuda:0, cuda:1"):
        device("cuda:2")


@pytest.mark.parametrize("name", ["cuda", "cuda:0"])
def test_without_a_gpu_it_is_said_what_will_do(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert device("auto") == torch.device("cpu")
    with pytest.raises(ValueError, match="no GPU that torch can use; auto or cpu will do"):
        device(name)


@pytest.mark.usefixtures("gpus")
def test_processes_of_a_trial_have_a_gpu_each_from_the_first_on() -> None:
    assert [str(each) for each in of_processes(torch.device("cuda:0"), 2)] == ["cuda:0", "cuda:1"]
    with pytest.raises(
        ValueError, match=r"execute.processes 2: one GPU each from cuda:1 on, and there are 1; "
    ):
        of_processes(torch.device("cuda:1"), 2)


def test_any_number_of_processes_share_the_cpu() -> None:
    assert of_processes(torch.device("cpu"), 3) == (torch.device("cpu"),) * 3


def test_an_interface_that_is_not_there_is_refused_before_any_trial(monkeypatch: pytest.MonkeyPatch) -> None:
    cpu = torch.device("cpu")
    for name in ("lo", "", "lo,lo"):
        monkeypatch.setenv("GLOO_SOCKET_IFNAME", name)
        assert of_processes(cpu, 2) == (cpu, cpu)
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "lo,eth47")
    with pytest.raises(
        ValueError, match=r"^GLOO_SOCKET_IFNAME=eth47: no such network interface; there: .*lo"
    ):
        of_processes(cpu, 2)
    assert of_processes(cpu, 1) == (cpu,), "which connects to nobody"


@dataclass
class Properties:
    total_memory: int


@pytest.mark.usefixtures("gpus")
def test_the_memory_of_the_gpus_that_a_name_stands_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: Properties(10 + index))

    assert memories("auto") == memories("cuda") == {0: 10, 1: 11}
    assert memories("cuda:1") == {1: 11}
    assert memories("cuda:2") == {}


def test_a_process_takes_its_share_of_a_gpu_less_what_cuda_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = 100 * CONTEXT_BYTES
    shares: list[float] = []
    monkeypatch.setattr(torch.cuda, "set_device", lambda _: None)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: Properties(whole))
    monkeypatch.setattr(torch.cuda, "set_per_process_memory_fraction", lambda share, _: shares.append(share))
    for part in (1.0, 1 / 4, 1 / 20, 1 / 99, 4 / 5):
        settle_on(torch.device("cuda", 0), part)

    assert shares == pytest.approx([1.0, 0.24, 0.04, 0.5 / 99, 0.79])
    settle_on(torch.device("cpu"), 1 / 4)
    assert len(shares) == 5


def test_a_thread_has_a_stream_of_its_own_and_keeps_it(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[object] = []
    used: list[object] = []

    def stream(where: torch.device) -> object:
        made.append(object())
        return made[-1]

    monkeypatch.setattr(torch.cuda, "Stream", stream)
    monkeypatch.setattr(torch.cuda, "stream", lambda one: contextlib.nullcontext(used.append(one)))
    monkeypatch.setattr(torch.cuda, "device", contextlib.nullcontext)

    def twice() -> None:
        for _ in range(2):
            with own_stream(torch.device("cuda", 0)):
                pass

    for thread in [threading.Thread(target=twice) for _ in range(2)]:
        thread.start()
        thread.join()

    assert len(set(map(id, made))) == 2
    assert used == [made[0], made[0], made[1], made[1]]
    with own_stream(torch.device("cpu")):
        assert len(used) == 4
