"""Centred weights (Huang et al. 2017, arXiv 1710.02338): mean 0 over the fan-in of each output channel."""

from normbench.norms.api import Normalization
from normbench.norms.reparam import CentredConv, with_layer


def centred_weights(layer: str, groups: int) -> Normalization:
    """Return centred weights in every convolution, with group normalization or nothing behind it."""
    return with_layer(CentredConv, layer, groups)
