"""Batch renormalization (Ioffe 2017, arXiv 1702.03275): BN corrected towards running statistics."""

from functools import partial
from typing import Any

import torch
from torch import Tensor

from normbench.norms.api import Clock, Normalization
from normbench.norms.moment_norm import Block, RunningMomentNorm, Statistics
from normbench.norms.ops.operators import Running


class BatchRenorm(RunningMomentNorm):
    """gamma · ((x - mean) / deviation · r + d) + beta (algorithm 1).

    r is deviation / running deviation within [1 / r_max, r_max], d is (mean - running mean) / running
    deviation within ±d_max, and both are constants to the gradient. The bounds are 1 and 0 (plain BN) for
    ``warmup_epochs`` and then move linearly to r_max and d_max over ``ramp_epochs``; the paper has 5 thousand
    updates of BN, and ramps r over 35 and d over 20 thousand.
    """

    not_recorded = ("_bounds",)

    def __init__(
        self,
        channels: int,
        eps: float,
        momentum: float,
        norm_batch_size: int,
        r_max: float,
        d_max: float,
        warmup_epochs: float,
        ramp_epochs: float,
    ) -> None:
        super().__init__(channels, eps, momentum, norm_batch_size)
        self.ends = r_max, d_max
        self.warmup_epochs, self.ramp_epochs = warmup_epochs, ramp_epochs
        self._limits: Tensor  # least and most r, most d: a tensor, since they change with every update
        self.register_buffer("_limits", torch.zeros(3), persistent=False)
        self.bounds = 1.0, 0.0

    @property
    def bounds(self) -> tuple[float, float]:
        """Return the present r_max and d_max."""
        return self._bounds

    @bounds.setter
    def bounds(self, bounds: tuple[float, float]) -> None:
        if vars(self).get("_bounds") == bounds:
            return
        self._bounds = r_max, d_max = bounds
        for index, limit in enumerate((1 / r_max, r_max, d_max)):
            self._limits[index].fill_(limit)

    def statistics(self, C: int) -> Statistics:  # noqa: ARG002
        """Return the statistics of batch normalization."""
        return Statistics((Block(samples=self.norm_batch_size),))

    def at(self, clock: Clock) -> None:
        """Set the bounds for this update."""
        since = clock.epoch - self.warmup_epochs
        share = min(1.0, since / self.ramp_epochs if self.ramp_epochs else 1.0) if since >= 0 else 0.0
        r_max, d_max = self.ends
        self.bounds = 1 + share * (r_max - 1), share * d_max

    def running(self, unbias: float) -> Running:
        """Return the running statistics, which correct those of the batch."""
        return super().running(unbias)._replace(bounds=self._limits)


def batch_renorm(**options: Any) -> Normalization:
    """Return batch renormalization after every convolution; its options are those of the layer."""
    return Normalization(make_layer=partial(BatchRenorm, **options))
