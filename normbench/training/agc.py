"""Adaptive gradient clipping (Brock et al. 2021, arXiv 2102.06171, equation 3), as in their agc_optax.py."""

from collections.abc import Callable, Collection

import torch
from torch import Tensor, nn

from normbench.models.layers import place
from normbench.norms.api import Clip, Clock

SMALLEST_GRADIENT = 1e-6  # norm that is divided by


def unit_norms(tensor: Tensor) -> Tensor:
    """The norm of what feeds each output unit, broadcastable to ``tensor``; of a vector, of the whole."""
    fan_in = tuple(range(1, tensor.ndim))
    norms: Tensor = torch.linalg.vector_norm(tensor, dim=fan_in or None, keepdim=True)
    return norms


class AdaptiveClip(Clip):
    """Where ‖G‖ > threshold · max(‖W‖, eps) for a unit, its gradient G is scaled down to that norm.

    Args:
        model: whose parameters' gradients are clipped.
        threshold: the paper's lambda.
        eps: the least norm of weights, so that those at zero can leave it.
        exclude: places whose weights are not clipped; of the linear layer that is the matrix alone.
    """

    def __init__(self, model: nn.Module, threshold: float, eps: float, exclude: Collection[str]) -> None:
        super().__init__()
        self.threshold, self.eps = threshold, eps
        self.clipped = [
            (name, parameter)
            for name, parameter in model.named_parameters()
            if (where := place(model, name)) not in exclude
            or (where == "final_linear" and parameter.ndim == 1)
        ]
        units = [1 if parameter.ndim < 2 else len(parameter) for _, parameter in self.clipped]
        self.units = dict(zip((name for name, _ in self.clipped), units, strict=True))
        self.counts: Tensor
        self.updates: Tensor
        self.register_buffer("counts", torch.zeros(len(self.clipped), dtype=torch.float64))
        self.register_buffer("updates", torch.zeros((), dtype=torch.float64))

    def at(self, clock: Clock) -> None:
        """Count anew in every epoch."""
        if clock.step % clock.steps_per_epoch == 0:
            self.counts.zero_()
            self.updates.zero_()

    @torch.no_grad()
    def forward(self) -> None:
        """Clip the gradients in place."""
        counts = [self.counts.new_zeros(())] * len(self.clipped)
        for index, (_, parameter) in enumerate(self.clipped):
            if (gradient := parameter.grad) is None:
                continue
            limit = self.threshold * unit_norms(parameter).clamp_min(self.eps)
            norms = unit_norms(gradient)
            over = norms > limit
            counts[index] = over.sum().to(self.counts)
            # (to torch.where a GPU would have to be sent the 1, which cannot be recorded)
            gradient.mul_((limit / norms.clamp_min(SMALLEST_GRADIENT)).masked_fill_(~over, 1.0))
        self.counts += torch.stack(counts)
        self.updates += 1

    def diagnostics(self) -> dict[str, dict[str, float]]:
        """The share of an epoch's units and updates that were clipped, by parameter."""
        shares = (self.counts / self.updates.clamp_min(1)).tolist()
        return {
            "clipped": {
                name: count / units for count, (name, units) in zip(shares, self.units.items(), strict=True)
            }
        }


def agc(threshold: float, eps: float, exclude: Collection[str]) -> Callable[[nn.Module], Clip]:
    """Clip every unit's gradient by the norm of its weights."""
    return lambda model: AdaptiveClip(model, threshold, eps, exclude)
