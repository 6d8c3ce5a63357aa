"""A small U-Net (Ronneberger et al. 2015, arXiv 1505.04597) with any normalization, for any image size."""

from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from normbench.models.layers import ConvNorm, FinalConv
from normbench.norms.api import Normalization


class UNet(nn.Module):
    """Three resolutions, with C, 2 C and 4 C channels.

    A strided convolution halves a map. On the way back each map is repeated to the size of the one on the way
    down, and goes through a convolution with it. Norm and ReLU follow every convolution but the last.

    Args:
        norm: the method.
        dropout: 0, since it has no place in this network.
        channels: C.
        skip: the network estimates the noise, which is subtracted from its input; otherwise it gives the
            image itself.
    """

    places: ClassVar = {
        **dict.fromkeys(("down1", "down2", "down3"), "stage1"),
        "middle": "stage2",
        **dict.fromkeys(("up2", "up1"), "stage3"),
        "final": "final_linear",
    }

    def __init__(self, norm: Normalization, dropout: float, channels: int, skip: bool) -> None:  # noqa: ARG002
        super().__init__()
        C = channels
        self.down1 = nn.Sequential(ConvNorm(3, C, 1, norm), ConvNorm(C, C, 1, norm))
        self.down2 = nn.Sequential(ConvNorm(C, 2 * C, 2, norm), ConvNorm(2 * C, 2 * C, 1, norm))
        self.down3 = ConvNorm(2 * C, 4 * C, 2, norm)
        self.middle = ConvNorm(4 * C, 4 * C, 1, norm)
        self.up2 = ConvNorm(6 * C, 2 * C, 1, norm)
        self.up1 = ConvNorm(3 * C, C, 1, norm)
        self.final = FinalConv(C, 3)
        self.skip = skip

    def forward(self, x: Tensor) -> Tensor:
        """Return images [N, 3, H, W] without the noise of x, [N, 3, H, W]."""
        fine = self.down1(x)
        coarse = self.down2(fine)
        merged = self.up2(_beside(self.middle(self.down3(coarse)), coarse))
        y: Tensor = self.final(self.up1(_beside(merged, fine)))
        return x - y if self.skip else y


def _beside(x: Tensor, beside: Tensor) -> Tensor:
    """Return the channels of x, its values repeated to the size of the other map, and those of that map."""
    return torch.cat((F.interpolate(x, beside.shape[2:], mode="nearest"), beside), 1)
