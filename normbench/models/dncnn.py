"""The denoising network of Zhang et al. (2017, arXiv 1608.03981), with any normalization."""

from typing import ClassVar

import torch.nn.functional as F
from torch import Tensor, nn

from normbench.models.layers import ConvNorm, FinalConv, conv3x3
from normbench.norms.api import Normalization


class DnCNN(nn.Module):
    """A convolution and ReLU, ``depth - 2`` times convolution, norm and ReLU, and a convolution.

    Args:
        norm: the method.
        depth: number of convolutions.
        width: channels of every map in between.
        skip: the network estimates the noise, which is subtracted from its input (the paper's residual
            learning); otherwise it gives the image itself.
    """

    places: ClassVar = {"conv": "stem", "body": "stage1", "final": "final_linear"}

    def __init__(self, norm: Normalization, depth: int, width: int, skip: bool) -> None:
        super().__init__()
        self.conv = norm.wrap_conv(conv3x3(3, width, 1))
        self.body = nn.Sequential(*(ConvNorm(width, width, 1, norm) for _ in range(depth - 2)))
        self.final = FinalConv(width, 3)
        self.skip = skip

    def forward(self, x: Tensor) -> Tensor:
        """Return images [N, 3, H, W] without the noise of x, [N, 3, H, W]."""
        y: Tensor = self.final(self.body(F.relu(self.conv(x))))
        return x - y if self.skip else y


def dncnn(norm: Normalization, depth: int, width: int, skip: bool, dropout: float = 0.0) -> DnCNN:  # noqa: ARG001
    """Return a DnCNN; it has no place for dropout, which a trial with it refuses."""
    return DnCNN(norm, depth, width, skip)
