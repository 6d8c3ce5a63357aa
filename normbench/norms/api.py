"""The seam between a network and a way to normalize it."""

import inspect
import itertools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from normbench.config import user_code
from normbench.config.catalog.norms import CLIPS, NORMS, Method
from normbench.config.trial import Choice
from normbench.config.user_code import Contained, EndedProcess


class ShapeError(ValueError):
    """A method cannot normalize maps of this shape."""


class Clock(NamedTuple):
    """When it is. ``Timed`` modules are told before every update.

    Attributes:
        step: updates made so far.
        steps_per_epoch: updates of an epoch.
        epochs: of the whole training.
    """

    step: int
    steps_per_epoch: int
    epochs: int

    @property
    def epoch(self) -> float:
        """Epochs made so far."""
        return self.step / self.steps_per_epoch


@runtime_checkable
class Timed(Protocol):
    """A module that behaves otherwise as training goes on."""

    def at(self, clock: Clock) -> None:
        """Take note of when it is; called before every update."""


class Sum(nn.Module):
    """What ends a residual block: shortcut + branch.

    Attributes:
        beta: what the block's input is multiplied by in front of the branch.
    """

    beta = 1.0

    def forward(self, shortcut: Tensor, branch: Tensor) -> Tensor:
        """Both [N, C, H, W]."""
        return shortcut + branch


def _no_layer(_channels: int) -> nn.Module:
    return nn.Identity()


def _same_conv(conv: nn.Conv2d) -> nn.Module:
    return conv


def _sum(_additions: int) -> Sum:
    return Sum()


class Clip(nn.Module):
    """What is done to the gradients, in place, after every backward pass; nothing, unless a subclass does it.

    It is a module of the network, so that its state is kept and its diagnostics are asked for.
    """

    def forward(self) -> None:
        """Act on the gradients of the network's parameters."""


class GradientNorms(Clip):
    """Before ``clip`` acts: the norm of every parameter's gradient, averaged over an epoch's updates."""

    def __init__(self, model: nn.Module, clip: Clip) -> None:
        super().__init__()
        self.watched = dict(model.named_parameters())
        self.clip = clip
        self.sums: Tensor
        self.updates: Tensor
        self.register_buffer("sums", torch.zeros(len(self.watched), dtype=torch.float64))
        self.register_buffer("updates", torch.zeros((), dtype=torch.float64))

    def at(self, clock: Clock) -> None:
        """Average anew in every epoch."""
        if clock.step % clock.steps_per_epoch == 0:
            self.sums.zero_()
            self.updates.zero_()

    def forward(self) -> None:
        """Note the norms; then clip."""
        zero = self.sums.new_zeros(())
        norms = [zero if one.grad is None else one.grad.norm().double() for one in self.watched.values()]
        self.sums += torch.stack(norms)
        self.updates += 1
        self.clip()

    def diagnostics(self) -> dict[str, dict[str, float]]:
        """The mean norm, by parameter."""
        means = (self.sums / self.updates.clamp_min(1)).tolist()
        return {"gradient_norm": dict(zip(self.watched, means, strict=True))}


def no_clip() -> Callable[[nn.Module], Clip]:
    """Gradients as they are."""
    return _as_they_are


def _as_they_are(_model: nn.Module) -> Clip:
    return Clip()


@dataclass(frozen=True)
class Normalization:
    """What a method does to a network: four places to act in, each doing nothing unless the method sets it.

    Attributes:
        layer: channels -> the module that follows a convolution, [N, C, H, W] -> [N, C, H, W].
        conv: a convolution -> the module that takes its place (weight norm, weight standardization).
        residual: how many branches were added into a block's input since its variance was last 1 -> the
            :class:`Sum` that ends the block.
        clip: the network -> what acts on its gradients after every backward pass, before the optimizer.
    """

    layer: Callable[[int], nn.Module] = _no_layer
    conv: Callable[[nn.Conv2d], nn.Module] = _same_conv
    residual: Callable[[int], Sum] = _sum
    clip: Callable[[nn.Module], Clip] = _as_they_are


_PLAIN = Sum()


def relu(layer: nn.Module, x: Tensor, shortcut: Tensor | None = None, residual: Sum = _PLAIN) -> Tensor:
    """relu(layer(x)) or relu(residual(shortcut, layer(x))); in one pass if the layer ``takes_relu``.

    A layer that ``takes_relu`` is called as ``layer(x, shortcut, relu=True)``; it may put another activation
    in the ReLU's place.
    """
    if getattr(layer, "takes_relu", False) and (shortcut is None or type(residual) is Sum):
        one_pass: Tensor = layer(x, shortcut, relu=True)
        return one_pass
    y = layer(x)
    return F.relu(y if shortcut is None else residual(shortcut, y))


def build(
    norm: Choice,
    norm_batch_size: int | None,
    norm_every: int = 1,
    clip: Choice | None = None,
    norm_batches: int = 1,
) -> Normalization:
    """The normalization that a trial names.

    Args:
        norm: the method and its options.
        norm_batch_size: samples that share statistics, for methods that look across samples.
        norm_every: a layer after every so many convolutions, none after the others.
        clip: what is done to the gradients.
        norm_batches: of an update.

    Raises:
        OwnError: the method is a user's own and cannot be used.
    """
    method = NORMS[norm.name]
    across = {"norm_batch_size": norm_batch_size} if method.across_samples else {}
    if method.has_history:
        across["norm_batches"] = norm_batches
    normalization: Normalization
    if method.is_custom:
        normalization = _own(method, norm.options, across)
    else:
        normalization = method.load()(**norm.options, **across)
    if norm_every > 1:
        normalization = replace(normalization, layer=_every(norm_every, normalization.layer))
    if clip is not None:
        normalization = replace(normalization, clip=CLIPS[clip.name].load()(**clip.options))
    return normalization


CURE = (
    "let it 'return Normalization(layer=make)', where make(channels) gives the layer that follows a "
    "convolution, and import that by 'from normbench.norms.api import Normalization'"
)


class OwnError(ValueError):
    """A user's own method cannot be used; the message names it and says why."""


def _own(method: Method, options: Mapping[str, Any], across: Mapping[str, Any]) -> Normalization:
    """Of a user's function, which is given ``norm_batch_size`` only if it takes that."""
    try:
        function = method.load()
        if isinstance(function, type) and issubclass(function, nn.Module):
            raise OwnError(f"norm {method.name} is a layer and gives no Normalization: {CURE}")
        taken = inspect.signature(function).parameters
        open_ = any(one.kind is inspect.Parameter.VAR_KEYWORD for one in taken.values())
        given = {**options, **(across if open_ or "norm_batch_size" in taken else {})}
        if words := _misfit(taken, given, open_):
            raise OwnError(f"norm {method.name} {words}")
        with Contained():
            found = function(**given)
    except OwnError:
        raise
    except EndedProcess as error:
        raise OwnError(f"norm {method.name}: {error}") from error
    except Exception as error:
        raise OwnError(f"norm {method.name}: {type(error).__name__}: {error}") from error
    if not isinstance(found, Normalization):
        raise OwnError(f"norm {method.name} gives a {type(found).__name__} and not a Normalization: {CURE}")
    return found


def _misfit(taken: Mapping[str, inspect.Parameter], given: Mapping[str, Any], open_: bool) -> str:
    """Which option a function asks for and is not given, or is given and does not take; or nothing."""
    named = [one for one in taken.values() if one.kind in (one.POSITIONAL_OR_KEYWORD, one.KEYWORD_ONLY)]
    for one in named:
        if one.default is one.empty and one.name not in given:
            return f"has no default for its option {one.name!r} and is not given it"
    names = [one.name for one in named]
    for key in given:
        if key not in names and not open_:
            return f"takes no option {key!r}; it takes {', '.join(names) or 'none'}"
    return ""


def sources(norm: Choice) -> dict[str, str]:
    """What a record says of a user's own code, as this process imported it; nothing for the table's methods.

    ``own_norm_sha256`` is that of the file of the method; ``own_code_sha256`` takes in the modules beside it
    that it imports (see :mod:`normbench.config.user_code`).
    """
    method = NORMS[norm.name]
    if not method.is_custom:
        return {}
    method.load()
    found = user_code.imported(method.target)
    return {"own_norm_sha256": found.first, "own_code_sha256": found.sha256} if found.first else {}


def recordable(norm: Choice) -> bool:
    """Whether updates with the method may be replayed (see ``recording``): a user's own has to say so.

    It does by an attribute of its function, ``recordable = True``: between passes nothing changes but
    tensors, and these in place; and nothing is read or written but by operators of torch.
    """
    return not NORMS[norm.name].is_custom or getattr(NORMS[norm.name].load(), "recordable", False) is True


def _every(k: int, layer: Callable[[int], nn.Module]) -> Callable[[int], nn.Module]:
    """Every k-th layer that a network asks for, starting with the k-th; nothing in place of the others."""
    asked = itertools.count(1)
    return lambda channels: layer(channels) if next(asked) % k == 0 else nn.Identity()


def place(parameter: str) -> str:
    """Which of ``PLACES`` a parameter of a network belongs to, by its name there."""
    first = parameter.partition(".")[0]
    return {"conv": "stem", "norm": "stem", "last_norm": "stage3", "linear": "final_linear"}.get(first, first)


def is_norm_parameter(name: str, parameter: Tensor) -> bool:
    """Gamma, beta and a method's own parameters, and not what convolutions and linear layers learn."""
    return parameter.ndim <= 1 and not name.startswith("linear.")
