"""Instance normalization (Ulyanov et al. 2016, arXiv 1607.08022, section 2)."""

from functools import partial

from normbench.norms.api import Normalization
from normbench.norms.moment_norm import Block, MomentNorm, Statistics


class InstanceNorm(MomentNorm):
    """Normalization of each channel of each sample over H and W."""

    def statistics(self, C: int) -> Statistics:  # noqa: ARG002
        """Return statistics of each channel of each sample."""
        return Statistics((Block(),))


def instance(eps: float) -> Normalization:
    """Return instance normalization, with gamma and beta, after every convolution."""
    return Normalization(make_layer=partial(InstanceNorm, eps=eps))
