"""Lines over an axis, every seed thin and their mean thick: what several figures draw in panels."""

import math
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from normbench.plots import style
from normbench.plots.figure import Row
from normbench.plots.panels import Series
from normbench.stats import mean_interval

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure as Canvas
    from matplotlib.lines import Line2D

Points = tuple[tuple[float, float], ...]


@dataclass(frozen=True)
class Seed:
    """One trial, or those of one seed; a value of nan says that there is none where there should be one."""

    seed: int
    status: str
    points: Points


@dataclass(frozen=True)
class Line:
    """One series: its seeds, of which only those that are done enter the mean."""

    series: Series
    seeds: tuple[Seed, ...]

    @property
    def mean(self) -> Points:
        """Over the seeds that are done; none where the value of one of them is nan."""
        spots = ((x, math.fsum(values) / len(values)) for x, values in self.values.items())
        return tuple((x, mean) for x, mean in spots if not math.isnan(mean))

    @property
    def values(self) -> dict[float, list[float]]:
        """By x, those of the seeds that are done."""
        found: dict[float, list[float]] = defaultdict(list)
        for x, y in sorted(point for seed in self.seeds if seed.status == "done" for point in seed.points):
            found[x].append(y)
        return found


@dataclass(frozen=True)
class Panel:
    """One pair of axes; ``quantity`` is the label of y, and of a column of the table."""

    heading: str
    quantity: str
    lines: tuple[Line, ...]


@dataclass(frozen=True)
class Lines:
    """All that is drawn: rows of panels, each row on one scale.

    Attributes:
        x: label of the axis that all share.
        logarithmic: the y-axes.
        sizes: those of batches that x is, on a logarithmic axis.
    """

    x: str
    rows: tuple[tuple[Panel, ...], ...]
    caption: tuple[str, ...]
    warnings: tuple[str, ...]
    logarithmic: bool = False
    sizes: tuple[int, ...] = ()

    @property
    def series(self) -> tuple[Series, ...]:
        """Every series once, in the order in which they come."""
        return tuple(dict.fromkeys(line.series for row in self.rows for panel in row for line in panel.lines))

    @property
    def stopped(self) -> Counter[str]:
        """How many trials did not finish, by status; each is in every row, once."""
        return Counter(
            seed.status
            for panel in self.rows[0]
            for line in panel.lines
            for seed in line.seeds
            if seed.status != "done"
        )


def table(selection: Lines) -> list[Row]:
    """One row a point of every seed, and of their mean with its 95 % t-interval."""
    rows: list[Row] = []
    for panel in (panel for row in selection.rows for panel in row):
        for line in panel.lines:
            head: Row = {"panel": panel.heading, "quantity": panel.quantity}
            head |= {"norm": line.series.method, "options": line.series.options}
            for x, y in line.mean:
                interval = mean_interval(line.values[x])
                bounds: Row = {"low": interval.low, "high": interval.high}
                rows.append(head | {"seed": "mean", "status": "done", selection.x: x, "value": y} | bounds)
            for seed in line.seeds:
                told: Row = {"seed": seed.seed, "status": seed.status}
                rows += [
                    head | told | {selection.x: x, "value": y, "low": None, "high": None}
                    for x, y in seed.points
                ]
    return rows


def draw(selection: Lines, canvas: "Canvas") -> None:
    """Rows of panels; y is labelled at the left, x at the bottom."""
    from matplotlib.ticker import FuncFormatter

    down, across = len(selection.rows), max(map(len, selection.rows))
    canvas.set_size_inches(style.WIDTH, 0.7 + 1.9 * down)
    for row, panels in enumerate(selection.rows):
        limits = _limits(panels, selection.logarithmic)
        for place, panel in enumerate(panels):
            axes = canvas.add_subplot(down, across, row * across + place + 1)
            if selection.logarithmic:
                axes.set_yscale("log")
                axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
            for line in panel.lines:
                _draw_line(axes, line, limits, across)
            if selection.sizes:
                style.size_axis(axes, selection.sizes, selection.x)
            axes.set_ylim(*limits)
            axes.set_ylabel(panel.quantity if place == 0 else "")
            axes.set_xlabel(selection.x if row == down - 1 else "")
            axes.tick_params(labelleft=place == 0, labelbottom=row == down - 1)
            axes.set_title(panel.heading if row == 0 else "")
    canvas.align_ylabels()
    style.legend(canvas, _entries(selection, across))


def _limits(panels: Sequence[Panel], logarithmic: bool) -> tuple[float, float]:
    """The range of the trials that finished: one that diverged must not flatten all others."""
    seeds = [seed for panel in panels for line in panel.lines for seed in line.seeds]
    finished = [seed for seed in seeds if seed.status == "done"] or seeds
    values = [y for seed in finished for _, y in seed.points if y > 0 or not (logarithmic or math.isnan(y))]
    if not values:
        return (0.1, 1.0)
    low, high = min(values), max(values)
    if logarithmic:
        return low / 1.5, high * 1.5
    margin = 0.04 * (high - low) or 0.1
    return low - margin, high + margin


def _draw_line(axes: "Axes", line: Line, limits: tuple[float, float], across: int) -> None:
    look = style.of_method(line.series.method, line.series.variant)
    for seed in line.seeds:
        axes.plot(*_xy(seed.points), **style.of_seed(look.color, len(seed.points), across))
        if seed.status != "done" and seed.points:
            x, y = seed.points[-1]
            inside = min(max(y, limits[0]), limits[1])
            axes.plot([x], [inside], clip_on=False, **style.failure(seed.status, look.color))
    axes.plot(*_xy(line.mean), **style.of_mean(look, len(line.mean), across))


def _xy(points: Points) -> tuple[list[float], list[float]]:
    return [x for x, _ in points], [y for _, y in points]


def _entries(selection: Lines, across: int) -> Iterator[tuple["Line2D", str]]:
    drawn = [line for row in selection.rows for panel in row for line in panel.lines]
    marked = {line.series for line in drawn if style.sparse(len(line.mean), across)}
    for series in selection.series:
        look = style.of_method(series.method, series.variant)
        yield style.entry(look if series in marked else replace(look, marker="")), series.label
    yield from style.failure_entries(selection.stopped)
