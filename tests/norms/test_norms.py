"""Every method of the table against its paper's formulas, torch's own layers, and finite differences."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from norm_cases import (
    ARITHMETICS,
    EVERY_METHOD,
    FLOAT64,
    FORMATS,
    VARIANTS,
    Arithmetic,
    Shape,
    assert_within,
    fitted,
    half_ulp,
    layer,
    like,
    maps,
    normalization,
    pairwise,
    put,
    reference,
    rounding,
    take,
)
from numpy_norms import REFERENCES
from torch import Tensor, nn

from normbench.config.catalog.norms import NORMS
from normbench.config.trial import Choice, Trial
from normbench.norms.api import ShapeError, build, relu
from normbench.norms.moment_norm import Block, MomentNorm, Statistics

# batch 1 to 128; 1×1 to 32×32, powers of 2 and not; channels below, at and past a vector register's width
SHAPES = [
    pytest.param(Shape(1, 1, 8, 1, 1), marks=pytest.mark.slow),
    Shape(2, 2, 100, 1, 1),
    Shape(128, 16, 16, 1, 1),
    pytest.param(Shape(1, 1, 64, 1, 2), marks=pytest.mark.slow),
    pytest.param(Shape(2, 2, 100, 3, 2), marks=pytest.mark.slow),
    Shape(2, 1, 24, 5, 7),
    pytest.param(Shape(128, 128, 8, 2, 2), marks=pytest.mark.slow),
    Shape(8, 2, 16, 4, 4),
    Shape(8, 8, 64, 8, 8),
    pytest.param(Shape(1, 1, 16, 32, 32), marks=pytest.mark.slow),
]


def test_every_method_of_the_table_has_its_formulas_in_numpy_and_no_other_does() -> None:
    assert set(REFERENCES) == {variant.values[0].name for variant in VARIANTS}


def test_every_method_that_is_not_made_of_moments_has_a_test_file_of_its_own() -> None:
    others = [method for name, method in NORMS.items() if name not in REFERENCES]
    modules = {method.target.partition(":")[0].rpartition(".")[2] for method in others}
    assert all((Path(__file__).parent / f"test_{module}.py").exists() for module in modules)


@pairwise(
    EVERY_METHOD,
    pytest.mark.parametrize("shape", SHAPES, ids=str),
    pytest.mark.parametrize("arithmetic", ARITHMETICS, ids=str),
    FORMATS,
)
def test_every_method_computes_its_papers_formulas(
    norm: Choice,
    shape: Shape,
    arithmetic: Arithmetic,
    memory_format: torch.memory_format,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """In training, in its running statistics after three batches, at inference; or refuses what divides by 0.

    Allowed are the rounding of the sums, and in bf16 half a unit in the last place of what is stored.
    """
    take(arithmetic, monkeypatch)
    module = layer(norm, shape.C, shape.norm_batch)
    formulas = reference(norm, shape.C, shape.norm_batch)
    formulas.load(module.state_dict())
    put(module, arithmetic)

    def both(seed: int) -> None:
        exact = maps(shape, seed, arithmetic.dtype)
        y = module(like(exact, arithmetic, memory_format))
        expected = torch.from_numpy(formulas(exact.numpy()))
        assert y.dtype == arithmetic.dtype
        sums = rounding(arithmetic.dtype, shape.values, exact, size=1.5)
        assert_within(y, expected, sums + half_ulp(expected, arithmetic.dtype), "y")

    if formulas.undefined(shape.N, shape.H, shape.W):
        with pytest.raises(ShapeError):
            module(like(maps(shape), arithmetic, memory_format))
        return
    for seed in range(3):
        both(seed)
    kept = module.state_dict()
    for name, buffer in module.named_buffers():
        if name not in kept:
            continue  # of the moment
        sums = rounding(arithmetic.dtype, shape.values, maps(shape))
        assert_within(buffer, torch.from_numpy(getattr(formulas, name)), sums, name)
    module.eval()
    formulas.training = False
    both(seed=3)


@EVERY_METHOD
def test_every_method_starts_from_its_papers_values(norm: Choice) -> None:
    """gamma 1, beta 0; running mean 0, running variance 1 (in the authors' switchable norm 0); logits 1."""
    formulas = reference(norm, 16, 4)
    for name, value in normalization(norm, 16, 4).make_layer(16).state_dict().items():
        assert np.array_equal(value.numpy(), getattr(formulas, name)), name


def test_inference_takes_nothing_from_other_samples() -> None:
    """Also not through a mixture; so any batch size will do, whatever the norm batch of the training was."""
    shape = Shape(7, 4, 16, 3, 3)
    for norm in (parameter.values[0] for parameter in EVERY_METHOD.args[1]):
        module = layer(norm, shape.C, shape.norm_batch).eval()
        x = maps(shape)
        alone = torch.cat([module(sample) for sample in x.split(1)])
        assert_within(alone, module(x), rounding(torch.float64, shape.C * 9, x), norm.name)


# torch's own layers, and the released code of switchable norm


def _official(
    input: Tensor, layer: Any, momentum: float, eps: float, running: dict[str, Tensor], unbiased: bool = True
) -> Tensor:
    """SwitchNorm2d.forward of switchablenorms/Switchable-Normalization (MIT), devkit/ops, in training.

    ``momentum`` is theirs (a decay). ``unbiased=False`` gives their code the paper's variances.
    """
    N, C, H, W = input.size()
    x = input.reshape(N, C, -1)
    mean_in = x.mean(-1, keepdim=True)
    var_in = x.var(-1, keepdim=True, unbiased=unbiased)
    mean_ln = mean_in.mean(1, keepdim=True)
    temp = var_in + mean_in**2
    var_ln = temp.mean(1, keepdim=True) - mean_ln**2
    mean_bn = mean_in.mean(0, keepdim=True)
    var_bn = temp.mean(0, keepdim=True) - mean_bn**2
    m = N * H * W
    kept = var_bn.data if unbiased else var_bn.data * m / (m - 1)
    running["running_mean"].mul_(momentum).add_((1 - momentum) * mean_bn.data.flatten())
    running["running_var"].mul_(momentum).add_((1 - momentum) * kept.flatten())
    softmax = nn.Softmax(0)
    mean_weight, var_weight = softmax(layer.mean_weight), softmax(layer.var_weight)
    mean = mean_weight[0] * mean_in + mean_weight[1] * mean_ln + mean_weight[2] * mean_bn
    var = var_weight[0] * var_in + var_weight[1] * var_ln + var_weight[2] * var_bn
    x = (x - mean) / (var + eps).sqrt()
    return x.view(N, C, H, W) * layer.gamma.view(1, C, 1, 1) + layer.beta.view(1, C, 1, 1)


Theirs = Callable[[Tensor, Any, Choice, dict[str, Tensor]], Tensor]


def _per_channel(y: Tensor, layer: Any) -> Tensor:
    return y * layer.gamma[:, None, None] + layer.beta[:, None, None]


def _batch_norm(x: Tensor, layer: Any, norm: Choice, running: dict[str, Tensor]) -> Tensor:
    statistics = running["running_mean"], running["running_var"]
    momentum, eps = norm.options["momentum"], norm.options["eps"]
    return F.batch_norm(x, *statistics, layer.gamma, layer.beta, True, momentum, eps)


THEIRS: dict[str, Theirs] = {
    "none": lambda x, layer, norm, running: x * 1,
    "batch": _batch_norm,
    "batch_renorm": _batch_norm,  # r_max is 1 and d_max 0 until training tells the time
    "layer": lambda x, layer, norm, running: _per_channel(
        F.layer_norm(x, x.shape[1:], eps=norm.options["eps"]), layer
    ),
    "instance": lambda x, layer, norm, running: F.instance_norm(
        x, weight=layer.gamma, bias=layer.beta, eps=norm.options["eps"]
    ),
    "group": lambda x, layer, norm, running: F.group_norm(
        x, norm.options["groups"], layer.gamma, layer.beta, norm.options["eps"]
    ),
    "switchable": lambda x, layer, norm, running: _official(
        x,
        layer,
        1 - norm.options["momentum"],
        norm.options["eps"],
        running,
        norm.options["variance"] == "official",
    ),
}


@pairwise(
    EVERY_METHOD,
    pytest.mark.parametrize(
        "shape", [Shape(2, 2, 8, 1, 2), Shape(1, 1, 24, 5, 7), Shape(16, 16, 100, 2, 2)], ids=str
    ),
    pytest.mark.parametrize("arithmetic", ARITHMETICS[:3], ids=str),
)
def test_an_independent_implementation_agrees_in_output_gradients_and_running_statistics(
    norm: Choice, shape: Shape, arithmetic: Arithmetic, monkeypatch: pytest.MonkeyPatch
) -> None:
    """torch's functions and the authors' own code, at float64, three batches in a row."""
    take(arithmetic, monkeypatch)
    ours = layer(norm, shape.C, shape.norm_batch)
    theirs = layer(norm, shape.C, shape.norm_batch)
    running = dict(theirs.named_buffers())
    put(ours, arithmetic)
    for seed in range(3):
        exact = maps(shape, seed, arithmetic.dtype)
        ours.zero_grad()
        theirs.zero_grad()
        x, x_theirs = (like(exact, one, torch.channels_last) for one in (arithmetic, FLOAT64))
        y, y_theirs = ours(x), THEIRS[norm.name](x_theirs, theirs, fitted(norm, shape.C), running)
        dy = torch.from_numpy(np.random.RandomState(seed).standard_normal(y.shape)).float()
        torch.autograd.backward(y, dy.to(y.dtype))
        torch.autograd.backward(y_theirs, dy.double())
        once = rounding(arithmetic.dtype, shape.values, exact, size=1.5)
        assert_within(y, y_theirs, once, "y")
        scaled = once * float(dy.abs().max())
        assert x.grad is not None
        assert x_theirs.grad is not None
        assert_within(x.grad, x_theirs.grad, scaled, "gradient of x")
        for (name, mine), other in zip(ours.named_parameters(), theirs.parameters(), strict=True):
            assert mine.grad is not None
            assert other.grad is not None
            assert_within(mine.grad, other.grad, 4 * scaled, f"gradient of {name}")  # sums of what rounded
    for name, buffer in ours.named_buffers():
        assert_within(buffer, running[name], rounding(arithmetic.dtype, shape.values, exact), name)


@EVERY_METHOD
def test_the_gradients_are_those_of_finite_differences(norm: Choice, monkeypatch: pytest.MonkeyPatch) -> None:
    """torch.autograd.gradcheck at float64, to its default 1e-5 + 1e-3 relative: inputs and parameters.

    With a shortcut and a ReLU; those of the layer alone are compared with an independent implementation's.
    """
    take(FLOAT64, monkeypatch)
    shape = Shape(4, 2, 4 if "groups" in norm.options else 2, 1, 3)
    norm = norm.model_copy(update={"groups": 2}) if "groups" in norm.options else norm
    module = layer(norm, shape.C, shape.norm_batch)
    x, shortcut = maps(shape).requires_grad_(), maps(shape, seed=1).requires_grad_()

    def result(x: Tensor, shortcut: Tensor, *parameters: Tensor) -> Tensor:
        """The module's parameters are among the inputs, which gradcheck moves in place."""
        return relu(module, x, shortcut)

    y = result(x, shortcut)
    assert (y == 0).any()
    assert y[y > 0].min() > 1e-4, "the kink is too near for differences"
    assert torch.autograd.gradcheck(result, (x, shortcut, *module.parameters()))


# what a method leaves alone


@EVERY_METHOD
def test_what_a_method_does_not_set_does_nothing(norm: Choice) -> None:
    seam = normalization(norm, 16, 2)
    conv, shortcut, branch = nn.Conv2d(3, 16, 3), torch.ones(1), torch.tensor([2.0])
    assert seam.wrap_conv(conv) is conv
    assert seam.make_residual(0)(shortcut, branch) == 3


@EVERY_METHOD
def test_a_relu_in_the_same_pass_is_a_relu_behind_it(norm: Choice, monkeypatch: pytest.MonkeyPatch) -> None:
    take(FLOAT64, monkeypatch)
    shape = Shape(4, 4, 16, 3, 3)
    module, x, shortcut = layer(norm, 16, 4), maps(shape), maps(shape, seed=1)
    y = module(x)
    assert torch.equal(relu(module, x), F.relu(y))
    assert torch.equal(relu(module, x, shortcut), F.relu(shortcut + y))


# autocast


@EVERY_METHOD
@pytest.mark.parametrize("path", ["torch", "compiled"])
def test_under_bf16_autocast_statistics_and_parameters_stay_fp32(
    norm: Choice, path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in fp32 on the bf16 input, but for one rounding to bf16; the running statistics are equal."""
    shape, fp32 = Shape(8, 4, 16, 8, 8), Arithmetic(torch.float32, path)
    take(fp32, monkeypatch)
    exact = maps(shape, dtype=torch.bfloat16)
    inside, outside = (layer(norm, 16, 4).float() for _ in range(2))
    with torch.autocast("cpu", torch.bfloat16):
        y = inside(exact.bfloat16())
    expected = outside(exact.float()).double().detach()
    assert y.dtype == torch.bfloat16
    assert_within(
        y, expected, half_ulp(expected, torch.bfloat16) + rounding(torch.float32, shape.values, exact)
    )
    for name, buffer in inside.named_buffers():
        assert buffer.dtype == torch.float32
        other = dict(outside.named_buffers())[name]
        assert_within(buffer, other.double(), rounding(torch.float32, shape.values, exact), name)
    if list(inside.parameters()):
        y.float().sum().backward()
    assert all(p.grad is not None and p.grad.dtype == torch.float32 for p in inside.parameters())


# what has no statistics


SINGLE = "single value"


@pytest.mark.parametrize(
    ("norm", "norm_batch", "shape", "words"),
    [
        ("batch", 1, (4, 8, 1, 1), SINGLE),
        ("switchable", 1, (4, 8, 1, 1), SINGLE),
        ("instance", 1, (4, 8, 1, 1), SINGLE),
        ({"name": "group", "groups": 8}, 1, (4, 8, 1, 1), SINGLE),
        ({"name": "switchable", "variance": "official"}, 4, (4, 8, 1, 1), "needs two"),
        (
            {"name": "group", "groups": 3},
            1,
            (1, 16, 2, 2),
            r"^3 groups do not .* 16 .*\(these do: 1, 2, 4, 8, 16\)$",
        ),
        (
            {"name": "group", "groups": 32},
            1,
            (1, 16, 2, 2),
            r"^32 groups do not divide 16 .*1, 2, 4, 8, 16\)$",
        ),
        ("batch", 3, (8, 8, 2, 2), "a norm batch of 3 samples does not divide a batch of 8"),
    ],
)
def test_a_shape_without_statistics_is_refused(
    norm: str | dict[str, Any], norm_batch: int, shape: tuple[int, ...], words: str
) -> None:
    """Where the released switchable norm gives NaN, in training and at inference; elsewhere in training."""
    module = build(Trial(norm=norm).norm, norm_batch).make_layer(shape[1])
    for training in (True, False) if words == "needs two" else (True,):
        with pytest.raises(ShapeError, match=words):
            module.train(training)(torch.ones(shape))


def test_channel_groups_that_do_not_divide_are_refused_by_whatever_method_asks() -> None:
    with pytest.raises(ShapeError, match="groups of 3 channels do not divide 8"):
        Statistics((Block(channels=3),)).check(1, 8, 4)


def test_a_moment_norm_has_to_say_which_statistics_it_takes() -> None:
    with pytest.raises(NotImplementedError):
        MomentNorm(8, 1e-5)(torch.ones(2, 8, 2, 2))
