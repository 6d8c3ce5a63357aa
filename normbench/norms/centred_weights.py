"""Centred weights (Huang et al. 2017, arXiv 1710.02338): of mean 0 over each output channel's fan-in."""

from normbench.norms.api import Normalization
from normbench.norms.reparam import CentredConv, with_layer


def centred_weights(layer: str, groups: int) -> Normalization:
    """Every convolution with centred weights, and group normalization behind it or nothing."""
    return with_layer(CentredConv, layer, groups)
