"""A network beside another with the same weights: what both compute in training and at inference."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from normbench.norms.ops import cpu

PATHS = pytest.mark.parametrize("path", ["torch at float64", "as trained, fp32"])


def assert_trains_alike(
    ours: nn.Module,
    theirs: nn.Module,
    x: Tensor,
    loss: Callable[[Tensor], Tensor],
    path: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Compare outputs, gradients, running statistics and inference, to 1e-9 at float64.

    In fp32 it is the same of the fused passes, to 1e-3 of the largest: a ReLU's kink may be crossed by
    rounding. ``theirs`` and ``x`` are in float64.
    """
    tolerance, dtype = (1e-3, torch.float32) if "fp32" in path else (1e-9, torch.float64)
    if dtype == torch.float64:
        monkeypatch.setattr(cpu, "suited", lambda *_: None)
    ours = ours.to(dtype=dtype, memory_format=torch.channels_last)  # type: ignore[call-overload]

    def compare(actual: Tensor, expected: Tensor) -> None:
        torch.testing.assert_close(
            actual.detach().double(), expected.detach(), rtol=0, atol=tolerance * float(expected.abs().max())
        )

    for model, inputs in ((ours, x.to(dtype)), (theirs, x)):
        for _ in range(2):
            model.zero_grad()
            loss(model(inputs)).backward()
    with torch.no_grad():
        compare(ours(x.to(dtype)), theirs(x))
        compare(ours.eval()(x.to(dtype)), theirs.eval()(x))
    for mine, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert mine.grad is not None
        assert other.grad is not None
        compare(mine.grad, other.grad)
    statistics = [buffer for buffer in theirs.buffers() if buffer.ndim]
    for mine, other in zip(ours.buffers(), statistics, strict=True):
        compare(mine, other)
