"""Switchable normalization (Luo et al. 2019, arXiv 1806.10779, equations 2 to 5)."""

from functools import partial

import torch
from torch import Tensor, nn

from normbench.norms.api import Normalization
from normbench.norms.moment_norm import Block, RunningMomentNorm, Statistics


class SwitchNorm(RunningMomentNorm):
    """Normalization by softmax-weighted mixtures of the means and of the variances of IN, LN and BN.

    The softmax inputs ``mean_weight`` and ``var_weight``, [3] each and initially 1, are the lambdas of
    equation 5, in this order.
    """

    def __init__(self, channels: int, eps: float, momentum: float, norm_batch_size: int) -> None:
        super().__init__(channels, eps, momentum, norm_batch_size)
        self.mean_weight = nn.Parameter(torch.ones(3))
        self.var_weight = nn.Parameter(torch.ones(3))

    def statistics(self, C: int) -> Statistics:
        """Return the mixture of the statistics of IN, LN and BN."""
        blocks = Block(), Block(channels=C), Block(samples=self.norm_batch_size)
        return Statistics(blocks, *self.importance())

    def importance(self) -> tuple[Tensor, Tensor]:
        """Return the weights of IN, LN and BN in the mean, [3], and in the variance, [3]; each sums to 1."""
        return self.mean_weight.softmax(0), self.var_weight.softmax(0)

    def diagnostics(self) -> dict[str, dict[str, list[float]]]:
        """Return the importance weights, for the record."""
        mean, variance = self.importance()
        return {"switch_weights": {"mean": mean.tolist(), "variance": variance.tolist()}}


class OfficialSwitchNorm(SwitchNorm):
    """The computation of the authors' released code (SwitchNorm2d), which differs from the paper.

    The IN variance is unbiased (over H·W - 1); those of LN and BN are pooled from it and so are neither
    biased nor unbiased; the running variance starts at 0 and averages those of BN without a correction. On
    1×1 maps the released code divides by zero; this layer raises ShapeError.
    """

    def __init__(self, channels: int, eps: float, momentum: float, norm_batch_size: int) -> None:
        super().__init__(channels, eps, momentum, norm_batch_size)
        self.running_var.zero_()

    def statistics(self, C: int) -> Statistics:
        """Return the same poolings, of unbiased variances."""
        return super().statistics(C)._replace(bessel=True)

    def unbias(self, values: int) -> float:  # noqa: ARG002
        """Return 1: the variance is kept as it is."""
        return 1.0


def switchable(variance: str, eps: float, momentum: float, norm_batch_size: int) -> Normalization:
    """Return switchable normalization after every convolution; ``variance`` is 'paper' or 'official'."""
    layer = {"paper": SwitchNorm, "official": OfficialSwitchNorm}[variance]
    return Normalization(
        make_layer=partial(layer, eps=eps, momentum=momentum, norm_batch_size=norm_batch_size)
    )
