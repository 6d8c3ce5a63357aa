"""The metric against any one setting of a trial: means over seeds with 95 % intervals, and every seed."""

import itertools
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from normbench.config.catalog.norms import NORMS
from normbench.config.series import key_of, series_of
from normbench.report.figures import caption, means, style
from normbench.report.figures.base import Figure, Options
from normbench.report.figures.means import Axis, Line, Means, Panel
from normbench.report.figures.panels import CannotDrawError, comparable, metric_of, telling
from normbench.report.figures.published import OVERLAID, PUBLISHED, Point
from normbench.report.figures.samples import Sample, beyond
from normbench.report.figures.values import (
    in_heading,
    in_words,
    numeric,
    order,
    places,
    shown,
    value_in_words,
    written,
)
from normbench.report.metrics import METRICS, Metric
from normbench.report.rows import Row, Value
from normbench.report.table import Cell, Table, distinct, is_of_method, norm_of
from normbench.text import numeric_key, plural

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure as Canvas
    from matplotlib.lines import Line2D

MOST_SERIES = 12
PUBLISHED_MARK: Mapping[str, Any] = {
    "linestyle": "none",
    "marker": "s",
    "markersize": 6.5,
    "markerfacecolor": "none",
}


@dataclass(frozen=True)
class Setting(Means):
    """All that is drawn, in one panel.

    Attributes:
        overlay: the name of the published series.
        published: lines with its points by value.
    """

    overlay: str = "none"
    published: Sequence[tuple[Line, Mapping[str, Point]]] = ()

    @property
    def panel(self) -> Panel:
        """The only one."""
        (panel,) = self.panels
        return panel

    def diverged(self, value: Any) -> float:
        """Return the share of the trials at a value that diverged."""
        at = [line.samples[value] for line in self.panel.lines if value in line.samples]
        trials = sum(len(sample.values) + len(sample.failures) for sample in at)
        return sum(sample.failures.count("diverged") for sample in at) / trials if trials else 0.0

    def entries(self) -> Iterator[tuple["Line2D", str]]:
        """Give the entries of the legend."""
        from matplotlib.lines import Line2D

        yield from super().entries()
        if self.published:
            yield Line2D([], [], color=style.INK, **PUBLISHED_MARK), "published"


def select(trials: Table, options: Options) -> Setting | None:
    """Return last-epoch numbers of the trials that have the setting, by what else they differ in.

    Raises:
        CannotDrawError: they differ in so much else that the lines could not be told apart, or the setting
            defines the metric.
    """
    key = str(options.get("key", "batch_size"))
    chosen = [(cell, settings) for cell in trials if key in (settings := distinct(cell.settings))]
    if not chosen:
        return None
    norms = [
        norm_of({k: v for k, v in settings.items() if k == "norm.name" or k != key}) for _, settings in chosen
    ]
    series = series_of(norms)
    others = [
        {k: v for k, v in settings.items() if k != key and not is_of_method(k)} for _, settings in chosen
    ]
    keys = telling(others)
    groups: dict[tuple[str, str, str], dict[str, Cell]] = defaultdict(dict)
    for (cell, settings), norm, other in zip(chosen, norms, others, strict=True):
        words = ", ".join(in_heading(name, other[name]) for name in keys if name in other)
        groups[cell.series.method, series[key_of(norm)].legend, words][written(settings[key])] = cell
    if len(groups) > MOST_SERIES:
        differ = ", ".join(keys or ["method and options"])
        raise CannotDrawError(f"{len(groups)} lines, because the trials also differ in {differ}")
    metric = metric_of(trials, options)
    values = sorted({written(settings[key]) for _, settings in chosen}, key=order)
    comparable(metric, {key: values})
    looks = style.of_methods(sorted({group[0] for group in groups}, key=NORMS.position))
    overlay = str(options.get("published", "none"))
    drawn: list[tuple[Line, Mapping[str, Cell]]] = []
    lines, variants = [], defaultdict[str, int](int)
    for group in sorted(groups, key=lambda each: (NORMS.position(each[0]), *map(numeric_key, each[1:]))):
        method, cells, label = group[0], groups[group], ", ".join(filter(None, group[1:]))
        samples = {value: Sample.of(cells[value], metric) for value in values if value in cells}
        look = style.varied(looks[method], variants[method])
        lines.append(Line(label, look, samples, {"norm": method, "line": label}))
        variants[method] += 1
        drawn.append((lines[-1], cells))
    is_laid_over = overlay != "none" and metric is METRICS["accuracy"]
    published = _published(drawn, key, overlay) if is_laid_over else ()
    shown_cells = Table(tuple(cell for cell, _ in chosen))
    stopped = Counter(status for cell in shown_cells for status in cell.failures)
    values = sorted({*values, *(value for _, points in published for value in points)}, key=order)
    columns: Row = {"setting": key, "value": None, **({"source": "measured"} if published else {})}
    panel = Panel("", _axis(key, values), metric.quantity, tuple(lines), columns, x="value")
    sentences = (
        caption.trials(shown_cells),
        *_unfinished(lines),
        *(["Grey: where trials diverged, the darker the more of them."] if stopped["diverged"] else []),
        f"{caption.measured(metric)}: mean and 95 % t-interval over seeds (a single seed has none); small "
        "dots: single seeds.",
        *beyond(panel.samples, metric.quantity),
        *([f"Large hollow squares, published: {PUBLISHED[overlay].source}."] if published else []),
        *(["There both batch sizes move together."] if published else []),
    )
    is_missing = overlay != "none" and not published
    warnings = (f"The published series {overlay} {_why_missing(key, metric)}.",) if is_missing else ()
    legend = tuple((line.label, line.look) for line in lines)
    return Setting((panel,), legend, stopped, sentences, warnings, overlay, published)


def _published(
    drawn: Sequence[tuple[Line, Mapping[str, Cell]]], key: str, overlay: str
) -> tuple[tuple[Line, Mapping[str, Point]], ...]:
    """Return published points by value, each beside the first line of its method and batch size."""
    found: dict[tuple[Value, int | None], tuple[Line, Mapping[str, Point]]] = {}
    for line, cells in drawn:
        method, sizes = line.columns["norm"], {cell.batch_size for cell in cells.values()}
        size = sizes.pop() if len(sizes) == 1 else None
        is_whole = all(cell.norm_batch_size in (None, cell.batch_size) for cell in cells.values())
        if is_whole and (points := PUBLISHED[overlay].along(key, str(method), size)):
            found.setdefault(
                (method, size), (line, {written(value): point for value, point in points.items()})
            )
    return tuple(found.values())


def _why_missing(key: str, metric: Metric) -> str:
    if metric is not METRICS["accuracy"]:
        return "is of accuracies, and left out"
    if key not in OVERLAID:
        return f"is over {' and '.join(OVERLAID)}, and left out"
    return "has nothing of these lines, and is left out"


def _axis(key: str, values: Sequence[str]) -> Axis:
    """Return the axis of the values as ``written``, which ends half a gap beyond the first and the last."""
    at = places(values)
    gaps = [after - before for before, after in itertools.pairwise(at)] or [1.0]
    words = tuple(value_in_words(key, shown(value)) for value in values)
    return Axis(in_words(key), tuple(values), at, words, (gaps[0] / 2, gaps[-1] / 2), numeric(values))


def _unfinished(lines: Sequence[Line]) -> Iterator[str]:
    """Yield which means leave trials out."""
    cells = [
        f"{line.label} at {shown(value)} ({len(sample.values)} of "
        f"{plural(len(sample.values) + len(sample.failures), 'seed')} left)"
        for line in lines
        for value, sample in line.samples.items()
        if sample.failures
    ]
    if cells:
        yield f"Not finished, so in no mean: {', '.join(cells)}."


def table(selection: Setting) -> list[Row]:
    """Return one row a cell, and one a published point if there are any. Accuracies are fractions."""
    rows = means.table(selection)
    empty = dict.fromkeys(rows[0])
    rows += [
        {**empty, **selection.panel.columns, **line.columns, "source": selection.overlay, "value": value}
        | point.columns
        for line, points in selection.published
        for value, point in points.items()
    ]
    return [row | {"value": shown(str(row["value"])).replace("\n", " ")} for row in rows]


def draw(selection: Setting, canvas: "Canvas") -> None:
    """Draw one panel; where trials diverged, it is the darker the more of them."""
    canvas.set_size_inches(style.WIDTH, 3.7)
    axes = canvas.add_subplot()
    axis = selection.panel.axis
    middles = [(before + after) / 2 for before, after in itertools.pairwise(axis.places)]
    low, high = axis.limits
    for value, ends in zip(axis.values, itertools.pairwise([low, *middles, high]), strict=True):
        if share := selection.diverged(value):
            axes.axvspan(*ends, color=style.FAINT, alpha=0.4 * share, linewidth=0)
    means.draw(axes, selection.panel)
    _draw_published(axes, axis, selection.published)
    axes.set_ylabel(selection.panel.quantity.axis)
    means.set_limits(axes, selection.panel)
    means.set_ticks(axes, selection.panel.quantity)
    style.legend(canvas, selection.entries())


def _draw_published(axes: "Axes", axis: Axis, published: Sequence[tuple[Line, Mapping[str, Point]]]) -> None:
    """Draw published points side by side, each in the colour of its line."""
    places = dict(zip(axis.values, axis.places, strict=True))
    step = axis.step(max(1, len(published)), 1)
    for (line, points), offset in zip(published, style.offsets([True] * len(published)), strict=True):
        xs = [places[value] + step * offset for value in points]
        heights = [point.accuracy for point in points.values()]
        sds = [point.sd or 0.0 for point in points.values()]
        axes.errorbar(xs, heights, sds, color=line.look.color, elinewidth=0.8, **PUBLISHED_MARK)


FIGURE = Figure(select, draw, table)
