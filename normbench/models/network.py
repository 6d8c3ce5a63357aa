"""From a trial to its network, and the check that its method can normalize every map in it."""

from functools import partial

import torch
from torch import Tensor, nn

from normbench.models import MODELS
from normbench.norms.normalization import Normalization, ShapeError, build
from normbench.trial import Trial


def network(trial: Trial, classes: int) -> tuple[nn.Module, Normalization]:
    """The trial's network, initialised by the seed alone, and its normalization (for ``clip``)."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(trial.seed)  # torch.manual_seed would reseed the GPUs for good
        norm = build(trial.norm, trial.norm_batch_size)
        model: nn.Module = MODELS[trial.model.name].load()(classes=classes, norm=norm, **trial.model.options)
        if trial.zero_init_residual:
            model.zero_init_residual()  # type: ignore[operator]  # every network of the table has it
    return model, norm


def check(trial: Trial, classes: int, image_size: int) -> None:
    """Push the shapes of a training batch through the trial's network, without computing anything.

    Raises:
        ShapeError: names method, layer and shape.
    """
    reached = ""

    def note(layer: str, _module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        nonlocal reached
        reached = f"layer {layer} of {trial.model.name}, which gets maps of shape {list(inputs[0].shape)}"

    with torch.device("meta"):
        model, _ = network(trial, classes)
        for name, module in model.named_modules():
            module.register_forward_pre_hook(partial(note, name))
        try:
            model(torch.empty(trial.batch_size, 3, image_size, image_size))
        except ShapeError as error:
            raise ShapeError(f"{trial.norm.name} norm cannot be used in {reached}: {error}") from None
