"""The arithmetic mean of all batch statistics of the last epochs."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from normbench.norms.api import Clock
from normbench.records import Measured
from normbench.training.evaluation import Evaluation, Trained
from normbench.training.statistics import running


class Cumulative(Evaluation):
    """The mean of batch statistics, in which every batch of the last epochs has the same weight.

    It is of what a layer's running statistics follow; of a variance, of those within norm batches, unbiased.
    The variance between means of batches does not count, as in the moving average; with weights that change,
    it would not be the variance of any population.

    The running statistics r determine the sum of the batch statistics b: from
    r_t = r_{t-1} + m · (b_t - r_{t-1}) for t = 1 … T follows

        Σ b_t = Σ r_{t-1} + (r_T - r_0) / m,

    so it is enough to observe the running statistics before every update. With sums in float64, the error is
    that of rounding r_t to fp32, on average, over m.

    Args:
        epochs: the number of last epochs.
    """

    def __init__(self, epochs: int) -> None:
        self.epochs = epochs
        self._updates = 0
        self._first: dict[str, Tensor] = {}
        self._sums: dict[str, Tensor] = {}

    @torch.no_grad()
    def at(self, model: nn.Module, clock: Clock) -> None:
        """Add r_{t-1}."""
        if clock.step < (clock.epochs - self.epochs) * clock.steps_per_epoch:
            return
        now = running.statistics(model)
        if not self._updates:
            self._first = {
                name: statistic.value.to(torch.float64, copy=True) for name, statistic in now.items()
            }
            self._sums = {name: torch.zeros_like(first) for name, first in self._first.items()}
        for name, statistic in now.items():
            self._sums[name] += statistic.value
        self._updates += 1

    def state_dict(self) -> dict[str, Any]:
        """Return the number of updates, r_0 and Σ r_{t-1}."""
        return {"updates": self._updates, "first": self._first, "sums": self._sums}

    def load_state_dict(self, state: dict[str, Any], model: nn.Module) -> None:
        """Go on from ``state``."""
        now = running.statistics(model) if state["updates"] else {}
        shapes = {name: statistic.value.shape for name, statistic in now.items()}
        first, sums = state["first"], state["sums"]
        for part in (first, sums):
            if {name: tensor.shape for name, tensor in part.items()} != shapes:
                raise ValueError("sums of running statistics are not those of its layers")
        self._updates = state["updates"]
        self._first = {name: first[name].to(statistic.value.device) for name, statistic in now.items()}
        self._sums = {name: sums[name].to(statistic.value.device) for name, statistic in now.items()}

    def average(self, model: nn.Module) -> dict[str, Tensor]:
        """Return Σ b_t / T of the updates, in float64; ``model`` is as the last of them left it."""
        return {
            name: (self._sums[name] + (last - self._first[name]) / momentum) / self._updates
            for name, (last, momentum) in running.statistics(model).items()
        }

    def measure(self, trained: Trained) -> Iterator[Measured]:
        """Yield one result, with the number of updates."""
        model = trained.copy()
        running.put(model, self.average(trained.model))
        numbers = trained.test(model) | {"updates": self._updates}
        yield Measured(name="cumulative", options={"epochs": self.epochs}, numbers=numbers)
