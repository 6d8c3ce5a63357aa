"""Whitening: images whose pixels have mean 0 and no correlation, by a linear map of whole images.

It is the ideal that batch normalization approximates channel by channel (Ioffe & Szegedy 2015, section 2), at
a cost of the square of the number of pixels for each image. With the covariance of the training images
U·diag(v)·Uᵀ, as for instance Kessy et al. (2018, arXiv 1512.00809) have it:

    PCA:  (x - mean)·U·diag(1 / sqrt(v + eps)), components in the order of falling v
    ZCA:  (x - mean)·U·diag(1 / sqrt(v + eps))·Uᵀ, of all white maps the one nearest to x

What varied by v varies by v / (v + eps) then: by 1 where eps is 0 (in directions in which anything varies),
and by less, the less v is beside eps, so that noise is not blown up to the size of the image.

Eigenvectors of D × D values take a time of D³. A runner has each map made once (``prepare``), with all cores,
and kept beside the decoded images; whoever trains maps that file into memory.
"""

import functools
import hashlib
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from normbench.config.catalog.datasets import Log
from normbench.config.trial import Choice
from normbench.data.cache import Cache
from normbench.data.dataset import Dataset, Split, map_file
from normbench.files import write_atomically

PART = 2048  # images taken up at once
NEWS_SECONDS = 10.0  # between two words of how long it has taken
STOP_SECONDS = 0.2  # between two looks at whether to stop
DIGEST = hashlib.sha256().digest_size


class Map(NamedTuple):
    """(x - mean) · matrix for images x in [0, 1] as rows, [n, D] with D = H · W · 3; fp32 [D] and [D, D]."""

    mean: Tensor
    matrix: Tensor


class Components(NamedTuple):
    """Principal components of images in float64: mean [D], variances [D] falling, and columns [D, D]."""

    mean: Tensor
    variances: Tensor
    basis: Tensor


def scaled(_dataset: Dataset) -> None:
    """No map: channels are scaled, as ever."""


def pca(dataset: Dataset, eps: float) -> Map:
    """Component k of an image stands where its k-th value stood; what was near in the image no longer is."""
    return _map(dataset, "pca", eps)


def zca(dataset: Dataset, eps: float) -> Map:
    """Images remain images, of edges."""
    return _map(dataset, "zca", eps)


def prepare(
    whiten: Choice, dataset: Dataset, threads: int, log: Log, stop: Callable[[], bool] = lambda: False
) -> None:
    """Have the map lie beside the decoded images, so that nobody who trains has to wait for it.

    Args:
        whiten: which map.
        dataset: the images; a folder that another process is at work in is waited for.
        threads: to compute with.
        say: is told of what takes long, and of what was damaged and is made anew.
        stop: asked often; once it is true, the map is given up.

    Raises:
        OSError: the map cannot be written.
    """
    if whiten.name == "none" or dataset.folder is None:
        return
    path = map_file(dataset.folder, dataset, **whiten.model_dump())
    if _stored(path, dataset) is not None:
        return
    with Cache(dataset.folder).locked(log):
        if _stored(path, dataset) is not None:
            return
        if path.exists():
            log(f"{path}: damaged, made anew")
        D = _values(dataset)
        log(f"{dataset.folder}: whitening, eigenvectors of {D}×{D} values, once; {threads} threads")
        made: list[Map] = []

        def make() -> None:
            torch.set_num_threads(threads)
            made.append(_made(dataset, whiten.name, whiten.options["eps"]))

        if not _waited_for(make, f"{dataset.folder}: whitening", log, stop):
            return
        content = b"".join(part.contiguous().numpy().astype("<f4").tobytes() for part in made[0])
        for stale in path.parent.glob("*.map"):
            if not stale.name.startswith(dataset.content[:16]):
                stale.unlink(missing_ok=True)
        write_atomically(path, hashlib.sha256(content).digest() + content)


def _values(dataset: Dataset) -> int:
    """D, of an image."""
    return int(np.prod(dataset.train.images.shape[1:]))


def _waited_for(act: Callable[[], None], what: str, log: Log, stop: Callable[[], bool]) -> bool:
    """Do it beside this thread, which hears signals meanwhile and tells the time; False: it was given up.

    Raises:
        Exception: what ``act`` raises.
    """
    errors: list[Exception] = []

    def run() -> None:
        try:
            act()
        except Exception as error:
            errors.append(error)

    before, began = torch.get_num_threads(), time.monotonic()
    thread, told = threading.Thread(target=run, daemon=True), began
    thread.start()
    while thread.is_alive():
        thread.join(STOP_SECONDS)
        if stop():
            return False
        if (now := time.monotonic()) - told >= NEWS_SECONDS:
            log(f"{what}: {now - began:.0f} s so far")
            told = now
    torch.set_num_threads(before)
    if errors:
        raise errors[0]
    return True


def _map(dataset: Dataset, name: str, eps: float) -> Map:
    """As it was prepared, or else made here."""
    folder = dataset.folder
    stored = None if folder is None else _stored(map_file(folder, dataset, name, eps), dataset)
    return _made(dataset, name, eps) if stored is None else stored


def _made(dataset: Dataset, name: str, eps: float) -> Map:
    mean, variances, basis = of_training(dataset)
    matrix = basis * _scale(variances, eps)
    return Map(mean.float(), (matrix @ basis.T if name == "zca" else matrix).float())


def _stored(path: Path, dataset: Dataset) -> Map | None:
    """The map in a file, whose pages all processes share; None if it is not there, or not whole."""
    D = _values(dataset)
    try:
        if path.stat().st_size != DIGEST + 4 * (D + D * D):
            return None
        content = np.memmap(path, np.uint8, mode="c")  # torch wants what may be written; nothing is
    except OSError:
        return None
    if hashlib.sha256(content[DIGEST:].data).digest() != content[:DIGEST].tobytes():
        return None
    numbers = torch.from_numpy(np.asarray(content[DIGEST:].view("<f4")))
    return Map(numbers[:D], numbers[D:].view(D, D))


def _scale(variances: Tensor, eps: float) -> Tensor:
    """1 / sqrt(v + eps); 0 in directions in which nothing varies, which eps = 0 would make infinite."""
    least = variances[0] * len(variances) * torch.finfo(torch.float64).eps
    return torch.where(variances > least, (variances.clamp_min(0) + eps).rsqrt(), 0.0)


def of_training(dataset: Dataset) -> Components:
    """Those of the training images in use: some ten seconds of a core at 32×32; a process keeps the last."""
    return _kept(_Key(dataset.content, dataset.train))


class _Key:
    """Equal contents and sizes mean equal images: a smaller subset is always the same one."""

    def __init__(self, content: str, split: Split) -> None:
        self.split = split
        self.told = content, len(split.indices)

    def __hash__(self) -> int:
        return hash(self.told)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Key) and self.told == other.told


@functools.lru_cache(maxsize=1)
def _kept(key: _Key) -> Components:
    split, count = key.split, len(key.split.indices)

    def rows(first: int) -> Tensor:
        images = torch.from_numpy(split.images[split.indices[first : first + PART]])
        return images.flatten(1).double() / 255

    firsts = range(0, count, PART)
    mean = sum((rows(first).sum(0) for first in firsts), start=torch.zeros(())) / count
    covariance = torch.zeros(len(mean), len(mean), dtype=torch.float64)
    for first in firsts:
        centred = rows(first) - mean
        covariance.addmm_(centred.T, centred, alpha=1 / count)
    variances, basis = torch.linalg.eigh(covariance)
    return Components(mean, variances.flip(0), _signed(basis.flip(1)))


def _signed(basis: Tensor) -> Tensor:
    """Each column with its largest entry positive, which eigenvectors leave open."""
    largest = basis.gather(0, basis.abs().argmax(0, keepdim=True))
    return basis * largest.sign()
