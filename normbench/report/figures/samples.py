"""The trials of one cell: their mean with its 95 % interval, as columns of a table and on axes."""

import statistics
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from normbench.report.figures import style
from normbench.report.stats import Interval, mean_interval

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.lines import Line2D
    from matplotlib.transforms import Transform

    from normbench.report.rows import Row

Bounds = tuple[float, float]
ACCURACY: Bounds = (0.0, 1.0)
RING: Mapping[str, Any] = {
    "linestyle": "none",
    "marker": "o",
    "markersize": 8.5,
    "markerfacecolor": "none",
    "markeredgecolor": style.INK,
    "markeredgewidth": 0.8,
    "zorder": 3.5,
}
BESIDE = 0.45  # of a step to the left of their mean: single values


@dataclass(frozen=True)
class Sample:
    """The trials of one cell.

    Attributes:
        values: of the trials that finished, by seed.
        failures: the status of every other trial.
    """

    values: tuple[float, ...]
    failures: tuple[str, ...] = ()

    @property
    def interval(self) -> Interval | None:
        """The mean of the values with its 95 % t-interval; None where no trial finished."""
        return mean_interval(self.values) if self.values else None

    @property
    def crowded(self) -> bool:
        """Whether what is drawn of it could hide what is drawn of another: an interval, or failed trials."""
        return len(self.values) > 1 or bool(self.failures)

    @property
    def share(self) -> str:
        """How many of the trials did not finish, such as ``1 of 2``."""
        return f"{len(self.failures)} of {len(self.values) + len(self.failures)}"

    @property
    def partial(self) -> bool:
        """Whether the mean leaves trials out."""
        return bool(self.values and self.failures)


def columns(sample: Sample, quantity: str, scale: float = 1.0) -> "Row":
    """Return the columns that every table of figures has of a cell; ``docs/figures.md`` explains them.

    Args:
        quantity: the name of the column of the mean.
        scale: divides all values; the table has fractions where a figure has per cent.
    """
    interval = sample.interval
    values = [value / scale for value in sample.values]
    return counts(sample) | {
        quantity: interval.mean / scale if interval else None,
        "low": interval.low / scale if interval else None,
        "high": interval.high / scale if interval else None,
        "sd": statistics.stdev(values) if len(values) > 1 else None,
        "values": " ".join(map(str, values)),
    }


def counts(sample: Sample) -> "Row":
    """Return the columns with the number of trials by how they ended."""
    ended: Row = {status: sample.failures.count(status) for status in style.FAILURES}
    return {"finished": len(sample.values), **ended}


def beyond(samples: Iterable[Sample], bounds: Bounds, words: str) -> list[str]:
    """Return the sentence of the caption on intervals that leave ``bounds``; empty where none does.

    Args:
        words: the bounds as the axis has them, such as ``0 or 100 %``.
    """
    intervals = (sample.interval for sample in samples)
    if any(interval and (interval.low < bounds[0] or interval.high > bounds[1]) for interval in intervals):
        return [f"Intervals that reach beyond {words} end there, at a caret."]
    return []


@dataclass(frozen=True)
class Spot:
    """A sample on axes: its mean and interval at ``x``, its single values at ``beside``."""

    x: float
    beside: float
    sample: Sample


def along(lines: Sequence[Mapping[int, Sample]], sizes: Sequence[int], across: int = 1) -> list[list[Spot]]:
    """Place series on an axis of sizes: on the size, or side by side where they could hide each other.

    Args:
        lines: the samples of each series by size.
        sizes: all sizes of the axis.
        across: panels side by side.
    """
    crowd = {size: [size in line and line[size].crowded for line in lines] for size in sizes}
    step = style.dodge(max([1, *map(sum, crowd.values())]), sizes, across)
    offsets = {size: style.offsets(crowd[size]) for size in sizes}
    return [
        [
            Spot(
                style.dodged(size, offsets[size][order], step),
                style.dodged(size, offsets[size][order] - BESIDE, step),
                sample,
            )
            for size, sample in line.items()
        ]
        for order, line in enumerate(lines)
    ]


def draw(
    axes: "Axes",
    look: style.Style,
    spots: Sequence[Spot],
    bounds: Bounds,
    *,
    scale: float = 1.0,
    joined: bool = True,
    singles: bool = True,
    transform: "Transform | None" = None,
) -> None:
    """Draw one series: means, intervals that end at ``bounds``, and every value where there are several.

    A ring is around a mean that leaves trials out. A caret stands where an interval goes on beyond
    ``bounds``.

    Args:
        scale: multiplies values and bounds.
        joined: by a line from mean to mean.
        singles: draw the values, too.
        transform: of x and y, which may lead beside the axes; by default that of the data.
    """
    from matplotlib.markers import CARETDOWN, CARETUP

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
    axes: "Axes",
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


def draw_failures(
    axes: "Axes", look: style.Style, spots: Iterable[Spot], transform: "Transform | None" = None
) -> None:
    """Draw a mark for every failed trial, one above the other from the bottom edge.

    Args:
        transform: whose y is a height in the panel; by default that with the data's x.
    """
    for spot in spots:
        for number, status in enumerate(sorted(spot.sample.failures)):
            at = [spot.x], [0.03 + 0.05 * number]
            mark = style.failure(status, look.color)
            axes.plot(*at, transform=transform or axes.get_xaxis_transform(), clip_on=False, **mark)


def entries(samples: Iterable[Sample]) -> Iterator[tuple["Line2D", str]]:
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
