"""The network of a trial, and the check that its method can normalize every map in it."""

from collections import Counter
from contextlib import nullcontext, suppress
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from normbench.config import user_code
from normbench.config.catalog.models import MODELS
from normbench.config.trial import Trial
from normbench.config.user_code import HASHES, Contained, EndedProcess
from normbench.models.custom import CustomNetwork, custom_network
from normbench.models.layers import FinalLayer, place, separate_streams
from normbench.norms.api import Normalization, OwnError, ShapeError, build
from normbench.tasks.base import task_of
from normbench.text import with_article
from normbench.training.clipping import clip_of
from normbench.training.device import process_lock

TENSOR_BYTES = 500  # that a file takes for the name and the place of a tensor


class NetworkSize(NamedTuple):
    """The size of a network.

    Attributes:
        parameters: their number.
        state: bytes of a file with its parameters and buffers, those that it shares once.
    """

    parameters: int
    state: int


def network(trial: Trial, classes: int) -> nn.Module:
    """Return the trial's network, initialised by the seed alone; its ``clip()`` clips its gradients."""
    with process_lock, torch.random.fork_rng(devices=[]):
        for entry in trial.user_code.values():
            with suppress(Exception):  # which is raised again where it is used
                entry.load()  # an import may draw numbers, the first time
        torch.default_generator.manual_seed(trial.seed)  # torch.manual_seed would reseed the GPUs for good
        batches = trial.batch_size // (trial.norm_batch_size or trial.batch_size)
        norm = build(trial.norm, trial.norm_batch_size, trial.norm_every, batches)
        make = custom_network if "model" in trial.user_code else _network_of_the_table
        model: nn.Module = make(trial, norm, classes)
        separate_streams(model)
        for head in model.modules():
            if isinstance(head, FinalLayer):
                head.full = trial.logits_precision == "fp32"
        if trial.zero_init_residual:
            model.zero_init_residual()  # type: ignore[operator]  # every network of its task has it
        model.clip = clip_of(trial, model)
    return model


def _network_of_the_table(trial: Trial, norm: Normalization, classes: int) -> nn.Module:
    model: nn.Module = MODELS[trial.model.name].load()(
        norm=_scaled(norm, trial.init_scale),
        dropout=trial.dropout,
        **task_of(trial).network_options(classes),
        **trial.model.options,
    )
    for head in model.modules():
        if isinstance(head, FinalLayer):
            with torch.no_grad():
                head.weight.mul_(trial.init_scale)
    return model


def sources(trial: Trial) -> dict[str, str]:
    """Return what a record states of a user's code as this process imported it; {} without such code.

    By :data:`normbench.config.user_code.HASHES`: the sha256 of the file of a method or network, and one that
    takes in the modules beside it that it imports.
    """
    hashes: dict[str, str] = {}
    for setting, entry in trial.user_code.items():
        entry.load()
        code = user_code.imported(entry.target)
        if code.first:
            hashes |= zip(HASHES[setting], (code.first, code.sha256), strict=True)
    return hashes


def recordable(trial: Trial) -> bool:
    """Return whether updates of the trial may be recorded and replayed.

    A user's method or network has to state it by an attribute of its function, ``recordable = True``: between
    passes nothing changes but tensors, and these in place; and only operators of torch read or write.
    """
    return all(getattr(entry.load(), "recordable", False) is True for entry in trial.user_code.values())


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


def check(trial: Trial, classes: int, image_size: int) -> NetworkSize:
    """Push the shapes of a training batch through the trial's network, without computing anything.

    A user's own method or network gets random inputs, since it may need numbers.

    Returns:
        The size of the network.

    Raises:
        ShapeError: names method, layer and shape.
        OwnError: the method or the network is a user's own and raises, or does something else than it should.
    """
    reached = ""
    calls: Counter[str] = Counter()
    is_own = bool(trial.user_code)

    def remember(layer: str, _module: nn.Module, inputs: tuple[Any, ...]) -> None:
        nonlocal reached
        calls[layer] += 1
        where = f"{trial.model.name}'s {place(model, layer)} (module {layer!r})"
        shapes = [f"which gets maps of shape {list(x.shape)}" for x in inputs[:1] if isinstance(x, Tensor)]
        reached = ", ".join([where, *shapes])

    with torch.device("cpu" if is_own else "meta"), torch.random.fork_rng(devices=[]):
        try:
            with Contained() if is_own else nullcontext():
                model = network(trial, classes)
                for name, module in model.named_modules():
                    module.register_forward_pre_hook(partial(remember, name))
                    if hasattr(module, "user_method"):
                        module.register_forward_hook(
                            partial(_check_layer, f"{place(model, name)} (module {name!r})")
                        )
                outputs = model(task_of(trial).example(trial.batch_size, image_size).images)
            if isinstance(model, CustomNetwork):
                _check_pass(trial, model, calls, outputs, classes)
            size = _size(model)
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
            names = " or ".join(f"{setting} {entry.name}" for setting, entry in trial.user_code.items())
            raise OwnError(f"{names} {where}: {what}{error}") from error
    return size


def _size(model: nn.Module) -> NetworkSize:
    tensors = {value for value in model.state_dict(keep_vars=True).values() if isinstance(value, Tensor)}
    state = sum(tensor.nbytes + TENSOR_BYTES for tensor in tensors)
    return NetworkSize(sum(parameter.numel() for parameter in model.parameters()), state)


def _check_layer(layer: str, module: nn.Module, inputs: tuple[Any, ...], output: object) -> None:
    """Refuse the output of a layer of a user's method that is not of the shape of its input.

    Raises:
        OwnError: names method, layer and shapes.
    """
    (x, *_) = inputs
    if not isinstance(output, Tensor) or output.shape != x.shape:
        got = list(output.shape) if isinstance(output, Tensor) else with_article(type(output).__name__)
        message = f"it gives {got} for maps of shape {list(x.shape)}; a layer must keep the shape"
        raise OwnError(f"norm {module.user_method} in {layer}: {message}")


def _check_pass(
    trial: Trial, model: CustomNetwork, calls: Counter[str], outputs: object, classes: int
) -> None:
    """Refuse a user's network that uses a converted layer twice, or gives no logits.

    Raises:
        OwnError: says which.
    """
    for layer in model.converted:
        if calls[layer] > 1:
            words = (
                f"{layer} is used {calls[layer]} times in a pass; a layer of its own is needed at each place"
            )
            raise OwnError(f"model {trial.model.name}: {words}")
    if not isinstance(outputs, Tensor) or outputs.shape != (trial.batch_size, classes):
        got = list(outputs.shape) if isinstance(outputs, Tensor) else with_article(type(outputs).__name__)
        expected = f"logits [{trial.batch_size}, {classes}]"
        raise OwnError(f"model {trial.model.name}: it gives {got} for a batch, and not {expected}")
