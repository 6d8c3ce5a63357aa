"""The metric against batch size: every method's mean over seeds with its 95 % interval, and every seed."""

import math
import textwrap
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from normbench.config.series import Series
from normbench.report.figures import caption, means, style
from normbench.report.figures.base import Figure, Options
from normbench.report.figures.means import Line, Means, Panel, axis_of_sizes
from normbench.report.figures.panels import AXIS_LABELS, MOST_PANELS, Curve, arrange, metric_of
from normbench.report.figures.panels import Panel as Arranged
from normbench.report.figures.published import PUBLISHED, Point
from normbench.report.figures.samples import Sample, beyond
from normbench.report.metrics import METRICS, Metric
from normbench.report.rows import Row
from normbench.report.table import Table

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure as Canvas
    from matplotlib.lines import Line2D

Looks = Mapping[Series, style.Style]
MOST_SERIES = 8  # in one pair of axes; of more, each has axes of its own
PUBLISHED_LINE: Mapping[str, Any] = {"linestyle": (0, (4, 3)), "linewidth": 0.8}


@dataclass(frozen=True)
class Sizes(Means):
    """All that is drawn.

    Attributes:
        is_shared: all panels have one scale.
        overlay: the name of the published series.
        published: its points by method and size.
    """

    is_shared: bool = True
    overlay: str = "none"
    published: Mapping[str, Mapping[int, Point]] = field(default_factory=dict)

    def entries(self) -> Iterator[tuple["Line2D", str]]:
        """Give the entries of the legend."""
        from matplotlib.lines import Line2D

        entries = list(super().entries())
        yield from entries[: len(self.legend)]
        for label in dict.fromkeys(line.label for panel in self.panels for line in panel.references):
            yield Line2D([], [], **means.REFERENCE), f"{label}, beside the others"
        yield from entries[len(self.legend) :]
        if self.published:
            yield Line2D([], [], color=style.INK, **PUBLISHED_LINE), "published"


def select(trials: Table, options: Options) -> Sizes | None:
    """Return the numbers after the last epoch by panel, series and size."""
    arranged = arrange(trials)
    if arranged is None:
        return None
    metric = metric_of(trials, options)
    looks = style.of_series(arranged.series)
    panels = [view for panel in arranged.panels for view in _views(panel, metric, looks)]
    cells = [sample for panel in panels for sample in panel.samples]
    alone = any(len(sample.values) == 1 for sample in cells)
    sentences = [
        *caption.about(arranged),
        f"{caption.measured(metric)}: mean and 95 % t-interval over seeds"
        f"{' (a single seed has none)' if alone else ''}; small dots: single seeds.",
        *beyond(cells, metric.quantity),
    ]
    if any(None in line.samples for panel in panels for line in panel.lines):
        sentences.append(
            "Lines across, their marks on the right: methods with statistics of each sample alone."
        )
    warnings = list(caption.warnings(arranged))
    overlay = str(options.get("published", "none"))
    published: Mapping[str, Mapping[int, Point]] = {}
    if overlay != "none":
        methods = {series.method for series in arranged.series if metric is METRICS["accuracy"]}
        accuracy = PUBLISHED[overlay].accuracy
        published = {method: points for method, points in accuracy.items() if method in methods}
        if published:
            source = PUBLISHED[overlay].source
            sentences.append(f"Thin dashed, published: {source}. There both batch sizes move together.")
        elif methods:
            warnings.append(f"The published series {overlay} has none of these methods.")
        else:
            warnings.append(f"The published series {overlay} is of accuracies, and left out.")
    panels = [_with_room_for(panel, published) for panel in panels]
    whole = {curve.series for panel in arranged.panels for curve in panel.curves if not _is_split(panel)}
    return Sizes(
        tuple(panels),
        tuple((series.legend, looks[series]) for series in arranged.series if series in whole),
        arranged.stopped,
        tuple(sentences),
        tuple(warnings),
        len({panel.dataset for panel in arranged.panels}) == 1,
        overlay,
        published,
    )


def _is_split(panel: Arranged) -> bool:
    return len(panel.curves) > MOST_SERIES


def _views(panel: Arranged, metric: Metric, looks: Looks) -> Iterator[Panel]:
    """Yield a panel, or, of more series than can be told apart, one for each beside BN in grey."""
    lines = [_line(curve, metric, looks[curve.series]) for curve in panel.curves]
    names: Row = {"panel": panel.heading, "source": "measured", "norm": None, "options": None}
    view = Panel(
        panel.heading,
        axis_of_sizes(AXIS_LABELS[panel.axis], panel.sizes),
        metric.quantity,
        tuple(lines),
        names | {"axis": panel.axis, "size": None},
    )
    if not _is_split(panel):
        yield view
        return
    base = [curve.series.method == "batch" and not curve.series.variant for curve in panel.curves]
    references = [line for line, is_base in zip(lines, base, strict=True) if is_base]
    for line in lines:
        heading = ", ".join(filter(None, (panel.heading, line.label)))
        others = tuple(other for other in references if other is not line)
        yield replace(view, heading=heading, lines=(line,), references=others)


def _line(curve: Curve, metric: Metric, look: style.Style) -> Line:
    series = curve.series
    samples = {x: Sample.of(cell, metric) for x, cell in curve.cells.items()}
    return Line(series.legend, look, samples, {"norm": series.method, "options": series.options})


def _with_room_for(panel: Panel, published: Mapping[str, Mapping[int, Point]]) -> Panel:
    """Return the panel with the published sizes of its methods on its axis."""
    sizes = {size for _, points in _of_panel(panel, published) for size in points}
    if not sizes:
        return panel
    every = sorted(sizes.union(map(int, panel.axis.words)))
    return replace(panel, axis=axis_of_sizes(panel.axis.label, every))


def _of_panel(
    panel: Panel, published: Mapping[str, Mapping[int, Point]]
) -> list[tuple[Line, Mapping[int, Point]]]:
    """Return the published points of the methods of a panel, each beside the first of its lines."""
    lines = {str(line.columns["norm"]): line for line in reversed(panel.lines)}
    return [(lines[method], points) for method, points in published.items() if method in lines]


def table(selection: Sizes) -> list[Row]:
    """Return one row a cell, and one a published point if there are any. Accuracies are fractions."""
    rows = means.table(selection)
    empty = dict.fromkeys(rows[0])
    for method, points in selection.published.items():
        for size, point in points.items():
            known: Row = {"source": selection.overlay, "norm": method, "axis": "batch_size", "size": size}
            rows.append({**empty, **known, **point.columns})
    return rows


def draw(selection: Sizes, canvas: "Canvas") -> None:
    """Draw one large panel or a grid of small ones, on one scale where all show the same data set."""
    count = len(selection.panels)
    columns = min(count, 2 if count in (2, 4) else 3 if count <= MOST_PANELS else 4)
    rows = math.ceil(count / columns)
    canvas.set_size_inches(style.WIDTH, 3.7 if count == 1 else (2.6 if columns < 4 else 1.7) * rows)
    drawn = []
    for place, panel in enumerate(selection.panels):
        axes = canvas.add_subplot(rows, columns, place + 1)
        means.draw(axes, panel, columns)
        _draw_published(axes, panel, selection.published)
        if place < count - columns and columns > 3:
            axes.set_xlabel("")
        axes.set_title(textwrap.fill(panel.heading, 96 // columns))
        axes.set_ylabel(panel.quantity.axis if place % columns == 0 else "")
        axes.tick_params(labelleft=columns < 4 or place % columns == 0)
        means.set_limits(axes, panel)
        drawn.append(axes)
    if selection.is_shared:
        low, high = min(axes.get_ylim()[0] for axes in drawn), max(axes.get_ylim()[1] for axes in drawn)
        for axes in drawn:
            axes.set_ylim(low, high)
    for axes in drawn:
        means.set_ticks(axes, selection.panels[0].quantity)
    style.legend(canvas, selection.entries())


def _draw_published(axes: "Axes", panel: Panel, published: Mapping[str, Mapping[int, Point]]) -> None:
    for line, points in _of_panel(panel, published):
        places = [math.log2(size) for size in points]
        heights = [point.accuracy for point in points.values()]
        sds = [math.nan if point.sd is None else point.sd for point in points.values()]
        look: dict[str, Any] = {"color": line.look.color, "zorder": 1.5}
        axes.plot(places, heights, marker="_", markersize=5, **PUBLISHED_LINE, **look)
        axes.errorbar(places, heights, sds, linestyle="none", elinewidth=0.6, **look)


FIGURE = Figure(select, draw, table)
