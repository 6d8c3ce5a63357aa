"""The seam between training and a learning problem."""

from collections.abc import Sequence
from typing import ClassVar, Self

import torch
from torch import Tensor

from normbench.config.catalog.datasets import WHITENINGS
from normbench.config.catalog.tasks import TASKS
from normbench.config.trial import Trial
from normbench.data.batches import Chunk, Images
from normbench.data.dataset import Dataset, Split

BLACK, WHITE = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)  # mean and standard deviation that leave [0, 1] as it is


class Task:
    """A learning problem: what a network gets, what it should give, and how that is judged.

    Everything that a subclass computes is a pure function of its arguments and of the trial, so that a
    resumed trial sees the same batches and gives the same numbers.

    Args:
        trial: its settings; the options of the task are ``trial.task.options``.

    Attributes:
        metrics: names of what :meth:`sums` adds to the loss; the first compares trials.
        is_standardized: images come with mean 0 and variance 1 for each channel, or whitened; otherwise in
            [0, 1].
        totals_use_targets: :meth:`totals` compares summaries with targets, which are kept for it; otherwise
            a summary says it all, and the targets, which may be images, are let go after every step.
    """

    metrics: ClassVar[tuple[str, ...]]
    is_standardized: ClassVar[bool] = True
    totals_use_targets: ClassVar[bool] = False

    def __init__(self, trial: Trial) -> None:
        self.trial = trial

    def to(self, device: torch.device) -> Self:  # noqa: ARG002
        """Move the tensors that the loss needs to a device, and return the task."""
        return self

    def sources(self) -> dict[str, str]:
        """Return hashes by name, for the record's provenance, of the files that the loss depends on."""
        return {}

    def images(self, dataset: Dataset, device: torch.device) -> tuple[Images, Images]:
        """Return the training and test images, which give batches of the task."""
        training, testing = self._images(dataset, device, [dataset.train, dataset.test])
        return training, testing

    def validation_images(self, dataset: Dataset, device: torch.device) -> Images | None:
        """Return the images that are held out of the training set, if any are."""
        splits = [] if dataset.validation is None else [dataset.validation]
        return next(iter(self._images(dataset, device, splits)), None)

    def _images(self, dataset: Dataset, device: torch.device, splits: Sequence[Split]) -> list[Images]:
        whitening = WHITENINGS[self.trial.whiten.name].load()(dataset, **self.trial.whiten.options)
        mean, std = (dataset.mean, dataset.std) if self.is_standardized else (BLACK, WHITE)
        return [Images(split, mean, std, device, whitening, self.batch) for split in splits]

    def network_options(self, classes: int) -> dict[str, int]:  # noqa: ARG002
        """Return the keyword arguments of the network's builder that follow from the problem."""
        return {}

    def example(self, samples: int, image_size: int) -> Chunk:
        """Return random inputs and targets of the shapes of a batch, on torch's default device."""
        raise NotImplementedError

    def batch(self, images: Tensor, labels: Tensor, indices: Tensor, epoch: int | None) -> Chunk:
        """Return the inputs of the network and their targets.

        Args:
            images: fp32 [n, 3, H, W] in channels-last order; cropped and flipped in training.
            labels: int64 [n], their classes.
            indices: int64 [n], which images of their split these are.
            epoch: of the training, counted from 0; None for images that are not trained on, whose inputs do
                not depend on the seed of the trial, so that all trials are measured alike.
        """
        raise NotImplementedError

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return the loss that training minimizes, the mean over samples, of outputs in fp32."""
        raise NotImplementedError

    def sums(self, outputs: Tensor, targets: Tensor) -> dict[str, Tensor]:
        """Return the sums over samples of ``loss`` and of every metric, of outputs in fp32."""
        raise NotImplementedError

    def summary(self, outputs: Tensor, targets: Tensor) -> Tensor:  # noqa: ARG002
        """Return what is kept of a training step, [n, …], until :meth:`totals` needs it."""
        return outputs

    def totals(self, summary: Tensor, targets: Tensor) -> dict[str, Tensor]:
        """Return the sums over samples of the metrics of training steps; empty if there are none.

        Args:
            summary: of several steps, concatenated.
            targets: likewise; none, [0, …], unless ``totals_use_targets``.
        """
        raise NotImplementedError


def task_of(trial: Trial) -> Task:
    """Return the learning problem of a trial."""
    task: Task = TASKS[trial.task.name].load()(trial)
    return task
