"""The same trials on a GPU; skipped where there is none."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from test_resume import Watch
from test_train import METHODS, numbers

from normbench.records import Interrupted
from normbench.train import train
from normbench.trial import Trial

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU here")
Tiny = Callable[..., Trial]


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("norm", METHODS, ids=str)
def test_a_trial_runs_and_resumes_to_the_last_bit(
    tiny: Tiny, tiny_data: Path, tmp_path: Path, norm: object, precision: str
) -> None:
    trial = tiny(norm=norm, precision=precision)
    undisturbed = train(trial, tiny_data, tmp_path / "undisturbed", "cuda:0")
    with pytest.raises(Interrupted):
        train(trial, tiny_data, tmp_path / "stopped", "cuda:0", Watch(stop_at=1))
    assert numbers(train(trial, tiny_data, tmp_path / "stopped", "cuda:0")) == numbers(undisturbed)


@pytest.mark.parametrize("norm", METHODS, ids=str)
def test_the_first_losses_are_those_of_a_cpu(
    tiny: Tiny, tiny_data: Path, tmp_path: Path, norm: object
) -> None:
    """In fp32 and over one epoch of six updates: rounding has not yet grown past a thousandth."""
    trial = tiny(norm=norm, epochs=1)
    losses = [
        train(trial, tiny_data, tmp_path / device.replace(":", ""), device).epochs[0].train_loss
        for device in ("cpu", "cuda:0")
    ]
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)
