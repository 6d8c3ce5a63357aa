"""Ten synthetic shapes, 32×32 RGB: a data set without download, learnable but not easy.

Every image shows a shape of random position, size, rotation, stretch and colour, lighter or darker than its
cluttered background, partly covered by a bar and under noise. Labels are exact. Shapes are signed distance
functions, which gives soft edges. No class is a mirror image of another, so flips preserve the label.

The bytes are the same everywhere: the generator's stream is frozen (NEP 19), and only operations that IEEE
754 rounds exactly are used (+ - × ÷ √ and comparisons; no sine, power or sum over an axis).
"""

from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from normbench.config.catalog.datasets import Arrays, Log, Source

SIDE = 32
TRAIN_SIZE, TEST_SIZE = 6_000, 2_000
SEED = 0
CHUNK = 500  # images rendered at once; part of the data set, since another number gives other images

Real = NDArray[np.float64]
Distance = Callable[[Real, Real], Real]


def _norm(x: Real, y: Real) -> Real:
    return np.sqrt(x * x + y * y)


def _box(x: Real, y: Real, width: float, height: float) -> Real:
    return np.maximum(np.abs(x) - width, np.abs(y) - height)


def _ring(x: Real, y: Real) -> Real:
    return np.abs(_norm(x, y) - 0.8) - 0.25


def _half_disc(x: Real, y: Real) -> Real:
    return np.maximum(_norm(x + 0.45, y) - 1.15, -0.45 - x)


def _crescent(x: Real, y: Real) -> Real:
    return np.maximum(_norm(x, y) - 1.05, 0.8 - _norm(x - 0.6, y))


def _frame(x: Real, y: Real) -> Real:
    return np.abs(_box(x, y, 0.7, 0.7)) - 0.22


def _triangle(x: Real, y: Real) -> Real:
    return np.maximum(np.abs(y) * 0.8660254037844386 + x * 0.5, -x) - 0.58


def _cross(x: Real, y: Real) -> Real:
    return np.minimum(_box(x, y, 1.0, 0.34), _box(x, y, 0.34, 1.0))


def _star(x: Real, y: Real) -> Real:
    """Return the distance to five half-planes, of which a point of the star is outside at most one."""
    near, far = np.abs(y) * 0.9510565162951535, np.abs(y) * 0.5877852522924731
    a, b = x * 0.30901699437494745, x * 0.8090169943749475
    sides = np.sort(np.stack([x, a + near, a - near, far - b, -far - b]), axis=0)
    second_highest: Real = sides[-2]
    return second_highest - 0.4


def _ell(x: Real, y: Real) -> Real:
    return np.minimum(_box(x, y + 0.5, 0.85, 0.33), _box(x + 0.5, y, 0.33, 0.85))


# Signed distances to the edge, negative inside, of shapes of radius about 1 around the origin.
DISTANCES: dict[str, Distance] = {
    "disc": lambda x, y: _norm(x, y) - 0.95,
    "ring": _ring,
    "half disc": _half_disc,
    "crescent": _crescent,
    "square": lambda x, y: _box(x, y, 0.85, 0.85),
    "frame": _frame,
    "triangle": _triangle,
    "cross": _cross,
    "star": _star,
    "ell": _ell,
}


class _Canvas:
    """A batch of images, [count, 3, SIDE, SIDE] in [0, 1], painted on layer by layer."""

    def __init__(self, random: np.random.RandomState, count: int) -> None:
        self.random, self.count = random, count
        self.x = np.arange(SIDE) - (SIDE - 1) / 2  # columns, and y rows, from the centre
        self.y = self.x[:, None]
        self.level = self.uniform(0.35, 0.65)
        self.pixels = self.level + self.uniform(-0.12, 0.12, channels=3) + np.zeros((SIDE, SIDE))

    def uniform(self, low: float, high: float, channels: int = 1) -> Real:
        """Sample a number per image and channel, [count, channels, 1, 1]."""
        return low + (high - low) * self.random.random_sample((self.count, channels, 1, 1))

    def sign(self) -> Real:
        """Sample -1 or 1 with equal probability."""
        return np.where(self.uniform(-1, 1) < 0, -1.0, 1.0)

    def placed(self, spread: float, axis: tuple[Real, Real] | None = None) -> tuple[Real, Real]:
        """Return coordinates in pixels with a random centre, up to ``spread`` from that of the image.

        Their x axis is ``axis``, or random without one.
        """
        x, y = self.x - self.uniform(-spread, spread), self.y - self.uniform(-spread, spread)
        right, down = axis or (self.uniform(-1, 1), self.uniform(-1, 1))
        length = _norm(right, down) + 1e-9
        cos, sin = right / length, down / length
        return x * cos + y * sin, y * cos - x * sin

    def paint(self, distance: Real, colour: Real) -> None:
        """Fill the inside of ``distance`` (in pixels) with ``colour`` [count, 3, 1, 1], with soft edges."""
        self.pixels += (colour - self.pixels) * np.clip(0.5 - distance, 0, 1)

    def bar(self, spread: float, length: Real, width: Real) -> None:
        """Paint a bar of random position and colour; ``length`` and ``width`` are half of its, in pixels."""
        x, y = self.placed(spread)
        colour = self.level + self.uniform(-0.2, 0.2, channels=3)
        self.paint(np.maximum(np.abs(x) - length, np.abs(y) - width), colour)


def _render(random: np.random.RandomState, labels: NDArray[np.int64]) -> NDArray[np.uint8]:
    """Render images uint8 [M, SIDE, SIDE, 3] of the classes ``labels`` [M]."""
    canvas = _Canvas(random, len(labels))
    # Five images of six are clear and the others are hard or impossible to classify: no accuracy of 100 %.
    hard = np.maximum(canvas.uniform(-5, 1), 0)
    x, _ = canvas.placed(0)
    canvas.pixels += x / SIDE * canvas.uniform(-0.3, 0.3, channels=3)  # the light falls off to one side
    for _ in range(2):
        canvas.bar(spread=16, length=canvas.uniform(2, 8), width=canvas.uniform(0.5, 1.5))
    x, y = canvas.placed(3, axis=(canvas.uniform(1, 1), canvas.uniform(-0.4, 0.4)))
    radius, stretch = canvas.uniform(7, 11), canvas.uniform(0.82, 1.22)
    distance = np.empty_like(x)
    for label, distance_of in enumerate(DISTANCES.values()):
        rows = labels == label
        distance[rows] = distance_of((x / radius * stretch)[rows], (y / radius / stretch)[rows])
    contrast = canvas.sign() * canvas.uniform(0.25, 0.45) * (1 - 0.75 * hard)
    canvas.paint(distance * radius, canvas.level + contrast + canvas.uniform(-0.12, 0.12, channels=3))
    canvas.bar(spread=9, length=canvas.uniform(4, 10), width=canvas.uniform(0.5, 1.5) + 2 * hard)
    noise = random.random_sample(canvas.pixels.shape) - random.random_sample(canvas.pixels.shape)
    pixels = np.clip(canvas.pixels + noise * (canvas.uniform(0.02, 0.1) + 0.4 * hard), 0, 1)
    return np.ascontiguousarray(np.floor(pixels * 255 + 0.5).astype(np.uint8).transpose(0, 2, 3, 1))


def _split(random: np.random.RandomState, size: int) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    labels = np.arange(size, dtype=np.int64) % len(DISTANCES)
    images = [_render(random, labels[start : start + CHUNK]) for start in range(0, size, CHUNK)]
    return np.concatenate(images), labels


def fingerprint(_directory: Path) -> str:
    """Return the version of the images; increase it with any change that alters a pixel."""
    return "1"


def decode(_directory: Path, log: Log) -> Arrays:
    """Render the set: 6,000 training and 2,000 test images, equally many of each class."""
    log(f"shapes: rendering {TRAIN_SIZE + TEST_SIZE:,} images")
    random = np.random.RandomState(SEED)
    train_images, train_labels = _split(random, TRAIN_SIZE)
    test_images, test_labels = _split(random, TEST_SIZE)
    return Arrays(train_images, train_labels, test_images, test_labels, tuple(DISTANCES))


SHAPES = Source(fingerprint, decode)
