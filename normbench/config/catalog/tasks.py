"""The learning problems, one file each. This registry lists them all."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from normbench.config import sequences
from normbench.config.registry import Entry, Registry, at_least, flag, interval, one_of


@dataclass(frozen=True)
class TaskEntry(Entry):
    """A learning problem; its code is a :class:`normbench.tasks.base.Task`.

    Attributes:
        metrics: those of :data:`normbench.report.metrics.METRICS` that no other kind of task has; the first
            is what trials are compared by.
        refuses: settings of a trial that make no sense in it and must keep their defaults; ``evaluate.name``
            is one of the choices of a list.
        canonical: takes a trial, refuses what does not go together in the task, and returns settings that
            replace those of equal effect; None where there is nothing of the kind.
    """

    metrics: tuple[str, ...] = ("accuracy", "accuracy_median5", "online")
    refuses: tuple[str, ...] = ()
    canonical: Callable[[Any], Mapping[str, Any]] | None = None

    @property
    def metric(self) -> str:
        """The metric that trials are compared by."""
        return self.metrics[0]


OF_CLASSES = (
    "label_smoothing",
    "online",
    "whiten",
    "norm_every",
    "diagnose.signal_propagation",
    "evaluate.neighbours",
)

TASKS: Registry[TaskEntry] = Registry(
    "task",
    TaskEntry(
        "classification",
        "the class of an image; cross-entropy",
        "normbench.tasks.classification:Classification",
        aliases=("image_classification", "classify"),
    ),
    TaskEntry(
        "sequence",
        "the class of an image that is read step by step, for recurrent networks; cross-entropy",
        "normbench.tasks.sequence:Sequence",
        {
            "read": one_of(("rows", "pixels"), "what a step reads: a row of an image, or a pixel"),
            "permute": flag(False, "read the rows or pixels in a random order, the same one in all trials"),
            "lengths": interval("cut sequences after a random number of steps between these; null: none is"),
        },
        refuses=("norm_every", "whiten", "zero_init_residual", "diagnose.signal_propagation", "evaluate"),
        canonical=sequences.canonical,
        aliases=("sequential", "sequences", "recurrent"),
    ),
    TaskEntry(
        "denoising",
        "an image without its Gaussian noise; mean squared error",
        "normbench.tasks.denoising:Denoising",
        {"sigma": at_least(0, 25.0, "standard deviation of the noise, in units of 1/255 of the range")},
        metrics=("psnr", "ssim"),
        refuses=(*OF_CLASSES, "dropout", "zero_init_residual"),
        aliases=("denoise", "image_denoising", "gaussian_denoising"),
    ),
    TaskEntry(
        "style",
        "an image in the style of another; Gram matrices of features, and content",
        "normbench.tasks.style:Style",
        {
            "image": one_of(("waves", "mosaic", "checks"), "style image, drawn by code"),
            "features": one_of(
                ("random", "vgg16"), "network of the loss: random filters, or torchvision's weights of VGG-16"
            ),
            "content_weight": at_least(0, 0.3, "weight of the content loss; that of the style loss is 1"),
        },
        metrics=("style_objective", "style_loss", "content_loss"),
        refuses=OF_CLASSES,
        aliases=("style_transfer", "stylization", "stylisation"),
    ),
)
