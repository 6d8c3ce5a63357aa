"""Weight normalization (Salimans & Kingma 2016, arXiv 1602.07868): weights as length times direction."""

from functools import partial

import torch
from torch import Tensor, nn

from normbench.norms.api import Clock, Normalization
from normbench.norms.ops.sync import all_gather
from normbench.norms.reparam import FAN_IN, FunctionOfWeights, Scale, by_rows


class WeightNormConv(FunctionOfWeights):
    """A convolution with weights g · v / ‖v‖ for each output channel (equation 2), and a bias.

    ``weight`` is v. Without ``data_init`` g starts at ‖v‖, which changes nothing about the convolution.

    Args:
        conv: the convolution that it replaces.
        data_init: on the first training batch, set g and the bias such that every channel comes out with mean
            0 and variance 1 (equations 5 and 6).
    """

    def __init__(self, conv: nn.Conv2d, data_init: bool) -> None:
        super().__init__(conv, bias=True)
        length = torch.linalg.vector_norm(self.weight.detach(), dim=FAN_IN, dtype=torch.float64)
        self.g = nn.Parameter(length.to(self.weight.dtype))
        self.data_init, self.is_uninitialised = data_init, False

    def effective(self) -> Tensor:
        """Return g · v / ‖v‖, [out, in, kh, kw]."""
        return by_rows(self.weight, centre=False, scale=Scale(self.g))

    def at(self, clock: Clock) -> None:
        """Have the first update of the training initialise g and the bias by its data."""
        self.is_uninitialised = self.data_init and clock.step == 0

    def forward(self, x: Tensor) -> Tensor:
        """Convolve x, [N, C, H, W], into [N, C', H', W']."""
        if self.is_uninitialised and self.training:
            self._initialise(x)
            self.is_uninitialised = False
        return super().forward(x)

    @torch.no_grad()
    def _initialise(self, x: Tensor) -> None:
        assert self.bias is not None
        self.g.fill_(1.0)
        t = all_gather(self.convolve(x, None).float())
        mean, deviation = t.mean((0, 2, 3)), t.std((0, 2, 3), correction=0).clamp_min(1e-6)
        self.g.copy_(1 / deviation)
        self.bias.copy_(-mean / deviation)


def weight_norm(data_init: bool) -> Normalization:
    """Return weight normalization of every convolution, with nothing between them."""
    return Normalization(wrap_conv=partial(WeightNormConv, data_init=data_init))
