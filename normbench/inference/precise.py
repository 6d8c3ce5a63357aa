"""Statistics taken anew with fixed weights: "PreciseBN" (Wu & Johnson 2021, arXiv 2105.07576, section 3)."""

import itertools
from collections.abc import Iterable, Iterator

import torch
from torch import Tensor, nn

from normbench.inference import running
from normbench.inference.evaluation import Evaluation, Trained, infer
from normbench.records import Measured


class Precise(Evaluation):
    """The simple average over training batches of the statistics that training would have put in its own.

    The batches are of another epoch of training: as large, with statistics over as many samples, cropped and
    flipped alike. Everything else is at inference: nothing is dropped out. As in training, the variance kept
    is the average of those within the batches.

    Args:
        samples: training images, rounded down to whole batches; all, if there are fewer.
    """

    def __init__(self, samples: int) -> None:
        self.samples = samples

    def measure(self, trained: Trained) -> Iterator[Measured]:
        """One result, with the number of images that the statistics are of."""
        trial = trained.trial
        batches = min(self.samples, len(trained.training)) // trial.batch_size
        model = trained.copy()
        chunks = trained.training.training_chunks(trial.seed, trial.epochs, trial.batch_size, trial.augment)
        images = (x for chunk in chunks for x in torch.split(chunk.images, trial.batch_size))
        running.put(model, average(trained.copy(), trained, itertools.islice(images, batches)))
        numbers = trained.test(model) | {"images": batches * trial.batch_size}
        yield Measured(name="precise", options={"samples": self.samples}, numbers=numbers)


@torch.inference_mode()
def average(model: nn.Module, trained: Trained, batches: Iterable[Tensor]) -> dict[str, Tensor]:
    """The mean over ``batches`` of the statistics of each, in float64; ``model`` is of no use afterwards."""
    trial = trained.trial
    running.normalize_by_batch(model, trial.norm_batch_size or trial.batch_size)
    kept = {name: one.value.clone() for name, one in running.statistics(model).items()}
    for _, layer in running.layers(model):
        layer.momentum = 1.0  # so that a batch leaves its own statistics behind
    sums = {name: torch.zeros_like(value, dtype=torch.float64) for name, value in kept.items()}
    count = 0
    for x in batches:
        running.put(model, kept)
        infer(model, x, trial.precision)
        for name, one in running.statistics(model).items():
            sums[name] += one.value
        count += 1
        trained.pause()
    return {name: total / count for name, total in sums.items()}
