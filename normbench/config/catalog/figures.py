"""The figures. ONE FILE = ONE FIGURE; this table lists them all.

All select from one table of records (``normbench.report.table``). Shared by them: ``base`` (select, draw,
write), ``panels`` (what may share axes), ``lines`` (every seed and their mean), ``samples`` (means with
intervals), ``values`` (settings in words and on axes), ``caption``, ``style`` and ``published``.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import Field

from normbench.config.registry import Entry, Option, Table, one_of, text

# files that are no figure of records


@dataclass(frozen=True)
class Kind(Entry):
    """A kind of figure.

    Attributes:
        of: options that make another figure of it, and by which its files are named; one with such options is
            drawn only where it is asked for.
    """

    of: tuple[str, ...] = ()

    def stem(self, options: Mapping[str, Any]) -> str:
        """The name of the figure's files, without their endings."""
        return "-".join([self.name, *(str(options[key]) for key in self.of if key in options)])


PUBLISHED_OPTION = one_of(
    ("none", "befranke_resnet20", "hickmann_resnet20", "groupnorm_resnet50", "switchable_resnet50"),
    "lay a published series over the figure, thin and dashed, with its source in the caption",
)


LOSS = Option(
    Annotated[float, Field(gt=0, allow_inf_nan=False)] | None,
    None,
    "a training loss; by default the least that all finished trials reach",
)


def key(default: str) -> Option:
    """The dotted key of a setting."""
    return text(default, "a setting of the trials, such as norm.groups", r"^[a-z_]+(\.[a-z_]+)?$")


FIGURES: Table[Kind] = Table(
    "figure",
    Kind(
        "batch_size",
        "accuracy against batch size, one curve a method",
        "normbench.report.figures.batch_size:FIGURE",
        {"published": PUBLISHED_OPTION},
    ),
    Kind(
        "setting",
        "accuracy against any one setting, a curve for everything else that differs",
        "normbench.report.figures.setting:FIGURE",
        {"key": key("batch_size")},
        of=("key",),
    ),
    Kind(
        "heat_map",
        "accuracy over two settings",
        "normbench.report.figures.heat_map:FIGURE",
        {"x": key("batch_size"), "y": key("norm.name")},
        of=("x", "y"),
    ),
    Kind(
        "inference_statistics",
        "accuracy gaps of one network by other statistics at inference",
        "normbench.report.figures.inference_statistics:FIGURE",
    ),
    Kind(
        "online",
        "accuracy of a single pass, every sample predicted before the network learns from it",
        "normbench.report.figures.online:FIGURE",
    ),
    Kind(
        "signal_propagation",
        "means and variances of channels, and of branches, by depth",
        "normbench.report.figures.signal_propagation:FIGURE",
    ),
    Kind(
        "epochs_to_loss",
        "epochs until the training loss is down to a value, against batch size",
        "normbench.report.figures.epochs_to_loss:FIGURE",
        {"loss": LOSS},
    ),
    Kind("curves", "loss and accuracy by epoch", "normbench.report.figures.curves:FIGURE"),
    Kind(
        "switch_weights",
        "switchable norm's weights by batch size and depth",
        "normbench.report.figures.switch_weights:FIGURE",
    ),
)
