"""Batches of images: shuffled, cropped and flipped on the training device.

Order and augmentation are pure functions of (seed, epoch, position): there is no loader state to save, the
augmentation of an image does not depend on the batch size, and a resumed trial sees the same batches.
"""

import hashlib
from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from normbench.data.dataset import Split
from normbench.data.whitening import Map

PADDING = 4
CHUNK = 512  # images augmented at once: enough to amortize the calls, few enough for the cache
CHUNK_ON_GPU = 4096  # fewer would take longer to launch than to compute


class Chunk(NamedTuple):
    """Consecutive whole batches: inputs and targets of a task.

    Attributes:
        images: in classification, fp32 [n, 3, H, W] in channels-last order.
        labels: in classification, int64 [n].
    """

    images: Tensor
    labels: Tensor


def images_with_labels(images: Tensor, labels: Tensor, _indices: Tensor, _epoch: int | None) -> Chunk:
    """Return a batch of classification."""
    return Chunk(images, labels)


def generator(seed: int, epoch: int, purpose: str) -> torch.Generator:
    """Return an independent random generator for every (seed, epoch, purpose)."""
    digest = hashlib.sha256(f"{seed}/{epoch}/{purpose}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big"))


class Images:
    """A split on a device: memory-mapped on a CPU, copied once (as uint8) to any other device.

    Args:
        split: uint8 images and labels.
        mean: of each channel, in [0, 1].
        std: of each channel, in [0, 1].
        device: the device of the batches.
        whitening: replaces the scaling of each channel by its mean and std; applied after augmentation, so
            that the border of a crop is black before it.
        make_batch: makes inputs and targets of images, labels, indices and the epoch.
    """

    def __init__(
        self,
        split: Split,
        mean: tuple[float, ...],
        std: tuple[float, ...],
        device: torch.device,
        whitening: Map | None = None,
        make_batch: Callable[[Tensor, Tensor, Tensor, int | None], Chunk] = images_with_labels,
    ) -> None:
        self._split, self.device, self._make_batch = split, device, make_batch
        width = split.images.shape[2]  # scales whole rows, since a broadcast over three values is slow
        self._mean = (torch.tensor(mean) * 255).repeat(width).to(device)
        self._inverse_std = (1 / (torch.tensor(std) * 255)).repeat(width).to(device)
        self._whitening = whitening and Map(*(part.to(device) for part in whitening))
        self._resident = (
            None if device.type == "cpu" else self._fetch(np.arange(len(split.indices))).to(device)
        )
        self._labels = torch.from_numpy(split.labels[split.indices]).to(device)
        self._indices = torch.from_numpy(split.indices).to(device)

    def __len__(self) -> int:
        return len(self._split.indices)

    def training_chunks(
        self, seed: int, epoch: int, batch_size: int, augment: bool, start: int = 0
    ) -> Iterator[Chunk]:
        """Yield an epoch from position ``start`` on, each image at most once.

        Every chunk contains a whole number of batches; images that do not fill a batch are left out. A batch
        begins at ``start``.
        """
        count = len(self)
        order = torch.randperm(count, generator=generator(seed, epoch, "order"))
        offsets = torch.randint(0, 2 * PADDING + 1, (2, count), generator=generator(seed, epoch, "crop"))
        flips = torch.rand(count, generator=generator(seed, epoch, "flip")) < 0.5
        # once an epoch, since a copy to a GPU synchronizes
        order, offsets, flips = (tensor.to(self.device) for tensor in (order, offsets, flips))
        size = max(1, (CHUNK if self._resident is None else CHUNK_ON_GPU) // batch_size) * batch_size
        end = count // batch_size * batch_size
        if start >= end:
            return
        for first in range(start // size * size, end, size):  # chunks do not depend on `start`
            positions = slice(first, min(first + size, end))
            images, chosen = self._pick(order[positions]), order[positions]
            if augment:
                images = _crop_and_flip(images, offsets[:, positions], flips[positions])
            batches = self._make_batch(
                self._normalized(images), self._labels[chosen], self._indices[chosen], epoch
            )
            skipped = max(0, start - first)
            yield Chunk(batches.images[skipped:], batches.labels[skipped:])

    def in_order(self, size: int) -> Iterator[Chunk]:
        """Yield all images in order and without augmentation, ``size`` at a time."""
        for first in range(0, len(self), size):
            yield self.at(torch.arange(first, min(first + size, len(self)), device=self.device))

    def at(self, positions: Tensor) -> Chunk:
        """Return the images at ``positions`` in order, int64 [n], without augmentation."""
        images, chosen = self._normalized(self._pick(positions)), positions.to(self.device)
        return self._make_batch(images, self._labels[chosen], self._indices[chosen], None)

    def _fetch(self, positions: np.ndarray[tuple[int], np.dtype[np.int64]]) -> Tensor:
        return torch.from_numpy(self._split.images[self._split.indices[positions]])

    def _pick(self, positions: Tensor) -> Tensor:
        """Return images uint8 [n, H, W, 3]."""
        if self._resident is not None:
            return self._resident[positions.to(self.device)]
        return self._fetch(positions.numpy())

    def _normalized(self, images: Tensor) -> Tensor:
        """Convert images uint8 [n, H, W, 3] to fp32 [n, 3, H, W] with channels last."""
        if self._whitening is None:
            rows = images.flatten(2).to(torch.float32)
            scaled = rows.sub_(self._mean).mul_(self._inverse_std).view(images.shape)
        else:
            mean, matrix = self._whitening
            scaled = ((images.flatten(1) / 255).sub_(mean) @ matrix).view(images.shape)
        return scaled.permute(0, 3, 1, 2)


def _crop_and_flip(images: Tensor, offsets: Tensor, flips: Tensor) -> Tensor:
    """Pad by 4 black pixels, crop to the old size at ``offsets`` [2, n], and mirror where ``flips`` [n]."""
    n, H, W, _ = images.shape
    padded = images.new_zeros((n, H + 2 * PADDING, W + 2 * PADDING, 3))
    padded[:, PADDING : PADDING + H, PADDING : PADDING + W] = images
    windows = padded.unfold(1, H, 1).unfold(2, W, 1).permute(0, 1, 2, 4, 5, 3)  # [n, top, left, H, W, 3]
    index = torch.arange(n, device=images.device)
    cropped = windows[index, offsets[0], offsets[1]]
    both = torch.cat((cropped, cropped.flip(2)))
    return both.index_select(0, index + n * flips)
