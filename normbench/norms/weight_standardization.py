"""Weight standardization (Qiao et al. 2019, arXiv 1903.10520): weights of mean 0 and variance 1."""

from functools import partial

from torch import Tensor, nn

from normbench.norms.api import Normalization
from normbench.norms.reparam import FunctionOfWeights, Scale, by_rows, with_layer


class StandardizedConv(FunctionOfWeights):
    """A convolution with weights (W - mean) / sqrt(biased variance + eps) (equations 7, 8).

    Mean and variance are over the fan-in of each output channel.

    A channel of the output then has fan-in times the variance of the input: with no normalization behind it,
    as in ``layer: none``, activations grow from layer to layer (normalizer-free networks divide that out).
    """

    def __init__(self, conv: nn.Conv2d, bias: bool, eps: float) -> None:
        super().__init__(conv, bias)
        self.eps = eps

    def effective(self) -> Tensor:
        """Return the standardized weights."""
        fan_in = self.weight[0].numel()  # the biased variance is a sum of squares over it
        return by_rows(self.weight, centre=True, scale=Scale(over=fan_in, eps=self.eps))


def weight_standardization(layer: str, groups: int, eps: float) -> Normalization:
    """Return standardized weights in every convolution, with group normalization or nothing behind it."""
    return with_layer(partial(StandardizedConv, eps=eps), layer, groups)
