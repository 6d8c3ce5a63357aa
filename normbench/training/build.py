"""From a trial to its network, and the check that its method can normalize every map in it."""

from contextlib import nullcontext
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor, nn

from normbench.config.catalog.models import MODELS
from normbench.config.catalog.norms import NORMS
from normbench.config.trial import Trial
from normbench.config.user_code import Contained, EndedProcess
from normbench.norms.api import GradientNorms, Normalization, OwnError, ShapeError, build, place
from normbench.training.process import exclusive


def network(trial: Trial, classes: int) -> nn.Module:
    """The trial's network, initialised by the seed alone; ``network.clip()`` acts on its gradients."""
    with exclusive, torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(trial.seed)  # torch.manual_seed would reseed the GPUs for good
        batches = trial.batch_size // (trial.norm_batch_size or trial.batch_size)
        norm = build(trial.norm, trial.norm_batch_size, trial.norm_every, trial.clip, batches)
        builder = MODELS[trial.model.name].load()
        model: nn.Module = builder(
            classes=classes,
            norm=_scaled(norm, trial.init_scale),
            dropout=trial.dropout,
            **trial.model.options,
        )
        with torch.no_grad():
            model.get_parameter("linear.weight").mul_(trial.init_scale)
        if trial.zero_init_residual:
            model.zero_init_residual()  # type: ignore[operator]  # every network of the table has it
        model.linear.full = trial.logits_precision == "fp32"  # type: ignore[union-attr]
        clip = norm.clip(model)
        model.clip = GradientNorms(model, clip) if "gradient_norm" in trial.diagnose else clip
    return model


def _scaled(norm: Normalization, scale: float) -> Normalization:
    """The same method, upon convolutions that start from ``scale`` times their weights."""

    @torch.no_grad()
    def conv(replaced: nn.Conv2d) -> nn.Module:
        replaced.weight.mul_(scale)
        return norm.conv(replaced)

    return replace(norm, conv=conv)


def check(trial: Trial, classes: int, image_size: int) -> int:
    """Push the shapes of a training batch through the trial's network, without computing anything.

    A user's own method gets random images, since nothing says that it can do without numbers.

    Returns:
        How many parameters the network has.

    Raises:
        ShapeError: names method, layer and shape.
        OwnError: the method is a user's own and raises.
    """
    reached = ""
    own = NORMS[trial.norm.name].is_custom

    def note(layer: str, _module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        nonlocal reached
        where = f"{trial.model.name}'s {place(layer)} (module {layer!r})"
        reached = f"{where}, which gets maps of shape {list(inputs[0].shape)}"

    drawn = torch.randn if own else torch.empty
    with torch.device("cpu" if own else "meta"), torch.random.fork_rng(devices=[], enabled=own):
        try:
            with Contained() if own else nullcontext():
                model = network(trial, classes)
                for name, module in model.named_modules():
                    module.register_forward_pre_hook(partial(note, name))
                model(drawn(trial.batch_size, 3, image_size, image_size))
        except ShapeError as error:
            raise ShapeError(f"{trial.norm.name} norm cannot be used in {reached}: {error}") from None
        except OwnError:
            raise
        except Exception as error:
            if not own:
                raise
            where = f"raises in {reached}" if reached else "cannot be built into a network"
            what = "" if isinstance(error, EndedProcess) else f"{type(error).__name__}: "
            raise OwnError(f"norm {trial.norm.name} {where}: {what}{error}") from error
    return sum(parameter.numel() for parameter in model.parameters())
