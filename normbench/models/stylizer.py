"""A small stylization network after Johnson et al. (2016, arXiv 1603.08155), with any normalization.

As in Ulyanov et al. (2016, arXiv 1607.08022) one layer of the method follows every convolution but the last.
For images of 32×32 pixels there is one halving of the map and not two, all convolutions are 3×3, and maps are
padded by zeros; enlarging is by repetition and a convolution (Odena et al. 2016), which has no checkerboards.
"""

from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from normbench.models.layers import ConvNorm, FinalConv, conv3x3, dropout
from normbench.norms.api import Normalization, relu


class StylizerBlock(nn.Module):
    """Convolution, norm, ReLU, convolution and norm beside an identity; nothing follows the sum."""

    into_norm: ClassVar = {"conv1": "norm1", "conv2": "norm2"}

    def __init__(self, channels: int, norm: Normalization, drop: float) -> None:
        super().__init__()
        self.conv1 = norm.wrap_conv(conv3x3(channels, channels, 1))
        self.norm1 = norm.make_layer(channels)
        self.dropout = dropout(drop)
        self.conv2 = norm.wrap_conv(conv3x3(channels, channels, 1))
        self.norm2 = norm.make_layer(channels)

    def forward(self, x: Tensor) -> Tensor:
        """Map x, [N, C, H, W], to the same shape."""
        y: Tensor = x + self.norm2(self.conv2(self.dropout(relu(self.norm1, self.conv1(x)))))
        return y


class Stylizer(nn.Module):
    """A convolution, a strided one, residual blocks, a convolution of the enlarged map and one to an image.

    Args:
        norm: the method.
        dropout: the fraction dropped between the two convolutions of a block, behind the ReLU.
        channels: C, at full resolution; there are twice as many at half of it.
        blocks: number of residual blocks.
    """

    places: ClassVar = {
        "conv": "stem", "down": "stage1", "blocks": "stage2", "up": "stage3", "final": "final_linear"
    }  # fmt: skip

    def __init__(self, norm: Normalization, dropout: float, channels: int, blocks: int) -> None:
        super().__init__()
        C = channels
        self.conv = ConvNorm(3, C, 1, norm)
        self.down = ConvNorm(C, 2 * C, 2, norm)
        self.blocks = nn.Sequential(*(StylizerBlock(2 * C, norm, dropout) for _ in range(blocks)))
        self.up = ConvNorm(2 * C, C, 1, norm)
        self.final = FinalConv(C, 3)

    def forward(self, x: Tensor) -> Tensor:
        """Return images [N, 3, H, W] with values in (0, 1), of images [N, 3, H, W]."""
        y = self.blocks(self.down(self.conv(x)))
        y = self.final(self.up(F.interpolate(y, x.shape[2:], mode="nearest")))
        return torch.sigmoid(y)

    def zero_init_residual(self) -> None:
        """Set gamma, if any, to 0 in the last norm of each block, which then starts as an identity."""
        for block in self.blocks:
            if isinstance(gamma := getattr(block.norm2, "gamma", None), Tensor):
                nn.init.zeros_(gamma)
