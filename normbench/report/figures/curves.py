"""Training loss and a metric by epoch for every batch size: mean over seeds, and every seed."""

import itertools
import math
import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from normbench.config.series import Series
from normbench.records import Record
from normbench.report.figures import caption, style
from normbench.report.figures.base import Figure, Options
from normbench.report.figures.lines import Line, Lines, Panel, Seed, draw, table
from normbench.report.figures.panels import Axis, CannotDrawError, Panels, arrange, metric_of
from normbench.report.figures.panels import Panel as Arranged
from normbench.report.metrics import Quantity, number_in
from normbench.report.table import Cell, Table

LOSS = Quantity("train_loss", "training loss", better="lower")
COLUMNS = 6  # sizes side by side, as long as `MOST_BANDS` hold them all
MOST_BANDS = 4  # below each other: a figure is not much taller than twice its width
MOST_SINGLE = 3  # panels of one line each; more of them become one panel of many lines


@dataclass(frozen=True)
class Column:
    """One size of one panel. Methods that the size cannot touch are in every column."""

    heading: str
    axis: Axis
    size: int
    cells: tuple[tuple[Series, Cell], ...]


def select(trials: Table, options: Options) -> Lines | None:
    """Return every trial's course by panel, size and series.

    Raises:
        CannotDrawError: the metric is not measured in epochs.
    """
    arranged = arrange(trials) if any(record.epochs for record in trials.records) else None
    if arranged is None:
        return None
    metric = metric_of(trials, options)
    epochs = (epoch for record in trials.records for epoch in record.epochs)
    if all(number_in(epoch, metric.quantity.column) is None for epoch in epochs):
        raise CannotDrawError(f"the trials have no {metric.name} by epoch")
    quantities = LOSS, metric.quantity
    bands = _bands(list(_columns(arranged)))
    across = max(map(len, bands))
    rows = [
        tuple(_panel(column, quantity, _title(band, place, across)) for place, column in enumerate(band))
        for band in bands
        for quantity in quantities
    ]
    sentences = (*caption.about(arranged), "Thick: mean over the seeds that finished; thin: single seeds.")
    warnings = caption.warnings(arranged)
    return Lines("epoch", tuple(rows), sentences, warnings, band=len(quantities), is_counted=True)


def _columns(arranged: Panels) -> Iterator[Column]:
    panels = arranged.panels
    if len(panels) > MOST_SINGLE and all(len(panel.curves) == 1 for panel in panels):
        yield from _joined(panels)
        return
    for panel in panels:
        for size in panel.sizes:
            cells = tuple((cell.series, cell) for x, cell in panel.cells if x in (size, None))
            yield Column(panel.heading, panel.axis, size, cells)


def _joined(panels: Sequence[Arranged]) -> Iterator[Column]:
    """Yield one column for each size, in which what were panels of one line are lines."""
    cells: dict[tuple[Axis, int], list[tuple[Series, Cell]]] = {}
    for number, panel in enumerate(panels):
        for size in panel.sizes:
            for x, cell in panel.cells:
                if x in (size, None):
                    legend = f"{cell.series.legend} ({panel.heading})"
                    series = replace(cell.series, legend=legend, variant=number, order=number)
                    cells.setdefault((panel.axis, size), []).append((series, cell))
    for (axis, size), members in sorted(cells.items()):
        yield Column("", axis, size, tuple(members))


def _title(band: Sequence[Column], place: int, across: int) -> str:
    """Return what stands above a column: its size, and above the first of a panel, what the panel is of."""
    column = band[place]
    size = style.size_heading(column.axis, column.size)
    width = 100 * sum(other.heading == column.heading for other in band) // across
    is_first = place == 0 or band[place - 1].heading != column.heading
    heading = textwrap.fill(column.heading, width) if is_first else ""
    return f"{heading}\n{size}" if any(other.heading for other in band) else size


def _panel(column: Column, quantity: Quantity, title: str) -> Panel:
    lines = tuple(
        Line(series, tuple(_seed(record, quantity) for record in cell.records))
        for series, cell in column.cells
    )
    return Panel(
        column.heading,
        quantity.label if quantity is LOSS else quantity.axis,
        lines,
        title=title,
        columns={"axis": column.axis, "size": column.size},
        is_lost_upwards=quantity.better == "lower",
    )


def _seed(record: Record, quantity: Quantity) -> Seed:
    values = ((epoch.epoch, number_in(epoch, quantity.column)) for epoch in record.epochs)
    points = tuple((epoch, quantity.scale * value) for epoch, value in values if value is not None)
    whole = [epoch.epoch for epoch in record.epochs if epoch.train_loss is not None]
    ended = None if record.status == "done" else max(whole, default=0) + 1
    return Seed(record.trial.seed, record.status, points, ended)


def _bands(columns: Sequence[Column]) -> list[list[Column]]:
    """Return rows of columns; a panel that does not fit into what is left of one begins a new one."""
    panels = [list(group) for _, group in itertools.groupby(columns, key=lambda column: column.heading)]
    for across in itertools.count(COLUMNS):
        bands: list[list[Column]] = []
        for part in (part for panel in panels for part in _parts(panel, across)):
            if bands and len(bands[-1]) + len(part) <= across:
                bands[-1] += part
            else:
                bands.append(part)
        if len(bands) <= MOST_BANDS:
            break
    return bands


def _parts(panel: list[Column], most: int) -> list[list[Column]]:
    """Return parts of at most so many columns, as equal as can be."""
    width = math.ceil(len(panel) / math.ceil(len(panel) / most))
    return [panel[start : start + width] for start in range(0, len(panel), width)]


FIGURE = Figure(select, draw, table)
