"""Ten drawn shapes, 32×32 RGB: a data set that needs no download, made to be learnable but not easy.

Every image shows one shape of random place, size, rotation, stretch and colour, lighter or darker than its
ground, on a cluttered ground, partly covered by a bar and under noise. Labels are exact. Shapes are signed
distances, which gives soft edges. No class is a mirror image of another, so flips are safe.

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
CHUNK = 500  # images drawn at once; another number would draw others

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
    """Five half-planes; a point of the star lies outside one of them at most."""
    near, far = np.abs(y) * 0.9510565162951535, np.abs(y) * 0.5877852522924731
    a, b = x * 0.30901699437494745, x * 0.8090169943749475
    sides = np.sort(np.stack([x, a + near, a - near, far - b, -far - b]), axis=0)
    second_highest: Real = sides[-2]
    return second_highest - 0.4


def _ell(x: Real, y: Real) -> Real:
    return np.minimum(_box(x, y + 0.5, 0.85, 0.33), _box(x + 0.5, y, 0.33, 0.85))


DISTANCES: dict[
    str, Distance
] = {  # to the edge, negative inside, for a shape of radius about 1 around the origin
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
    """``count`` images, [count, 3, SIDE, SIDE] in [0, 1], painted on one layer after the other."""

    def __init__(self, random: np.random.RandomState, count: int) -> None:
        self.random, self.count = random, count
        self.x = np.arange(SIDE) - (SIDE - 1) / 2  # of every column, and y of every row, from the middle
        self.y = self.x[:, None]
        self.level = self.uniform(0.35, 0.65)
        self.pixels = self.level + self.uniform(-0.12, 0.12, channels=3) + np.zeros((SIDE, SIDE))

    def uniform(self, low: float, high: float, channels: int = 1) -> Real:
        """One number an image (and channel), [count, channels, 1, 1]."""
        return low + (high - low) * self.random.random_sample((self.count, channels, 1, 1))

    def sign(self) -> Real:
        """-1 or 1, with equal chance."""
        return np.where(self.uniform(-1, 1) < 0, -1.0, 1.0)

    def placed(self, spread: float, axis: tuple[Real, Real] | None = None) -> tuple[Real, Real]:
        """Coordinates in pixels, centre up to ``spread`` off the middle at random, ``axis`` as the x axis.

        Without an axis it points anywhere.
        """
        x, y = self.x - self.uniform(-spread, spread), self.y - self.uniform(-spread, spread)
        right, down = axis or (self.uniform(-1, 1), self.uniform(-1, 1))
        length = _norm(right, down) + 1e-9
        cos, sin = right / length, down / length
        return x * cos + y * sin, y * cos - x * sin

    def paint(self, distance: Real, colour: Real) -> None:
        """Cover the inside of ``distance`` (in pixels) with ``colour`` [count, 3, 1, 1], edges soft."""
        self.pixels += (colour - self.pixels) * np.clip(0.5 - distance, 0, 1)

    def bar(self, spread: float, length: Real, width: Real) -> None:
        """Paint a bar of random place and colour; ``length`` and ``width`` are halved, in pixels."""
        x, y = self.placed(spread)
        colour = self.level + self.uniform(-0.2, 0.2, channels=3)
        self.paint(np.maximum(np.abs(x) - length, np.abs(y) - width), colour)


def _draw(random: np.random.RandomState, labels: NDArray[np.int64]) -> NDArray[np.uint8]:
    """Images uint8 [M, SIDE, SIDE, 3] of the classes ``labels`` [M]."""
    canvas = _Canvas(random, len(labels))
    # Five images of six are clear, the others more or less illegible: quick to learn, and never learnt whole.
    hard = np.maximum(canvas.uniform(-5, 1), 0)
    x, _ = canvas.placed(0)
    canvas.pixels += x / SIDE * canvas.uniform(-0.3, 0.3, channels=3)  # the light falls off to one side
    for _ in range(2):
        canvas.bar(spread=16, length=canvas.uniform(2, 8), width=canvas.uniform(0.5, 1.5))
    x, y = canvas.placed(3, axis=(canvas.uniform(1, 1), canvas.uniform(-0.4, 0.4)))
    radius, stretch = canvas.uniform(7, 11), canvas.uniform(0.82, 1.22)
    distance = np.empty_like(x)
    for label, of_class in enumerate(DISTANCES.values()):
        here = labels == label
        distance[here] = of_class((x / radius * stretch)[here], (y / radius / stretch)[here])
    contrast = canvas.sign() * canvas.uniform(0.25, 0.45) * (1 - 0.75 * hard)
    canvas.paint(distance * radius, canvas.level + contrast + canvas.uniform(-0.12, 0.12, channels=3))
    canvas.bar(spread=9, length=canvas.uniform(4, 10), width=canvas.uniform(0.5, 1.5) + 2 * hard)
    noise = random.random_sample(canvas.pixels.shape) - random.random_sample(canvas.pixels.shape)
    pixels = np.clip(canvas.pixels + noise * (canvas.uniform(0.02, 0.1) + 0.4 * hard), 0, 1)
    return np.ascontiguousarray(np.floor(pixels * 255 + 0.5).astype(np.uint8).transpose(0, 2, 3, 1))


def _split(random: np.random.RandomState, size: int) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    labels = np.arange(size, dtype=np.int64) % len(DISTANCES)
    images = [_draw(random, labels[start : start + CHUNK]) for start in range(0, size, CHUNK)]
    return np.concatenate(images), labels


def fingerprint(_directory: Path) -> str:
    """The drawing, by version: raise it with any change that moves a pixel."""
    return "1"


def decode(_directory: Path, log: Log) -> Arrays:
    """Draw the set: 6,000 training and 2,000 test images, all classes alike."""
    log(f"shapes: drawing {TRAIN_SIZE + TEST_SIZE:,} images")
    random = np.random.RandomState(SEED)
    train_images, train_labels = _split(random, TRAIN_SIZE)
    test_images, test_labels = _split(random, TEST_SIZE)
    return Arrays(train_images, train_labels, test_images, test_labels, tuple(DISTANCES))


SHAPES = Source(fingerprint, decode)
