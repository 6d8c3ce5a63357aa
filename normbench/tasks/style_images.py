"""The style images, drawn by code: every function returns an image [3, SIZE, SIZE] with values in [0, 1]."""

from collections.abc import Callable, Mapping

import numpy as np
from numpy.typing import NDArray

SIZE = 64
Image = NDArray[np.float64]


def _positions() -> tuple[Image, Image]:
    """Return the row and the column of every pixel, [SIZE, SIZE] each."""
    rows, columns = np.mgrid[0:SIZE, 0:SIZE].astype(np.float64)
    return rows, columns


def _hashed(number: Image, draw: int) -> Image:
    """Return numbers in [0, 1) that look random, of whole numbers: a mix of multiplications and shifts."""
    bits = (number.astype(np.uint64) * np.uint64(2654435761) + np.uint64(97 * draw + 1)) & np.uint64(
        2**32 - 1
    )
    for multiplier in (0x7FEB352D, 0x846CA68B):
        bits = ((bits ^ (bits >> np.uint64(15))) * np.uint64(multiplier)) & np.uint64(2**32 - 1)
    return (bits ^ (bits >> np.uint64(16))).astype(np.float64) / 2**32


def _painted(amount: Image, dark: tuple[float, float, float], light: tuple[float, float, float]) -> Image:
    """Return ``dark`` where the amount is 0, ``light`` where it is 1, and between them what lies between."""
    ends = np.array([dark, light])[:, :, None, None]
    image: Image = ends[0] + amount * (ends[1] - ends[0])
    return image


def waves() -> Image:
    """Return bent stripes of deep blue and warm yellow, about 8 pixels wide."""
    rows, columns = _positions()
    phase = (rows + 5 * np.sin(columns * (2 * np.pi / 32))) * (2 * np.pi / 8)
    return _painted(0.5 + 0.5 * np.sin(phase), (0.05, 0.1, 0.45), (1.0, 0.8, 0.2))


def mosaic() -> Image:
    """Return cells of bright colours with dark borders, about 8 pixels wide."""
    rows, columns = _positions()
    cells = SIZE // 8
    number = np.arange(cells * cells, dtype=np.float64)
    centre_rows = 8 * (number // cells + _hashed(number, 1))
    centre_columns = 8 * (number % cells + _hashed(number, 2))
    far = []
    for centre, positions in ((centre_rows, rows), (centre_columns, columns)):
        apart = np.abs(positions[None] - centre[:, None, None])
        far.append(np.minimum(apart, SIZE - apart) ** 2)  # the image goes on at the opposite edge
    distance = np.sqrt(far[0] + far[1])
    nearest = distance.argmin(0)
    first, second = np.sort(distance, 0)[:2]
    colours = np.stack([_hashed(number, draw) for draw in (3, 4, 5)])
    image: Image = colours[:, nearest] * np.clip(second - first, 0, 1)
    return image


def checks() -> Image:
    """Return a chessboard of red and white squares of 4 pixels, with a thin green grid."""
    rows, columns = _positions()
    board = _painted((rows // 4 + columns // 4) % 2, (0.8, 0.1, 0.1), (1.0, 0.95, 0.9))
    is_grid = (rows % 16 == 0) | (columns % 16 == 0)
    return np.where(is_grid, np.array([0.0, 0.5, 0.2])[:, None, None], board)


def style_image(name: str) -> Image:
    """Return a style image, [3, SIZE, SIZE], in steps of 1 / 255: sines may differ in their last bits."""
    image: Image = np.round(STYLE_IMAGES[name]() * 255) / 255
    return image


STYLE_IMAGES: Mapping[str, Callable[[], Image]] = {"waves": waves, "mosaic": mosaic, "checks": checks}
