"""A small U-Net (Ronneberger et al. 2015, arXiv 1505.04597) for images of any size, with any normalization."""

from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from normbench.models.layers import ConvNorm, FinalConv
from normbench.norms.api import Normalization


class UNet(nn.Module):
    """Three resolutions, with ``width``, 2 · ``width`` and 4 · ``width`` channels.

    A strided convolution halves a map. On the way back each map is repeated to the size of the one on the way
    down, and goes through a convolution with it. Norm and ReLU follow every convolution but the last.

    Args:
        norm: the method.
        width: channels at full resolution.
        skip: the network estimates the noise, which is subtracted from its input; otherwise it gives the
            image itself.
    """

    places: ClassVar = {
        **dict.fromkeys(("down1", "down2", "down3"), "stage1"),
        "middle": "stage2",
        **dict.fromkeys(("up2", "up1"), "stage3"),
        "final": "final_linear",
    }

    def __init__(self, norm: Normalization, width: int, skip: bool) -> None:
        super().__init__()
        self.down1 = nn.Sequential(ConvNorm(3, width, 1, norm), ConvNorm(width, width, 1, norm))
        self.down2 = nn.Sequential(ConvNorm(width, 2 * width, 2, norm), ConvNorm(2 * width, 2 * width, 1, norm))
        self.down3 = ConvNorm(2 * width, 4 * width, 2, norm)
        self.middle = ConvNorm(4 * width, 4 * width, 1, norm)
        self.up2 = ConvNorm(6 * width, 2 * width, 1, norm)
        self.up1 = ConvNorm(3 * width, width, 1, norm)
        self.final = FinalConv(width, 3)
        self.skip = skip

    def forward(self, x: Tensor) -> Tensor:
        """Return images [N, 3, H, W] without the noise of x, [N, 3, H, W]."""
        fine = self.down1(x)
        coarse = self.down2(fine)
        y = self.middle(self.down3(coarse))
        y = self.up2(_beside(y, coarse))
        y = self.final(self.up1(_beside(y, fine)))
        return x - y if self.skip else y


def _beside(x: Tensor, beside: Tensor) -> Tensor:
    """Return the channels of x, its values repeated to the size of the other map, and those of that map."""
    return torch.cat((F.interpolate(x, beside.shape[2:], mode="nearest"), beside), 1)


def unet(norm: Normalization, width: int, skip: bool, dropout: float = 0.0) -> UNet:  # noqa: ARG001
    """Return a U-Net; it has no place for dropout, which a trial with it refuses."""
    return UNet(norm, width, skip)
