"""Batch normalization (Ioffe & Szegedy 2015, arXiv 1502.03167, algorithms 1 and 2)."""

from functools import partial

from normbench.norms.api import Clock, Normalization
from normbench.norms.moment_norm import Block, RunningMomentNorm, Statistics


class BatchNorm(RunningMomentNorm):
    """Normalization of each channel over ``norm_batch_size`` consecutive samples, H and W."""

    def statistics(self, C: int) -> Statistics:  # noqa: ARG002
        """Return statistics that the samples of a norm batch share, channel by channel."""
        return Statistics((Block(samples=self.norm_batch_size),))


class FreezingBatchNorm(BatchNorm):
    """Batch normalization whose running statistics stand still in the last ``frozen_epochs`` epochs.

    Training uses them then as inference does (Wu & Johnson 2021, arXiv 2105.07576).
    """

    def __init__(
        self, channels: int, eps: float, momentum: float, norm_batch_size: int, frozen_epochs: int
    ) -> None:
        super().__init__(channels, eps, momentum, norm_batch_size)
        self.frozen_epochs = frozen_epochs

    def at(self, clock: Clock) -> None:
        """Freeze the running statistics from the first of the last ``frozen_epochs`` epochs on."""
        self.frozen = clock.epoch >= clock.epochs - self.frozen_epochs


def batch(eps: float, momentum: float, frozen_epochs: int, norm_batch_size: int) -> Normalization:
    """Return batch normalization after every convolution.

    A ``norm_batch_size`` below the batch size makes it Ghost BN (Hoffer et al. 2017, arXiv 1705.08741).
    """
    layer = partial(FreezingBatchNorm, frozen_epochs=frozen_epochs) if frozen_epochs else BatchNorm
    return Normalization(
        make_layer=partial(layer, eps=eps, momentum=momentum, norm_batch_size=norm_batch_size)
    )
