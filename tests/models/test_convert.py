"""Networks that were not written for normbench, with any normalization."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import torchvision.models
from norm_cases import EVERY_METHOD
from pydantic import TypeAdapter
from torch import Tensor, nn

import normbench
from normbench.config.catalog.models import CONVERTED
from normbench.config.catalog.norms import NORMS
from normbench.config.trial import Choice, Norm
from normbench.models.convert import LAYERS, ConversionError, Vectors, convert
from normbench.models.layers import norm_parameters
from normbench.norms.api import Clock, Normalization, build
from normbench.norms.reparam import FunctionOfWeights


def method(name: str, **options: Any) -> Normalization:
    choice = TypeAdapter(Norm).validate_python({"name": name, **options})
    return build(choice, norm_batch_size=4)


def images(samples: int = 4, size: int = 8) -> Tensor:
    return torch.randn(samples, 3, size, size, generator=torch.Generator().manual_seed(0))


class Small(nn.Module):
    """Two convolutions with layers of torch's, a residual sum, ReLUs in place, and two linear layers."""

    def __init__(self, norm: Callable[[int], nn.Module] = nn.BatchNorm2d, **conv: Any) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 16, 3, padding=1, bias=False)
        self.body = nn.Sequential(norm(16), nn.ReLU(inplace=True), nn.Conv2d(16, 16, 3, padding=1, **conv))
        self.bn = norm(16)
        self.hidden, self.logits = nn.Linear(16, 5), nn.Linear(5, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        x = F.relu(self.bn(self.body(x)) + x).mean((2, 3))
        logits: Tensor = self.logits(self.hidden(x))
        return logits


def test_every_kind_of_layers_that_a_configuration_may_name_is_known() -> None:
    assert tuple(LAYERS) == CONVERTED


@pytest.mark.parametrize("network", [Small, torchvision.models.resnet18, torchvision.models.mobilenet_v2])
def test_batch_normalization_by_batch_normalization_is_the_same_network(
    network: Callable[[], nn.Module],
) -> None:
    """In training with gradients and at inference; in float64 so that both are the same numbers.

    Gamma and beta are not those of a new layer, and the running statistics are those of a trained one.
    """
    torch.manual_seed(0)
    plain = network().double()
    for module in plain.modules():
        if isinstance(module, nn.BatchNorm2d):
            for value in (module.weight, module.bias, module.running_mean):
                nn.init.normal_(value, 0.5)
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    converted = convert(copy.deepcopy(plain), method("batch"))
    assert not any(isinstance(module, nn.BatchNorm2d) for module in converted.modules())
    x = images(size=32).double()
    torch.testing.assert_close(converted.eval()(x), plain.eval()(x), rtol=1e-9, atol=1e-9)
    found, expected = converted.train()(x), plain.train()(x)
    torch.testing.assert_close(found, expected, rtol=1e-8, atol=1e-8)
    found.square().sum().backward(), expected.square().sum().backward()
    gradients = dict(plain.named_parameters())
    largest = max(float(parameter.grad.abs().max()) for parameter in plain.parameters())
    for name, parameter in converted.named_parameters():
        name = name.replace("gamma", "weight").replace("beta", "bias")
        torch.testing.assert_close(parameter.grad, gradients[name].grad, rtol=1e-6, atol=1e-9 * largest)
    torch.testing.assert_close(converted.eval()(x), plain.eval()(x), rtol=1e-8, atol=1e-8)


@EVERY_METHOD
def test_every_method_converts_a_network_and_trains_it_or_is_refused(norm: Choice) -> None:
    entry = NORMS[norm.name]
    normalization = build(norm, 4)
    if entry.needs_preactivation:
        with pytest.raises(ConversionError, match="modules do not tell"):
            convert(Small(), normalization)
        return
    model = convert(Small(bias=False), normalization)
    assert model.converted == ("body.0", "bn")
    assert bool(model.wrapped) == (normalization.wrap_conv is not Normalization().wrap_conv)
    assert isinstance(model.first, FunctionOfWeights) == bool(model.wrapped)
    before = copy.deepcopy(model.state_dict())
    sgd = torch.optim.SGD(model.parameters(), lr=0.1)
    F.cross_entropy(model(images()), torch.arange(4)).backward()
    sgd.step()
    assert torch.isfinite(model.eval()(images())).all()
    spared = {name for name, parameter in model.named_parameters() if parameter in norm_parameters(model)}
    assert {name.partition(".")[0] for name in spared} <= {"body", "bn", "first"}
    assert not any(parameter.ndim > 1 for parameter in norm_parameters(model))
    changed = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert spared - changed <= {"body.0.tau", "bn.tau"}  # its threshold takes the place of a ReLU


@pytest.mark.parametrize("name", ["weight_norm", "weight_standardization", "centred_weights"])
@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"bias": True},
        {"groups": 4},
        {"groups": 8, "bias": True, "dilation": 2, "padding": 2},
        {"stride": (2, 1), "padding": "valid"},
        {"padding": "same", "dilation": (1, 2)},
        {"padding": (1, 2), "padding_mode": "circular"},
        {"padding": "same", "padding_mode": "reflect"},
        {"padding": 1, "padding_mode": "replicate", "groups": 2},
    ],
    ids=str,
)
def test_a_wrapped_convolution_is_that_by_the_effective_weights(name: str, settings: Any) -> None:
    """Against nn.Conv2d with these weights, which do all that a convolution can, in float64."""
    torch.manual_seed(0)
    plain = nn.Conv2d(8, 16, 3, **{"bias": False} | settings).double()
    conv = convert(copy.deepcopy(plain), method(name, **({} if name == "weight_norm" else {"layer": "none"})))
    assert isinstance(conv, FunctionOfWeights)
    assert conv.bias is not None
    v = plain.weight.detach()
    mean, fan_in = v.mean((1, 2, 3), keepdim=True), v[0].numel()
    w = {
        "weight_norm": v,  # g begins at the length
        "weight_standardization": (v - mean) / (v.var((1, 2, 3), correction=0, keepdim=True) + 1e-5).sqrt(),
        "centred_weights": v - mean,
    }[name]
    assert fan_in == 8 // settings.get("groups", 1) * 9
    plain.weight.data = w
    x = images(2, 7).repeat(1, 3, 1, 1)[:, :8].double().requires_grad_()
    found, expected = conv(x), plain(x)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    (dx,), (exact,) = (torch.autograd.grad(y.square().sum(), x) for y in (found, expected))
    torch.testing.assert_close(dx, exact, rtol=1e-11, atol=1e-11)


def test_initialised_by_data_a_grouped_convolution_with_a_bias_has_mean_0_and_variance_1() -> None:
    conv = convert(
        nn.Conv2d(3, 6, 3, groups=3, padding_mode="circular", padding=1),
        method("weight_norm", data_init=True),
    )
    conv.at(Clock(0, 1, 1))
    y = conv(images(8))
    torch.testing.assert_close(y.mean((0, 2, 3)), torch.zeros(6), atol=1e-5, rtol=0)
    torch.testing.assert_close(y.var((0, 2, 3), correction=0), torch.ones(6), atol=1e-4, rtol=0)


def test_a_method_with_bias_keeps_the_biases_of_convolutions() -> None:
    torch.manual_seed(0)
    plain = Small(bias=True)
    torch.manual_seed(0)
    model = convert(Small(bias=True), method("weight_norm"))
    assert torch.equal(model.body[2].bias, plain.body[2].bias)
    assert torch.equal(model.first.bias, torch.zeros(16))


@pytest.mark.parametrize(
    ("old", "shape"),
    [
        (nn.BatchNorm1d(6), (4, 6)),
        (nn.BatchNorm1d(6), (4, 6, 5)),
        (nn.LayerNorm(6), (4, 6)),
        (nn.LayerNorm(6), (4, 5, 6)),
        (nn.LayerNorm(6), (4, 5, 3, 6)),
        (nn.LayerNorm((6, 5, 3)), (4, 6, 5, 3)),
        (nn.GroupNorm(2, 6), (4, 6)),
        (nn.GroupNorm(2, 6), (4, 6, 5, 3)),
        (nn.InstanceNorm1d(6), (4, 6, 5)),
        (nn.InstanceNorm2d(6, affine=True), (4, 6, 5, 3)),
    ],
    ids=str,
)
def test_vectors_sequences_and_maps_are_normalized_over_their_channels(old: nn.Module, shape: Any) -> None:
    """By group normalization of one group, which is over all values of a sample, in float64."""
    x = torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    layer = convert(copy.deepcopy(old).double(), method("group", groups=1), tuple(LAYERS))
    expected = F.layer_norm(x, x.shape[1:], eps=1e-5)
    torch.testing.assert_close(layer(x), expected, rtol=1e-9, atol=1e-9)
    by_batch = convert(copy.deepcopy(old).double(), method("batch"), tuple(LAYERS))
    over = [d for d in range(x.ndim) if x.shape[d] != 6]
    centred = x - x.mean(over, keepdim=True)
    expected = centred / (centred.square().mean(over, keepdim=True) + 1e-5).sqrt()
    torch.testing.assert_close(by_batch(x), expected, rtol=1e-9, atol=1e-9)


def test_only_the_layers_that_are_asked_for_are_converted() -> None:
    def network() -> nn.Module:
        return nn.Sequential(nn.Linear(6, 6), nn.BatchNorm1d(6), nn.LayerNorm(6), nn.GroupNorm(2, 6))

    assert convert(network(), method("none")).converted == ("1",)
    both = convert(network(), method("none"), ("batch", "layer"))
    assert both.converted == ("1", "2")
    assert isinstance(both[1], Vectors)
    assert isinstance(both[3], nn.GroupNorm)
    spared = norm_parameters(both)
    assert spared == set(both[3].parameters()), "of a layer that was left, as of the method's"


def test_a_new_layer_is_where_the_old_one_was_in_its_precision_and_mode() -> None:
    model = convert(
        nn.Sequential(nn.Conv2d(3, 8, 1), nn.BatchNorm2d(8)).double().eval(), method("switchable")
    )
    assert not model[1].training
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float64}
    with torch.device("meta"):
        hollow = convert(torchvision.models.resnet18(), method("batch"))
    assert {value.device.type for value in (*hollow.parameters(), *hollow.buffers())} == {"meta"}


class OwnNorm(nn.BatchNorm2d):
    def forward(self, x: Tensor) -> Tensor:
        return F.relu(super().forward(x))


class OwnConv(nn.Conv2d):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(2 * x)


def hooked() -> nn.Module:
    model = Small()
    model.bn.register_forward_hook(lambda *_: None)
    return model


def shared() -> nn.Module:
    model = Small()
    model.bn = model.body[0]
    return model


def tied() -> nn.Module:
    model = Small()
    model.other = nn.Conv2d(16, 16, 3)
    model.other.weight = model.body[2].weight
    return model


def with_buffer() -> nn.Module:
    model = Small()
    model.bn.register_buffer("seen", torch.zeros(3))
    return model


def with_(module: nn.Module) -> nn.Module:
    model = Small()
    model.other = module
    return model


@pytest.mark.parametrize(
    ("model", "norm", "words"),
    [
        (lambda: nn.Linear(3, 3), "batch", "no layer to convert: no BatchNorm1d or BatchNorm2d in it$"),
        (lambda: Small(partial_group), "batch", r"in it, but GroupNorm \(convert: \[group\]\)$"),
        (lambda: nn.Linear(3, 3), "weight_norm", "no convolution whose weights"),
        (lambda: Small(OwnNorm), "batch", "^body.0, an OwnNorm, is a BatchNorm2d with a forward of its own"),
        (hooked, "batch", "^bn, a BatchNorm2d, has hooks, which would be lost$"),
        (shared, "batch", "^body.0 and bn are one module"),
        (tied, "weight_norm", "^body.2.weight and other.weight are one parameter"),
        (with_buffer, "batch", "^bn, a BatchNorm2d, has a seen of its own, which would be lost$"),
        (
            lambda: with_(nn.LazyBatchNorm2d()),
            "batch",
            "^other, a LazyBatchNorm2d, does not know its channels",
        ),
        (lambda: with_(nn.BatchNorm3d(3)), "batch", "^other, a BatchNorm3d, has three dimensions of space"),
        (lambda: with_(OwnConv(3, 3, 1)), "weight_norm", "^other, an OwnConv, is a Conv2d with a forward"),
        (lambda: with_(nn.Conv1d(3, 3, 1)), "weight_norm", "^other, a Conv1d, .* changes Conv2d alone$"),
        (
            lambda: with_(nn.ConvTranspose2d(3, 3, 1)),
            "weight_norm",
            "^other, a ConvTranspose2d, cannot be converted: the method changes Conv2d alone$",
        ),
        (
            lambda: with_(nn.utils.parametrizations.spectral_norm(nn.Conv2d(3, 3, 1))),
            "centred_weights",
            "^other, a ParametrizedConv2d, has a parametrization",
        ),
        (Small, "normalizer_free", "ends residual blocks in its own way"),
        (Small, "evonorm_s0", "modules do not tell which activation follows body.0$"),
    ],
    ids=lambda each: getattr(each, "__name__", each),
)
def test_what_cannot_be_converted_is_refused_by_the_layers_name_and_nothing_is_changed(
    model: Callable[[], nn.Module], norm: str, words: str
) -> None:
    network = model()
    before = dict(network.named_modules())
    with pytest.raises(ConversionError, match=words):
        convert(network, method(norm))
    assert dict(network.named_modules()) == before


def partial_group(channels: int) -> nn.Module:
    return nn.GroupNorm(2, channels)


def test_layer_normalization_over_two_dimensions_is_refused() -> None:
    with pytest.raises(ConversionError, match=r"^1, a LayerNorm, normalizes over \[5, 6\], which is neither"):
        convert(nn.Sequential(nn.Linear(6, 6), nn.LayerNorm((5, 6))), method("batch"), ["layer"])
    with pytest.raises(ConversionError, match=r"no kind of layers 'lyer' .*'layer'"):
        convert(Small(), method("batch"), ["lyer"])


@pytest.mark.parametrize("settings", [{}, {"eps": 0.1}, {"momentum": 0.01}, {"eps": 1e-3, "momentum": 0.5}])
def test_eps_and_momentum_are_those_of_the_old_layer_where_they_are_not_given(
    settings: dict[str, float],
) -> None:
    plain = Small(lambda channels: nn.BatchNorm2d(channels, **settings)).double()
    converted = normbench.convert(copy.deepcopy(plain), "batch", norm_batch_size=4)
    x = images().double()
    torch.testing.assert_close(converted(x), plain(x), rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(converted.eval()(x), plain.eval()(x), rtol=1e-9, atol=1e-9)
    given = normbench.convert(copy.deepcopy(plain), "batch", norm_batch_size=4, eps=0.25)
    assert (given.bn.eps, given.bn.momentum) == (0.25, settings.get("momentum", 0.1))
    whole = normbench.convert(copy.deepcopy(plain), method("batch", eps=0.5))
    assert (whole.bn.eps, whole.bn.momentum) == (0.5, 0.1)
    other = normbench.convert(copy.deepcopy(plain), "filter_response")
    assert other.bn.eps == 1e-6  # which is added to something else


def test_an_average_over_all_updates_is_refused_unless_the_momentum_is_given() -> None:
    plain = Small(lambda channels: nn.BatchNorm2d(channels, momentum=None))
    with pytest.raises(ConversionError, match=r"^body\.0 averages over all updates \(momentum None\)"):
        normbench.convert(plain, "batch", norm_batch_size=4)
    assert normbench.convert(copy.deepcopy(plain), "group").bn.eps == 1e-5
    assert normbench.convert(plain, "batch", norm_batch_size=4, momentum=0.2).bn.momentum == 0.2


def test_gamma_of_maps_is_kept_by_channel_or_refused_where_it_differs_among_positions() -> None:
    plain = nn.Sequential(nn.Conv2d(3, 4, 3), nn.LayerNorm([4, 6, 6]))
    weight = torch.arange(1.0, 5.0)
    with torch.no_grad():
        plain[1].weight.copy_(weight[:, None, None].expand(4, 6, 6))
        plain[1].bias.fill_(0.5)
    converted = normbench.convert(copy.deepcopy(plain), "layer", ["layer"])
    assert torch.equal(converted[1].gamma, weight)
    torch.testing.assert_close(converted(images()), plain(images()), rtol=1e-4, atol=1e-5)
    with torch.no_grad():
        plain[1].weight[0, 2, 3] = 7.0
    with pytest.raises(ConversionError, match=r"^1, a LayerNorm, has a weight that differs among positions"):
        normbench.convert(plain, "layer", ["layer"])


@pytest.mark.parametrize("old", [nn.BatchNorm2d(4, affine=False), nn.InstanceNorm2d(4)])
def test_a_new_layer_has_gamma_and_beta_also_where_the_old_one_has_none(old: nn.Module) -> None:
    converted = normbench.convert(nn.Sequential(old), "group", ["batch", "instance"], groups=2)
    assert {name for name, _ in converted[0].named_parameters()} == {"gamma", "beta"}


def test_a_layer_of_another_library_is_kept_and_one_with_other_convolutions_too() -> None:
    """A method without weights of its own leaves every convolution as it is."""
    model = with_(nn.ConvTranspose2d(3, 3, 1))
    convert(model, method("group"))
    assert type(model.first) is nn.Conv2d
    assert model.wrapped == ()


def test_the_api_converts_by_the_name_of_a_method_with_options() -> None:
    model = normbench.convert(torchvision.models.resnet18(num_classes=10), "group", groups=4)
    assert model.bn1.groups == 4
    assert model(images(2, 32)).shape == (2, 10)
    ghost = normbench.convert(Small(), "batch", norm_batch_size=2)
    assert ghost.bn.norm_batch_size == 2
    with pytest.raises(ValueError, match="norm batch needs norm_batch_size"):
        normbench.convert(Small(), "batch")
    with pytest.raises(ValueError, match=r"has no option 'grups' .*'groups'"):
        normbench.convert(Small(), "group", grups=4)
    own = normbench.convert(Small(), Normalization(make_layer=nn.BatchNorm2d))
    assert type(own.bn) is nn.BatchNorm2d
    with pytest.raises(ValueError, match="options are those of a method that is named"):
        normbench.convert(Small(), Normalization(), groups=3)
