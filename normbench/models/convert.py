"""Conversion of any network to another normalization, as torch.nn.SyncBatchNorm.convert_sync_batchnorm.

A :class:`~normbench.norms.api.Normalization` says what takes the place of a normalization layer and of a
convolution; a network that was not written for it has both as modules of torch. All that cannot be converted
is refused before anything is changed, by the name of the layer.
"""

from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd
from torch.nn.modules.lazy import LazyModuleMixin
from torch.nn.utils import parametrize

from normbench.norms.api import Normalization, OwnError, ShapeError
from normbench.norms.moment_norm import MomentNorm, RunningMomentNorm
from normbench.text import did_you_mean, quoted, with_article

LAYERS: Mapping[str, tuple[type[nn.Module], ...]] = {
    "batch": (
        nn.BatchNorm1d,
        nn.BatchNorm2d,
        nn.BatchNorm3d,
        nn.SyncBatchNorm,
        nn.LazyBatchNorm1d,
        nn.LazyBatchNorm2d,
    ),
    "layer": (nn.LayerNorm,),
    "group": (nn.GroupNorm,),
    "instance": (nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d),
}
WITHOUT_MAPS = nn.BatchNorm3d, nn.InstanceNorm3d
STATE = frozenset({"weight", "bias", "running_mean", "running_var", "num_batches_tracked"})
# values that a layer takes over from the one that it replaces, by their names in both
KEPT = {
    "weight": ("gamma", "weight"),
    "bias": ("beta", "bias"),
    "running_mean": ("running_mean",),
    "running_var": ("running_var",),
}
# options that mean in these layers what they mean in torch's
CARRIED: Mapping[str, type[nn.Module]] = {"eps": MomentNorm, "momentum": RunningMomentNorm}


class ConversionError(OwnError):
    """A network that cannot be converted; the message names the layer."""


class Vectors(nn.Module):
    """A layer for maps, [N, C, H, W], applied to vectors and sequences.

    Args:
        layer: the layer.
        is_channels_last: whether inputs are [N, ..., C] in place of [N, C, ...].
    """

    def __init__(self, layer: nn.Module, is_channels_last: bool) -> None:
        super().__init__()
        self.layer, self.is_channels_last = layer, is_channels_last

    def forward(self, x: Tensor) -> Tensor:
        """Normalize x of two to four dimensions.

        Raises:
            ShapeError: it has others, or the layer cannot normalize it.
        """
        if not 2 <= x.ndim <= 4:
            raise ShapeError(f"{x.ndim} dimensions are no vectors, sequences or maps of several samples")
        maps = x.movedim(-1, 1) if self.is_channels_last else x
        y: Tensor = self.layer(maps[(..., *[None] * (4 - x.ndim))]).reshape(maps.shape)
        return y.movedim(1, -1) if self.is_channels_last else y


def convert(
    model: nn.Module,
    norm: Normalization,
    layers: Sequence[str] = ("batch",),
    carried: Collection[str] = (),
) -> nn.Module:
    """Replace the normalization layers of a network by those of a method, in place.

    A new layer takes over gamma, beta and running statistics, on the same device and in the same precision.
    It has gamma and beta also where the old layer has none. Where the method changes convolutions, it gets
    every ``nn.Conv2d``.

    Args:
        model: the network. Its attribute ``converted`` gets the names of the new layers and ``wrapped`` those
            of the new convolutions.
        norm: the method.
        layers: which layers of torch are replaced, of ``LAYERS``.
        carried: which options a new layer takes over from the old one where it has them, of ``CARRIED``.

    Returns:
        The network, which is another object only if it is itself a layer or a convolution.

    Raises:
        ConversionError: names the layer that cannot be converted, and why; nothing is changed.
    """
    replaced, plain = tuple(kind for name in layers for kind in _kinds(name)), Normalization()
    if norm.make_residual is not plain.make_residual:
        words = "the method ends residual blocks in its own way, and modules do not tell where these end"
        raise ConversionError(words)
    old = {name: module for name, module in model.named_modules() if isinstance(module, replaced)}
    convolutions: dict[str, nn.Module] = {}
    if norm.wrap_conv is not plain.wrap_conv:
        convolutions = {name: module for name, module in model.named_modules() if isinstance(module, _ConvNd)}
        if not convolutions:
            raise ConversionError("there is no convolution whose weights the method could normalize")
    elif not old:
        raise ConversionError(f"there is no layer to convert: {_what_there_is(model, layers)}")
    _check_shared(model, old | convolutions, convolutions)
    for name, module in old.items():
        _check_layer(name, module, replaced)
    for name, module in convolutions.items():
        _check_layer(name, module, (nn.Conv2d,))
    new = {name: _layer(norm, name, module, carried) for name, module in old.items()}
    for name, module in convolutions.items():
        assert isinstance(module, nn.Conv2d)
        new[name] = norm.wrap_conv(module).train(module.training)
    for name, module in new.items():
        if name:
            model.set_submodule(name, module)
        else:
            model = module
    model.converted, model.wrapped = tuple(old), tuple(convolutions)  # type: ignore[assignment]
    return model


def _kinds(name: str) -> tuple[type[nn.Module], ...]:
    if name not in LAYERS:
        known = f"{did_you_mean(name, LAYERS)}; known: {', '.join(LAYERS)}"
        raise ConversionError(f"there is no kind of layers {quoted(name)}{known}")
    return LAYERS[name]


def _what_there_is(model: nn.Module, layers: Sequence[str]) -> str:
    """Return which normalization layers a network has that were not asked for."""
    others = {
        name: kind.__name__
        for name, kinds in LAYERS.items()
        for kind in kinds
        if name not in layers and any(isinstance(module, kind) for module in model.modules())
    }
    asked = f"no {' or '.join(kind.__name__ for name in layers for kind in LAYERS[name][:2])} in it"
    return f"{asked}, but {', '.join(others.values())} (convert: [{', '.join(others)}])" if others else asked


def _check_shared(
    model: nn.Module, changed: Mapping[str, nn.Module], convolutions: Mapping[str, nn.Module]
) -> None:
    """Refuse modules with two names, and convolutions that share their weights with another module."""
    names: dict[int, list[str]] = defaultdict(list)
    for name, module in model.named_modules(remove_duplicate=False):
        names[id(module)].append(name)
    for module in changed.values():
        if len(alike := names[id(module)]) > 1:
            raise ConversionError(f"{' and '.join(alike)} are one module, which cannot be converted")
    weights: dict[int, list[str]] = defaultdict(list)
    for name, parameter in model.named_parameters(remove_duplicate=False):
        weights[id(parameter)].append(name)
    for module in convolutions.values():
        if len(alike := weights[id(module.weight)]) > 1:
            raise ConversionError(f"{' and '.join(alike)} are one parameter, which no method can change")


def _check_layer(name: str, module: nn.Module, kinds: tuple[type[nn.Module], ...]) -> None:
    """Refuse a layer of which more than ``kinds`` tell would be lost."""
    kind = type(module)
    where = f"{name or 'the network'}, {with_article(kind.__name__)},"
    base = next((each for each in kinds if isinstance(module, each)), None)
    if base is None:
        known = " and ".join(each.__name__ for each in kinds)
        raise ConversionError(f"{where} cannot be converted: the method changes {known} alone")
    if isinstance(module, LazyModuleMixin) and module.has_uninitialized_params():
        raise ConversionError(f"{where} does not know its channels before its first input")
    if isinstance(module, WITHOUT_MAPS):
        raise ConversionError(f"{where} has three dimensions of space; a method normalizes [N, C, H, W]")
    if parametrize.is_parametrized(module):
        raise ConversionError(f"{where} has a parametrization, which would be lost")
    if kind.forward is not base.forward:
        raise ConversionError(f"{where} is a {base.__name__} with a forward of its own, which would be lost")
    hooks = "_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks"
    if any(getattr(module, each) for each in hooks):
        raise ConversionError(f"{where} has hooks, which would be lost")
    if further := sorted({*module._parameters, *module._buffers, *module._modules} - STATE):
        raise ConversionError(f"{where} has a {further[0]} of its own, which would be lost")
    if isinstance(module, nn.LayerNorm) and len(module.normalized_shape) not in (1, 3):
        shape = list(module.normalized_shape)
        raise ConversionError(f"{where} normalizes over {shape}, which is neither [C] nor [C, H, W]")
    of_maps = module.named_parameters() if isinstance(module, nn.LayerNorm) else ()
    for key, value in of_maps:
        is_checked = value.ndim > 1 and not value.is_meta
        if is_checked and not torch.equal(value[:, :1, :1].expand_as(value), value):
            raise ConversionError(
                f"{where} has a {key} that differs among positions, and a method has one value of a channel"
            )


def _layer(norm: Normalization, name: str, old: nn.Module, carried: Collection[str]) -> nn.Module:
    """Return the layer that takes the place of another."""
    match old:
        case nn.LayerNorm():
            channels, is_channels_last = old.normalized_shape[0], len(old.normalized_shape) == 1
        case nn.GroupNorm():
            channels, is_channels_last = old.num_channels, False
        case _:
            channels, is_channels_last = int(old.num_features), False  # type: ignore[arg-type]
    layer = norm.make_layer(channels)
    if getattr(layer, "is_activation", False):
        words = "the method is normalization and activation in one, and modules do not tell which activation"
        raise ConversionError(f"{words} follows {name or 'the network'}")
    like = next((value for value in (*old.parameters(), *old.buffers()) if value.is_floating_point()), None)
    if like is not None:
        layer = layer.to(like.device, like.dtype)
    for option in carried:
        if hasattr(old, option) and isinstance(layer, CARRIED[option]):
            if (setting := getattr(old, option)) is None:
                words = f"{name or 'the network'} averages over all updates ({option} None)"
                raise ConversionError(f"{words}, and the method does not: give it a {option}")
            setattr(layer, option, setting)
    state = dict(layer.named_parameters()) | dict(layer.named_buffers())
    for key, value in (*old.named_parameters(), *old.named_buffers()):
        of_channels = value.data[:, 0, 0] if value.ndim > 1 else value.data
        for kept in KEPT.get(key, ()):
            if kept in state and state[kept].shape == of_channels.shape:
                state[kept].data.copy_(of_channels)
    is_for_maps = isinstance(old, nn.BatchNorm2d | nn.InstanceNorm2d) or (
        isinstance(old, nn.LayerNorm) and not is_channels_last
    )
    layer = layer if is_for_maps else Vectors(layer, is_channels_last)
    return layer.train(old.training)
