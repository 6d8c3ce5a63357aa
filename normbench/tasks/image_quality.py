"""How near images are to others: mean squared error, PSNR and SSIM of every image.

All take images [N, 3, H, W] whose true values lie in [0, 1] and return one number for each of N images.
"""

import math

import torch
from torch import Tensor

LEAST_ERROR = 1e-10  # mean squared error of images that are equal, for a PSNR of 100 dB and not infinity
WINDOW, SIGMA = 11, 1.5  # of SSIM
C1, C2 = 0.01**2, 0.03**2  # (K1 L)² and (K2 L)² with a range L of 1


def squared_error(images: Tensor, truth: Tensor) -> Tensor:
    """Return the mean squared error of each image, [N]."""
    return (images - truth).square().mean((1, 2, 3))


def psnr(images: Tensor, truth: Tensor) -> Tensor:
    """Return the peak signal-to-noise ratio of each image in dB, [N]: -10 log10 of the mean squared error.

    Values of ``images`` are first brought into [0, 1]; an error below ``LEAST_ERROR`` counts as that.
    """
    error = squared_error(images.clamp(0, 1), truth)
    return error.clamp_min(LEAST_ERROR).log10() * -10


def ssim(images: Tensor, truth: Tensor) -> Tensor:
    """Return the structural similarity of each image, [N] (Wang et al. 2004, equation 13).

    The window is Gaussian, 11×11 with a standard deviation of 1.5; only places where it lies wholly within
    the image count, as in the authors' code. The mean is over these and over the channels. Values of
    ``images`` are first brought into [0, 1].

    Raises:
        ValueError: the images are smaller than the window.
    """
    images = images.clamp(0, 1)
    rows, columns = (_windows(side, images) for side in images.shape[2:])

    def local_mean(maps: Tensor) -> Tensor:
        return rows @ maps @ columns.T

    mean, true_mean = local_mean(images), local_mean(truth)
    variances = local_mean(images.square() + truth.square()) - mean.square() - true_mean.square()
    covariance = local_mean(images * truth) - mean * true_mean
    similarity = (2 * mean * true_mean + C1) * (2 * covariance + C2)
    similarity = similarity / ((mean.square() + true_mean.square() + C1) * (variances + C2))
    return similarity.mean((1, 2, 3))


def _windows(side: int, like: Tensor) -> Tensor:
    """Return the matrix [side - 10, side] of the Gaussian weights at every place along one axis."""
    if side < WINDOW:
        raise ValueError(f"SSIM needs images of at least {WINDOW}×{WINDOW} pixels, and these have {side}")
    weights = [math.exp(-((offset - WINDOW // 2) ** 2) / (2 * SIGMA**2)) for offset in range(WINDOW)]
    band = torch.zeros(side - WINDOW + 1, side, dtype=torch.float64)
    for place in range(len(band)):
        band[place, place : place + WINDOW] = torch.tensor(weights, dtype=torch.float64) / math.fsum(weights)
    return band.to(like)
