"""The losses of style transfer of every image (Gatys et al. 2016; normalized as by Johnson et al. 2016)."""

from collections.abc import Sequence

import torch
from torch import Tensor


def gram(maps: Tensor) -> Tensor:
    """Return Gram matrices [N, C, C] of maps [N, C, H, W]: means over positions of products of channels."""
    rows = maps.flatten(2)
    return rows @ rows.transpose(1, 2) / rows.shape[2]


def style_loss(style: Sequence[Tensor], targets: Sequence[Tensor]) -> Tensor:
    """Return the style loss of each image, [N]: the mean over layers of that of each.

    That of a layer is the mean squared difference of the Gram matrices of its maps, [N, C, H, W], and the
    target's, [C, C]; with G divided by C·H·W it is the squared Frobenius norm of Johnson et al., equation 4.
    """
    losses = [
        (gram(maps) - target).square().mean((1, 2)) for maps, target in zip(style, targets, strict=True)
    ]
    return torch.stack(losses).mean(0)


def content_loss(content: Tensor, target: Tensor) -> Tensor:
    """Return the content loss of each image, [N]: the mean squared difference of maps [N, C, H, W]."""
    return (content - target).square().mean((1, 2, 3))
