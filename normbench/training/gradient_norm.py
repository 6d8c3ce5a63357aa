"""Clipping of the gradient's global norm (Pascanu et al. 2013, arXiv 1211.5063, algorithm 1)."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from normbench.norms.api import Clip, Clock


class NormClip(Clip):
    """Where the norm of all gradients together is over ``max_norm``, they are scaled down to it."""

    def __init__(self, model: nn.Module, max_norm: float) -> None:
        super().__init__()
        self.parameters_ = list(model.parameters())
        self.max_norm = max_norm
        self.count: Tensor
        self.updates: Tensor
        self.register_buffer("count", torch.zeros((), dtype=torch.float64))
        self.register_buffer("updates", torch.zeros((), dtype=torch.float64))

    def at(self, clock: Clock) -> None:
        """Count anew in every epoch."""
        if clock.step % clock.steps_per_epoch == 0:
            self.count.zero_()
            self.updates.zero_()

    @torch.no_grad()
    def forward(self) -> None:
        """Clip the gradients in place."""
        gradients = [parameter.grad for parameter in self.parameters_ if parameter.grad is not None]
        norm = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(gradients)))
        over = norm > self.max_norm
        self.count += over
        self.updates += 1
        # (to torch.where a GPU would have to be sent the 1, which cannot be recorded)
        torch._foreach_mul_(gradients, (self.max_norm / norm).masked_fill_(~over, 1.0))

    def diagnostics(self) -> dict[str, dict[str, float]]:
        """The share of an epoch's updates that were clipped."""
        return {"clipped": {"all": float(self.count / self.updates.clamp_min(1))}}


def gradient_norm(max_norm: float) -> Callable[[nn.Module], Clip]:
    """Clip the norm of the whole gradient."""
    return lambda model: NormClip(model, max_norm)
