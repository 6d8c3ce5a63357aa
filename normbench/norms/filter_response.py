"""Filter response normalization and its threshold (Singh & Krishnan 2020, arXiv 1911.09737)."""

from functools import partial

import torch
from torch import Tensor, nn

from normbench.norms.moments import multiply_add
from normbench.norms.normalization import Normalization, ShapeError


class FilterResponseNorm(nn.Module):
    """gamma · x / sqrt(mean of x² over H, W + eps) + beta (equations 1 to 3), per sample and channel.

    In place of a ReLU comes max(·, tau) with a learned tau for each channel, initially 0 (equation 4).
    """

    takes_relu = True

    def __init__(self, channels: int, eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.gamma = nn.Parameter(torch.ones(channels))
        self.beta = nn.Parameter(torch.zeros(channels))
        self.tau = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor, shortcut: Tensor | None = None, relu: bool = False) -> Tensor:
        """Normalize x, [N, C, H, W]; add a shortcut and apply the threshold, if so asked.

        Raises:
            ShapeError: a map has one position, and every output would be ±gamma + beta.
        """
        N, C, H, W = x.shape
        if H * W == 1:
            raise ShapeError("each mean of squares would be that of a single value")
        squares = x.to(torch.promote_types(x.dtype, torch.float32)).square().mean((2, 3))
        y = multiply_add(x, self.gamma * torch.rsqrt(squares + self.eps), self.beta.expand(N, C))
        if shortcut is not None:
            y = y + shortcut.to(y.dtype)
        return torch.maximum(y, self.tau.to(y.dtype)[:, None, None]) if relu else y


def filter_response(eps: float) -> Normalization:
    """Filter response normalization after every convolution, its threshold for every ReLU behind one."""
    return Normalization(layer=partial(FilterResponseNorm, eps=eps))
