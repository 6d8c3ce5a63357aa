"""EvoNorm S0 and B0: the formulas of table 2, timm's layers, gradients and running variance."""

from collections.abc import Callable

import numpy as np
import pytest
import timm.layers
import torch
from torch import Tensor, nn

from normbench.norms.api import ShapeError, relu
from normbench.norms.evonorm import EvoNormB0, EvoNormS0

MAKERS: dict[str, Callable[[], nn.Module]] = {
    "S0": lambda: EvoNormS0(4, groups=2, eps=1e-5),
    "B0": lambda: EvoNormB0(4, eps=1e-5, momentum=0.1, norm_batch_size=3),
}
BOTH = pytest.mark.parametrize("name", MAKERS)


def layer(name: str) -> nn.Module:
    module, random = MAKERS[name]().double(), torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.rand(4, generator=random, dtype=torch.float64) + 0.5)
    return module


def maps(seed: int = 0, N: int = 6) -> Tensor:
    return torch.randn(N, 4, 2, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * 2


def formula(name: str, module: nn.Module, x: np.ndarray) -> np.ndarray:
    gamma, beta, v = (
        getattr(module, one).detach().numpy().reshape(1, -1, 1, 1) for one in ("gamma", "beta", "v")
    )
    if name == "S0":
        grouped = x.reshape(len(x), 2, 2, *x.shape[2:])
        variance = np.broadcast_to(grouped.var((2, 3, 4), keepdims=True), grouped.shape).reshape(x.shape)
        return gamma * x / (1 + np.exp(-v * x)) / np.sqrt(variance + 1e-5) + beta
    batches = [x[start : start + 3] for start in range(0, len(x), 3)]
    shared = np.concatenate([np.broadcast_to(b.var((0, 2, 3), keepdims=True), b.shape) for b in batches])
    instance = x.var((2, 3), keepdims=True)
    return gamma * x / np.maximum(np.sqrt(shared + 1e-5), v * x + np.sqrt(instance + 1e-5)) + beta


@BOTH
def test_it_is_the_formula_of_table_2(name: str) -> None:
    module = layer(name)
    expected = torch.from_numpy(formula(name, module, maps().numpy()))
    torch.testing.assert_close(relu(module, maps()).detach(), expected, rtol=1e-12, atol=1e-12)


@BOTH
def test_timms_layers_agree_in_output_and_gradients(name: str) -> None:
    ours = layer(name)
    theirs = (
        timm.layers.EvoNorm2dS0(4, groups=2, eps=1e-5)
        if name == "S0"
        else timm.layers.EvoNorm2dB0(4, momentum=0.1, eps=1e-5)
    ).double()
    pairs = [(theirs.weight, ours.gamma), (theirs.bias, ours.beta), (theirs.v, ours.v)]
    with torch.no_grad():
        for one, other in pairs:
            one.copy_(other)
    y, expected = relu(ours, maps(N=3)), theirs(maps(N=3))
    torch.testing.assert_close(y, expected, rtol=1e-6, atol=1e-6)  # theirs computes in single precision
    y.square().sum().backward()
    expected.square().sum().backward()
    for one, other in pairs:
        torch.testing.assert_close(other.grad, one.grad, rtol=1e-5, atol=1e-5)


@BOTH
def test_the_gradients_are_those_of_finite_differences(name: str) -> None:
    module = layer(name)
    inputs = maps().requires_grad_(), *module.parameters()
    assert torch.autograd.gradcheck(lambda x, *_: relu(module, x), inputs)


def test_b0_keeps_a_running_variance_and_uses_it_at_inference() -> None:
    module, kept = layer("B0"), np.ones(4)
    for seed in range(3):
        relu(module, maps(seed))
        batches = [maps(seed).numpy()[start : start + 3] for start in (0, 3)]
        newest = np.mean([batch.var((0, 2, 3), ddof=1) for batch in batches], axis=0)
        kept = 0.9 * kept + 0.1 * newest
    torch.testing.assert_close(module.running_var, torch.from_numpy(kept), rtol=1e-12, atol=1e-12)
    module.eval()
    alone = torch.cat([relu(module, sample) for sample in maps().split(1)])
    torch.testing.assert_close(alone, relu(module, maps()), rtol=1e-12, atol=1e-12)


def test_it_is_refused_where_a_sum_comes_between_norm_and_activation() -> None:
    with pytest.raises(ShapeError, match="a sum comes between"):
        relu(layer("S0"), maps(), maps())


def test_groups_that_do_not_divide_the_channels_are_refused() -> None:
    with pytest.raises(ShapeError, match="8 groups do not divide 4 channels"):
        relu(EvoNormS0(4, groups=8, eps=1e-5), maps().float())
