"""Moving average batch normalization (Yan et al. 2020, arXiv 2001.06838, section 3)."""

from functools import partial
from typing import Any

import torch
from torch import Tensor

from normbench.norms.api import Clock, Normalization, ShapeError
from normbench.norms.moment_norm import AffineNorm, Block, Statistics, normalize
from normbench.norms.ops.operators import Past, Running
from normbench.norms.ops.pointwise import Pointwise, multiply_add
from normbench.norms.reparam import CentredConv

BOUND = 5.0  # of the correction by the running statistics, and 1 / 5 its lower one


class MovingAverageBatchNorm(AffineNorm):
    """r · x / sqrt(mean of x² over past updates + eps), then gamma and beta; r is a constant to the gradient.

    BN without its mean, which centred weights make unnecessary, leaves one statistic of a norm batch in each
    direction: the mean of x² and, with z = x / sqrt(mean of x² + eps), the mean of z · dL/dz (section 3).
    Both are averaged over the last ``window`` updates, for each of an update's norm batches apart. r is the
    ratio of that deviation to the running one, which follows it by ``momentum`` and serves inference.

    Each norm batch stands for itself until ``warmup_updates`` have been made and ``window`` are there, and r
    is 1 for the first ``renorm_updates``, as in the authors' released code.

    Args:
        channels: C.
        eps: added to the mean of squares before the square root.
        momentum: weight of the newest average in the running one.
        norm_batch_size: samples that share statistics in training.
        norm_batches: number of norm batches in an update.
        window: number of updates that the averages run over.
        warmup_updates: number of updates before the averages are used.
        renorm_updates: number of updates before r is used.
    """

    running_squares: Tensor
    squares: Tensor
    gradients: Tensor

    def __init__(
        self,
        channels: int,
        eps: float,
        momentum: float,
        norm_batch_size: int,
        norm_batches: int,
        window: int,
        warmup_updates: int,
        renorm_updates: int,
    ) -> None:
        super().__init__(channels, eps)
        self.momentum, self.norm_batch_size = momentum, norm_batch_size
        self.averages_from = max(window, warmup_updates - 1)  # updates made
        self.renormalizes_from = max(renorm_updates, warmup_updates)
        self.averages = self.renormalizes = False
        self.register_buffer("running_squares", torch.ones(channels))
        self._bounds: Tensor  # of r; and of what would be added, which is nothing
        self.register_buffer("_bounds", torch.tensor([1 / BOUND, BOUND, 0]), persistent=False)
        # the last of both statistics, newest last, [window, norm batches of an update, C]
        self.register_buffer("squares", torch.zeros(window, norm_batches, channels))
        self.register_buffer("gradients", torch.zeros(window, norm_batches, channels))

    def at(self, clock: Clock) -> None:
        """Set whether this update uses the averages and the correction."""
        self.averages = clock.step >= self.averages_from
        self.renormalizes = clock.step >= self.renormalizes_from

    def forward(self, x: Tensor, shortcut: Tensor | None = None, relu: bool = False) -> Tensor:
        """Normalize x, [N, C, H, W]: by averages over past updates in training, at inference by running ones.

        Raises:
            ShapeError: there are no statistics for this shape.
        """
        N, C, H, W = x.shape
        if not self.training:
            scale = (self.gamma * torch.rsqrt(self.running_squares + self.eps)).expand(N, C)
            return multiply_add(x, scale, self.beta.expand(N, C), Pointwise(shortcut, relu))
        batches = self.squares.shape[1]
        if batches * self.norm_batch_size != N:
            words = f"a batch of {N} samples is not {batches} norm batches of {self.norm_batch_size}"
            raise ShapeError(words)
        if self.norm_batch_size * H * W == 1:
            raise ShapeError("each mean of squares would be that of a single value")

        bounds = self._bounds if self.renormalizes else None
        past = Past(self.squares, self.gradients, self.averages)
        running = Running(None, self.running_squares, self.momentum, 1.0, bounds, past=past)
        statistics = Statistics((Block(samples=self.norm_batch_size),), squares=True, centred=False)
        parameters = self.gamma, self.beta, statistics, self.eps
        return normalize(x, *parameters, Pointwise(shortcut, relu), running)


def moving_average_batch(**options: Any) -> Normalization:
    """Return MABN after every convolution, whose weights are centred; its options are those of the layer."""
    return Normalization(
        make_layer=partial(MovingAverageBatchNorm, **options),
        wrap_conv=lambda plain: CentredConv(plain, bias=False),
    )
