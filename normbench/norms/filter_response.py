"""Filter response normalization and its threshold (Singh & Krishnan 2020, arXiv 1911.09737)."""

from functools import partial

import torch
from torch import Tensor, nn

from normbench.norms.api import Normalization, ShapeError
from normbench.norms.moment_norm import AffineNorm, Block, Statistics, normalize
from normbench.norms.ops.pointwise import Pointwise


class FilterResponseNorm(AffineNorm):
    """Division by the root mean square over H and W of each channel of each sample (equations 1 to 3).

    y = gamma · x / sqrt(mean of x² + eps) + beta

    max(y, tau) with a learned tau for each channel, initially 0, takes the place of a ReLU (equation 4).
    """

    def __init__(self, channels: int, eps: float) -> None:
        super().__init__(channels, eps)
        self.tau = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor, shortcut: Tensor | None = None, relu: bool = False) -> Tensor:
        """Normalize x, [N, C, H, W]; then add ``shortcut``, if any; with ``relu`` apply the threshold.

        Raises:
            ShapeError: a map has one position, and every output would be ±gamma + beta.
        """
        if x.shape[2] * x.shape[3] == 1:
            raise ShapeError("each mean of squares would be that of a single value")
        statistics = Statistics((Block(),), squares=True, centred=False)
        pointwise = Pointwise(shortcut, relu, floor=self.tau if relu else None)
        return normalize(x, self.gamma, self.beta, statistics, self.eps, pointwise)


def filter_response(eps: float) -> Normalization:
    """Return filter response normalization after every convolution, with its threshold for each ReLU."""
    return Normalization(make_layer=partial(FilterResponseNorm, eps=eps))
