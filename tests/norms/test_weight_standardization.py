"""Weight standardization: its formula, timm's, gradients, and what stands behind it."""

import numpy as np
import pytest
import timm.layers
import torch
from weight_cases import check_convolution, check_gradients, conv, exact, images

from normbench.config.trial import Trial
from normbench.norms.api import build
from normbench.norms.group import GroupNorm
from normbench.norms.weight_standardization import StandardizedConv


def test_the_weights_are_standardized_over_each_channels_fan_in() -> None:
    module = StandardizedConv(conv(), bias=True, eps=1e-5)
    W = module.weight.detach().numpy()
    mean, variance = W.mean((1, 2, 3), keepdims=True), W.var((1, 2, 3), keepdims=True)

    check_convolution(module, (W - mean) / np.sqrt(variance + 1e-5), conv(), images())


def test_timms_standardized_convolution_agrees() -> None:
    ours, plain = StandardizedConv(conv(), bias=False, eps=1e-5), conv()
    theirs = timm.layers.StdConv2d(3, 4, 3, stride=2, padding=1, eps=1e-5).double()
    theirs.weight = plain.weight
    y, expected = ours(images()), theirs(images())
    exact(y, expected)
    y.square().sum().backward()
    expected.square().sum().backward()
    torch.testing.assert_close(ours.weight.grad, theirs.weight.grad, rtol=1e-9, atol=1e-9)


def test_the_gradients_are_those_of_finite_differences() -> None:
    check_gradients(StandardizedConv(conv(), bias=True, eps=1e-5), images())


@pytest.mark.parametrize("name", ["weight_standardization", "centred_weights"])
def test_group_normalization_stands_behind_it_or_a_bias(name: str) -> None:
    behind = build(Trial(norm={"name": name, "groups": 4}).norm, None)
    alone = build(Trial(norm={"name": name, "layer": "none"}).norm, None)
    layer = behind.make_layer(16)
    assert isinstance(layer, GroupNorm)
    assert layer.groups == 4
    assert behind.wrap_conv(conv()).bias is None
    assert isinstance(alone.make_layer(16), torch.nn.Identity)
    exact(alone.wrap_conv(conv()).bias, np.zeros(4))
