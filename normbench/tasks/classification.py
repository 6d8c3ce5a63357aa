"""Classification of images by cross-entropy."""

import torch
import torch.nn.functional as F
from torch import Tensor

from normbench.data.batches import Chunk
from normbench.tasks.base import Task


class Classification(Task):
    """The class of an image: logits [N, classes], labels [N], and the accuracy (a fraction)."""

    metrics = ("accuracy",)
    totals_use_targets = True

    def network_options(self, classes: int) -> dict[str, int]:
        """Return the number of classes."""
        return {"classes": classes}

    def example(self, samples: int, image_size: int) -> Chunk:
        """Return random images [N, 3, H, W] of the first class."""
        return Chunk(torch.randn(samples, 3, image_size, image_size), torch.zeros(samples, dtype=torch.long))

    def batch(self, images: Tensor, labels: Tensor, indices: Tensor, epoch: int | None) -> Chunk:  # noqa: ARG002
        """Return the images with their labels."""
        return Chunk(images, labels)

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return the mean cross-entropy, with the trial's label smoothing."""
        return F.cross_entropy(outputs, targets, label_smoothing=self.trial.label_smoothing)

    def sums(self, outputs: Tensor, targets: Tensor) -> dict[str, Tensor]:
        """Return the sum of the cross-entropy without smoothing, and the number of correct predictions.

        A logit that is not finite makes a prediction wrong.
        """
        is_correct = (outputs.argmax(1) == targets) & outputs.isfinite().all(1)
        return {"loss": F.cross_entropy(outputs, targets, reduction="sum"), "accuracy": is_correct.sum()}

    def totals(self, summary: Tensor, targets: Tensor) -> dict[str, Tensor]:
        """Return the number of correct predictions; ``summary`` holds logits."""
        return {"accuracy": (summary.argmax(1) == targets).sum()}
