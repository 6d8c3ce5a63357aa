"""PSNR and SSIM against their formulas, written out in NumPy."""

import math

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from normbench.tasks.image_quality import LEAST_ERROR, psnr, ssim

Array = NDArray[np.float64]


def pairs(side: int = 13, count: int = 3) -> tuple[Tensor, Tensor]:
    """Images, and the same with noise of three strengths that leaves [0, 1] here and there."""
    random = np.random.RandomState(0)
    truth = random.uniform(0, 1, (count, 3, side, side + 2))
    strength = np.array([0.05, 0.2, 0.5])[:count, None, None, None]
    return torch.from_numpy(truth + strength * random.normal(size=truth.shape)), torch.from_numpy(truth)


def numpy_ssim(x: Array, y: Array) -> float:
    """Wang et al. 2004, equations 13 to 16, window by window, channel by channel."""
    offsets = np.arange(11) - 5
    w = np.exp(-(offsets[:, None] ** 2 + offsets[None] ** 2) / (2 * 1.5**2))
    w /= w.sum()
    C1, C2 = 0.01**2, 0.03**2
    values = []
    for channel in range(3):
        for row in range(x.shape[1] - 10):
            for column in range(x.shape[2] - 10):
                a = x[channel, row : row + 11, column : column + 11]
                b = y[channel, row : row + 11, column : column + 11]
                mean_a, mean_b = (w * a).sum(), (w * b).sum()
                var_a, var_b = (w * (a - mean_a) ** 2).sum(), (w * (b - mean_b) ** 2).sum()
                covariance = (w * (a - mean_a) * (b - mean_b)).sum()
                values.append(
                    (2 * mean_a * mean_b + C1)
                    * (2 * covariance + C2)
                    / ((mean_a**2 + mean_b**2 + C1) * (var_a + var_b + C2))
                )
    return float(np.mean(values))


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-4)])
def test_ssim_is_the_papers_formula(dtype: torch.dtype, tolerance: float) -> None:
    """1e-12: some 10³ roundings of float64. In fp32 variances cancel to 1e-7, against C2 = 9e-4: 1e-4."""
    images, truth = pairs()
    expected = [numpy_ssim(x.clip(0, 1), y) for x, y in zip(images.numpy(), truth.numpy(), strict=True)]
    actual = ssim(images.to(dtype), truth.to(dtype)).tolist()
    assert actual == pytest.approx(expected, abs=tolerance)
    assert expected[0] > expected[1] > expected[2], "more noise is less alike"


def test_ssim_of_an_image_with_itself_is_1_and_two_images_may_be_swapped() -> None:
    images, truth = pairs()
    inside = images.clamp(0, 1)
    torch.testing.assert_close(ssim(truth, truth), torch.ones(3, dtype=torch.float64), rtol=0, atol=1e-12)
    torch.testing.assert_close(ssim(inside, truth), ssim(truth, inside), rtol=1e-12, atol=0)


def test_ssim_refuses_images_below_its_window() -> None:
    small = torch.zeros(1, 3, 10, 32)
    with pytest.raises(ValueError, match="SSIM needs images of at least 11×11 pixels, and these have 10"):
        ssim(small, small)


def test_psnr_is_minus_ten_times_the_logarithm_of_the_error_of_values_in_range() -> None:
    images, truth = pairs()
    error = ((images.numpy().clip(0, 1) - truth.numpy()) ** 2).mean((1, 2, 3))
    assert psnr(images, truth).tolist() == pytest.approx((-10 * np.log10(error)).tolist(), rel=1e-13)


def test_psnr_of_an_image_with_itself_is_100_decibels() -> None:
    _, truth = pairs()
    assert psnr(truth, truth).tolist() == pytest.approx([-10 * math.log10(LEAST_ERROR)] * 3)
