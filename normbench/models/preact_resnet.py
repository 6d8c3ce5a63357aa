"""Pre-activation residual networks for CIFAR (He et al. 2016, arXiv 1603.05027), with any normalization.

With normalizer-free residual branches these are the NF-ResNets of Brock et al. (2021, arXiv 2101.08692); with
any other method, the same network on equal terms.
"""

from collections.abc import Callable
from functools import partial
from typing import ClassVar

from torch import Tensor, nn

from normbench.models.layers import FinalLinear, Position, conv1x1, conv3x3, dropout, positions, stem_channels
from normbench.norms.api import Normalization, relu


class PreactBlock(nn.Module):
    """Norm, ReLU and convolution, twice, beside an identity shortcut.

    In the first block of a stage the shortcut is a strided 1×1 convolution of the activated input.
    """

    # convolutions whose output goes to this norm alone
    into_norm: ClassVar = {"conv1": "norm2"}

    def __init__(self, position: Position, norm: Normalization, drop: float) -> None:
        super().__init__()
        _, channels_in, channels, stride, additions = position
        self.norm1 = norm.make_layer(channels_in)
        self.conv1 = norm.wrap_conv(conv3x3(channels_in, channels, stride))
        self.norm2 = norm.make_layer(channels)
        self.dropout = dropout(drop)
        self.conv2 = norm.wrap_conv(conv3x3(channels, channels, 1))
        same = stride == 1 and channels_in == channels
        self.projection = None if same else norm.wrap_conv(conv1x1(channels_in, channels, stride))
        self.residual = norm.make_residual(additions)

    def forward(self, x: Tensor) -> Tensor:
        """Map x, [N, C, H, W], to [N, C', H / stride, W / stride]."""
        total: Tensor = self.residual(*self.summands(x))
        return total

    def summands(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return shortcut and branch, which ``residual`` combines."""
        active = relu(self.norm1, x)
        if self.residual.beta != 1:
            active = active * self.residual.beta
        shortcut = x if self.projection is None else self.projection(active)
        return shortcut, self.conv2(self.dropout(relu(self.norm2, self.conv1(active))))


class PreactResNet(nn.Module):
    """6n + 2 layers: a convolution, three stages of n blocks with 16, 32, 64 channels, a linear layer.

    The linear layer starts at N(0, 0.01²) and a bias of 0, as in the authors' normalizer-free code.

    Args:
        depth: 6n + 2.
        width: factor of the numbers of channels, which are rounded.
        classes: number of outputs of the linear layer.
        norm: the method.
        dropout: the fraction dropped between the two convolutions of a block, behind the ReLU.
    """

    places: ClassVar = {"conv": "stem", "last_norm": "stage3", "linear": "final_linear"}

    def __init__(self, depth: int, width: float, classes: int, norm: Normalization, dropout: float) -> None:
        super().__init__()
        self.conv = norm.wrap_conv(conv3x3(3, stem_channels(width), 1))
        stages: tuple[list[nn.Module], ...] = [], [], []
        for position in positions(depth, width):
            stages[position.stage].append(PreactBlock(position, norm, dropout))
        self.stage1, self.stage2, self.stage3 = (nn.Sequential(*blocks) for blocks in stages)
        self.last_norm = norm.make_layer(position.channels)
        self.linear = FinalLinear(position.channels, classes)
        nn.init.normal_(self.linear.weight, std=0.01)
        nn.init.zeros_(self.linear.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits [N, classes] of images [N, 3, H, W]."""
        x = self.stage3(self.stage2(self.stage1(self.conv(x))))
        logits: Tensor = self.linear(relu(self.last_norm, x).mean((2, 3)))
        return logits


def _preact_resnet(
    depth: int, classes: int, norm: Normalization, width: float, dropout: float = 0.0
) -> PreactResNet:
    return PreactResNet(depth, width, classes, norm, dropout)


Builder = Callable[..., PreactResNet]
preact_resnet8: Builder = partial(_preact_resnet, 8)
preact_resnet14: Builder = partial(_preact_resnet, 14)
preact_resnet20: Builder = partial(_preact_resnet, 20)
preact_resnet32: Builder = partial(_preact_resnet, 32)
preact_resnet44: Builder = partial(_preact_resnet, 44)
preact_resnet56: Builder = partial(_preact_resnet, 56)
preact_resnet110: Builder = partial(_preact_resnet, 110)
