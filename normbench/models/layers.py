"""What the families of residual networks are made of, whatever the order inside their blocks."""

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from normbench.norms.api import Clock
from normbench.norms.ops import sync
from normbench.norms.ops.tracing import is_capturing

CHANNELS_LAST = torch.channels_last
GOLDEN = 0x9E3779B97F4A7C15  # 2^64 over the golden ratio: its multiples are far apart


class Position(NamedTuple):
    """One block of a network.

    Attributes:
        stage: 0, 1 or 2.
        channels_in: of its input.
        channels: of its output.
        stride: of its first convolution.
        additions: branches summed in its input since the variance there was last 1: a stage's first block, as
            in normalizer-free networks, starts anew behind it.
    """

    stage: int
    channels_in: int
    channels: int
    stride: int
    additions: int


def positions(depth: int, width: float) -> Iterator[Position]:
    """The blocks of 6n + 2 layers, in order: three stages of n, with 16, 32, 64 channels times ``width``."""
    each = (depth - 2) // 6
    channels_in, additions = stem_channels(width), 0
    for stage, base in enumerate((16, 32, 64)):
        channels = max(1, round(base * width))
        for index in range(each):
            stride = 2 if stage and not index else 1
            yield Position(stage, channels_in, channels, stride, additions)
            channels_in, additions = channels, additions + 1 if index else 1


def stem_channels(width: float) -> int:
    """Outputs of the first convolution."""
    return max(1, round(16 * width))


def conv3x3(channels_in: int, channels: int, stride: int) -> nn.Conv2d:
    """Without a bias, which a norm would cancel; initialised as in He et al. 2015, arXiv 1502.01852."""
    return _initialised(nn.Conv2d(channels_in, channels, 3, stride, padding=1, bias=False))


def conv1x1(channels_in: int, channels: int, stride: int) -> nn.Conv2d:
    """Likewise."""
    return _initialised(nn.Conv2d(channels_in, channels, 1, stride, bias=False))


def _initialised(conv: nn.Conv2d) -> nn.Conv2d:
    nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
    return conv


class FinalLinear(nn.Linear):
    """The linear layer that gives logits, in the precision of its weights also where autocast would halve it.

    Of logits in bfloat16, with their 8 bits, the two largest can be equal, and then the lower class is taken.

    Attributes:
        full: whether it does that, or else what autocast says.
    """

    full = True

    def forward(self, x: Tensor) -> Tensor:
        """[N, C] -> [N, classes]."""
        if not self.full or x.is_meta or not torch.is_autocast_enabled(x.device.type):
            return super().forward(x)
        with torch.autocast(x.device.type, enabled=False):
            return super().forward(x.to(self.weight.dtype))


class Dropout(nn.Module):
    """Zeroes a share ``rate`` of the values in training and scales the others up (Srivastava et al. 2014).

    Which ones is a pure function of (seed of the trial, update, layer): a resumed trial drops the same.
    """

    not_recorded = "step", "random"

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate
        self.step = 0
        self.random: torch.Generator | None = None
        with torch.random.fork_rng(devices=[]):  # weights are drawn as in a network without dropout
            self.key = int(torch.randint(2**62, (), device="cpu"))

    def at(self, clock: Clock) -> None:
        """Take this update's values from a stream of its own."""
        self.step = clock.step

    def reseed(self) -> None:
        """Begin this update's values anew."""
        if self.random is not None:
            self.random.manual_seed((self.key + self.step * GOLDEN) % 2**64)

    def forward(self, x: Tensor) -> Tensor:
        """[N, C, H, W] -> [N, C, H, W]."""
        if not self.training or x.is_meta:
            return x
        if self.random is None or self.random.device != x.device:
            self.random = torch.Generator(x.device)
        if not is_capturing():
            self.reseed()
        share, (N, C, H, W) = sync.current(), x.shape
        whole = torch.rand(share.whole(N), H, W, C, generator=self.random, device=x.device)
        kept = share.rows(whole) >= self.rate
        return x * kept.movedim(-1, 1).to(x.dtype).div_(1 - self.rate)

    def __getstate__(self) -> dict[str, object]:
        """A copy draws from a generator of its own."""
        return vars(self) | {"random": None}


def dropout(rate: float) -> nn.Module:
    """A layer for this rate; none at 0."""
    return Dropout(rate) if rate else nn.Identity()


class Shortcut(torch.autograd.Function):
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
