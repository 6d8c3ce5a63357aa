"""He et al.'s residual networks for CIFAR (2016, arXiv 1512.03385, section 4.2), with any normalization."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from normbench.norms.normalization import Normalization

CHANNELS_LAST = torch.channels_last


class Block(nn.Module):
    """Two 3×3 convolutions beside a shortcut without parameters (the paper's option A).

    Where a stage begins, the shortcut takes every second row and column and fills the new channels with
    zeros.
    """

    def __init__(self, channels_in: int, channels: int, stride: int, norm: Normalization) -> None:
        super().__init__()
        self.conv1 = norm.conv(_conv3x3(channels_in, channels, stride))
        self.norm1 = norm.layer(channels)
        self.conv2 = norm.conv(_conv3x3(channels, channels, 1))
        self.norm2 = norm.layer(channels)
        self.stride = stride
        self.new_channels = channels - channels_in
        self.normalization = norm

    def forward(self, x: Tensor) -> Tensor:
        """[N, C, H, W] -> [N, C', H / stride, W / stride]."""
        branch = self.normalization.relu(self.norm1, self.conv1(x))
        same = self.stride == 1 and self.new_channels == 0
        shortcut: Tensor = x if same else _Shortcut.apply(x, self.stride, self.new_channels)
        return self.normalization.relu(self.norm2, self.conv2(branch), shortcut)


class _Shortcut(torch.autograd.Function):
    """Every ``stride``-th row and column, with ``new_channels`` of zeros around the old channels.

    What indexing and padding would do; their own backward pass answers in another memory order than
    channels-last, and every addition that meets such a gradient is several times slower.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, stride: int, new_channels: int) -> Tensor:
        """[N, C, H, W] -> [N, C + new_channels, ceil(H / stride), ceil(W / stride)]."""
        ctx.shape, ctx.stride, ctx.before = x.shape, stride, new_channels // 2
        N, C = x.shape[:2]
        y = torch.zeros_like(
            x[:, :1, ::stride, ::stride].expand(N, C + new_channels, -1, -1), memory_format=CHANNELS_LAST
        )
        y[:, ctx.before : ctx.before + C] = x[:, :, ::stride, ::stride]
        return y

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> Any:
        """The gradient of x."""
        dx = torch.zeros_like(dy[:, :1, :1, :1].expand(ctx.shape), memory_format=CHANNELS_LAST)
        dx[:, :, :: ctx.stride, :: ctx.stride] = dy[:, ctx.before : ctx.before + ctx.shape[1]]
        return dx, None, None


class ResNet(nn.Module):
    """6n + 2 layers: a convolution, three stages of n blocks with 16, 32, 64 channels, a linear layer.

    Args:
        depth: 6n + 2.
        width: multiplies the channels, rounded to whole ones.
        classes: outputs of the linear layer.
        norm: what stands behind every convolution.
    """

    def __init__(self, depth: int, width: float, classes: int, norm: Normalization) -> None:
        super().__init__()
        blocks = (depth - 2) // 6
        channels = [max(1, round(base * width)) for base in (16, 32, 64)]
        self.conv = norm.conv(_conv3x3(3, channels[0], 1))
        self.norm = norm.layer(channels[0])
        self.normalization = norm
        stages, channels_in = [], channels[0]
        for stage, channels_out in enumerate(channels):
            strides = [1 if stage == 0 else 2] + [1] * (blocks - 1)
            stages.append(
                nn.Sequential(
                    *(
                        Block(channels_in if i == 0 else channels_out, channels_out, s, norm)
                        for i, s in enumerate(strides)
                    )
                )
            )
            channels_in = channels_out
        self.stage1, self.stage2, self.stage3 = stages
        self.linear = nn.Linear(channels_in, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Images [N, 3, H, W] -> logits [N, classes]."""
        x = self.normalization.relu(self.norm, self.conv(x))
        x = self.stage3(self.stage2(self.stage1(x)))
        logits: Tensor = self.linear(x.mean((2, 3)))
        return logits

    def zero_init_residual(self) -> None:
        """Start every block as its shortcut: gamma = 0 in its last normalization, where that has one."""
        for module in self.modules():
            if isinstance(module, Block) and isinstance(
                gamma := getattr(module.norm2, "gamma", None), Tensor
            ):
                nn.init.zeros_(gamma)


def _conv3x3(channels_in: int, channels: int, stride: int) -> nn.Conv2d:
    """Without a bias, which a norm would cancel; initialised as in He et al. 2015, arXiv 1502.01852."""
    conv = nn.Conv2d(channels_in, channels, 3, stride, padding=1, bias=False)
    nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
    return conv


def _resnet(depth: int, classes: int, norm: Normalization, width: float) -> ResNet:
    return ResNet(depth, width, classes, norm)


Builder = Callable[..., ResNet]
resnet8: Builder = partial(_resnet, 8)
resnet14: Builder = partial(_resnet, 14)
resnet20: Builder = partial(_resnet, 20)
resnet32: Builder = partial(_resnet, 32)
resnet44: Builder = partial(_resnet, 44)
resnet56: Builder = partial(_resnet, 56)
resnet110: Builder = partial(_resnet, 110)
