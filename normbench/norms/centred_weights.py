"""Centred weights (Huang et al. 2017, arXiv 1710.02338): of mean 0 over each output channel's fan-in."""

from torch import Tensor

from normbench.norms.normalization import Normalization
from normbench.norms.weights import FunctionOfWeights, centred, with_layer


class CentredConv(FunctionOfWeights):
    """W - mean; the scale of the weights is left alone."""

    def effective(self) -> Tensor:
        """The centred weights."""
        return centred(self.weight)


def centred_weights(layer: str, groups: int) -> Normalization:
    """Every convolution with centred weights, and group normalization behind it or nothing."""
    return with_layer(CentredConv, layer, groups)
