"""What a running trial tells of itself."""

import weakref

import pytest
import torch

from normbench.tasks.base import task_of
from normbench.training.progress import Progress


def update(progress: Progress, loss: float, size: int) -> None:
    progress.count_updates(torch.tensor(loss), torch.zeros(size, 4), torch.zeros(size, dtype=torch.long))


def test_targets_that_no_total_needs_are_let_go(tiny) -> None:
    """They are the images of all steps since the device was last waited for."""
    noisy = tiny(task="denoising", model="dncnn", norm="none")
    progress = Progress.of(task_of(noisy))
    images = torch.zeros(4, 3, 8, 8)
    kept = weakref.ref(images)

    progress.count_updates(torch.tensor(1.0), torch.full((4,), 20.0), images)
    del images

    assert kept() is None
    progress.synchronize()
    assert progress.position == 4
    assert progress.sums == {"psnr": 80.0}


def test_the_loss_that_is_told_is_the_mean_of_the_epoch_so_far(tiny) -> None:
    trial, progress = tiny(), Progress()
    assert progress.report(trial)["train_loss"] is None
    for loss in (1.0, 3.0, 5.0):
        update(progress, loss, trial.batch_size)
    progress.synchronize()
    assert progress.report(trial)["train_loss"] == pytest.approx(3.0)
    progress.end_epoch(3, {}, 0.1, {})
    assert progress.report(trial)["train_loss"] == pytest.approx(3.0)
    update(progress, 2.0, trial.batch_size)
    progress.synchronize()
    assert progress.report(trial)["train_loss"] == pytest.approx(2.0)
