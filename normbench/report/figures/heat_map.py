"""The metric over two settings: a grid of means, and in every cell how many seeds finished."""

import math
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from normbench.config.series import differing
from normbench.records import Record
from normbench.report.figures import caption, style
from normbench.report.figures.base import Figure, Options
from normbench.report.figures.panels import CannotDrawError, comparable, metric_of, telling
from normbench.report.figures.samples import Sample, columns
from normbench.report.figures.values import in_heading, in_words, order, shown, value_in_words, written
from normbench.report.metrics import Metric, Quantity
from normbench.report.rows import Row
from normbench.report.table import Cell, Table, distinct, is_of_method

if TYPE_CHECKING:
    from matplotlib.figure import Figure as Canvas

MOST_PANELS = 4
COLOURS = "cividis"  # even in lightness, and the same to the colour-blind


@dataclass(frozen=True)
class Grid:
    """One panel: cells by (row, column); those that were not run are not there."""

    heading: str
    cells: Mapping[tuple[int, int], Sample]


@dataclass(frozen=True)
class Grids:
    """All that is drawn; ``xs`` and ``ys`` are the values of the two settings, as they are labelled."""

    x: str
    y: str
    xs: tuple[str, ...]
    ys: tuple[str, ...]
    grids: tuple[Grid, ...]
    caption: tuple[str, ...]
    quantity: Quantity
    warnings: tuple[str, ...] = ()

    def mean(self, sample: Sample) -> float:
        """Return the mean of a cell in the unit of the metric, or nan."""
        values = sample.values
        return self.quantity.scale * math.fsum(values) / len(values) if values else math.nan


def select(trials: Table, options: Options) -> Grids | None:
    """Return last-epoch numbers of the trials that have both settings, by what else they differ in.

    Raises:
        CannotDrawError: that would be more than ``MOST_PANELS`` panels, or a setting defines the metric.
    """
    x, y = str(options.get("x", "batch_size")), str(options.get("y", "norm.name"))
    chosen = [(cell, settings) for cell in trials if {x, y} <= (settings := distinct(cell.settings)).keys()]
    if not chosen:
        return None
    others = _others(chosen, {x, y})
    keys = telling(others)
    xs, ys = (sorted({written(settings[key]) for _, settings in chosen}, key=order) for key in (x, y))
    panels: dict[str, dict[tuple[int, int], list[Record]]] = defaultdict(lambda: defaultdict(list))
    for (cell, settings), other in zip(chosen, others, strict=True):
        place = ys.index(written(settings[y])), xs.index(written(settings[x]))
        heading = ", ".join(in_heading(key, other[key]) for key in keys if key in other)
        panels[heading][place] += cell.records
    if len(panels) > MOST_PANELS:
        raise CannotDrawError(f"{len(panels)} panels, because the trials also differ in {', '.join(keys)}")
    metric = metric_of(trials, options)
    comparable(metric, {x: xs, y: ys})
    grids = tuple(
        Grid(heading, {place: _sample(members, metric) for place, members in panels[heading].items()})
        for heading in sorted(panels, key=order)
    )
    shown_cells = Table(tuple(cell for cell, _ in chosen))
    stopped = Counter(status for cell in shown_cells for status in cell.failures)
    unit = f", {metric.unit}" if metric.unit else ""
    sentences = [
        caption.trials(shown_cells),
        f"{caption.measured(metric)}{unit}: mean over the seeds that finished; an X for each other.",
        *(f"{status.replace('_', ' ')}: {count}." for status, count in sorted(stopped.items())),
    ]
    return Grids(x, y, tuple(map(shown, xs)), tuple(map(shown, ys)), grids, tuple(sentences), metric.quantity)


def _others(chosen: Sequence[tuple[Cell, Mapping[str, Any]]], shown_by: set[str]) -> list[dict[str, Any]]:
    """Return what else may tell trials apart; of methods on an axis, the options in which they differ."""
    options: dict[str, list[Mapping[str, Any]]] = defaultdict(list)
    for cell, settings in chosen:
        options[cell.series.method].append(settings)
    kept = {method: set(differing(members)) for method, members in options.items()}
    return [
        {
            key: value
            for key, value in settings.items()
            if key not in shown_by
            and not ("norm.name" in shown_by and is_of_method(key) and key not in kept[cell.series.method])
        }
        for cell, settings in chosen
    ]


def _sample(records: Sequence[Record], metric: Metric) -> Sample:
    values = (metric.stored(record) for record in records)
    failures = (record.status for record in records if record.status != "done")
    return Sample(tuple(value for value in values if value is not None), tuple(failures))


def table(selection: Grids) -> list[Row]:
    """Return one row a cell. Accuracies are fractions."""
    return [
        {
            "panel": grid.heading,
            selection.x: selection.xs[column],
            selection.y: selection.ys[row],
            **columns(cell, selection.quantity.column),
        }
        for grid in selection.grids
        for (row, column), cell in sorted(grid.cells.items())
    ]


def draw(selection: Grids, canvas: "Canvas") -> None:
    """Draw panels side by side, on one scale of colours."""
    count = len(selection.grids)
    canvas.set_size_inches(style.WIDTH, 0.9 + 0.42 * len(selection.ys))
    means = [selection.mean(cell) for grid in selection.grids for cell in grid.cells.values() if cell.values]
    low, high = (min(means), max(means)) if means else (0.0, 100.0)
    form = "{:.1f}" if selection.quantity.unit == "%" else "{:.4g}"
    is_reversed = selection.quantity.better == "lower"  # the better, the brighter
    for number, grid in enumerate(selection.grids):
        axes = canvas.add_subplot(1, count, number + 1)
        rows, columns = range(len(selection.ys)), range(len(selection.xs))
        values = [
            [selection.mean(grid.cells.get((row, column), Sample())) for column in columns] for row in rows
        ]
        axes.imshow(
            values, cmap=COLOURS + "_r" * is_reversed, vmin=low, vmax=high, aspect="auto", origin="lower"
        )
        for (row, column), cell in grid.cells.items():
            bright = cell.values and (selection.mean(cell) > (low + high) / 2) != is_reversed
            words = " ".join(
                [form.format(selection.mean(cell))] * bool(cell.values) + ["X"] * len(cell.failures)
            )
            color = "white" if cell.values and not bright else "black"
            axes.text(column, row, words, ha="center", va="center", color=color, fontsize=8)
        axes.set_xticks(columns, [value_in_words(selection.x, value) for value in selection.xs])
        labels = [value_in_words(selection.y, value) for value in selection.ys]
        axes.set_yticks(rows, labels if number == 0 else [""] * len(labels))
        axes.set_xlabel(in_words(selection.x))
        axes.set_ylabel(in_words(selection.y) if number == 0 else "")
        axes.set_title(grid.heading)
        axes.grid(False)


FIGURE = Figure(select, draw, table)
