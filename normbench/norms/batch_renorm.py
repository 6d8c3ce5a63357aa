"""Batch renormalization (Ioffe 2017, arXiv 1702.03275): BN corrected towards running statistics."""

from functools import partial

import torch
from torch import Tensor

from normbench.norms.kernels import Running
from normbench.norms.moments import (
    Block,
    Moments,
    RunningMomentNorm,
    Statistics,
    affine,
    follow,
    normalize_by,
    own_rows,
    pool,
    spread_out,
    whole_batch,
)
from normbench.norms.normalization import Clock, Normalization


class BatchRenorm(RunningMomentNorm):
    """(x - mean) / deviation · r + d, then gamma and beta (algorithm 1).

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
        self._least_r: Tensor  # tensors, since they change with every update
        self._most_r: Tensor
        self._most_d: Tensor
        for name in ("_least_r", "_most_r", "_most_d"):
            self.register_buffer(name, torch.zeros((), dtype=torch.float64), persistent=False)
        self.bounds = 1.0, 0.0

    @property
    def bounds(self) -> tuple[float, float]:
        """The most that r and d may be now."""
        return self._bounds

    @bounds.setter
    def bounds(self, bounds: tuple[float, float]) -> None:
        if vars(self).get("_bounds") == bounds:
            return
        self._bounds = r_max, d_max = bounds
        self._least_r.fill_(1 / r_max)
        self._most_r.fill_(r_max)
        self._most_d.fill_(d_max)

    def statistics(self, C: int) -> Statistics:  # noqa: ARG002
        """Those of batch normalization."""
        return Statistics((Block(samples=self.norm_batch_size),))

    def at(self, clock: Clock) -> None:
        """Move the bounds."""
        since = clock.epoch - self.warmup_epochs
        share = min(1.0, since / self.ramp_epochs if self.ramp_epochs else 1.0) if since >= 0 else 0.0
        r_max, d_max = self.ends
        self.bounds = 1 + share * (r_max - 1), share * d_max

    def forward(self, x: Tensor, shortcut: Tensor | None = None, relu: bool = False) -> Tensor:
        """Normalize x, [N, C, H, W]; at inference by the running statistics, as BN does.

        Raises:
            ShapeError: there are no statistics for this shape.
        """
        if not self.training:
            return super().forward(x, shortcut, relu)
        N, C, H, W = x.shape
        statistics = self.statistics(C)
        statistics.check(N, C, H * W)
        (block,) = statistics.blocks
        unbias = self.unbias(self.norm_batch_size * H * W)

        def tables(own: Moments, gamma: Tensor, beta: Tensor) -> tuple[Tensor, Tensor]:
            """Scale and shift; moves the running statistics on."""
            whole = whole_batch(own)
            batches = pool(whole, block)
            with torch.no_grad():
                r, d = self._corrections(batches)
                r, d = (part.repeat_interleave(block.samples, 0) for part in (r, d))
                r, d = own_rows(Moments(r, d))
                follow(Running(self.running_mean, self.running_var, self.momentum, unbias), batches)
            of_samples = own_rows(spread_out(batches, block, *whole.mean.shape))
            return affine(of_samples, gamma * r, beta + gamma * d, self.eps)

        spanning = N % block.samples != 0
        return normalize_by(x, tables, (self.gamma, self.beta), shortcut, relu, spanning)

    def _corrections(self, batches: Moments) -> tuple[Tensor, Tensor]:
        """r and d of every norm batch, [N / norm batch, C] each."""
        mean, variance = (part.flatten(1) for part in batches)
        deviation, running = (variance + self.eps).sqrt(), (self.running_var + self.eps).sqrt()
        r = (deviation / running).clamp(self._least_r, self._most_r)
        return r, ((mean - self.running_mean) / running).clamp(-self._most_d, self._most_d)


def batch_renorm(
    eps: float,
    momentum: float,
    r_max: float,
    d_max: float,
    warmup_epochs: float,
    ramp_epochs: float,
    norm_batch_size: int,
) -> Normalization:
    """Batch renormalization after every convolution."""
    return Normalization(
        layer=partial(
            BatchRenorm,
            eps=eps,
            momentum=momentum,
            norm_batch_size=norm_batch_size,
            r_max=r_max,
            d_max=d_max,
            warmup_epochs=warmup_epochs,
            ramp_epochs=ramp_epochs,
        )
    )
