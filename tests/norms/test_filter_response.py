"""Filter response normalization: its formulas, timm's, gradients, and its threshold in place of a ReLU."""

import numpy as np
import pytest
import timm.layers
import torch
from torch import Tensor

from normbench.norms.api import ShapeError, relu
from normbench.norms.filter_response import FilterResponseNorm


def layer(channels: int = 3) -> FilterResponseNorm:
    """Parameters that all matter: gamma and beta from 0.5 to 1.5, tau around the middle of y."""
    module, random = FilterResponseNorm(channels, 1e-6).double(), torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.rand(channels, generator=random, dtype=torch.float64) + 0.5)
    return module


def maps(seed: int = 0) -> Tensor:
    return torch.randn(2, 3, 2, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_it_is_the_papers_formula() -> None:
    module, x = layer(), maps().numpy()
    gamma, beta, tau = (p.detach().numpy().reshape(1, -1, 1, 1) for p in module.parameters())
    nu2 = (x**2).mean((2, 3), keepdims=True)
    y = gamma * x / np.sqrt(nu2 + 1e-6) + beta
    torch.testing.assert_close(module(maps()).detach(), torch.from_numpy(y), rtol=1e-12, atol=1e-12)
    active = relu(module, maps()).detach()
    torch.testing.assert_close(active, torch.from_numpy(np.maximum(y, tau)), rtol=1e-12, atol=1e-12)


def test_timms_layer_agrees_in_output_and_gradients() -> None:
    ours, theirs = layer(), timm.layers.FilterResponseNormTlu2d(3, eps=1e-6).double()
    with torch.no_grad():
        for one, other in ((theirs.weight, ours.gamma), (theirs.bias, ours.beta), (theirs.tau, ours.tau)):
            one.copy_(other)
    y, expected = relu(ours, maps()), theirs(maps())
    torch.testing.assert_close(y, expected, rtol=1e-6, atol=1e-6)  # theirs computes in single precision
    y.square().sum().backward()
    expected.square().sum().backward()
    for one, other in ((theirs.weight, ours.gamma), (theirs.bias, ours.beta), (theirs.tau, ours.tau)):
        torch.testing.assert_close(other.grad, one.grad, rtol=1e-5, atol=1e-5)


def test_a_shortcut_is_added_in_front_of_the_threshold() -> None:
    module, shortcut = layer(), maps(1)
    expected = torch.maximum(module(maps()) + shortcut, module.tau[:, None, None])
    assert torch.equal(relu(module, maps(), shortcut), expected)


def test_the_gradients_are_those_of_finite_differences() -> None:
    module = layer()
    inputs = maps().requires_grad_(), maps(1).requires_grad_(), *module.parameters()
    assert torch.autograd.gradcheck(lambda x, shortcut, *_: relu(module, x, shortcut), inputs)


def test_maps_of_one_position_are_refused() -> None:
    with pytest.raises(ShapeError, match="single value"):
        layer()(torch.ones(2, 3, 1, 1, dtype=torch.float64))
