"""The state of a running trial: what is saved is all that the next update depends on."""

import copy
from collections.abc import Callable
from pathlib import Path

import torch

from normbench.config.trial import Trial
from normbench.data import dataset as decoded
from normbench.tasks.base import task_of
from normbench.training.state import TrainState
from normbench.training.step import Update, step, training_batches

CPU = torch.device("cpu")


def test_a_state_that_is_loaded_takes_the_same_steps(tiny: Callable[..., Trial], tiny_data: Path) -> None:
    """To the last bit, with all that has a state: momenta, running statistics, clip, dropout, evaluations."""
    trial = tiny(norm="batch", clip="agc", dropout=0.3, evaluate=["cumulative"])
    dataset = decoded.load(trial.dataset, tiny_data)
    images, _ = task_of(trial).images(dataset, CPU)
    batches = list(training_batches(images, trial, epoch=0))

    def run(state: TrainState, first: int, last: int) -> dict[str, object]:
        update = Update(task_of(trial), state.model.train(), state.optimizer, state.steps_per_epoch)
        for batch in batches[first:last]:
            step(state, update, batch)
        state.progress.synchronize()
        return copy.deepcopy(state.state_dict())  # as a checkpoint would

    stopped, resumed = (TrainState.initial(task_of(trial), 4, len(batches), CPU) for _ in range(2))
    resumed.load_state_dict(run(stopped, 0, 3))
    expected, state = run(stopped, 3, 6), run(resumed, 3, 6)

    assert len(batches) == 6
    assert resumed.progress.step == 6
    for part in ("model", "optimizer", "evaluations"):
        torch.testing.assert_close(state[part], expected[part], rtol=0, atol=0)
