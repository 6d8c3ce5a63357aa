"""The running statistics of a network, whatever its layers name them; and statistics of single batches."""

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from normbench.norms.api import Clock, Timed


class Running(NamedTuple):
    """A running statistic: in training, value = (1 - momentum) · value + momentum · (the batch's)."""

    value: Tensor
    momentum: float


def layers(model: nn.Module) -> list[tuple[str, Any]]:
    """Return names and layers of those with a ``momentum`` and ``running_…`` buffers.

    Those that normalize by ``norm_batch_size`` samples have an attribute of that name.
    """
    return [
        (name, module)
        for name, module in model.named_modules()
        if isinstance(getattr(module, "momentum", None), float) and any(_buffers(module))
    ]


def statistics(model: nn.Module) -> dict[str, Running]:
    """Return all running statistics, by name."""
    return {
        f"{name}.{buffer}": Running(value, layer.momentum)
        for name, layer in layers(model)
        for buffer, value in _buffers(layer)
    }


@torch.no_grad()
def put(model: nn.Module, values: Mapping[str, Tensor]) -> None:
    """Set the running statistics."""
    for name, running in statistics(model).items():
        running.value.copy_(values[name])


def normalize_by_batch(model: nn.Module, samples: int) -> None:
    """Have the layers of a network at inference use the statistics of every ``samples`` of a batch.

    Layers that depend on the time are as before the first update of a long training: they correct and freeze
    nothing yet.
    """
    for _, layer in layers(model):
        layer.train()
        if hasattr(layer, "norm_batch_size"):
            layer.norm_batch_size = samples
        if isinstance(layer, Timed):
            layer.at(Clock(-1, 1, 2**31))


def _buffers(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    return (
        (name, tensor) for name, tensor in module.named_buffers(recurse=False) if name.startswith("running_")
    )
