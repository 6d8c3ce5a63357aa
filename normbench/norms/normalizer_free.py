"""Normalizer-free residual networks (Brock et al. 2021, arXiv 2101.08692): no statistics of activations.

Constants and order are those of the authors' released code (nf_resnet.py, base.py). Every ReLU is multiplied
by gamma, so that its output has variance 1; weights are standardized and divided by the root of their fan-in;
and a block computes x + alpha · skip_gain · branch(beta · x) with beta = 1 / sqrt(expected variance of x).
"""

from functools import partial

import torch
from torch import Tensor, nn

from normbench.norms.api import Normalization, Sum
from normbench.norms.ops.pointwise import Pointwise, multiply_add
from normbench.norms.reparam import FunctionOfWeights, Scale, by_rows

GAMMA = 1.7139588594436646  # of the released code, an estimate of sqrt(2 / (1 - 1 / pi)) = 1.71286
SMALLEST = 1e-4  # bound of fan-in · variance


class ScaledStandardizedConv(FunctionOfWeights):
    """A convolution with weights gain · (W - mean) / sqrt(max(fan-in · variance, 1e-4)), and a bias.

    Mean and variance are over the fan-in of each output channel; gain is learned, initially 1.
    """

    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__(conv, bias=True)
        self.gain = nn.Parameter(self.weight.new_ones(conv.out_channels))

    def effective(self) -> Tensor:
        """Return the scaled standardized weights (fan-in · biased variance is a sum of squares)."""
        return by_rows(self.weight, centre=True, scale=Scale(self.gain, smallest=SMALLEST))


class Gamma(nn.Module):
    """Multiplication by the constant gamma; relu(gamma · x) is gamma · relu(x)."""

    takes_relu = True

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.gamma: Tensor
        self.zero: Tensor
        self.register_buffer("gamma", torch.full((channels,), GAMMA), persistent=False)
        self.register_buffer("zero", torch.zeros(channels), persistent=False)

    def forward(self, x: Tensor, shortcut: Tensor | None = None, relu: bool = False) -> Tensor:
        """Return gamma · x, [N, C, H, W]; then add ``shortcut``, if any, and take the ReLU, if so asked."""
        N, C = x.shape[:2]
        scale, shift = self.gamma.expand(N, C), self.zero.expand(N, C)
        return multiply_add(x, scale, shift, Pointwise(shortcut, relu))


class SkipInit(Sum):
    """shortcut + alpha · skip_gain · branch, with a learned gain, initially 0 (De & Smith 2020, 2002.10444).

    Args:
        additions: number of branches summed in the block's input since its variance was last 1; each adds
            alpha² to the variance.
        alpha: the scale of a branch.
    """

    def __init__(self, additions: int, alpha: float) -> None:
        super().__init__()
        self.alpha, self.beta = alpha, (1 + additions * alpha**2) ** -0.5
        self.skip_gain = nn.Parameter(torch.zeros(()))

    def forward(self, shortcut: Tensor, branch: Tensor) -> Tensor:
        """Return the sum of shortcut and scaled branch, [N, C, H, W] each."""
        N, C = branch.shape[:2]
        scale = (self.alpha * self.skip_gain).expand(N, C)
        return multiply_add(branch, scale, torch.zeros_like(scale), Pointwise(shortcut))


def normalizer_free(alpha: float) -> Normalization:
    """Return scaled standardized weights, gamma at every ReLU and scaled branches (pre-activation only)."""
    return Normalization(
        make_layer=Gamma,
        wrap_conv=ScaledStandardizedConv,
        make_residual=partial(SkipInit, alpha=alpha),
    )
