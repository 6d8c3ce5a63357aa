"""Data sets as trials use them: decoded once, shared by all processes, cut to size, with mean and std."""

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

from normbench.config.catalog.datasets import DATASETS, Arrays, DatasetInfo, Log, NoDataDirectoryError, Source
from normbench.config.catalog.datasets import DataError as DataError
from normbench.config.trial import Choice
from normbench.data.cache import Cache, Index, Stamps
from normbench.files import NoHomeError, expanded, user_cache

# These options choose among the images; all others decide what is decoded.
SIZES = {"train": "train_size", "test": "test_size"}
Moments = tuple[float, float, float]


@dataclass(frozen=True)
class Split:
    """A training or test set.

    Attributes:
        images: uint8 [M, H, W, 3], the whole split, mapped read-only and shared by all processes.
        labels: int64 [M], mapped likewise.
        indices: int64 [N], ascending: which of the M are used; of a subset, the same number of each class.
    """

    images: NDArray[np.uint8]
    labels: NDArray[np.int64]
    indices: NDArray[np.int64]


@dataclass(frozen=True)
class Dataset:
    """A data set ready for training.

    Attributes:
        mean: of each channel of the used training images, in [0, 1].
        std: the standard deviation likewise; 1 for a channel that is constant.
        content: sha256 of the whole set (images, labels and class names), whatever part of it is used.
        folder: where the set lies, and what is derived from it; None: nowhere.
    """

    train: Split
    test: Split
    classes: tuple[str, ...]
    mean: Moments
    std: Moments
    content: str
    folder: Path | None = None


def default_directory() -> Path:
    """``NORMBENCH_DATA``, or ``normbench`` in the user's cache directory (XDG base directories).

    Raises:
        NoDataDirectoryError: it would be below a home directory, and this user has none.
    """
    try:
        if chosen := os.environ.get("NORMBENCH_DATA"):
            return expanded(Path(chosen))
        return user_cache() / "normbench"
    except NoHomeError as error:
        raise NoDataDirectoryError(
            f"where data sets are kept is not known ({error.strerror}); give --data DIR or set NORMBENCH_DATA"
        ) from None


def prepare(dataset: Choice, directory: Path, log: Log = lambda _: None) -> None:
    """Fetch, verify and decode ``dataset`` unless that is done; replace what is damaged or stale.

    Any number of processes may do this at once: one decodes, the others wait for it.

    Raises:
        DataError: the data are missing or damaged, or too few for the sizes asked for.
        OSError: the data directory cannot be written.
    """
    source: Source = DATASETS[dataset.name].load()
    options, cache = _content_options(dataset), _cache(dataset, directory)
    if not _is_current(cache, source.fingerprint(directory, **options), log):
        with cache.locked(log):
            fingerprint = source.fingerprint(directory, **options)
            if not _is_current(cache, fingerprint):
                cache.write(source.decode(directory, log, **options), fingerprint)
    whole = cache.arrays(*cache.state())
    for split, option in SIZES.items():
        _used(whole, split, dataset.options[option])


class Standing(NamedTuple):
    """What is known of a data set without decoding it.

    Attributes:
        content: hash of the set that was decoded; None where none was, or it is damaged.
        doubt: why that may not be what the source holds now; empty where it is.
    """

    content: str | None
    doubt: str


CHANGED = "files have changed since they were decoded"


def standing(dataset: Choice, directory: Path) -> Standing:
    """How what was decoded of ``dataset`` stands to its source; nothing is fetched, no image is opened.

    Of an image folder any other list, size or modification time of its files is noticed.
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
        return Standing(content, str(error))
    return Standing(content, CHANGED if index is not None and index.fingerprint != fingerprint else "")


def source_of(dataset: Choice, directory: Path) -> str:
    """What a user calls it: its name; of an image folder, its path."""
    folder = dataset.options.get("folder")
    return dataset.name if folder is None else str(directory / folder)


def files(dataset: Choice, directory: Path, whitenings: Iterable[Choice] = ()) -> tuple[Path, ...]:
    """The files that trials read; at the same paths of another machine, they find the same data.

    Args:
        dataset: what ``load`` reads.
        directory: the data directory.
        whitenings: whose maps lie beside it, where they have been made.

    Raises:
        DataError: ``dataset`` is not prepared.
    """
    cache, found = _cache(dataset, directory), load(dataset, directory)
    maps = (map_file(cache.folder, found, **each.model_dump()) for each in whitenings if each.name != "none")
    return *cache.paths(), *(path for path in maps if path.exists())


def map_file(folder: Path, dataset: Dataset, name: str, eps: float) -> Path:
    """Where a whitening of ``dataset`` lies beside its images.

    Equal contents and sizes mean equal images: a smaller subset is always the same one.
    """
    return folder / "whitening" / f"{dataset.content[:16]}-{len(dataset.train.indices)}-{name}-{eps!r}.map"


def info(dataset: Choice, directory: Path) -> DatasetInfo:
    """How much there is of ``dataset``: of a prepared one by looking, else as far as it is known beforehand.

    Raises:
        DataError: it is not prepared, and not known; or damaged.
    """
    known = DATASETS[dataset.name].info
    if known is not None and not _cache(dataset, directory).exists():
        classes, size, *sizes = known
        chosen = (dataset.options[option] for option in SIZES.values())
        return DatasetInfo(classes, size, *(some or all_ for some, all_ in zip(chosen, sizes, strict=True)))
    found = load(dataset, directory)
    images = len(found.train.indices), len(found.test.indices)
    return DatasetInfo(len(found.classes), found.train.images.shape[1], *images)


def load(dataset: Choice, directory: Path) -> Dataset:
    """The prepared ``dataset``, mapped into memory; the hashes of its files are checked once per process.

    Raises:
        DataError: it is not prepared, or damaged, or has too few images for the sizes asked for.
    """
    cache = _cache(dataset, directory)
    if not cache.exists():
        options = [f"{key}={value}" for key, value in _content_options(dataset).items()]
        command = shlex.join(["normbench", "data", dataset.name, *options, "--data", str(directory)])
        raise DataError(f"{cache.folder}: not decoded yet, which is done by: {command}")
    return _decoded(cache, *cache.state(), *(dataset.options[option] for option in SIZES.values()))


def _content_options(dataset: Choice) -> dict[str, Any]:
    return {key: value for key, value in dataset.options.items() if key not in SIZES.values()}


def _cache(dataset: Choice, directory: Path) -> Cache:
    """One for all that determines the content: ``decoded/<name>/<options in the order of their names>``."""
    options = _content_options(dataset)
    return Cache(
        Path(directory, "decoded", dataset.name, *(str(options[key]) for key in sorted(options))).absolute()
    )


def _is_current(cache: Cache, fingerprint: str, log: Log = lambda _: None) -> bool:
    """Whether ``cache`` holds a whole set, decoded from what is there now."""
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
def _decoded(
    cache: Cache, index: Index, stamps: Stamps, train_size: int | None, test_size: int | None
) -> Dataset:
    whole = cache.arrays(index, stamps)
    train = Split(whole.train_images, whole.train_labels, _used(whole, "train", train_size))
    test = Split(whole.test_images, whole.test_labels, _used(whole, "test", test_size))
    mean, std = _moments(train)
    return Dataset(train, test, whole.classes, mean, std, index.content, cache.folder)


def _used(whole: Arrays, split: str, size: int | None) -> NDArray[np.int64]:
    """Indices of the images in use. A smaller subset is part of every larger one."""
    labels, classes = getattr(whole, f"{split}_labels"), whole.classes
    if size is None:
        return np.arange(len(labels), dtype=np.int64)
    each, rest = divmod(size, len(classes))
    if rest:
        nearest = " or ".join(str(near) for near in (size - rest, size - rest + len(classes)) if near)
        raise DataError(
            f"{split}_size {size} is not a multiple of the {len(classes)} classes; take {nearest}"
        )
    counts = np.bincount(labels, minlength=len(classes))
    scarce = int(counts.argmin())
    if counts[scarce] < each:
        raise DataError(
            f"{split}_size {size} needs {each} images of each class, and there are {counts[scarce]} of "
            f"{classes[scarce]!r}; take at most {counts[scarce] * len(classes)}"
        )
    order = np.random.RandomState(0).permutation(len(labels))  # a stream that is frozen for good (NEP 19)
    chosen = [order[labels[order] == label][:each] for label in range(len(classes))]
    return np.sort(np.concatenate(chosen)).astype(np.int64)


def _moments(train: Split) -> tuple[Moments, Moments]:
    """Mean and deviation of each channel over the used images, from whole-number sums: exact in any order."""
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
