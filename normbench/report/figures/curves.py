"""Training loss and test accuracy by epoch for every batch size: mean over seeds, and every seed."""

import itertools
import math
import textwrap
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

from normbench.config.series import Series
from normbench.records import Epoch, Record
from normbench.report.figures import caption, style
from normbench.report.figures.base import Figure, Options
from normbench.report.figures.panels import Axis, Panel, arrange
from normbench.report.figures.samples import Sample, counts, draw_ring, entries
from normbench.report.rows import Row
from normbench.report.table import Cell, Table

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure as Canvas
    from matplotlib.lines import Line2D

Quantity = Literal["train_loss", "test_accuracy"]
QUANTITIES: dict[Quantity, str] = {"train_loss": "training loss", "test_accuracy": "test accuracy (%)"}
COLUMNS = 6  # sizes side by side, as long as `MOST_BANDS` hold them all
MOST_BANDS = 4  # below each other: a figure is not much taller than twice its width

Looks = Mapping[Series, style.Style]
Points = tuple[tuple[int, float], ...]  # (epoch, value): loss in nats, accuracy as a fraction


@dataclass(frozen=True)
class Plotted:
    """Two lines over epochs; those without a value (not evaluated, not finite) are left out."""

    train_loss: Points
    test_accuracy: Points

    def points(self, quantity: Quantity) -> Points:
        """One of the two."""
        return self.train_loss if quantity == "train_loss" else self.test_accuracy


@dataclass(frozen=True)
class Seed(Plotted):
    """One trial.

    Attributes:
        ended: the epoch in which it ended; of a trial that failed the first that it did not complete.
    """

    seed: int
    status: str
    ended: int


@dataclass(frozen=True)
class Course(Plotted):
    """One cell: the mean of the seeds that finished, and every seed."""

    series: Series
    seeds: tuple[Seed, ...]

    @property
    def sample(self) -> Sample:
        """How many trials are in the mean, and how the others ended; it has no values of its own."""
        done = [math.nan for seed in self.seeds if seed.status == "done"]
        return Sample(tuple(done), tuple(seed.status for seed in self.seeds if seed.status != "done"))


@dataclass(frozen=True)
class Column:
    """One size: a loss and an accuracy panel. Methods that the size cannot touch are in every column."""

    panel: str
    axis: Axis
    size: int
    courses: tuple[Course, ...]


@dataclass(frozen=True)
class Curves:
    """All that is drawn."""

    columns: tuple[Column, ...]
    series: tuple[Series, ...]
    stopped: Mapping[str, int]
    caption: tuple[str, ...]
    warnings: tuple[str, ...]


def select(trials: Table, _: Options) -> Curves | None:
    """Every trial's course by panel, size and series."""
    arranged = arrange(trials) if any(record.epochs for record in trials.records) else None
    if arranged is None:
        return None
    columns = tuple(column for panel in arranged.panels for column in _columns(panel))
    sentences = (*caption.about(arranged), "Thick: mean over the seeds that finished; thin: single seeds.")
    return Curves(columns, arranged.series, arranged.stopped, sentences, caption.warnings(arranged))


def _columns(panel: Panel) -> Iterator[Column]:
    for size in panel.sizes:
        courses = [_course(cell) for x, cell in panel.cells if x in (size, None)]
        yield Column(panel.heading, panel.axis, size, tuple(courses))


def _course(cell: Cell) -> Course:
    seeds = []
    for record in cell.records:
        losses, accuracies = _points(record.epochs, "train_loss"), _points(record.epochs, "test_accuracy")
        seeds.append(Seed(losses, accuracies, record.trial.seed, record.status, _ended(record)))
    finished = [seed for seed in seeds if seed.status == "done"]
    losses, accuracies = _mean([s.train_loss for s in finished]), _mean([s.test_accuracy for s in finished])
    return Course(losses, accuracies, cell.series, tuple(seeds))


def _ended(record: Record) -> int:
    """An epoch without a loss is the one in which it was lost."""
    whole = [epoch.epoch for epoch in record.epochs if epoch.train_loss is not None]
    return max(whole, default=0) + (record.status != "done")


def _points(epochs: Sequence[Epoch], quantity: Quantity) -> Points:
    values = ((epoch.epoch, getattr(epoch, quantity)) for epoch in epochs)
    return tuple((epoch, value) for epoch, value in values if value is not None)


def _mean(courses: Sequence[Points]) -> Points:
    """By epoch, where every seed has a value."""
    by_epoch: dict[int, list[float]] = {}
    for epoch, value in (point for points in courses for point in points):
        by_epoch.setdefault(epoch, []).append(value)
    whole = {epoch: values for epoch, values in sorted(by_epoch.items()) if len(values) == len(courses)}
    return tuple((epoch, math.fsum(values) / len(values)) for epoch, values in whole.items())


def table(selection: Curves) -> list[Row]:
    """One row an epoch, of the mean (``seed`` is "mean") and of every seed.

    A trial that failed has a row of the epoch in which it did, without values.
    """
    rows: list[Row] = []
    for column in selection.columns:
        for course in column.courses:
            trials = counts(course.sample)
            empty: Row = dict.fromkeys(trials)
            lines: list[tuple[int | str, str, Plotted, Row, set[int]]] = [
                ("mean", "done", course, trials, set())
            ]
            for each in course.seeds:
                lost = {each.ended} if each.status != "done" else set()
                lines.append((each.seed, each.status, each, empty, lost))
            for seed, status, line, numbers, lost in lines:
                losses, accuracies = dict(line.train_loss), dict(line.test_accuracy)
                rows += [
                    {
                        "panel": column.panel,
                        "norm": course.series.method,
                        "options": course.series.options,
                        "axis": column.axis,
                        "size": column.size,
                        "seed": seed,
                        "status": status,
                        "epoch": epoch,
                        "train_loss": losses.get(epoch),
                        "test_accuracy": accuracies.get(epoch),
                        **numbers,
                    }
                    for epoch in sorted(losses.keys() | accuracies.keys() | lost)
                ]
    return rows


def draw(selection: Curves, canvas: "Canvas") -> None:
    """Loss over accuracy, sizes and panels side by side, then below; all on the same two scales."""
    bands = _bands(selection.columns)
    across = max(map(len, bands))
    canvas.set_size_inches(style.WIDTH, 3.9 if len(bands) == 1 else 3.4 * len(bands))
    headed = any(column.panel for column in selection.columns)
    limits = {quantity: _limits(selection.columns, quantity) for quantity in QUANTITIES}
    looks = _looks(selection)
    for row, band in enumerate(bands):
        columns = Counter(column.panel for column in band)
        for place, column in enumerate(band):
            first = place == 0 or column.panel != band[place - 1].panel
            for under, quantity in enumerate(QUANTITIES):
                axes = canvas.add_subplot(2 * len(bands), across, (2 * row + under) * across + place + 1)
                _draw_courses(axes, column, looks, quantity, limits[quantity], across)
                axes.tick_params(labelleft=place == 0, labelbottom=under == 1)
                axes.set_ylabel(QUANTITIES[quantity] if place == 0 else "")
                axes.set_xlabel("epoch" if under == 1 else "")
                if under == 0:
                    panel = (
                        textwrap.fill(column.panel, 100 * columns[column.panel] // across) if first else ""
                    )
                    size = style.size_heading(column.axis, column.size)
                    axes.set_title(f"{panel}\n{size}" if headed else size)
    canvas.align_ylabels()
    style.legend(canvas, _entries(selection, looks, across))


def _bands(columns: Sequence[Column]) -> list[list[Column]]:
    """Rows of columns; a panel that does not fit into what is left of one begins a new one."""
    panels = [list(group) for _, group in itertools.groupby(columns, key=lambda column: column.panel)]
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
    """Of at most so many columns, as equal as can be."""
    width = math.ceil(len(panel) / math.ceil(len(panel) / most))
    return [panel[start : start + width] for start in range(0, len(panel), width)]


def _limits(columns: Sequence[Column], quantity: Quantity) -> tuple[float, float]:
    """The range of the trials that finished: one that diverged must not flatten all others."""
    seeds = [seed for column in columns for course in column.courses for seed in course.seeds]
    finished = [seed for seed in seeds if seed.status == "done"] or seeds
    values = [value for seed in finished for _, value in seed.points(quantity)] or [0.0, 1.0]
    margin = 0.04 * (max(values) - min(values)) or 0.1
    return max(min(values) - margin, 0.0), max(values) + margin


def _looks(selection: Curves) -> Looks:
    looks = style.of_methods(series.method for series in selection.series)
    return {series: style.varied(looks[series.method], series.variant) for series in selection.series}


def _draw_courses(
    axes: "Axes",
    column: Column,
    looks: Looks,
    quantity: Quantity,
    limits: tuple[float, float],
    across: int,
) -> None:
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    for course in column.courses:
        look = looks[course.series]
        for seed in course.seeds:
            points = seed.points(quantity)
            axes.plot(*_xy(points), **style.of_seed(look.color, len(points), across))
            if seed.status != "done" and points:
                epoch, value = points[-1]
                inside = min(max(value, limits[0]), limits[1])
                axes.plot([epoch], [inside], clip_on=False, **style.failure(seed.status, look.color))
        points = course.points(quantity)
        axes.plot(*_xy(points), **style.of_mean(look, len(points), across))
        if points and course.sample.partial:
            draw_ring(axes, points[-1], look, course.sample.share)
    _draw_pointless(axes, column, looks, quantity)
    axes.set_ylim(*limits)
    ends = [seed.ended for course in column.courses for seed in course.seeds]
    axes.set_xlim(0, max(1, *ends) * 1.03)
    axes.xaxis.set_major_locator(MaxNLocator(4, integer=True))
    if quantity == "test_accuracy":
        axes.yaxis.set_major_formatter(FuncFormatter(lambda fraction, _: f"{100 * fraction:g}"))


def _draw_pointless(axes: "Axes", column: Column, looks: Looks, quantity: Quantity) -> None:
    """Draw the marks of failed trials that have no point: at the epoch in which each failed.

    They stand at the edge that is worst: losses are lost upwards, accuracies downwards.
    """
    below: Counter[int] = Counter()
    for course in column.courses:
        for seed in course.seeds:
            if seed.status != "done" and not seed.points(quantity):
                height = 0.05 + 0.09 * below[seed.ended]
                below[seed.ended] += 1
                at = [seed.ended], [1 - height if quantity == "train_loss" else height]
                mark = style.failure(seed.status, looks[course.series].color)
                axes.plot(*at, transform=axes.get_xaxis_transform(), clip_on=False, **mark)


def _xy(points: Points) -> tuple[list[int], list[float]]:
    return [epoch for epoch, _ in points], [value for _, value in points]


def _entries(selection: Curves, looks: Looks, across: int) -> Iterator[tuple["Line2D", str]]:
    """Give the legend: every series, then the marks where trials ended early."""
    courses = [course for column in selection.columns for course in column.courses]
    marked = {
        course.series
        for course in courses
        for quantity in QUANTITIES
        if style.sparse(len(course.points(quantity)), across)
    }
    for series in selection.series:
        look = looks[series]
        yield style.entry(look if series in marked else replace(look, marker="")), series.legend
    yield from entries(course.sample for course in courses if course.train_loss)
    yield from style.failure_entries(selection.stopped)


FIGURE = Figure(select, draw, table)
