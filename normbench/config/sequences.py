"""The shape of the sequences that the images of a data set are read as."""

from typing import TYPE_CHECKING, NamedTuple

from normbench.config.catalog.datasets import DATASETS

if TYPE_CHECKING:
    from normbench.config.trial import Choice


class SequenceShape(NamedTuple):
    """The shape of a sequence: T steps of vectors of ``features`` values."""

    steps: int
    features: int


def image_size(dataset: "Choice") -> int:
    """Return the side of a data set's images, in pixels."""
    info = DATASETS[dataset.name].info
    return info.size if info else int(dataset.options["image_size"])


def whole_sequence(task: "Choice", dataset: "Choice") -> SequenceShape:
    """Return the shape of a sequence that reads a whole image, in rows or in pixels."""
    side, channels = image_size(dataset), DATASETS[dataset.name].channels
    if task.options["read"] == "rows":
        return SequenceShape(side, side * channels)
    return SequenceShape(side**2, channels)
