"""Gradient clipping: transforms of the gradients between the backward pass and the optimizer."""

from collections.abc import Collection

import torch
from torch import Tensor, nn

from normbench.config.catalog.clips import CLIPS
from normbench.config.trial import Trial
from normbench.models.layers import place
from normbench.norms.api import Clock

SMALLEST_GRADIENT = 1e-6  # least norm that is divided by


class Clip(nn.Module):
    """A transform of a network's gradients, in place; this one leaves them as they are.

    It is a module of the network, so that checkpoints have its state and records its diagnostics.

    Args:
        model: the network.
    """

    def __init__(self, model: nn.Module) -> None:  # noqa: ARG002
        super().__init__()

    def forward(self) -> None:
        """Transform the gradients of the network's parameters."""


class _CountingClip(Clip):
    """A clip with counts over the updates of an epoch."""

    def __init__(self, model: nn.Module, size: tuple[int, ...]) -> None:
        super().__init__(model)
        self.counts: Tensor
        self.updates: Tensor
        self.register_buffer("counts", torch.zeros(size, dtype=torch.float64))
        self.register_buffer("updates", torch.zeros((), dtype=torch.float64))

    def at(self, clock: Clock) -> None:
        """Reset the counts at the beginning of an epoch."""
        if clock.step % clock.steps_per_epoch == 0:
            self.counts.zero_()
            self.updates.zero_()

    def count(self, counts: Tensor) -> None:
        """Add the counts of one update."""
        self.counts += counts
        self.updates += 1

    def means(self) -> Tensor:
        """Return the mean counts per update of this epoch."""
        return self.counts / self.updates.clamp_min(1)


class AdaptiveClip(_CountingClip):
    """Adaptive gradient clipping (Brock et al. 2021, arXiv 2102.06171, equation 3), as in agc_optax.py.

    Where ‖G‖ > threshold · max(‖W‖, eps) for an output unit, its gradient G is scaled down to that norm.

    Args:
        model: the network.
        threshold: the paper's lambda.
        eps: the least norm of weights, so that weights at zero can leave it.
        exclude: places whose weights are not clipped; of the linear layer, the matrix alone.
        vectors: clip parameters of at most one dimension too, such as gains and biases. The gradient of a
            scalar that starts at 0, as the gain of a normalizer-free branch does, is cut to threshold · eps
            until the scalar exceeds eps.
    """

    def __init__(
        self, model: nn.Module, threshold: float, eps: float, exclude: Collection[str], vectors: bool = True
    ) -> None:
        clipped = {
            name: parameter
            for name, parameter in model.named_parameters()
            if (vectors or parameter.ndim > 1)
            and (
                (where := place(model, name)) not in exclude
                or (where == "final_linear" and parameter.ndim == 1)
            )
        }
        super().__init__(model, (len(clipped),))
        self.threshold, self.eps, self.clipped = threshold, eps, clipped

    @torch.no_grad()
    def forward(self) -> None:
        """Clip the gradient of every unit."""
        counts = [self.counts.new_zeros(())] * len(self.clipped)
        for index, parameter in enumerate(self.clipped.values()):
            if (gradient := parameter.grad) is None:
                continue
            limit = self.threshold * unit_norms(parameter).clamp_min(self.eps)
            norms = unit_norms(gradient)
            is_over = norms > limit
            counts[index] = is_over.sum().to(self.counts)
            # (torch.where would send the 1 to the GPU, which cannot be captured)
            gradient.mul_((limit / norms.clamp_min(SMALLEST_GRADIENT)).masked_fill_(~is_over, 1.0))
        self.count(torch.stack(counts))

    def diagnostics(self) -> dict[str, dict[str, float]]:
        """Return the fraction of units and updates of this epoch that were clipped, by parameter."""
        fractions = {}
        for (name, parameter), mean in zip(self.clipped.items(), self.means().tolist(), strict=True):
            fractions[name] = mean / (1 if parameter.ndim < 2 else len(parameter))
        return {"clipped": fractions}


def unit_norms(tensor: Tensor) -> Tensor:
    """Return the norm of each output unit's fan-in, or of a whole vector, broadcastable to ``tensor``."""
    fan_in = tuple(range(1, tensor.ndim))
    norms: Tensor = torch.linalg.vector_norm(tensor, dim=fan_in or None, keepdim=True)
    return norms


class GlobalNormClip(_CountingClip):
    """Clipping of the global norm (Pascanu et al. 2013, arXiv 1211.5063, algorithm 1).

    Where the norm of all gradients together exceeds ``max_norm``, they are scaled down to it.
    """

    def __init__(self, model: nn.Module, max_norm: float) -> None:
        super().__init__(model, ())
        self.clipped, self.max_norm = list(model.parameters()), max_norm

    @torch.no_grad()
    def forward(self) -> None:
        """Clip the whole gradient."""
        gradients = [parameter.grad for parameter in self.clipped if parameter.grad is not None]
        norm = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(gradients)))
        is_over = norm > self.max_norm
        self.count(is_over)
        # (torch.where would send the 1 to the GPU, which cannot be captured)
        torch._foreach_mul_(gradients, (self.max_norm / norm).masked_fill_(~is_over, 1.0))

    def diagnostics(self) -> dict[str, dict[str, float]]:
        """Return the fraction of updates of this epoch that were clipped."""
        return {"clipped": {"all": float(self.means())}}


class GradientNorms(_CountingClip):
    """The norm of every parameter's gradient before ``clip``, averaged over the updates of an epoch."""

    def __init__(self, model: nn.Module, clip: Clip) -> None:
        watched = dict(model.named_parameters())
        super().__init__(model, (len(watched),))
        self.watched, self.clip = watched, clip

    def forward(self) -> None:
        """Add up the norms, then clip."""
        zero = self.counts.new_zeros(())
        gradients = [parameter.grad for parameter in self.watched.values()]
        norms = [zero if gradient is None else gradient.norm().double() for gradient in gradients]
        self.count(torch.stack(norms))
        self.clip()

    def diagnostics(self) -> dict[str, dict[str, float]]:
        """Return the mean norm of this epoch, by parameter."""
        return {"gradient_norm": dict(zip(self.watched, self.means().tolist(), strict=True))}


def clip_of(trial: Trial, model: nn.Module) -> Clip:
    """Return the transform of the gradients of ``model`` that the trial names."""
    clip: Clip = CLIPS[trial.clip.name].load()(model, **trial.clip.options)
    return GradientNorms(model, clip) if "gradient_norm" in trial.diagnose else clip
