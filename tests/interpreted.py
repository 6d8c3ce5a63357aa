"""The GPU's kernels on a CPU, one operation after the other, as Triton's interpreter does them.

``test_triton_kernels.py`` runs this file in another process, since Triton reads the variable when it is
loaded. By hand: ``TRITON_INTERPRET=1 python -m pytest --noconftest tests/interpreted.py``.
"""

import os
from collections import Counter
from collections.abc import Iterator
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from norm_cases import (
    CPU,
    ENDINGS,
    FIVE,
    FLOAT64,
    Arithmetic,
    Shape,
    assert_is_the_float64_definition,
    assert_nothing_is_hidden,
    assert_within,
    half_ulp,
    layer,
    maps,
    put,
    take,
    trained,
)
from torch import Tensor
from torch.nn.functional import cross_entropy
from triton.runtime import interpreter

from normbench.config.trial import Choice, Trial
from normbench.norms.moment_norm import Block, Moments, Statistics, constant_moments, moments, normalize
from normbench.norms.ops import dispatch, gpu
from normbench.norms.ops.gpu import Fused
from normbench.norms.ops.operators import Running
from normbench.norms.ops.pointwise import Pointwise, multiply_add
from normbench.norms.ops.sync import ALONE
from normbench.tasks.base import task_of
from normbench.training.build import network
from normbench.training.capture.capture import RecordedStep
from normbench.training.capture.tape import Tape
from normbench.training.optim import buffers, optimizer
from normbench.training.step import make_update

assert os.environ.get("TRITON_INTERPRET") == "1", (
    "python -m pytest tests/norms/test_triton_kernels.py runs this"
)
FP32, BF16 = (Arithmetic(dtype, "triton") for dtype in (torch.float32, torch.bfloat16))
PRECISIONS = pytest.mark.parametrize("arithmetic", [FP32, BF16], ids=str)

# smaller than a tile; odd in everything; just tiles; several in a map
SHAPES = [
    Shape(2, 2, 8, 1, 3),
    Shape(6, 3, 24, 5, 7),
    Shape(4, 4, 64, 4, 4),
    Shape(2, 2, 16, 17, 32),
]


@pytest.fixture(autouse=True)
def rounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """The interpreter truncates to bf16; a GPU rounds, for which ``test_triton_kernels.py`` looks."""
    as_it_is = interpreter._convert_float

    def convert(values: Any, source: Any, target: Any, mode: Any) -> Any:
        if (str(source), str(target)) != ("fp32", "bf16"):
            return as_it_is(values, source, target, mode)
        bits = torch.from_numpy(np.ascontiguousarray(values)).bfloat16().view(torch.int16)
        return bits.numpy().view(np.uint16)

    monkeypatch.setattr(interpreter, "_convert_float", convert)


@pytest.fixture
def launched(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """Counts kernels."""
    counts: Counter[str] = Counter()
    launch = gpu._launch

    def counted(kernel: Any, *arguments: Any, **options: Any) -> None:
        counts[kernel.fn.__name__] += 1
        launch(kernel, *arguments, **options)

    monkeypatch.setattr(gpu, "_launch", counted)
    return counts


@pytest.fixture
def few_at_once(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Of the numbers of a table, so that every middle goes through its norm batches in several turns."""
    gpu.layout.cache_clear()
    monkeypatch.setattr(gpu, "FEW", 8)
    yield
    gpu.layout.cache_clear()


@FIVE
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize(
    ("arithmetic", "ending"),
    [(FP32, "plain"), (FP32, "relu"), (FP32, "shortcut and relu"), (BF16, "shortcut and relu")],
    ids=str,
)
def test_output_gradients_and_running_statistics_are_those_of_float64(
    norm: Choice,
    shape: Shape,
    arithmetic: Arithmetic,
    ending: str,
    launched: Counter[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """By six kernels."""
    assert_is_the_float64_definition(norm, shape, arithmetic, ending, torch.channels_last, monkeypatch)

    names = "moments", "forward", "multiply_add", "sums", "backward", "input_gradient"
    assert launched == dict.fromkeys(names, 1)


@FIVE
@pytest.mark.parametrize("shape", [Shape(10, 5, 12, 1, 2), Shape(8, 2, 16, 1, 2)], ids=str)
def test_it_does_not_matter_how_many_norm_batches_are_taken_at_a_time(
    norm: Choice, shape: Shape, few_at_once: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert_is_the_float64_definition(norm, shape, FP32, "relu", torch.channels_last, monkeypatch)


@FIVE
def test_a_large_mean_cancels_nowhere(norm: Choice, monkeypatch: pytest.MonkeyPatch) -> None:
    """Mean 1000, deviation 1: a mean of squares less the squared mean, at 1e6, would be off by 0.1 in fp32.

    What x · scale + shift and its gradient cost is allowed, which are of the size of the mean: eps · 1000 ·
    |dy|, with a factor for sums of these.
    """
    shape = Shape(4, 2, 16, 4, 4)
    x = (maps(shape, 0) + 1000).float().double()
    dy = torch.from_numpy(np.random.RandomState(1).standard_normal(x.shape)).float().double()
    results = []
    for one in (FLOAT64, FP32):
        with monkeypatch.context() as only_here:
            take(one, only_here)
            results.append(trained(norm, shape, one, "plain", torch.channels_last, (x, x, dy)))
    exact, found = results
    once = torch.finfo(torch.float32).eps * 1000 * 2
    for name, expected in exact.items():
        small = name in ("y", "gradient of x")
        of_size = max(1.0, float(expected.abs().max())) if not small else 4.0
        assert_within(found[name], expected, once * of_size * (1 if small else 4), name)


@pytest.mark.filterwarnings("ignore:invalid value encountered")  # of numpy, by the interpreter
@FIVE
@ENDINGS
@pytest.mark.parametrize(
    ("bad", "arithmetic"), [(float("nan"), FP32), (float("inf"), FP32), (float("nan"), BF16)], ids=str
)
def test_what_is_not_a_number_comes_out_as_none_wherever_torch_says_so(
    norm: Choice, ending: str, bad: float, arithmetic: Arithmetic, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert_nothing_is_hidden(norm, ending, bad, arithmetic, monkeypatch)


@FIVE
def test_a_gradient_that_is_not_a_number_is_passed_on(norm: Choice, monkeypatch: pytest.MonkeyPatch) -> None:
    take(FP32, monkeypatch)
    shape = Shape(2, 2, 16, 3, 3)
    dy = torch.ones(2, 16, 3, 3)
    dy[0, 2, 1, 1] = float("nan")
    result = trained(norm, shape, FP32, "plain", torch.channels_last, (maps(shape), maps(shape), dy))
    assert result["gradient of x"][0, 2].isnan().all()
    assert result["gradient of gamma"][2].isnan()
    assert result["gradient of beta"][2].isnan()


@PRECISIONS
@pytest.mark.parametrize("shortcut", [False, True])
@pytest.mark.parametrize("relu", [False, True])
def test_a_multiply_add_and_its_gradients_are_those_of_float64(
    arithmetic: Arithmetic,
    shortcut: bool,
    relu: bool,
    launched: Counter[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """With numbers that are learned, and with such that are not, of which nothing is summed."""
    shape = Shape(3, 3, 24, 5, 7)
    dtype = arithmetic.dtype
    x, added, dy = (maps(shape, seed, torch.bfloat16) for seed in range(3))
    scale, shift = torch.linspace(0.5, 2, 72).view(3, 24), torch.linspace(-1, 1, 72).view(3, 24)
    sums = 1e-5 * shape.H * shape.W
    for learned in (True, False):
        results = []
        for one in (FLOAT64, arithmetic):
            with monkeypatch.context() as only_here:
                take(one, only_here)
                wide = torch.float64 if one == FLOAT64 else torch.float32
                leaves = [leaf.to(one.dtype).detach().requires_grad_() for leaf in (x, added)]
                leaves += [leaf.to(wide).detach().requires_grad_(learned) for leaf in (scale, shift)]
                y = multiply_add(leaves[0], *leaves[2:], Pointwise(leaves[1] if shortcut else None, relu))
                kink = dy if not relu or results else torch.where(y.detach() < 0.03, 0.0, dy)
                dy = kink if not results else dy
                y.backward(dy.to(one.dtype))
                results.append([y.detach(), *(leaf.grad for leaf in leaves if leaf.grad is not None)])
        assert len(results[0]) == 2 + shortcut + 2 * learned
        for exact, found in zip(*results, strict=True):
            assert_within(found, exact, half_ulp(exact, dtype) + sums)
    with_sums = 2 if shortcut and relu else 1
    assert launched == {"multiply_add": 2, "sums": with_sums, "input_gradient": 2}


@PRECISIONS
@pytest.mark.parametrize("bessel", [False, True])
def test_the_moments_of_maps_are_those_of_float64(
    arithmetic: Arithmetic, bessel: bool, launched: Counter[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """In two tiles, the last of them smaller."""
    x = maps(Shape(2, 2, 20, 23, 25), 0, torch.bfloat16) + 50
    x = x.to(arithmetic.dtype)
    take(arithmetic, monkeypatch)
    with torch.no_grad():
        found: Moments = constant_moments(x, bessel)
    for one, exact in zip(found, moments(x.double(), bessel), strict=True):
        assert_within(one, exact, 50 * 4e-7)
    assert launched == {"moments": 1}


def test_statistics_that_only_stand_by_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """As those are that follow the norm batches of all processes and not of this one."""
    take(FP32, monkeypatch)
    running = Running(torch.full((8,), 0.3), torch.full((8,), 2.0), 0.1, 1.5, follows=False)
    x = maps(Shape(2, 2, 8, 3, 3)).float()
    normalize(x, torch.ones(8), torch.zeros(8), Statistics((Block(2),)), 1e-5, running=running)
    assert running.mean is not None
    assert bool((running.mean == 0.3).all())
    assert bool((running.variance == 2.0).all())


def test_a_running_variance_is_kept_without_a_mean(monkeypatch: pytest.MonkeyPatch) -> None:
    take(FP32, monkeypatch)
    variance, gamma = torch.full((8,), 2.0), torch.ones(8)
    running = Running(None, variance, 0.1, 1.5)
    x = maps(Shape(2, 2, 8, 3, 3)).float()
    normalize(x, gamma, torch.zeros(8), Statistics((Block(2),)), 1e-5, running=running)
    assert_within(variance, 1.8 + 0.15 * x.double().var((0, 2, 3), correction=0), 1e-6)
    assert bool((gamma == 1).all())


@pytest.mark.parametrize("name", ["batch", "switchable"])
def test_inference_goes_by_running_statistics(
    name: str, launched: Counter[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    norm = Trial.model_validate({"norm": name}).norm
    x = maps(Shape(4, 2, 24, 3, 5), 0, torch.bfloat16)
    y = []
    for one in (FLOAT64, FP32):
        with monkeypatch.context() as only_here:
            take(one, only_here)
            module = put(layer(norm, 24, 2), one).eval()
            module.running_mean.copy_(torch.linspace(-1, 1, 24))
            with torch.no_grad():
                y.append(module(x.to(one.dtype), None, relu=True))
    assert_within(y[1], y[0], 1e-5)
    assert launched == {"multiply_add": 1, **({"moments": 1} if name == "switchable" else {})}


def test_updates_of_a_network_have_the_losses_of_torch(
    launched: Counter[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """All seven layers of it are computed by the kernels."""
    model = {"name": "resnet8", "width": 0.5}
    trial = Trial.model_validate({"norm": "switchable", "model": model, "batch_size": 6})
    losses: dict[str, list[float]] = {"torch": [], "triton": []}
    for one in (FP32._replace(path="torch"), FP32):
        with monkeypatch.context() as only_here:
            take(one, only_here)
            net = network(trial, 4).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
            sgd = torch.optim.SGD(net.parameters(), 0.1)
            for step in range(2):
                random = np.random.RandomState(step)
                x = torch.from_numpy(random.standard_normal((6, 3, 8, 8))).float()
                loss = cross_entropy(net(x), torch.from_numpy(random.randint(0, 4, 6)))
                sgd.zero_grad()
                loss.backward()
                sgd.step()
                losses[one.path].append(loss.item())
    assert losses["triton"] == pytest.approx(losses["torch"], rel=1e-4)
    assert losses["triton"][0] != losses["triton"][1]
    assert set(launched.values()) == {14}


def test_a_tape_of_an_update_is_the_update_to_the_last_bit(monkeypatch: pytest.MonkeyPatch) -> None:
    """A graph is recorded of such a tape."""
    take(BF16, monkeypatch)
    model = {"name": "resnet8", "width": 0.5}
    trial = Trial.model_validate({"norm": "batch", "model": model, "batch_size": 2, "precision": "bf16"})
    x, y = torch.randn(2, 3, 4, 4).contiguous(memory_format=torch.channels_last), torch.tensor([1, 3])
    results = []
    for is_taped in (False, True):
        net = network(trial, 4).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        sgd = optimizer(trial, net)
        buffers(sgd)
        act = partial(make_update, task_of(trial), net, sgd, ALONE)
        update = RecordedStep(act, net, Tape() if is_taped else None, partial(buffers, sgd))
        results.append([*update(x, y), *update(x + 1, y), *net.state_dict().values(), *buffers(sgd)])
        assert update.path == ("tape" if is_taped else "plain")
    torch.testing.assert_close(*results, rtol=0, atol=0)


# ---- the trial that comes before the first use


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_kernels_that_are_right_are_found_so(dtype: torch.dtype) -> None:
    dispatch.agree(Fused(), CPU, dtype)


class Wrong(Fused):
    """One number of one result is off."""

    def __init__(self, of_forward: bool, place: int, by: float) -> None:
        self.of_forward, self.place, self.by = of_forward, place, by

    def _spoilt(self, results: tuple[Any, ...]) -> tuple[Any, ...]:
        spoilt: Tensor = results[self.place]
        spoilt.permute(*reversed(range(spoilt.ndim)))[(0,) * spoilt.ndim] += self.by
        return results

    def forward(self, *arguments: Any) -> Any:
        results = super().forward(*arguments)
        return self._spoilt(results) if self.of_forward else results

    def backward(self, *arguments: Any) -> Any:
        results = super().backward(*arguments)
        return results if self.of_forward else self._spoilt(results)


RESULTS = {
    "y": (True, 0),
    "dx": (False, 0),
    "dgamma": (False, 1),
    "dbeta": (False, 2),
    "dmean_weights": (False, 3),
    "dvariance_weights": (False, 4),
    "dshortcut": (False, 7),
}


@pytest.mark.parametrize("by", [0.05, float("nan")])
@pytest.mark.parametrize("name", RESULTS)
def test_a_wrong_number_is_found(name: str, by: float) -> None:
    with pytest.raises(RuntimeError, match=f"^{name} of an example is off by"):
        dispatch.agree(Wrong(*RESULTS[name], by), CPU, torch.float32)


@pytest.mark.parametrize("name", ["mean", "variance"])
def test_a_wrong_running_statistic_is_found(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    class Slow(Fused):
        def forward(self, *arguments: Any) -> Any:
            *given, running = arguments
            results = super().forward(*given, running)
            getattr(running, name)[3] += 1e-3
            return results

    with pytest.raises(RuntimeError, match=f"^{name} of an example is off by"):
        dispatch.agree(Slow(), CPU, torch.float32)
