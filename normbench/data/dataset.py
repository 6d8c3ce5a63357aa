"""Data sets for trials: decoded once, shared by all processes, with subsets, mean and standard deviation."""

import contextlib
import functools
import math
import os
import shlex
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from normbench.config.catalog.datasets import (
    DATASETS,
    SIZES,
    Arrays,
    DatasetInfo,
    Log,
    NoDataDirectoryError,
    Source,
)
from normbench.config.catalog.datasets import DataError as DataError
from normbench.config.trial import Choice
from normbench.data.cache import Cache, Index, Stamps
from normbench.files import NoHomeError, expanded, user_cache

Indices = NDArray[np.int64]
Moments = tuple[float, float, float]


@dataclass(frozen=True)
class Split:
    """A training, validation or test set.

    Attributes:
        images: uint8 [M, H, W, 3], the whole split, mapped read-only and shared by all processes.
        labels: int64 [M], mapped likewise.
        indices: int64 [N], ascending, of the images in use; a subset has equally many of each class.
    """

    images: NDArray[np.uint8]
    labels: NDArray[np.int64]
    indices: NDArray[np.int64]


@dataclass(frozen=True)
class Dataset:
    """A data set ready for training.

    Attributes:
        mean: of each channel of the training images in use, in [0, 1].
        std: the standard deviation likewise; 1 for a constant channel.
        content: sha256 of the whole set (images, labels and class names), independent of the subset.
        folder: the directory of the set and of what is derived from it, if it is stored.
        validation: the images held out of the training set, if any are.
    """

    train: Split
    test: Split
    classes: tuple[str, ...]
    mean: Moments
    std: Moments
    content: str
    folder: Path | None = None
    validation: Split | None = None

    @property
    def selection(self) -> tuple[str, int, int]:
        """What the training images are known by: equal contents and sizes mean equal images."""
        held_out = 0 if self.validation is None else len(self.validation.indices)
        return self.content, len(self.train.indices), held_out


def default_directory() -> Path:
    """Return ``NORMBENCH_DATA``, or ``normbench`` in the user's cache directory (XDG base directories).

    Raises:
        NoDataDirectoryError: it would be below a home directory, and this user has none.
    """
    try:
        if directory := os.environ.get("NORMBENCH_DATA"):
            return expanded(Path(directory))
        return user_cache() / "normbench"
    except NoHomeError as error:
        raise NoDataDirectoryError(
            f"the directory of data sets is unknown ({error.strerror}); give --data DIR or set NORMBENCH_DATA"
        ) from None


def prepare(dataset: Choice, directory: Path, log: Log = lambda _: None) -> None:
    """Fetch, verify and decode ``dataset`` unless that is done; replace what is damaged or stale.

    Several processes may do this at once: one decodes, and the others wait for it.

    Raises:
        DataError: the data are missing or damaged, or too few for the requested sizes.
        OSError: the data directory cannot be written.
    """
    source: Source = DATASETS[dataset.name].load()
    options, cache = _content_options(dataset), _cache(dataset, directory)
    if not _is_current(cache, source.fingerprint(directory, **options), log):
        with cache.locked(log):
            fingerprint = source.fingerprint(directory, **options)
            if not _is_current(cache, fingerprint):
                cache.write(source.decode(directory, log, **options), fingerprint)
    arrays = cache.arrays(*cache.state())
    _selections(arrays, **_sizes(dataset))


class CacheStatus(NamedTuple):
    """The state of a decoded data set compared with its source.

    Attributes:
        content: hash of the decoded set; None if there is none, or it is damaged.
        doubt: why the source may have other content now, or an empty string.
    """

    content: str | None
    doubt: str


CHANGED = "files have changed since they were decoded"


def cache_status(dataset: Choice, directory: Path) -> CacheStatus:
    """Compare the decoded ``dataset`` with its source, without fetching anything or opening an image.

    Of an image folder, any change of the list, sizes or modification times of its files is detected.
    """
    cache, index = _cache(dataset, directory), None
    if cache.exists():
        with contextlib.suppress(DataError):
            index, _ = cache.state()
    content = None if index is None else index.content
    source: Source = DATASETS[dataset.name].load()
    try:
        fingerprint = source.fingerprint(directory, **_content_options(dataset))
    except (DataError, OSError) as error:
        return CacheStatus(content, str(error))
    return CacheStatus(content, CHANGED if index is not None and index.fingerprint != fingerprint else "")


def display_name(dataset: Choice, directory: Path) -> str:
    """Return the name of a data set, or the path of an image folder."""
    folder = dataset.options.get("folder")
    return dataset.name if folder is None else str(directory / folder)


def files(dataset: Choice, directory: Path, whitenings: Iterable[Choice] = ()) -> tuple[Path, ...]:
    """Return the files that trials read, to copy them to the same paths of another machine.

    Args:
        dataset: the data set that ``load`` reads.
        directory: the data directory.
        whitenings: include the maps of these, if they were computed.

    Raises:
        DataError: ``dataset`` is not prepared.
    """
    cache, loaded = _cache(dataset, directory), load(dataset, directory)
    choices = (choice.model_dump() for choice in whitenings if choice.name != "none")
    maps = (map_file(cache.folder, loaded, **choice) for choice in choices)
    return *cache.paths(), *(path for path in maps if path.exists())


def map_file(folder: Path, dataset: Dataset, name: str, eps: float) -> Path:
    """Return the path of a whitening map of ``dataset``."""
    content, images, held_out = dataset.selection
    split = f"{images}-without-{held_out}" if held_out else f"{images}"
    return folder / "whitening" / f"{content[:16]}-{split}-{name}-{eps!r}.map"


def info(dataset: Choice, directory: Path) -> DatasetInfo:
    """Return the numbers of ``dataset``, of one that is not prepared if its registry entry has them.

    Raises:
        DataError: it is not prepared and its numbers are not known, or it is damaged.
    """
    known = DATASETS[dataset.name].info
    if known is not None and not _cache(dataset, directory).exists():
        options = dataset.options
        held_out = options["validation_size"] or 0
        train, test = options["train_size"] or known.train, options["test_size"] or known.test
        return known._replace(train=train - held_out, test=test, validation=held_out)
    loaded = load(dataset, directory)
    _, images, held_out = loaded.selection
    return DatasetInfo(
        len(loaded.classes), loaded.train.images.shape[1], images, len(loaded.test.indices), held_out
    )


def load(dataset: Choice, directory: Path) -> Dataset:
    """Map the prepared ``dataset`` into memory; check the hashes of its files once per process.

    Raises:
        DataError: it is not prepared, or damaged, or has too few images for the requested sizes.
    """
    cache = _cache(dataset, directory)
    if not cache.exists():
        options = [f"{key}={value}" for key, value in _content_options(dataset).items()]
        command = shlex.join(["normbench", "data", dataset.name, *options, "--data", str(directory)])
        raise DataError(f"{cache.folder}: not decoded yet; run: {command}")
    return _load(cache, *cache.state(), **_sizes(dataset))


def _content_options(dataset: Choice) -> dict[str, Any]:
    """Return the options that determine what is decoded."""
    return {key: value for key, value in dataset.options.items() if key not in SIZES}


def _sizes(dataset: Choice) -> dict[str, int | None]:
    """Return the options that select images of what is decoded."""
    return {key: value for key, value in dataset.options.items() if key in SIZES}


def _cache(dataset: Choice, directory: Path) -> Cache:
    """Return the cache of all settings that determine the content: ``decoded/<name>/<options by name>``."""
    options = [str(value) for _, value in sorted(_content_options(dataset).items())]
    return Cache(Path(directory, "decoded", dataset.name, *options).absolute())


def _is_current(cache: Cache, fingerprint: str, log: Log = lambda _: None) -> bool:
    """Return whether ``cache`` holds a whole set that was decoded from the current source."""
    if not cache.exists():
        return False
    try:
        index, stamps = cache.state()
        cache.arrays(index, stamps)
    except DataError as error:
        log(str(error))
        return False
    return index.fingerprint == fingerprint


@functools.lru_cache(maxsize=8)
def _load(cache: Cache, index: Index, stamps: Stamps, **sizes: int | None) -> Dataset:
    arrays = cache.arrays(index, stamps)
    selected = _selections(arrays, **sizes)
    images, labels = arrays.train_images, arrays.train_labels
    train = Split(images, labels, selected["train"])
    test = Split(arrays.test_images, arrays.test_labels, selected["test"])
    validation = Split(images, labels, selected["validation"]) if "validation" in selected else None
    mean, std = _moments(train)
    return Dataset(train, test, arrays.classes, mean, std, index.content, cache.folder, validation)


def _selections(
    arrays: Arrays, train_size: int | None, test_size: int | None, validation_size: int | None
) -> dict[str, Indices]:
    """Return the indices of the images in use, by split.

    The validation images are those that the smallest training sets would have: they depend on
    ``validation_size`` alone, not on ``train_size``, and fewer of them are part of more.

    Raises:
        DataError: there are too few images for these sizes, or classes would not be equally large.
    """
    selected = {
        "train": _select(arrays, "train", train_size, "train_size"),
        "test": _select(arrays, "test", test_size, "test_size"),
    }
    if validation_size is not None:
        validation = _select(arrays, "train", validation_size, "validation_size")
        train = np.setdiff1d(selected["train"], validation, assume_unique=True)
        if missing := set(range(len(arrays.classes))) - set(arrays.train_labels[train].tolist()):
            raise DataError(
                f"validation_size {validation_size} leaves no image of {arrays.classes[min(missing)]!r} for "
                "training; it must be smaller"
            )
        selected |= {"train": train, "validation": validation}
    return selected


def _select(arrays: Arrays, split: str, size: int | None, option: str) -> Indices:
    """Return the indices of so many images. A smaller subset is part of every larger one."""
    labels, classes = getattr(arrays, f"{split}_labels"), arrays.classes
    if size is None:
        return np.arange(len(labels), dtype=np.int64)
    per_class, rest = divmod(size, len(classes))
    if rest:
        nearest = " or ".join(str(near) for near in (size - rest, size - rest + len(classes)) if near)
        raise DataError(f"{option} {size} is not a multiple of the {len(classes)} classes; use {nearest}")
    counts = np.bincount(labels, minlength=len(classes))
    scarce = int(counts.argmin())
    if counts[scarce] < per_class:
        raise DataError(
            f"{option} {size} needs {per_class} images of each class, and {classes[scarce]!r} has "
            f"{counts[scarce]}; use at most {counts[scarce] * len(classes)}"
        )
    order = np.random.RandomState(0).permutation(len(labels))  # this stream is frozen (NEP 19)
    selected = [order[labels[order] == label][:per_class] for label in range(len(classes))]
    return np.sort(np.concatenate(selected)).astype(np.int64)


def _moments(train: Split) -> tuple[Moments, Moments]:
    """Return mean and standard deviation of each channel, from integer sums that are exact in any order."""
    counts = np.zeros((3, 256), np.int64)
    for start in range(0, len(train.indices), 512):
        pixels = train.images[train.indices[start : start + 512]].reshape(-1, 3)
        counts += [np.bincount(channel, minlength=256) for channel in pixels.T]
    value, n = np.arange(256), int(counts[0].sum())
    red, green, blue = (
        (s / n / 255, math.sqrt(n * q - s * s) / n / 255 or 1.0)
        for s, q in zip((counts @ value).tolist(), (counts @ value**2).tolist(), strict=True)
    )
    return (red[0], green[0], blue[0]), (red[1], green[1], blue[1])
