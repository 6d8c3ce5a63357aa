"""Test accuracy over two settings: a grid of means, and in every cell how many seeds finished."""

import math
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from normbench.records import Record
from normbench.report.figures import caption, style
from normbench.report.figures.base import Figure, Options
from normbench.report.figures.panels import CannotDrawError, telling
from normbench.report.figures.samples import Sample, columns
from normbench.report.figures.values import in_heading, in_words, order, shown, value_in_words, written
from normbench.report.rows import Row
from normbench.report.table import Table, distinct

if TYPE_CHECKING:
    from matplotlib.figure import Figure as Canvas

MOST_PANELS = 4
COLOURS = "cividis"  # even in lightness, and the same to the colour-blind


@dataclass(frozen=True)
class Cell(Sample):
    """Test accuracies, as fractions."""

    @property
    def mean(self) -> float:
        """In percent, or nan."""
        return 100 * math.fsum(self.values) / len(self.values) if self.values else math.nan


@dataclass(frozen=True)
class Grid:
    """One panel: cells by (row, column); those that were not run are not there."""

    heading: str
    cells: Mapping[tuple[int, int], Cell]


@dataclass(frozen=True)
class Grids:
    """All that is drawn; ``xs`` and ``ys`` are the values of the two settings, as they are labelled."""

    x: str
    y: str
    xs: tuple[str, ...]
    ys: tuple[str, ...]
    grids: tuple[Grid, ...]
    caption: tuple[str, ...]
    warnings: tuple[str, ...] = ()


def select(trials: Table, options: Options) -> Grids | None:
    """Last-epoch test accuracies of the trials that have both settings, by what else they differ in.

    Raises:
        CannotDrawError: that would be more than ``MOST_PANELS`` panels.
    """
    x, y = str(options.get("x", "batch_size")), str(options.get("y", "norm.name"))
    chosen = [(cell, own) for cell in trials if {x, y} <= (own := distinct(cell.settings)).keys()]
    if not chosen:
        return None
    others = [_others(own, {x, y}) for _, own in chosen]
    told = telling(others)
    xs, ys = (sorted({written(own[key]) for _, own in chosen}, key=order) for key in (x, y))
    panels: dict[str, dict[tuple[int, int], list[Record]]] = defaultdict(lambda: defaultdict(list))
    for (cell, own), other in zip(chosen, others, strict=True):
        place = ys.index(written(own[y])), xs.index(written(own[x]))
        heading = ", ".join(in_heading(key, other[key]) for key in told if key in other)
        panels[heading][place] += cell.records
    if len(panels) > MOST_PANELS:
        raise CannotDrawError(f"{len(panels)} panels, because the trials also differ in {', '.join(told)}")
    grids = tuple(
        Grid(heading, {place: _cell(members) for place, members in panels[heading].items()})
        for heading in sorted(panels, key=order)
    )
    shown_cells = Table(tuple(cell for cell, _ in chosen))
    stopped = Counter(status for cell in shown_cells for status in cell.failures)
    sentences = [
        caption.trials(shown_cells.records),
        "Test accuracy after the last epoch, %: mean over the seeds that finished; an X for each other.",
        *(f"{status.replace('_', ' ')}: {count}." for status, count in sorted(stopped.items())),
    ]
    return Grids(x, y, tuple(map(shown, xs)), tuple(map(shown, ys)), grids, tuple(sentences))


def _others(settings: Mapping[str, Any], shown_by: set[str]) -> dict[str, Any]:
    """What else tells trials apart; where methods are, their options belong to them."""
    with_it = ("norm.",) if "norm.name" in shown_by else ()
    return {k: v for k, v in settings.items() if k not in shown_by and not k.startswith(with_it)}


def _cell(records: Sequence[Record]) -> Cell:
    accuracies = tuple(record.final.test_accuracy for record in records if record.final)
    return Cell(accuracies, tuple(record.status for record in records if record.status != "done"))


def table(selection: Grids) -> list[Row]:
    """One row a cell. Accuracies are fractions."""
    return [
        {
            "panel": grid.heading,
            selection.x: selection.xs[column],
            selection.y: selection.ys[row],
            **columns(cell, "test_accuracy"),
        }
        for grid in selection.grids
        for (row, column), cell in sorted(grid.cells.items())
    ]


def draw(selection: Grids, canvas: "Canvas") -> None:
    """Panels side by side, on one scale of colours."""
    count = len(selection.grids)
    canvas.set_size_inches(style.WIDTH, 0.9 + 0.42 * len(selection.ys))
    means = [cell.mean for grid in selection.grids for cell in grid.cells.values() if cell.values]
    low, high = (min(means), max(means)) if means else (0.0, 100.0)
    for number, grid in enumerate(selection.grids):
        axes = canvas.add_subplot(1, count, number + 1)
        rows, columns = range(len(selection.ys)), range(len(selection.xs))
        values = [[grid.cells.get((row, column), Cell(())).mean for column in columns] for row in rows]
        axes.imshow(values, cmap=COLOURS, vmin=low, vmax=high, aspect="auto", origin="lower")
        for (row, column), cell in grid.cells.items():
            bright = cell.values and cell.mean > (low + high) / 2
            words = " ".join([f"{cell.mean:.1f}"] * bool(cell.values) + ["X"] * len(cell.failures))
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
