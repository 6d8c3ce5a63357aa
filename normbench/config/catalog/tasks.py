"""The learning problems, one file each. This registry lists them all."""

from dataclasses import dataclass

from normbench.config.registry import Entry, Registry, flag, interval, one_of


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
    TaskEntry(
        "sequence",
        "the class of an image that is read step by step, for recurrent networks; cross-entropy",
        "normbench.tasks.sequence:Sequence",
        {
            "read": one_of(("rows", "pixels"), "what a step reads: a row of an image, or a pixel"),
            "permute": flag(False, "read the rows or pixels in a random order, the same one in all trials"),
            "lengths": interval("cut sequences after a random number of steps between these; null: none is"),
        },
        refuses=("norm_every", "whiten", "zero_init_residual", "evaluate"),
        aliases=("sequential", "sequences", "recurrent"),
    ),
)
