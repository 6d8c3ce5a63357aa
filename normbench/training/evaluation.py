"""Evaluations of a trained network: their interface, their inputs, and all those of a trial."""

import copy
import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from normbench.config.catalog.statistics import EVALUATIONS
from normbench.config.trial import Trial
from normbench.data.batches import Chunk, Images, generator
from normbench.norms.api import Clock
from normbench.records import Measured
from normbench.tasks.base import Task
from normbench.training.capture.capture import RecordedStep, Recorder

EVALUATION_BATCH = 500


@torch.inference_mode()
def score(
    task: Task,
    model: nn.Module,
    batches: Iterable[Chunk],
    pause: Callable[[], None] = lambda: None,
    outputs_of: Callable[[Tensor], Tensor] | None = None,
) -> dict[str, float]:
    """Return the mean over samples of the loss, finite or not, and of the metrics of a task.

    A GPU is waited for at the end only.

    Args:
        task: the learning problem of the model.
        model: in training or inference mode.
        batches: inputs and targets; inputs without a target, the last ones, do not count.
        pause: called after every batch.
        outputs_of: inputs -> outputs in fp32; calls the model by default.
    """
    outputs_of = outputs_of or partial(infer, model, precision=task.trial.precision)
    totals: dict[str, Tensor] = {}
    count = 0
    for x, y in batches:
        for name, batch_sum in task.sums(outputs_of(x)[: len(y)], y).items():
            if name not in totals:
                totals[name] = torch.zeros((), dtype=torch.float64, device=batch_sum.device)
            totals[name] += batch_sum
        count += len(y)
        pause()
    return {name: float(total) / count for name, total in totals.items()}


def infer(model: nn.Module, x: Tensor, precision: str) -> Tensor:
    """Return the outputs of a model in fp32."""
    with torch.autocast(x.device.type, torch.bfloat16, enabled=precision == "bf16"):
        outputs: Tensor = model(x)
    return outputs.float()


class Inference:
    """The inference of a model, replayed for batches like the first if the recorder is for evaluations."""

    def __init__(self, model: nn.Module, precision: str, recorder: Recorder | None) -> None:
        if recorder is not None and not recorder.evaluations:
            recorder = None
        self.step = RecordedStep(partial(_outputs, model, precision), model, recorder)

    def __call__(self, x: Tensor) -> Tensor:
        """Return the outputs in fp32."""
        return self.step(x)[0]


def _outputs(model: nn.Module, precision: str, x: Tensor) -> tuple[Tensor]:
    return (infer(model, x, precision),)


@dataclass(frozen=True)
class Trained:
    """A trained network with its images.

    Attributes:
        model: to be copied, not changed.
        trial: its settings.
        task: its learning problem.
        training: images.
        testing: images.
        pause: to be called after every batch.
    """

    model: nn.Module
    trial: Trial
    task: Task
    training: Images
    testing: Images
    pause: Callable[[], None] = lambda: None

    def copy(self) -> nn.Module:
        """Return a copy of the network in inference mode."""
        return copy.deepcopy(self.model).eval()

    def test(self, model: nn.Module, batches: Iterable[Chunk] | None = None) -> dict[str, float | None]:
        """Return loss and metrics of ``model`` on the test images or ``batches``; None if not finite."""
        batches = self.testing.in_order(EVALUATION_BATCH) if batches is None else batches
        scores = score(self.task, model, batches, self.pause)
        return {f"test_{name}": value if math.isfinite(value) else None for name, value in scores.items()}

    def mixed(self, size: int, count: int | None = None, draw: int = 0) -> Iterator[tuple[Tensor, Chunk]]:
        """Yield test images in batches of exactly ``size``, in an order by seed and draw.

        Args:
            size: at most ``count``.
            count: number of images, the same at every draw; all by default.
            draw: number of the order.

        Yields:
            Indices of images, and these with their labels; the last batch is filled up by the first images,
            without labels.
        """
        sample = torch.randperm(len(self.testing), generator=self._generator("test images"))[:count]
        purpose = f"test batches, draw {draw}"
        order = sample[torch.randperm(len(sample), generator=self._generator(purpose))]
        for first in range(0, len(order), size):
            indices = order[first : first + size]
            images, labels = self.testing.at(torch.cat([indices, order[: size - len(indices)]]))
            yield indices, Chunk(images, labels[: len(indices)])

    def _generator(self, purpose: str) -> torch.Generator:
        return generator(self.trial.seed, self.trial.epochs, purpose)


class Evaluation:
    """A measurement of a trained network, with a state for checkpoints if it observes the training.

    A subclass takes the options of its entry in the table.
    """

    def at(self, model: nn.Module, clock: Clock) -> None:
        """Observe the network before an update."""

    def state_dict(self) -> dict[str, Any]:
        """Return what was observed."""
        return {}

    def load_state_dict(self, state: dict[str, Any], model: nn.Module) -> None:  # noqa: ARG002
        """Go on from what was observed.

        Raises:
            ValueError, LookupError, TypeError, AttributeError: the state is not of this network.
        """
        if state:
            raise ValueError("there is a state of what keeps none")

    def measure(self, trained: Trained) -> Iterator[Measured]:
        """Yield a result for every setting. The network and its statistics stay as they are."""
        raise NotImplementedError


class Evaluations:
    """All evaluations of a trial, which observe every update and measure at the end."""

    def __init__(self, trial: Trial, model: nn.Module) -> None:
        self._model = model
        self._all: list[Evaluation] = [
            EVALUATIONS[choice.name].load()(**choice.options) for choice in trial.evaluate
        ]
        self._done: list[list[Measured]] = []

    @property
    def observe(self) -> bool:
        """Whether one of them observes the network before every update."""
        return any(type(evaluation).at is not Evaluation.at for evaluation in self._all)

    def at(self, clock: Clock) -> None:
        """Observe the network before an update."""
        for evaluation in self._all:
            evaluation.at(self._model, clock)

    def state_dict(self) -> dict[str, Any]:
        """Return what was observed and the results so far."""
        done = [[result.model_dump() for result in results] for results in self._done]
        return {"seen": [evaluation.state_dict() for evaluation in self._all], "done": done}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from ``state``.

        Raises:
            ValueError, LookupError, TypeError, AttributeError: the state is not of these evaluations.
        """
        for evaluation, seen in zip(self._all, state["seen"], strict=True):
            evaluation.load_state_dict(seen, self._model)
        self._done = [[Measured(**result) for result in results] for results in state["done"]]

    def results(self, trained: Trained) -> tuple[Measured, ...]:
        """Measure what is not done yet and return all results."""
        for evaluation in self._all[len(self._done) :]:
            self._done.append(list(evaluation.measure(trained)))
        return tuple(result for results in self._done for result in results)
