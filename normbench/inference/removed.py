"""Layers deleted after training."""

from collections.abc import Iterator

from torch import nn

from normbench.inference import running
from normbench.inference.evaluation import Evaluation, Trained
from normbench.records import Measured


class Removed(Evaluation):
    """No mean, variance, gamma or beta: the convolutions' outputs as they are."""

    def measure(self, trained: Trained) -> Iterator[Measured]:
        """One result."""
        model = trained.copy()
        for name, _ in running.layers(model):
            parent, _, attribute = name.rpartition(".")
            setattr(model.get_submodule(parent), attribute, nn.Identity())
        yield Measured(name="removed", numbers=trained.test(model))
