"""Batch statistics at inference."""

from collections.abc import Iterator

from normbench.records import Measured
from normbench.training.evaluation import Evaluation, Trained
from normbench.training.statistics import running


class Batch(Evaluation):
    """Statistics of batches of test images, drawn at random, as in training.

    Args:
        sizes: numbers of samples that share statistics, none more than the test images.
    """

    def __init__(self, sizes: tuple[int, ...]) -> None:
        self.sizes = sizes

    def measure(self, trained: Trained) -> Iterator[Measured]:
        """Yield a result for every size."""
        for size in self.sizes:
            model = trained.copy()
            running.normalize_by_batch(model, size)
            numbers = trained.test(model, (chunk for _, chunk in trained.mixed(size)))
            yield Measured(name="batch", options={"size": size}, numbers=numbers)
