"""The figures. ONE FILE = ONE FIGURE; this table lists them all."""

from normbench.lookup import Entry, Table

FIGURES: Table[Entry] = Table(
    "figure",
    Entry("batch_size", "accuracy against batch size, one curve a method", "normbench.plots.batch_size:FIGURE"),
    Entry("curves", "loss and accuracy by epoch", "normbench.plots.curves:FIGURE"),
    Entry("switch_weights", "switchable norm's weights by batch size and depth", "normbench.plots.switch_weights:FIGURE"),
)
