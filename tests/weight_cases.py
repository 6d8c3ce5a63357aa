"""What the tests of methods that act on weights have in common."""

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

Array = NDArray[np.float64]


def conv(channels_in: int = 3, channels: int = 4, seed: int = 0) -> nn.Conv2d:
    """A float64 3×3 convolution whose weights have neither mean 0 nor variance 1."""
    torch.manual_seed(seed)
    plain = nn.Conv2d(channels_in, channels, 3, stride=2, padding=1, bias=False).double()
    with torch.no_grad():
        plain.weight.mul_(3).add_(torch.rand(channels, 1, 1, 1) + 0.3)
    return plain


def images(channels: int = 3, seed: int = 1) -> Tensor:
    return torch.randn(5, channels, 6, 6, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def exact(actual: Tensor, expected: Array | Tensor) -> None:
    """Equal to some units in the last place of float64: sums of at most a few hundred numbers near 1."""
    torch.testing.assert_close(actual.detach(), torch.as_tensor(expected).detach(), rtol=1e-12, atol=1e-12)


def check_gradients(module: nn.Module, x: Tensor) -> None:
    """torch.autograd.gradcheck at float64 to its default 1e-5 + 1e-3 relative: inputs and parameters."""
    assert torch.autograd.gradcheck(
        lambda x, *_: module(x), (x[:2, :, :4, :4].clone().requires_grad_(), *module.parameters())
    )


def check_convolution(module: nn.Module, weight: Array | Tensor, plain: nn.Conv2d, x: Tensor) -> None:
    """The module convolves with these weights as ``plain`` does with its own."""
    y = F.conv2d(x, torch.as_tensor(weight), None, plain.stride, plain.padding)
    bias = getattr(module, "bias", None)
    exact(module(x), y if bias is None else y + bias[:, None, None])
