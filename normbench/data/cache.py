"""Whole data sets on disk, mapped into every process that uses them.

A set is a folder with four files of raw array bytes, named by their hashes, and ``index.json``, which lists
them. The index is written last and atomically, so that a set is complete or absent. As it contains only
hashes, shapes and names, a forged one cannot execute code.
"""

import contextlib
import functools
import hashlib
import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from normbench.config.catalog.datasets import Arrays, DataError, Log
from normbench.config.trial import Frozen
from normbench.files import locked, write_atomically

DTYPES = {"train_images": "|u1", "train_labels": "<i8", "test_images": "|u1", "test_labels": "<i8"}
FIX = "'normbench data' decodes it again"


class ArrayFile(Frozen):
    """The shape and hash of an array file."""

    shape: tuple[int, ...]
    sha256: str


class Index(Frozen):
    """The content of ``index.json``."""

    schema_version: Literal[1] = 1
    fingerprint: str = Field(description="of the source at the time of decoding")
    content: str = Field(description="sha256 of the whole set")
    classes: tuple[str, ...]
    arrays: tuple[ArrayFile, ...] = Field(min_length=4, max_length=4, description="in the order of DTYPES")


Stamps = tuple[tuple[int, int, int], ...]


@dataclass(frozen=True)
class Cache:
    """The folder of a set. Only writing needs the lock."""

    folder: Path

    def exists(self) -> bool:
        """Return whether a set was stored; it may be damaged."""
        return self._index.exists()

    def state(self) -> tuple[Index, Stamps]:
        """Return the index, and (inode, size, time) of the four files; equal states have equal bytes.

        Raises:
            DataError: the index cannot be read, or a file is missing.
        """
        try:
            index = Index.model_validate_json(self._index.read_bytes())
            files = [path.stat() for path in self.files(index)]
        except (OSError, ValueError) as error:
            raise DataError(f"{self.folder}: damaged ({str(error).splitlines()[0]}); {FIX}") from None
        return index, tuple((file.st_ino, file.st_size, file.st_mtime_ns) for file in files)

    def arrays(self, index: Index, stamps: Stamps) -> Arrays:
        """Map the set of ``state()`` read-only. Hashes are checked once per state and process.

        Raises:
            DataError: a hash differs from the index.
        """
        return _arrays(self, index, stamps)

    def write(self, arrays: Arrays, fingerprint: str) -> None:
        """Replace the set by ``arrays``; processes that have mapped the old files keep them."""
        for temporary in self.folder.glob(".*.tmp"):
            temporary.unlink(missing_ok=True)
        contents = [np.ascontiguousarray(getattr(arrays, name), dtype) for name, dtype in DTYPES.items()]
        stored = tuple(
            ArrayFile(shape=array.shape, sha256=hashlib.sha256(array.data).hexdigest()) for array in contents
        )
        content = _content(arrays.classes, stored)
        index = Index(fingerprint=fingerprint, content=content, classes=arrays.classes, arrays=stored)
        for path, array in zip(self.files(index), contents, strict=True):
            write_atomically(path, array.tobytes())
        write_atomically(self._index, index.model_dump_json(indent=1).encode())
        for stale in set(self.folder.glob("*.bin")).difference(self.files(index)):
            stale.unlink(missing_ok=True)

    @contextlib.contextmanager
    def locked(self, log: Log) -> Iterator[None]:
        """Lock the folder for writing; the system releases the lock when this process dies."""

        def wait(how_to_free: str) -> None:
            log(f"{self.folder}: waiting for another process that is decoding{how_to_free}")

        with locked(self.folder, "--data DIR", wait):
            yield

    @property
    def _index(self) -> Path:
        return self.folder / "index.json"

    def paths(self) -> tuple[Path, ...]:
        """Return all files of the set in the order of writing, the index last.

        Raises:
            DataError: the index cannot be read, or a file is missing.
        """
        index, _ = self.state()
        return *self.files(index), self._index

    def files(self, index: Index) -> list[Path]:
        """Return the paths of the arrays of ``index``."""
        return [
            self.folder / f"{name}-{array.sha256[:16]}.bin"
            for name, array in zip(DTYPES, index.arrays, strict=True)
        ]


@functools.lru_cache(maxsize=8)
def _arrays(cache: Cache, index: Index, stamps: Stamps) -> Arrays:
    if _content(index.classes, index.arrays) != index.content:
        raise DataError(
            f"{cache.folder / 'index.json'}: damaged (its content hash is not that of its arrays); {FIX}"
        )
    files = zip(cache.files(index), index.arrays, DTYPES.values(), stamps, strict=True)
    train_images, train_labels, test_images, test_labels = (
        _map(path, array, np.dtype(dtype), size) for path, array, dtype, (_, size, _) in files
    )
    return Arrays(train_images, train_labels, test_images, test_labels, index.classes)


def _content(classes: tuple[str, ...], stored: tuple[ArrayFile, ...]) -> str:
    """Return the hash of a whole set: of its class names and of the shape and hash of every array."""
    parts = {name: [array.shape, array.sha256] for name, array in zip(DTYPES, stored, strict=True)}
    return hashlib.sha256(json.dumps([classes, parts]).encode()).hexdigest()


def _map(path: Path, stored: ArrayFile, dtype: np.dtype[Any], size: int) -> NDArray[Any]:
    if size != (expected := math.prod(stored.shape) * dtype.itemsize):
        raise DataError(f"{path}: damaged (expected {expected} bytes, found {size}); {FIX}")
    array = np.memmap(path, dtype, mode="r", shape=stored.shape)
    if (sha256 := hashlib.sha256(array.data).hexdigest()) != stored.sha256:
        raise DataError(f"{path}: damaged (expected sha256 {stored.sha256}, found {sha256}); {FIX}")
    return array
