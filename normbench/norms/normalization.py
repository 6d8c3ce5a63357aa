"""The seam between a network and a way to normalize it."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor, nn

from normbench.norms import NORMS
from normbench.trial import Choice


class ShapeError(ValueError):
    """A method cannot normalize maps of this shape."""


def _no_layer(_channels: int) -> nn.Module:
    return nn.Identity()


def _same_conv(conv: nn.Conv2d) -> nn.Module:
    return conv


def _add(shortcut: Tensor, branch: Tensor) -> Tensor:
    return shortcut + branch


def _no_clip(_parameters: Iterable[nn.Parameter]) -> None:
    return None


@dataclass(frozen=True)
class Normalization:
    """What a method does to a network: four places to act in, each doing nothing unless the method sets it.

    Attributes:
        layer: channels -> the module that follows a convolution, [N, C, H, W] -> [N, C, H, W].
        conv: a convolution -> the module that takes its place (weight norm, weight standardization).
        residual: (shortcut, branch) -> their sum, both [N, C, H, W].
        clip: called with the parameters after the backward pass, before the optimizer.
    """

    layer: Callable[[int], nn.Module] = _no_layer
    conv: Callable[[nn.Conv2d], nn.Module] = _same_conv
    residual: Callable[[Tensor, Tensor], Tensor] = _add
    clip: Callable[[Iterable[nn.Parameter]], None] = _no_clip

    def relu(self, layer: nn.Module, x: Tensor, shortcut: Tensor | None = None) -> Tensor:
        """relu(layer(x)) or relu(residual(shortcut, layer(x))); in one pass if the layer ``takes_relu``."""
        if getattr(layer, "takes_relu", False) and (shortcut is None or self.residual is _add):
            one_pass: Tensor = layer(x, shortcut, relu=True)
            return one_pass
        y = layer(x)
        return F.relu(y if shortcut is None else self.residual(shortcut, y))


def build(norm: Choice, norm_batch_size: int | None) -> Normalization:
    """The normalization that a trial names; ``norm_batch_size`` is for methods that look across samples."""
    method = NORMS[norm.name]
    across = {"norm_batch_size": norm_batch_size} if method.across_samples else {}
    normalization: Normalization = method.load()(**norm.options, **across)
    return normalization


def is_norm_parameter(name: str, parameter: Tensor) -> bool:
    """Gamma, beta and a method's own parameters, and not what convolutions and linear layers learn."""
    return parameter.ndim <= 1 and not name.startswith("linear.")
