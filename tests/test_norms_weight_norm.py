"""Weight normalization: its formula, torch's own, gradients, and the initialisation by data."""

import numpy as np
import pytest
import torch
from norm_cases import Arithmetic, take
from torch import nn
from weight_cases import check_convolution, check_gradients, conv, exact, images

from normbench.norms.normalization import Clock
from normbench.norms.weight_norm import WeightNormConv


def test_the_weights_are_g_v_over_the_norm_of_v() -> None:
    module = WeightNormConv(conv(), data_init=False)
    with torch.no_grad():
        module.g.copy_(torch.tensor([0.5, -1.0, 2.0, 3.0]))
    v, g = module.weight.detach().numpy(), module.g.detach().numpy()
    expected = g.reshape(-1, 1, 1, 1) * v / np.sqrt((v**2).sum((1, 2, 3), keepdims=True))

    check_convolution(module, expected, conv(), images())


def test_it_starts_as_the_convolution_it_replaces() -> None:
    check_convolution(WeightNormConv(conv(), data_init=False), conv().weight, conv(), images())


def test_torchs_own_weight_norm_agrees_in_output_and_gradients() -> None:
    ours, plain = WeightNormConv(conv(), data_init=False), conv()
    theirs = nn.utils.parametrizations.weight_norm(plain, dim=0)
    with torch.no_grad():
        ours.g.mul_(2)
        theirs.parametrizations.weight.original0.mul_(2)
    y, expected = ours(images()), theirs(images())
    exact(y, expected)
    y.square().sum().backward()
    expected.square().sum().backward()
    exact(ours.g.grad, theirs.parametrizations.weight.original0.grad.flatten())
    exact(ours.weight.grad, theirs.parametrizations.weight.original1.grad)


@pytest.mark.parametrize("path", ["torch", "compiled"])
@pytest.mark.parametrize("size", [1e-30, 1e-20, 1e20, 1e30])
def test_rows_whose_squares_no_number_holds_have_the_weights_and_gradients_of_float64(
    size: float, path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Eight roundings in fp32 are allowed. (A row of zeros has no direction: NaN, as torch's own.)"""
    v = size * conv().float().weight.detach()
    dw = torch.linspace(-1, 1, v.numel()).view_as(v)
    results = []
    for dtype in (torch.float64, torch.float32):
        plain = conv().to(dtype)
        plain.weight.data = v.to(dtype)
        module = WeightNormConv(plain, data_init=False)
        with monkeypatch.context() as only_here:
            take(Arithmetic(dtype, path if dtype == torch.float32 else "torch"), only_here)  # type: ignore[arg-type]
            w = module.effective()
            w.backward(dw.to(dtype) / size)
        results.append([module.g.detach(), w.detach(), module.g.grad, module.weight.grad])
    for wanted, found in zip(*results, strict=True):
        assert wanted is not None
        assert found is not None
        assert float((found.double() - wanted).norm() / wanted.norm()) < 8 * torch.finfo(torch.float32).eps


def test_the_gradients_are_those_of_finite_differences() -> None:
    check_gradients(WeightNormConv(conv(), data_init=False), images())


def test_the_length_of_v_does_not_matter_and_its_gradient_is_across_it() -> None:
    """Section 2.1 of the paper: the gradient is orthogonal to v."""
    module = WeightNormConv(conv(), data_init=False)
    before = module(images())
    before.square().sum().backward()
    assert module.weight.grad is not None
    exact((module.weight.grad * module.weight).sum((1, 2, 3)), np.zeros(4))
    with torch.no_grad():
        module.weight.mul_(7)
    exact(module(images()), before)


def test_the_first_batch_sets_mean_0_and_variance_1_if_so_asked() -> None:
    module = WeightNormConv(conv(), data_init=True)
    module.at(Clock(0, 10, 1))
    y = module(images() * 5 + 2)
    torch.testing.assert_close(y.mean((0, 2, 3)), torch.zeros(4, dtype=torch.float64), rtol=0, atol=1e-6)
    torch.testing.assert_close(
        y.var((0, 2, 3), correction=0), torch.ones(4, dtype=torch.float64), rtol=0, atol=1e-6
    )  # (the statistics are taken in single precision)


@pytest.mark.parametrize(("step", "training"), [(1, True), (0, False)])
def test_later_batches_and_inference_set_nothing(step: int, training: bool) -> None:
    module = WeightNormConv(conv(), data_init=True).train(training)
    g = module.g.detach().clone()
    module.at(Clock(step, 10, 1))
    module(images())
    assert torch.equal(module.g, g)
