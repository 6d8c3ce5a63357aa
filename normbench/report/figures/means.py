"""Means with intervals and seeds over an axis: what several figures draw in panels."""

import itertools
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from normbench.report.figures import style
from normbench.report.figures.samples import Sample, columns
from normbench.report.metrics import Quantity
from normbench.report.rows import Row, Value

if TYPE_CHECKING:
    from matplotlib.axes import Axes as Canvas
    from matplotlib.lines import Line2D
    from matplotlib.transforms import Transform

BESIDE = 0.45  # of a step to the left of their mean: single values
REFERENCE: Mapping[str, Any] = {"color": style.FAINT, "linewidth": 1.2, "zorder": 1.6}
RING: Mapping[str, Any] = {
    "linestyle": "none",
    "marker": "o",
    "markersize": 8.5,
    "markerfacecolor": "none",
    "markeredgecolor": style.INK,
    "markeredgewidth": 0.8,
    "zorder": 3.5,
}


@dataclass(frozen=True)
class Axis:
    """An x-axis of a few values.

    Attributes:
        values: by which the samples of a line are keyed, in order.
        places: where these stand, ascending.
        words: what they are called.
        margin: beyond the first and the last place.
        is_joined: what lies between two values means something.
    """

    label: str
    values: tuple[Value, ...]
    places: tuple[float, ...]
    words: tuple[str, ...]
    margin: tuple[float, float]
    is_joined: bool = True

    @property
    def limits(self) -> tuple[float, float]:
        """Where the axis begins and ends."""
        return self.places[0] - self.margin[0], self.places[-1] + self.margin[1]

    def step(self, of: int, across: int) -> float:
        """Return the distance between ``of`` series at one value, so that none hides another's interval.

        Args:
            across: panels side by side; the narrower they are, the further apart on their axis.
        """
        low, high = self.limits
        wanted = (0.015 if across == 1 else 0.025 if across < 4 else 0.083) * (high - low)
        gaps = [after - before for before, after in itertools.pairwise(self.places)]
        return min(wanted, 0.7 * min(gaps, default=1.0) / of, 1.6 * min(self.margin) / of)

    def draw(self, canvas: "Canvas") -> None:
        """Draw ticks and labels."""
        canvas.set_xticks(self.places, style.with_room(self.places, self.words))
        canvas.set_xlim(*self.limits)
        canvas.set_xlabel(self.label)


def axis_of_sizes(label: str, sizes: Sequence[int]) -> Axis:
    """Return an axis of batch sizes, which stand by their logarithm."""
    margin = style.MARGIN * style.octaves(sizes)
    words = tuple(map(str, sizes))
    return Axis(label, tuple(sizes), tuple(map(math.log2, sizes)), words, (margin, margin))


@dataclass(frozen=True)
class Line:
    """One series.

    Attributes:
        label: in the legend.
        samples: by the value of the axis; that of None is of a method which the axis cannot touch.
        columns: what a table says of it.
    """

    label: str
    look: style.Style
    samples: Mapping[Any, Sample]
    columns: Row = field(default_factory=dict)


@dataclass(frozen=True)
class Panel:
    """One pair of axes.

    Attributes:
        heading: what is drawn above it.
        references: lines beside which those of the panel are drawn, in grey.
        columns: those of a table in their order, with what it says of the panel.
        x: the name of the column of the axis.
    """

    heading: str
    axis: Axis
    quantity: Quantity
    lines: tuple[Line, ...]
    columns: Row
    x: str = "size"
    references: tuple[Line, ...] = ()

    @property
    def samples(self) -> list[Sample]:
        """Those of all lines."""
        return [sample for line in self.lines for sample in line.samples.values()]

    def rows(self) -> list[Row]:
        """Return one row of a table for each sample."""
        return [
            self.columns | line.columns | {self.x: x} | columns(sample, self.quantity.column)
            for line in self.lines
            for x, sample in line.samples.items()
        ]


@dataclass(frozen=True)
class Means:
    """All that is drawn.

    Attributes:
        legend: the series that it names.
        stopped: how many trials did not finish, by status.
    """

    panels: tuple[Panel, ...]
    legend: tuple[tuple[str, style.Style], ...]
    stopped: Mapping[str, int]
    caption: tuple[str, ...]
    warnings: tuple[str, ...] = ()

    def entries(self) -> Iterator[tuple["Line2D", str]]:
        """Give the entries of the legend: every series, then what the other marks mean."""
        is_joined = all(panel.axis.is_joined for panel in self.panels)
        yield from ((style.entry(look, is_joined), label) for label, look in self.legend)
        yield from partial_entries(sample for panel in self.panels for sample in panel.samples)
        yield from style.failure_entries(self.stopped)


def table(selection: Means) -> list[Row]:
    """Return one row a sample."""
    return [row for panel in selection.panels for row in panel.rows()]


@dataclass(frozen=True)
class Spot:
    """A sample on axes: its mean and interval at ``x``, its single values at ``beside``."""

    x: float
    beside: float
    sample: Sample


def draw(axes: "Canvas", panel: Panel, across: int = 1, *, singles: bool = True, failed: bool = True) -> None:
    """Draw the lines of a panel with their axis.

    Args:
        across: panels side by side.
        singles: draw the values of the seeds, too.
        failed: draw a mark for every trial that failed.
    """
    quantity, axis = panel.quantity, panel.axis
    along = [line for line in panel.lines if None not in line.samples]
    beside = [line for line in panel.lines if None in line.samples]
    for reference in panel.references:
        means = {x: sample.interval.mean for x, sample in reference.samples.items() if x and sample.interval}
        places = [axis.places[axis.values.index(x)] for x in means]
        axes.plot(places, [quantity.scale * mean for mean in means.values()], **REFERENCE)
    for line, spots in zip(along, spots_of(along, axis, across), strict=True):
        look = line.look if across < 4 else replace(line.look, size=0.6 * line.look.size)
        draw_line(axes, look, spots, quantity, joined=axis.is_joined, singles=singles)
        if failed:
            _draw_failures(axes, line.look, spots, quantity)
    for order, line in enumerate(beside):  # their marks stand beside the panel
        step = 0.02 * across
        x = 1 + step * (order + 0.6)
        spots = [Spot(x, x - BESIDE * step, line.samples[None])]
        if interval := line.samples[None].interval:
            height = quantity.scale * interval.mean
            axes.axhline(height, color=line.look.color, linestyle=line.look.line, zorder=1.8)
        transform = axes.get_yaxis_transform()
        draw_line(axes, line.look, spots, quantity, joined=False, transform=transform)
        _draw_failures(axes, line.look, spots, quantity, axes.transAxes)
    axis.draw(axes)


def set_limits(axes: "Canvas", panel: Panel) -> None:
    """Set limits of y within what can be, with room for the marks of failed trials at the worst edge."""
    quantity = panel.quantity
    least, most = (quantity.scale * bound for bound in quantity.bounds)
    if not any(sample.values for sample in panel.samples):
        if math.isfinite(most - least):
            axes.set_ylim(least, most)
        return
    low, high = axes.get_ylim()
    if math.isfinite(most - least):
        edge = 0.01 * (most - least)
        low, high = max(low, least - edge), min(high, most + edge)
    count = max(len(sample.failures) for sample in panel.samples)
    share = min(0.03 + 0.05 * count, 0.4) if count else 0.0
    room = share * (high - low) / (1 - share)
    axes.set_ylim(*((low, high + room) if quantity.better == "lower" else (low - room, high)))


def set_ticks(axes: "Canvas", quantity: Quantity) -> None:
    """Leave no tick where no number can be: the marks of failed trials stand there."""
    low, high = axes.get_ylim()
    least, most = (quantity.scale * bound for bound in quantity.bounds)
    ticks = [tick for tick in axes.get_yticks() if low <= tick <= high]
    possible = [tick for tick in ticks if least <= tick <= most]
    if possible != ticks:
        axes.set_yticks(possible)


def spots_of(lines: Sequence[Line], axis: Axis, across: int) -> list[list[Spot]]:
    """Place series on an axis: on the value, or side by side where they could hide each other."""
    crowd = {x: [x in line.samples and line.samples[x].crowded for line in lines] for x in axis.values}
    step = axis.step(max([1, *map(sum, crowd.values())]), across)
    offsets = {x: style.offsets(crowd[x]) for x in axis.values}
    places = dict(zip(axis.values, axis.places, strict=True))
    return [
        [
            Spot(
                places[x] + step * offsets[x][order], places[x] + step * (offsets[x][order] - BESIDE), sample
            )
            for x, sample in line.samples.items()
        ]
        for order, line in enumerate(lines)
    ]


def draw_line(
    axes: "Canvas",
    look: style.Style,
    spots: Sequence[Spot],
    quantity: Quantity,
    *,
    joined: bool = True,
    singles: bool = True,
    transform: "Transform | None" = None,
) -> None:
    """Draw one series: means, intervals that end at the bounds, and every value where there are several.

    A ring is around a mean that leaves trials out. A caret stands where an interval goes on beyond the
    bounds.

    Args:
        joined: by a line from mean to mean.
        singles: draw the values, too.
        transform: of x and y, which may lead beside the axes; by default that of the data.
    """
    from matplotlib.markers import CARETDOWN, CARETUP

    scale, bounds = quantity.scale, quantity.bounds
    placed: dict[str, Any] = {"color": look.color, "transform": transform or axes.transData}
    placed["clip_on"] = transform is None
    shown = [(spot, interval) for spot in spots if (interval := spot.sample.interval)]
    xs, means = [spot.x for spot, _ in shown], [scale * interval.mean for _, interval in shown]
    reaches = [
        [scale * (interval.mean - max(interval.low, bounds[0])) for _, interval in shown],
        [scale * (min(interval.high, bounds[1]) - interval.mean) for _, interval in shown],
    ]
    axes.plot(xs, means, linestyle=look.line if joined else "none", zorder=3, **placed, **look.marks)
    whole = placed | {"clip_on": False}
    axes.errorbar(xs, means, reaches, linestyle="none", elinewidth=1.0, capsize=2.2, **whole)
    for spot, interval in shown:
        if interval.low < bounds[0]:
            axes.plot([spot.x], [scale * bounds[0]], marker=CARETDOWN, markersize=4.5, **placed)
        if interval.high > bounds[1]:
            axes.plot([spot.x], [scale * bounds[1]], marker=CARETUP, markersize=4.5, **placed)
        values = [scale * value for value in spot.sample.values]
        if singles and len(values) > 1:
            dots = [spot.beside] * len(values)
            axes.plot(dots, values, ".", markersize=4, alpha=0.55, mew=0, **placed)
        if spot.sample.partial:
            draw_ring(axes, (spot.x, scale * interval.mean), look, spot.sample.share, transform)


def draw_ring(
    axes: "Canvas",
    at: tuple[float, float],
    look: style.Style,
    share: str,
    transform: "Transform | None" = None,
) -> None:
    """Draw a ring around a mean that leaves trials out, with ``share`` of them beside it."""
    place = transform or axes.transData
    axes.plot([at[0]], [at[1]], transform=place, clip_on=False, **{**RING, "markeredgecolor": look.color})
    words = axes.annotate(
        share,
        at,
        (3, 6),
        xycoords=place,
        textcoords="offset points",
        ha="right",
        fontsize=6,
        color=look.color,
        annotation_clip=False,
        zorder=5,
    )
    words.set_in_layout(False)


def _draw_failures(
    axes: "Canvas",
    look: style.Style,
    spots: Iterable[Spot],
    quantity: Quantity,
    transform: "Transform | None" = None,
) -> None:
    """Draw a mark for every failed trial, one beside the other from the edge that is worse.

    Args:
        transform: whose y is a height in the panel; by default that with the data's x.
    """
    for spot in spots:
        for number, status in enumerate(sorted(spot.sample.failures)):
            height = 0.03 + 0.05 * number
            at = [spot.x], [1 - height if quantity.better == "lower" else height]
            mark = style.failure(status, look.color)
            axes.plot(*at, transform=transform or axes.get_xaxis_transform(), clip_on=False, **mark)


def partial_entries(samples: Iterable[Sample]) -> Iterator[tuple["Line2D", str]]:
    """Give the legend's entry for means that leave trials out; none where there are none."""
    from matplotlib.lines import Line2D

    labels = dict.fromkeys(
        f"{sample.failures.count(status)} of {len(sample.values) + len(sample.failures)} "
        f"{status.replace('_', ' ')}"
        for sample in samples
        if sample.partial
        for status in style.FAILURES
        if status in sample.failures
    )
    if labels:
        yield Line2D([], [], **RING), f"mean of the rest ({', '.join(sorted(labels))})"
