"""How far a running trial is: the books that it keeps, and takes along through a checkpoint."""

import math
import time
from dataclasses import dataclass, field, fields
from typing import Any

import torch
from torch import Tensor

from normbench.config.trial import Trial

STREAM_PART = 500  # images


class Diverged(Exception):
    """The loss is no longer a number."""


@dataclass
class Progress:
    """How far a trial is: with the weights and momenta, all that it needs to go on.

    Attributes:
        step: updates so far, over all epochs.
        position: images of this epoch so far; the next update begins there.
        loss_sum: of this epoch's updates.
        correct: images of this epoch that were classified rightly before the update.
        last_loss: of the latest update.
        epochs: those that are over, as in ``Epoch``.
        stream: of every ``STREAM_PART`` images of the first epoch, how many there were and were predicted
            rightly.
        diagnostics: what was found out about the layers at their ends, as in ``Record``.
        train_seconds: spent on updates, over all epochs and attempts.
        test_seconds: spent on evaluations.
        paths: how many updates went which way.
        computing: what normalized in them, as :func:`normbench.norms.ops.dispatch.noted` has it.
    """

    step: int = 0
    position: int = 0
    loss_sum: float = 0.0
    correct: int = 0
    last_loss: float | None = None
    epochs: list[dict[str, Any]] = field(default_factory=list)
    stream: list[list[int]] = field(default_factory=list)
    diagnostics: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    train_seconds: float = 0.0
    test_seconds: float = 0.0
    paths: dict[str, int] = field(default_factory=dict)
    computing: dict[str, bool] = field(default_factory=dict)
    _unsettled: list[tuple[Tensor, Tensor, Tensor, Tensor | None]] = field(default_factory=list, init=False)
    settled_at: float = field(default_factory=time.monotonic, init=False)
    saved_at: float = field(default_factory=time.monotonic, init=False)

    def to_state(self) -> dict[str, Any]:
        """For a checkpoint; ``Progress(**state)`` is where it was. Everything must be settled."""
        return {one.name: getattr(self, one.name) for one in fields(self) if one.init}

    def updated(
        self,
        loss: Tensor,
        logits: Tensor,
        labels: Tensor,
        predicted: Tensor | None = None,
        path: str = "plain",
    ) -> None:
        """One update was made; its loss is looked at later, since that waits for the device.

        Args:
            loss: of the update.
            logits: that it came from.
            labels: of the images.
            predicted: logits at inference before the update, if the network was asked.
            path: that it took.
        """
        self.step += 1
        self.paths[path] = self.paths.get(path, 0) + 1
        self.position += len(labels)
        self._unsettled.append((loss.detach(), logits.detach(), labels, predicted))

    def settle(self) -> None:
        """Bring sums and times up to date.

        Losses are added one by one, so that it does not matter to the last bit when this is called.

        Raises:
            Diverged: a loss is not finite; ``step`` is that of the first such update.
        """
        since, self.settled_at = self.settled_at, time.monotonic()
        if not self._unsettled:
            self.test_seconds += self.settled_at - since
            return
        losses, logits, labels, predicted = zip(*self._unsettled, strict=True)
        self._unsettled = []
        truth = torch.cat(labels)
        if predicted[0] is not None:
            answers = torch.cat(predicted)
            self._add_to_stream((answers.argmax(1) == truth) & answers.isfinite().all(1))
        for later, loss in zip(range(len(losses) - 1, -1, -1), torch.stack(losses).tolist(), strict=True):
            if not math.isfinite(loss):
                self.step -= later
                raise Diverged(f"the training loss is {loss}")
            self.loss_sum += loss
            self.last_loss = loss
        self.correct += int((torch.cat(logits).argmax(1) == truth).sum())
        self.settled_at = time.monotonic()  # only now has the device done it all
        self.train_seconds += self.settled_at - since

    def _add_to_stream(self, right: Tensor) -> None:
        """Count in the latest images of the first epoch."""
        for place, one in enumerate(right.tolist(), self.position - len(right)):
            if place == len(self.stream) * STREAM_PART:
                self.stream.append([0, 0])
            self.stream[-1][0] += 1
            self.stream[-1][1] += one

    def online(self) -> dict[str, list[dict[str, Any]]]:
        """Accuracy on images that the network had not learned from, so far and over the latest part."""
        course, images, correct = [], 0, 0
        for size, right in self.stream:
            images, correct = images + size, correct + right
            part = {"images": images, "accuracy": correct / images, "recent_accuracy": right / size}
            course.append(part)
        return {"online": course} if course else {}

    def diagnosed(self, found: dict[str, list[dict[str, Any]]]) -> None:
        """Keep what was found out about the layers after so many epochs (none: at initialisation)."""
        for key, layers in found.items():
            self.diagnostics.setdefault(key, []).append({"epoch": len(self.epochs), "layers": layers})

    def end_epoch(
        self,
        steps: int,
        test_loss: float | None,
        test_accuracy: float | None,
        lr: float,
        diagnoses: dict[str, list[dict[str, Any]]],
    ) -> None:
        """Close the books of an epoch of so many ``steps``."""
        self.settle()
        seconds = self.train_seconds + self.test_seconds - sum(epoch["seconds"] for epoch in self.epochs)
        self.epochs.append(
            {
                "epoch": len(self.epochs) + 1,
                "train_loss": self.loss_sum / steps,
                "train_accuracy": self.correct / self.position,
                "test_loss": test_loss,
                "test_accuracy": test_accuracy,
                "lr": lr,
                "seconds": seconds,
            }
        )
        self.diagnosed(diagnoses)
        self.position, self.loss_sum, self.correct = 0, 0.0, 0

    def path(self) -> str:
        """Which way the updates went: ``graph``; or, if not all went the same, ``graph 5999, plain 1``."""
        return ", ".join(
            path if len(self.paths) == 1 else f"{path} {count}" for path, count in sorted(self.paths.items())
        )

    def images_per_second(self, trial: Trial) -> float | None:
        """Training throughput so far, evaluations aside; None before the first update."""
        return self.step * trial.batch_size / self.train_seconds if self.train_seconds else None

    def _mean_loss(self, trial: Trial) -> float | None:
        """Of this epoch's updates, or of the last epoch before there are any; of one batch it says little."""
        if steps := self.position // trial.batch_size:
            return self.loss_sum / steps
        return self.epochs[-1]["train_loss"] if self.epochs else None

    def news(self, trial: Trial) -> dict[str, Any]:
        """For whoever watches."""
        return {
            "epoch": min(len(self.epochs) + 1, trial.epochs),  # behind the last there is still ``evaluate``
            "epochs": trial.epochs,
            "images": self.step * trial.batch_size,
            "images_per_second": self.images_per_second(trial),
            "train_loss": self._mean_loss(trial),
            "test_accuracy": self.epochs[-1]["test_accuracy"] if self.epochs else None,
        }
