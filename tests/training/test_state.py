"""The state of a running trial: what is saved is all that the next update depends on."""

import copy
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from normbench.config.trial import Trial
from normbench.data import dataset as decoded
from normbench.tasks.base import task_of
from normbench.training.state import TrainState
from normbench.training.step import Update, step, training_batches

CPU = torch.device("cpu")


@pytest.mark.parametrize("optimizer", ["sgd", "adam", "adamw"])
def test_a_state_that_is_loaded_takes_the_same_steps(
    tiny: Callable[..., Trial], tiny_data: Path, optimizer: str
) -> None:
    """To the last bit, with all that has a state: momenta, running statistics, clip, dropout, evaluations."""
    trial = tiny(norm="batch", clip="agc", dropout=0.3, evaluate=["cumulative"], optimizer=optimizer)
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


@pytest.mark.parametrize("optimizer", ["sgd", "adam", {"name": "sgd", "momentum": 0.0}], ids=str)
def test_the_state_of_another_optimizer_or_shape_is_refused(
    tiny: Callable[..., Trial], optimizer: object
) -> None:
    trial, wide = (tiny(optimizer=optimizer, model={"name": "resnet8", "width": w}) for w in (0.5, 1.0))
    other = tiny(optimizer={"name": "adam" if optimizer == "sgd" else "sgd"})

    def state(trial: Trial, steps: int = 1) -> TrainState:
        made = TrainState.initial(task_of(trial), 4, 6, CPU)
        update = Update(task_of(trial), made.model.train(), made.optimizer, 6)
        for number in range(steps):
            update(number, torch.randn(10, 3, 8, 8), torch.zeros(10, dtype=torch.long))
        return made

    expected = state(trial).state_dict()
    with pytest.raises((ValueError, LookupError), match=r"the optimizer keeps|step"):
        state(trial, 0).load_state_dict(expected | {"optimizer": state(other).state_dict()["optimizer"]})
    if optimizer in ("sgd", "adam"):
        broad = state(wide).state_dict()["optimizer"]
        with pytest.raises(ValueError, match="of the optimizer is not of its parameter's shape"):
            state(trial, 0).load_state_dict(expected | {"optimizer": broad})
    state(trial, 0).load_state_dict(expected)
