"""The network of a trial, and the check that its method can normalize every map in it."""

from contextlib import nullcontext
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor, nn

from normbench.config.catalog.models import MODELS
from normbench.config.catalog.norms import NORMS
from normbench.config.trial import Trial
from normbench.config.user_code import Contained, EndedProcess
from normbench.models.layers import FinalLayer, place
from normbench.norms.api import Normalization, OwnError, ShapeError, build
from normbench.tasks.base import task_of
from normbench.training.clipping import clip_of
from normbench.training.device import process_lock


def network(trial: Trial, classes: int) -> nn.Module:
    """Return the trial's network, initialised by the seed alone; its ``clip()`` clips its gradients."""
    with process_lock, torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(trial.seed)  # torch.manual_seed would reseed the GPUs for good
        batches = trial.batch_size // (trial.norm_batch_size or trial.batch_size)
        norm = build(trial.norm, trial.norm_batch_size, trial.norm_every, batches)
        builder = MODELS[trial.model.name].load()
        model: nn.Module = builder(
            norm=_scaled(norm, trial.init_scale),
            dropout=trial.dropout,
            **task_of(trial).network_options(classes),
            **trial.model.options,
        )
        for head in model.modules():
            if isinstance(head, FinalLayer):
                with torch.no_grad():
                    head.weight.mul_(trial.init_scale)
                head.full = trial.logits_precision == "fp32"
        if trial.zero_init_residual:
            model.zero_init_residual()  # type: ignore[operator]  # every network of its task has it
        model.clip = clip_of(trial, model)
    return model


def to_device(model: nn.Module, device: torch.device) -> nn.Module:
    """Move a network to a device, with its weights in channels-last order."""
    moved: nn.Module = model.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    return moved


def _scaled(norm: Normalization, scale: float) -> Normalization:
    """Return the same method, applied to convolutions that start from ``scale`` times their weights."""

    @torch.no_grad()
    def scaled_conv(conv: nn.Conv2d) -> nn.Module:
        conv.weight.mul_(scale)
        return norm.wrap_conv(conv)

    return replace(norm, wrap_conv=scaled_conv)


def check(trial: Trial, classes: int, image_size: int) -> int:
    """Push the shapes of a training batch through the trial's network, without computing anything.

    A user's own method gets random inputs, since it may need numbers.

    Returns:
        The number of parameters of the network.

    Raises:
        ShapeError: names method, layer and shape.
        OwnError: the method is a user's own and raises.
    """
    reached = ""
    is_own = NORMS[trial.norm.name].is_custom

    def remember(layer: str, _module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        nonlocal reached
        where = f"{trial.model.name}'s {place(model, layer)} (module {layer!r})"
        reached = f"{where}, which gets maps of shape {list(inputs[0].shape)}"

    with torch.device("cpu" if is_own else "meta"), torch.random.fork_rng(devices=[]):
        try:
            with Contained() if is_own else nullcontext():
                model = network(trial, classes)
                for name, module in model.named_modules():
                    module.register_forward_pre_hook(partial(remember, name))
                model(task_of(trial).example(trial.batch_size, image_size).images)
        except ShapeError as error:
            raise ShapeError(
                f"{trial.norm.name} norm cannot be used in {reached or trial.model.name}: {error}"
            ) from None
        except OwnError:
            raise
        except Exception as error:
            if not is_own:
                raise
            where = f"raises in {reached}" if reached else "cannot be built into a network"
            what = "" if isinstance(error, EndedProcess) else f"{type(error).__name__}: "
            raise OwnError(f"norm {trial.norm.name} {where}: {what}{error}") from error
    return sum(parameter.numel() for parameter in model.parameters())
