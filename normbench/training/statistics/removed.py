"""Layers deleted after training."""

from collections.abc import Iterator

from torch import nn

from normbench.records import Measured
from normbench.training.evaluation import Evaluation, Trained
from normbench.training.statistics import running


class Removed(Evaluation):
    """A network with the identity in place of every layer: no mean, variance, gamma or beta."""

    def measure(self, trained: Trained) -> Iterator[Measured]:
        """Yield one result."""
        model = trained.copy()
        for name, _ in running.layers(model):
            parent, _, attribute = name.rpartition(".")
            setattr(model.get_submodule(parent), attribute, nn.Identity())
        yield Measured(name="removed", numbers=trained.test(model))
