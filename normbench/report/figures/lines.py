"""Lines over an axis, every seed thin and their mean thick: what several figures draw in panels."""

import math
import textwrap
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from normbench.config.series import Series
from normbench.report.figures import style
from normbench.report.figures.means import Axis, axis_of_sizes, draw_ring, partial_entries
from normbench.report.figures.samples import Sample, columns, counts
from normbench.report.rows import Row

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure as Canvas
    from matplotlib.lines import Line2D

Points = tuple[tuple[float, float], ...]
Looks = Mapping[Series, style.Style]
TOP = 0.17  # of a panel's height, for the marks of values that are not reached


@dataclass(frozen=True)
class Seed:
    """One trial, or those of one seed; a value of nan says that there is none where there should be one.

    Attributes:
        ended: the first x that a trial that failed did not complete, where that is known.
    """

    seed: int
    status: str
    points: Points
    ended: float | None = None

    @property
    def ys(self) -> list[float]:
        """Its values."""
        return [y for _, y in self.points]


@dataclass(frozen=True)
class Line:
    """One series: its seeds, of which only those that are done enter the mean."""

    series: Series
    seeds: tuple[Seed, ...]

    @property
    def mean(self) -> Points:
        """Over the seeds that are done; none where the value of any seed is nan."""
        return tuple(
            (x, math.fsum(sample.values) / len(sample.values))
            for x, sample in self.samples.items()
            if sample.values
        )

    @property
    def samples(self) -> dict[float, Sample]:
        """By x, the values of the seeds that are done, or none where that of any seed is nan.

        A trial that failed is among the failures of every x, or of those alone where its value is nan.
        """
        values: dict[float, list[float]] = defaultdict(list)
        missing: dict[float, list[str]] = defaultdict(list)
        for seed in self.seeds:
            for x, y in seed.points:
                if math.isnan(y):
                    missing[x].append(seed.status)
                elif seed.status == "done":
                    values[x].append(y)
        lost = [s.status for s in self.seeds if s.status != "done" and not any(map(math.isnan, s.ys))]
        return {
            x: Sample(
                () if x in missing else tuple(sorted(values[x])),
                (*lost, *(status for status in missing.get(x, ()) if status != "done")),
            )
            for x in sorted(values.keys() | missing.keys())
        }


@dataclass(frozen=True)
class Panel:
    """One pair of axes.

    Attributes:
        quantity: the label of y, and the value of a column of the table.
        unreached: what a value of nan means; such values have marks at the top edge, under these words.
            Empty where values of nan are left out.
        title: what is drawn above the axes in place of the heading.
        columns: further columns of the table.
        is_lost_upwards: trials that failed without a value are marked at the top edge.
    """

    heading: str
    quantity: str
    lines: tuple[Line, ...]
    unreached: str = ""
    title: str | None = None
    columns: Row = field(default_factory=dict)
    is_lost_upwards: bool = False


@dataclass(frozen=True)
class Lines:
    """All that is drawn: rows of panels, each quantity on one scale.

    Attributes:
        x: label of the axis that all share.
        logarithmic: the y-axes.
        sizes: those of batches that x is, on a logarithmic axis.
        band: rows with titles above the first and labels of x below the last; all rows, if it is 0.
        is_counted: x counts from 0.
    """

    x: str
    rows: tuple[tuple[Panel, ...], ...]
    caption: tuple[str, ...]
    warnings: tuple[str, ...]
    logarithmic: bool = False
    sizes: tuple[int, ...] = ()
    band: int = 0
    is_counted: bool = False

    @property
    def series(self) -> tuple[Series, ...]:
        """Every series once, in the order in which they come."""
        return tuple(dict.fromkeys(line.series for row in self.rows for panel in row for line in panel.lines))

    @property
    def stopped(self) -> Counter[str]:
        """How many trials did not finish, by status; each is in every row of its band, once."""
        first = self.rows[:: self.band or len(self.rows)]
        panels = [panel for row in first for panel in row]
        return Counter(
            seed.status
            for panel in panels
            for line in panel.lines
            for seed in line.seeds
            if seed.status != "done"
        )


def table(selection: Lines) -> list[Row]:
    """Return one row a point of every seed, and of their mean with its 95 % t-interval."""
    rows: list[Row] = []
    for panel in (panel for row in selection.rows for panel in row):
        for line in panel.lines:
            head: Row = {"panel": panel.heading, **panel.columns, "quantity": panel.quantity}
            head |= {"line": line.series.legend, "norm": line.series.method, "options": line.series.options}
            empty: Row = dict.fromkeys((*counts(Sample(())), "low", "high", "sd"))
            for x, sample in line.samples.items():
                summary = columns(sample, "value")
                done = [seed for seed in line.seeds if seed.status == "done" and x in dict(seed.points)]
                numbers = {key: summary[key] for key in ("value", *empty)} | {"finished": len(done)}
                rows.append(head | {"seed": "mean", "status": "done", selection.x: x} | numbers)
            for seed in line.seeds:
                name: Row = {"seed": seed.seed, "status": seed.status}
                points = seed.points
                if seed.status != "done" and (seed.ended or not points):
                    points += ((seed.ended or math.nan, math.nan),)
                rows += [head | name | {selection.x: x, "value": y} | empty for x, y in points]
    return rows


def draw(selection: Lines, canvas: "Canvas") -> None:
    """Draw rows of panels; y is labelled at the left, x at the bottom."""
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    down, across = len(selection.rows), max(map(len, selection.rows))
    canvas.set_size_inches(style.WIDTH, 0.7 + (1.9 if down < 4 else 1.6) * down)
    looks = _looks(selection)
    band = selection.band or down
    for row, panels in enumerate(selection.rows):
        alike = [panel for each in selection.rows for panel in each if panel.quantity == panels[0].quantity]
        limits = _limits(alike, selection.logarithmic)
        is_first, is_last = row % band == 0, row % band == band - 1
        for place, panel in enumerate(panels):
            axes = canvas.add_subplot(down, across, row * across + place + 1)
            if selection.logarithmic:
                axes.set_yscale("log")
                axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
            for line in panel.lines:
                _draw_line(axes, line, looks[line.series], limits, across)
            _draw_pointless(axes, panel, looks)
            if selection.is_counted:
                seeds = [seed for line in panel.lines for seed in line.seeds]
                ends = [x for seed in seeds for x in (seed.ended or 0, *dict(seed.points))]
                axes.set_xlim(0, max(1, *ends) * 1.03)
                axes.xaxis.set_major_locator(MaxNLocator(4, integer=True))
            if selection.sizes:
                axis = axis_of_sizes(selection.x, selection.sizes)
                axes.set_xscale("log", base=2)
                axes.set_xlim(*(2**end for end in axis.limits))
                axes.set_xticks(selection.sizes, style.with_room(axis.places, axis.words))
                axes.minorticks_off()
                _draw_unreached(axes, panel, looks, axis, across)
            axes.set_ylim(*limits)
            if _unreached(panel):  # what stands there is no value of the axis
                border = limits[1] - TOP * (limits[1] - limits[0])
                axes.set_yticks([tick for tick in axes.get_yticks() if limits[0] <= tick < border])
            axes.set_ylabel(textwrap.fill(panel.quantity, 24) if place == 0 else "")
            axes.set_xlabel(selection.x if is_last else "")
            axes.tick_params(labelleft=place == 0, labelbottom=is_last)
            axes.set_title((panel.heading if panel.title is None else panel.title) if is_first else "")
    canvas.align_ylabels()
    style.legend(canvas, _entries(selection, looks, across))


def _looks(selection: Lines) -> Looks:
    methods = {series.method for series in selection.series}
    if len(methods) == 1 and len(selection.series) > style.MOST_VARIANTS:
        return dict(zip(selection.series, style.sequence(len(selection.series)), strict=True))
    return style.of_series(selection.series)


def _limits(panels: Sequence[Panel], logarithmic: bool) -> tuple[float, float]:
    """Return the range of the trials that finished: one that diverged must not flatten all others."""
    seeds = [seed for panel in panels for line in panel.lines for seed in line.seeds]
    finished = [seed for seed in seeds if seed.status == "done"] or seeds
    values = [y for seed in finished for _, y in seed.points if y > 0 or not (logarithmic or math.isnan(y))]
    if not values:
        return (0.1, 1.0)
    low, high = min(values), max(values)
    if logarithmic:
        return low / 1.5, high * 1.5
    margin = 0.04 * (high - low) or 0.1
    top = TOP * (high - low + 2 * margin) / (1 - TOP) if any(map(_unreached, panels)) else 0.0
    return low - margin, high + margin + top


def _draw_line(axes: "Axes", line: Line, look: style.Style, limits: tuple[float, float], across: int) -> None:
    for seed in line.seeds:
        axes.plot(*_xy(seed.points), **style.of_seed(look.color, len(seed.points), across))
        if seed.status != "done" and seed.points and not math.isnan(seed.points[-1][1]):
            x, y = seed.points[-1]
            inside = min(max(y, limits[0]), limits[1])
            axes.plot([x], [inside], clip_on=False, **style.failure(seed.status, look.color))
    axes.plot(*_xy(line.mean), **style.of_mean(look, len(line.mean), across))
    samples = line.samples
    for x, y in line.mean[-1:]:
        if samples[x].partial:
            draw_ring(axes, (x, y), look, samples[x].share)


def _draw_pointless(axes: "Axes", panel: Panel, looks: Looks) -> None:
    """Draw marks of failed trials that have no point.

    They stand where each ended, at the edge that is worst; or, where that is not known, beside each other
    from the lower left corner.
    """
    failed = [(line, seed) for line in panel.lines for seed in line.seeds if not seed.points]
    failed = [(line, seed) for line, seed in failed if seed.status != "done"]
    below: Counter[float] = Counter()
    for number, (line, seed) in enumerate(failed):
        mark = style.failure(seed.status, looks[line.series].color)
        if seed.ended is None:
            axes.plot([0.03 + 0.05 * number], [0.05], transform=axes.transAxes, clip_on=False, **mark)
            continue
        height = 0.05 + 0.09 * below[seed.ended]
        below[seed.ended] += 1
        at = [seed.ended], [1 - height if panel.is_lost_upwards else height]
        axes.plot(*at, transform=axes.get_xaxis_transform(), clip_on=False, **mark)


def _unreached(panel: Panel) -> dict[float, list[Line]]:
    """Return by x the lines of which a seed has a value of nan that is to be shown."""
    by_x: dict[float, list[Line]] = defaultdict(list)
    for line in panel.lines if panel.unreached else ():
        for x in dict.fromkeys(x for seed in line.seeds for x, y in seed.points if math.isnan(y)):
            by_x[x].append(line)
    return by_x


def _draw_unreached(axes: "Axes", panel: Panel, looks: Looks, axis: Axis, across: int) -> None:
    """Draw at the top edge what has no value, side by side: a mark, or that of a trial that failed."""
    by_x = _unreached(panel)
    if not by_x:
        return
    place = axes.get_xaxis_transform()
    step = axis.step(max(map(len, by_x.values())), across)
    for x, lines in by_x.items():
        for line, offset in zip(lines, style.offsets([len(lines) > 1] * len(lines)), strict=True):
            look = looks[line.series]
            at = x * 2 ** (offset * step)
            seeds = [seed for seed in line.seeds if math.isnan(dict(seed.points).get(x, 0))]
            failed = sorted(seed.status for seed in seeds if seed.status != "done")
            if len(failed) < len(seeds):
                marks = replace(look, hollow=True).marks
                axes.plot([at], [1 - TOP / 4], linestyle="none", transform=place, clip_on=False, **marks)
            for number, status in enumerate(failed):
                mark = style.failure(status, look.color)
                axes.plot([at], [1 - TOP / 4 + 0.05 * number], transform=place, clip_on=False, **mark)
    dashes: dict[str, Any] = {"color": style.FAINT, "linewidth": 0.6, "linestyle": (0, (2, 2))}
    axes.plot([0, 1], [1 - TOP, 1 - TOP], transform=axes.transAxes, **dashes)
    words: dict[str, Any] = {"fontsize": 6, "color": style.FAINT, "ha": "right", "va": "bottom"}
    axes.text(0.995, 1 - TOP + 0.005, panel.unreached, transform=axes.transAxes, **words)


def _xy(points: Points) -> tuple[list[float], list[float]]:
    return [x for x, _ in points], [y for _, y in points]


def _entries(selection: Lines, looks: Looks, across: int) -> Iterator[tuple["Line2D", str]]:
    drawn = [line for row in selection.rows for panel in row for line in panel.lines]
    marked = {line.series for line in drawn if style.sparse(len(line.mean), across)}
    for series in selection.series:
        look = looks[series]
        yield style.entry(look if series in marked else replace(look, marker="")), series.legend
    yield from partial_entries(sample for line in drawn for sample in line.samples.values())
    yield from style.failure_entries(selection.stopped)
