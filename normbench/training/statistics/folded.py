"""Layers folded into the convolutions before them, as deployed networks do; exact but for rounding."""

import copy
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from normbench.records import Measured
from normbench.training.evaluation import EVALUATION_BATCH, Evaluation, Trained, infer
from normbench.training.statistics import running


class Folded(Evaluation):
    """A network with folded layers: scale · (w * x) + shift = (scale · w) * x + shift, channel by channel.

    That needs a plain convolution whose output goes into the layer and nowhere else, which blocks list in
    ``into_norm``. Other layers are kept: in a pre-activation block the first follows a sum.
    """

    def measure(self, trained: Trained) -> Iterator[Measured]:
        """Yield one result, with the numbers of folded and kept layers, and the largest change of a logit."""
        whole, model = trained.copy(), trained.copy()
        folded = fold(model)
        with torch.inference_mode():
            x = next(trained.testing.in_order(EVALUATION_BATCH)).images
            before, after = (infer(each, x, trained.trial.precision) for each in (whole, model))
        numbers = trained.test(model) | {
            "layers_folded": folded,
            "layers_kept": len(running.layers(model)),
            "largest_logit_change": float((after - before).abs().max()),
        }
        yield Measured(name="folded", numbers=numbers)


@torch.no_grad()
def fold(model: nn.Module) -> int:
    """Fold every layer that can be into its convolution, in place, and return their number."""
    folded = 0
    for block in list(model.modules()):
        for conv_name, norm_name in getattr(block, "into_norm", {}).items():
            conv, norm = getattr(block, conv_name), getattr(block, norm_name)
            if type(conv) is not nn.Conv2d or not running.layers(norm):
                continue
            scale, shift = multiply_add(norm, conv)
            bias = 0 if conv.bias is None else conv.bias
            conv.bias = nn.Parameter((bias * scale + shift).to(conv.weight.dtype))
            conv.weight.copy_(conv.weight * scale[:, None, None, None])
            setattr(block, norm_name, nn.Identity())
            folded += 1
    return folded


def multiply_add(norm: nn.Module, conv: nn.Conv2d) -> tuple[Tensor, Tensor]:
    """Return what ``norm`` does to the channels of ``conv`` at inference: scale and shift, [C], in float64.

    They are computed from its outputs for 0 and 1, so that its parameters need not be known.
    """
    norm = copy.deepcopy(norm).double().eval()
    zero = conv.weight.new_zeros((1, conv.out_channels, 1, 1), dtype=torch.float64)
    shift, sum_ = norm(zero).flatten(), norm(zero + 1).flatten()
    return sum_ - shift, shift
