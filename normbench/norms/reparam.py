"""Convolutions that compute with a function of their weights, recomputed at every use.

One idea is under all of them. Every output channel has a row v of weights, its fan-in, and computes with

    w = scale · u,   u = v - mean(v) or v itself,   scale = gain / sqrt(max(Σ u² / over + eps, smallest)) or 1

:func:`by_rows` is the definition, in plain torch for any device and precision. On a CPU with a C compiler it
is one call forward and one backward (``weights.c``); ``tests/norms/test_reparam.py`` holds the two together.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from normbench.config.catalog.norms import NORMS
from normbench.norms.api import Normalization
from normbench.norms.ops import cpu, dispatch
from normbench.norms.ops.pointwise import refuse_second_derivatives

FAN_IN = (1, 2, 3)  # dimensions of a weight that feed one output channel: [out, in, kh, kw]


class Scale(NamedTuple):
    """gain / sqrt(max(Σ u² / over + eps, smallest)) for every row u.

    Attributes:
        gain: [out]; None for 1.
        over: the fan-in, where the mean of squares is meant.
        eps: added to that.
        smallest: where it takes over, and with recent torch at the bound itself, the sum has no gradient.
    """

    gain: Tensor | None = None
    over: float = 1.0
    eps: float = 0.0
    smallest: float = 0.0

    def of(self, rows: Tensor) -> Tensor:
        """Of rows, [out, in, kh, kw], the scale of each, [out, 1, 1, 1]."""
        unit = None
        if not (self.eps or self.smallest):  # squares alone would leave the range of numbers
            most = rows.detach().abs().amax(FAN_IN, keepdim=True)
            unit = most.masked_fill(~most.isfinite(), 1)
            rows = rows / unit
        squares = rows.square().sum(FAN_IN, keepdim=True)
        if self.over != 1 or self.eps:
            squares = squares / self.over + self.eps
        if self.smallest:
            squares = squares.clamp_min(self.smallest)
        scale = squares.rsqrt() if unit is None else squares.rsqrt() / unit
        return scale if self.gain is None else scale * self.gain[:, None, None, None]


def by_rows(weight: Tensor, centre: bool, scale: Scale | None = None) -> Tensor:
    """The weights, less the mean of each row if so asked, then times the scale of each row.

    Args:
        weight: [out, in, kh, kw].
        centre: subtract the mean over the fan-in.
        scale: None for 1.

    Returns:
        What a convolution multiplies by, of the shape of ``weight``: in its precision, or in that of
        autocast, rounded once, where it is compiled.
    """
    halved = torch.is_autocast_enabled("cpu") and torch.get_autocast_dtype("cpu") == torch.bfloat16
    dtype = torch.bfloat16 if halved else weight.dtype
    compiled = cpu.compiled(dtype, weight)
    dispatch.note(dispatch.TORCH if compiled is None else dispatch.COMPILED)
    if compiled is not None:
        gain, length = (None, None) if scale is None else (scale.gain, scale[1:])
        if not torch.is_grad_enabled():  # to enter an autograd.Function takes as long as the work
            return compiled.weights(*_in_rows(weight, gain), centre, length, dtype)[0]
        w: Tensor = _Compiled.apply(weight, gain, centre, length, dtype, compiled)
        return w
    rows = weight - weight.mean(FAN_IN, keepdim=True) if centre else weight
    return rows if scale is None else rows * scale.of(rows)


def _in_rows(weight: Tensor, gain: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """As the kernels read them: every row in one piece, which it is in both memory formats."""
    if not weight.is_contiguous(memory_format=torch.channels_last):
        weight = weight.contiguous()
    return weight, None if gain is None else gain.to(weight).contiguous()


class _Compiled(torch.autograd.Function):
    """The same in one call forward and one backward; keeps the weights and four numbers a row."""

    @staticmethod
    def forward(ctx: Any, *arguments: Any) -> Any:
        """See :func:`by_rows`."""
        weight, gain, centre, length, dtype, compiled = arguments
        weight, gain = _in_rows(weight, gain)
        w, saved = compiled.weights(weight, gain, centre, length, dtype)
        ctx.centre, ctx.scaled, ctx.compiled = centre, length is not None, compiled
        ctx.save_for_backward(weight, gain, saved)
        return w

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        """The gradients of the weights and of the gain."""
        refuse_second_derivatives()
        weight, gain, saved = ctx.saved_tensors
        order = torch.contiguous_format if weight.is_contiguous() else torch.channels_last
        dw = gradients[0].contiguous(memory_format=order)
        dv, dgain = ctx.compiled.weights_backward(dw, weight, gain, saved, ctx.centre, ctx.scaled)
        return dv, dgain, None, None, None, None


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
        """What the convolution multiplies by, of the shape of ``weight``."""
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        """[N, C, H, W] -> [N, C', H', W']."""
        return F.conv2d(x, self.effective(), self.bias, self.stride, self.padding)


class CentredConv(FunctionOfWeights):
    """W - mean; the scale of the weights is left alone."""

    def effective(self) -> Tensor:
        """The centred weights."""
        return by_rows(self.weight, centre=True)


def with_layer(conv: Callable[..., nn.Module], layer: str, groups: int) -> Normalization:
    """Such convolutions, with group normalization behind them or, alone, with a bias.

    Args:
        conv: (convolution, bias) -> the module that takes its place.
        layer: 'none' or 'group'.
        groups: of group normalization.
    """
    if layer == "none":
        return Normalization(wrap_conv=lambda plain: conv(plain, bias=True))
    group = NORMS["group"]
    options = {key: option.default for key, option in group.options.items()} | {"groups": groups}
    behind: Normalization = group.load()(**options)
    return Normalization(wrap_conv=lambda plain: conv(plain, bias=False), make_layer=behind.make_layer)
