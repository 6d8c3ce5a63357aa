"""Batch normalization (Ioffe & Szegedy 2015, arXiv 1502.03167, algorithm 1): a channel over all samples."""

from functools import partial

from normbench.norms.api import Clock, Normalization
from normbench.norms.moment_norm import Block, RunningMomentNorm, Statistics


class BatchNorm(RunningMomentNorm):
    """Statistics of each channel over consecutive ``norm_batch_size`` samples (all of them: plain BN)."""

    def statistics(self, C: int) -> Statistics:  # noqa: ARG002
        """The samples of a norm batch share them; the channels do not."""
        return Statistics((Block(samples=self.norm_batch_size),))


class FreezingBatchNorm(BatchNorm):
    """In the last ``frozen_epochs`` the running statistics stand still and are used in training too (Wu &
    Johnson 2021, arXiv 2105.07576).
    """

    def __init__(
        self, channels: int, eps: float, momentum: float, norm_batch_size: int, frozen_epochs: int
    ) -> None:
        super().__init__(channels, eps, momentum, norm_batch_size)
        self.frozen_epochs = frozen_epochs

    def at(self, clock: Clock) -> None:
        """Freeze in time."""
        self.frozen = clock.epoch >= clock.epochs - self.frozen_epochs


def batch(eps: float, momentum: float, frozen_epochs: int, norm_batch_size: int) -> Normalization:
    """Batch normalization after every convolution; Ghost BN is a ``norm_batch_size`` below the batch size."""
    layer = partial(FreezingBatchNorm, frozen_epochs=frozen_epochs) if frozen_epochs else BatchNorm
    return Normalization(partial(layer, eps=eps, momentum=momentum, norm_batch_size=norm_batch_size))
