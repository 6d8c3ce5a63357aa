"""Whitening against NumPy's singular value decomposition, and as images for training."""

from typing import Any

import numpy as np
import pytest
import torch

from normbench.data import WHITENINGS
from normbench.data.augment import Images
from normbench.data.decoded import Decoded, Split
from normbench.data.whitening import Map

COUNT, SIDE = 300, 4  # more images than the 48 values of each: every direction varies
D = SIDE * SIDE * 3


def dataset(pixels: Any) -> Decoded:
    numbers = np.arange(len(pixels), dtype=np.int64)
    split = Split(pixels, numbers, numbers)
    return Decoded(split, split, ("all",), (0.5, 0.5, 0.5), (0.25, 0.25, 0.25), str(hash(pixels.tobytes())))


@pytest.fixture
def correlated() -> Decoded:
    """Neighbouring pixels are alike, as in photographs."""
    random = np.random.RandomState(0)
    rough = random.normal(0, 40, (COUNT, SIDE, SIDE, 3))
    smooth = rough + np.roll(rough, 1, 1) + np.roll(rough, 1, 2) + rough.mean(3, keepdims=True)
    return dataset(np.clip(smooth + 128, 0, 255).astype(np.uint8))


def whitening(name: str, data: Decoded, eps: float = 0.0) -> Map:
    found: Map = WHITENINGS[name].load()(data, eps=eps)
    return found


def rows(data: Decoded) -> Any:
    return np.asarray(data.train.images, np.float64).reshape(len(data.train.images), -1) / 255


def whitened(name: str, data: Decoded, eps: float = 0.0) -> Any:
    mean, matrix = (part.double().numpy() for part in whitening(name, data, eps))
    return (rows(data) - mean) @ matrix


@pytest.mark.parametrize("name", ["pca", "zca"])
def test_30_whitened_pixels_have_mean_0_variance_1_and_no_correlation(name: str, correlated: Decoded) -> None:
    """1e-4: the map is in single precision, and the least variance is some thousandth of the largest."""
    white = whitened(name, correlated)

    assert np.abs(white.mean(0)).max() < 1e-4
    assert np.abs(white.T @ white / COUNT - np.eye(D)).max() < 1e-4
    before = np.corrcoef(rows(correlated).T) - np.eye(D)
    assert np.abs(before).max() > 0.4, "or there was nothing to do"


def test_pca_gives_the_left_singular_vectors(correlated: Decoded) -> None:
    """By another way to the same: x - mean = U S Vᵀ, and x white = sqrt(n) U, up to the signs."""
    x = rows(correlated)
    u, _, _ = np.linalg.svd(x - x.mean(0), full_matrices=False)

    assert np.abs(whitened("pca", correlated)) == pytest.approx(np.abs(u) * np.sqrt(COUNT), abs=1e-3)


def test_zca_is_the_inverse_root_of_the_covariance(correlated: Decoded) -> None:
    """Symmetric, and its square is the inverse covariance: that makes it the white map nearest to x."""
    matrix = whitening("zca", correlated).matrix.double().numpy()

    assert matrix == pytest.approx(matrix.T, abs=1e-4 * np.abs(matrix).max())
    assert matrix @ matrix @ np.cov(rows(correlated).T, bias=True) == pytest.approx(np.eye(D), abs=1e-3)


def test_eps_is_added_to_the_variances(correlated: Decoded) -> None:
    x = rows(correlated)
    variances = np.linalg.eigvalsh(np.cov(x.T, bias=True))[::-1]

    found = whitened("pca", correlated, eps=0.02).var(0)

    assert found == pytest.approx(variances / (variances + 0.02), rel=1e-4)


@pytest.mark.parametrize("name", ["pca", "zca"])
def test_what_does_not_vary_stays_0(name: str) -> None:
    """Fewer images than values, and a white corner in all of them: no division by a variance of 0."""
    pixels = np.random.RandomState(1).randint(0, 256, (20, SIDE, SIDE, 3)).astype(np.uint8)
    pixels[:, 0, 0] = 255

    white = whitened(name, dataset(pixels))

    assert np.isfinite(white).all()
    assert np.trace(white.T @ white / 20) == pytest.approx(19, rel=1e-3), "as many directions as vary"


@pytest.mark.parametrize("name", ["pca", "zca"])
def test_batches_are_whitened_images(name: str, correlated: Decoded) -> None:
    found = whitening(name, correlated, 0.01)
    images = Images(correlated.train, correlated.mean, correlated.std, torch.device("cpu"), found)

    (chunk,) = images.in_order(COUNT)

    assert chunk.images.shape == (COUNT, 3, SIDE, SIDE)
    expected = whitened(name, correlated, 0.01).reshape(COUNT, SIDE, SIDE, 3).transpose(0, 3, 1, 2)
    assert chunk.images.numpy() == pytest.approx(expected, abs=1e-4)


def test_training_images_are_cropped_and_flipped_before(correlated: Decoded) -> None:
    """The map of the very images that an unwhitened epoch has."""
    found = whitening("zca", correlated, 0.01)
    cpu = torch.device("cpu")
    plain = Images(correlated.train, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0), cpu)
    white = Images(correlated.train, correlated.mean, correlated.std, cpu, found)

    (before,), (after,) = (one.training_chunks(0, 0, COUNT, augment=True) for one in (plain, white))

    flat = before.images.permute(0, 2, 3, 1).flatten(1)
    expected = ((flat - found.mean) @ found.matrix).view(COUNT, SIDE, SIDE, 3).permute(0, 3, 1, 2)
    assert torch.allclose(after.images, expected, atol=1e-4)


def test_no_whitening_is_no_map(correlated: Decoded) -> None:
    assert WHITENINGS["none"].load()(correlated) is None
