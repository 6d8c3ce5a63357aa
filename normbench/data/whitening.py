"""Whitening: a linear map of whole images to pixels with mean 0 and no correlation.

Batch normalization approximates it channel by channel (Ioffe & Szegedy 2015, section 2). Its cost is
quadratic in the number of pixels. With the covariance of the training images
U·diag(v)·Uᵀ (for instance Kessy et al. 2018, arXiv 1512.00809):

    PCA:  (x - mean)·U·diag(1 / sqrt(v + eps)), components in the order of decreasing v
    ZCA:  (x - mean)·U·diag(1 / sqrt(v + eps))·Uᵀ, of all whitening maps the one nearest to x

A direction of variance v then has variance v / (v + eps): 1 for eps = 0, and less for directions whose
variance is small compared with eps, so that noise is not amplified to the size of the image.

Computing the eigenvectors of D × D values takes time D³. A run computes each map once (``prepare``), with all
cores, and stores it beside the decoded images; trials map the file into memory.
"""

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
from normbench.data.dataset import Dataset, map_file
from normbench.files import write_atomically

CHUNK = 2048  # images processed at once
LOG_SECONDS = 10.0  # between two messages
STOP_SECONDS = 0.2  # between two checks whether to stop
DIGEST = hashlib.sha256().digest_size


class Map(NamedTuple):
    """The map (x - mean) · matrix of images x in [0, 1], [n, D] with D = H · W · 3; fp32 [D] and [D, D]."""

    mean: Tensor
    matrix: Tensor


class Components(NamedTuple):
    """The principal components of images in float64: mean [D], decreasing variances [D], columns [D, D]."""

    mean: Tensor
    variances: Tensor
    basis: Tensor


def scaled(_dataset: Dataset) -> None:
    """Return no map: each channel is scaled by its mean and standard deviation."""


def pca(dataset: Dataset, eps: float) -> Map:
    """Return the PCA map, which puts component k in the position of the k-th value."""
    return _map(dataset, "pca", eps)


def zca(dataset: Dataset, eps: float) -> Map:
    """Return the ZCA map, whose results are images again, mainly of edges."""
    return _map(dataset, "zca", eps)


def prepare(
    whiten: Choice, dataset: Dataset, threads: int, log: Log, stop: Callable[[], bool] = lambda: False
) -> None:
    """Compute and store the map beside the decoded images, unless that is done.

    Args:
        whiten: the choice of the map.
        dataset: the images; waits for another process that writes to their folder.
        threads: the number of threads.
        log: receives progress, and messages on damaged files.
        stop: is called often; once it returns true, the computation is abandoned.

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
            log(f"{path}: damaged, computed again")
        D = _dimension(dataset)
        log(f"{dataset.folder}: whitening, eigenvectors of {D}×{D} values, once; {threads} threads")
        maps: list[Map] = []

        def compute() -> None:
            torch.set_num_threads(threads)
            maps.append(_compute(dataset, whiten.name, whiten.options["eps"]))

        if not _run_in_thread(compute, f"{dataset.folder}: whitening", log, stop):
            return
        content = b"".join(part.contiguous().numpy().astype("<f4").tobytes() for part in maps[0])
        for stale in path.parent.glob("*.map"):
            if not stale.name.startswith(dataset.content[:16]):
                stale.unlink(missing_ok=True)
        write_atomically(path, hashlib.sha256(content).digest() + content)


def _dimension(dataset: Dataset) -> int:
    """Return D, the number of values of an image."""
    return int(np.prod(dataset.train.images.shape[1:]))


def _run_in_thread(function: Callable[[], None], what: str, log: Log, stop: Callable[[], bool]) -> bool:
    """Run ``function`` in a thread while this one handles signals and logs the time; False: abandoned.

    Raises:
        Exception: what ``function`` raises.
    """
    errors: list[Exception] = []

    def run() -> None:
        try:
            function()
        except Exception as error:
            errors.append(error)

    before, start = torch.get_num_threads(), time.monotonic()
    thread, last_log = threading.Thread(target=run, daemon=True), start
    thread.start()
    while thread.is_alive():
        thread.join(STOP_SECONDS)
        if stop():
            return False
        if (now := time.monotonic()) - last_log >= LOG_SECONDS:
            log(f"{what}: {now - start:.0f} s so far")
            last_log = now
    torch.set_num_threads(before)
    if errors:
        raise errors[0]
    return True


def _map(dataset: Dataset, name: str, eps: float) -> Map:
    """Return the stored map, or compute it if there is none."""
    folder = dataset.folder
    stored = None if folder is None else _stored(map_file(folder, dataset, name, eps), dataset)
    return _compute(dataset, name, eps) if stored is None else stored


def _compute(dataset: Dataset, name: str, eps: float) -> Map:
    mean, variances, basis = principal_components(dataset)
    matrix = basis * _scale(variances, eps)
    return Map(mean.float(), (matrix @ basis.T if name == "zca" else matrix).float())


def _stored(path: Path, dataset: Dataset) -> Map | None:
    """Map a stored map into memory, which all processes share; return None if it is missing or damaged."""
    D = _dimension(dataset)
    try:
        if path.stat().st_size != DIGEST + 4 * (D + D * D):
            return None
        content = np.memmap(path, np.uint8, mode="c")  # torch demands writable memory; nothing is written
    except OSError:
        return None
    if hashlib.sha256(content[DIGEST:].data).digest() != content[:DIGEST].tobytes():
        return None
    numbers = torch.from_numpy(np.asarray(content[DIGEST:].view("<f4")))
    return Map(numbers[:D], numbers[D:].view(D, D))


def _scale(variances: Tensor, eps: float) -> Tensor:
    """Return 1 / sqrt(v + eps), and 0 in constant directions, which eps = 0 would make infinite."""
    threshold = variances[0] * len(variances) * torch.finfo(torch.float64).eps
    return torch.where(variances > threshold, (variances.clamp_min(0) + eps).rsqrt(), 0.0)


_last: dict[tuple[str, int, int], Components] = {}  # by what the images in use are known by


def principal_components(dataset: Dataset) -> Components:
    """Compute those of the training images in use, or return the last result; about 10 s at 32×32."""
    split, count = dataset.train, len(dataset.train.indices)
    if (known := _last.get(dataset.selection)) is not None:
        return known

    def rows(first: int) -> Tensor:
        images = torch.from_numpy(split.images[split.indices[first : first + CHUNK]])
        return images.flatten(1).double() / 255

    firsts = range(0, count, CHUNK)
    mean = sum((rows(first).sum(0) for first in firsts), start=torch.zeros(())) / count
    covariance = torch.zeros(len(mean), len(mean), dtype=torch.float64)
    for first in firsts:
        centred = rows(first) - mean
        covariance.addmm_(centred.T, centred, alpha=1 / count)
    variances, basis = torch.linalg.eigh(covariance)
    _last.clear()
    return _last.setdefault(dataset.selection, Components(mean, variances.flip(0), _fix_signs(basis.flip(1))))


def _fix_signs(basis: Tensor) -> Tensor:
    """Return the columns with their largest entry positive, since the sign of an eigenvector is arbitrary."""
    largest = basis.gather(0, basis.abs().argmax(0, keepdim=True))
    return basis * largest.sign()
