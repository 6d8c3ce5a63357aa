"""Exact properties of the normalizations, at float64; a number in a name is that of the claim it settles."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from norm_cases import (
    EVERY_AFFINE_METHOD,
    FLOAT64,
    Arithmetic,
    Shape,
    assert_within,
    layer,
    maps,
    put,
    rounding,
    take,
)
from torch import Tensor, nn

from normbench.config.trial import Choice, Trial
from normbench.norms.api import build
from normbench.norms.moment_norm import MomentNorm

shapes = st.builds(
    lambda groups, norm_batch, C, H, W: Shape(groups * norm_batch, norm_batch, C, H, W),
    st.integers(1, 3),
    st.integers(1, 4),
    st.sampled_from([1, 2, 8, 17, 24]),
    st.integers(1, 5),
    st.integers(2, 5),
)
seeds = st.integers(0, 2**32 - 1)
quickly = settings(max_examples=10, deadline=None, derandomize=True)


def made(norm: str | dict[str, Any], channels: int, norm_batch: int, seed: int = 0) -> nn.Module:
    """A float64 layer of this method with gamma and beta that matter."""
    return layer(Trial(norm=norm).norm, channels, norm_batch, seed)


def close(actual: Tensor, expected: Tensor, size: float = 1.0) -> None:
    """Equal but for the rounding of float64: 1e-12 of the largest number, some thousand times its eps."""
    bound = 1e-12 * max(float(expected.detach().abs().max()), size)
    assert_within(actual, expected, bound)


# 26: scale invariance


@EVERY_AFFINE_METHOD
@given(a=st.floats(0.01, 100), seed=seeds)
@quickly
def test_26_a_scaled_weight_changes_nothing_and_its_gradient_scales_inversely(
    norm: Choice, a: float, seed: int
) -> None:
    """BN(a W u) = BN(W u) for a > 0 and d/d(aW) = 1/a d/dW, if eps is nothing; others too."""
    norm = norm.model_copy(update={"eps": 1e-300})
    shape = Shape(4, 2, 8, 4, 4)
    module = layer(norm, shape.C, shape.norm_batch)
    if not isinstance(module, MomentNorm):
        return
    random = torch.Generator().manual_seed(seed)
    W = torch.randn(8, 3, 3, 3, generator=random, dtype=torch.float64)
    u = torch.randn(4, 3, 4, 4, generator=random, dtype=torch.float64)
    dy = torch.randn(4, 8, 4, 4, generator=random, dtype=torch.float64)
    results = []
    for weight in (W, a * W):
        weight = weight.requires_grad_()
        y = module(F.conv2d(u, weight, padding=1))
        (gradient,) = torch.autograd.grad(y, weight, dy)
        results.append((y, gradient))
    (y, gradient), (y_scaled, gradient_scaled) = results
    assert_within(y_scaled, y, 1e-9)  # the smallest of the random variances may cost some digits
    assert_within(a * gradient_scaled, gradient, 1e-9 * float(gradient.abs().max()))


# 27: the written-out formulas of batch normalization


@given(shape=shapes, seed=seeds)
@quickly
def test_27_the_written_out_backward_of_batch_norm_is_automatic_differentiation(
    shape: Shape, seed: int
) -> None:
    """dbeta = Σ dy, dgamma = Σ dy x̂, dx = gamma / (m σ) (m dy - Σ dy - x̂ Σ dy x̂), m values a channel."""
    shape = shape._replace(norm_batch=shape.N)
    module = made("batch", shape.C, shape.N, seed % 100)
    x = maps(shape, seed).requires_grad_()
    dy = np.random.RandomState(seed).standard_normal(x.shape)
    torch.autograd.backward(module(x), torch.from_numpy(dy))

    over, gamma = (0, 2, 3), module.gamma.detach().numpy().reshape(1, -1, 1, 1)
    values = x.detach().numpy()
    m = values[:, 0].size
    sigma = np.sqrt(values.var(over, keepdims=True) + module.eps)
    x_hat = (values - values.mean(over, keepdims=True)) / sigma
    dbeta, dgamma = dy.sum(over, keepdims=True), (dy * x_hat).sum(over, keepdims=True)
    dx = gamma / (m * sigma) * (m * dy - dbeta - x_hat * dgamma)

    assert x.grad is not None
    close(x.grad, torch.from_numpy(dx), size=10)
    close(module.gamma.grad, torch.from_numpy(dgamma.ravel()), size=10)
    close(module.beta.grad, torch.from_numpy(dbeta.ravel()), size=10)


# 28: the methods are special cases of each other


def _same(one: nn.Module, other: nn.Module, x: Tensor) -> None:
    """The same output and gradient of x, for equal gamma and beta."""
    other.gamma.data, other.beta.data = one.gamma.data, one.beta.data
    x = x.requires_grad_()
    y, y_other = one(x), other(x)
    close(y, y_other, size=10)
    dy = torch.linspace(-1, 1, y.numel(), dtype=torch.float64).view(y.shape)
    close(*(torch.autograd.grad(result, x, dy)[0] for result in (y, y_other)), size=10)


@pytest.mark.parametrize(("index", "part"), list(enumerate(["instance", "layer", "batch"])))
@given(shape=shapes, seed=seeds)
@quickly
def test_28_switchable_norm_with_all_weight_on_one_part_is_that_part(
    index: int, part: str, shape: Shape, seed: int
) -> None:
    switch = made("switchable", shape.C, shape.norm_batch)
    with torch.no_grad():
        for logits in (switch.mean_weight, switch.var_weight):
            logits.fill_(-1000)
            logits[index] = 0
    assert sorted(switch.importance()[0].tolist()) == [0, 0, 1]
    _same(switch, made(part, shape.C, shape.norm_batch), maps(shape, seed))


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (lambda C: {"name": "group", "groups": 1}, "layer"),
        (lambda C: {"name": "group", "groups": C}, "instance"),
        (lambda C: "batch", "instance"),  # in training, of norm batches of one sample
    ],
    ids=["GN with one group is LN", "GN with a group a channel is IN", "BN over one sample is IN"],
)
@given(shape=shapes, seed=seeds)
@quickly
def test_28_one_method_is_a_special_case_of_another(
    one: Callable[[int], Any], other: str, shape: Shape, seed: int
) -> None:
    _same(made(one(shape.C), shape.C, 1), made(other, shape.C, 1), maps(shape, seed))


# 29: running statistics


@given(shape=shapes, seed=seeds, momentum=st.floats(0.001, 1))
@quickly
def test_29_momentum_here_is_torchs_and_one_minus_the_papers_decay(
    shape: Shape, seed: int, momentum: float
) -> None:
    """decay * running + (1 - decay) * new, the variance over m - 1 although m normalizes."""
    shape = shape._replace(norm_batch=shape.N)
    ours = made({"name": "batch", "momentum": momentum}, shape.C, shape.N)
    torchs = nn.BatchNorm2d(shape.C, momentum=momentum).double()
    decay = 1 - momentum
    mean, variance = torch.zeros(shape.C).double(), torch.ones(shape.C).double()
    for batch in range(3):
        x = maps(shape, (seed + batch) % 2**32)
        ours(x), torchs(x)
        mean = decay * mean + (1 - decay) * x.mean((0, 2, 3))
        variance = decay * variance + (1 - decay) * x.var((0, 2, 3), correction=1)
    for expected_mean, expected_variance in ((mean, variance), (torchs.running_mean, torchs.running_var)):
        close(ours.running_mean, expected_mean, size=10)
        close(ours.running_var, expected_variance, size=10)


def test_29_the_default_momentum_is_a_decay_of_nine_tenths() -> None:
    assert (
        Trial(norm="batch").norm.options["momentum"] == nn.BatchNorm2d(1).momentum == pytest.approx(1 - 0.9)
    )


# statistics over part of a batch


@given(shape=shapes, seed=seeds)
@quickly
def test_norm_batches_are_normalized_as_if_each_had_come_alone(shape: Shape, seed: int) -> None:
    """Output, gradients, and running statistics, which move once a batch, by the norm batches' average."""
    for norm in ("batch", "switchable", {"name": "switchable", "variance": "official"}):
        together, alone = (made(norm, shape.C, shape.norm_batch) for _ in range(2))
        x = maps(shape, seed).requires_grad_()
        y = together(x)
        start = {name: buffer.clone() for name, buffer in alone.named_buffers()}
        parts, moved = [], []
        for part in x.split(shape.norm_batch):
            alone.load_state_dict(start, strict=False)
            parts.append(alone(part))
            moved.append({name: buffer.clone() for name, buffer in alone.named_buffers()})
        close(y, torch.cat(parts), size=10)
        dy = torch.linspace(-1, 1, y.numel(), dtype=torch.float64).view(y.shape)
        leaves = x, *together.parameters()
        separate = torch.autograd.grad(torch.cat(parts), (x, *alone.parameters()), dy)
        for one, other in zip(torch.autograd.grad(y, leaves, dy), separate, strict=True):
            close(one, other, size=10)
        for name, buffer in together.named_buffers():
            close(buffer, torch.stack([after[name] for after in moved]).mean(0), size=10)


@given(seed=seeds)
@quickly
@pytest.mark.parametrize("path", ["torch", "compiled"])
def test_the_order_of_samples_within_a_norm_batch_is_of_no_importance(path: Any, seed: int) -> None:
    """Shuffling samples inside their norm batches shuffles the output, to fp32 rounding; across them not."""
    shape = Shape(8, 4, 16, 3, 3)
    with pytest.MonkeyPatch.context() as only_here:
        fp32 = Arithmetic(torch.float32, path)
        take(fp32, only_here)
        module = put(made("batch", shape.C, shape.norm_batch), fp32)
        x = maps(shape, seed, torch.float32)
        x *= torch.arange(1, 9).view(8, 1, 1, 1)
        order = np.random.RandomState(seed).permutation(4)
        within = np.concatenate([order, 4 + order])
        across = np.roll(np.arange(8), 2)
        y = module(x.float())
        bound = rounding(torch.float32, shape.values, x)
        assert_within(module(x[within].float()), y[within].double(), bound)
        assert not torch.allclose(module(x[across].float()), y[across], atol=0.1)


# the whole range


@EVERY_AFFINE_METHOD
@given(shape=shapes, seed=seeds)
@quickly
def test_the_compiled_path_agrees_with_the_torch_path_on_any_shape(
    norm: Choice, shape: Shape, seed: int
) -> None:
    """In fp32, outputs and gradients of x."""
    x = maps(shape, seed, torch.float32)
    results = []
    for arithmetic in (FLOAT64, Arithmetic(torch.float32, "compiled")):
        with pytest.MonkeyPatch.context() as only_here:
            take(arithmetic, only_here)
            module = put(layer(norm, shape.C, shape.norm_batch), arithmetic)
            leaf = x.to(arithmetic.dtype, copy=True).requires_grad_()
            y = module(leaf)
            dy = torch.linspace(-1, 1, y.numel(), dtype=torch.float64).view(y.shape)
            results.append((y, *torch.autograd.grad(y, leaf, dy.to(y.dtype))))
    bound = rounding(torch.float32, shape.values, x, size=1.5)
    for exact, compiled in zip(*results, strict=True):
        assert_within(compiled, exact.detach(), bound)


def test_switchable_norm_reports_its_importance_weights() -> None:
    """Three for the mean and three for the variance, each summing to 1, equal at the start: IN, LN, BN."""
    module = build(Trial(norm="switchable").norm, 4).make_layer(8)
    weights = module.diagnostics()["switch_weights"]
    assert weights == {"mean": pytest.approx([1 / 3] * 3), "variance": pytest.approx([1 / 3] * 3)}
    with torch.no_grad():
        module.var_weight[2] += 1
    weights = module.diagnostics()["switch_weights"]
    assert sum(weights["variance"]) == pytest.approx(1)
    assert weights["variance"][2] / weights["variance"][0] == pytest.approx(np.e)
