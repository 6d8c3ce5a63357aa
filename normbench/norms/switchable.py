"""Switchable normalization (Luo et al. 2019, arXiv 1806.10779, equations 2 to 5): IN, LN and BN, mixed."""

from functools import partial

import torch
from torch import Tensor, nn

from normbench.norms.api import Normalization
from normbench.norms.moment_norm import Block, RunningMomentNorm, Statistics


class SwitchNorm(RunningMomentNorm):
    """Mean and variance are each a softmax-weighted mixture of those of IN, LN and BN, in this order.

    The softmax inputs ``mean_weight`` and ``var_weight`` (3 each, initially 1) are the lambdas of equation 5.
    """

    def __init__(self, channels: int, eps: float, momentum: float, norm_batch_size: int) -> None:
        super().__init__(channels, eps, momentum, norm_batch_size)
        self.mean_weight = nn.Parameter(torch.ones(3))
        self.var_weight = nn.Parameter(torch.ones(3))

    def statistics(self, C: int) -> Statistics:
        """IN's, LN's and BN's, mixed."""
        blocks = Block(), Block(channels=C), Block(samples=self.norm_batch_size)
        return Statistics(blocks, *self.importance())

    def importance(self) -> tuple[Tensor, Tensor]:
        """The weights of IN, LN and BN in the mean, [3], and in the variance, [3]; each sums to 1."""
        return self.mean_weight.softmax(0), self.var_weight.softmax(0)

    def diagnostics(self) -> dict[str, dict[str, list[float]]]:
        """The importance weights, for the record."""
        mean, variance = self.importance()
        return {"switch_weights": {"mean": mean.tolist(), "variance": variance.tolist()}}


class OfficialSwitchNorm(SwitchNorm):
    """What the authors' released code (SwitchNorm2d) computes, which is not what the paper says.

    Its IN variance is unbiased (H·W - 1), and LN's and BN's are pooled from it and so are neither biased nor
    unbiased; the running variance starts at 0 and averages them as they are. On 1×1 maps that code divides by
    zero; this refuses.
    """

    def __init__(self, channels: int, eps: float, momentum: float, norm_batch_size: int) -> None:
        super().__init__(channels, eps, momentum, norm_batch_size)
        self.running_var.zero_()

    def statistics(self, C: int) -> Statistics:
        """The same poolings of other variances."""
        return super().statistics(C)._replace(bessel=True)

    def unbias(self, values: int) -> float:  # noqa: ARG002
        """Nothing: the variance is kept as it is."""
        return 1.0


def switchable(variance: str, eps: float, momentum: float, norm_batch_size: int) -> Normalization:
    """Switchable normalization after every convolution; ``variance`` is 'paper' or 'official'."""
    layer = {"paper": SwitchNorm, "official": OfficialSwitchNorm}[variance]
    return Normalization(
        make_layer=partial(layer, eps=eps, momentum=momentum, norm_batch_size=norm_batch_size)
    )
