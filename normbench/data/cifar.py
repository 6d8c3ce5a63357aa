"""CIFAR-10 and CIFAR-100 (Krizhevsky 2009), 60,000 images of 32×32, from the official archives.

Addresses, names and the download are torchvision's. Files are read from the unpacked folder if the data
directory has it, else from the archive, which is never unpacked to disk. Bytes are parsed only after their
sha256 was verified, and by a reader of the types in the official files alone: no name in a pickle can execute
code.
"""

import hashlib
import http.client
import io
import pickle
import tarfile
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from normbench.config.catalog.datasets import Arrays, DataError, Log, Source

SHAPE = 3, 32, 32
MAX_BYTES = 200_000_000  # of a file to read and hash; the largest official one has 170 million
SHA256 = {  # Keras publishes the same of the archives; the files also have the md5 that torchvision publishes
    "cifar-10-python.tar.gz": "6d958be074577803d12ecdefd02955f39262c83c16fe9348329d7fe0b5c001ce",
    "data_batch_1": "54636561a3ce25bd3e19253c6b0d8538147b0ae398331ac4a2d86c6d987368cd",
    "data_batch_2": "766b2cef9fbc745cf056b3152224f7cf77163b330ea9a15f9392beb8b89bc5a8",
    "data_batch_3": "0f00d98ebfb30b3ec0ad19f9756dc2630b89003e10525f5e148445e82aa6a1f9",
    "data_batch_4": "3f7bb240661948b8f4d53e36ec720d8306f5668bd0071dcb4e6c947f78e9682b",
    "data_batch_5": "d91802434d8376bbaeeadf58a737e3a1b12ac839077e931237e0dcd43adcb154",
    "test_batch": "f53d8d457504f7cff4ea9e021afcf0e0ad8e24a91f3fc42091b8adef61157831",
    "batches.meta": "f962466ef690d46b226450fb9aadc74ba4bc64a76aa526b5827fe4bc5c7125cb",
    "cifar-100-python.tar.gz": "85cd44d02ba6437773c5bbd22e183051d648de2e7d6b014e1ef29b855ba677a7",
    "train": "735e79b04f092ca3d2e6d07f368c0a7d70d48c48d28865950cc24454cf45129b",
    "test": "4b67687d9933c4db8f0831104447f15b93774f4f464bd0516f0f0f2ac83b7864",
    "meta": "a5d4786345c961390f865e93b434dbd5c6904ce880667e0cb888c97d449f28b9",
}


@dataclass(frozen=True)
class Release:
    """The official files of a data set; ``sha256`` has all of ``train``, ``test`` and ``meta``."""

    url: str
    archive: str
    archive_sha256: str
    folder: str
    train: tuple[str, ...]
    test: tuple[str, ...]
    meta: str
    sha256: dict[str, str]
    labels_key: bytes
    names_key: bytes


def official(name: str, labels_key: bytes) -> Release:
    """Return the release of ``torchvision.datasets.<name>``."""
    import torchvision

    published = getattr(torchvision.datasets, name)
    train, test = (tuple(file for file, _ in files) for files in (published.train_list, published.test_list))
    meta = published.meta
    return Release(
        published.url,
        published.filename,
        SHA256[published.filename],
        published.base_folder,
        train,
        test,
        meta["filename"],
        {file: SHA256[file] for file in (*train, *test, meta["filename"])},
        labels_key,
        meta["key"].encode(),
    )


def read(release: Release, directory: Path, log: Log) -> Arrays:
    """Find or download ``release``, verify and parse it.

    Raises:
        DataError: a file is missing, has another hash than published, or has unexpected content.
    """
    folder, archive = directory / release.folder, directory / release.archive
    parent = folder
    if folder.is_dir():
        log(f"{folder}: verifying and reading")
        contents = {
            name: _verified(folder / name, _read_bytes(folder / name), sha256)
            for name, sha256 in release.sha256.items()
        }
    else:
        if not archive.exists():
            _download(release, directory, log)
        log(f"{archive}: verifying and reading")
        contents = _from_archive(release, archive)
        parent = archive / release.folder
    values = {name: _parse(content, parent / name) for name, content in contents.items()}
    classes = _classes(values[release.meta], parent / release.meta, release.names_key)
    train, test = (
        [_batch(values[name], parent / name, release.labels_key, len(classes)) for name in names]
        for names in (release.train, release.test)
    )
    return Arrays(
        np.concatenate([images for images, _ in train]),
        np.concatenate([labels for _, labels in train]),
        np.concatenate([images for images, _ in test]),
        np.concatenate([labels for _, labels in test]),
        classes,
    )


def _download(release: Release, directory: Path, log: Log) -> None:
    """Download the archive into ``directory``, completely or not at all."""
    from torchvision.datasets.utils import download_url

    log(f"{release.url}: downloading into {directory}")
    directory.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=directory, prefix=".download-") as partial:
        try:
            download_url(release.url, partial, release.archive)
            _check_archive(release, Path(partial, release.archive))
        except (OSError, RuntimeError, http.client.HTTPException, DataError) as error:
            raise DataError(
                f"{release.url}: download failed ({error}); put {release.archive}, "
                f"or its folder {release.folder}, into {directory}"
            ) from None
        Path(partial, release.archive).replace(directory / release.archive)


def _read_bytes(path: Path) -> bytes:
    fix = f"delete {path.parent} to download it again"
    try:
        if (size := path.stat().st_size) > MAX_BYTES:
            raise DataError(f"{path}: {size} bytes, more than any official file has; {fix}")
        return path.read_bytes()
    except FileNotFoundError:
        raise DataError(f"{path}: missing; {fix}") from None


def _verified(path: Path, content: bytes, sha256: str) -> bytes:
    actual = hashlib.sha256(content).hexdigest()
    if actual != sha256:
        raise DataError(
            f"{path}: expected sha256 {sha256}, found {actual} ({len(content)} bytes); "
            f"delete {path.parent} to download it again"
        )
    return content


def _from_archive(release: Release, archive: Path) -> dict[str, bytes]:
    """Read the files of the release into memory."""
    _check_archive(release, archive)
    contents = {}
    with tarfile.open(archive) as tar:
        for member in tar:
            name = member.name.removeprefix(f"{release.folder}/")
            if name in release.sha256 and member.isreg() and (packed := tar.extractfile(member)):
                contents[name] = _verified(archive / member.name, packed.read(), release.sha256[name])
    if missing := release.sha256.keys() - contents.keys():
        fix = f"delete {archive} to download it again"
        raise DataError(f"{archive}: does not contain {release.folder}/{min(missing)}; {fix}")
    return contents


def _check_archive(release: Release, archive: Path) -> None:
    with archive.open("rb") as file:
        actual = hashlib.file_digest(file, "sha256").hexdigest()
    if actual != release.archive_sha256:
        raise DataError(
            f"{archive}: expected sha256 {release.archive_sha256}, found {actual} "
            f"({archive.stat().st_size} bytes); delete {archive} to download it again"
        )


class _Inert:
    """A placeholder for a NumPy object in a pickle, which keeps its arguments and state."""

    def __init__(self, *arguments: Any) -> None:
        self.arguments = arguments
        self.state: Any = None

    def __setstate__(self, state: Any) -> None:
        self.state = state


class _Reader(pickle.Unpickler):
    """A reader of containers, numbers, bytes and arrays (as placeholders) that refuses every other name."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in {
            ("numpy.core.multiarray", "_reconstruct"),
            ("numpy", "ndarray"),
            ("numpy", "dtype"),
        }:
            return _Inert
        raise DataError(f"it refers to {module}.{name}, which no CIFAR file does")


def _parse(content: bytes, path: Path) -> dict[bytes, Any]:
    try:
        values = _Reader(io.BytesIO(content), encoding="bytes").load()
    except Exception as error:  # a pickle can fail in any way
        raise DataError(f"{path}: refused, not a CIFAR file ({error})") from None
    if not isinstance(values, dict):
        raise DataError(f"{path}: refused, not a CIFAR file (not a dictionary)")
    return values


def _classes(meta: dict[bytes, Any], path: Path, names_key: bytes) -> tuple[str, ...]:
    names = meta.get(names_key)
    if not isinstance(names, list) or not names or not all(isinstance(name, bytes) for name in names):
        raise DataError(f"{path}: expected a list of class names as {names_key.decode()!r}")
    return tuple(name.decode() for name in names)


def _batch(
    values: dict[bytes, Any], path: Path, labels_key: bytes, classes: int
) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Return images uint8 [M, 32, 32, 3] and labels int64 [M] of a batch file."""
    rows = _rows(values.get(b"data"), path)
    labels = values.get(labels_key)
    if not isinstance(labels, list) or len(labels) != len(rows):
        raise DataError(f"{path}: expected a list of {len(rows)} labels as {labels_key.decode()!r}")
    if wrong := [label for label in labels if type(label) is not int or not 0 <= label < classes]:
        raise DataError(f"{path}: expected labels from 0 to {classes - 1}, found {wrong[0]!r}")
    return rows.reshape(-1, *SHAPE).transpose(0, 2, 3, 1), np.array(labels, np.int64)


def _rows(array: Any, path: Path) -> NDArray[np.uint8]:
    """Return a placeholder's array, uint8 [M, 3072]; state: (version, shape, dtype, Fortran order, bytes)."""
    match array:
        case _Inert(
            state=(
                _,
                (int(count), int(width)),
                _Inert(arguments=(b"u1", *_)),
                bool(columns_first),
                bytes(raw),
            )
        ):
            if width == np.prod(SHAPE) and count > 0 and len(raw) == count * width:
                return np.frombuffer(raw, np.uint8).reshape(
                    (count, width), order="F" if columns_first else "C"
                )
            raise DataError(
                f"{path}: expected rows of 3072 bytes, found shape ({count}, {width}) and {len(raw)} bytes"
            )
    raise DataError(f"{path}: expected a uint8 array of rows of 3072 bytes as 'data'")


def _source(name: str, labels_key: bytes) -> Source:
    """Return the source of a release; its fingerprint is constant, since the hashes determine the content."""
    return Source(
        fingerprint=lambda _directory: f"{name}, official files",
        decode=lambda directory, log: read(official(name, labels_key), directory, log),
    )


CIFAR10 = _source("CIFAR10", b"labels")
CIFAR100 = _source("CIFAR100", b"fine_labels")
