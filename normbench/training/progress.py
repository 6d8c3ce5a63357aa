"""Running totals of a trial (step, loss, accuracy, time), saved in checkpoints."""

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

import torch
from torch import Tensor

from normbench.config.trial import Trial
from normbench.tasks.base import Task

ONLINE_PART = 500  # images


class Diverged(Exception):
    """The loss is no longer a number."""


@dataclass
class Progress:
    """Running totals of a trial.

    Attributes:
        step: updates so far, over all epochs.
        position: images of this epoch so far; the next update begins there.
        loss_sum: of this epoch's updates.
        sums: over the samples of this epoch, of each metric that the task measures before an update.
        last_loss: of the latest update.
        epochs: those that are over, as in ``Epoch``.
        online: of every ``ONLINE_PART`` images of the first epoch, the number of images and of correct
            predictions.
        diagnostics: measurements of the layers and the network, as in ``Record``.
        train_seconds: spent on updates, over all epochs and attempts.
        test_seconds: spent on evaluations.
        paths: the number of updates by path.
        computing: what normalized in them, as :func:`normbench.norms.ops.dispatch.noted` has it.
        synchronized_at: when :meth:`synchronize` last ended.
    """

    step: int = 0
    position: int = 0
    loss_sum: float = 0.0
    sums: dict[str, float] = field(default_factory=dict)
    last_loss: float | None = None
    epochs: list[dict[str, Any]] = field(default_factory=list)
    online: list[list[int]] = field(default_factory=list)
    diagnostics: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    train_seconds: float = 0.0
    test_seconds: float = 0.0
    paths: dict[str, int] = field(default_factory=dict)
    computing: dict[str, bool] = field(default_factory=dict)
    _task: Task | None = field(default=None, init=False)
    _pending: list[tuple[Tensor, Tensor, Tensor, Tensor | None]] = field(default_factory=list, init=False)
    synchronized_at: float = field(default_factory=time.monotonic, init=False)

    @classmethod
    def of(cls, task: Task, state: dict[str, Any] | None = None) -> "Progress":
        """Return the totals of a task's trial at its beginning, or at the ``state`` of a checkpoint."""
        progress = cls(**(state or {}))
        progress._task = task
        return progress

    def state_dict(self) -> dict[str, Any]:
        """Return what :meth:`of` goes on from; all updates must be synchronized."""
        return {attribute.name: getattr(self, attribute.name) for attribute in fields(self) if attribute.init}

    def count_updates(
        self,
        losses: Tensor,
        summary: Tensor,
        targets: Tensor,
        prediction: Tensor | None = None,
        path: str = "plain",
    ) -> None:
        """Count updates without waiting for the device: :meth:`synchronize` reads their losses later.

        Args:
            losses: [] of an update, or [updates].
            summary: [N, …], what the task keeps of the outputs from before each update.
            targets: [N, …].
            prediction: logits at inference before the update, if the trial is online.
            path: of the updates.
        """
        self.step += losses.numel()
        self.paths[path] = self.paths.get(path, 0) + losses.numel()
        self.position += len(targets)
        if self._task is not None and not self._task.totals_use_targets:
            targets = targets.new_empty((0, *targets.shape[1:]))  # not a view, which would keep the images
        self._pending.append((losses.detach().reshape(-1), summary.detach(), targets, prediction))

    def synchronize(self) -> None:
        """Wait for the device and bring sums and times up to date.

        Losses are added one by one, so that the last bit does not depend on when this is called.

        Raises:
            Diverged: a loss is not finite; ``step`` is that of the first such update.
        """
        since, self.synchronized_at = self.synchronized_at, time.monotonic()
        if not self._pending:
            self.test_seconds += self.synchronized_at - since
            return
        pending, self._pending = self._pending, []
        parts, summaries, targets, predictions = zip(*pending, strict=True)
        truth = torch.cat(targets)
        if predictions[0] is not None:
            answers = torch.cat(predictions)
            self._count_online((answers.argmax(1) == truth) & answers.isfinite().all(1))
        losses = torch.cat(parts).tolist()
        for later, loss in zip(range(len(losses) - 1, -1, -1), losses, strict=True):
            if not math.isfinite(loss):
                self.step -= later
                raise Diverged(f"the training loss is {loss}")
            self.loss_sum += loss
            self.last_loss = loss
        if self._task is not None:
            for name, total in self._task.totals(torch.cat(summaries), truth).items():
                self.sums[name] = self.sums.get(name, 0.0) + float(total)
        self.synchronized_at = time.monotonic()  # only now has the device finished
        self.train_seconds += self.synchronized_at - since

    def _count_online(self, is_correct: Tensor) -> None:
        """Count the latest images of the first epoch."""
        for position, correct in enumerate(is_correct.tolist(), self.position - len(is_correct)):
            if position == len(self.online) * ONLINE_PART:
                self.online.append([0, 0])
            self.online[-1][0] += 1
            self.online[-1][1] += correct

    def online_accuracy(self) -> dict[str, list[dict[str, Any]]]:
        """Return the accuracy on images before they were learned from, so far and over the latest part."""
        course, images, correct = [], 0, 0
        for part_images, part_correct in self.online:
            images, correct = images + part_images, correct + part_correct
            recent_accuracy = part_correct / part_images
            course.append(
                {"images": images, "accuracy": correct / images, "recent_accuracy": recent_accuracy}
            )
        return {"online": course} if course else {}

    def add_diagnostics(self, diagnostics: dict[str, list[dict[str, Any]]]) -> None:
        """Keep measurements of the layers after so many epochs (none: at initialisation)."""
        for kind, layers in diagnostics.items():
            self.diagnostics.setdefault(kind, []).append({"epoch": len(self.epochs), "layers": layers})

    def end_epoch(
        self,
        steps: int,
        scores: Mapping[str, float],
        lr: float,
        diagnostics: dict[str, list[dict[str, Any]]],
    ) -> None:
        """Append an epoch to ``epochs`` and begin the next.

        Args:
            steps: updates of the epoch.
            scores: by name, such as ``test_loss``, what was measured behind it.
            lr: learning rate of the last update.
            diagnostics: as :meth:`add_diagnostics` takes them.
        """
        self.synchronize()
        measured = {f"train_{name}": total / self.position for name, total in self.sums.items()}
        measured |= scores
        seconds = self.train_seconds + self.test_seconds - sum(epoch["seconds"] for epoch in self.epochs)
        self.epochs.append(
            {
                "epoch": len(self.epochs) + 1,
                "train_loss": self.loss_sum / steps,
                "train_accuracy": measured.pop("train_accuracy", None),
                "test_loss": measured.pop("test_loss", None),
                "test_accuracy": measured.pop("test_accuracy", None),
                "lr": lr,
                "seconds": seconds,
                "metrics": measured,
            }
        )
        self.add_diagnostics(diagnostics)
        self.position, self.loss_sum, self.sums = 0, 0.0, {}

    def path(self) -> str:
        """Return the path of the updates: ``graph``; or, if they differ, ``graph 5999, plain 1``."""
        return ", ".join(
            path if len(self.paths) == 1 else f"{path} {count}" for path, count in sorted(self.paths.items())
        )

    def images_per_second(self, trial: Trial) -> float | None:
        """Return the training throughput so far, without evaluations; None before the first update."""
        return self.step * trial.batch_size / self.train_seconds if self.train_seconds else None

    def report(self, trial: Trial) -> dict[str, Any]:
        """Return what ``report`` of :func:`normbench.training.train.train` is called with."""
        return {
            "epoch": min(len(self.epochs) + 1, trial.epochs),  # after the last epoch there is ``evaluate``
            "epochs": trial.epochs,
            "images": self.step * trial.batch_size,
            "images_per_second": self.images_per_second(trial),
            "train_loss": self._mean_loss(trial),
            "test_accuracy": self.epochs[-1]["test_accuracy"] if self.epochs else None,
            "test_metrics": self._test_metrics(),
        }

    def _test_metrics(self) -> dict[str, float]:
        """Return the latest value of each metric of the test set, by the name that the task gives it."""
        latest: dict[str, float] = {}
        for epoch in self.epochs:
            measured = {"test_accuracy": epoch["test_accuracy"]} | epoch["metrics"]
            latest |= {
                name.removeprefix("test_"): value
                for name, value in measured.items()
                if name.startswith("test_") and value is not None
            }
        return latest

    def _mean_loss(self, trial: Trial) -> float | None:
        """Return the mean of this epoch's updates, or of the last epoch before there are any."""
        if steps := self.position // trial.batch_size:
            return self.loss_sum / steps
        return self.epochs[-1]["train_loss"] if self.epochs else None
