"""Layer normalization (Ba et al. 2016, arXiv 1607.06450, equation 3)."""

from functools import partial

from normbench.norms.api import Normalization
from normbench.norms.moment_norm import Block, MomentNorm, Statistics


class LayerNorm(MomentNorm):
    """Normalization of each sample over C, H and W; gamma and beta are [C], as for the other methods."""

    def statistics(self, C: int) -> Statistics:
        """Return statistics that all C channels of a sample share."""
        return Statistics((Block(channels=C),))


def layer(eps: float) -> Normalization:
    """Return layer normalization after every convolution."""
    return Normalization(make_layer=partial(LayerNorm, eps=eps))
