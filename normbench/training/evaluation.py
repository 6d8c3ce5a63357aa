"""What an evaluation is, what it is taken of, and all those of a trial together."""

import copy
import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from normbench.config.catalog.statistics import EVALUATIONS
from normbench.config.trial import Trial
from normbench.data.batches import Chunk, Images, generator
from normbench.norms.api import Clock
from normbench.records import Measured
from normbench.training.capture.capture import Recorded, Recorder

EVALUATION_BATCH = 500


@torch.inference_mode()
def score(
    model: nn.Module,
    batches: Iterable[Chunk],
    precision: str,
    pause: Callable[[], None],
    logits_of: Callable[[Tensor], Tensor] | None = None,
) -> tuple[float, float]:
    """Mean cross-entropy, finite or not, and accuracy (a fraction; a logit that is not finite is wrong).

    A GPU is waited for at the end only.

    Args:
        model: in whichever mode.
        batches: of images and labels; of the images that have no label, the last ones, nothing is counted.
        precision: fp32, or bf16 where autocast allows it.
        pause: called after every batch.
        logits_of: images -> logits in fp32, where there is another way to them than to call the model.
    """
    logits_of = logits_of or partial(infer, model, precision=precision)
    loss, correct, count = torch.zeros((), dtype=torch.float64), torch.zeros((), dtype=torch.int64), 0
    for x, y in batches:
        logits = logits_of(x)[: len(y)]
        if not count:
            loss, correct = loss.to(x.device), correct.to(x.device)
        loss += F.cross_entropy(logits, y, reduction="sum")
        correct += ((logits.argmax(1) == y) & logits.isfinite().all(1)).sum()
        count += len(y)
        pause()
    return float(loss) / count, int(correct) / count


def infer(model: nn.Module, x: Tensor, precision: str) -> Tensor:
    """Logits in fp32."""
    with torch.autocast(x.device.type, torch.bfloat16, enabled=precision == "bf16"):
        logits: Tensor = model(x)
    return logits.float()


class Inference:
    """Logits of a model that is at inference; replayed for batches like the first, if there is a recorder."""

    def __init__(self, model: nn.Module, precision: str, recorder: Recorder | None) -> None:
        self.step = Recorded(partial(_logits, model, precision), model, recorder)

    def __call__(self, x: Tensor) -> Tensor:
        """Images -> logits in fp32."""
        return self.step(x)[0]


def _logits(model: nn.Module, precision: str, x: Tensor) -> tuple[Tensor]:
    return (infer(model, x, precision),)


@dataclass(frozen=True)
class Trained:
    """A network at the end of its training, and the images to measure it by.

    Attributes:
        model: to be copied, not changed.
        trial: what it was trained by.
        training: images.
        testing: images.
        pause: to be called after every batch.
    """

    model: nn.Module
    trial: Trial
    training: Images
    testing: Images
    pause: Callable[[], None] = lambda: None

    def copy(self) -> nn.Module:
        """A network of its own to change, at inference."""
        return copy.deepcopy(self.model).eval()

    def test(self, model: nn.Module, batches: Iterable[Chunk] | None = None) -> dict[str, float | None]:
        """Loss (None if it is not finite) and accuracy of ``model`` on the test images, or on ``batches``."""
        batches = self.testing.in_order(EVALUATION_BATCH) if batches is None else batches
        loss, accuracy = score(model, batches, self.trial.precision, self.pause)
        return {"test_loss": loss if math.isfinite(loss) else None, "test_accuracy": accuracy}

    def mixed(self, size: int, count: int | None = None, draw: int = 0) -> Iterator[tuple[Tensor, Chunk]]:
        """Test images in batches of exactly ``size``, in an order that is the seed's, and another each draw.

        Args:
            size: at most ``count``.
            count: only so many images, the same at every draw; all by default.
            draw: which order.

        Returns:
            Which images, and these with their labels; the last batch is filled up by the first images again,
            without labels.
        """
        everything = torch.randperm(len(self.testing), generator=self._stream("test images"))[:count]
        order = everything[
            torch.randperm(len(everything), generator=self._stream(f"test batches, draw {draw}"))
        ]
        for first in range(0, len(order), size):
            counted = order[first : first + size]
            images, labels = self.testing.at(torch.cat([counted, order[: size - len(counted)]]))
            yield counted, Chunk(images, labels[: len(counted)])

    def _stream(self, purpose: str) -> torch.Generator:
        return generator(self.trial.seed, self.trial.epochs, purpose)


class Evaluation:
    """A measurement of a trained network. One that watches the training keeps a state for checkpoints.

    A subclass takes the options of its entry in the table.
    """

    def at(self, model: nn.Module, clock: Clock) -> None:
        """See the network in front of an update."""

    def state_dict(self) -> dict[str, Any]:
        """What was seen."""
        return {}

    def load_state_dict(self, state: dict[str, Any], model: nn.Module) -> None:  # noqa: ARG002
        """Go on from what was seen.

        Raises:
            ValueError, LookupError, TypeError, AttributeError: the state is not of this network.
        """
        if state:
            raise ValueError("there is a state of what keeps none")

    def measure(self, trained: Trained) -> Iterator[Measured]:
        """One result, or more of different settings. The network and its statistics stay as they are."""
        raise NotImplementedError


class Evaluations:
    """All evaluations of a trial: told of every update, kept in checkpoints, taken at the end."""

    def __init__(self, trial: Trial, model: nn.Module) -> None:
        self._model = model
        self._all: list[Evaluation] = [
            EVALUATIONS[choice.name].load()(**choice.options) for choice in trial.evaluate
        ]
        self._done: list[list[Measured]] = []

    def at(self, clock: Clock) -> None:
        """Called before every update."""
        for evaluation in self._all:
            evaluation.at(self._model, clock)

    def state_dict(self) -> dict[str, Any]:
        """What was seen so far, and the results that there are."""
        done = [[result.model_dump() for result in results] for results in self._done]
        return {"seen": [evaluation.state_dict() for evaluation in self._all], "done": done}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from there.

        Raises:
            ValueError, LookupError, TypeError, AttributeError: the state is not of these evaluations.
        """
        for evaluation, seen in zip(self._all, state["seen"], strict=True):
            evaluation.load_state_dict(seen, self._model)
        self._done = [[Measured(**result) for result in results] for results in state["done"]]

    def results(self, trained: Trained) -> tuple[Measured, ...]:
        """Take those that are not done yet, and give all."""
        for evaluation in self._all[len(self._done) :]:
            self._done.append(list(evaluation.measure(trained)))
        return tuple(result for results in self._done for result in results)
