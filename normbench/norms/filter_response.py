"""Filter response normalization and its threshold (Singh & Krishnan 2020, arXiv 1911.09737)."""

from functools import partial

import torch
from torch import Tensor, nn

from normbench.norms.api import Normalization, ShapeError
from normbench.norms.moment_norm import Block, Statistics, normalize


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
        if x.shape[2] * x.shape[3] == 1:
            raise ShapeError("each mean of squares would be that of a single value")
        statistics = Statistics((Block(),), squares=True, centred=False)
        return normalize(x, self.gamma, self.beta, statistics, self.eps, shortcut, relu, floor=self.tau)


def filter_response(eps: float) -> Normalization:
    """Filter response normalization after every convolution, its threshold for every ReLU behind one."""
    return Normalization(make_layer=partial(FilterResponseNorm, eps=eps))
