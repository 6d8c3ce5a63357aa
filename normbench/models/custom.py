"""Networks of a user's own: functions that make a module, as they are in torchvision."""

import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from normbench.config.catalog.models import MODELS
from normbench.config.trial import Trial
from normbench.config.user_code import Contained, EndedProcess
from normbench.models.convert import convert
from normbench.models.layers import FinalLinear, place
from normbench.norms.api import LayerError, Normalization, OwnError, mismatch
from normbench.text import with_article


class CustomNetwork(nn.Module):
    """A user's network that is converted to a method, with its places told by type.

    These are its first convolution, ``stem``; its last ``nn.Linear`` with as many outputs as there are
    classes, ``final_linear``, which becomes a :class:`~normbench.models.layers.FinalLinear`; and its children
    by their names.

    Args:
        network: the converted network.
        classes: number of outputs.

    Attributes:
        converted: names of the layers of the method.
        wrapped: names of the convolutions that the method replaced.
        places: of modules, by name.
    """

    def __init__(self, network: nn.Module, classes: int) -> None:
        super().__init__()
        self.network = network
        names: tuple[tuple[str, ...], tuple[str, ...]] = network.converted, network.wrapped  # type: ignore[assignment]
        self.converted, self.wrapped = (
            tuple(f"network.{name}" if name else "network" for name in kind) for kind in names
        )
        self.places = {f"network.{name}": name for name, _ in network.named_children()}
        is_stem = (
            name
            for name, module in self.named_modules()
            if isinstance(module, _ConvNd) or name in self.wrapped
        )
        if stem := next(is_stem, None):
            self.places[stem] = "stem"
        linear = {
            name: module
            for name, module in self.named_modules()
            if isinstance(module, nn.Linear) and module.out_features == classes
        }
        if linear:
            name, head = linear.popitem()
            self.places[name] = "final_linear"
            if type(head) is nn.Linear:
                final = FinalLinear(head.in_features, classes, head.bias is not None, device="meta")
                final.weight, final.bias = head.weight, head.bias
                self.set_submodule(name, final.train(head.training))

    def forward(self, x: Tensor) -> Tensor:
        """Return what the user's network does: logits [N, classes] of images [N, 3, H, W]."""
        logits: Tensor = self.network(x)
        return logits

    def zero_init_residual(self) -> None:
        """Have the network set gamma to 0 in the last norm of each block."""
        self.network.zero_init_residual()  # type: ignore[operator]


def custom_network(trial: Trial, norm: Normalization, classes: int) -> CustomNetwork:
    """Return the network that a trial's ``module:function`` gives, converted to a method.

    Raises:
        OwnError: the function raises, does not take what it is given, or gives a network that cannot do what
            the trial asks of it.
    """
    name, options = trial.model.name, trial.model.options
    layers = options.pop("convert")
    try:
        function = MODELS[name].load()
        arguments = _arguments(function, options, classes, trial.dropout)
        with Contained():
            model = function(**arguments)
        if not isinstance(model, nn.Module):
            raise OwnError(f"it gives {with_article(type(model).__name__)} and not a torch.nn.Module")
        scale_weights(model, trial.init_scale)
        network = CustomNetwork(convert(model, norm, layers), classes)
        _check_settings(trial, network, classes)
    except LayerError:
        raise
    except (OwnError, EndedProcess) as error:
        raise OwnError(f"model {name}: {error}") from error
    except Exception as error:
        raise OwnError(f"model {name}: {type(error).__name__}: {error}") from error
    return network


def _arguments(
    function: Callable[..., object], options: dict[str, Any], classes: int, dropout: float
) -> dict[str, Any]:
    """Return the keyword arguments of a user's function."""
    if isinstance(function, nn.Module) or not callable(function):
        raise OwnError("it is no function or class that makes a network")
    parameters = inspect.signature(function).parameters
    takes_any = any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in parameters.values())
    key = next((key for key in ("num_classes", "classes") if key in parameters), None)
    if key is None and not takes_any:
        raise OwnError("it takes neither num_classes nor classes, the number of outputs")
    arguments = options | ({"dropout": dropout} if dropout else {})
    if given := arguments.keys() & {"num_classes", "classes"}:
        raise OwnError(f"{given.pop()} follows from the data set and is no option")
    others = {name: parameter for name, parameter in parameters.items() if name != key}
    if problem := mismatch(others, arguments, takes_any):
        raise OwnError(f"it {problem}")
    return arguments | {key or "num_classes": classes}


@torch.no_grad()
def scale_weights(model: nn.Module, scale: float) -> None:
    """Multiply the initial weights, which are all parameters of two dimensions or more."""
    for parameter in model.parameters() if scale != 1 else ():
        if parameter.ndim > 1:
            parameter.mul_(scale)


def _check_settings(trial: Trial, model: CustomNetwork, classes: int) -> None:
    """Refuse settings that need what the network does not have."""
    layers = len(model.converted)
    if trial.norm_every > max(1, layers):
        raise OwnError(f"norm_every {trial.norm_every} is more than its {layers} layers")
    if trial.zero_init_residual and not callable(getattr(model.network, "zero_init_residual", None)):
        raise OwnError("zero_init_residual: its network has no method of this name, which sets gamma to 0")
    if "signal_propagation" in trial.diagnose and not any(
        hasattr(module, "summands") for module in model.modules()
    ):
        raise OwnError("diagnose: signal_propagation: no block of it has a method summands")
    places = {place(model, name) for name, _ in model.named_parameters()}
    linear = f"; there is no nn.Linear of {classes} outputs in it"
    for excluded in trial.clip.options.get("exclude", ()):
        if excluded not in places:
            reason = linear if excluded == "final_linear" else f"; it has {', '.join(sorted(places))}"
            raise OwnError(f"clip.exclude: it has no {excluded}{reason}")
    matrices = {place(model, name) for name, parameter in model.named_parameters() if parameter.ndim > 1}
    if not trial.clip.options.get("vectors", True) and matrices <= {*trial.clip.options["exclude"]}:
        raise OwnError(
            "clip.exclude: every place of it is excluded, and vectors are: nothing is left to clip"
        )
    is_full = any(isinstance(module, FinalLinear) for module in model.modules())
    if trial.precision == "bf16" and trial.logits_precision == "fp32" and not is_full:
        raise OwnError(f"logits_precision must be bf16{linear}")
