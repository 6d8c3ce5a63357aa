"""Test accuracy against batch size: every method's mean over seeds with its 95 % interval, and every seed."""

import math
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from normbench.config.series import Series
from normbench.report.figures import caption, samples, style
from normbench.report.figures.base import Figure, Options
from normbench.report.figures.panels import AXIS_LABELS, MOST_PANELS, Curve, Panel, arrange
from normbench.report.figures.published import PUBLISHED, Point
from normbench.report.figures.samples import ACCURACY, Sample, Spot, beyond
from normbench.report.metrics import accuracies
from normbench.report.rows import Row
from normbench.report.table import Table

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure as Canvas
    from matplotlib.lines import Line2D

Looks = Mapping[str, style.Style]
MOST_SERIES = 8  # in one pair of axes; of more, each has axes of its own
REFERENCE: Mapping[str, Any] = {"color": style.FAINT, "linewidth": 1.2, "zorder": 1.6}
PUBLISHED_LINE: Mapping[str, Any] = {"linestyle": (0, (4, 3)), "linewidth": 0.8}


@dataclass(frozen=True)
class Cell(Sample):
    """Test accuracies, as fractions, of one series at one size.

    Attributes:
        x: the size, or None for a method that the size on the axis cannot touch.
    """

    x: int | None = None


@dataclass(frozen=True)
class Line:
    """One series' cells, by size."""

    series: Series
    cells: tuple[Cell, ...]

    @property
    def is_along(self) -> bool:
        """Whether the size on the axis can touch it."""
        return self.cells[0].x is not None


@dataclass(frozen=True)
class View:
    """One pair of axes: a panel's lines, and those beside which they are drawn, in grey."""

    panel: Panel
    heading: str
    lines: tuple[Line, ...]
    references: tuple[Line, ...] = ()


@dataclass(frozen=True)
class Accuracies:
    """All that is drawn. ``lines[i]`` are those of ``panels[i]``; ``published`` is by method and size."""

    panels: tuple[Panel, ...]
    lines: tuple[tuple[Line, ...], ...]
    series: tuple[Series, ...]
    stopped: Mapping[str, int]
    overlay: str
    published: Mapping[str, Mapping[int, Point]]
    caption: tuple[str, ...]
    warnings: tuple[str, ...]

    @property
    def cells(self) -> list[Cell]:
        """Those of all panels."""
        return [cell for lines in self.lines for line in lines for cell in line.cells]


def select(trials: Table, options: Options) -> Accuracies | None:
    """Return the test accuracies after the last epoch by panel, series and size."""
    arranged = arrange(trials)
    if arranged is None:
        return None
    lines = tuple(tuple(_line(curve) for curve in panel.curves) for panel in arranged.panels)
    cells = [cell for panel in lines for line in panel for cell in line.cells]
    alone = any(len(cell.values) == 1 for cell in cells)
    sentences = [
        *caption.about(arranged),
        "Test accuracy after the last epoch: mean and 95 % t-interval over seeds"
        f"{' (a single seed has none)' if alone else ''}; small dots: single seeds.",
        *beyond(cells, ACCURACY, "0 or 100 %"),
    ]
    if any(cell.x is None for cell in cells):
        sentences.append(
            "Lines across, their marks on the right: methods with statistics of each sample alone."
        )
    warnings = list(caption.warnings(arranged))
    overlay = str(options.get("published", "none"))
    published: Mapping[str, Mapping[int, Point]] = {}
    if overlay != "none":
        methods = {series.method for series in arranged.series}
        accuracy = PUBLISHED[overlay].accuracy
        published = {method: points for method, points in accuracy.items() if method in methods}
        if published:
            source = PUBLISHED[overlay].source
            sentences.append(f"Thin dashed, published: {source}. There both batch sizes move together.")
        else:
            warnings.append(f"The published series {overlay} has none of these methods.")
    return Accuracies(
        arranged.panels,
        lines,
        arranged.series,
        arranged.stopped,
        overlay,
        published,
        tuple(sentences),
        tuple(warnings),
    )


def _line(curve: Curve) -> Line:
    cells = []
    for x, cell in curve.cells.items():
        values = accuracies(cell.finished)
        cells.append(Cell(values, cell.failures, x))
    return Line(curve.series, tuple(cells))


def table(selection: Accuracies) -> list[Row]:
    """Return one row a cell, and one a published point if there are any. Accuracies are fractions."""
    rows: list[Row] = [
        {
            "panel": panel.heading,
            "source": "measured",
            "norm": line.series.method,
            "options": line.series.options,
            "axis": panel.axis,
            "size": cell.x,
            **samples.columns(cell, "test_accuracy"),
        }
        for panel, lines in zip(selection.panels, selection.lines, strict=True)
        for line in lines
        for cell in line.cells
    ]
    empty = dict.fromkeys(rows[0])
    for method, points in selection.published.items():
        for size, point in points.items():
            known: Row = {"source": selection.overlay, "norm": method, "axis": "batch_size", "size": size}
            sd = None if point.sd is None else round(point.sd / 100, 6)
            rows.append({**empty, **known, "test_accuracy": round(point.accuracy / 100, 6), "sd": sd})
    return rows


def draw(selection: Accuracies, canvas: "Canvas") -> None:
    """Draw one large panel or a grid of small ones, on one scale where all show the same data set."""
    views = [view for panel, lines in _with_lines(selection) for view in _views(panel, lines)]
    count = len(views)
    columns = min(count, 2 if count in (2, 4) else 3 if count <= MOST_PANELS else 4)
    rows = math.ceil(count / columns)
    canvas.set_size_inches(style.WIDTH, 3.7 if count == 1 else (2.6 if columns < 4 else 1.7) * rows)
    looks = style.of_methods(series.method for series in selection.series)
    drawn = []
    for place, view in enumerate(views):
        axes = canvas.add_subplot(rows, columns, place + 1)
        for reference in view.references:
            heights = {
                cell.x: 100 * cell.interval.mean for cell in reference.cells if cell.interval and cell.x
            }
            axes.plot(list(heights), list(heights.values()), **REFERENCE)
        _draw_along(axes, [line for line in view.lines if line.is_along], looks, view.panel.sizes, columns)
        across = [line for line in view.lines if not line.is_along]
        _draw_across(axes, across, looks, 0.02 * columns)
        shown = {line.series.method for line in view.lines}
        published = {method: points for method, points in selection.published.items() if method in shown}
        _draw_published(axes, published, looks)
        sizes = {size for points in published.values() for size in points}
        is_low = place >= count - columns
        label = AXIS_LABELS[view.panel.axis] if is_low or columns < 4 else ""
        style.size_axis(axes, sorted(sizes.union(view.panel.sizes)), label)
        axes.set_title(textwrap.fill(view.heading, 96 // columns))
        axes.set_ylabel("test accuracy (%)" if place % columns == 0 else "")
        axes.tick_params(labelleft=columns < 4 or place % columns == 0)
        _set_limits(axes, [*view.lines, *view.references])
        drawn.append(axes)
    if len({panel.dataset for panel in selection.panels}) == 1:
        low, high = min(axes.get_ylim()[0] for axes in drawn), max(axes.get_ylim()[1] for axes in drawn)
        for axes in drawn:
            axes.set_ylim(low, high)
    style.legend(canvas, _entries(selection, looks))


def _with_lines(selection: Accuracies) -> Iterator[tuple[Panel, tuple[Line, ...]]]:
    return zip(selection.panels, selection.lines, strict=True)


def _views(panel: Panel, lines: Sequence[Line]) -> Iterator[View]:
    """Yield a panel, or, of more series than can be told apart, one for each beside BN in grey."""
    if len(lines) <= MOST_SERIES:
        yield View(panel, panel.heading, tuple(lines))
        return
    references = tuple(line for line in lines if line.series.method == "batch" and not line.series.variant)
    for line in lines:
        heading = ", ".join(filter(None, (panel.heading, line.series.legend)))
        yield View(panel, heading, (line,), tuple(other for other in references if other is not line))


def _draw_along(
    axes: "Axes", lines: Sequence[Line], looks: Looks, sizes: Sequence[int], columns: int
) -> None:
    """Draw the lines along the axis."""
    cells = [{cell.x: cell for cell in line.cells if cell.x is not None} for line in lines]
    for line, spots in zip(lines, samples.along(cells, sizes, columns), strict=True):
        look = style.varied(looks[line.series.method], line.series.variant)
        if columns > 3:
            look = replace(look, size=0.6 * look.size)
        samples.draw(axes, look, spots, ACCURACY, scale=100)
        samples.draw_failures(axes, look, spots)


def _draw_across(axes: "Axes", lines: Sequence[Line], looks: Looks, step: float) -> None:
    """Draw the lines that the axis cannot touch; their marks stand beside the panel."""
    for order, line in enumerate(lines):
        look = style.varied(looks[line.series.method], line.series.variant)
        (cell,) = line.cells
        x = 1 + step * (order + 0.6)
        spots = [Spot(x, x - samples.BESIDE * step, cell)]
        if cell.interval:
            axes.axhline(100 * cell.interval.mean, color=look.color, linestyle=look.line, zorder=1.8)
        transform = axes.get_yaxis_transform()
        samples.draw(axes, look, spots, ACCURACY, scale=100, joined=False, transform=transform)
        samples.draw_failures(axes, look, spots, axes.transAxes)


def _draw_published(axes: "Axes", published: Mapping[str, Mapping[int, Point]], looks: Looks) -> None:
    for method, points in published.items():
        color = looks[method].color
        heights = [point.accuracy for point in points.values()]
        sds = [math.nan if point.sd is None else point.sd for point in points.values()]
        axes.plot(list(points), heights, color=color, zorder=1.5, marker="_", markersize=5, **PUBLISHED_LINE)
        axes.errorbar(list(points), heights, sds, color=color, linestyle="none", elinewidth=0.6, zorder=1.5)


def _set_limits(axes: "Axes", lines: Sequence[Line]) -> None:
    """Set limits within 0 to 100 %, with room for the marks of failed trials below the lowest value."""
    cells = [cell for line in lines for cell in line.cells]
    if not any(cell.values for cell in cells):
        axes.set_ylim(0, 100)
        return
    low, high = axes.get_ylim()
    low, high = max(low, -1.0), min(high, 101.0)
    most = max(len(cell.failures) for cell in cells)
    room = min(0.03 + 0.05 * most, 0.4) if most else 0.0
    axes.set_ylim(low - room * (high - low) / (1 - room), high)


def _entries(selection: Accuracies, looks: Looks) -> Iterator[tuple["Line2D", str]]:
    """Give the legend: every series, then what the other marks mean."""
    from matplotlib.lines import Line2D

    views = [view for panel, lines in _with_lines(selection) for view in _views(panel, lines)]
    whole = (lines for _, lines in _with_lines(selection) if len(lines) <= MOST_SERIES)
    named = {line.series for lines in whole for line in lines}
    for series in selection.series:
        if series in named:
            yield style.entry(style.varied(looks[series.method], series.variant)), series.legend
    for line in dict.fromkeys(line.series for view in views for line in view.references):
        yield Line2D([], [], **REFERENCE), f"{line.legend}, beside the others"
    yield from samples.entries(selection.cells)
    yield from style.failure_entries(selection.stopped)
    if selection.published:
        yield Line2D([], [], color=style.INK, **PUBLISHED_LINE), "published"


FIGURE = Figure(select, draw, table)
