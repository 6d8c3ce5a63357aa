"""Signal propagation plots (Brock et al. 2021, arXiv 2101.08692, section 3): what blocks do, by depth."""

from normbench.records import Record
from normbench.report.figures import caption
from normbench.report.figures.base import Figure, Options
from normbench.report.figures.lines import Line, Lines, Panel, Points, Seed, draw, table
from normbench.report.figures.panels import CannotDrawError, arrange
from normbench.report.table import Cell, Table

QUANTITIES = {
    "squared_mean": "channel mean²",
    "variance": "channel variance",
    "branch_ratio": "variance: branch / shortcut",
}


def select(trials: Table, _: Options) -> Lines | None:
    """Return the numbers by block: before the first update, and after the last epoch of each trial.

    Raises:
        CannotDrawError: the trials differ in more than method and seed.
    """
    arranged = arrange(trials.where(lambda record: bool(record.diagnostics.get("signal_propagation"))))
    if arranged is None:
        return None
    sizes = [size for panel in arranged.panels for size in panel.sizes]
    if len(sizes) > 1:
        raise CannotDrawError("these trials are of several settings or batch sizes; draw one at once")
    (panel,) = arranged.panels
    rows = tuple(
        tuple(
            Panel(heading, words, tuple(_line(cell, key, which) for _, cell in panel.cells))
            for heading, which in (("at initialisation", 0), ("after the last epoch", -1))
        )
        for key, words in QUANTITIES.items()
    )
    sentences = (
        *caption.about(arranged),
        "Of a block's output: squared mean and variance of each channel over samples and positions, averaged "
        "over channels; variance of what the branch adds over that of the shortcut (that of SkipInit adds "
        "nothing at initialisation and has no point). Thick: mean over seeds; thin: single seeds.",
    )
    return Lines("block", rows, sentences, caption.warnings(arranged), logarithmic=True)


def _line(cell: Cell, key: str, which: int) -> Line:
    return Line(cell.series, tuple(_seed(record, key, which) for record in cell.records))


def _seed(record: Record, key: str, which: int) -> Seed:
    """Return one trial; if it failed in its first epoch, it has only what was before training."""
    course = record.diagnostics["signal_propagation"]
    layers = course[which]["layers"] if which == 0 or len(course) > 1 else ()
    points: Points = tuple((number, layer[key]) for number, layer in enumerate(layers, 1) if layer[key])
    return Seed(record.trial.seed, record.status if which else "done", points)


FIGURE = Figure(select, draw, table)
