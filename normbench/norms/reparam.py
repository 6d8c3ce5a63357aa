"""Convolutions that compute with a function of their weights, recomputed at every use.

Every output channel has a row v of weights, its fan-in, and computes with

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
    """gain / sqrt(max(Σ u² / over + eps, smallest)) for each row u.

    Attributes:
        gain: [out]; None for 1.
        over: divisor of the sum: 1, or the fan-in for a mean of squares.
        eps: addend.
        smallest: lower bound; below it, and with recent torch at it, the sum has no gradient.
    """

    gain: Tensor | None = None
    over: float = 1.0
    eps: float = 0.0
    smallest: float = 0.0

    def of(self, rows: Tensor) -> Tensor:
        """Return the scale, [out, 1, 1, 1], of each of the rows, [out, in, kh, kw]."""
        unit = None
        if not (self.eps or self.smallest):  # squares alone would leave the range of numbers
            largest = rows.detach().abs().amax(FAN_IN, keepdim=True)
            unit = largest.masked_fill(~largest.isfinite(), 1)
            rows = rows / unit
        squares = rows.square().sum(FAN_IN, keepdim=True)
        if self.over != 1 or self.eps:
            squares = squares / self.over + self.eps
        if self.smallest:
            squares = squares.clamp_min(self.smallest)
        scale = squares.rsqrt() if unit is None else squares.rsqrt() / unit
        return scale if self.gain is None else scale * self.gain[:, None, None, None]


def by_rows(weight: Tensor, centre: bool, scale: Scale | None = None) -> Tensor:
    """Return the weights, with ``centre`` less the mean of each row, times the scale of each row.

    Args:
        weight: [out, in, kh, kw].
        centre: subtract the mean over the fan-in.
        scale: None for 1.

    Returns:
        Weights of a convolution, [out, in, kh, kw]: in the precision of ``weight``, or where they are
        compiled in that of autocast, rounded once.
    """
    is_halved = torch.is_autocast_enabled("cpu") and torch.get_autocast_dtype("cpu") == torch.bfloat16
    dtype = torch.bfloat16 if is_halved else weight.dtype
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
    """Return both as the kernels read them: each row contiguous, which it is in both memory formats."""
    if not weight.is_contiguous(memory_format=torch.channels_last):
        weight = weight.contiguous()
    return weight, None if gain is None else gain.to(weight).contiguous()


class _Compiled(torch.autograd.Function):
    """:func:`by_rows` in one compiled call per pass; keeps the weights and four numbers a row."""

    @staticmethod
    def forward(ctx: Any, *arguments: Any) -> Any:
        """Compute :func:`by_rows`."""
        weight, gain, centre, length, dtype, compiled = arguments
        weight, gain = _in_rows(weight, gain)
        w, saved = compiled.weights(weight, gain, centre, length, dtype)
        ctx.centre, ctx.scaled, ctx.compiled = centre, length is not None, compiled
        ctx.save_for_backward(weight, gain, saved)
        return w

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        """Return the gradients of the weights and of the gain."""
        refuse_second_derivatives()
        weight, gain, saved = ctx.saved_tensors
        order = torch.contiguous_format if weight.is_contiguous() else torch.channels_last
        dw = gradients[0].contiguous(memory_format=order)
        dv, dgain = ctx.compiled.weights_backward(dw, weight, gain, saved, ctx.centre, ctx.scaled)
        return dv, dgain, None, None, None, None


class FunctionOfWeights(nn.Module):
    """A convolution whose weights are a function of its parameters, :meth:`effective`.

    Args:
        conv: source of weight, bias, stride, padding and its mode, dilation and groups.
        bias: add a learned bias, initially 0, where ``conv`` has none, for networks in which no beta follows.
    """

    def __init__(self, conv: nn.Conv2d, bias: bool) -> None:
        super().__init__()
        self.weight, self.bias = conv.weight, conv.bias
        if bias and self.bias is None:
            self.bias = nn.Parameter(self.weight.new_zeros(conv.out_channels))
        self.stride, self.padding = conv.stride, conv.padding
        self.dilation, self.groups = conv.dilation, conv.groups
        self.padding_mode = conv.padding_mode
        # of the last dimension first, as F.pad has it, for modes that F.conv2d does not know
        self.margins: list[int] = conv._reversed_padding_repeated_twice

    def effective(self) -> Tensor:
        """Return the weights that the convolution multiplies by, [out, in / groups, kh, kw]."""
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        """Convolve x, [N, C, H, W], into [N, C', H', W']."""
        return self.convolve(x, self.bias)

    def convolve(self, x: Tensor, bias: Tensor | None) -> Tensor:
        """Convolve x, [N, C, H, W], with the effective weights and ``bias``."""
        padding = self.padding
        if self.padding_mode != "zeros":
            x, padding = F.pad(x, self.margins, mode=self.padding_mode), (0, 0)
        return F.conv2d(x, self.effective(), bias, self.stride, padding, self.dilation, self.groups)


class CentredConv(FunctionOfWeights):
    """A convolution with weights W - mean, the mean over the fan-in of each output channel."""

    def effective(self) -> Tensor:
        """Return the centred weights."""
        return by_rows(self.weight, centre=True)


def with_layer(conv: Callable[..., nn.Module], layer: str, groups: int) -> Normalization:
    """Return these convolutions with group normalization behind them or, without, with a bias.

    Args:
        conv: (convolution, bias) -> the module that replaces it.
        layer: 'none' or 'group'.
        groups: number of groups of group normalization.
    """
    if layer == "none":
        return Normalization(wrap_conv=lambda plain: conv(plain, bias=True))
    group = NORMS["group"]
    options = {key: option.default for key, option in group.options.items()} | {"groups": groups}
    behind: Normalization = group.load()(**options)
    return Normalization(wrap_conv=lambda plain: conv(plain, bias=False), make_layer=behind.make_layer)
