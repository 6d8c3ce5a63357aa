"""How far the output for a sample depends on the samples that it shares a batch with."""

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from normbench.records import Measured
from normbench.training.evaluation import Evaluation, Trained, infer
from normbench.training.statistics import running


class Neighbours(Evaluation):
    """The same test images, shared out into batches anew at every draw.

    Args:
        batch_size: of these batches.
        samples: test images; all, if there are fewer.
        draws: how often they are shared out.
    """

    def __init__(self, batch_size: int, samples: int, draws: int) -> None:
        self.batch_size, self.samples, self.draws = batch_size, samples, draws

    def measure(self, trained: Trained) -> Iterator[Measured]:
        """One result: the changes with batch statistics, and with running ones, which should make none."""
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
        """[draws, samples, classes], in float64 on the CPU."""
        draws = []
        for draw in range(self.draws):
            found: dict[int, Tensor] = {}
            for which, (x, labels) in trained.mixed(self.batch_size, self.samples, draw):
                logits = infer(model, x, trained.trial.precision)[: len(labels)]
                found |= dict(zip(which.tolist(), logits.double().cpu(), strict=True))
                trained.pause()
            draws.append(torch.stack([found[image] for image in sorted(found)]))
        return torch.stack(draws)


def changes(logits: Tensor) -> tuple[float | None, float | None]:
    """How often a prediction changes from one draw to another, and how much the logits z do, relatively.

    The first is the share of pairs of draws with different predictions; the second is the root mean square of
    ‖z - z'‖ over such pairs, over that of ‖z‖. Both are means over samples.

    Args:
        logits: [draws, samples, classes], two draws at least.

    Returns:
        Both; None for both if a logit is not finite.
    """
    draws, _, classes = logits.shape
    if not logits.isfinite().all():
        return None, None
    votes = F.one_hot(logits.argmax(2), classes).sum(0).double()
    agreeing = (votes * (votes - 1)).sum(1) / (draws * (draws - 1))
    spread = (logits - logits.mean(0)).square().sum((0, 2)) / (draws - 1)  # half of the mean ‖z - z'‖²
    change = (2 * spread / logits.square().sum(2).mean(0)).sqrt()
    return float((1 - agreeing).mean()), float(change.nan_to_num().mean())
