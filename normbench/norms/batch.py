"""Batch normalization (Ioffe & Szegedy 2015, arXiv 1502.03167, algorithm 1): a channel over all samples."""

from functools import partial

from normbench.norms.moments import Block, RunningMomentNorm, Statistics
from normbench.norms.normalization import Normalization


class BatchNorm(RunningMomentNorm):
    """Statistics of each channel over consecutive ``norm_batch_size`` samples (all of them: plain BN)."""

    def statistics(self, C: int) -> Statistics:  # noqa: ARG002
        """The samples of a norm batch share them; the channels do not."""
        return Statistics((Block(samples=self.norm_batch_size),))


def batch(eps: float, momentum: float, norm_batch_size: int) -> Normalization:
    """Batch normalization after every convolution; Ghost BN is a ``norm_batch_size`` below the batch size."""
    return Normalization(
        layer=partial(BatchNorm, eps=eps, momentum=momentum, norm_batch_size=norm_batch_size)
    )
