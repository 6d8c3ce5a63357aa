"""Devices by name: found, given an index, or refused with what is there."""

import pytest
import torch

from normbench.devices import device, of_processes


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
