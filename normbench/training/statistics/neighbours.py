"""The dependence of the output for a sample on the other samples of its batch."""

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from normbench.records import Measured
from normbench.training.evaluation import Evaluation, Trained, infer
from normbench.training.statistics import running


class Neighbours(Evaluation):
    """The change of outputs for test images that are drawn into other batches.

    Args:
        batch_size: of the batches.
        samples: test images; all, if there are fewer.
        draws: how often batches are drawn.
    """

    def __init__(self, batch_size: int, samples: int, draws: int) -> None:
        self.batch_size, self.samples, self.draws = batch_size, samples, draws

    def measure(self, trained: Trained) -> Iterator[Measured]:
        """Yield one result: the changes with batch statistics, and with running ones, which should be 0."""
        model = trained.copy()
        by_running = changes(self._logits(trained, model))
        running.normalize_by_batch(model, self.batch_size)
        by_batch = changes(self._logits(trained, model))
        numbers: dict[str, float | None] = {
            "prediction_changed": by_batch[0],
            "logit_change": by_batch[1],
            "prediction_changed_running": by_running[0],
            "logit_change_running": by_running[1],
            "images": min(self.samples, len(trained.testing)),
        }
        options: dict[str, int | str] = {
            "batch_size": self.batch_size,
            "samples": self.samples,
            "draws": self.draws,
        }
        yield Measured(name="neighbours", options=options, numbers=numbers)

    @torch.inference_mode()
    def _logits(self, trained: Trained, model: nn.Module) -> Tensor:
        """Return logits [draws, samples, classes], in float64 on the CPU."""
        draws = []
        for draw in range(self.draws):
            by_image: dict[int, Tensor] = {}
            for indices, (x, labels) in trained.mixed(self.batch_size, self.samples, draw):
                logits = infer(model, x, trained.trial.precision)[: len(labels)]
                by_image |= dict(zip(indices.tolist(), logits.double().cpu(), strict=True))
                trained.pause()
            draws.append(torch.stack([by_image[image] for image in sorted(by_image)]))
        return torch.stack(draws)


def changes(logits: Tensor) -> tuple[float | None, float | None]:
    """Return how often a prediction changes between draws, and the relative change of the logits z.

    The first is the share of pairs of draws with different predictions; the second is the root mean square of
    ‖z - z'‖ over such pairs, over that of ‖z‖. Both are means over samples.

    Args:
        logits: [draws, samples, classes], two draws at least.

    Returns:
        Both; None and None if a logit is not finite.
    """
    draws, _, classes = logits.shape
    if not logits.isfinite().all():
        return None, None
    votes = F.one_hot(logits.argmax(2), classes).sum(0).double()
    agreeing = (votes * (votes - 1)).sum(1) / (draws * (draws - 1))
    spread = (logits - logits.mean(0)).square().sum((0, 2)) / (draws - 1)  # half of the mean ‖z - z'‖²
    change = (2 * spread / logits.square().sum(2).mean(0)).sqrt()
    return float((1 - agreeing).mean()), float(change.nan_to_num().mean())
