"""He et al.'s residual networks for CIFAR (2016, arXiv 1512.03385, section 4.2), with any normalization."""

from collections.abc import Callable
from functools import partial
from typing import ClassVar

from torch import Tensor, nn

from normbench.models.layers import (
    FinalLinear,
    Position,
    Shortcut,
    conv3x3,
    dropout,
    positions,
    stem_channels,
)
from normbench.norms.api import Normalization, relu


class Block(nn.Module):
    """Two 3×3 convolutions beside a shortcut without parameters (the paper's option A).

    Where a stage begins, the shortcut takes every second row and column and fills the new channels with
    zeros.
    """

    # convolutions whose output goes to this norm alone
    into_norm: ClassVar = {"conv1": "norm1", "conv2": "norm2"}

    def __init__(self, position: Position, norm: Normalization, drop: float) -> None:
        super().__init__()
        _, channels_in, channels, self.stride, additions = position
        self.conv1 = norm.wrap_conv(conv3x3(channels_in, channels, self.stride))
        self.norm1 = norm.make_layer(channels)
        self.dropout = dropout(drop)
        self.conv2 = norm.wrap_conv(conv3x3(channels, channels, 1))
        self.norm2 = norm.make_layer(channels)
        self.residual = norm.make_residual(additions)
        self.new_channels = channels - channels_in

    def forward(self, x: Tensor) -> Tensor:
        """Map x, [N, C, H, W], to [N, C', H / stride, W / stride]."""
        return relu(self.norm2, self._convolved(x), self._shortcut(x), self.residual)

    def summands(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return shortcut and branch; the output of the block is the ReLU of their sum."""
        return self._shortcut(x), self.norm2(self._convolved(x))

    def _convolved(self, x: Tensor) -> Tensor:
        y: Tensor = self.conv2(self.dropout(relu(self.norm1, self.conv1(x))))
        return y

    def _shortcut(self, x: Tensor) -> Tensor:
        same = self.stride == 1 and self.new_channels == 0
        y: Tensor = x if same else Shortcut.apply(x, self.stride, self.new_channels)
        return y


class ResNet(nn.Module):
    """6n + 2 layers: a convolution, three stages of n blocks with 16, 32, 64 channels, a linear layer.

    Args:
        depth: 6n + 2.
        width: factor of the numbers of channels, which are rounded.
        classes: number of outputs of the linear layer.
        norm: the method.
        dropout: the fraction dropped between the two convolutions of a block, behind the ReLU.
    """

    into_norm: ClassVar = {"conv": "norm"}
    places: ClassVar = {"conv": "stem", "norm": "stem", "linear": "final_linear"}

    def __init__(self, depth: int, width: float, classes: int, norm: Normalization, dropout: float) -> None:
        super().__init__()
        self.conv = norm.wrap_conv(conv3x3(3, stem_channels(width), 1))
        self.norm = norm.make_layer(stem_channels(width))
        stages: tuple[list[nn.Module], ...] = [], [], []
        for position in positions(depth, width):
            stages[position.stage].append(Block(position, norm, dropout))
        self.stage1, self.stage2, self.stage3 = (nn.Sequential(*blocks) for blocks in stages)
        self.linear = FinalLinear(position.channels, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits [N, classes] of images [N, 3, H, W]."""
        x = relu(self.norm, self.conv(x))
        x = self.stage3(self.stage2(self.stage1(x)))
        logits: Tensor = self.linear(x.mean((2, 3)))
        return logits

    def zero_init_residual(self) -> None:
        """Set gamma, if any, to 0 in the last norm of each block, which then starts as its shortcut."""
        for module in self.modules():
            if isinstance(module, Block) and isinstance(
                gamma := getattr(module.norm2, "gamma", None), Tensor
            ):
                nn.init.zeros_(gamma)


def _resnet(depth: int, classes: int, norm: Normalization, width: float, dropout: float = 0.0) -> ResNet:
    return ResNet(depth, width, classes, norm, dropout)


Builder = Callable[..., ResNet]
resnet8: Builder = partial(_resnet, 8)
resnet14: Builder = partial(_resnet, 14)
resnet20: Builder = partial(_resnet, 20)
resnet32: Builder = partial(_resnet, 32)
resnet44: Builder = partial(_resnet, 44)
resnet56: Builder = partial(_resnet, 56)
resnet110: Builder = partial(_resnet, 110)
