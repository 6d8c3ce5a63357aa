"""EvoNorm S0 and B0 (Liu et al. 2020, arXiv 2004.02967, table 2): normalization and activation in one.

In front of a convolution they stand for norm and ReLU. Where a sum comes between the two, as in the blocks of
post-activation networks, they are not defined, so these take pre-activation networks only.
"""

from functools import partial

import torch
from torch import Tensor, nn

from normbench.norms.moments import Block, Moments, moments, own_rows, pool, spread_out, whole_batch
from normbench.norms.normalization import Normalization, ShapeError


class EvoNorm(nn.Module):
    """gamma · f(x) + beta, with a learned v for each channel inside f; gamma and v are initially 1."""

    takes_relu = True

    def __init__(self, channels: int, eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.gamma = nn.Parameter(torch.ones(channels))
        self.beta = nn.Parameter(torch.zeros(channels))
        self.v = nn.Parameter(torch.ones(channels))

    def act(self, x: Tensor) -> Tensor:
        """f(x); x and the result are [N, C, H, W] in fp32 or float64."""
        raise NotImplementedError

    def forward(self, x: Tensor, shortcut: Tensor | None = None, relu: bool = True) -> Tensor:
        """Normalized and activated x, [N, C, H, W].

        Raises:
            ShapeError: asked for without its activation, or with a sum in front of that.
        """
        if shortcut is not None or not relu:
            raise ShapeError("it is normalization and activation in one, and here a sum comes between them")
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        y = torch.addcmul(self.beta[:, None, None], self.act(wide), self.gamma[:, None, None])
        return y.to(x.dtype)


class EvoNormS0(EvoNorm):
    """f(x) = x · sigmoid(v · x) / sqrt(variance over a group of channels of a sample + eps)."""

    def __init__(self, channels: int, groups: int, eps: float) -> None:
        super().__init__(channels, eps)
        self.groups = groups

    def act(self, x: Tensor) -> Tensor:
        """f(x).

        Raises:
            ShapeError: ``groups`` does not divide C, or a group holds a single value.
        """
        N, C, H, W = x.shape
        if C % self.groups:
            raise ShapeError(f"{self.groups} groups do not divide {C} channels")
        if C // self.groups * H * W == 1:
            raise ShapeError("each variance would be that of a single value")
        block = Block(channels=C // self.groups)
        variance = spread_out(pool(moments(x), block), block, N, C).variance
        return (
            x * torch.sigmoid(self.v[:, None, None] * x) * torch.rsqrt(variance + self.eps)[..., None, None]
        )


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
        """f(x).

        Raises:
            ShapeError: the norm batch does not divide N, or a map has one position.
        """
        N, C, H, W = x.shape
        if H * W == 1:
            raise ShapeError("the variance of each map would be that of a single value")
        own = moments(x)
        shared = self._shared(own, H * W) if self.training else self.running_var.expand(N, C)
        within = torch.addcmul(torch.sqrt(own.variance + self.eps)[..., None, None], self.v[:, None, None], x)
        return x / torch.maximum(torch.sqrt(shared + self.eps)[..., None, None], within)

    def _shared(self, own: Moments, positions: int) -> Tensor:
        """The variance of every sample's norm batch, [N, C]; the running one moves on."""
        whole = whole_batch(own)
        N, C = whole.mean.shape
        if N % self.norm_batch_size:
            raise ShapeError(f"a norm batch of {self.norm_batch_size} samples does not divide a batch of {N}")
        block = Block(samples=self.norm_batch_size)
        pooled = pool(whole, block)
        values = self.norm_batch_size * positions
        with torch.no_grad():
            newest = pooled.variance.mean(0).flatten() * (values / (values - 1))
            self.running_var.lerp_(newest.to(self.running_var), self.momentum)
        return own_rows(spread_out(pooled, block, N, C)).variance


def evonorm_s0(groups: int, eps: float) -> Normalization:
    """EvoNorm S0 in front of every convolution."""
    return Normalization(layer=partial(EvoNormS0, groups=groups, eps=eps))


def evonorm_b0(eps: float, momentum: float, norm_batch_size: int) -> Normalization:
    """EvoNorm B0 in front of every convolution."""
    return Normalization(
        layer=partial(EvoNormB0, eps=eps, momentum=momentum, norm_batch_size=norm_batch_size)
    )
