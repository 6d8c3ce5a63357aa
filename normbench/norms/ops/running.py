"""What the statistics of earlier updates are for: they are followed, correct the newest, and are averaged."""

from typing import Any

import torch
from torch import Tensor

from normbench.norms.ops.cpu import Past, Running


@torch.no_grad()
def follow(running: Running, mean: Tensor, variance: Tensor) -> None:
    """Move running statistics on by the average over the norm batches, [G, 1, C, 1] each."""
    mean, variance = (part.mean(0).flatten().to(running.variance) for part in (mean, variance))
    if running.mean is not None:
        running.mean.lerp_(mean, running.momentum)
    running.variance.lerp_(variance * running.unbias, running.momentum)


@torch.no_grad()
def correction(running: Running, mean: Tensor, variance: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """r and d of every norm batch, like its mean and variance, [G, 1, C, 1] each: constants to the gradient.

    r is deviation / running deviation, and d is (mean - running mean) / running deviation, or 0 where no mean
    is kept; both within ``running.bounds`` (Ioffe 2017, arXiv 1702.03275, algorithm 1).
    """
    assert running.bounds is not None
    least, most, most_d = running.bounds
    deviation = (running.variance[:, None] + eps).sqrt()
    r = ((variance + eps).sqrt() / deviation).clamp(least, most)
    if running.mean is None:
        return r, torch.zeros_like(r)
    return r, ((mean - running.mean[:, None]) / deviation).clamp(-most_d, most_d)


def averaged(past: Past, variance: Tensor, eps: float, values: int) -> Tensor:
    """The variances of blocks of so many values, averaged over updates; and so will be their gradients."""
    used: Tensor = _OverUpdates.apply(variance, *past, eps, values)
    return used


class _OverUpdates(torch.autograd.Function):
    """See :class:`Past`."""

    @staticmethod
    def forward(ctx: Any, *arguments: Any) -> Any:
        """Variances, those of the past, their gradients -> variances."""
        own, variances, gradients, averages, eps, values = arguments
        used = _after(variances, own, averages)
        ctx.gradients, ctx.averages, ctx.values = gradients, averages, values
        ctx.save_for_backward(used + eps)
        return used

    @staticmethod
    def backward(ctx: Any, *upstream: Any) -> Any:
        """With variance v, M values and gradient d of v, the mean of z · dL/dz is -2 v d / M."""
        (variance,) = ctx.saved_tensors
        unit = -ctx.values / (2 * variance)
        return _after(ctx.gradients, upstream[0] / unit, ctx.averages) * unit, None, None, None, None, None


@torch.no_grad()
def _after(past: Tensor, newest: Tensor, averages: bool) -> Tensor:
    """The newest, or the mean of the past with it, which moves in place: no position depends on the time."""
    row = newest.reshape(1, *past.shape[1:]).to(past)
    past.copy_(torch.cat([past[1:], row]))
    return past.mean(0).to(newest).reshape(newest.shape) if averages else newest.clone()
