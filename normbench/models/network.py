"""From a trial to its network, and the check that its method can normalize every map in it."""

import torch
from torch import Tensor, nn

from normbench.models import MODELS
from normbench.norms.normalization import Normalization, ShapeError, build
from normbench.trial import Trial


def network(trial: Trial, classes: int) -> tuple[nn.Module, Normalization]:
    """The trial's freshly initialised network, and its normalization (for ``clip``); a function of the seed alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(trial.seed)
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
    where = "", (0, 0, 0, 0)

    def note(name: str) -> None:
        def before(_module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            nonlocal where
            N, C, H, W = inputs[0].shape
            where = name, (N, C, H, W)

        return before

    with torch.device("meta"):
        try:
            model, _ = network(trial, classes)
            for name, module in model.named_modules():
                if ".norm" in f".{name}":
                    module.register_forward_pre_hook(note(name))
            model(torch.empty(trial.batch_size, 3, image_size, image_size))
        except ShapeError as error:
            layer, shape = where
            place = f" in layer {layer}, maps of shape {list(shape)}" if layer else ""
            raise ShapeError(f"{trial.norm.name} norm cannot be used{place}: {error}") from None
