"""Convolutions that compute with a function of their weights, recomputed at every use."""

from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor, nn

from normbench.norms import NORMS
from normbench.norms.normalization import Normalization

FAN_IN = (1, 2, 3)  # dimensions of a weight that feed one output channel: [out, in, kh, kw]


class FunctionOfWeights(nn.Module):
    """A convolution with :meth:`effective` weights.

    Args:
        conv: gives weight, stride and padding.
        bias: add a learned one, initially 0, for networks in which no beta follows.
    """

    def __init__(self, conv: nn.Conv2d, bias: bool) -> None:
        super().__init__()
        self.weight = conv.weight
        self.bias = nn.Parameter(self.weight.new_zeros(conv.out_channels)) if bias else None
        self.stride, self.padding = conv.stride, conv.padding

    def effective(self) -> Tensor:
        """What the convolution multiplies by, of the shape of ``weight`` and in its precision."""
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        """[N, C, H, W] -> [N, C', H', W']."""
        return F.conv2d(x, self.effective(), self.bias, self.stride, self.padding)


def centred(weight: Tensor) -> Tensor:
    """The weights minus their mean over each output channel's fan-in."""
    return weight - weight.mean(FAN_IN, keepdim=True)


class CentredConv(FunctionOfWeights):
    """W - mean; the scale of the weights is left alone."""

    def effective(self) -> Tensor:
        """The centred weights."""
        return centred(self.weight)


def with_layer(conv: Callable[..., nn.Module], layer: str, groups: int) -> Normalization:
    """Such convolutions, with group normalization behind them or, alone, with a bias.

    Args:
        conv: (convolution, bias) -> the module that takes its place.
        layer: 'none' or 'group'.
        groups: of group normalization.
    """
    if layer == "none":
        return Normalization(conv=lambda plain: conv(plain, bias=True))
    group = NORMS["group"]
    options = {key: option.default for key, option in group.options.items()} | {"groups": groups}
    behind: Normalization = group.load()(**options)
    return Normalization(conv=lambda plain: conv(plain, bias=False), layer=behind.layer)
