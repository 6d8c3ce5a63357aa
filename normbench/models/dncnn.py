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
        dropout: 0, since it has no place in this network.
        depth: number of convolutions.
        channels: of every map in between.
        skip: the network estimates the noise, which is subtracted from its input (the paper's residual
            learning); otherwise it gives the image itself.
    """

    places: ClassVar = {"conv": "stem", "body": "stage1", "final": "final_linear"}

    def __init__(self, norm: Normalization, dropout: float, depth: int, channels: int, skip: bool) -> None:  # noqa: ARG002
        super().__init__()
        self.conv = norm.wrap_conv(conv3x3(3, channels, 1))
        self.body = nn.Sequential(*(ConvNorm(channels, channels, 1, norm) for _ in range(depth - 2)))
        self.final = FinalConv(channels, 3)
        self.skip = skip

    def forward(self, x: Tensor) -> Tensor:
        """Return images [N, 3, H, W] without the noise of x, [N, 3, H, W]."""
        y: Tensor = self.final(self.body(F.relu(self.conv(x))))
        return x - y if self.skip else y
