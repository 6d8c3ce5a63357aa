"""Statistics of earlier updates: running statistics, corrections by them, and averages over a window."""

from typing import Any

import torch
from torch import Tensor

from normbench.norms.ops.operators import Past, Running


@torch.no_grad()
def follow(running: Running, mean: Tensor, variance: Tensor) -> None:
    """Update running statistics by the average over the norm batches of moments [G, 1, C, 1]."""
    mean, variance = (part.mean(0).flatten().to(running.variance) for part in (mean, variance))
    if running.mean is not None:
        running.mean.lerp_(mean, running.momentum)
    running.variance.lerp_(variance * running.unbias, running.momentum)


@torch.no_grad()
def correction(running: Running, mean: Tensor, variance: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """Return r and d of every norm batch, [G, 1, C, 1] each, as constants to the gradient.

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


def average_over_updates(past: Past, variance: Tensor, eps: float, values: int) -> Tensor:
    """Return variances of blocks of ``values`` values averaged over updates; so will be their gradients."""
    average: Tensor = _OverUpdates.apply(variance, *past, eps, values)
    return average


class _OverUpdates(torch.autograd.Function):
    """The average over the window of :class:`Past`, forward of variances and backward of gradients."""

    @staticmethod
    def forward(ctx: Any, *arguments: Any) -> Any:
        """Return the variances to normalize by."""
        newest, variances, gradients, averages, eps, values = arguments
        used = _moved(variances, newest, averages)
        ctx.gradients, ctx.averages, ctx.values = gradients, averages, values
        ctx.save_for_backward(used + eps)
        return used

    @staticmethod
    def backward(ctx: Any, *upstream: Any) -> Any:
        """Return the gradients: with variance v of M values and gradient d, mean z · dL/dz is -2 v d / M."""
        (variance,) = ctx.saved_tensors
        unit = -ctx.values / (2 * variance)
        return _moved(ctx.gradients, upstream[0] / unit, ctx.averages) * unit, None, None, None, None, None


@torch.no_grad()
def _moved(past: Tensor, newest: Tensor, averages: bool) -> Tensor:
    """Put the newest into the past in place; return it, or if ``averages`` the mean of the past with it."""
    row = newest.reshape(1, *past.shape[1:]).to(past)
    past.copy_(torch.cat([past[1:], row]))
    return past.mean(0).to(newest).reshape(newest.shape) if averages else newest.clone()
