"""EvoNorm S0 and B0 (Liu et al. 2020, arXiv 2004.02967, table 2): normalization and activation in one.

They take the place of a norm and its ReLU. Where a sum comes between the two, as in the blocks of
post-activation networks, they are not defined; so they are for pre-activation networks only.
"""

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from normbench.norms.api import Normalization, ShapeError
from normbench.norms.moment_norm import AffineNorm, Block, Statistics, constant_moments, normalize
from normbench.norms.ops.operators import Running
from normbench.norms.ops.pointwise import MapFunction, Pointwise, larger, multiply_add

SWISH = MapFunction(lambda x, v: x * torch.sigmoid(v * x), code=1)


class _Gated(torch.autograd.Function):
    """x / max(a, v · x + b), whose derivative is b / gate² where gate = v · x + b is the larger.

    Automatic differentiation would compute (gate - v · x) / gate², which cancels for large x.
    """

    @staticmethod
    def forward(ctx: Any, *arguments: Any) -> Any:
        """Compute it for x, [N, C, H, W], and v, a and b, [N, C, 1, 1] each."""
        ctx.save_for_backward(*arguments)
        x, v, a, b = arguments
        return x / larger(v * x + b, a)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        """Return the gradients, from operators that can be differentiated again."""
        x, v, a, b = ctx.saved_tensors
        gate = v * x + b
        divisor = larger(gate, a)
        raised = (gate <= a) | a.isnan()
        g = gradients[0] / divisor
        of_divisor = -g * (x / divisor)
        of_gate = of_divisor.masked_fill(raised, 0)
        sums = (part.sum((2, 3), keepdim=True) for part in (of_gate * x, of_divisor - of_gate, of_gate))
        return torch.where(raised, g, g * (b / divisor)), *sums


GATED = MapFunction(_Gated.apply, code=2, divides=True)


class EvoNorm(AffineNorm):
    """gamma · f(x) + beta, with a learned v for each channel in f; gamma and v are initially 1, beta 0."""

    is_activation = True

    def __init__(self, channels: int, eps: float) -> None:
        super().__init__(channels, eps)
        self.v = nn.Parameter(torch.ones(channels))

    def act(self, x: Tensor) -> Tensor:
        """Return gamma · f(x) + beta for x, [N, C, H, W]."""
        raise NotImplementedError

    def forward(self, x: Tensor, shortcut: Tensor | None = None, relu: bool = True) -> Tensor:
        """Return x normalized and activated, [N, C, H, W].

        Raises:
            ShapeError: the network wants no activation here, or a sum in front of it.
        """
        if shortcut is not None or not relu:
            raise ShapeError("it is normalization and activation in one, and here a sum comes between them")
        return self.act(x)


class EvoNormS0(EvoNorm):
    """f(x) = x · sigmoid(v · x) / sqrt(variance over a group of channels of a sample + eps)."""

    def __init__(self, channels: int, groups: int, eps: float) -> None:
        super().__init__(channels, eps)
        self.groups = groups

    def act(self, x: Tensor) -> Tensor:
        """Return gamma · f(x) + beta.

        Raises:
            ShapeError: ``groups`` does not divide C, or a group holds a single value.
        """
        _, C, H, W = x.shape
        if C % self.groups:
            raise ShapeError(f"{self.groups} groups do not divide {C} channels")
        if C // self.groups * H * W == 1:
            raise ShapeError("each variance would be that of a single value")
        statistics = Statistics((Block(channels=C // self.groups),), centred=False)
        swish = Pointwise(of=SWISH, inner=(self.v,))
        return normalize(x, self.gamma, self.beta, statistics, self.eps, swish)


class EvoNormB0(EvoNorm):
    """f(x) = x / max(sqrt(variance over a norm batch + eps), v · x + sqrt(variance of the map + eps)).

    At inference the first variance is the running one, which averages the unbiased variances of the batches.
    """

    running_var: Tensor

    def __init__(self, channels: int, eps: float, momentum: float, norm_batch_size: int) -> None:
        super().__init__(channels, eps)
        self.momentum = momentum
        self.norm_batch_size = norm_batch_size
        self.register_buffer("running_var", torch.ones(channels))

    def act(self, x: Tensor) -> Tensor:
        """Return gamma · f(x) + beta.

        Raises:
            ShapeError: the norm batch does not divide N, or a map has one position.
        """
        N, C, H, W = x.shape
        if H * W == 1:
            raise ShapeError("the variance of each map would be that of a single value")
        if not self.training:
            variances = self.running_var, constant_moments(x).variance
            deviations = ((variance + self.eps).sqrt() for variance in variances)
            numbers = self.gamma, self.beta, self.v, *deviations
            scale, shift, *inner = (number.expand(N, C) for number in numbers)
            return multiply_add(x, scale, shift, Pointwise(of=GATED, inner=tuple(inner)))
        statistics = Statistics((Block(samples=self.norm_batch_size),), centred=False)
        statistics.check(N, C, H * W)
        values = self.norm_batch_size * H * W
        running = Running(None, self.running_var, self.momentum, values / (values - 1))
        parameters = self.gamma, self.beta, statistics, self.eps
        return normalize(x, *parameters, Pointwise(of=GATED, inner=(self.v,)), running)


def evonorm_s0(groups: int, eps: float) -> Normalization:
    """Return EvoNorm S0 in front of every convolution."""
    return Normalization(make_layer=partial(EvoNormS0, groups=groups, eps=eps))


def evonorm_b0(eps: float, momentum: float, norm_batch_size: int) -> Normalization:
    """Return EvoNorm B0 in front of every convolution."""
    return Normalization(
        make_layer=partial(EvoNormB0, eps=eps, momentum=momentum, norm_batch_size=norm_batch_size)
    )
