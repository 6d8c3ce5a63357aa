"""Layers that the families of networks share, and what their parameters belong to."""

from collections.abc import Iterator, Mapping
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from normbench.norms.api import Clock, Normalization, relu
from normbench.norms.ops import sync
from normbench.norms.ops.tracing import is_capturing

CHANNELS_LAST = torch.channels_last
GOLDEN = 0x9E3779B97F4A7C15  # 2^64 over the golden ratio: its multiples are far apart


class Position(NamedTuple):
    """One block of a network.

    Attributes:
        stage: 0, 1 or 2.
        channels_in: channels of its input.
        channels: channels of its output.
        stride: stride of its first convolution.
        additions: number of branches summed in its input since the variance was last 1, which it is again
            behind the first block of a stage, as in normalizer-free networks.
    """

    stage: int
    channels_in: int
    channels: int
    stride: int
    additions: int


def positions(depth: int, width: float) -> Iterator[Position]:
    """Yield the blocks of 6n + 2 layers: three stages of n, with 16, 32 and 64 channels times ``width``."""
    blocks = (depth - 2) // 6
    channels_in, additions = stem_channels(width), 0
    for stage, base in enumerate((16, 32, 64)):
        channels = max(1, round(base * width))
        for index in range(blocks):
            stride = 2 if stage and not index else 1
            yield Position(stage, channels_in, channels, stride, additions)
            channels_in, additions = channels, additions + 1 if index else 1


def stem_channels(width: float) -> int:
    """Return the number of output channels of the first convolution."""
    return max(1, round(16 * width))


def conv3x3(channels_in: int, channels: int, stride: int) -> nn.Conv2d:
    """Return a 3×3 convolution without a bias, which a norm would cancel.

    It is initialised as in He et al. 2015, arXiv 1502.01852.
    """
    return _initialised(nn.Conv2d(channels_in, channels, 3, stride, padding=1, bias=False))


def conv1x1(channels_in: int, channels: int, stride: int) -> nn.Conv2d:
    """Return a 1×1 convolution without a bias, initialised like :func:`conv3x3`."""
    return _initialised(nn.Conv2d(channels_in, channels, 1, stride, bias=False))


def _initialised(conv: nn.Conv2d) -> nn.Conv2d:
    nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
    return conv


class FinalLayer(nn.Module):
    """The layer that computes the output of a network, in the precision of its weights also under autocast.

    It is the one layer that has a bias whatever the method. In bfloat16, with 8 bits, the two largest logits
    can be equal; the class of lower number would be taken.

    Attributes:
        full: whether it ignores autocast.
    """

    weight: Tensor
    full = True

    def forward(self, x: Tensor) -> Tensor:
        """Return the output of the network for its last map or features."""
        if not self.full or x.is_meta or not torch.is_autocast_enabled(x.device.type):
            y: Tensor = super().forward(x)
        else:
            with torch.autocast(x.device.type, enabled=False):
                y = super().forward(x.to(self.weight.dtype))
        return y


class FinalLinear(FinalLayer, nn.Linear):
    """The linear layer that computes logits [N, classes] of features [N, C]."""


class FinalConv(FinalLayer, nn.Conv2d):
    """The 3×3 convolution that computes images [N, channels, H, W] of maps [N, channels_in, H, W]."""

    def __init__(self, channels_in: int, channels: int) -> None:
        super().__init__(channels_in, channels, 3, padding=1)


class ConvNorm(nn.Module):
    """A 3×3 convolution, norm and ReLU.

    Args:
        channels_in: channels of the input.
        channels: channels of the output.
        stride: of the convolution.
        norm: the method.
    """

    into_norm: ClassVar = {"conv": "norm"}

    def __init__(self, channels_in: int, channels: int, stride: int, norm: Normalization) -> None:
        super().__init__()
        self.conv = norm.wrap_conv(conv3x3(channels_in, channels, stride))
        self.norm = norm.make_layer(channels)

    def forward(self, x: Tensor) -> Tensor:
        """Map x, [N, channels_in, H, W], to [N, channels, ceil(H / stride), ceil(W / stride)]."""
        return relu(self.norm, self.conv(x))


class Stochastic(nn.Module):
    """A module that draws random numbers, as a function of (seed of the trial, update, module).

    A resumed trial draws the same.

    Attributes:
        key: of its stream of random numbers, another for each module of a network.
    """

    not_recorded = "step", "random"

    def __init__(self) -> None:
        super().__init__()
        self.step = 0
        self.random: torch.Generator | None = None
        with torch.random.fork_rng(devices=[]):  # weights are drawn as in a network without it
            self.key = int(torch.randint(2**62, (), device="cpu"))

    def at(self, clock: Clock) -> None:
        """Set the update, which has its own stream of random numbers."""
        self.step = clock.step

    def reseed(self) -> None:
        """Set the generator to the start of the stream of this update."""
        if self.random is not None:
            self.random.manual_seed((self.key + self.step * GOLDEN) % 2**64)

    def generator(self, device: torch.device) -> torch.Generator:
        """Return the generator on a device, at the start of the stream of this update."""
        if self.random is None or self.random.device != device:
            self.random = torch.Generator(device)
        if not is_capturing():
            self.reseed()
        return self.random

    def __getstate__(self) -> dict[str, object]:
        """Return the state without the generator, so that a copy makes another."""
        return vars(self) | {"random": None}


def separate_streams(model: nn.Module) -> None:
    """Give the random modules of a network distinct keys; modules made with no draw between share one."""
    keys: set[int] = set()
    for module in model.modules():
        if isinstance(module, Stochastic):
            while module.key in keys:
                module.key += 1
            keys.add(module.key)


class Dropout(Stochastic):
    """Dropout of a fraction ``rate`` of the values in training (Srivastava et al. 2014)."""

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, x: Tensor) -> Tensor:
        """Return x, [N, C, H, W], with values dropped and the others divided by 1 - rate."""
        if not self.training or x.is_meta:
            return x
        share, (N, C, H, W) = sync.current(), x.shape
        whole = torch.rand(share.whole(N), H, W, C, generator=self.generator(x.device), device=x.device)
        kept = share.rows(whole) >= self.rate
        return x * kept.movedim(-1, 1).to(x.dtype).div_(1 - self.rate)


def dropout(rate: float) -> nn.Module:
    """Return a dropout layer, or an identity at rate 0."""
    return Dropout(rate) if rate else nn.Identity()


class Shortcut(torch.autograd.Function):
    """Every ``stride``-th row and column, with ``new_channels`` of zeros around the old channels.

    It does the same as indexing and padding, whose gradients are not channels-last; an addition of such a
    gradient is several times slower.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, stride: int, new_channels: int) -> Tensor:
        """Map x, [N, C, H, W], to [N, C + new_channels, ceil(H / stride), ceil(W / stride)]."""
        ctx.shape, ctx.stride, ctx.before = x.shape, stride, new_channels // 2
        N, C = x.shape[:2]
        y = torch.zeros_like(
            x[:, :1, ::stride, ::stride].expand(N, C + new_channels, -1, -1), memory_format=CHANNELS_LAST
        )
        y[:, ctx.before : ctx.before + C] = x[:, :, ::stride, ::stride]
        return y

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> Any:
        """Return the gradient of x."""
        dx = torch.zeros_like(dy[:, :1, :1, :1].expand(ctx.shape), memory_format=CHANNELS_LAST)
        dx[:, :, :: ctx.stride, :: ctx.stride] = dy[:, ctx.before : ctx.before + ctx.shape[1]]
        return dx, None, None


def place(model: nn.Module, name: str) -> str:
    """Return which place of a network a parameter or module belongs to.

    Args:
        model: the network; its attribute ``places`` maps names of modules to places, and all else belongs to
            the place of the name of its child, such as a stage.
        name: the name in the network, such as ``stage2.0.norm1.gamma``.
    """
    places: Mapping[str, str] = getattr(model, "places", {})
    parts = name.split(".")
    prefixes = (".".join(parts[:end]) for end in range(len(parts), 0, -1))
    return next((places[prefix] for prefix in prefixes if prefix in places), parts[0])


NORMS = _NormBase, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm


def norm_parameters(model: nn.Module) -> set[nn.Parameter]:
    """Return gamma, beta and the other parameters that a method adds to a network, and biases of cells.

    In the networks of the table these are all scalars and vectors but the bias of the final layer, since
    convolutions have no bias unless a method adds it. A recurrent cell has one whatever the method, which is
    the beta of the method's layer or else stands in for it. In a converted network they are those of the
    layers that were converted or that were left, and the scalars and vectors of the convolutions that the
    method replaced.
    """
    converted: tuple[str, ...] | None = getattr(model, "converted", None)
    if converted is None:
        return {
            parameter
            for module in model.modules()
            if not isinstance(module, FinalLayer)
            for parameter in module.parameters(recurse=False)
            if parameter.ndim <= 1
        }
    wrapped: tuple[str, ...] = model.wrapped  # type: ignore[assignment]  # as convert sets it
    layers = [model.get_submodule(name) for name in converted]
    layers += [module for module in model.modules() if isinstance(module, NORMS)]
    return {
        *(parameter for layer in layers for parameter in layer.parameters()),
        *(
            parameter
            for name in wrapped
            for parameter in model.get_submodule(name).parameters()
            if parameter.ndim <= 1
        ),
    }
