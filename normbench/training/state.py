"""The state of a running trial, from which a checkpoint lets it go on."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from normbench.config.trial import Trial
from normbench.norms.api import Clock
from normbench.tasks.base import Task
from normbench.training import checkpoint as checkpoints
from normbench.training.build import network, to_device
from normbench.training.evaluation import Evaluations
from normbench.training.optim import SGD, Adam, check_state, optimizer
from normbench.training.progress import Progress


@dataclass
class TrainState:
    """The state of a running trial: all that its next update depends on.

    Attributes:
        trial: its settings.
        task: its learning problem.
        steps_per_epoch: updates of an epoch.
        model: the network, on its device.
        optimizer: with what it keeps of every parameter.
        evaluations: what they have seen of the training.
        progress: running totals.
    """

    trial: Trial
    task: Task
    steps_per_epoch: int
    model: nn.Module
    optimizer: SGD | Adam
    evaluations: Evaluations
    progress: Progress

    @classmethod
    def initial(cls, task: Task, classes: int, steps_per_epoch: int, device: torch.device) -> "TrainState":
        """Return the state before the first update."""
        trial = task.trial
        model = to_device(network(trial, classes), device)
        updates, evaluations = optimizer(trial, model), Evaluations(trial, model)
        return cls(trial, task, steps_per_epoch, model, updates, evaluations, Progress.of(task))

    @property
    def epoch(self) -> int:
        """The number of epochs that are over."""
        return len(self.progress.epochs)

    @property
    def is_observed(self) -> bool:
        """Whether something looks at the network before every update of this epoch."""
        return self.evaluations.observe or (self.trial.online and not self.epoch)

    @property
    def clock(self) -> Clock:
        """The time in front of the next update."""
        return Clock(self.progress.step, self.steps_per_epoch, self.trial.epochs)

    def state_dict(self) -> dict[str, Any]:
        """Return what a checkpoint keeps; ``progress`` must be synchronized."""
        return {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "evaluations": self.evaluations.state_dict(),
            "progress": self.progress.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from ``state``.

        Raises:
            RuntimeError, ValueError, LookupError, TypeError, AttributeError: it is not of this trial.
        """
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        check_state(self.optimizer)
        self.evaluations.load_state_dict(state["evaluations"])
        self.progress = Progress.of(self.task, state["progress"])


def resume(
    initial: Callable[[], TrainState], prefix: Path, owner: str, warn: Callable[[str], None]
) -> TrainState:
    """Return the state of the newest usable checkpoint, or the initial one.

    Args:
        initial: makes an initial state.
        prefix: of the checkpoint files.
        owner: as in :func:`normbench.training.checkpoint.load`.
        warn: called with a sentence about every checkpoint that is not used.
    """
    for path, checkpoint in checkpoints.load(prefix, owner, warn):
        state = initial()
        try:
            state.load_state_dict(checkpoint)
            return state
        except (RuntimeError, ValueError, LookupError, TypeError, AttributeError) as error:
            warn(f"{path} does not fit this network ({str(error).partition(chr(10))[0]}) and is not used")
    return initial()
