"""The networks: He et al.'s, with any normalization, from a seed alone."""

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from norm_cases import EVERY_AFFINE_METHOD, EVERY_METHOD, fitted
from same_training import PATHS, assert_trains_alike
from torch import Tensor, nn

from normbench.config.catalog.models import MODELS
from normbench.config.trial import Choice, Trial
from normbench.models.layers import Dropout, Shortcut, Stochastic
from normbench.models.resnet import Block
from normbench.norms.api import Clock, ShapeError
from normbench.training.build import check, network

# of each with batch normalization and 10 classes; table 6 of He et al. gives some of them in millions
PARAMETERS = {
    "resnet8": 75_290,
    "resnet14": 172_506,
    "resnet20": 269_722,
    "resnet32": 464_154,
    "resnet44": 658_586,
    "resnet56": 853_018,
    "resnet110": 1_727_962,
    # two 1×1 projections more, and a norm at the end in place of the one behind the first convolution
    **{
        f"preact_resnet{depth}": count + 16 * 32 + 32 * 64 + 2 * (64 - 16) - 2 * (32 + 64) + 2 * (16 + 32)
        for depth, count in {
            8: 75_290, 14: 172_506, 20: 269_722, 32: 464_154, 44: 658_586, 56: 853_018, 110: 1_727_962,
        }.items()
    },
}  # fmt: skip
HE_ET_AL_MILLIONS = {"resnet20": 0.27, "resnet32": 0.46, "resnet44": 0.66, "resnet56": 0.85, "resnet110": 1.7}
CLASSIFIERS = [name for name, network in MODELS.items() if network.task == "classification"]
EVERY_MODEL = pytest.mark.parametrize("name", CLASSIFIERS)


def made(model: Any = "resnet8", norm: Any = "batch", classes: int = 10, **settings: Any) -> nn.Module:
    return network(Trial(model=model, norm=norm, **settings), classes)


# the architecture


def _deepens(module: nn.Module) -> bool:
    """All but the projections of shortcuts."""
    return not isinstance(module, nn.Conv2d) or module.kernel_size != (1, 1)


def test_every_network_has_its_number_of_parameters_written_here() -> None:
    assert set(PARAMETERS) == set(CLASSIFIERS)


@EVERY_MODEL
def test_the_numbers_of_parameters_and_of_layers_are_he_et_als(name: str) -> None:
    model = made(name)
    counted = sum(parameter.numel() for parameter in model.parameters())
    assert counted == PARAMETERS[name]
    if name in HE_ET_AL_MILLIONS:
        digits = 1 if name == "resnet110" else 2
        assert round(counted / 1e6, digits) == HE_ET_AL_MILLIONS[name]
    modules = list(model.modules())
    deep = [module for module in modules if isinstance(module, nn.Conv2d | nn.Linear) and _deepens(module)]
    assert len(deep) == int(name.removeprefix("preact_").removeprefix("resnet"))
    assert all(module.bias is None for module in modules if isinstance(module, nn.Conv2d))


@pytest.mark.parametrize(("N", "size", "classes"), [(1, 32, 10), (2, 32, 100), (3, 28, 7), (2, 33, 10)])
def test_the_stages_halve_the_maps_and_the_output_has_a_column_for_every_class(
    N: int, size: int, classes: int
) -> None:
    model = made("resnet8", "group", classes).eval()
    x = model.conv(torch.zeros(N, 3, size, size))
    shapes = []
    for stage in (model.stage1, model.stage2, model.stage3):
        x = stage(x)
        shapes.append(tuple(x.shape))
    half, quarter = math.ceil(size / 2), math.ceil(math.ceil(size / 2) / 2)
    assert shapes == [(N, 16, size, size), (N, 32, half, half), (N, 64, quarter, quarter)]
    assert model(torch.zeros(N, 3, size, size)).shape == (N, classes)


@pytest.mark.parametrize(
    ("width", "channels"),
    [(1.0, [16, 32, 64]), (2.0, [32, 64, 128]), (0.5, [8, 16, 32]), (1.3, [21, 42, 83]), (0.03, [1, 1, 2])],
)
def test_the_width_multiplies_the_channels(width: float, channels: list[int]) -> None:
    """Rounded to whole ones, never below 1; also where a stage has then no more than the one before."""
    model = made({"name": "resnet8", "width": width}, "none")
    assert [stage[-1].conv2.out_channels for stage in (model.stage1, model.stage2, model.stage3)] == channels
    assert model.linear.in_features == channels[-1]
    assert model(torch.zeros(2, 3, 32, 32)).shape == (2, 10)


@pytest.mark.parametrize(
    ("shape", "stride", "new_channels"),
    [((2, 4, 6, 6), 2, 4), ((1, 3, 5, 7), 2, 3), ((2, 1, 1, 1), 2, 0), ((1, 3, 5, 7), 1, 2)],
)
def test_the_shortcut_is_indexing_and_padding(shape: tuple[int, ...], stride: int, new_channels: int) -> None:
    """He et al.'s option A, in value and gradient, exactly."""
    x = torch.randn(shape, dtype=torch.float64, requires_grad=True)
    y = Shortcut.apply(x, stride, new_channels)
    before = new_channels // 2
    expected = F.pad(x[:, :, ::stride, ::stride], (0, 0, 0, 0, before, new_channels - before))
    assert torch.equal(y, expected)
    assert y.is_contiguous(memory_format=torch.channels_last)
    dy = torch.randn_like(y)
    assert torch.equal(*(torch.autograd.grad(result, x, dy)[0] for result in (y, expected)))


class _TheirBlock(nn.Module):
    """A block as the paper draws it, of torch's layers alone."""

    def __init__(self, channels_in: int, channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels_in, channels, 3, stride, 1, bias=False)
        self.norm1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, 1, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(channels)
        self.stride, self.new = stride, channels - channels_in

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm2(self.conv2(F.relu(self.norm1(self.conv1(x)))))
        x = x[:, :, :: self.stride, :: self.stride]
        return F.relu(y + F.pad(x, (0, 0, 0, 0, self.new // 2, self.new - self.new // 2)))


class _TheirResNet(nn.Module):
    """ResNet-14 of torch's layers alone."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 16, 3, 1, 1, bias=False), nn.BatchNorm2d(16)
        self.stage1 = nn.Sequential(_TheirBlock(16, 16, 1), _TheirBlock(16, 16, 1))
        self.stage2 = nn.Sequential(_TheirBlock(16, 32, 2), _TheirBlock(32, 32, 1))
        self.stage3 = nn.Sequential(_TheirBlock(32, 64, 2), _TheirBlock(64, 64, 1))
        self.linear = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stage3(self.stage2(self.stage1(F.relu(self.norm(self.conv(x))))))
        return self.linear(F.adaptive_avg_pool2d(x, 1).flatten(1))


@PATHS
def test_the_network_is_that_of_torchs_layers(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """To 1e-9 at float64, as 14 layers amplify rounding."""
    ours, theirs = made("resnet14", batch_size=8), _TheirResNet().double()
    names = {"weight": "gamma", "bias": "beta"}
    copied = {}
    for name, value in theirs.state_dict().items():
        layer, _, last = name.rpartition(".")
        if last != "num_batches_tracked":
            copied[f"{layer}.{names.get(last, last)}" if "norm" in layer else name] = value
    ours.double().load_state_dict(copied)
    torch.manual_seed(0)
    x, labels = torch.randn(8, 3, 16, 16).double(), torch.arange(8)
    assert_trains_alike(ours, theirs, x, lambda y: F.cross_entropy(y, labels), path, monkeypatch)


@EVERY_METHOD
def test_every_method_trains_in_every_place_of_a_network(norm: Choice) -> None:
    """Forward and backward of a training step reach all parameters, and inference gives finite logits."""
    model = made("resnet8", norm.model_dump(), batch_size=4)
    F.cross_entropy(model(torch.randn(4, 3, 32, 32)), torch.arange(4)).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.abs().sum() > 0, name
    assert model.eval()(torch.randn(5, 3, 32, 32)).isfinite().all()


# how it starts


@EVERY_METHOD
def test_the_start_is_a_function_of_the_seed_alone(norm: Choice) -> None:
    """Whatever the global generator has been through; which is left as it was."""
    trial = Trial(model="resnet8", norm=norm.model_dump(), seed=3)
    torch.manual_seed(0)
    one = network(trial, 10).state_dict()
    torch.randn(17)
    before = torch.get_rng_state()
    other = network(trial, 10).state_dict()
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(one[name], other[name]) for name in one)
    another_seed = network(trial.model_copy(update={"seed": 4}), 10).state_dict()
    assert not torch.equal(one["conv.weight"], another_seed["conv.weight"])


def test_the_start_leaves_the_generators_of_gpus_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(seed: int) -> None:
        raise AssertionError("the GPUs were reseeded")

    monkeypatch.setattr(torch.cuda, "manual_seed_all", refuse)
    monkeypatch.setattr(torch.cuda, "manual_seed", refuse)
    made("resnet8")


@EVERY_METHOD
def test_every_method_starts_from_the_same_convolutions_and_linear_layer(norm: Choice) -> None:
    """So that methods of one seed differ by the method alone."""
    plain, other = (made("resnet8", one, seed=5).state_dict() for one in ("none", norm.model_dump()))
    assert all(torch.equal(other[name], value) for name, value in plain.items())


@pytest.mark.parametrize("name", ["resnet20", "preact_resnet20"])
def test_the_convolutions_start_as_he_et_al_say(name: str) -> None:
    """Normal with variance 2 / (k² · channels out), gamma 1, beta 0.

    Five standard errors: of n draws, the mean's is σ / √n and the deviation's σ / √(2n).
    """
    model = made(name)
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            fan_out = module.kernel_size[0] ** 2 * module.out_channels
            sigma, n = math.sqrt(2 / fan_out), module.weight.numel()
            assert abs(float(module.weight.detach().mean())) < 5 * sigma / math.sqrt(n)
            assert abs(float(module.weight.detach().std()) - sigma) < 5 * sigma / math.sqrt(2 * n)
        elif hasattr(module, "gamma"):
            assert (module.gamma == 1).all()
            assert (module.beta == 0).all()


@EVERY_AFFINE_METHOD
def test_with_zero_init_residual_every_block_starts_as_its_shortcut(norm: Choice) -> None:
    """relu(shortcut), that is, and the shortcut comes out of a ReLU already: exactly what went in."""
    model = made("resnet14", norm.model_dump(), zero_init_residual=True, batch_size=2)
    inputs: dict[Block, Tensor] = {}
    for module in model.modules():
        if isinstance(module, Block):
            module.register_forward_pre_hook(lambda block, given: inputs.__setitem__(block, given[0]))
            module.register_forward_hook(
                lambda block, given, y: inputs.__setitem__(block, torch.stack([_beside(block, given[0]), y]))
            )
    model(torch.randn(2, 3, 32, 32))
    assert len(inputs) == 6
    for shortcut, y in inputs.values():
        assert torch.equal(shortcut, y)
    assert (model.norm.gamma == 1).all()


def _beside(block: Block, x: Tensor) -> Tensor:
    x = x[:, :, :: block.stride, :: block.stride]
    return F.pad(x, (0, 0, 0, 0, block.new_channels // 2, block.new_channels - block.new_channels // 2))


# what cannot be normalized


def refusal(norm: Any, batch_size: int = 4, image_size: int = 32, **settings: Any) -> str:
    with pytest.raises(ShapeError) as error:
        check(Trial(model="resnet8", norm=norm, batch_size=batch_size, **settings), 10, image_size)
    return str(error.value)


def test_a_refusal_names_method_network_layer_and_shape() -> None:
    single = "each mean and variance would be that of a single value, and every output beta"
    place = "norm cannot be used in resnet8's stage3 (module 'stage3.0.norm1'), which gets maps of shape"
    assert refusal("batch", 1, image_size=4) == f"batch {place} [1, 64, 1, 1]: {single}"
    assert refusal("batch", 8, image_size=4, norm_batch_size=1) == f"batch {place} [8, 64, 1, 1]: {single}"
    assert refusal("instance", image_size=4) == f"instance {place} [4, 64, 1, 1]: {single}"
    assert refusal({"name": "group", "groups": 12}) == (
        "group norm cannot be used in resnet8's stem (module 'norm'), which gets maps of shape "
        "[4, 16, 32, 32]: "
        "12 groups do not divide 16 channels (these do: 1, 2, 4, 8, 16)"
    )
    assert refusal({"name": "group", "groups": 32}).startswith("group norm cannot be used in resnet8's stem")
    assert refusal({"name": "switchable", "variance": "official"}, image_size=4) == (
        f"switchable {place} [4, 64, 1, 1]: "
        "the unbiased variance over the positions of a map needs two of them"
    )


@EVERY_METHOD
def test_what_can_be_normalized_passes(norm: Choice) -> None:
    """With a single sample too; nor does it draw from the global random numbers."""
    before = torch.get_rng_state()
    check(Trial(model="resnet8", norm=fitted(norm, 16).model_dump(), batch_size=1), 10, 32)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.slow
def test_the_check_needs_neither_memory_nor_time_for_the_maps() -> None:
    """Some 10^16 multiplications on petabytes of maps, if it did."""
    check(Trial(model={"name": "resnet110", "width": 64.0}, norm="switchable", batch_size=2**20), 1000, 512)


def test_without_a_normalization_any_shape_will_do() -> None:
    check(Trial(model="resnet8", norm="none", batch_size=1), 10, 1)


# settings of the network


@pytest.mark.parametrize("name", ["resnet14", "preact_resnet14"])
@pytest.mark.parametrize("k", [1, 2, 3, 13])
def test_a_norm_stands_after_every_kth_convolution_only(name: str, k: int) -> None:
    """In the order in which the convolutions run."""
    model = made(name, norm_every=k, batch_size=2)
    order = [
        name.rpartition(".")[2].startswith(("norm", "last_norm")) and not isinstance(module, nn.Identity)
        for name, module in _as_they_run(model)
        if name.rpartition(".")[2].startswith(("norm", "last_norm"))
    ]
    assert len(order) == 13
    assert [place for place, normalized in enumerate(order, 1) if normalized] == list(range(k, 14, k))


def _as_they_run(model: nn.Module) -> list[tuple[str, nn.Module]]:
    ran: list[tuple[str, nn.Module]] = []
    for name, module in model.named_modules():
        if not list(module.children()):
            module.register_forward_hook(lambda m, *_, name=name: ran.append((name, m)))
    model(torch.randn(2, 3, 8, 8))
    return ran


def test_the_initial_scale_multiplies_weights_and_nothing_else() -> None:
    plain, scaled = made(seed=3), made(seed=3, init_scale=3.0)
    for (name, one), other in zip(plain.named_parameters(), scaled.parameters(), strict=True):
        assert torch.equal(other, 3 * one if one.ndim > 1 else one), name


def test_dropout_zeroes_its_share_and_keeps_the_mean_and_is_gone_at_inference() -> None:
    """Of 2¹⁸ values: five standard errors of a share of 0.3."""
    torch.manual_seed(0)
    layer = Dropout(0.3)
    layer.at(Clock(0, 1, 1))
    x = torch.ones(64, 64, 8, 8)
    y = layer(x)
    assert abs(float((y == 0).float().mean()) - 0.3) < 5 * math.sqrt(0.3 * 0.7 / y.numel())
    assert set(y.unique().tolist()) == {0.0, float(torch.tensor(1 / 0.7))}
    assert layer.eval()(x) is x


def test_every_update_and_every_layer_drops_others() -> None:
    torch.manual_seed(0)
    one = Dropout(0.5)
    torch.rand(1)  # as the weights between two layers are drawn
    other = Dropout(0.5)
    x = torch.ones(1, 8, 4, 4)
    masks = []
    for layer, step in ((one, 0), (one, 1), (other, 0)):
        layer.at(Clock(step, 10, 1))
        masks.append(layer(x))
    one.at(Clock(0, 10, 1))
    assert torch.equal(one(x), masks[0])
    assert not any(torch.equal(masks[a], masks[b]) for a, b in ((0, 1), (0, 2), (1, 2)))


STREAMS: dict[str, dict[str, Any]] = {
    name: {"model": name, "dropout": 0.3} for name in CLASSIFIERS if name.endswith(("resnet8", "resnet20"))
} | {
    f"{name} of four layers": {
        "task": "sequence",
        "dataset": "mnist",
        "model": {"name": name, "layers": 4, "hidden_size": 8, "initial_noise": 0.1},
        "dropout": 0.3,
    }
    for name, entry in MODELS.items()
    if entry.task == "sequence"
}


@pytest.mark.parametrize("settings", STREAMS.values(), ids=STREAMS)
def test_every_random_module_of_a_network_has_a_stream_of_its_own(settings: dict[str, Any]) -> None:
    keys = [module.key for module in made(**settings).modules() if isinstance(module, Stochastic)]
    assert len(keys) == len(set(keys)) > 1


def test_the_streams_of_a_resnet_are_those_of_earlier_records() -> None:
    model = made("resnet8", dropout=0.3, seed=3)
    keys = [module.key for module in model.modules() if isinstance(module, Stochastic)]
    assert keys == [769897369724498290, 1411883687225240495, 2418121060005846144]


def test_dropout_stands_between_the_two_convolutions_of_every_block() -> None:
    for name in ("resnet14", "preact_resnet14"):
        model = made(name, dropout=0.5)
        places = [path for path, module in model.named_modules() if isinstance(module, Dropout)]
        assert len(places) == 6
        assert all(path.endswith(".dropout") for path in places)


def test_a_network_with_dropout_starts_from_the_same_weights_and_can_be_checked() -> None:
    plain, dropping = made(seed=3), made(seed=3, dropout=0.5)
    for one, other in zip(plain.parameters(), dropping.parameters(), strict=True):
        assert torch.equal(one, other)
    check(Trial(model="resnet8", dropout=0.5), 10, 32)


def test_the_initial_scale_reaches_what_computes_with_a_function_of_its_weights() -> None:
    """g of weight normalization is the length that the weights start with."""
    x = torch.randn(2, 3, 8, 8)
    plain, scaled = (made("resnet8", "weight_norm", seed=3, init_scale=scale) for scale in (1.0, 3.0))
    torch.testing.assert_close(scaled.conv(x), 3 * plain.conv(x))


# the precision of logits


def logits(model: nn.Module, x: Tensor) -> Tensor:
    with torch.autocast("cpu", torch.bfloat16):
        found: Tensor = model.eval()(x)
    return found


def ties(z: Tensor) -> int:
    """Samples whose two largest logits are equal, so that the order of classes decides."""
    first, second = z.float().topk(2).values.unbind(1)
    return int((first == second).sum())


@pytest.mark.parametrize("name", ["resnet8", "preact_resnet8"])
def test_logits_in_fp32_have_no_ties_where_those_in_bf16_have(name: str) -> None:
    """With 100 classes, whose logits lie closer; with one thread's and another's arithmetic alike."""
    full, half = (
        made(name, classes=100, precision="bf16", logits_precision=precision)
        for precision in ("fp32", "bf16")
    )
    assert all(torch.equal(one, two) for one, two in zip(full.parameters(), half.parameters(), strict=True))
    x = torch.randn(256, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    by_full, by_half = logits(full, x), logits(half, x)
    assert (by_full.dtype, by_half.dtype) == (torch.float32, torch.bfloat16)
    assert ties(by_half) > 0
    assert ties(by_full) == 0
    assert (by_full - by_half.float()).abs().max() < 0.02 * by_full.abs().max(), (
        "up to rounding they are equal"
    )


def test_the_gradient_of_the_final_linear_layer_is_float64s_of_the_same_features() -> None:
    """1e-6: in single precision throughout, where bf16 would be off by 4e-3."""
    model = made(precision="bf16", batch_size=8).train()
    seen: list[Tensor] = []
    model.linear.register_forward_pre_hook(lambda _, args: seen.append(args[0].detach().double()))
    with torch.autocast("cpu", torch.bfloat16):
        z = model(torch.randn(8, 3, 8, 8, generator=torch.Generator().manual_seed(0)))
    y = torch.arange(8)
    F.cross_entropy(z, y).backward()
    weight, bias = (p.detach().double().requires_grad_() for p in (model.linear.weight, model.linear.bias))
    F.cross_entropy(F.linear(seen[0], weight, bias), y).backward()
    torch.testing.assert_close(model.linear.weight.grad.double(), weight.grad, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(model.linear.bias.grad.double(), bias.grad, rtol=1e-5, atol=1e-6)


def test_a_network_in_float64_has_logits_in_float64() -> None:
    assert made(batch_size=2).double()(torch.randn(2, 3, 8, 8, dtype=torch.float64)).dtype == torch.float64
