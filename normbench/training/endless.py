"""A trial's updates without end, to see how fast they go: with the images, path and books of training."""

import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch import Tensor, nn

from normbench.config.trial import Trial
from normbench.data import dataset as decoded
from normbench.data.batches import images_of
from normbench.norms.api import recordable
from normbench.training.build import network
from normbench.training.capture.capture import WORTH, recorder_of
from normbench.training.optim import optimizer
from normbench.training.progress import Progress
from normbench.training.step import Update
from normbench.training.train import REPORT_SECONDS

WARM_UP = 5


class Endless:
    """Updates of a trial, the first of which have set everything up.

    Args:
        trial: whose; its data set has been prepared.
        data: the data directory.
        where: the device.
        replayed: by graph or tape, where there is one; False to call every update.

    Attributes:
        model: its network.
        update: an update of it.
    """

    def __init__(self, trial: Trial, data: Path, where: torch.device, replayed: bool = True) -> None:
        dataset = decoded.load(trial.dataset, data)
        self._trial = trial
        self._images, _ = images_of(trial, dataset, where)
        model = network(trial, len(dataset.classes))
        self.model: nn.Module = model.to(where, memory_format=torch.channels_last)  # type: ignore[call-overload]
        recorder = recorder_of(where, 1, WORTH, recordable(trial.norm)) if replayed else None
        steps_per_epoch = max(1, len(self._images) // trial.batch_size)
        self._steps = steps_per_epoch * trial.epochs
        sgd = optimizer(trial, self.model)
        self.update = Update(trial, self.model, sgd, steps_per_epoch, recorder=recorder)
        self._batches = self.batches()
        self._progress, self._step = Progress(), 0
        for _ in range(WARM_UP):
            self.one()
        self._progress.settle()

    def batches(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Images and labels, epoch after epoch."""
        trial, epoch = self._trial, 0
        while True:
            for chunk in self._images.training_chunks(trial.seed, epoch, trial.batch_size, trial.augment):
                yield from zip(*(torch.split(part, trial.batch_size) for part in chunk), strict=True)
            epoch += 1

    def one(self) -> None:
        """Make an update."""
        x, y = next(self._batches)
        loss, logits = self.update(self._step % self._steps, x, y)  # the schedule would end
        self._progress.updated(loss, logits, y, path=self.update.step.path)
        self._step += 1

    def images_per_second(self, over: Callable[[], bool]) -> float:
        """Of this trial, whatever else runs, until it is ``over``; what was begun is waited for."""
        images, began = 0, time.perf_counter()
        while not over():
            self.one()
            images += self._trial.batch_size
            if time.monotonic() - self._progress.settled_at > REPORT_SECONDS:
                self._progress.settle()
        self._progress.settle()
        return images / (time.perf_counter() - began)
