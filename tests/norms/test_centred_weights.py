"""Centred weights: their formula and gradients."""

from weight_cases import check_convolution, check_gradients, conv, exact, images

from normbench.norms.reparam import CentredConv


def test_the_weights_have_mean_0_over_each_channels_fan_in() -> None:
    module = CentredConv(conv(), bias=True)
    W = module.weight.detach().numpy()

    check_convolution(module, W - W.mean((1, 2, 3), keepdims=True), conv(), images())


def test_a_constant_added_to_the_image_changes_nothing_away_from_the_padding() -> None:
    module = CentredConv(conv(), bias=False)
    exact(module(images() + 3)[..., 1:, 1:], module(images())[..., 1:, 1:])


def test_the_gradients_are_those_of_finite_differences() -> None:
    check_gradients(CentredConv(conv(), bias=True), images())
