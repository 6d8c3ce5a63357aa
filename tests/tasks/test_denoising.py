"""Denoising: the noise as a function of seed, epoch and image, and what is measured."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from normbench.config.trial import Trial
from normbench.data import dataset
from normbench.data.batches import Images
from normbench.tasks.base import task_of
from normbench.tasks.denoising import Denoising
from normbench.training.build import check
from normbench.training.step import training_batches

CPU = torch.device("cpu")


def denoising(**settings: Any) -> Denoising:
    sigma = settings.pop("sigma", 25.0)
    trial = Trial(task={"name": "denoising", "sigma": sigma}, model="dncnn", batch_size=4, **settings)
    task = task_of(trial)
    assert isinstance(task, Denoising)
    return task


def noise(
    task: Denoising, indices: list[int], epoch: int | None, shape: tuple[int, ...] = (3, 32, 32)
) -> Tensor:
    """The noise that is added to black images, in units of its standard deviation."""
    black = torch.zeros(len(indices), *shape)
    chunk = task.batch(black, torch.zeros(len(indices)), torch.tensor(indices), epoch)
    assert chunk.labels is black
    return chunk.images / (task.trial.task.options["sigma"] / 255)


def test_the_noise_is_gaussian_white_and_of_the_given_strength() -> None:
    """Five standard errors of n draws: of the mean 1/√n, the deviation 1/√2n, a correlation 1/√n."""
    z = noise(denoising(sigma=50.0), list(range(40)), 0).double()
    n = z.numel()
    assert abs(float(z.mean())) < 5 / math.sqrt(n)
    assert abs(float(z.std()) - 1) < 5 / math.sqrt(2 * n)
    assert abs(float((z.abs() > 2).double().mean()) - math.erfc(math.sqrt(2))) < 5 * math.sqrt(0.0455 / n)
    for axis in range(4):  # images, channels, rows and columns beside each other
        assert abs(float((z * z.roll(1, axis)).mean())) < 5 / math.sqrt(n)


def test_the_noise_of_an_image_depends_on_seed_epoch_and_its_number_and_on_nothing_else() -> None:
    task = denoising(seed=3)
    z = noise(task, [7, 1, 7_000_000], 2)
    assert torch.equal(noise(task, [1], 2)[0], z[1])
    assert torch.equal(noise(task, [0, 5, 7_000_000, 7], 2)[2:], z[[2, 0]])
    others = [
        noise(task, [1], 3),
        noise(denoising(seed=4), [1], 2),
        noise(task, [2], 2),
        noise(task, [1], None),
    ]
    different = torch.cat([z[1:2], *others]).flatten(1)
    assert float((torch.corrcoef(different) - torch.eye(5)).abs().max()) < 5 / math.sqrt(3072)


def test_the_noise_of_a_test_image_is_the_same_in_every_trial() -> None:
    first, second = denoising(seed=0), denoising(seed=9, norm="instance", epochs=3)
    assert torch.equal(noise(first, [4, 2], None), noise(second, [4, 2], None))


def test_without_noise_images_stay_as_they_are() -> None:
    images = torch.rand(2, 3, 12, 12)
    chunk = denoising(sigma=0.0).batch(images, torch.zeros(2), torch.arange(2), 0)
    assert torch.equal(chunk.images, images)


def test_negative_noise_is_refused_by_key_value_and_rule() -> None:
    with pytest.raises(ValidationError) as error:
        denoising(sigma=-1.0)
    (problem,) = error.value.errors()
    assert (problem["loc"][-1], problem["input"], problem["msg"]) == (
        "sigma", -1.0, "Input should be greater than or equal to 0",
    )  # fmt: skip


@pytest.fixture(scope="module")
def images(tiny_data: Path) -> Images:
    """64 training images of 16×16 pixels."""
    choice = Trial(dataset={"name": "folder", "folder": "tiny", "image_size": 16}).dataset
    dataset.prepare(choice, tiny_data)
    return denoising(augment=False).images(dataset.load(choice, tiny_data), CPU)[0]


def test_an_epoch_has_the_same_pairs_whatever_the_batch_size_and_wherever_it_is_resumed(
    images: Images,
) -> None:
    """Inputs are noisy, targets in [0, 1] and not standardized."""
    task = denoising(augment=False)
    whole = list(training_batches(images, task.trial, 1))
    by_16 = list(training_batches(images, task.trial.model_copy(update={"batch_size": 16}), 1))
    resumed = list(training_batches(images, task.trial, 1, 20))
    for part in (0, 1):
        everything = torch.cat([batch[part] for batch in whole])
        assert torch.equal(everything, torch.cat([batch[part] for batch in by_16]))
        assert torch.equal(everything[20:], torch.cat([batch[part] for batch in resumed]))
    noisy, clean = (torch.cat(part) for part in zip(*whole, strict=True))
    assert 0 <= float(clean.min()) < float(clean.max()) <= 1
    torch.testing.assert_close(clean * 255, (clean * 255).round(), rtol=0, atol=1e-4)
    expected = -20 * math.log10(25 / 255)
    measured = -10 * math.log10(float((noisy - clean).double().square().mean()))
    assert measured == pytest.approx(expected, abs=0.1)  # 5 standard errors of 49,152 squares: 0.14 dB


def test_the_loss_is_the_mean_squared_error_with_its_gradient() -> None:
    task = denoising()
    random = np.random.RandomState(0)
    outputs, targets = (torch.from_numpy(random.uniform(0, 1, (2, 3, 11, 11))) for _ in range(2))
    expected = ((outputs.numpy() - targets.numpy()) ** 2).mean()
    assert float(task.loss(outputs, targets)) == pytest.approx(expected, rel=1e-14)
    assert float(task.sums(outputs, targets)["loss"]) == pytest.approx(2 * expected, rel=1e-14)
    outputs.requires_grad_()
    torch.autograd.backward(task.loss(outputs, targets))
    assert outputs.grad is not None
    torch.testing.assert_close(outputs.grad, 2 * (outputs.detach() - targets) / outputs.numel())


def test_the_training_psnr_is_the_same_to_the_last_bit_in_whatever_parts_it_is_added_up() -> None:
    task = denoising()
    summary = torch.rand(1000) * 40
    targets = torch.zeros(1000)
    whole = float(task.totals(summary, targets)["psnr"])
    parts = (float(task.totals(part, targets)["psnr"]) for part in summary.split(7))
    assert whole == sum(parts)
    assert whole == pytest.approx(float(summary.double().sum()), abs=1000 * 2.0**-21)


def test_images_below_the_window_of_ssim_are_refused_before_training() -> None:
    with pytest.raises(ValueError, match="denoising needs images of at least 11×11 pixels, for SSIM"):
        check(denoising().trial, 10, 8)
