"""The data sets and the whitening of their images. ONE FILE = ONE DATASET; the tables list them all.

An entry's target is a ``Source``. Everything else (cache, checks, subsets, mean and deviation) is the same
for all of them and lives in ``decoded.py``.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from normbench.config.registry import Entry, Table, at_least, count, text

if TYPE_CHECKING:  # the table is read without loading numpy
    import numpy as np
    from numpy.typing import NDArray

Say = Callable[[str], None]


class DataError(RuntimeError):
    """Data are missing or damaged. The message names the file, what was expected and found, and the fix."""


class NoDataDirectoryError(ValueError):
    """Nothing says where data sets are kept."""


class TooLarge(DataError):
    """Data that the memory of this machine does not hold at the size that was asked for."""


@dataclass(frozen=True)
class Arrays:
    """A whole data set: images uint8 [M, H, W, 3], labels int64 [M] that index ``classes``."""

    train_images: "NDArray[np.uint8]"
    train_labels: "NDArray[np.int64]"
    test_images: "NDArray[np.uint8]"
    test_labels: "NDArray[np.int64]"
    classes: tuple[str, ...]


@dataclass(frozen=True)
class Source:
    """Where a data set comes from.

    Attributes:
        fingerprint: ``(data directory, **options) -> str``, quick; another value than before means that
            what was decoded is stale.
        decode: ``(data directory, say, **options) -> Arrays``, the same arrays for the same fingerprint.

    Both take the entry's options without ``train_size`` and ``test_size``, and raise ``DataError``.
    """

    fingerprint: Callable[..., str]
    decode: Callable[..., Arrays]


@dataclass(frozen=True)
class Dataset(Entry):
    """A data set.

    Attributes:
        extent: classes, side of the images in pixels, training and test images; None where that depends.
    """

    extent: tuple[int, int, int, int] | None = None


SIZES = {
    "train_size": count(None, "use this many training images, the same number of each class"),
    "test_size": count(None, "use this many test images, the same number of each class"),
}
FOLDER = text(
    "images",
    "name of the tree below the data directory that holds train/<class>/… and test/<class>/…",
    pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$",
)

DATASETS: Table[Dataset] = Table(
    "dataset",
    Dataset(
        "shapes",
        "ten drawn shapes, 32×32 RGB, made by code; nothing is downloaded",
        "normbench.data.shapes:SHAPES",
        SIZES,
        extent=(10, 32, 6_000, 2_000),
    ),
    Dataset(
        "cifar10",
        "CIFAR-10 (Krizhevsky 2009), downloaded by torchvision",
        "normbench.data.cifar:CIFAR10",
        SIZES,
        extent=(10, 32, 50_000, 10_000),
    ),
    Dataset(
        "cifar100",
        "CIFAR-100 (Krizhevsky 2009), downloaded by torchvision",
        "normbench.data.cifar:CIFAR100",
        SIZES,
        extent=(100, 32, 50_000, 10_000),
    ),
    Dataset(
        "folder",
        "any tree of image files, train/<class>/… and test/<class>/…",
        "normbench.data.folder:IMAGE_FOLDER",
        {
            "folder": FOLDER,
            "image_size": count(
                32, "side of the square the images are brought to, in pixels; at most 4096", most=4096
            ),
        }
        | SIZES,
        also=("ImageFolder", "image_directory", "directory"),
    ),
)

EPS = at_least(0, 1e-2, "added to every variance before its square root; pixels are in [0, 1]")

# Side in pixels. Eigenvectors of 6912×6912 values take 100 s of a core, those of 12288×12288 (64) 540 s.
LARGEST_WHITENED = 48

WHITENINGS: Table[Entry] = Table(
    "whitening",
    Entry("none", "each channel has mean 0 and variance 1", "normbench.data.whitening:scaled"),
    Entry(
        "pca",
        "principal components of whole images, each of variance v / (v + eps) where v was its variance",
        "normbench.data.whitening:pca",
        {"eps": EPS},
    ),
    Entry(
        "zca",
        "the same, turned back into images, of the same mean variance",
        "normbench.data.whitening:zca",
        {"eps": EPS},
    ),
)
