"""Any tree of images: ``<folder>/train/<class>/…`` and ``<folder>/test/<class>/…`` below the data directory.

Classes and files come in natural order (``2.jpg`` before ``10.jpg``). How a JPEG decodes to the last bit is
up to the library that Pillow was built with, so another machine may give another content hash.
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

from normbench import memory
from normbench.config.catalog.datasets import Arrays, DataError, Log, Source, TooLarge
from normbench.text import closest, did_you_mean

SUFFIXES = frozenset({".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"})
CHUNK = 250
SPLITS = ("train", "test")
LAYOUT = "an image folder holds train/<class>/… and test/<class>/…"
MOST_LISTED = 10  # folders that a message names


def _natural(name: str) -> tuple[object, ...]:
    """Sort key: runs of digits count as numbers; the name itself settles ties such as ``1`` and ``01``."""
    parts = re.split(r"(\d+)", name)
    return *((int(part), "") if index % 2 else (-1, part) for index, part in enumerate(parts)), (-1, name)


def _refuse_link(path: str | Path) -> NoReturn:
    raise DataError(f"{path}: a symbolic link; links are not followed, put a copy in its place")


def _entries(directory: Path) -> list[os.DirEntry[str]]:
    """What lies in ``directory``, by name, without hidden files."""
    if directory.is_symlink():
        _refuse_link(directory)
    try:
        with os.scandir(directory) as entries:
            shown = sorted((entry for entry in entries if entry.name[0] != "."), key=lambda entry: entry.name)
    except (FileNotFoundError, NotADirectoryError):
        raise DataError(f"{directory}: missing; {LAYOUT}") from None
    for entry in shown:
        if entry.is_symlink():
            _refuse_link(entry.path)
    return shown


def _files(directory: Path) -> Iterator[os.DirEntry[str]]:
    for entry in _entries(directory):
        if entry.is_dir():
            yield from _files(Path(entry.path))
        else:
            yield entry


def _root(directory: Path, folder: str) -> Path:
    """The tree of a data set.

    Raises:
        DataError: it or a split is missing; the message names what may have been meant.
    """
    root = directory / folder
    if not root.is_dir():
        others = sorted(split.parent.name for split in directory.glob("*/train") if split.is_dir())
        meant = did_you_mean(folder, others) or (
            f" (there: {', '.join(others[:MOST_LISTED])})" if others else ""
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
    """Of the names, sizes and modification times of all files; no file is opened."""
    root, digest = _root(directory, folder), hashlib.sha256(f"1 {image_size}\n".encode())
    for split in SPLITS:
        for entry in _files(root / split):
            stat, name = entry.stat(), entry.path[len(str(root)) :]
            digest.update(os.fsencode(f"{name}\0{stat.st_size} {stat.st_mtime_ns}\n"))
    return digest.hexdigest()


def decode(directory: Path, log: Log, folder: str, image_size: int) -> Arrays:
    """Read every image as RGB; one of another size is scaled (short side) and cropped at its centre.

    Raises:
        DataError: a split or class is missing or empty, their classes differ, or an image is unreadable.
        TooLarge: the images do not fit into memory.
    """
    root = _root(directory, folder)
    classes = _classes(root, log)
    train_paths, train_labels = _listed(root / "train", classes, log)
    test_paths, test_labels = _listed(root / "test", classes, log)
    paths = train_paths + test_paths
    needed, there = len(paths) * image_size**2 * 3, memory.available()
    if needed > there:
        raise TooLarge(
            f"{root}: {len(paths):,} images at image_size {image_size} take {needed / 1e9:.1f} GB of memory, "
            f"and {there / 1e9:.1f} GB are available"
        )
    images = _decode_all(paths, image_size, log, root)
    return Arrays(images[: len(train_paths)], train_labels, images[len(train_paths) :], test_labels, classes)


def _classes(root: Path, log: Log) -> tuple[str, ...]:
    """The names of the classes, which both splits have.

    Raises:
        DataError: a name is not text, or looks like another, or only one of the splits has it.
    """
    train, test = ({entry.name for entry in _entries(root / split) if entry.is_dir()} for split in SPLITS)
    for split, names in zip(SPLITS, (train, test), strict=True):
        _tell_apart(root / split, names, log)
    if lone := train ^ test:
        name = min(lone, key=_natural)
        has, lacks, there = ("train", "test", test) if name in train else ("test", "train", train)
        looks = [other for other in sorted(there - {name}) if _same(other) == _same(name)]
        if looks:
            raise DataError(
                f"{root / lacks / name}: missing; {_unlike(name, looks[0])} of a class in {lacks}, "
                "and must be the same in both"
            )
        raise DataError(
            f"{root / lacks / name}: missing; {has} has this class, and both must have the same classes"
        )
    if not train:
        raise DataError(f"{root / 'train'}: holds no classes; {LAYOUT}")
    return tuple(sorted(train, key=_natural))


def _tell_apart(split: Path, names: set[str], log: Log) -> None:
    """Refuse names that are no text, and such as look the same; tell of those that nearly do."""
    alike: dict[str, str] = {}
    for name in sorted(names, key=_natural):
        try:
            name.encode()
        except UnicodeEncodeError:
            shown = os.fsencode(split / name).decode(errors="backslashreplace")
            words = "the name of this class is not UTF-8; rename the folder in train and test"
            raise DataError(f"{shown}: {words}") from None
        other = alike.setdefault(_same(name), name)
        if unicodedata.normalize("NFC", other) != unicodedata.normalize("NFC", name):
            log(f"{split}: {name!r} and {other!r} differ only in letter case, and are two classes")
        elif other != name:
            raise DataError(f"{split / name}: {_unlike(name, other)} of another class; rename one")


def _same(name: str) -> str:
    """What names that look alike have in common."""
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", name).casefold())


def _unlike(name: str, other: str) -> str:
    """How a name differs from one that looks like it, with the characters that tell them apart."""
    if unicodedata.normalize("NFC", name) != unicodedata.normalize("NFC", other):
        return f"its name differs only in letter case from that ({other!r})"
    return f"its name ({name!a}) differs only in Unicode normalization from that ({other!a})"


def _listed(split: Path, classes: tuple[str, ...], log: Log) -> tuple[list[Path], NDArray[np.int64]]:
    """The images of one split and their labels; what is no image by its suffix is passed over, aloud."""
    paths: list[Path] = []
    labels: list[int] = []
    others = [Path(entry.path) for entry in _entries(split) if not entry.is_dir()]
    for label, name in enumerate(classes):
        found = [Path(path) for path in sorted((entry.path for entry in _files(split / name)), key=_natural)]
        images = [path for path in found if path.suffix.lower() in SUFFIXES]
        if not images:
            raise DataError(f"{split / name}: holds no images ({', '.join(sorted(SUFFIXES))})")
        others += [path for path in found if path.suffix.lower() not in SUFFIXES]
        paths += images
        labels += [label] * len(images)
    if others:
        log(f"{split}: passed over {len(others)} files that are no images in a class, such as {others[0]}")
    return paths, np.array(labels, np.int64)


def _decode_all(paths: list[Path], side: int, log: Log, root: Path) -> NDArray[np.uint8]:
    images = np.empty((len(paths), side, side, 3), np.uint8)

    def decode_chunk(start: int) -> int:
        for index, path in enumerate(paths[start : start + CHUNK], start):
            images[index] = _pixels(path, side)
        return min(start + CHUNK, len(paths))

    said, step = 0, max(len(paths) // 10, 1)
    with ThreadPoolExecutor(os.cpu_count()) as threads:
        for done in threads.map(decode_chunk, range(0, len(paths), CHUNK)):  # a failure cancels what is left
            if done // step > said:
                said = done // step
                log(f"{root}: {done:,} of {len(paths):,} images decoded")
    return images


def _pixels(path: Path, side: int) -> NDArray[np.uint8]:
    """One image, uint8 [side, side, 3]."""
    try:
        with Image.open(path) as image:
            if image.mode.startswith(("I", "F")):
                raise ValueError(f"more than 8 bits a channel, mode {image.mode}; convert it to 8 bits")
            pixels = image.convert("RGB")
    except Exception as error:  # a damaged file makes the decoders fail in many ways
        raise DataError(f"{path}: not readable as an image ({error}); replace or remove it") from None
    if pixels.size != (side, side):
        pixels = ImageOps.fit(pixels, (side, side), Image.Resampling.BICUBIC)
    return np.asarray(pixels)


IMAGE_FOLDER = Source(fingerprint, decode)
