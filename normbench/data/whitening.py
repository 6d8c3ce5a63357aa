"""Whitening: images whose pixels have mean 0, variance 1 and no correlation, by a linear map of whole images.

It is the ideal that batch normalization approximates channel by channel (Ioffe & Szegedy 2015, section 2), at
a cost of the square of the number of pixels for each image. With the covariance of the training images
U·diag(v)·Uᵀ, as for instance Kessy et al. (2018, arXiv 1512.00809) have it:

    PCA:  (x - mean)·U·diag(1 / sqrt(v + eps)), components in the order of falling v
    ZCA:  (x - mean)·U·diag(1 / sqrt(v + eps))·Uᵀ, of all white maps the one nearest to x
"""

import functools
from typing import NamedTuple

import torch
from torch import Tensor

from normbench.data.decoded import Decoded, Split

PART = 2048  # images taken up at once


class Map(NamedTuple):
    """(x - mean) · matrix for images x in [0, 1] as rows, [n, D] with D = H · W · 3; fp32 [D] and [D, D]."""

    mean: Tensor
    matrix: Tensor


class Components(NamedTuple):
    """Principal components of images in float64: mean [D], variances [D] falling, and columns [D, D]."""

    mean: Tensor
    variances: Tensor
    basis: Tensor


def scaled(_dataset: Decoded) -> None:
    """No map: channels are scaled, as ever."""


def pca(dataset: Decoded, eps: float) -> Map:
    """Component k of an image stands where its k-th value stood; what was near in the image no longer is."""
    mean, variances, basis = of_training(dataset)
    return Map(mean.float(), (basis * _scale(variances, eps)).float())


def zca(dataset: Decoded, eps: float) -> Map:
    """Images remain images, of edges."""
    mean, variances, basis = of_training(dataset)
    return Map(mean.float(), ((basis * _scale(variances, eps)) @ basis.T).float())


def _scale(variances: Tensor, eps: float) -> Tensor:
    """1 / sqrt(v + eps); 0 in directions in which nothing varies, which eps = 0 would make infinite."""
    least = variances[0] * len(variances) * torch.finfo(torch.float64).eps
    return torch.where(variances > least, (variances.clamp_min(0) + eps).rsqrt(), 0.0)


def of_training(dataset: Decoded) -> Components:
    """Those of the training images in use: some ten seconds for 32 × 32; a process keeps the last."""
    return _kept(_Key(dataset.content, dataset.train))


class _Key:
    """Equal contents and sizes mean equal images: a smaller subset is always the same one."""

    def __init__(self, content: str, split: Split) -> None:
        self.split = split
        self.told = content, len(split.indices)

    def __hash__(self) -> int:
        return hash(self.told)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Key) and self.told == other.told


@functools.lru_cache(maxsize=1)
def _kept(key: _Key) -> Components:
    split, count = key.split, len(key.split.indices)

    def rows(first: int) -> Tensor:
        images = torch.from_numpy(split.images[split.indices[first : first + PART]])
        return images.flatten(1).double() / 255

    firsts = range(0, count, PART)
    mean = sum((rows(first).sum(0) for first in firsts), start=torch.zeros(())) / count
    covariance = torch.zeros(len(mean), len(mean), dtype=torch.float64)
    for first in firsts:
        centred = rows(first) - mean
        covariance.addmm_(centred.T, centred, alpha=1 / count)
    variances, basis = torch.linalg.eigh(covariance)
    return Components(mean, variances.flip(0), _signed(basis.flip(1)))


def _signed(basis: Tensor) -> Tensor:
    """Each column with its largest entry positive, which eigenvectors leave open."""
    largest = basis.gather(0, basis.abs().argmax(0, keepdim=True))
    return basis * largest.sign()
