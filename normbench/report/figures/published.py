"""Published series of accuracy by batch size, to lay over measured ones.

In all of them both batch sizes move together: the samples of an update and the samples that share statistics.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from normbench.report.rows import Row


@dataclass(frozen=True)
class Point:
    """A published accuracy in percent, and its standard deviation over seeds where one was published."""

    accuracy: float
    sd: float | None = None

    @property
    def columns(self) -> Row:
        """What a table says of it; accuracies are fractions."""
        sd = None if self.sd is None else round(self.sd / 100, 6)
        return {"test_accuracy": round(self.accuracy / 100, 6), "sd": sd}


@dataclass(frozen=True)
class Published:
    """One publication's accuracies.

    Attributes:
        source: for the caption: who, which network and data, what its batch size counts.
        epochs: of training.
        accuracy: by method name and batch size.
    """

    source: str
    epochs: int
    accuracy: Mapping[str, Mapping[int, Point]]

    def along(self, key: str, method: str, batch_size: int | None) -> Mapping[int, Point]:
        """Return the accuracies of a method by the values of a setting, empty where none is known.

        Args:
            key: ``batch_size`` or ``epochs``; of any other there is none.
            batch_size: that of a line over epochs; None where it has several.
        """
        sizes = self.accuracy.get(method, {})
        if key == "batch_size":
            return sizes
        known = key == "epochs" and batch_size in sizes
        return {self.epochs: sizes[batch_size]} if known and batch_size else {}


OVERLAID = ("batch_size", "epochs")  # settings over which published accuracies are known
SIZES = (2, 4, 8, 16, 32)


def _points(
    accuracies: Sequence[float], sds: Sequence[float | None] = (None,) * len(SIZES)
) -> dict[int, Point]:
    return {size: Point(value, sd) for size, value, sd in zip(SIZES, accuracies, sds, strict=True)}


PUBLISHED: Mapping[str, Published] = {
    "befranke_resnet20": Published(
        "results.csv of BeFranke/GroupNorm on GitHub (2021); ResNet-20, CIFAR-10, 100 epochs of SGD, "
        "GN with 8 groups, mean ± sd of 5 seeds, training set not shuffled",
        100,
        {
            "batch": _points((80.30, 84.77, 86.14, 86.40, 86.40), (0.59, 0.41, 0.39, 0.26, 0.34)),
            "group": _points((85.79, 85.97, 85.77, 85.71, 85.95), (0.49, 0.34, 0.39, 0.41, 0.29)),
        },
    ),
    "hickmann_resnet20": Published(
        "logs of HickmannLautaro/GroupNorm on GitHub (2021); ResNet-20, CIFAR-10, 30 epochs of Adam at one "
        "learning rate, GN with 8 groups, median of the last 5 epochs, mean ± sd of 5 seeds",
        30,
        {
            "batch": _points((79.40, 83.57, 84.34, 84.38, 84.70), (0.50, 0.35, 0.21, 0.53, 0.43)),
            "group": _points((84.44, 84.43, 84.12, 83.93, 84.00), (0.48, 0.46, 0.48, 0.30, 0.37)),
        },
    ),
    "groupnorm_resnet50": Published(
        "Wu & He 2018 (arXiv 1803.08494), as quoted in notes on the paper; ResNet-50, ImageNet, 100 - top-1 "
        "error, GN with 32 groups, batch size: images on each of 8 GPUs",
        100,
        {
            "batch": _points((65.3, 72.7, 75.2, 76.3, 76.4)),
            "layer": {32: Point(74.7)},
            "instance": {32: Point(71.6)},
            "group": _points((75.9, 75.8, 76.0, 75.8, 75.9)),
        },
    ),
    "switchable_resnet50": Published(
        "Luo et al. 2019 (arXiv 1806.10779), README and notes of switchablenorms/Switchable-Normalization on "
        "GitHub; ResNet-50, ImageNet top-1, batch size: images on each of 8 GPUs",
        100,
        {
            "batch": _points((65.3, 72.7, 75.2, 76.3, 76.4)),
            "layer": {32: Point(74.7)},
            "instance": {32: Point(71.6)},
            "group": _points((75.9, 75.8, 76.0, 75.8, 75.9)),
            "switchable": _points((75.6, 75.9, 76.7, 76.7, 76.9)),
        },
    ),
}
