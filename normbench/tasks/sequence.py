"""Classification of images that are read as sequences, row by row or pixel by pixel."""

import hashlib

import torch
import torch.nn.functional as F
from torch import Tensor

from normbench.config.catalog.datasets import DATASETS
from normbench.config.sequences import whole_sequence
from normbench.config.trial import Trial
from normbench.data.batches import Chunk, generator
from normbench.tasks.classification import Classification

LOW = 0xFFFFFFFF  # 32 bits


class Sequence(Classification):
    """The class of the sequence of the H rows of an image, or of its H · W pixels.

    Inputs are [N, T, features]: all values of a row or pixel, of one channel for grey images. Where sequences
    are cut to unequal lengths, inputs are [N, T, features + 1] with the greatest length T: the last feature
    is 1 at the steps of a sequence, and all is 0 behind its end. Logits are those after its last step.
    """

    def __init__(self, trial: Trial) -> None:
        super().__init__(trial)
        options = trial.task.options
        whole = whole_sequence(trial.task, trial.dataset)
        self._reads_rows = options["read"] == "rows"
        self._channels = DATASETS[trial.dataset.name].channels
        self._lengths: tuple[int, int] | None = options["lengths"]
        self._features, self._steps = whole.features, self._lengths[1] if self._lengths else whole.steps
        self._order: Tensor | None = None
        if options["permute"]:
            fixed = generator(0, 0, "permutation of a sequence")
            self._order = torch.randperm(whole.steps, generator=fixed, device="cpu")

    def network_options(self, classes: int) -> dict[str, int]:
        """Return the numbers of classes, features and steps, and whether sequences differ in length."""
        shape = {"features": self._features, "steps": self._steps, "is_ragged": self._lengths is not None}
        return super().network_options(classes) | shape

    def example(self, samples: int, image_size: int) -> Chunk:
        """Return random sequences of the first class."""
        images, labels = super().example(samples, image_size)
        return self.batch(images, labels, torch.arange(samples), None)

    def batch(self, images: Tensor, labels: Tensor, indices: Tensor, epoch: int | None) -> Chunk:
        """Return the sequences with their labels; a test sequence ends where its index alone decides."""
        pixels = images[:, : self._channels].permute(0, 2, 3, 1)  # [n, H, W, channels]
        sequences = pixels.flatten(2) if self._reads_rows else pixels.flatten(1, 2)
        if self._order is not None:
            sequences = sequences[:, self._order.to(images.device)]
        if self._lengths is None:
            return Chunk(sequences.contiguous(), labels)
        ends = drawn_lengths("test" if epoch is None else str(self.trial.seed), indices, *self._lengths)
        runs = (torch.arange(self._steps, device=images.device) < ends[:, None])[..., None]
        with_runs = F.pad(sequences[:, : self._steps], (0, 1), value=1.0)
        return Chunk(with_runs.masked_fill(~runs, 0.0), labels)


def drawn_lengths(purpose: str, indices: Tensor, shortest: int, longest: int) -> Tensor:
    """Return a length from ``shortest`` to ``longest`` for each index, int64 [n], as a hash of both.

    A length depends neither on the batch nor on the device.
    """
    key = int.from_bytes(hashlib.sha256(f"lengths/{purpose}".encode()).digest()[:4], "big")
    bits = (indices ^ key) & LOW
    for _ in range(2):  # a product of 32 and 27 bits does not overflow
        bits = ((bits ^ (bits >> 16)) * 0x45D9F3B) & LOW
    bits = bits ^ (bits >> 16)
    return shortest + (bits * (longest - shortest + 1) >> 32)
