"""Batch renormalization once its bounds have opened, and frozen batch normalization."""

import numpy as np
import pytest
import torch
from norm_cases import FLOAT64, Shape, maps, take
from numpy_norms import BatchNorm as FormulasOfBatchNorm
from numpy_norms import BatchRenorm as Formulas

from normbench.norms.api import Clock
from normbench.norms.batch import FreezingBatchNorm
from normbench.norms.batch_renorm import BatchRenorm

OPTIONS = {"eps": 1e-5, "momentum": 0.1, "norm_batch_size": 4}
SCHEDULE = {"r_max": 3.0, "d_max": 5.0, "warmup_epochs": 1.0, "ramp_epochs": 4.0}
SHAPE = Shape(8, 4, 6, 3, 3)


@pytest.mark.parametrize(
    ("epoch", "bounds"),
    [(0, (1, 0)), (0.9, (1, 0)), (1, (1, 0)), (3, (2, 2.5)), (5, (3, 5)), (9, (3, 5))],
)
def test_the_bounds_open_linearly_after_the_warm_up(epoch: float, bounds: tuple[float, float]) -> None:
    layer = BatchRenorm(6, **OPTIONS, **SCHEDULE)
    layer.at(Clock(round(epoch * 10), 10, 10))
    assert layer.bounds == pytest.approx(bounds)


@pytest.mark.parametrize("bounds", [(1.2, 0.1), (3.0, 5.0)], ids=["both bounds bind", "open"])
def test_it_computes_the_papers_algorithm_in_training_and_at_inference(
    bounds: tuple[float, float], monkeypatch: pytest.MonkeyPatch
) -> None:
    take(FLOAT64, monkeypatch)
    layer, formulas = BatchRenorm(6, **OPTIONS, **SCHEDULE).double(), Formulas(6, **OPTIONS)
    layer.bounds = formulas.bounds = bounds
    for seed in range(3):
        x = maps(SHAPE, seed) * 2 + 1
        expected = torch.from_numpy(formulas(x.numpy()))
        torch.testing.assert_close(layer(x).detach(), expected, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(layer.running_var, torch.from_numpy(formulas.running_var))
    layer.eval()
    formulas.training = False
    expected = torch.from_numpy(formulas(x.numpy()))
    torch.testing.assert_close(layer(x).detach(), expected, rtol=1e-10, atol=1e-10)


def test_r_and_d_are_constants_to_the_gradient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Against the formula in torch with r and d detached (theirs is a gradient that gradcheck cannot see)."""
    take(FLOAT64, monkeypatch)
    layer = BatchRenorm(6, **OPTIONS, **SCHEDULE).double()
    layer.bounds = 3.0, 5.0
    x, again = maps(SHAPE).requires_grad_(), maps(SHAPE).requires_grad_()
    parts = []
    for part in again.split(4):
        mean, variance = part.mean((0, 2, 3), keepdim=True), part.var((0, 2, 3), keepdim=True, correction=0)
        sigma, running = (variance + 1e-5).sqrt(), np.sqrt(1 + 1e-5)
        r, d = (sigma / running).clamp(1 / 3, 3).detach(), (mean / running).clamp(-5, 5).detach()
        parts.append((part - mean) / sigma * r + d)
    weights = torch.randn(8, 6, 3, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    (layer(x) * weights).sum().backward()
    (torch.cat(parts) * weights).sum().backward()
    torch.testing.assert_close(x.grad, again.grad, rtol=1e-9, atol=1e-9)


def test_frozen_batch_norm_uses_its_running_statistics_and_they_stand_still() -> None:
    layer, formulas = (
        kind(6, eps=1e-5, momentum=0.1, norm_batch_size=4, frozen_epochs=frozen)
        for kind, frozen in ((FreezingBatchNorm, 2), (FormulasOfBatchNorm, 0))
    )
    layer.at(Clock(79, 10, 10))
    x = maps(SHAPE, dtype=torch.float32).float()
    layer(x)
    formulas(x.numpy().astype(float))
    formulas.training = False
    before = layer.running_mean.clone()
    layer.at(Clock(80, 10, 10))
    expected = torch.from_numpy(formulas(x.numpy().astype(float))).float()
    torch.testing.assert_close(layer(x).detach(), expected, rtol=1e-5, atol=1e-5)
    assert torch.equal(layer.running_mean, before)
