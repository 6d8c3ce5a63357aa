"""The figures. ONE FILE = ONE FIGURE; this table lists them all.

All select from one table of records (``normbench.report.table``). Shared by them: ``base`` (select, draw,
write), ``panels`` (what may share axes), ``lines`` (every seed and their mean), ``samples`` (means with
intervals), ``values`` (settings in words and on axes), ``caption``, ``style`` and ``published``.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import Field

from normbench.config.registry import Entry, Option, Registry, one_of, text


@dataclass(frozen=True)
class Kind(Entry):
    """A kind of figure.

    Attributes:
        key_options: options that name settings, and are part of the names of its files; a figure with such
            options is drawn only on request.
    """

    key_options: tuple[str, ...] = ()

    def stem(self, options: Mapping[str, Any]) -> str:
        """Return the name of the figure's files, without suffix."""
        named = (options.get(key) for key in (*self.key_options, "metric"))
        return "-".join([self.name, *(str(value) for value in named if value is not None)])


PUBLISHED_OPTION = one_of(
    ("none", "befranke_resnet20", "hickmann_resnet20", "groupnorm_resnet50", "switchable_resnet50"),
    "lay a published series of accuracies by batch size over the figure, with its source in the caption",
)


LOSS = Option(
    Annotated[float, Field(gt=0, allow_inf_nan=False)] | None,
    None,
    "a training loss; by default the smallest that all finished trials reach",
)


METRIC = text(
    None,
    "what is drawn, such as accuracy_median5 (docs/claims.md lists them); by default the task's metric",
    r"^[a-z]\w*(\.\w+)*$",
)


def key(default: str) -> Option:
    """Return the option of a setting's dotted key."""
    return text(default, "a setting of the trials, such as norm.groups", r"^[a-z_]+(\.[a-z_]+)?$")


FIGURES: Registry[Kind] = Registry(
    "figure",
    Kind(
        "batch_size",
        "the metric against batch size, one curve a method",
        "normbench.report.figures.batch_size:FIGURE",
        {"published": PUBLISHED_OPTION, "metric": METRIC},
    ),
    Kind(
        "setting",
        "the metric against any setting, one curve for every combination of the others",
        "normbench.report.figures.setting:FIGURE",
        {"key": key("batch_size"), "published": PUBLISHED_OPTION, "metric": METRIC},
        key_options=("key",),
    ),
    Kind(
        "heat_map",
        "the metric over two settings",
        "normbench.report.figures.heat_map:FIGURE",
        {"x": key("batch_size"), "y": key("norm.name"), "metric": METRIC},
        key_options=("x", "y"),
    ),
    Kind(
        "inference_statistics",
        "gaps in the metric of one network by other statistics at inference",
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
        "epochs until the training loss reaches a value, against batch size",
        "normbench.report.figures.epochs_to_loss:FIGURE",
        {"loss": LOSS},
    ),
    Kind(
        "curves", "loss and a metric by epoch", "normbench.report.figures.curves:FIGURE", {"metric": METRIC}
    ),
    Kind(
        "style_content",
        "style loss against content loss, one curve a method over content weights",
        "normbench.report.figures.style_content:FIGURE",
    ),
    Kind(
        "switch_weights",
        "switchable norm's weights by batch size and depth",
        "normbench.report.figures.switch_weights:FIGURE",
    ),
)
