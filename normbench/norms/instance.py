"""Instance normalization (Ulyanov et al. 2016, arXiv 1607.08022): every channel of every sample alone."""

from functools import partial

from normbench.norms.api import Normalization
from normbench.norms.moment_norm import Block, MomentNorm, Statistics


class InstanceNorm(MomentNorm):
    """Statistics over H and W only."""

    def statistics(self, C: int) -> Statistics:  # noqa: ARG002
        """Nothing is shared."""
        return Statistics((Block(),))


def instance(eps: float) -> Normalization:
    """Instance normalization, with gamma and beta, after every convolution."""
    return Normalization(make_layer=partial(InstanceNorm, eps=eps))
