"""Signal propagation through the residual blocks of a network (Brock et al. 2021, arXiv 2101.08692).

Their signal propagation plots (section 3) show, block by block: the average of the channels' squared means,
which grows where a ReLU shifts the mean and nothing centers it again; the average of the channels' variances;
and the variance at the end of the branch, which normalization holds down against that of the shortcut.
"""

import copy
import math
from collections import defaultdict
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from normbench.config.trial import Trial
from normbench.data.batches import Images, generator
from normbench.norms.api import Clock, Timed
from normbench.norms.moment_norm import Block, Moments, moments, pool

PROBED = 512  # images


@torch.no_grad()
def signal_propagation(model: nn.Module, images: Images, trial: Trial, clock: Clock) -> list[dict[str, Any]]:
    """Measure training images at every residual block, in batches and in the mode of training.

    Every channel's mean and variance are over all samples and positions of ``PROBED`` images, rounded to
    whole batches, and at least one. Layers that depend on the time are as in an update at ``clock``. The
    model stays as it is, running statistics included.

    Returns:
        By residual block, each None if it is not finite: ``squared_mean`` and ``variance`` of the block's
        output, averages over channels; ``branch_variance``, likewise at the end of the branch; and
        ``branch_ratio``, the variance of what the branch adds over that of the shortcut.
    """
    probe = copy.deepcopy(model).train()
    for module in probe.modules():
        if isinstance(module, Timed):
            module.at(clock)
    seen: dict[str, dict[str, list[Moments]]] = defaultdict(lambda: defaultdict(list))

    def remember(name: str, block: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        shortcut, branch = block.summands(*inputs)
        added = block.residual(torch.zeros_like(branch), branch)
        maps = {"output": output, "shortcut": shortcut, "branch": branch, "added": added}
        for place, x in maps.items():
            seen[name][place].append(moments(x))

    for name, module in probe.named_modules():
        if hasattr(module, "summands"):
            module.register_forward_hook(partial(remember, name))
    for indices in _batches(trial, len(images)):
        with torch.autocast(images.device.type, torch.bfloat16, enabled=trial.precision == "bf16"):
            probe(images.at(indices).images)
    return [
        {"layer": name} | _numbers({place: _pooled(parts) for place, parts in maps.items()})
        for name, maps in seen.items()
    ]


def _batches(trial: Trial, count: int) -> tuple[Tensor, ...]:
    """Return the indices of the images, the same in every call."""
    order = torch.randperm(count, generator=generator(trial.seed, 0, "signal propagation"))
    batches = max(1, min(PROBED, count) // trial.batch_size)
    return torch.split(order[: batches * trial.batch_size], trial.batch_size)


def _pooled(parts: list[Moments]) -> Moments:
    """Return the moments of each channel over all samples of all batches, [C]."""
    together = Moments(*(torch.cat(part).double() for part in zip(*parts, strict=True)))
    return Moments(*(part.flatten() for part in pool(together, Block(samples=len(together.mean)))))


def _numbers(channels: dict[str, Moments]) -> dict[str, float | None]:
    numbers = {
        "squared_mean": channels["output"].mean.square().mean(),
        "variance": channels["output"].variance.mean(),
        "branch_variance": channels["branch"].variance.mean(),
        "branch_ratio": channels["added"].variance.mean() / channels["shortcut"].variance.mean(),
    }
    return {key: value if math.isfinite(value := float(number)) else None for key, number in numbers.items()}
