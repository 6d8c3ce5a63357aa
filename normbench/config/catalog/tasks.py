"""The learning problems, one file each. This registry lists them all."""

from dataclasses import dataclass

from normbench.config.registry import Entry, Registry


@dataclass(frozen=True)
class TaskEntry(Entry):
    """A learning problem; its code is a :class:`normbench.tasks.base.Task`.

    Attributes:
        metric: the metric that trials are compared by, of :data:`normbench.report.metrics.METRICS`.
        refuses: settings of a trial that make no sense in it and must keep their defaults.
    """

    metric: str = "accuracy"
    refuses: tuple[str, ...] = ()


TASKS: Registry[TaskEntry] = Registry(
    "task",
    TaskEntry(
        "classification",
        "the class of an image; cross-entropy",
        "normbench.tasks.classification:Classification",
        aliases=("image_classification", "classify"),
    ),
)
