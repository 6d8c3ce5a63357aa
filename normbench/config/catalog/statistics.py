"""What is measured of a trained network by other statistics. ONE FILE = ONE IDEA; this table lists them all.

An entry's target is an ``Evaluation``. All are taken of the network as training leaves it; none changes it.
"""

from dataclasses import dataclass

from normbench.config.registry import Entry, Table, count, one_of, sizes, whole


@dataclass(frozen=True)
class Measure(Entry):
    """An evaluation of a network whose layers keep running statistics.

    Attributes:
        folds: it needs layers that are a fixed multiply-add at inference.
    """

    folds: bool = False


EVALUATIONS: Table[Measure] = Table(
    "evaluation",
    Measure(
        "moving_average",
        "the running statistics that training leaves: what the final accuracy is of",
        "normbench.training.statistics.moving_average:MovingAverage",
    ),
    Measure(
        "cumulative",
        "simple average of all batch statistics (variances within batches) of the last epochs",
        "normbench.training.statistics.cumulative:Cumulative",
        {"epochs": count(1, "the last so many epochs")},
    ),
    Measure(
        "precise",
        "statistics taken anew, with fixed weights (Wu & Johnson 2021)",
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
        "layers folded into the convolutions in front of them: the same function",
        "normbench.training.statistics.folded:Folded",
        folds=True,
    ),
    Measure(
        "removed",
        "layers deleted",
        "normbench.training.statistics.removed:Removed",
        folds=True,
    ),
    Measure(
        "neighbours",
        "how far a sample's output depends on the other samples of its batch",
        "normbench.training.statistics.neighbours:Neighbours",
        {
            "batch_size": whole(32, "a sample and its neighbours", least=2),
            "samples": whole(1000, "test images looked at; all, if there are fewer", least=2),
            "draws": whole(8, "times that every sample gets other neighbours", least=2),
        },
    ),
)
