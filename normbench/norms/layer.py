"""Layer normalization (Ba et al. 2016, arXiv 1607.06450, equation 3): a sample over all its channels."""

from functools import partial

from normbench.norms.api import Normalization
from normbench.norms.moment_norm import Block, MomentNorm, Statistics


class LayerNorm(MomentNorm):
    """Statistics over C, H and W; gamma and beta are one number a channel, as for the other methods."""

    def statistics(self, C: int) -> Statistics:
        """All channels of a sample share them."""
        return Statistics((Block(channels=C),))


def layer(eps: float) -> Normalization:
    """Layer normalization after every convolution."""
    return Normalization(make_layer=partial(LayerNorm, eps=eps))
