"""Moving average BN: the paper's algorithm in NumPy, update by update; BN's layer; gradients; state."""

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from norm_cases import FLOAT64, take
from torch import Tensor, nn

from normbench.config.trial import Trial
from normbench.norms.api import Clock, ShapeError, build
from normbench.norms.batch import BatchNorm
from normbench.norms.moving_average_batch import MovingAverageBatchNorm

CHANNELS, EPS, MOMENTUM = 3, 1e-5, 0.1
Array = np.ndarray


def layer(
    norm_batch_size: int = 2, batches: int = 1, window: int = 3, warmup: int = 0, renorm: int = 5
) -> MovingAverageBatchNorm:
    """gamma and beta from 0.5 to 1.5."""
    module = MovingAverageBatchNorm(
        CHANNELS, EPS, MOMENTUM, norm_batch_size, batches, window, warmup, renorm
    ).double()
    random = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.rand(CHANNELS, generator=random, dtype=torch.float64) + 0.5)
    return module


def maps(seed: int, N: int = 4) -> Tensor:
    random = torch.Generator().manual_seed(seed)
    return torch.randn(N, CHANNELS, 4, 4, generator=random, dtype=torch.float64) * (1 + seed % 3)


class Formulas:
    """Algorithm of section 3 for one norm batch, as written: t counts updates from 1, lists hold the past."""

    def __init__(self, gamma: Array, beta: Array, window: int, warmup: int, renorm: int) -> None:
        self.gamma, self.beta = gamma.reshape(1, -1, 1, 1), beta.reshape(1, -1, 1, 1)
        self.window, self.warmup, self.renorm = window, warmup, renorm
        self.t, self.running = 0, np.ones((1, CHANNELS, 1, 1))
        self.chi2: list[Array] = []
        self.psi: list[Array] = []

    def update(self, x: Array, dy: Array) -> tuple[Array, Array, Array, Array]:
        """y, and the gradients of x, gamma and beta."""
        self.t += 1
        past = self.t > self.window and self.t >= self.warmup
        self.chi2.append((x**2).mean((0, 2, 3), keepdims=True))
        chi2 = np.mean(self.chi2[-self.window :], axis=0) if past else self.chi2[-1]
        z = x / np.sqrt(chi2 + EPS)
        r = np.ones_like(chi2)
        if self.t > max(self.renorm, self.warmup):
            r = np.clip(np.sqrt((chi2 + EPS) / (self.running + EPS)), 1 / 5, 5)
        self.running = (1 - MOMENTUM) * self.running + MOMENTUM * chi2
        g = dy * self.gamma * r
        self.psi.append((g * z).mean((0, 2, 3), keepdims=True))
        psi = np.mean(self.psi[-self.window :], axis=0) if past else self.psi[-1]
        dx = (g - z * psi) / np.sqrt(chi2 + EPS)
        return self.gamma * r * z + self.beta, dx, (dy * r * z).sum((0, 2, 3)), dy.sum((0, 2, 3))


def updates(
    module: MovingAverageBatchNorm, count: int, N: int = 2
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """x with its gradient, y, and the gradient of y, update by update."""
    for step in range(count):
        module.at(Clock(step, 10, 10))
        module.zero_grad()
        x, dy = maps(step, N).requires_grad_(), maps(step + 100, N)
        y = module(x)
        y.backward(dy)
        yield x, y.detach(), dy


@pytest.mark.parametrize(("warmup", "renorm"), [(0, 5), (6, 0), (0, 100)])
def test_it_is_the_papers_algorithm_update_by_update(warmup: int, renorm: int) -> None:
    """Twelve updates: alone, then over the past, then corrected by the running average."""
    module = layer(warmup=warmup, renorm=renorm)
    gamma, beta = (parameter.detach().numpy() for parameter in (module.gamma, module.beta))
    formulas = Formulas(gamma, beta, 3, warmup, renorm)
    for x, y, dy in updates(module, 12):
        expected = formulas.update(x.detach().numpy(), dy.numpy())
        found = (y, x.grad, module.gamma.grad, module.beta.grad)
        for one, other in zip(found, expected, strict=True):
            torch.testing.assert_close(one, torch.from_numpy(other), rtol=1e-11, atol=1e-11)
        running = torch.from_numpy(formulas.running.ravel())
        torch.testing.assert_close(module.running_squares, running, rtol=1e-12, atol=1e-12)


def test_each_norm_batch_of_an_update_has_a_past_of_its_own() -> None:
    """Two of two samples are two layers of one, but for the running average, which follows both."""
    module, halves = layer(batches=2, renorm=100), [layer(renorm=100), layer(renorm=100)]
    for step, (x, y, dy) in enumerate(updates(module, 6, N=4)):
        for index, half in enumerate(halves):
            half.at(Clock(step, 10, 10))
            own = x.detach()[2 * index : 2 * index + 2].requires_grad_()
            out = half(own)
            out.backward(dy[2 * index : 2 * index + 2])
            torch.testing.assert_close(out.detach(), y[2 * index : 2 * index + 2], rtol=1e-12, atol=1e-12)
            torch.testing.assert_close(own.grad, x.grad[2 * index : 2 * index + 2], rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(
        module.running_squares, (halves[0].running_squares + halves[1].running_squares) / 2
    )


def test_at_first_it_is_batch_norm_of_maps_without_a_mean(monkeypatch: pytest.MonkeyPatch) -> None:
    """As far as BN does without its mean: on x beside -x, where the gradient's mean is 0 too."""
    take(FLOAT64, monkeypatch)
    module, norm = layer(norm_batch_size=4), BatchNorm(CHANNELS, EPS, MOMENTUM, 4).double()
    norm.load_state_dict({"gamma": module.gamma, "beta": module.beta}, strict=False)
    half, slope = maps(0, 2), maps(1, 2)
    ours, theirs = (torch.cat([half, -half]).requires_grad_() for _ in range(2))
    dy = torch.cat([slope, -slope])
    y, expected = module(ours), norm(theirs)
    torch.testing.assert_close(y, expected, rtol=1e-12, atol=1e-12)
    y.backward(dy)
    expected.backward(dy)
    torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-11, atol=1e-11)


def test_the_gradients_of_the_first_updates_are_those_of_finite_differences() -> None:
    """Later ones are not the loss's own: the past is part of them."""
    module = layer(batches=2)
    x, shortcut = (maps(seed)[:, :, :2, :2].contiguous() for seed in (0, 1))
    inputs = x.requires_grad_(), shortcut.requires_grad_(), *module.parameters()
    assert torch.autograd.gradcheck(lambda x, shortcut, *_: module(x, shortcut, True), inputs)


def test_inference_takes_the_running_average_whatever_is_in_the_batch() -> None:
    module = layer()
    for _ in updates(module, 4):
        pass
    module.eval()
    x = maps(9)
    scale = module.gamma / (module.running_squares + EPS).sqrt()
    expected = x * scale[:, None, None] + module.beta[:, None, None]
    torch.testing.assert_close(module(x), expected, rtol=1e-12, atol=1e-12)
    assert torch.equal(module(x[:1]), module(x)[:1])


def test_a_layer_goes_on_from_its_state() -> None:
    undisturbed, stopped = layer(), layer()
    seen = [y for _, y, _ in updates(undisturbed, 8)]
    for _ in updates(stopped, 4):
        pass
    again = layer()
    again.load_state_dict(stopped.state_dict())
    for step in range(4, 8):
        again.at(Clock(step, 10, 10))
        y = again(maps(step, 2))
        y.backward(maps(step + 100, 2))
        assert torch.equal(y, seen[step])


@pytest.mark.parametrize(
    ("x", "norm_batch_size", "words"),
    [
        (torch.ones(3, 3, 2, 2), 2, "a batch of 3 samples is not 1 norm batches of 2"),
        (torch.ones(1, 3, 1, 1), 1, "single value"),
    ],
)
def test_shapes_without_statistics_are_refused(x: Tensor, norm_batch_size: int, words: str) -> None:
    with pytest.raises(ShapeError, match=words):
        layer(norm_batch_size)(x.double())


def test_its_convolutions_have_centred_weights_and_no_bias() -> None:
    conv = build(Trial(norm="moving_average_batch").norm, 2).wrap_conv(
        nn.Conv2d(3, 4, 3, padding=1, bias=False)
    )
    y = conv(torch.ones(1, 3, 5, 5))[:, :, 1:-1, 1:-1]
    torch.testing.assert_close(y, torch.zeros_like(y), rtol=0, atol=1e-6)
