"""Layers deleted after training."""

from collections.abc import Iterator

from torch import nn

from normbench.records import Measured
from normbench.training.evaluation import Evaluation, Trained
from normbench.training.statistics import running


class Removed(Evaluation):
    """No mean, variance, gamma or beta: the convolutions' outputs as they are."""

    def measure(self, trained: Trained) -> Iterator[Measured]:
        """One result."""
        model = trained.copy()
        for name, _ in running.layers(model):
            parent, _, attribute = name.rpartition(".")
            setattr(model.get_submodule(parent), attribute, nn.Identity())
        yield Measured(name="removed", numbers=trained.test(model))
