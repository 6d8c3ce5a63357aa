"""Test accuracy against batch size: every method's mean over seeds with its 95 % interval, and every seed."""

import math
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from normbench.plots import caption, style
from normbench.plots.figure import Figure, Options, Row
from normbench.plots.panels import AXIS_LABELS, Curve, Panel, Series, arrange
from normbench.plots.published import PUBLISHED, Point
from normbench.records import Record
from normbench.stats import Interval, mean_interval

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure as Canvas
    from matplotlib.lines import Line2D
    from matplotlib.transforms import Transform

PUBLISHED_LINE: Mapping[str, Any] = {"linestyle": (0, (4, 3)), "linewidth": 0.8}


@dataclass(frozen=True)
class Spot:
    """One cell.

    Attributes:
        x: the size, or None for a method that the size on the axis cannot touch.
        accuracies: fractions, of the finished trials, by seed.
        interval: of their mean; None where no trial finished.
        failures: the status of every other trial.
    """

    x: int | None
    accuracies: tuple[float, ...]
    interval: Interval | None
    failures: tuple[str, ...]

    @property
    def centre(self) -> float:
        """The mean in percent, or nan."""
        return 100 * self.interval.mean if self.interval else math.nan

    @property
    def reach(self) -> float:
        """Half the interval's width in percent, or nan."""
        return 100 * (self.interval.high - self.interval.mean) if self.interval else math.nan


@dataclass(frozen=True)
class Line:
    """One series' cells, by size."""

    series: Series
    spots: tuple[Spot, ...]


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


def select(records: Sequence[Record], options: Options) -> Accuracies | None:
    """Last-epoch test accuracies by panel, series and size."""
    arranged = arrange(records)
    if arranged is None:
        return None
    lines = tuple(tuple(_line(curve) for curve in panel.curves) for panel in arranged.panels)
    spots = [spot for panel in lines for line in panel for spot in line.spots]
    alone = any(len(spot.accuracies) == 1 for spot in spots)
    sentences = [
        *caption.about(arranged),
        "Test accuracy after the last epoch: mean and 95 % t-interval over seeds"
        f"{' (a single seed has none)' if alone else ''}; small dots: single seeds.",
    ]
    if any(spot.x is None for spot in spots):
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
    spots = []
    for cell in curve.cells:
        values = tuple(record.final.test_accuracy for record in cell.finished if record.final)
        failures = tuple(record.status for record in cell.records if record.status != "done")
        spots.append(Spot(cell.x, values, mean_interval(values) if values else None, failures))
    return Line(curve.series, tuple(spots))


def table(selection: Accuracies) -> list[Row]:
    """One row a cell, and one a published point if there are any. Accuracies are fractions."""
    rows: list[Row] = [
        {
            "panel": panel.heading,
            "source": "measured",
            "norm": line.series.method,
            "options": line.series.options,
            "axis": panel.axis,
            "size": spot.x,
            "finished": len(spot.accuracies),
            **{status: spot.failures.count(status) for status in style.FAILURES},
            "test_accuracy": spot.interval.mean if spot.interval else None,
            "low": spot.interval.low if spot.interval else None,
            "high": spot.interval.high if spot.interval else None,
            "sd": None,
            "seeds": " ".join(map(str, spot.accuracies)),
        }
        for panel, lines in zip(selection.panels, selection.lines, strict=True)
        for line in lines
        for spot in line.spots
    ]
    empty = dict.fromkeys(rows[0])
    for method, points in selection.published.items():
        for size, point in points.items():
            known: Row = {"source": selection.overlay, "norm": method, "axis": "batch_size", "size": size}
            sd = None if point.sd is None else round(point.sd / 100, 6)
            rows.append({**empty, **known, "test_accuracy": round(point.accuracy / 100, 6), "sd": sd})
    return rows


def draw(selection: Accuracies, canvas: "Canvas") -> None:
    """One panel large, or a grid of small ones, on a common scale where all show the same data set."""
    count = len(selection.panels)
    columns = min(count, 2 if count in (2, 4) else 3)
    rows = math.ceil(count / columns)
    canvas.set_size_inches(style.WIDTH, 3.7 if count == 1 else 2.6 * rows)
    drawn = []
    for place, (panel, lines) in enumerate(zip(selection.panels, selection.lines, strict=True)):
        axes = canvas.add_subplot(rows, columns, place + 1)
        along = [line for line in lines if line.spots[0].x is not None]
        _draw_along(axes, along, style.dodge(len(along), panel.sizes, columns))
        _draw_across(axes, [line for line in lines if line.spots[0].x is None], 0.02 * columns)
        _draw_published(axes, selection.published)
        sizes = {size for points in selection.published.values() for size in points}
        style.size_axis(axes, sorted(sizes.union(panel.sizes)), AXIS_LABELS[panel.axis])
        axes.set_title(textwrap.fill(panel.heading, 96 // columns))
        axes.set_ylabel("test accuracy (%)" if place % columns == 0 else "")
        _set_limits(axes, lines)
        drawn.append(axes)
    if len({panel.dataset for panel in selection.panels}) == 1:
        low, high = min(axes.get_ylim()[0] for axes in drawn), max(axes.get_ylim()[1] for axes in drawn)
        for axes in drawn:
            axes.set_ylim(low, high)
    style.legend(canvas, _entries(selection))


def _draw_along(axes: "Axes", lines: Sequence[Line], step: float) -> None:
    """Lines along the axis, ``step`` octaves apart."""
    for order, line in enumerate(lines):
        look = style.of_method(line.series.method, line.series.variant)
        xs = [style.dodged(spot.x or 1, order, len(lines), step) for spot in line.spots]
        axes.plot(xs, [spot.centre for spot in line.spots], color=look.color, linestyle=look.line, zorder=3)
        for x, spot in zip(xs, line.spots, strict=True):
            beside = style.dodged(spot.x or 1, order - 0.45, len(lines), step)
            _draw_spot(axes, spot, look, (x, beside), (axes.transData, axes.get_xaxis_transform()))


def _draw_across(axes: "Axes", lines: Sequence[Line], step: float) -> None:
    """Lines that the axis cannot touch; their marks stand beside the panel, ``step`` of its width apart."""
    for order, line in enumerate(lines):
        look = style.of_method(line.series.method, line.series.variant)
        (spot,) = line.spots
        x = 1 + step * (order + 0.6)
        axes.axhline(spot.centre, color=look.color, linestyle=look.line, zorder=1.8)
        _draw_spot(axes, spot, look, (x, x - 0.45 * step), (axes.get_yaxis_transform(), axes.transAxes))


def _draw_spot(
    axes: "Axes",
    spot: Spot,
    look: style.Style,
    at: tuple[float, float],
    transforms: tuple["Transform", "Transform"],
) -> None:
    """Mean and interval at ``at[0]``, seeds at ``at[1]``, at the bottom edge a mark a failed trial.

    Args:
        transforms: one whose y is an accuracy, and one whose y is a height in the panel.
    """
    (x, beside), (accuracy, height) = at, transforms
    drawn: dict[str, Any] = {"color": look.color, "clip_on": False, "transform": accuracy}
    if spot.interval:
        axes.plot([x], [spot.centre], zorder=3, **drawn, **look.marks)
        axes.errorbar([x], [spot.centre], [spot.reach], elinewidth=1.0, capsize=2.2, zorder=2.5, **drawn)
        percents = [100 * value for value in spot.accuracies]
        axes.plot([beside] * len(percents), percents, ".", markersize=4, alpha=0.55, mew=0, **drawn)
    for place, status in enumerate(sorted(spot.failures)):
        mark = style.failure(status, look.color)
        axes.plot([x], [0.03 + 0.05 * place], transform=height, clip_on=False, **mark)


def _draw_published(axes: "Axes", published: Mapping[str, Mapping[int, Point]]) -> None:
    for method, points in published.items():
        color = style.of_method(method).color
        heights = [point.accuracy for point in points.values()]
        sds = [math.nan if point.sd is None else point.sd for point in points.values()]
        axes.plot(list(points), heights, color=color, zorder=1.5, marker="_", markersize=5, **PUBLISHED_LINE)
        axes.errorbar(list(points), heights, sds, color=color, linestyle="none", elinewidth=0.6, zorder=1.5)


def _set_limits(axes: "Axes", lines: Sequence[Line]) -> None:
    """Within 0 to 100 %, with room for the marks of failed trials below the lowest value."""
    spots = [spot for line in lines for spot in line.spots]
    if not any(spot.accuracies for spot in spots):
        axes.set_ylim(0, 100)
        return
    low, high = axes.get_ylim()
    low, high = max(low, -1.0), min(high, 101.0)
    most = max(len(spot.failures) for spot in spots)
    room = min(0.03 + 0.05 * most, 0.4) if most else 0.0
    axes.set_ylim(low - room * (high - low) / (1 - room), high)


def _entries(selection: Accuracies) -> Iterator[tuple["Line2D", str]]:
    """The legend: every series, then what the other marks mean."""
    from matplotlib.lines import Line2D

    for series in selection.series:
        yield style.entry(style.of_method(series.method, series.variant)), series.label
    yield from style.failure_entries(selection.stopped)
    if selection.published:
        yield Line2D([], [], color=style.INK, **PUBLISHED_LINE), "published"


FIGURE = Figure(select, draw, table)
