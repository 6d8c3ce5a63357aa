"""Stylization of images by one pass through a network (Johnson et al. 2016, Ulyanov et al. 2016)."""

from typing import Self

import torch
from torch import Tensor

from normbench.config.trial import Trial
from normbench.data.batches import Chunk
from normbench.tasks.base import Task
from normbench.tasks.features import RandomFeatures, Vgg16Features, vgg16_sha256, vgg16_weights
from normbench.tasks.style_images import style_image
from normbench.tasks.style_loss import content_loss, gram, style_loss

SMALLEST = 8  # pixels; the deepest features of VGG-16 see squares of this size as one


class Style(Task):
    """Images in, images in the style of another out; style and content are those of a fixed network.

    The loss is style loss + content_weight · content loss. The fixed network is never trained, is no part of
    the trained one, and is on its device.

    Raises:
        NoWeightsError: the fixed network needs weights that are not on this machine.
    """

    metrics = ("style_objective", "style_loss", "content_loss")
    is_standardized = False
    features: RandomFeatures | Vgg16Features
    targets: tuple[Tensor, ...]

    def __init__(self, trial: Trial) -> None:
        super().__init__(trial)
        self._content_weight: float = trial.task.options["content_weight"]
        if trial.task.options["features"] == "vgg16":
            vgg16_weights()

    def to(self, device: torch.device) -> Self:
        """Build the fixed network on a device, with the Gram matrices of the style image, [C, C] each."""
        is_random = self.trial.task.options["features"] == "random"
        self.features = (RandomFeatures() if is_random else Vgg16Features()).to(device)
        image = torch.from_numpy(style_image(self.trial.task.options["image"])).float()
        with torch.no_grad():
            self.targets = tuple(gram(maps)[0] for maps in self.features(image[None].to(device)).style)
        return self

    def sources(self) -> dict[str, str]:
        """Return the hash of the weights of the fixed network, if they are read from a file."""
        is_random = self.trial.task.options["features"] == "random"
        return {} if is_random else {"vgg16_weights_sha256": vgg16_sha256()}

    def example(self, samples: int, image_size: int) -> Chunk:
        """Return random images [N, 3, H, W] as input and target.

        Raises:
            ValueError: the images are too small for the features.
        """
        if image_size < SMALLEST:
            raise ValueError(f"the task style needs images of at least {SMALLEST}×{SMALLEST} pixels")
        images = torch.rand(samples, 3, image_size, image_size)
        return Chunk(images, images)

    def batch(self, images: Tensor, labels: Tensor, indices: Tensor, epoch: int | None) -> Chunk:  # noqa: ARG002
        """Return the images, whose content is to be kept, as input and target."""
        return Chunk(images, images)

    def losses(self, outputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Return the style loss and the content loss of each image, [N] each."""
        features = self.features(outputs)
        with torch.no_grad():
            content = self.features(targets).content
        return style_loss(features.style, self.targets), content_loss(features.content, content)

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return style loss + content_weight · content loss."""
        style, content = self.losses(outputs, targets)
        return (style + self._content_weight * content).mean()

    def sums(self, outputs: Tensor, targets: Tensor) -> dict[str, Tensor]:
        """Return the sums of the loss, also under its name as a metric, and of its two parts."""
        style, content = (part.sum() for part in self.losses(outputs, targets))
        objective = style + self._content_weight * content
        return {
            "loss": objective,
            "style_objective": objective,
            "style_loss": style,
            "content_loss": content,
        }

    def summary(self, outputs: Tensor, targets: Tensor) -> Tensor:  # noqa: ARG002
        """Return nothing, [N, 0]: the losses of training steps say it all."""
        return outputs.flatten(1)[:, :0]

    def totals(self, summary: Tensor, targets: Tensor) -> dict[str, Tensor]:  # noqa: ARG002
        """Return that there are none."""
        return {}
