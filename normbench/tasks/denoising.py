"""Removal of Gaussian noise from images (the problem of Zhang et al. 2017, arXiv 1608.03981)."""

import torch
from torch import Tensor

from normbench.config.trial import Trial
from normbench.data.batches import Chunk, generator
from normbench.tasks.base import Task
from normbench.tasks.image_quality import WINDOW, psnr, squared_error, ssim

KEYS = 0x9E3779B97F4A7C15  # odd: its multiples modulo 2^32, which seed the streams of images, all differ
UNIT = 2.0**20  # of a PSNR in the sums of an epoch, which are then exact in whatever parts they are added up


class Denoising(Task):
    """Images with noise in, images without out; the loss is the mean squared error of values in [0, 1].

    The noise is not clipped. That of an image depends on the seed, the epoch and the number of the image in
    its split, and that of a test image on its number alone.
    """

    metrics = ("psnr", "ssim")
    is_standardized = False

    def __init__(self, trial: Trial) -> None:
        super().__init__(trial)
        self._sigma = trial.task.options["sigma"] / 255

    def example(self, samples: int, image_size: int) -> Chunk:
        """Return random images [N, 3, H, W] as input and target.

        Raises:
            ValueError: the images are too small for SSIM.
        """
        if image_size < WINDOW:
            raise ValueError(
                f"the task denoising needs images of at least {WINDOW}×{WINDOW} pixels, for SSIM"
            )
        images = torch.rand(samples, 3, image_size, image_size)
        return Chunk(images, images)

    def batch(self, images: Tensor, labels: Tensor, indices: Tensor, epoch: int | None) -> Chunk:  # noqa: ARG002
        """Return the images with noise, and as they are."""
        purpose = (0, 0, "noise of test images") if epoch is None else (self.trial.seed, epoch, "noise")
        stream = generator(*purpose)
        first, shape = stream.initial_seed(), images.shape[1:]
        noise = torch.empty(len(images), shape.numel())  # drawn on the CPU, for the same on every device
        for row, index in zip(noise, indices.tolist(), strict=True):
            row.normal_(generator=stream.manual_seed((first + index * KEYS) % 2**64))
        added = noise.view(len(images), *shape).to(images.device)
        noisy = torch.add(images, added, alpha=self._sigma)
        return Chunk(noisy.contiguous(memory_format=torch.channels_last), images)

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return the mean squared error."""
        return squared_error(outputs, targets).mean()

    def sums(self, outputs: Tensor, targets: Tensor) -> dict[str, Tensor]:
        """Return the sums of the squared errors of images, and of their PSNR and SSIM."""
        return {
            "loss": squared_error(outputs, targets).sum(),
            "psnr": psnr(outputs, targets).sum(),
            "ssim": ssim(outputs, targets).sum(),
        }

    def summary(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return the PSNR of each image, [N]."""
        return psnr(outputs.float(), targets)

    def totals(self, summary: Tensor, targets: Tensor) -> dict[str, Tensor]:  # noqa: ARG002
        """Return the sum of the PSNR, rounded to 2^-20 dB each."""
        return {"psnr": (summary.double() * UNIT).round().sum() / UNIT}
