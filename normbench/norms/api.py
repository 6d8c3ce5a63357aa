"""The seam between a network and a way to normalize it."""

import inspect
import itertools
import warnings
from collections.abc import Callable, Mapping
from dataclasses import InitVar, dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, runtime_checkable

import torch.nn.functional as F
from torch import Tensor, nn

from normbench.config.catalog.norms import NORMS, Method
from normbench.config.trial import Choice
from normbench.config.user_code import Contained, EndedProcess
from normbench.text import with_article


class ShapeError(ValueError):
    """A method cannot normalize maps of this shape."""


class Clock(NamedTuple):
    """Progress of a training, which :class:`Timed` modules get before every update.

    Attributes:
        step: number of updates made so far.
        steps_per_epoch: number of updates in an epoch.
        epochs: number of epochs of the whole training.
    """

    step: int
    steps_per_epoch: int
    epochs: int

    @property
    def epoch(self) -> float:
        """Return the number of epochs made so far, with the fraction of the current one."""
        return self.step / self.steps_per_epoch


@runtime_checkable
class Timed(Protocol):
    """A module whose behaviour depends on the progress of the training."""

    def at(self, clock: Clock) -> None:
        """Set the progress of the training; called before every update."""


class Sum(nn.Module):
    """The end of a residual block: shortcut + branch.

    Attributes:
        beta: factor of the block's input in front of the branch.
    """

    beta = 1.0

    def forward(self, shortcut: Tensor, branch: Tensor) -> Tensor:
        """Return shortcut + branch, [N, C, H, W] each."""
        return shortcut + branch


def _no_layer(_channels: int) -> nn.Module:
    return nn.Identity()


def _same_conv(conv: nn.Conv2d) -> nn.Module:
    return conv


def _sum(_additions: int) -> Sum:
    return Sum()


RENAMED = {"layer": "make_layer", "conv": "wrap_conv", "residual": "make_residual"}


def _renamed(old: str) -> str:
    """Return the present name of an argument of :class:`Normalization`; warn at the line with the old one."""
    warnings.warn(f"Normalization: {old} is {RENAMED[old]} now", DeprecationWarning, stacklevel=3)
    return RENAMED[old]


class _AcceptsOldNames(type):
    """A class whose arguments may have the names that they had before."""

    def __call__(cls, *args: Any, **kwargs: Any) -> Any:
        """Make an instance."""
        for old in RENAMED.keys() & kwargs.keys():
            kwargs[_renamed(old)] = kwargs.pop(old)
        return super().__call__(*args, **kwargs)


@dataclass(frozen=True)
class Normalization(metaclass=_AcceptsOldNames):
    """What a method does to a network; each attribute does nothing unless the method sets it.

    Attributes:
        make_layer: channels -> the module that follows a convolution, [N, C, H, W] -> [N, C, H, W].
        wrap_conv: a convolution -> the module that takes its place (weight norm, weight standardization).
        make_residual: number of branches added into a block's input since its variance was last 1 -> the
            :class:`Sum` that ends the block.
    """

    make_layer: Callable[[int], nn.Module] = _no_layer
    wrap_conv: Callable[[nn.Conv2d], nn.Module] = _same_conv
    make_residual: Callable[[int], Sum] = _sum
    clip: InitVar[None] = None

    def __post_init__(self, clip: object) -> None:
        """Refuse what earlier versions took and ``trial.clip`` replaced."""
        if clip is not None:
            raise TypeError("a Normalization takes no clip any more: gradients are clipped by trial.clip")

    if not TYPE_CHECKING:

        def __getattr__(self, name: str) -> Any:
            """Return an attribute by the name that it had before."""
            if name in RENAMED:
                return getattr(self, _renamed(name))
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")


_PLAIN = Sum()


def relu(layer: nn.Module, x: Tensor, shortcut: Tensor | None = None, residual: Sum = _PLAIN) -> Tensor:
    """Return relu(layer(x)) or relu(residual(shortcut, layer(x))), [N, C, H, W].

    A layer with ``takes_relu = True`` computes both in one pass: it is called as ``layer(x, shortcut,
    relu=True)`` and may replace the ReLU by an activation of the method.
    """
    if getattr(layer, "takes_relu", False) and (shortcut is None or type(residual) is Sum):
        activated: Tensor = layer(x, shortcut, relu=True)
        return activated
    y = layer(x)
    return F.relu(y if shortcut is None else residual(shortcut, y))


def build(
    norm: Choice,
    norm_batch_size: int | None,
    norm_every: int = 1,
    norm_batches: int = 1,
) -> Normalization:
    """Return the normalization that a trial names.

    Args:
        norm: the method and its options.
        norm_batch_size: number of samples that share statistics, for methods that look across samples.
        norm_every: k, for a layer after every k-th convolution and none after the others.
        norm_batches: number of norm batches in an update.

    Raises:
        OwnError: a user's method cannot be used.
    """
    method = NORMS[norm.name]
    across = {"norm_batch_size": norm_batch_size} if method.across_samples else {}
    if method.has_history:
        across["norm_batches"] = norm_batches
    normalization: Normalization
    if method.is_custom:
        normalization = _user_method(method, norm.options, across)
    else:
        normalization = method.load()(**norm.options, **across)
    if norm_every > 1:
        normalization = replace(normalization, make_layer=_every(norm_every, normalization.make_layer))
    return normalization


CURE = (
    "let it take the number of channels and give the layer that follows a convolution, or let it 'return "
    "Normalization(make_layer=make)' with such a function, 'from normbench.norms.api import Normalization'"
)


class OwnError(ValueError):
    """A user's code cannot be used; the message names it and says why."""


class LayerError(OwnError):
    """A user's method cannot make a layer."""


def _user_method(method: Method, options: Mapping[str, Any], across: Mapping[str, Any]) -> Normalization:
    """Return the normalization of a user's function or class of layers.

    It gets ``norm_batch_size`` only if it has a parameter of that name. A class of modules, and a function
    whose first parameter has no default and is not given, take a number of channels and give a layer.

    Raises:
        OwnError: it raises, or does not take these options, or returns something else.
    """
    try:
        function = method.load()
        parameters = dict(inspect.signature(function).parameters)
        takes_any = any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in parameters.values())
        arguments = {**options, **(across if takes_any or "norm_batch_size" in parameters else {})}
        is_class = isinstance(function, type) and issubclass(function, nn.Module)
        channels = _channels_of(parameters, arguments, is_class)
        if channels is None and is_class:
            raise OwnError(
                f"norm {method.name} is a class of layers that takes no number of channels: {CURE}"
            )
        if channels in arguments:
            raise OwnError(f"norm {method.name} gets the number of channels as {channels!r}; it is no option")
        parameters.pop(channels or "", None)
        if problem := mismatch(parameters, arguments, takes_any):
            raise OwnError(f"norm {method.name} {problem}")
        if channels is not None:
            make = partial(_user_layer, method.name, function, arguments, channels)
            return Normalization(make_layer=partial(_made, method.name, make))
        with Contained():
            result = function(**arguments)
    except OwnError:
        raise
    except EndedProcess as error:
        raise OwnError(f"norm {method.name}: {error}") from error
    except Exception as error:
        raise OwnError(f"norm {method.name}: {type(error).__name__}: {error}") from error
    if not isinstance(result, Normalization):
        kind = with_article(type(result).__name__)
        raise OwnError(f"norm {method.name} gives {kind} and not a Normalization: {CURE}")
    return replace(result, make_layer=partial(_made, method.name, result.make_layer))


def _made(name: str, make: Callable[[int], object], channels: int) -> nn.Module:
    """Return a layer of a user's method, with the method's name as its attribute ``user_method``.

    Raises:
        LayerError: the method raises, or gives no module.
    """
    try:
        layer = make(channels)
    except (OwnError, ShapeError):
        raise
    except Exception as error:
        raise LayerError(f"norm {name}: {type(error).__name__}: {error}") from error
    if not isinstance(layer, nn.Module):
        kind = with_article(type(layer).__name__)
        raise LayerError(f"norm {name} gives {kind} for a number of channels and not a module: {CURE}")
    layer.user_method = name  # type: ignore[assignment]
    return layer


def _channels_of(
    parameters: Mapping[str, inspect.Parameter], arguments: Mapping[str, Any], is_class: bool
) -> str | None:
    """Return the name of the parameter that is the number of channels; None if the function has none."""
    kinds = inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD
    first = next(iter(parameters.values()), None)
    if first is None or first.kind not in kinds:
        return None
    is_required = first.default is first.empty and first.name not in arguments
    return first.name if is_class or is_required else None


def _user_layer(
    name: str, function: Callable[..., object], arguments: Mapping[str, Any], parameter: str, channels: int
) -> object:
    """Return what a user's function gives for a number of channels, unless that is a method.

    Raises:
        LayerError: it is one, as of a function whose first parameter is an option.
    """
    layer = function(channels, **arguments)
    if isinstance(layer, Normalization):
        raise LayerError(f"norm {name} has no default for its option {parameter!r} and is not given it")
    return layer


def mismatch(
    parameters: Mapping[str, inspect.Parameter], arguments: Mapping[str, Any], takes_any: bool
) -> str:
    """Return which option a function requires and does not get, or gets and does not take; or ''."""
    kinds = inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY
    options = {name: parameter for name, parameter in parameters.items() if parameter.kind in kinds}
    for name, parameter in options.items():
        if parameter.default is parameter.empty and name not in arguments:
            return f"has no default for its option {name!r} and is not given it"
    for key in arguments:
        if key not in options and not takes_any:
            return f"takes no option {key!r}; it takes {', '.join(options) or 'none'}"
    return ""


def _every(k: int, layer: Callable[[int], nn.Module]) -> Callable[[int], nn.Module]:
    """Return a function that makes every k-th layer of a network, from the k-th on, and else an identity."""
    numbers = itertools.count(1)
    return lambda channels: layer(channels) if next(numbers) % k == 0 else nn.Identity()
