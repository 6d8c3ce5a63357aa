"""MNIST (LeCun et al. 1998), 70,000 grey images of 28×28 digits, from the official gzipped idx files.

Addresses, names and md5 are torchvision's, and the files lie where it puts them, in ``MNIST/raw``. Bytes are
parsed only after their md5 was verified. A grey value is stored as three equal channels, the format of every
data set, so that all networks and tasks take these images; the task ``sequence`` reads one of the three.
"""

import gzip
import hashlib
import http.client
import io
import tempfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from normbench.config.catalog.datasets import Arrays, DataError, Log, Source

SIDE, CLASSES = 28, 10
FOLDER = "MNIST/raw"
UNSIGNED_BYTES = 0x08  # the type in an idx header
MAX_BYTES = 100_000_000  # of a file, packed or not; the largest official one has 47 million
PARTS = {  # of a split, and the number of dimensions of its array
    "train-images-idx3-ubyte.gz": 3,
    "train-labels-idx1-ubyte.gz": 1,
    "t10k-images-idx3-ubyte.gz": 3,
    "t10k-labels-idx1-ubyte.gz": 1,
}


@dataclass(frozen=True)
class Release:
    """The official files: their addresses, less the name, and their md5 by name."""

    mirrors: tuple[str, ...]
    md5: Mapping[str, str]


def official() -> Release:
    """Return the release of ``torchvision.datasets.MNIST``."""
    import torchvision

    published = torchvision.datasets.MNIST
    return Release(tuple(published.mirrors), dict(published.resources))


def read(release: Release, directory: Path, log: Log) -> Arrays:
    """Find or download the files of ``release``, verify and parse them.

    Raises:
        DataError: a file is missing, has another md5 than published, or has unexpected content.
    """
    folder = directory / FOLDER
    for name in release.md5:
        if not (folder / name).exists():
            _download(release, name, folder, log)
    log(f"{folder}: verifying and reading")
    arrays = []
    for name, dimensions in PARTS.items():
        path = folder / name
        arrays.append(_array(_unpacked(_verified(path, release.md5[name]), path), dimensions, path))
    train_images, train_labels, test_images, test_labels = arrays
    classes = tuple(str(digit) for digit in range(CLASSES))
    train = _split(train_images, train_labels, folder)
    return Arrays(*train, *_split(test_images, test_labels, folder), classes)


def _download(release: Release, name: str, folder: Path, log: Log) -> None:
    """Download a file into ``folder``, completely or not at all, from the first mirror that has it."""
    from torchvision.datasets.utils import download_url

    folder.mkdir(parents=True, exist_ok=True)
    errors = []
    for mirror in release.mirrors:
        log(f"{mirror}{name}: downloading into {folder}")
        with tempfile.TemporaryDirectory(dir=folder, prefix=".download-") as partial:
            try:
                download_url(mirror + name, partial, name)
                _verified(Path(partial, name), release.md5[name])
            except (OSError, RuntimeError, http.client.HTTPException, DataError) as error:
                errors.append(f"{mirror}{name}: download failed ({error})")
                continue
            Path(partial, name).replace(folder / name)
            return
    raise DataError(f"{'; '.join(errors)}; put {name} into {folder}")


def _verified(path: Path, md5: str) -> bytes:
    fix = f"delete {path} to download it again"
    if (size := path.stat().st_size) > MAX_BYTES:
        raise DataError(f"{path}: {size} bytes, more than any official file has; {fix}")
    content = path.read_bytes()
    actual = hashlib.md5(content, usedforsecurity=False).hexdigest()
    if actual != md5:
        raise DataError(f"{path}: expected md5 {md5}, found {actual} ({size} bytes); {fix}")
    return content


def _unpacked(content: bytes, path: Path) -> bytes:
    try:
        with gzip.open(io.BytesIO(content)) as file:
            unpacked = file.read(MAX_BYTES + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path}: refused, not a gzip file ({error})") from None
    if len(unpacked) > MAX_BYTES:
        raise DataError(f"{path}: refused, it unpacks to more than {MAX_BYTES} bytes")
    return unpacked


def _array(content: bytes, dimensions: int, path: Path) -> NDArray[np.uint8]:
    """Return the array of an idx file: 0, 0, type, dimensions; a big-endian length for each; the values."""
    start = 4 + 4 * dimensions
    if content[:4] != bytes((0, 0, UNSIGNED_BYTES, dimensions)) or len(content) < start:
        raise DataError(f"{path}: refused, not an idx file of bytes in {dimensions} dimensions")
    shape = [int(length) for length in np.frombuffer(content, ">u4", dimensions, offset=4)]
    if dimensions > 1 and shape[1:] != [SIDE, SIDE]:
        raise DataError(f"{path}: expected images of {SIDE}×{SIDE}, found {'×'.join(map(str, shape[1:]))}")
    if not shape[0] or len(content) - start != (expected := int(np.prod(shape))):
        raise DataError(f"{path}: expected {shape} values, found {len(content) - start}")
    return np.frombuffer(content, np.uint8, expected, offset=start).reshape(shape)


def _split(
    images: NDArray[np.uint8], labels: NDArray[np.uint8], folder: Path
) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Return images uint8 [M, 28, 28, 3] and labels int64 [M]."""
    if len(images) != len(labels):
        raise DataError(f"{folder}: expected a label for each of {len(images)} images, found {len(labels)}")
    if (largest := int(labels.max())) >= CLASSES:
        raise DataError(f"{folder}: expected labels from 0 to {CLASSES - 1}, found {largest}")
    return np.repeat(images[..., None], 3, axis=3), labels.astype(np.int64)


MNIST = Source(
    fingerprint=lambda _directory: "MNIST, official files",
    decode=lambda directory, log: read(official(), directory, log),
)
