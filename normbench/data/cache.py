"""Whole data sets on disk, mapped into every process that uses them.

A set is a folder with four files of bare array bytes, named by their hashes, and ``index.json``, which
lists them. The index is written last and replaced in one step, so a set is there whole or not at all; and
as it holds only hashes, shapes and names, nothing in a forged one can run.
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
FIX = "'normbench data' decodes it anew"


class Stored(Frozen):
    """One array file."""

    shape: tuple[int, ...]
    sha256: str


class Index(Frozen):
    """What ``index.json`` holds."""

    schema_version: Literal[1] = 1
    fingerprint: str = Field(description="of the source that the set was decoded from")
    content: str = Field(description="sha256 of the whole set")
    classes: tuple[str, ...]
    arrays: tuple[Stored, ...] = Field(min_length=4, max_length=4, description="in the order of DTYPES")


Stamps = tuple[tuple[int, int, int], ...]


@dataclass(frozen=True)
class Cache:
    """The folder of one set. Reading takes no lock, writing one."""

    folder: Path

    def exists(self) -> bool:
        """Whether a set was ever stored; it may be damaged."""
        return self._index.exists()

    def state(self) -> tuple[Index, Stamps]:
        """The index, and (inode, size, time) of the four files: equal states hold equal bytes.

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
        """The set in ``state()``, mapped read-only. Every byte is checked, once for a state and process.

        Raises:
            DataError: a byte is not what it was when stored.
        """
        return _arrays(self, index, stamps)

    def write(self, arrays: Arrays, fingerprint: str) -> None:
        """Store ``arrays`` in place of what is there; who has the former files mapped keeps them."""
        for left_over in self.folder.glob(".*.tmp"):
            left_over.unlink(missing_ok=True)
        contents = [np.ascontiguousarray(getattr(arrays, name), dtype) for name, dtype in DTYPES.items()]
        stored = tuple(
            Stored(shape=array.shape, sha256=hashlib.sha256(array.data).hexdigest()) for array in contents
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
        """Be the one process that writes; the system frees the lock when that process dies."""

        def wait(how_to_free: str) -> None:
            log(f"{self.folder}: waiting for another process that is decoding{how_to_free}")

        with locked(self.folder, "--data DIR", wait):
            yield

    @property
    def _index(self) -> Path:
        return self.folder / "index.json"

    def paths(self) -> tuple[Path, ...]:
        """All files of a stored set, the index last, as they were written.

        Raises:
            DataError: the index cannot be read, or a file is missing.
        """
        index, _ = self.state()
        return *self.files(index), self._index

    def files(self, index: Index) -> list[Path]:
        """Where the arrays of ``index`` lie."""
        named = zip(DTYPES, index.arrays, strict=True)
        return [self.folder / f"{name}-{stored.sha256[:16]}.bin" for name, stored in named]


@functools.lru_cache(maxsize=8)
def _arrays(cache: Cache, index: Index, stamps: Stamps) -> Arrays:
    if _content(index.classes, index.arrays) != index.content:
        raise DataError(
            f"{cache.folder / 'index.json'}: damaged (it does not give its own content hash); {FIX}"
        )
    files = zip(cache.files(index), index.arrays, DTYPES.values(), stamps, strict=True)
    train_images, train_labels, test_images, test_labels = (
        _mapped(path, stored, np.dtype(dtype), size) for path, stored, dtype, (_, size, _) in files
    )
    return Arrays(train_images, train_labels, test_images, test_labels, index.classes)


def _content(classes: tuple[str, ...], stored: tuple[Stored, ...]) -> str:
    """The hash of a whole set: of its class names and of the shape and hash of every array."""
    parts = {name: [array.shape, array.sha256] for name, array in zip(DTYPES, stored, strict=True)}
    return hashlib.sha256(json.dumps([classes, parts]).encode()).hexdigest()


def _mapped(path: Path, stored: Stored, dtype: np.dtype[Any], size: int) -> NDArray[Any]:
    if size != (expected := math.prod(stored.shape) * dtype.itemsize):
        raise DataError(f"{path}: damaged (expected {expected} bytes, found {size}); {FIX}")
    array = np.memmap(path, dtype, mode="r", shape=stored.shape)
    if (found := hashlib.sha256(array.data).hexdigest()) != stored.sha256:
        raise DataError(f"{path}: damaged (expected sha256 {stored.sha256}, found {found}); {FIX}")
    return array
