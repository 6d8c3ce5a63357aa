"""The metric against any one setting of a trial: means over seeds with 95 % intervals, and every seed."""

import itertools
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from normbench.config.catalog.norms import NORMS
from normbench.config.series import key_of, series_of
from normbench.report.figures import caption, means, style
from normbench.report.figures.base import Figure, Options
from normbench.report.figures.means import Axis, Line, Means, Panel
from normbench.report.figures.panels import CannotDrawError, comparable, metric_of, telling
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
from normbench.report.rows import Row
from normbench.report.table import Cell, Table, distinct, norm_of
from normbench.text import numeric_key, plural

if TYPE_CHECKING:
    from matplotlib.figure import Figure as Canvas

MOST_SERIES = 12


@dataclass(frozen=True)
class Setting(Means):
    """All that is drawn, in one panel."""

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
        {k: v for k, v in settings.items() if k != key and not k.startswith("norm.")}
        for _, settings in chosen
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
    lines, variants = [], defaultdict[str, int](int)
    for group in sorted(groups, key=lambda each: (NORMS.position(each[0]), *map(numeric_key, each[1:]))):
        method, cells, label = group[0], groups[group], ", ".join(filter(None, group[1:]))
        samples = {value: Sample.of(cells[value], metric) for value in values if value in cells}
        look = style.varied(looks[method], variants[method])
        lines.append(Line(label, look, samples, {"norm": method, "line": label}))
        variants[method] += 1
    shown_cells = Table(tuple(cell for cell, _ in chosen))
    stopped = Counter(status for cell in shown_cells for status in cell.failures)
    panel = Panel(
        "", _axis(key, values), metric.quantity, tuple(lines), {"setting": key, "value": None}, x="value"
    )
    sentences = (
        caption.trials(shown_cells),
        *_unfinished(lines),
        *(["Grey: where trials diverged, the darker the more of them."] if stopped["diverged"] else []),
        f"{caption.measured(metric)}: mean and 95 % t-interval over seeds (a single seed has none); small "
        "dots: single seeds.",
        *beyond(panel.samples, metric.quantity),
    )
    return Setting((panel,), tuple((line.label, line.look) for line in lines), stopped, sentences)


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
    """Return one row a cell. Accuracies are fractions."""
    rows = means.table(selection)
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
    axes.set_ylabel(selection.panel.quantity.axis)
    means.set_limits(axes, selection.panel)
    means.set_ticks(axes, selection.panel.quantity)
    style.legend(canvas, selection.entries())


FIGURE = Figure(select, draw, table)
