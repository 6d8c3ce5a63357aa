"""What must be seen before a step is recorded on a GPU; recording itself is for ``test_cuda.py``."""

import subprocess
import sys
import threading
import weakref
from collections import Counter
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any, ClassVar, cast
from unittest.mock import MagicMock

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from normbench.training.capture.cuda_graph import CudaGraphs, Replay, WithoutWaiting
from normbench.training.capture.op_trace import lean

WAITS: dict[str, Callable[[Tensor], object]] = {
    "a number": lambda x: x.sum().item(),
    "a condition": lambda x: 1 if x.sum() > 0 else 0,
    "places": lambda x: x.nonzero(),
    "a selection": lambda x: x[x > 0],
    "a comparison": lambda x: torch.equal(x, x),
    "a mask that is written to": lambda x: x.clone().index_put_((x > 0,), torch.tensor(1.0)),
    "a mask that is assigned to": lambda x: x.clone().__setitem__(x > 0, torch.ones(3)),
    "a scattering by mask": lambda x: x.masked_scatter(x > 0, x),
    "a check for errors": lambda x: torch.linalg.inv(torch.eye(3)),
    "a number from Python": lambda x: torch.tensor(2.0, device="meta"),
    "numbers from Python": lambda x: torch.as_tensor([1.0, 2.0], device="meta"),
    "numbers of an array": lambda x: torch.asarray(np.ones(2), device="meta"),
    "numbers like a tensor's": lambda x: torch.empty(4, device="meta").new_tensor([1.0]),
    "places from Python": lambda x: torch.empty(4, device="meta")[[0, 1]],
    "places from Python that are written to": lambda x: torch.empty(4, 4, device="meta").__setitem__(
        (0, [0, 1]), 2.0
    ),
    "a copy to another device": lambda x: x.to("meta"),
    "a copy into another device": lambda x: torch.empty(4, device="meta").copy_(x),
}


@pytest.mark.parametrize("what", WAITS)
def test_what_waits_for_the_device_is_refused(what: str) -> None:
    x = torch.arange(4.0)
    WAITS[what](x)
    with pytest.raises(RuntimeError, match=r"it (reads numbers|waits for)"), WithoutWaiting():  # type: ignore[no-untyped-call]
        WAITS[what](x)


def test_in_the_backward_pass_too() -> None:
    class Looks(torch.autograd.Function):
        @staticmethod
        def forward(ctx: object, x: Tensor) -> Tensor:
            return x * 2

        @staticmethod
        def backward(ctx: object, *dy: Tensor) -> Tensor:
            return dy[0] * dy[0].max().item()

    x = torch.ones(3, requires_grad=True)
    with pytest.raises(RuntimeError, match="it reads numbers of a tensor"), WithoutWaiting():  # type: ignore[no-untyped-call]
        Looks.apply(x).sum().backward()


def test_what_does_not_wait_is_let_through() -> None:
    x = torch.arange(4.0)
    with WithoutWaiting():  # type: ignore[no-untyped-call]
        x.masked_fill(x > 0, 1.0)
        x[torch.tensor([0, 1])] = 3.0
        x[[0, 1]] = x.new_tensor(2.0)
        torch.as_tensor(torch.empty(2, device="meta"), device="meta")[0] = 3.0
        torch.where(x > 0, x, 0.0)
        torch.full((2,), 3.0, device="meta")


def test_a_training_step_does_not_wait_and_its_numbers_stay() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.LazyLinear(2))
    x = torch.randn(5, 3, 6, 6)
    plain = model(x)
    with WithoutWaiting():  # type: ignore[no-untyped-call]
        watched = model(x.bfloat16().float() * 0 + x)
        watched.sum().backward()
    assert torch.equal(plain, watched)


def test_only_this_thread_is_watched() -> None:
    found: list[float] = []
    with WithoutWaiting():  # type: ignore[no-untyped-call]
        thread = threading.Thread(target=lambda: found.append(torch.ones(1).item()))
        thread.start()
        thread.join()
    assert found == [1.0]


@pytest.mark.slow
def test_to_watch_does_not_load_the_compiler() -> None:
    code = (
        "import sys, torch\n"
        "from normbench.training.capture.cuda_graph import WithoutWaiting\n"
        "with WithoutWaiting(): torch.ones(2) + 1\n"
        "assert 'torch._dynamo' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@lean
class Noting(TorchDispatchMode):
    """A stand-in for ``torch.cuda.graph``: notes the operators that are called while it records."""

    calls: ClassVar[list[str]] = []

    def __init__(self, *_: object, **_options: object) -> None:
        super().__init__()
        self.calls.clear()

    def __torch_dispatch__(self, func: Any, _types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.calls.append(func.__name__)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("is_seen", [True, False], ids=["a step", "a step that has no tape"])
def test_a_graph_is_of_a_tape_where_there_can_be_one(is_seen: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Autocast converts two weights and their gradients; of what torch does not see, the step is recorded."""
    stream = MagicMock()
    for name, value in {
        **dict.fromkeys(["current_stream", "default_stream"], lambda *_: stream),
        **dict.fromkeys(["Stream", "graph_pool_handle", "CUDAGraph"], lambda *_: stream),
        **dict.fromkeys(["device", "stream"], nullcontext),
        "graph": Noting,
    }.items():
        monkeypatch.setattr(torch.cuda, name, value)
    model = nn.Sequential(nn.Conv2d(4, 4, 1, bias=False), nn.Conv2d(4, 4, 1, bias=False))
    sgd = torch.optim.SGD(model.parameters(), 0.1, fused=True)

    def step(x: Tensor) -> tuple[Tensor]:
        sgd.zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            loss = model(x).float().sum()
        loss.backward()
        sgd.step()
        if not is_seen:
            x.numpy()[:] += 1
        return (loss.detach(),)

    graphs = CudaGraphs(torch.device("cuda", 0))
    recording = graphs.record(step, (torch.ones(2, 4, 3, 3),), ())
    once = [*Noting.calls]
    graphs.record_calls(lambda: (*recording.calls(), *recording.calls()))
    assert Noting.calls == 2 * once
    graphs.record(step, (torch.ones(2, 4, 3, 3),), ())

    conversions = Counter(name for name in Noting.calls if "copy" in name)
    assert conversions["_foreach_copy_.default"] == (2 if is_seen else 0)
    assert conversions["_to_copy.default"] == (2 if is_seen else 7), "of maps, and of weights and gradients"


def test_a_graph_ends_while_none_is_recorded_or_launched() -> None:
    ended = threading.Event()

    class Graph:
        def __del__(self) -> None:
            ended.set()

    replays = [Replay(cast(torch.cuda.CUDAGraph, Graph()), ())]
    dropping = threading.Thread(target=replays.clear)
    with Replay._launching:
        dropping.start()
        assert not ended.wait(0.1)
    dropping.join()
    assert ended.is_set()


def test_a_graph_that_is_collected_while_another_is_replayed_waits_for_nobody() -> None:
    class Other:
        """Of the same thread."""

    graph = Other()
    there, replay = weakref.ref(graph), Replay(cast(torch.cuda.CUDAGraph, graph), ())
    del graph
    with Replay._launching:
        del replay
        assert there() is None
