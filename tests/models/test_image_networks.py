"""The networks from images to images: DnCNN, U-Net and the stylizer, with any normalization."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from norm_cases import fitted, variants
from pydantic import ValidationError
from same_training import PATHS, assert_trains_alike
from torch import Tensor, nn

from normbench.config.catalog.models import MODELS
from normbench.config.catalog.norms import NORMS
from normbench.config.trial import Choice, Trial
from normbench.models.layers import FinalConv, norm_parameters
from normbench.training.build import check, network
from normbench.training.statistics.folded import fold

SMALL: dict[str, dict[str, Any]] = {
    "dncnn": {"depth": 5, "channels": 8},
    "unet": {"channels": 8},
    "stylizer": {"channels": 8, "blocks": 2},
}
LAYERS = {"dncnn": 3, "unet": 8, "stylizer": 7}  # of normalization in these
EVERY_NETWORK = pytest.mark.parametrize("name", SMALL)


def trial(name: str, norm: Any = "batch", **settings: Any) -> Trial:
    options = SMALL[name] | settings.pop("options", {})
    model = {"name": name, **options}
    settings = {"batch_size": 4} | settings
    return Trial(task=MODELS[name].task, model=model, norm=norm, **settings)


def made(name: str, norm: Any = "batch", **settings: Any) -> nn.Module:
    return network(trial(name, norm, **settings), 10)


def test_every_network_from_images_to_images_is_tested_here() -> None:
    tasks = "denoising", "style"
    assert set(SMALL) == {name for name, entry in MODELS.items() if entry.task in tasks}


# the architectures, of torch's layers alone


def _unit(channels_in: int, channels: int, stride: int = 1) -> list[nn.Module]:
    conv = nn.Conv2d(channels_in, channels, 3, stride, 1, bias=False)
    return [conv, nn.BatchNorm2d(channels), nn.ReLU()]


class _TheirDnCNN(nn.Module):
    """Depth 5, 8 channels, residual learning."""

    def __init__(self) -> None:
        super().__init__()
        first, last = nn.Conv2d(3, 8, 3, 1, 1, bias=False), nn.Conv2d(8, 3, 3, 1, 1)
        self.all = nn.Sequential(first, nn.ReLU(), *_unit(8, 8), *_unit(8, 8), *_unit(8, 8), last)

    def forward(self, x: Tensor) -> Tensor:
        return x - self.all(x)


class _TheirUNet(nn.Module):
    """8 channels, with a global skip."""

    def __init__(self) -> None:
        super().__init__()
        self.fine = nn.Sequential(*_unit(3, 8), *_unit(8, 8))
        self.coarse = nn.Sequential(*_unit(8, 16, 2), *_unit(16, 16))
        self.middle = nn.Sequential(*_unit(16, 32, 2), *_unit(32, 32))
        self.up = nn.ModuleList([nn.Sequential(*_unit(48, 16)), nn.Sequential(*_unit(24, 8))])
        self.last = nn.Conv2d(8, 3, 3, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        fine = self.fine(x)
        coarse = self.coarse(fine)
        y = nn.Upsample(scale_factor=2)(self.middle(coarse))
        y = nn.Upsample(scale_factor=2)(self.up[0](torch.cat([y, coarse], 1)))
        return x - self.last(self.up[1](torch.cat([y, fine], 1)))


class _TheirStylizer(nn.Module):
    """8 channels, two blocks."""

    def __init__(self) -> None:
        super().__init__()
        self.begin = nn.Sequential(*_unit(3, 8), *_unit(8, 16, 2))
        self.blocks = nn.ModuleList(nn.Sequential(*_unit(16, 16), *_unit(16, 16)[:2]) for _ in range(2))
        self.end = nn.Sequential(nn.Upsample(scale_factor=2), *_unit(16, 8), nn.Conv2d(8, 3, 3, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        x = self.begin(x)
        for block in self.blocks:
            x = x + block(x)
        return self.end(x).sigmoid()


THEIRS = {"dncnn": _TheirDnCNN, "unet": _TheirUNet, "stylizer": _TheirStylizer}


@PATHS
@EVERY_NETWORK
def test_the_network_is_that_of_torchs_layers(name: str, path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    ours, theirs = made(name).double(), THEIRS[name]().double()
    copied = [value for key, value in theirs.state_dict().items() if "num_batches" not in key]
    for mine, value in zip(ours.state_dict().values(), copied, strict=True):
        mine.copy_(value)
    x, truth = torch.rand(2, 4, 3, 16, 16, generator=torch.Generator().manual_seed(0)).double()
    assert_trains_alike(ours, theirs, x, lambda y: F.mse_loss(y, truth.to(y)), path, monkeypatch)


@EVERY_NETWORK
def test_the_number_of_normalization_layers_is_that_of_the_convolutions_that_feed_them(name: str) -> None:
    model = made(name)
    assert sum("gamma" in key for key in model.state_dict()) == LAYERS[name]
    assert fold(model.eval()) == LAYERS[name]


def test_the_networks_have_as_many_layers_as_the_table_says_of_their_options() -> None:
    for name in SMALL:
        model = network(Trial(task=MODELS[name].task, model=name, batch_size=2), 10)
        assert sum("gamma" in key for key in model.state_dict()) == MODELS[name].layers
        assert MODELS[name].depth(trial(name).model.options) == LAYERS[name]


@pytest.mark.parametrize("name", ["dncnn", "unet"])
def test_the_global_skip_subtracts_what_the_same_network_gives_without(name: str) -> None:
    x = torch.rand(2, 3, 16, 16)
    estimate, image = (made(name, "instance", options={"skip": skip})(x) for skip in (True, False))
    assert torch.equal(estimate, x - image)


@EVERY_NETWORK
@pytest.mark.parametrize(("H", "W"), [(16, 16), (13, 18), (11, 23)])
def test_an_image_of_any_size_comes_out_in_its_size(name: str, H: int, W: int) -> None:
    y = made(name, "instance")(torch.rand(2, 3, H, W))
    assert y.shape == (2, 3, H, W)


def test_the_stylizer_gives_values_between_0_and_1() -> None:
    y = made("stylizer", "instance", init_scale=3.0)(torch.rand(2, 3, 16, 16)).detach()
    assert 0 <= float(y.min()) < 0.1
    assert 0.9 < float(y.max()) <= 1


def test_blocks_of_the_stylizer_start_as_identities_where_asked() -> None:
    model = made("stylizer", "instance", zero_init_residual=True)
    x = torch.randn(2, 16, 8, 8)
    assert torch.equal(model.blocks(x), x)  # type: ignore[operator]


# every method


def fitting() -> Iterator[Any]:
    """Every variant of every method in every network that it is defined for."""
    for name in SMALL:
        for variant in variants():
            method = NORMS[variant.values[0].name]
            is_fitting = not method.needs_preactivation or MODELS[name].is_preactivation
            if is_fitting and (MODELS[name].has_blocks or not method.needs_blocks):
                yield pytest.param(name, variant.values[0], id=f"{name}-{variant.id}")


FITTING = pytest.mark.parametrize(("name", "norm"), list(fitting()))


@FITTING
def test_every_method_trains_in_every_place_of_every_network(name: str, norm: Choice) -> None:
    """A training step reaches all parameters, inference is finite, and it starts as every other method.

    But for the thresholds of filter response normalization where no ReLU follows, at the end of a block; and
    standardized weights with nothing behind them are so large that the stylizer's sigmoid is flat.
    """
    torch.manual_seed(0)
    chosen = fitted(norm, 8).model_dump()
    model, plain = made(name, chosen), made(name, "none").state_dict()
    state = model.state_dict()
    assert all(torch.equal(state[key], value) for key, value in plain.items())
    F.mse_loss(model(torch.rand(4, 3, 16, 16)), torch.rand(4, 3, 16, 16)).backward()
    for key, parameter in model.named_parameters():
        if key.endswith("norm2.tau"):
            continue
        assert parameter.grad is not None, key
        assert parameter.grad.isfinite().all(), key
        is_saturated = name == "stylizer" and norm.name == "weight_standardization"
        assert parameter.grad.abs().sum() > 0 or (is_saturated and norm.options["layer"] == "none"), key
    assert model.eval()(torch.rand(5, 3, 16, 16)).isfinite().all()
    check(trial(name, chosen), 10, 32)


def refusal(name: str, norm: Any = "batch", **settings: Any) -> str:
    with pytest.raises(ValidationError) as error:
        trial(name, norm, **settings)
    (problem,) = error.value.errors()
    return str(problem["msg"])


def test_what_cannot_sit_in_a_network_is_refused_by_name() -> None:
    for norm in ("evonorm_s0", "evonorm_b0", "normalizer_free"):
        assert refusal("stylizer", norm) == f"{norm} is for pre-activation networks only"
    for name in ("dncnn", "unet"):
        message = f"normalizer_free is about residual blocks, and {name} has none"
        assert refusal(name, "normalizer_free") == message


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("label_smoothing", 0.1),
        ("online", True),
        ("whiten", "pca"),
        ("norm_every", 2),
        ("dropout", 0.1),
        ("zero_init_residual", True),
        ("diagnose.signal_propagation", None),
        ("evaluate.neighbours", None),
    ],
)
def test_settings_without_a_meaning_are_refused_by_key_and_task(key: str, value: Any) -> None:
    setting, _, item = key.partition(".")
    expected = f"{key.replace('.', ' ')} has no meaning in the task"
    settings = {setting: [item] if item else value}
    assert refusal("unet", **settings) == f"{expected} denoising"
    if key not in ("dropout", "zero_init_residual"):
        assert refusal("stylizer", **settings) == f"{expected} style"
    elif key == "dropout":
        assert made("stylizer", dropout=0.1)(torch.rand(4, 3, 8, 8)).isfinite().all()


def test_a_network_is_refused_in_another_task() -> None:
    with pytest.raises(
        ValidationError, match="resnet20 is a network for classification; those for denoising"
    ):
        Trial(task="denoising")
    with pytest.raises(
        ValidationError, match="unet is a network for denoising; those for style are stylizer"
    ):
        Trial(task="style", model="unet")


# the last convolution


@EVERY_NETWORK
def test_the_bias_of_the_last_convolution_is_no_parameter_of_the_method(name: str) -> None:
    model = made(name, "none")
    assert norm_parameters(model) == set()
    (last,) = (module for module in model.modules() if isinstance(module, FinalConv))
    assert last.bias is not None
    assert len(norm_parameters(made(name))) == 2 * LAYERS[name]


@EVERY_NETWORK
def test_images_come_out_in_single_precision_under_autocast_where_asked(name: str) -> None:
    images = []
    for precision in ("fp32", "bf16"):
        model = made(
            name, "instance", precision="bf16", logits_precision=precision, options=_without_skip(name)
        )
        with torch.autocast("cpu", torch.bfloat16):
            images.append(model(torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))))
    full, half = images
    assert (full.dtype, half.dtype) == (torch.float32, torch.bfloat16)
    torch.testing.assert_close(full, half.float(), rtol=0, atol=0.02)
    assert not torch.equal(full, full.bfloat16().float())


def _without_skip(name: str) -> dict[str, Any]:
    return {} if name == "stylizer" else {"skip": False}
