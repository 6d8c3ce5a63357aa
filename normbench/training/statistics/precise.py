"""Statistics with fixed weights: PreciseBN (Wu & Johnson 2021, arXiv 2105.07576, section 3)."""

import itertools
from collections.abc import Iterable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from normbench.records import Measured
from normbench.training.evaluation import Evaluation, Trained, infer
from normbench.training.statistics import running


class Precise(Evaluation):
    """Statistics over training batches, which the trained network normalizes as in training.

    The batches are those of a further epoch: of the same size, with statistics over as many samples, cropped
    and flipped. All else is as at inference: there is no dropout. Means are averaged over batches.

    Args:
        samples: training images, rounded down to whole batches; all, if there are fewer.
        variance: ``population``, of all values together: the mean of x² less the square of the mean of x, so
            that the variance between the means of batches counts too, as the authors' released code has it
            (fvcore's population estimator) for small batches. ``within``, the mean of the variances within
            norm batches, unbiased as training keeps them.
    """

    def __init__(self, samples: int, variance: str) -> None:
        self.samples, self.variance = samples, variance

    def measure(self, trained: Trained) -> Iterator[Measured]:
        """Yield one result, with the number of images of the statistics."""
        trial = trained.trial
        batches = min(self.samples, len(trained.training)) // trial.batch_size
        model = trained.copy()
        chunks = trained.training.training_chunks(trial.seed, trial.epochs, trial.batch_size, trial.augment)
        images = (x for chunk in chunks for x in torch.split(chunk.images, trial.batch_size))
        averages = average(trained.copy(), trained, itertools.islice(images, batches), self.variance)
        running.put(model, averages)
        numbers = trained.test(model) | {"images": batches * trial.batch_size}
        options: dict[str, int | str] = {"samples": self.samples, "variance": self.variance}
        yield Measured(name="precise", options=options, numbers=numbers)


@torch.inference_mode()
def average(
    model: nn.Module, trained: Trained, batches: Iterable[Tensor], variance: str
) -> dict[str, Tensor]:
    """Return running statistics, in float64, over ``batches`` of one size; ``model`` is useless afterwards.

    ``variance`` is as of :class:`Precise`. The population's is computed from the input of a layer, for its
    ``running_var``. Any other statistic is the mean over batches of what the layer itself would keep, which
    for a mean, or a mean of squares, is the population's as well.
    """
    trial = trained.trial
    running.normalize_by_batch(model, trial.norm_batch_size or trial.batch_size)
    initial = {name: statistic.value.clone() for name, statistic in running.statistics(model).items()}
    inputs: dict[str, list[tuple[Tensor, Tensor]]] = {}
    for name, layer in running.layers(model):
        layer.momentum = 1.0  # so that only the last batch counts
        if variance == "population" and hasattr(layer, "running_var"):
            inputs[f"{name}.running_var"] = []
            layer.register_forward_pre_hook(partial(_append_moments, inputs[f"{name}.running_var"]))
    sums = {name: torch.zeros_like(value, dtype=torch.float64) for name, value in initial.items()}
    count = 0
    for x in batches:
        running.put(model, initial)
        infer(model, x, trial.precision)
        for name, statistic in running.statistics(model).items():
            sums[name] += statistic.value
        count += 1
        trained.pause()
    averages = {name: total / count for name, total in sums.items()}
    return averages | {name: _population(moments) for name, moments in inputs.items()}


def _append_moments(moments: list[tuple[Tensor, Tensor]], _layer: nn.Module, inputs: tuple[Any, ...]) -> None:
    """Append variance and mean of each channel of a layer's input over a batch, [C] each."""
    x = inputs[0]
    x = x.to(torch.promote_types(x.dtype, torch.float32))
    variance, mean = torch.var_mean(x, (0, 2, 3), correction=0)
    moments.append((variance.double(), mean.double()))


def _population(moments: list[tuple[Tensor, Tensor]]) -> Tensor:
    """Return the variance of all batches: the mean of their variances and the variance of their means."""
    variances, means = (torch.stack(parts) for parts in zip(*moments, strict=True))
    return variances.mean(0) + means.var(0, correction=0)
