"""Any tree of images: ``<folder>/train/<class>/…`` and ``<folder>/test/<class>/…`` below the data directory.

Classes and files are in natural order (``2.jpg`` before ``10.jpg``). The last bits of a decoded JPEG depend
on the library that Pillow was built with, so the content hash may differ between machines.
"""

import hashlib
import os
import re
import unicodedata
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NoReturn

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from normbench import machine
from normbench.config.catalog.datasets import Arrays, DataError, Log, Source, TooLarge
from normbench.text import closest, did_you_mean

SUFFIXES = frozenset({".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"})
CHUNK = 250
SPLITS = ("train", "test")
LAYOUT = "an image folder holds train/<class>/… and test/<class>/…"
MAX_LISTED = 10  # folders in a message


def _natural(name: str) -> tuple[object, ...]:
    """Return a sort key with runs of digits as numbers; ties such as ``1`` and ``01`` are sorted by name."""
    parts = re.split(r"(\d+)", name)
    return *((int(part), "") if index % 2 else (-1, part) for index, part in enumerate(parts)), (-1, name)


def _refuse_link(path: str | Path) -> NoReturn:
    raise DataError(f"{path}: a symbolic link; links are not followed, replace it by a copy")


def _entries(directory: Path) -> list[os.DirEntry[str]]:
    """List ``directory`` by name, without hidden files."""
    if directory.is_symlink():
        _refuse_link(directory)
    try:
        with os.scandir(directory) as iterator:
            entries = sorted(
                (entry for entry in iterator if entry.name[0] != "."), key=lambda entry: entry.name
            )
    except (FileNotFoundError, NotADirectoryError):
        raise DataError(f"{directory}: missing; {LAYOUT}") from None
    for entry in entries:
        if entry.is_symlink():
            _refuse_link(entry.path)
    return entries


def _files(directory: Path) -> Iterator[os.DirEntry[str]]:
    for entry in _entries(directory):
        if entry.is_dir():
            yield from _files(Path(entry.path))
        else:
            yield entry


def _root(directory: Path, folder: str) -> Path:
    """Return the tree of a data set.

    Raises:
        DataError: it or a split is missing; the message suggests a folder of a similar name.
    """
    root = directory / folder
    if not root.is_dir():
        others = sorted(split.parent.name for split in directory.glob("*/train") if split.is_dir())
        meant = did_you_mean(folder, others) or (
            f" (available: {', '.join(others[:MAX_LISTED])})" if others else ""
        )
        raise DataError(f"{root / 'train'}: missing{meant}; {LAYOUT}")
    for split in SPLITS:
        if not os.path.lexists(root / split):
            others = [entry.name for entry in _entries(root) if entry.name not in SPLITS]
            other = closest(split, others)
            meant = f" (there is {other!r}, which is not the same name)" if other else ""
            raise DataError(f"{root / split}: missing{meant}; {LAYOUT}")
    return root


def fingerprint(directory: Path, folder: str, image_size: int) -> str:
    """Return a hash of the names, sizes and modification times of all files; open none."""
    root, digest = _root(directory, folder), hashlib.sha256(f"1 {image_size}\n".encode())
    for split in SPLITS:
        for entry in _files(root / split):
            stat, name = entry.stat(), entry.path[len(str(root)) :]
            digest.update(os.fsencode(f"{name}\0{stat.st_size} {stat.st_mtime_ns}\n"))
    return digest.hexdigest()


def decode(directory: Path, log: Log, folder: str, image_size: int) -> Arrays:
    """Read every image as RGB, scaled by its short side and cropped at the centre to ``image_size``.

    Raises:
        DataError: a split or class is missing or empty, their classes differ, or an image is unreadable.
        TooLarge: the images do not fit into memory.
    """
    root = _root(directory, folder)
    classes = _classes(root, log)
    train_paths, train_labels = _images(root / "train", classes, log)
    test_paths, test_labels = _images(root / "test", classes, log)
    paths = train_paths + test_paths
    needed, available = len(paths) * image_size**2 * 3, machine.available_memory()
    if needed > available:
        raise TooLarge(
            f"{root}: {len(paths):,} images at image_size {image_size} take {needed / 1e9:.1f} GB of memory, "
            f"and {available / 1e9:.1f} GB are available"
        )
    images = _decode_all(paths, image_size, log, root)
    return Arrays(images[: len(train_paths)], train_labels, images[len(train_paths) :], test_labels, classes)


def _classes(root: Path, log: Log) -> tuple[str, ...]:
    """Return the names of the classes, which must be the same in both splits.

    Raises:
        DataError: a name is not text, or looks like another, or only one of the splits has it.
    """
    train, test = ({entry.name for entry in _entries(root / split) if entry.is_dir()} for split in SPLITS)
    for split, names in zip(SPLITS, (train, test), strict=True):
        _check_names(root / split, names, log)
    if lone := train ^ test:
        name = min(lone, key=_natural)
        has, lacks, others = ("train", "test", test) if name in train else ("test", "train", train)
        similar = [other for other in sorted(others - {name}) if _folded(other) == _folded(name)]
        if similar:
            raise DataError(
                f"{root / lacks / name}: missing; {_difference(name, similar[0])} of a class in {lacks}, "
                "and must be the same in both"
            )
        raise DataError(
            f"{root / lacks / name}: missing; {has} has this class, and both must have the same classes"
        )
    if not train:
        raise DataError(f"{root / 'train'}: contains no classes; {LAYOUT}")
    return tuple(sorted(train, key=_natural))


def _check_names(split: Path, names: set[str], log: Log) -> None:
    """Refuse names that are not text or look the same, and log those that differ only in letter case."""
    by_form: dict[str, str] = {}
    for name in sorted(names, key=_natural):
        try:
            name.encode()
        except UnicodeEncodeError:
            path = os.fsencode(split / name).decode(errors="backslashreplace")
            message = "the name of this class is not UTF-8; rename the folder in train and test"
            raise DataError(f"{path}: {message}") from None
        other = by_form.setdefault(_folded(name), name)
        if unicodedata.normalize("NFC", other) != unicodedata.normalize("NFC", name):
            log(f"{split}: {name!r} and {other!r} differ only in letter case, and are two classes")
        elif other != name:
            raise DataError(f"{split / name}: {_difference(name, other)} of another class; rename one")


def _folded(name: str) -> str:
    """Return a form that is equal for names that look alike."""
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", name).casefold())


def _difference(name: str, other: str) -> str:
    """Describe how a name differs from one that looks like it."""
    if unicodedata.normalize("NFC", name) != unicodedata.normalize("NFC", other):
        return f"its name differs only in letter case from that ({other!r})"
    return f"its name ({name!a}) differs only in Unicode normalization from that ({other!a})"


def _images(split: Path, classes: tuple[str, ...], log: Log) -> tuple[list[Path], NDArray[np.int64]]:
    """Return the images of a split and their labels; log that other files, by suffix, are skipped."""
    paths: list[Path] = []
    labels: list[int] = []
    others = [Path(entry.path) for entry in _entries(split) if not entry.is_dir()]
    for label, name in enumerate(classes):
        files = [Path(path) for path in sorted((entry.path for entry in _files(split / name)), key=_natural)]
        images = [path for path in files if path.suffix.lower() in SUFFIXES]
        if not images:
            raise DataError(f"{split / name}: contains no images ({', '.join(sorted(SUFFIXES))})")
        others += [path for path in files if path.suffix.lower() not in SUFFIXES]
        paths += images
        labels += [label] * len(images)
    if others:
        log(f"{split}: skipped {len(others)} files that are not images of a class, such as {others[0]}")
    return paths, np.array(labels, np.int64)


def _decode_all(paths: list[Path], side: int, log: Log, root: Path) -> NDArray[np.uint8]:
    images = np.empty((len(paths), side, side, 3), np.uint8)

    def decode_chunk(start: int) -> int:
        for index, path in enumerate(paths[start : start + CHUNK], start):
            images[index] = _pixels(path, side)
        return min(start + CHUNK, len(paths))

    tenths, step = 0, max(len(paths) // 10, 1)
    with ThreadPoolExecutor(os.cpu_count()) as threads:
        for done in threads.map(decode_chunk, range(0, len(paths), CHUNK)):  # an error cancels the rest
            if done // step > tenths:
                tenths = done // step
                log(f"{root}: {done:,} of {len(paths):,} images decoded")
    return images


def _pixels(path: Path, side: int) -> NDArray[np.uint8]:
    """Decode an image to uint8 [side, side, 3]."""
    try:
        with Image.open(path) as image:
            if image.mode.startswith(("I", "F")):
                raise ValueError(f"more than 8 bits a channel, mode {image.mode}; convert it to 8 bits")
            pixels = image.convert("RGB")
    except Exception as error:  # decoders raise many types of errors
        raise DataError(f"{path}: not readable as an image ({error}); replace or remove it") from None
    if pixels.size != (side, side):
        pixels = ImageOps.fit(pixels, (side, side), Image.Resampling.BICUBIC)
    return np.asarray(pixels)


IMAGE_FOLDER = Source(fingerprint, decode)
