"""The figures. ONE FILE = ONE FIGURE; this table lists them all.

Shared by them: ``figure`` (select, draw, write), ``panels`` (what may share axes), ``caption``, ``style`` and
``published``.
"""

from normbench.lookup import Entry, Table, one_of

SHARED = ("caption", "figure", "panels", "published", "style")  # files that are not a figure

PUBLISHED_OPTION = one_of(
    ("none", "befranke_resnet20", "hickmann_resnet20", "groupnorm_resnet50", "switchable_resnet50"),
    "lay a published series over the figure, thin and dashed, with its source in the caption",
)

FIGURES: Table[Entry] = Table(
    "figure",
    Entry(
        "batch_size",
        "accuracy against batch size, one curve a method",
        "normbench.plots.batch_size:FIGURE",
        {"published": PUBLISHED_OPTION},
    ),
    Entry("curves", "loss and accuracy by epoch", "normbench.plots.curves:FIGURE"),
    Entry(
        "switch_weights",
        "switchable norm's weights by batch size and depth",
        "normbench.plots.switch_weights:FIGURE",
    ),
)
