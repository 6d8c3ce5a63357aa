"""Evaluations of a trained network by other statistics, one file each. This registry lists them all.

The target of an entry is an ``Evaluation``. Each measures the network as training leaves it; none changes it.
"""

from dataclasses import dataclass

from normbench.config.registry import Entry, Registry, count, one_of, sizes, whole


@dataclass(frozen=True)
class Measure(Entry):
    """An evaluation of a network whose layers keep running statistics.

    Attributes:
        needs_foldable: it needs layers that are a fixed multiply-add at inference.
    """

    needs_foldable: bool = False


EVALUATIONS: Registry[Measure] = Registry(
    "evaluation",
    Measure(
        "moving_average",
        "the running statistics that training leaves, which the final accuracy is measured with",
        "normbench.training.statistics.moving_average:MovingAverage",
    ),
    Measure(
        "cumulative",
        "simple average of all batch statistics (variances within batches) of the last epochs",
        "normbench.training.statistics.cumulative:Cumulative",
        {"epochs": count(1, "number of last epochs")},
    ),
    Measure(
        "precise",
        "statistics recomputed with fixed weights (Wu & Johnson 2021)",
        "normbench.training.statistics.precise:Precise",
        {
            "samples": count(10_000, "training images, in batches as in training; all, if there are fewer"),
            "variance": one_of(
                ("population", "within"), "of all values together, or the mean of those within the batches"
            ),
        },
    ),
    Measure(
        "batch",
        "statistics of each test batch itself",
        "normbench.training.statistics.batch:Batch",
        {"sizes": sizes((2, 8, 32, 128), "samples that share statistics, one result each")},
    ),
    Measure(
        "folded",
        "layers folded into the convolutions before them: the same function",
        "normbench.training.statistics.folded:Folded",
        needs_foldable=True,
    ),
    Measure(
        "removed",
        "layers deleted",
        "normbench.training.statistics.removed:Removed",
        needs_foldable=True,
    ),
    Measure(
        "neighbours",
        "how far a sample's output depends on the other samples of its batch",
        "normbench.training.statistics.neighbours:Neighbours",
        {
            "batch_size": whole(32, "a sample and its neighbours", minimum=2),
            "samples": whole(1000, "test images in use; all, if there are fewer", minimum=2),
            "draws": whole(8, "number of random sets of neighbours for every sample", minimum=2),
        },
    ),
)
